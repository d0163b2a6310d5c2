"""One run of training, from a checkpoint or from nothing to a checkpoint."""

import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from minillm_repl import __version__
from minillm_repl.chat.template import DEFAULT_CHAT_TEMPLATE
from minillm_repl.checkpoint.checkpoint import Adapter, ChatTemplate, Checkpoint, TrainingRecord
from minillm_repl.checkpoint.formats import native
from minillm_repl.checkpoint.formats.adapter import weights_sha256
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import build_new, build_trainable, to_arrays
from minillm_repl.model.device import pick_device
from minillm_repl.model.lora import adapter_state_dict, add_adapters, merge_adapters
from minillm_repl.safetext import safe_line, strip_joiners
from minillm_repl.storage.memory import check_memory
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.training import description as told
from minillm_repl.training import resume
from minillm_repl.training.autotune import autotune, torch_threads
from minillm_repl.training.cancellation import STOPPED_EARLY, Cancelled
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.defaults import (
    min_memory_bytes,
    new_config,
    pick_preset,
    resolve_finetuning,
    resolve_loop,
    resolve_new_model,
)
from minillm_repl.training.distributed import Distributed, full_tensor
from minillm_repl.training.events import Finished, TrainEvent
from minillm_repl.training.open_corpora import open_corpora, reopen_corpora
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run_paths import resume_path
from minillm_repl.training.tokenize import TokenisedCorpus, cache_folder, tokenise
from minillm_repl.training.trainer import Trainer
from minillm_repl.training.vocabulary import make_tokenizer
from minillm_repl.training.windows import Split

_VAL_DENOMINATOR = 10  # one part in so many, the last, is only measured on
_MIN_VAL_TOKENS = 1_000  # tokens: fewer tell nothing
_SAMPLE_PROMPT_TOKENS = 4  # tokens of the corpus from which the model's samples begin
_EOS_TOKENS = ("<end>", "<|end|>", "<|endoftext|>")


@dataclass(frozen=True)
class RunContext:
    """Where a run takes place, and who watches."""

    path: Path  # of the checkpoint that saves on the way write; the resume file lies beside it
    device: str = "auto"
    threads: int = 0  # 0 tries what is fastest
    distributed: Distributed = field(default_factory=Distributed)
    progress: Callable[[float], None] = lambda _: None  # of reading the text
    interrupted: Callable[[], bool] = lambda: False


