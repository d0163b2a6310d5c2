"""One run of training, from a checkpoint or from nothing to a checkpoint."""

import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from minillm_repl import __version__
from minillm_repl.chat.template import PLAIN
from minillm_repl.checkpoint.checkpoint import Adapter, ChatTemplate, Checkpoint, TrainingRecord
from minillm_repl.checkpoint.formats import native
from minillm_repl.checkpoint.formats.adapter import digest
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import as_arrays, build_new, trainable
from minillm_repl.model.device import pick_device
from minillm_repl.model.lora import adapt, adapters, merged
from minillm_repl.safetext import apart, safe_line
from minillm_repl.storage.memory import check_room
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.training import description as told
from minillm_repl.training import resume
from minillm_repl.training.autotune import quickest, threads
from minillm_repl.training.cancellation import STOPPED_EARLY, Interrupted
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.defaults import (
    least_memory,
    new_config,
    pick_preset,
    settle_further,
    settle_loop,
    settle_new,
)
from minillm_repl.training.distributed import Processes, whole
from minillm_repl.training.events import Finished, TrainEvent
from minillm_repl.training.open_corpora import open_again, open_texts
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run_paths import resume_path
from minillm_repl.training.tokenize import Tokens, cache_folder, tokenise
from minillm_repl.training.trainer import Trainer
from minillm_repl.training.vocabulary import make_tokenizer
from minillm_repl.training.windows import Part

