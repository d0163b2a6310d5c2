"""What is told of a run before it begins: what it does, how, and how long that will take."""

import numpy as np

from minillm_repl.language import _, _n
from minillm_repl.safetext import safe_line, strip_joiners
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.token_cache import TokenisedCorpus
from minillm_repl.training.trainer import Trainer

# of the time of forward and backward: what the optimisers and the rest of a step take too
_OPTIMISER_FACTOR = 1.2
_COUNTED_CHARACTERS = 20_000  # most frequent ones, among which unknown ones are looked for
_SHOWN_CHARACTERS = 20
_FORWARD_FRACTION = 1 / 3  # of that time: forward alone


def title(trainer: Trainer, corpus: str, unique_tokens: int, *, is_finetuning: bool) -> str:
    """Return what is about to happen, in one line; `different` is how many tokens of the
    vocabulary the text has.
    """
    config, train, val = trainer.model.config, trainer.train, trainer.val
    text = {"corpus": corpus, "tokens": len(train.ids), "different": unique_tokens}
    sizes = {"parameters": config.n_params, "arch": config.arch}
    if trainer.plan.lora_rank:
        description = _(
            "training {trained:,} parameters; the other {parameters:,} are frozen",
            trained=sum(each.numel() for each in trainer.trainable_parameters.values()),
            **sizes,
        )
    elif is_finetuning:
        description = _("further training: {parameters:,} parameters", **sizes)
    else:
        description = _("a new {arch} model: {parameters:,} parameters", **sizes)
    return " · ".join(
        [
            description,
            _(
                "{corpus}: {tokens:,} training tokens, {held:,} validation tokens · "
                "{different:,} distinct",
                held=len(val.ids),
                **text,
            )
            if val
            else _("{corpus}: {tokens:,} tokens · {different:,} distinct", **text),
            _("{steps:,} steps", steps=trainer.plan.steps),
        ]
    )


def describe_method(trainer: Trainer, threads: int, seconds: float) -> str:
    """Return how it is done, in one line; `seconds` is what forward and backward of a step take,
    if that is known.
    """
    plan, size = trainer.plan, trainer.distributed.world_size
    parallelism = (
        _n("{n} process", "{n} processes", size)
        if size > 1
        else _n("{n} thread", "{n} threads", threads)
        if threads
        else _("default threads")
    )
    parts = [
        _("batch {batch} × {context} tokens", batch=plan.batch_size, context=plan.context_length),
        _("Muon and AdamW, learning rate {lr:g}", lr=plan.lr)
        if plan.optimizer == "muon"
        else _("AdamW, learning rate {lr:g}", lr=plan.lr),
        f"{plan.precision}, {parallelism}",
    ]
    if size == 1:
        remaining = estimate_seconds(plan, seconds, *trainer.evaluator.token_counts())
        parts.append(
            _("about {time:.0f} s", time=remaining)
            if remaining < 90
            else _("about {time:.0f} min", time=remaining / 60)
            if remaining < 5400
            else _("about {time:.1f} h", time=remaining / 3600)
        )
    return " · ".join(parts)


def estimate_seconds(
    plan: TrainPlan, seconds: float, eval_tokens: int, final_eval_tokens: int
) -> float:
    """Return the seconds of a whole run, with its evaluations of `eval_tokens` each."""
    n_evals = plan.steps // plan.eval_interval + 1 + (plan.steps % plan.eval_interval > 0)
    evaluated_tokens = n_evals * eval_tokens + final_eval_tokens
    return seconds * (
        plan.steps * _OPTIMISER_FACTOR
        + evaluated_tokens / (plan.batch_size * plan.context_length) * _FORWARD_FRACTION
    )


def describe_unknown(tokens: TokenisedCorpus, corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Return what becomes of the characters that the vocabulary lacks, with the most frequent."""
    counts = corpus.character_counts
    code_points = np.argsort(-counts, kind="stable")[:_COUNTED_CHARACTERS]
    text = "".join(chr(code_point) for code_point in code_points if counts[code_point])
    unknown = tokenizer.find_unknown(text)[:_SHOWN_CHARACTERS]
    # A joiner alone would be invisible.
    shown = (strip_joiners(each) or strip_joiners(each, visible=True) for each in unknown)
    values = {
        "count": tokens.unknown_characters,
        "share": tokens.unknown_characters / max(1, int(counts.sum())),
        "characters": safe_line(", ".join(shown)),
    }
    return (
        _(
            "{count:,} characters ({share:.2%}) are not in the vocabulary and are read as "
            "{token}: {characters}",
            token=safe_line(tokenizer.unk_token),
            **values,
        )
        if tokenizer.unk_token
        else _(
            "{count:,} characters ({share:.2%}) are not in the vocabulary and are skipped: "
            "{characters}",
            **values,
        )
    )


def forgetting_warning(corpus: Corpus) -> str:
    """Return the warning before a model that chats learns plain text."""
    return _(
        "{corpus} is plain text, but this model chats: training on it makes the answers "
        "worse. To teach answers, use conversations as JSON lines with `messages` "
        "(docs/training.md)",
        corpus=safe_line(corpus.name),
    )
