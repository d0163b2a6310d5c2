"""How a run of training comes to be: open the text → tokenise → split → build the model → tune."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from minillm_repl.chat import Message, apply_chat_template
from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.checkpoint.adapter import printable_path, weights_sha256
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import build_new, build_trainable, pick_device
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.layers import add_adapters
from minillm_repl.safetext import safe_line
from minillm_repl.settings import default_of, value_of
from minillm_repl.storage.paths import exists
from minillm_repl.tokenizer import decode
from minillm_repl.training.corpus import Corpus, open_corpora, open_parts, parse_mixture
from minillm_repl.training.defaults import (
    choose_sizes,
    resolve_loop,
    resolve_memory,
    resolve_steps,
)
from minillm_repl.training.machine import Distributed, check_compiles, tune
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run import RunContext, TrainingRun
from minillm_repl.training.splits import Split, make_splits
from minillm_repl.training.texts import Texts, tokenise_corpora
from minillm_repl.training.trainer import Trainer

# These settings mean something for a new model alone.
_NEW_MODEL_SETTINGS = (
    "preset",
    "arch",
    "tokenizer",
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
)
_SAMPLE_PROMPT_TOKENS = 4  # tokens of the text with which the model's samples begin


def start_run(
    start: Checkpoint | None,
    corpus: str,
    plan: TrainPlan,
    context: RunContext,
    chat: ChatTemplate | None = None,
) -> TrainingRun:
    """Return a new run, ready to go; nothing of the checkpoint that it starts from is changed.

    `corpus` is a file or a folder; empty: the text that the checkpoint was trained on. A checkpoint
    is trained further, and keeps its vocabulary. Without one, a new model starts from the plan's
    seed, and gets the chat template `chat`. Raises UserError if the text does not fit, or if a
    setting means nothing here.
    """
    check_applies(plan, is_new=start is None)
    with rank_zero_first(context.distributed):
        corpora = open_corpora(find_corpus(corpus, start), plan, context.interrupted)
        text = tokenise_corpora(corpora, start, plan, context, chat)
    device = pick_device(context.device)
    config, plan, note = choose_sizes(
        start.config if start else None,
        replace(plan, val=corpora.val),
        n_tokens=text.n_tokens,
        vocab_size=text.tokenizer.vocab_size,
        has_accelerator=device.type != "cpu",
    )
    if note:
        text.notes.append(note)
    splits = make_splits(text.train, text.val, plan, safe_line(text.name), context.interrupted)
    scale = (splits[1] or splits[0]).bits_per_character(text.tokenizer)
    plan = resolve_memory(resolve_steps(plan, len(splits[0].ids)), config, device)
    plan = resolve_loop(plan)
    model = _without_weights(start, config, text)
    sample_prompt_ids, sample_heading = encode_sample_prompt(plan, splits[0], model, corpora.train)
    # A model of a folder keeps its dtype; adapters are float32.
    is_of_folder = start is not None and start.weight_map is not None and not plan.lora_rank
    is_small = start is not None and start.dtype in ("bfloat16", "float16")  # no blocks of GGUF
    dtype = start.dtype if start and is_of_folder and is_small else "float32"
    trainer = build_trainer(start, model, text, plan, context, splits, scale, dtype)
    start_sha256 = weights_sha256(start.arrays()) if start else ""
    base_model = _adapter_base(start, start_sha256, text) if plan.lora_rank and start else None
    threads, seconds = tune(trainer, context.threads, context.interrupted)
    return TrainingRun(
        context=context,
        start=model,
        corpora=corpora,
        sources=text.train,
        trainer=trainer,
        threads=threads,
        is_finetuning=start is not None,
        base_model=base_model,
        start_path=printable_path(start.path) if start and start.path else "",
        start_sha256=start_sha256,
        sample_prompt_ids=sample_prompt_ids,
        sample_heading=sample_heading,
        unique_tokens=text.unique_tokens,
        step_seconds=seconds,
        notes=text.notes,
        warnings=text.warnings,
    )


# -- what it begins with


def check_applies(plan: TrainPlan, *, is_new: bool) -> None:
    """Raise UserError for a setting that means nothing for a new model, or for one that is open,
    and for a log that needs a package.
    """
    check_log(plan.log)
    if is_new:
        if plan.lora_rank:
            raise UserError(
                _("lora needs an open model: it trains adapter matrices beside the weights")
            )
        return
    for size in _NEW_MODEL_SETTINGS:
        if value_of(plan, size) != default_of(TrainPlan, size):
            raise UserError(
                _(
                    "{name} applies to a new model only; this model has its own. The word "
                    "`new` makes a new model",
                    name=size,
                )
            )


@contextmanager
def rank_zero_first(distributed: Distributed) -> Iterator[None]:
    """Let the first process do something, and the others after it: they find what it made."""
    if distributed.rank > 0:
        distributed.barrier()
    yield
    if distributed.rank == 0 and distributed.world_size > 1:
        distributed.barrier()


def find_corpus(requested: str, checkpoint: Checkpoint | None) -> str:
    """Return the corpus that was named, else the checkpoint's own, if it is there unchanged.

    Raises UserError that says what to type.
    """
    # The record keeps the name as UTF-8; Python reads other bytes as lone surrogates.
    if any("\ud800" <= letter < "\ue000" for letter in requested):
        raise UserError(
            _("the file name {name} is not UTF-8; rename the text file", name=safe_line(requested))
        )
    if requested:
        return requested
    record = checkpoint.record if checkpoint else None
    if checkpoint is None or record is None or not record.corpus:
        raise UserError(
            _(
                "no text is given: `:train CORPUS` needs a text file, such as `:train "
                "story.txt steps=500`"
            )
        )
    # A model that was copied with its text finds it beside itself.
    sibling_paths = (
        [str(checkpoint.path.parent / Path(record.corpus).name)] if checkpoint.path else []
    )
    for name in (record.corpus, *sibling_paths):
        parts = parse_mixture(name)
        is_there = all(exists(path) for path, _weight in parts)
        if is_there and open_parts(name, parts, "auto").sha256 == record.corpus_sha256:
            return name
    raise UserError(
        _(
            "the training text of this model ({corpus:.80}) is missing or has changed; "
            "give a text with `:train CORPUS`",
            corpus=safe_line(record.corpus),
        )
    )


# -- split, build


def check_log(kind: str) -> None:
    """Raise UserError if the package that a kind of log needs is not installed."""
    if kind not in {"off", "csv"} and find_spec(kind) is None:
        raise UserError(
            _(
                "log={name} needs the package {name}: `pip install 'minillm-repl[log]'`",
                name=kind,
            )
        )


def _without_weights(start: Checkpoint | None, config: AnyConfig, text: Texts) -> Checkpoint:
    """Return the model that learns, without its weights: a new one, or the one it starts from."""
    return Checkpoint(
        config=config,
        tokenizer=text.tokenizer,
        tensors={},
        training=start.training if start else None,
        path=start.path if start else None,
        chat_template=text.chat_template,
        eos_token_ids=text.eos_token_ids,
        recommended=start.recommended if start else {},
    )


def encode_sample_prompt(
    plan: TrainPlan, train: Split, model: Checkpoint, corpus: Corpus
) -> tuple[list[int], str]:
    """Return the ids that the samples on the way begin with, and what is shown of them: the plan's
    text, the start token, or the start of the training text; of conversations, a question, so that
    the sample is an answer.
    """
    text, tokenizer = plan.sample_prompt, model.tokenizer
    if model.chat_template and corpus.is_conversational:
        asked = [Message("user", text)] if text else _first_question(corpus)
        ids = apply_chat_template(model.chat_template, tokenizer, asked, parse_special=False)
        return ids, f"{asked[-1].content} → "
    ids = tokenizer.encode(text)  # of nothing, the start token if there is one
    ids = ids or train.ids[: min(_SAMPLE_PROMPT_TOKENS, train.context_length)].tolist()
    return ids, decode(tokenizer, ids)


def _first_question(corpus: Corpus) -> list[Message]:
    """Return the first conversation of a corpus up to its first answer."""
    messages = next(each.messages for each in corpus.documents() if each.messages)
    answer = next(index for index, each in enumerate(messages) if each.role == "assistant")
    return list(messages[:answer])


def build_trainer(
    start: Checkpoint | None,
    model: Checkpoint,
    text: Texts,
    plan: TrainPlan,
    context: RunContext,
    splits: tuple[Split, Split | None],
    scale: float,
    dtype: str,
) -> Trainer:
    """Build what trains on the first split and measures on the second: with the weights of
    `start`, if it has any, or new ones. `scale` turns its losses into bits per character.
    """
    config, device, (train, val) = model.config, pick_device(context.device), splits
    if plan.val == "auto" and val is None:
        text.notes.append(
            _(
                "the text is too short for a validation split: losses are measured on "
                "the training text"
            )
        )
    torch.manual_seed(plan.seed)  # for new weights, and for dropout
    has_weights = start is not None and start.tensors
    module = build_trainable(config, start.arrays()) if start and has_weights else build_new(config)
    if plan.lora_rank:
        add_adapters(module, plan.lora_rank)
    trainer = Trainer(module.to(device), train, val, plan, scale, context.distributed, dtype)
    if plan.compile:
        check_compiles(trainer)
    return trainer


def _adapter_base(start: Checkpoint, sha256: str, text: Texts) -> tuple[Path, str] | None:
    """Return the file of the model that an adapter belongs to, and the digest of its weights."""
    if start.path and start.is_on_disk and start.adapter is None:
        return start.path, sha256
    text.notes.append(
        _("no file holds the open model in this form: the adapter can only be saved merged into it")
    )
    return None