_HELD_OUT = 10  # one part in so many, the last, is only measured on
_LEAST_HELD_OUT = 1_000  # tokens: fewer tell nothing
_SAMPLE_START = 4  # tokens of the corpus from which the model's samples begin
_SEPARATORS = ("<end>", "<|end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Surroundings:
    """Where a run takes place, and who watches."""

    path: Path  # of the checkpoint that saves on the way write; the resume file lies beside it
    device: str = "auto"
    threads: int = 0  # 0 tries what is fastest
    processes: Processes = field(default_factory=Processes)
    progress: Callable[[float], None] = lambda _: None  # of reading the text
    interrupted: Callable[[], bool] = lambda: False


class TrainingRun:
    """A model, the corpus as its tokens, and the plan; nothing of the checkpoint it starts from is
    changed.

    With a checkpoint it is trained further and keeps its vocabulary; without one a new model starts
    from the plan's seed, and gets the chat template `chat`. `notes` are what the user should know,
    one line each. Raises UserError before anything is touched if the corpus does not fit.
    """

    def __init__(
        self,
        start: Checkpoint | None,
        corpus: str,
        plan: TrainPlan,
        around: Surroundings,
        resumed: resume.Interrupted | None = None,
        chat: ChatTemplate | None = None,
    ) -> None:
        self._around, self._further = (
            around,
            resumed.facts.further if resumed else start is not None,
        )
        self.notes, self.warnings = list[str](), list[str]()
        # whether it lies on disk, and what kept the last save from being one
        self.saved, self.not_saved = False, ""
        with around.processes.first_then_others():
            self._texts = texts = (
                open_again(resumed.facts, corpus, plan, around.path, around.interrupted)
                if resumed
                else open_texts(corpus, plan, around.interrupted)
            )
            self.corpus, opened, plan = texts.name, texts.learnt, replace(plan, val=texts.val)
            self.notes += texts.notes
            self.tokenizer = start.tokenizer if start else make_tokenizer(plan.tokenizer, opened)
            self._chat = start.chat if start else chat or (PLAIN if opened.conversations else None)
            self._end = start.end if start else _separators(self.tokenizer)
            if start and start.chat and not resumed and not opened.conversations:
                self.warnings.append(told.will_forget(opened))
            tokens = self._read(opened)
            held = self._read(texts.held) if texts.held else None
            self._different = tokens.different
        device = pick_device(around.device)
        torch.manual_seed(plan.seed)
        if start is None:
            preset, why = pick_preset(plan, len(tokens.ids), device.type != "cpu")
            self.notes.append(why)
            plan = settle_new(plan, preset)
            config = new_config(plan, self.tokenizer.size)
        else:
            config = start.config
            plan = plan if resumed else settle_further(plan, config, len(tokens.ids))
        plan = settle_loop(plan)
        if device.type == "cpu":
            check_room(least_memory(plan, config), _("training at these sizes"))
        train, val = _split(tokens, held, plan, safe_line(self.corpus))
        if plan.val == "auto" and val is None:
            self.notes.append(
                _(
                    "the text is too short to hold a part of it out: the losses are those of "
                    "what is learnt"
                )
            )
        model = trainable(config, start.tensors) if start and start.tensors else build_new(config)
        if plan.lora:
            adapt(model, plan.lora)
        measured = val or train
        per_token = measured.targets / max(1, measured.characters(self.tokenizer)) / math.log(2)
        self.trainer = Trainer(model.to(device), train, val, plan, per_token, around.processes)
        if plan.compile:
            _try_compiled(self.trainer)
        self._record, self._path = (start.training, start.path) if start else (None, None)
        self._base = (
            resumed.facts.base if resumed else self._base_of(start) if plan.lora and start else None
        )
        if resumed:
            resume.restore(resumed, self.trainer)
            self.threads = resumed.facts.threads
            self.notes.append(
                _(
                    "goes on after step {step:,} of {steps:,}",
                    step=self.trainer.state.step,
                    steps=plan.steps,
                )
            )
        else:
            self.threads, seconds = self._choose_speed()
            self.notes.append(told.how(self.trainer, self.threads, seconds))
        self.sample_start = self._sample_start(plan.sample, train)

    @classmethod
    def resumed(cls, path: Path, around: Surroundings, corpus: str = "") -> "TrainingRun":
        """Return the run of a checkpoint that its resume file holds, where it was; its text may be
        named anew.

        Raises UserError.
        """
        interrupted = resume.read(resume_path(path))
        return cls(interrupted.start, corpus, interrupted.plan, around, interrupted)

    @property
    def plan(self) -> TrainPlan:
        """The plan with everything chosen."""
        return self.trainer.plan

    @property
    def title(self) -> str:
        """What is about to happen, in one line."""
        return told.title(self.trainer, self.corpus, self._different, further=self._further)

    def events(self, interrupted: Callable[[], bool], *, save: bool = True) -> Iterator[TrainEvent]:
        """Train, and yield what happens; with `save`, write the run to disk as its plan says."""
        with threads(self.threads):
            yield from self.trainer.events(interrupted, self._save if save else None)

    def checkpoint(self, finished: Finished | None = None) -> Checkpoint:
        """Return the model as it is worth keeping now; steps, tokens and curve go on from those
        it started from.
        """
        trainer, state = self.trainer, self.trainer.state
        weights = dict(trainer.model.state_dict())
        if finished is None and trainer.val is not None:
            weights |= trainer.best_weights
        last_val = state.val_curve[-1][1] if state.val_curve else None
        record = TrainingRecord(
            steps=state.step,
            tokens=state.tokens,
            train_loss=round(finished.train_loss if finished else state.train_loss, 6),
            val_loss=last_val
            if finished is None
            else finished.val_loss and round(finished.val_loss, 6),
            corpus=self.corpus,
            corpus_sha256=self._texts.learnt.sha256,
            seed=self.plan.seed,
            versions={
                "minillm-repl": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            curve=tuple(state.curve),
            val_curve=tuple(state.val_curve),
        )
        gathered = {name: whole(tensor) for name, tensor in weights.items()}
        learnt = None
        if self._base:
            learnt = Adapter(as_arrays(adapters(gathered)), *self._base, record)
        record = record.after(self._record)
        return replace(
            self._described(), tensors=as_arrays(merged(gathered)), training=record, adapter=learnt
        )

    def _choose_speed(self) -> tuple[int, float]:
        """Settle the precision; return the number of threads, and the seconds of a step if that
        was measured.
        """
        trainer, around = self.trainer, self._around
        if around.processes.size == 1:
            try:
                threads, precision, seconds = quickest(trainer, around.threads, around.interrupted)
            except Interrupted:
                raise UserError(_(STOPPED_EARLY)) from None
        else:  # every process must choose the same
            threads, precision, seconds = around.threads, trainer.plan.precision, 0.0
            if precision == "auto":
                precision = "bfloat16" if trainer.device.type == "cuda" else "float32"
        trainer.plan = replace(trainer.plan, precision=precision)
        return threads, seconds

    def _base_of(self, start: Checkpoint) -> tuple[Path, str] | None:
        """Return where the model lies that an adapter belongs to, and its digest."""
        if start.path and start.on_disk and start.adapter is None:
            return start.path, digest(start.tensors)
        self.notes.append(
            _(
                "the open model lies in no file as it is: the adapter can be saved merged into it "
                "only"
            )
        )
        return None

    def _described(self) -> Checkpoint:
        config = self.trainer.model.config
        return Checkpoint(
            config, self.tokenizer, {}, self._record, self._path, self._chat, self._end
        )

    def _save(self) -> str:
        """Write the run and its checkpoint to disk; return what kept them from it, if anything
        did.
        """
        path, checkpoint, texts = self._around.path, self.checkpoint(), self._texts
        digests = texts.learnt.sha256, texts.held.sha256 if texts.held else ""
        facts = resume.Facts(
            self.corpus, *digests, texts.folder, self._further, self.threads, self._base
        )
        self.not_saved = ""
        try:
            resume.write(resume_path(path), self.trainer, self._described(), facts)
            if self._around.processes.rank == 0:
                native.save(checkpoint, path)
            self.saved = True
        except UserError as error:
            self.not_saved = str(error)
        return self.not_saved

    def _read(self, corpus: Corpus) -> Tokens:
        around = self._around
        self.notes += [f"{safe_line(corpus.name)}: {note}" for note in corpus.notes]
        if corpus.conversations and self._chat is None:
            raise UserError(
                _(
                    "the corpus holds conversations, but this model has no chat template to write "
                    "them with"
                )
            )
        tokens = tokenise(
            corpus,
            self.tokenizer,
            separator=self._end[0] if self._end else None,
            template=self._chat if corpus.conversations else None,
            cache=cache_folder(),
            progress=around.progress,
            interrupted=around.interrupted,
        )
        if tokens.unknown:
            become = self.tokenizer.unknown_becomes or ""
            self.notes.append(told.unknown(tokens, corpus, become, self._lacking(corpus)))
        return tokens

    def _lacking(self, corpus: Corpus) -> str:
        """Return the most frequent characters of a corpus that the vocabulary lacks."""
        points = np.argsort(-corpus.characters, kind="stable")[:20_000]
        text = "".join(chr(point) for point in points if corpus.characters[point])
        lacking = self.tokenizer.unknown(text)[:20]
        return safe_line(
            ", ".join(each if apart(each) else apart(each, told=True) for each in lacking)
        )

    def _sample_start(self, text: str, train: Part) -> list[int]:
        ids = self.tokenizer.encode(text) if text else []
        return ids or train.ids[: min(_SAMPLE_START, train.context)].tolist()


def _try_compiled(trainer: Trainer) -> None:
    """Read a little with a model that torch compiles as it is first used.

    Raises UserError where it cannot.
    """
    try:
        trainer.mean_loss(trainer.train, trainer.train.even(trainer.train.context)[:1])
    except RuntimeError as error:
        why = safe_line(str(error).partition("\n")[0])
        raise UserError(
            _(
                "the model cannot be compiled here ({why:.150}); it trains without compile=on too",
                why=why,
            )
        ) from None


def _separators(tokenizer: Tokenizer) -> tuple[int, ...]:
    found = (tokenizer.named(name) for name in _SEPARATORS)
    return tuple(token for token in found if token is not None)[:1]


def _split(
    tokens: Tokens, held: Tokens | None, plan: TrainPlan, name: str
) -> tuple[Part, Part | None]:
    """Return what is trained on and what is measured on.

    Raises UserError if either has not even one window.
    """
    count, context = len(tokens.ids), plan.context
    parts = [Part(tokens.ids, tokens.learned, context)]
    if held is not None:
        parts.append(Part(held.ids, held.learned, context))
    elif plan.val == "auto" and count // _HELD_OUT >= max(_LEAST_HELD_OUT, 4 * context):
        cut = count - -(-count // _HELD_OUT)
        learned = tokens.learned
        halves = [
            Part(tokens.ids[here], None if learned is None else learned[here], context)
            for here in (slice(0, cut), slice(cut, count))
        ]
        if halves[1].targets:
            parts = halves
    for part in parts:
        if not part.targets:
            raise UserError(
                _("in {name} there is nothing to learn: no words of the assistant's", name=name)
            )
        if not part.windows:
            raise UserError(
                _(
                    "{name} has {count:,} tokens that the model knows; a context of "
                    "{context} needs at least"
                    " {least:,}: take a longer text, or a smaller `context=N`",
                    name=name,
                    count=len(part.ids),
                    context=context,
                    least=context + 1,
                )
            )
    return parts[0], parts[1] if len(parts) > 1 else None