class TrainingRun:
    """A model, the corpus as tokens, and the plan; the checkpoint it starts from is not changed.

    With a checkpoint it is trained further and keeps its vocabulary; without one a new model starts
    from the plan's seed, and gets the chat template `chat`. `notes` are what the user should know,
    one line each. Raises UserError before anything is touched if the corpus does not fit.
    """

    def __init__(
        self,
        start: Checkpoint | None,
        corpus: str,
        plan: TrainPlan,
        run_context: RunContext,
        resumed: resume.ResumeState | None = None,
        chat: ChatTemplate | None = None,
    ) -> None:
        self._run_context, self._is_finetuning = (
            run_context,
            resumed.metadata.is_finetuning if resumed else start is not None,
        )
        self.notes, self.warnings = list[str](), list[str]()
        # whether it lies on disk, and what kept the last save from being one
        self.is_saved, self.save_error = False, ""
        with run_context.distributed.rank_zero_first():
            self._texts = texts = (
                reopen_corpora(
                    resumed.metadata, corpus, plan, run_context.path, run_context.interrupted
                )
                if resumed
                else open_corpora(corpus, plan, run_context.interrupted)
            )
            self.corpus, train_corpus, plan = texts.name, texts.train, replace(plan, val=texts.val)
            self.notes += texts.notes
            self.tokenizer = (
                start.tokenizer if start else make_tokenizer(plan.tokenizer, train_corpus)
            )
            self._chat = (
                start.chat_template
                if start
                else chat or (DEFAULT_CHAT_TEMPLATE if train_corpus.is_conversational else None)
            )
            self._eos_token_ids = start.eos_token_ids if start else _find_eos(self.tokenizer)
            if start and start.chat_template and not resumed and not train_corpus.is_conversational:
                self.warnings.append(told.forgetting_warning(train_corpus))
            tokens = self._tokenise(train_corpus)
            val_tokens = self._tokenise(texts.val_corpus) if texts.val_corpus else None
            self._unique_tokens = tokens.unique_tokens
        device = pick_device(run_context.device)
        torch.manual_seed(plan.seed)
        if start is None:
            preset, note = pick_preset(plan, len(tokens.ids), device.type != "cpu")
            self.notes.append(note)
            plan = resolve_new_model(plan, preset)
            config = new_config(plan, self.tokenizer.vocab_size)
        else:
            config = start.config
            plan = plan if resumed else resolve_finetuning(plan, config, len(tokens.ids))
        plan = resolve_loop(plan)
        if device.type == "cpu":
            check_memory(min_memory_bytes(plan, config), _("training at these sizes"))
        train, val = _make_splits(tokens, val_tokens, plan, safe_line(self.corpus))
        if plan.val == "auto" and val is None:
            self.notes.append(
                _(
                    "the text is too short for a validation split: losses are measured on "
                    "the training text"
                )
            )
        model = (
            build_trainable(config, start.tensors) if start and start.tensors else build_new(config)
        )
        if plan.lora_rank:
            add_adapters(model, plan.lora_rank)
        eval_split = val or train
        per_token = (
            eval_split.targets / max(1, eval_split.count_characters(self.tokenizer)) / math.log(2)
        )
        self.trainer = Trainer(
            model.to(device), train, val, plan, per_token, run_context.distributed
        )
        if plan.compile:
            _check_compiles(self.trainer)
        self._training_record, self._path = (start.training, start.path) if start else (None, None)
        self._base_model = (
            resumed.metadata.base_model
            if resumed
            else self._adapter_base(start)
            if plan.lora_rank and start
            else None
        )
        if resumed:
            resume.restore_run(resumed, self.trainer)
            self.threads = resumed.metadata.threads
            self.notes.append(
                _(
                    "continues after step {step:,} of {steps:,}",
                    step=self.trainer.state.step,
                    steps=plan.steps,
                )
            )
        else:
            self.threads, seconds = self._autotune()
            self.notes.append(told.describe_method(self.trainer, self.threads, seconds))
        self.sample_prompt_ids = self._encode_sample_prompt(plan.sample_prompt, train)

    @classmethod
    def from_resume_file(
        cls, path: Path, run_context: RunContext, corpus: str = ""
    ) -> "TrainingRun":
        """Return a checkpoint's run from its resume file, where it was; its text may be named anew.

        Raises UserError.
        """
        resumed = resume.load_run(resume_path(path))
        return cls(resumed.start, corpus, resumed.plan, run_context, resumed)

    @property
    def plan(self) -> TrainPlan:
        """The plan with everything chosen."""
        return self.trainer.plan

    @property
    def title(self) -> str:
        """What is about to happen, in one line."""
        return told.title(
            self.trainer, self.corpus, self._unique_tokens, is_finetuning=self._is_finetuning
        )

    def events(self, interrupted: Callable[[], bool], *, save: bool = True) -> Iterator[TrainEvent]:
        """Train, and yield what happens; with `save`, write the run to disk as its plan says."""
        with torch_threads(self.threads):
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
            corpus_sha256=self._texts.train.sha256,
            seed=self.plan.seed,
            versions={
                "minillm-repl": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            curve=tuple(state.curve),
            val_curve=tuple(state.val_curve),
        )
        full_weights = {name: full_tensor(tensor) for name, tensor in weights.items()}
        adapter = None
        if self._base_model:
            adapter = Adapter(
                to_arrays(adapter_state_dict(full_weights)), *self._base_model, record
            )
        record = record.append_to(self._training_record)
        return replace(
            self._empty_checkpoint(),
            tensors=to_arrays(merge_adapters(full_weights)),
            training=record,
            adapter=adapter,
        )

    def _autotune(self) -> tuple[int, float]:
        """Settle the precision; return the number of threads, and a step's seconds if measured."""
        trainer, run_context = self.trainer, self._run_context
        if run_context.distributed.world_size == 1:
            try:
                threads, precision, seconds = autotune(
                    trainer, run_context.threads, run_context.interrupted
                )
            except Cancelled:
                raise UserError(_(STOPPED_EARLY)) from None
        else:  # every process must choose the same
            threads, precision, seconds = run_context.threads, trainer.plan.precision, 0.0
            if precision == "auto":
                precision = "bfloat16" if trainer.device.type == "cuda" else "float32"
        trainer.plan = replace(trainer.plan, precision=precision)
        return threads, seconds

    def _adapter_base(self, start: Checkpoint) -> tuple[Path, str] | None:
        """Return where the model lies that an adapter belongs to, and its digest."""
        if start.path and start.is_on_disk and start.adapter is None:
            return start.path, weights_sha256(start.tensors)
        self.notes.append(
            _(
                "no file holds the open model in this form: the adapter can only be saved "
                "merged into it"
            )
        )
        return None

    def _empty_checkpoint(self) -> Checkpoint:
        config = self.trainer.model.config
        return Checkpoint(
            config=config,
            tokenizer=self.tokenizer,
            tensors={},
            training=self._training_record,
            path=self._path,
            chat_template=self._chat,
            eos_token_ids=self._eos_token_ids,
        )

    def _save(self) -> str:
        """Write the run and its checkpoint to disk; return what kept them from it, if any."""
        path, checkpoint, texts = self._run_context.path, self.checkpoint(), self._texts
        digests = texts.train.sha256, texts.val_corpus.sha256 if texts.val_corpus else ""
        metadata = resume.RunMetadata(
            self.corpus,
            *digests,
            texts.working_folder,
            self._is_finetuning,
            self.threads,
            self._base_model,
        )
        self.save_error = ""
        try:
            resume.save_run(resume_path(path), self.trainer, self._empty_checkpoint(), metadata)
            if self._run_context.distributed.rank == 0:
                native.save_native(checkpoint, path)
            self.is_saved = True
        except UserError as error:
            self.save_error = str(error)
        return self.save_error

    def _tokenise(self, corpus: Corpus) -> TokenisedCorpus:
        run_context = self._run_context
        self.notes += [f"{safe_line(corpus.name)}: {note}" for note in corpus.notes]
        if corpus.is_conversational and self._chat is None:
            raise UserError(
                _(
                    "the corpus contains conversations, but this model has no chat "
                    "template to render them"
                )
            )
        tokens = tokenise(
            corpus,
            self.tokenizer,
            separator=self._eos_token_ids[0] if self._eos_token_ids else None,
            template=self._chat if corpus.is_conversational else None,
            cache=cache_folder(),
            progress=run_context.progress,
            interrupted=run_context.interrupted,
        )
        if tokens.unknown_characters:
            unknown_token = self.tokenizer.unk_token or ""
            self.notes.append(
                told.describe_unknown(
                    tokens, corpus, unknown_token, self._unknown_characters(corpus)
                )
            )
        return tokens

    def _unknown_characters(self, corpus: Corpus) -> str:
        """Return the most frequent characters of a corpus that the vocabulary lacks."""
        code_points = np.argsort(-corpus.character_counts, kind="stable")[:20_000]
        text = "".join(
            chr(code_point) for code_point in code_points if corpus.character_counts[code_point]
        )
        unknown = self.tokenizer.find_unknown(text)[:20]
        return safe_line(
            ", ".join(
                character if strip_joiners(character) else strip_joiners(character, visible=True)
                for character in unknown
            )
        )

    def _encode_sample_prompt(self, text: str, train: Split) -> list[int]:
        ids = self.tokenizer.encode(text) if text else []
        return ids or train.ids[: min(_SAMPLE_PROMPT_TOKENS, train.context_length)].tolist()


