"""How a run of training comes to be: open the text → tokenise → split → build the model → tune."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE
from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.checkpoint.adapter import weights_sha256
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import build_new, build_trainable, pick_device
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.layers import add_adapters
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.training import STOPPED_EARLY, Cancelled, resume
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.defaults import check_fits_memory, choose_sizes, make_tokenizer
from minillm_repl.training.machine import autotune, check_compiles
from minillm_repl.training.open_corpora import (
    OpenCorpora,
    find_corpus,
    open_corpora,
    reopen_corpora,
)
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run import RunContext, TrainingRun, describe_method, resume_path
from minillm_repl.training.splits import make_splits
from minillm_repl.training.tokenize import describe_unknown, tokenise
from minillm_repl.training.tokens import TokenisedCorpus, cache_folder
from minillm_repl.training.trainer import Trainer

_SAMPLE_PROMPT_TOKENS = 4  # tokens of the text with which the model's samples begin
_EOS_TOKENS = ("<end>", "<|end|>", "<|endoftext|>")


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
    seed, and gets the chat template `chat`. Raises UserError if the text does not fit.
    """
    with context.distributed.rank_zero_first():
        corpora = open_corpora(find_corpus(corpus, start), plan, context.interrupted)
        text = _tokenise(corpora, start, plan, context, chat)
    device = pick_device(context.device)
    config, plan, note = choose_sizes(
        start.config if start else None,
        replace(plan, val=corpora.val),
        n_tokens=len(text.train.ids),
        vocab_size=text.tokenizer.vocab_size,
        has_accelerator=device.type != "cpu",
    )
    check_fits_memory(plan, config, device)
    if note:
        text.notes.append(note)
    model = _without_weights(start, config, text)
    trainer = _build(start, model, text, plan, context)
    sample_prompt_ids = _encode_sample_prompt(trainer, model.tokenizer)
    base_model = _adapter_base(start, text) if plan.lora_rank and start else None
    threads = _tune(trainer, text, context)
    return TrainingRun(
        context=context,
        start=model,
        corpora=corpora,
        unique_tokens=text.train.unique_tokens,
        trainer=trainer,
        threads=threads,
        is_finetuning=start is not None,
        base_model=base_model,
        sample_prompt_ids=sample_prompt_ids,
        notes=text.notes,
        warnings=text.warnings,
    )


def resume_run(path: Path, context: RunContext, corpus: str = "") -> TrainingRun:
    """Return the run of a checkpoint where its resume file has it; `corpus` is where its text is
    now, if it has moved.

    Raises UserError.
    """
    state = resume.load_run(resume_path(path))  # the tensors are read last, into the trainer
    start, plan, metadata = state.start, state.plan, state.metadata
    with context.distributed.rank_zero_first():
        corpora = reopen_corpora(metadata, corpus, plan, context.path, context.interrupted)
        text = _tokenise(corpora, start, plan, context, None, is_resumed=True)
    check_fits_memory(plan, start.config, pick_device(context.device))
    trainer = _build(start, start, text, replace(plan, val=corpora.val), context)
    resume.restore_run(state, trainer)
    step, steps = trainer.state.step, plan.steps
    note = _("continues after step {step:,} of {steps:,}", step=step, steps=steps)
    return TrainingRun(
        context=context,
        start=start,
        corpora=corpora,
        unique_tokens=text.train.unique_tokens,
        trainer=trainer,
        threads=metadata.threads,
        is_finetuning=metadata.is_finetuning,
        base_model=metadata.base_model,
        sample_prompt_ids=_encode_sample_prompt(trainer, start.tokenizer),
        notes=[*text.notes, note],
        warnings=text.warnings,
    )


# -- open, tokenise


@dataclass(kw_only=True)
class _Text:
    """What a run learns from, as tokens, and what writes them."""

    name: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]
    train: TokenisedCorpus = field(init=False)
    val: TokenisedCorpus | None = None  # a text of its own to measure on
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _tokenise(
    corpora: OpenCorpora,
    start: Checkpoint | None,
    plan: TrainPlan,
    context: RunContext,
    chat: ChatTemplate | None,
    *,
    is_resumed: bool = False,
) -> _Text:
    """Return the texts of a run as tokens; a new model gets its tokenizer here."""
    is_conversational = corpora.train.is_conversational
    if start:
        tokenizer, template = start.tokenizer, start.chat_template
        eos_token_ids = start.eos_token_ids
    else:
        tokenizer = make_tokenizer(plan.tokenizer, corpora.train)
        template = chat or (DEFAULT_CHAT_TEMPLATE if is_conversational else None)
        eos_token_ids = _find_eos(tokenizer)
    if eos_token_ids and corpora.train.count > 1 and not is_conversational:
        # Training puts this token between texts, so each begins after one: prompts must too.
        tokenizer = tokenizer.with_start(tokenizer.special_name(eos_token_ids[0]))
    text = _Text(
        name=corpora.name,
        tokenizer=tokenizer,
        chat_template=template,
        eos_token_ids=eos_token_ids,
        notes=[*corpora.notes],
    )
    if start and start.chat_template and not is_resumed and not is_conversational:
        text.warnings.append(_forgetting_warning(corpora.train))
    text.train = _tokenise_one(corpora.train, text, context)
    if corpora.val_corpus:
        text.val = _tokenise_one(corpora.val_corpus, text, context)
    return text


