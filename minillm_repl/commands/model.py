"""`:model`."""

from minillm_repl.checkpoint.checkpoint import Adapter, Checkpoint, TrainingRecord
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.render.tables import card
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import SPACE
from minillm_repl.tokenizer.base import label

_CHARACTERS, _WORDS = 120, 30  # of the vocabulary, that are shown


@command("model", aliases=("모델",))
def model(shell: Shell, _argument: str) -> None:
    """Show the model's card: sizes, memory, training, file."""
    opened = shell.model()
    checkpoint, config, decoder = opened.checkpoint, opened.checkpoint.config, opened.decoder
    weights = sum(array.nbytes for array in checkpoint.tensors.values())
    rows = {
        _("name"): _("{model} (not saved)", model=opened.name) if shell.session.unsaved else opened.name,
        _("family"): opened.family,
        _("sizes"): _sizes(config, decoder.context),
        _("parameters"): f"{config.parameters:,}",
        _("memory"): _(
            "{weights:,.1f} MiB of weights ({kind}) + {cache:,.2f} MiB KV cache;"
            " {full:,.2f} MiB when the context is full",
            weights=weights / 2**20, kind=checkpoint.dtype, cache=decoder.cache_bytes / 2**20,
            full=decoder.full_cache_bytes / 2**20,
        ),
        _("vocabulary"): _vocabulary(checkpoint),
        _("runs on"): f"{decoder.name}: {decoder.why}",
        _("file"): str(checkpoint.path) if checkpoint.path else _("none yet"),
    }  # fmt: skip
    if checkpoint.chat is not None:
        rows[_("chat")] = _("has a chat template; `:prompt` shows what becomes of a conversation")
    if checkpoint.end:
        rows[_("ends with")] = _(" or ").join(
            label(checkpoint.tokenizer, token) for token in checkpoint.end
        )
    if checkpoint.notes:
        rows[_("note")] = " · ".join(checkpoint.notes)
    if checkpoint.adapter is not None:
        rows[_("adapter")] = _adapter(checkpoint.adapter)
    if checkpoint.record is not None:
        rows |= _training(checkpoint.record)
    shell.screen.out.print(card(rows))


def _sizes(config: AnyConfig, context: int) -> str:
    heads = {"n": config.heads, "size": config.head_size, "shared": config.kv_heads}
    return " · ".join(
        [
            _("{n} layers", n=config.layers),
            _("width {n:,}", n=config.width),
            _("{n} heads of {size}", **heads)
            if config.kv_heads == config.heads
            else _("{n} heads of {size}, {shared} keys and values", **heads),
            _("context {n:,} tokens", n=context)
            if context == config.context
            else _("context {n:,} tokens (of {most:,})", n=context, most=config.context),
        ]
    )


def _adapter(adapter: Adapter) -> str:
    return _(
        "{n:,} parameters of rank {rank}, learnt beside {model}",
        n=sum(array.size for array in adapter.tensors.values()),
        rank=max(min(array.shape) for array in adapter.tensors.values()),
        model=adapter.base,
    )


def _training(record: TrainingRecord) -> dict[str, str]:
    loss = _("{loss:.4f} nats per token", loss=record.train_loss)
    if record.val_loss is not None:
        loss = _("{loss}, validation {validation:.4f}", loss=loss, validation=record.val_loss)
    return {
        _("trained"): _(
            "{steps:,} steps, {tokens:,} tokens, seed {seed}, on {corpus}",
            steps=record.steps, tokens=record.tokens, seed=record.seed, corpus=record.corpus,
        ),
        _("loss"): loss,
        _("made with"): ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }  # fmt: skip


def _vocabulary(checkpoint: Checkpoint) -> str:
    """Return the first tokens: characters side by side, longer ones apart."""
    size, tokenizer = checkpoint.config.vocab, checkpoint.tokenizer
    characters = [
        tokenizer.token_bytes(token).decode("utf-8", "replace")
        for token in range(min(size, _CHARACTERS))
    ]
    if all(len(character) == 1 for character in characters):
        shown, sample = _CHARACTERS, "".join(characters).replace(" ", SPACE)
    else:
        shown, sample = (
            _WORDS,
            " ".join(label(tokenizer, token) for token in range(min(size, _WORDS))),
        )
    return _("{size:,} tokens: {sample}", size=size, sample=sample + (" …" if size > shown else ""))
