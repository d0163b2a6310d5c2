"""What is told of a run before it begins: what it does, how, and how long that will take."""

from minillm_repl.language import _, _n
from minillm_repl.safetext import safe_line
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.tokenize import Tokens
from minillm_repl.training.trainer import Trainer

# of the time of forward and backward: what the optimisers and the rest of a step take too
_OPTIMISING = 1.2
_READING = 1 / 3  # of that time: forward alone


def title(trainer: Trainer, corpus: str, different: int, *, further: bool) -> str:
    """Return what is about to happen, in one line; `different` is how many tokens of the
    vocabulary the text has.
    """
    config, train, val = trainer.model.config, trainer.train, trainer.val
    text = {"corpus": corpus, "tokens": len(train.ids), "different": different}
    sizes = {"parameters": config.parameters, "arch": config.arch}
    if trainer.plan.lora:
        what = _(
            "training {trained:,} parameters beside {parameters:,} that stay",
            trained=sum(each.numel() for each in trainer.trained.values()),
            **sizes,
        )
    elif further:
        what = _("training further: {parameters:,} parameters", **sizes)
    else:
        what = _("a new {arch} model: {parameters:,} parameters", **sizes)
    return " · ".join(
        [
            what,
            _(
                "{corpus}: {tokens:,} tokens and {held:,} held out, {different:,} different",
                held=len(val.ids),
                **text,
            )
            if val
            else _("{corpus}: {tokens:,} tokens, {different:,} different", **text),
            _("{steps:,} steps", steps=trainer.plan.steps),
        ]
    )


def how(trainer: Trainer, threads: int, seconds: float) -> str:
    """Return how it is done, in one line; `seconds` is what forward and backward of a step take,
    if that is known.
    """
    plan, size = trainer.plan, trainer.processes.size
    where = (
        _n("{n} process", "{n} processes", size)
        if size > 1
        else _n("{n} thread", "{n} threads", threads)
        if threads
        else _("threads as they are")
    )
    facts = [
        _("batch {batch} × {context} tokens", batch=plan.batch, context=plan.context),
        _("Muon and AdamW, rate {lr:g}", lr=plan.lr)
        if plan.optimizer == "muon"
        else _("AdamW, rate {lr:g}", lr=plan.lr),
        f"{plan.precision}, {where}",
    ]
    if size == 1:
        left = duration(plan, seconds, *trainer.readings())
        facts.append(
            _("about {time:.0f} s", time=left)
            if left < 90
            else _("about {time:.0f} min", time=left / 60)
            if left < 5400
            else _("about {time:.1f} h", time=left / 3600)
        )
    return " · ".join(facts)


def duration(plan: TrainPlan, seconds: float, reading: int, last_reading: int) -> float:
    """Return how many seconds a whole run takes, with its measurements, of which each reads so
    many tokens.
    """
    measurements = plan.steps // plan.every + 1 + (plan.steps % plan.every > 0)
    read = measurements * reading + last_reading
    return seconds * (plan.steps * _OPTIMISING + read / (plan.batch * plan.context) * _READING)


def unknown(tokens: Tokens, corpus: Corpus, becomes: str, characters: str) -> str:
    """Return what becomes of the characters that the vocabulary lacks, of which `characters` are
    the most frequent.
    """
    share = tokens.unknown / max(1, int(corpus.characters.sum()))
    lacking = {"count": tokens.unknown, "share": share, "characters": characters}
    return (
        _(
            "{count:,} characters ({share:.2%}) are not in the vocabulary, and become "
            "{token}: {characters}",
            token=safe_line(becomes),
            **lacking,
        )
        if becomes
        else _(
            "{count:,} characters ({share:.2%}) are not in the vocabulary, and skipped: "
            "{characters}",
            **lacking,
        )
    )


def will_forget(corpus: Corpus) -> str:
    """Return the warning before a model that chats learns plain text."""
    return _(
        "this model chats, and {corpus} is plain text: what it learns from that makes its "
        "answers worse; conversations,"
        " which teach it to answer, are JSON lines with `messages` (docs/training.md)",
        corpus=safe_line(corpus.name),
    )
