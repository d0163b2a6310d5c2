"""One run of training, from a checkpoint or from nothing to a checkpoint."""

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from minillm_repl import __version__
from minillm_repl.checkpoint.checkpoint import Checkpoint, TrainingRecord
from minillm_repl.checkpoint.names import user_path
from minillm_repl.errors import UserError
from minillm_repl.model.build import tensors_of, trainable
from minillm_repl.model.config import GPTConfig
from minillm_repl.model.device import pick_device
from minillm_repl.model.gpt import GPT
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer
from minillm_repl.training.data import Corpus, read_corpus, windows
from minillm_repl.training.events import Evaluated, Finished, TrainStep
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.trainer import train

# Multiplications a step, below which a second thread is no faster on a quiet machine, and far slower on a busy one.
_ONE_THREAD = 2e8
_CONTEXT = 32  # tokens, of a new model when nothing is said
_LONGEST = 256  # tokens that a piece of text has at most when nothing is said
_SAMPLE_START = 4  # tokens of the corpus from which the model's samples begin


def find_corpus(named: str, checkpoint: Checkpoint | None) -> Corpus:
    """Return the corpus that was named, else the one the checkpoint was trained on, if it is there unchanged.

    Raises UserError that says what to type.
    """
    if named:
        return read_corpus(user_path(named))
    record = checkpoint.training if checkpoint else None
    if checkpoint is None or record is None or not record.corpus:
        raise UserError("which text? `:train CORPUS` takes a UTF-8 text file, such as `:train story.txt steps=500`")
    beside = [checkpoint.path.parent / Path(record.corpus).name] if checkpoint.path else []
    for path in (Path(record.corpus), *beside):
        if os.path.isfile(path):  # noqa: PTH113 - Path's own raises for a name that is too long
            corpus = read_corpus(path)
            if corpus.sha256 == record.corpus_sha256:
                return replace(corpus, name=record.corpus)
    raise UserError(
        f"the text that this model was trained on ({safe_line(record.corpus):.80}) is not here, or has changed;"
        " name one with `:train CORPUS`"
    )


class TrainingRun:
    """A model, the corpus as its tokens, and the plan; nothing of the checkpoint it starts from is changed.

    With a checkpoint it is trained further and keeps its vocabulary; without one a new model of the plan's sizes
    starts from the plan's seed. Raises UserError before anything is touched if the corpus does not fit.
    """

    def __init__(
        self, start: Checkpoint | None, corpus: Corpus, plan: TrainPlan, device: str, threads: int = 0
    ) -> None:
        self._start, self._corpus, self._plan = start, corpus, plan
        self.tokenizer: Tokenizer = start.tokenizer if start else CharacterTokenizer.from_corpus(corpus.text)
        config = start.config if start else _note(plan, self.tokenizer)
        self.unknown = self.tokenizer.unknown(corpus.text)
        # A long context costs memory and time at each step, and a short text does not fill it.
        self._context = min(config.context, plan.context or _LONGEST)
        self._windows = windows(corpus, self.tokenizer, self._context)
        small = config.parameters * plan.batch * self._context < _ONE_THREAD
        self._threads = threads or (1 if small else torch.get_num_threads())
        torch.manual_seed(plan.seed)
        model = trainable(config, start.tensors) if start else GPT(_note(plan, self.tokenizer)).initialise()
        self.model = model.to(pick_device(device))
        self.sample_start: list[int] = self._windows[0][: min(_SAMPLE_START, self._context)].tolist()

    @property
    def title(self) -> str:
        """What is about to happen, in one line."""
        config = self.model.config
        model = f"{'training further' if self._start else 'a new model'}: {config.parameters:,} parameters"
        tokens = len(self._windows) + self._context
        return (
            f"{model} · {self._corpus.name}: {tokens:,} tokens, {config.vocab:,} different · {self._plan.steps:,} steps"
        )

    def events(self, interrupted: Callable[[], bool]) -> Iterator[TrainStep | Evaluated | Finished]:
        """Train, and yield what happens."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield from train(self.model, self._windows, self._plan, interrupted)
        finally:
            torch.set_num_threads(before)

    def checkpoint(self, finished: Finished) -> Checkpoint:
        """Return the trained model; steps, tokens and curve go on from those of the checkpoint it started from."""
        before = self._start.training if self._start else None
        steps_before, tokens_before = (before.steps, before.tokens) if before else (0, 0)
        points = (*(before.curve if before else ()), *((steps_before + step, loss) for step, loss in finished.curve))
        record = TrainingRecord(
            steps=steps_before + finished.steps,
            tokens=tokens_before + finished.tokens,
            train_loss=round(finished.last_loss, 6),
            corpus=self._corpus.name,
            corpus_sha256=self._corpus.sha256,
            seed=self._plan.seed,
            versions={"minillm-repl": __version__, "torch": torch.__version__, "python": platform.python_version()},
            curve=points,
        )
        trained = tensors_of(self.model)
        if self._start:
            return replace(self._start, tensors=trained, training=record)
        return Checkpoint(self.model.config, self.tokenizer, trained, record)


def _note(plan: TrainPlan, tokenizer: Tokenizer) -> GPTConfig:
    """Return the study note's kind of model, in the plan's sizes."""
    return GPTConfig(tokenizer.size, plan.context or _CONTEXT, plan.width, plan.layers, plan.heads)