def _check_compiles(trainer: Trainer) -> None:
    """Read a little with a model that torch compiles as it is first used.

    Raises UserError where it cannot.
    """
    try:
        trainer.mean_loss(
            trainer.train, trainer.train.evenly_spaced_starts(trainer.train.context_length)[:1]
        )
    except RuntimeError as error:
        message = safe_line(str(error).partition("\n")[0])
        raise UserError(
            _(
                "the model cannot be compiled here ({why:.150}); training also works "
                "without compile=on",
                why=message,
            )
        ) from None


def _find_eos(tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = (tokenizer.token_to_id(name) for name in _EOS_TOKENS)
    return tuple(token for token in ids if token is not None)[:1]


def _make_splits(
    tokens: TokenisedCorpus, val_tokens: TokenisedCorpus | None, plan: TrainPlan, name: str
) -> tuple[Split, Split | None]:
    """Return what is trained on and what is measured on.

    Raises UserError if either has not even one window.
    """
    count, context = len(tokens.ids), plan.context_length
    splits = [Split(tokens.ids, tokens.loss_mask, context)]
    if val_tokens is not None:
        splits.append(Split(val_tokens.ids, val_tokens.loss_mask, context))
    elif plan.val == "auto" and count // _VAL_DENOMINATOR >= max(_MIN_VAL_TOKENS, 4 * context):
        cut = count - -(-count // _VAL_DENOMINATOR)
        loss_mask = tokens.loss_mask
        halves = [
            Split(tokens.ids[span], None if loss_mask is None else loss_mask[span], context)
            for span in (slice(0, cut), slice(cut, count))
        ]
        if halves[1].targets:
            splits = halves
    for split in splits:
        if not split.targets:
            raise UserError(
                _("{name} has no assistant turns: there is nothing to learn", name=name)
            )
        if not split.n_windows:
            raise UserError(
                _(
                    "{name} has {count:,} tokens that the model knows, but a context of "
                    "{context} needs at least {least:,}. Use a longer text or a smaller "
                    "`context=N`",
                    name=name,
                    count=len(split.ids),
                    context=context,
                    least=context + 1,
                )
            )
    return splits[0], splits[1] if len(splits) > 1 else None