def _tokenise_one(corpus: Corpus, text: _Text, context: RunContext) -> TokenisedCorpus:
    text.notes += [f"{safe_line(corpus.name)}: {note}" for note in corpus.notes]
    if corpus.is_conversational and text.chat_template is None:
        raise UserError(
            _(
                "the corpus contains conversations, but this model has no chat "
                "template to render them"
            )
        )
    tokens = tokenise(
        corpus,
        text.tokenizer,
        separator=text.eos_token_ids[0] if text.eos_token_ids else None,
        template=text.chat_template if corpus.is_conversational else None,
        cache=cache_folder(),
        progress=context.progress,
        interrupted=context.interrupted,
    )
    if tokens.unknown_characters:
        text.notes.append(describe_unknown(tokens, corpus, text.tokenizer))
    return tokens


def _forgetting_warning(corpus: Corpus) -> str:
    """Return the warning before a model that chats learns plain text."""
    return _(
        "{corpus} is plain text, but this model chats: training on it makes the answers "
        "worse. To teach answers, use conversations as JSON lines with `messages` "
        "(docs/training.md)",
        corpus=safe_line(corpus.name),
    )


def _find_eos(tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = (tokenizer.token_to_id(name) for name in _EOS_TOKENS)
    return tuple(token for token in ids if token is not None)[:1]


# -- split, build


def _without_weights(start: Checkpoint | None, config: AnyConfig, text: _Text) -> Checkpoint:
    """Return the model that learns, without its weights: a new one, or the one it starts from."""
    return Checkpoint(
        config=config,
        tokenizer=text.tokenizer,
        tensors={},
        training=start.training if start else None,
        path=start.path if start else None,
        chat_template=text.chat_template,
        eos_token_ids=text.eos_token_ids,
    )


def _build(
    start: Checkpoint | None,
    model: Checkpoint,
    text: _Text,
    plan: TrainPlan,
    context: RunContext,
) -> Trainer:
    """Split the text into what is trained on and what is only measured, and build what trains on
    it: with the weights of `start`, if it has any, or new ones.

    Raises UserError if the text is too short.
    """
    config, device = model.config, pick_device(context.device)
    name = safe_line(text.name)
    train, val = make_splits(text.train, text.val, plan, name, context.interrupted)
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
    # The loss per token depends on the tokenizer; bits per character can be compared.
    measured = val or train
    characters = max(1, measured.count_characters(text.tokenizer))
    scale = measured.targets / characters / math.log(2)  # nats per token -> bits per character
    trainer = Trainer(module.to(device), train, val, plan, scale, context.distributed)
    if plan.compile:
        check_compiles(trainer)
    return trainer


def _adapter_base(start: Checkpoint, text: _Text) -> tuple[Path, str] | None:
    """Return the file of the model that an adapter belongs to, and the digest of its weights."""
    if start.path and start.is_on_disk and start.adapter is None:
        return start.path, weights_sha256(start.arrays())
    text.notes.append(
        _("no file holds the open model in this form: the adapter can only be saved merged into it")
    )
    return None


# -- tune


def _tune(trainer: Trainer, text: _Text, context: RunContext) -> int:
    """Choose the precision; return the number of threads, 0 for torch's own choice.

    Raises UserError when interrupted.
    """
    precision, threads, seconds = trainer.plan.precision, context.threads, 0.0
    if context.distributed.world_size == 1:
        try:
            threads, precision, seconds = autotune(trainer, threads, context.interrupted)
        except Cancelled:
            raise UserError(_(STOPPED_EARLY)) from None
    elif precision == "auto":  # Not measured: every process must choose the same.
        precision = "bfloat16" if trainer.device.type == "cuda" else "float32"
    trainer.plan = replace(trainer.plan, precision=precision)
    text.notes.append(describe_method(trainer, threads, seconds))
    return threads


def _encode_sample_prompt(trainer: Trainer, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt of the samples: that of the plan, the start token, or the text's start."""
    ids = tokenizer.encode(trainer.plan.sample_prompt)
    count = min(_SAMPLE_PROMPT_TOKENS, trainer.train.context_length)
    return ids or trainer.train.ids[:count].tolist()
