"""`:model`."""

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.families import family_title
from minillm_repl.render.tables import card
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.base import label

_CHARACTERS, _WORDS = 120, 30  # of the vocabulary, that are shown


@command("model")
def model(shell: Shell, _argument: str) -> None:
    """Show the model's card: sizes, memory, training, file."""
    opened = shell.model()
    checkpoint, config, decoder = opened.checkpoint, opened.checkpoint.config, opened.decoder
    weights = sum(array.nbytes for array in checkpoint.tensors.values())
    number = next(iter(checkpoint.tensors.values())).itemsize
    cache = 2 * number * config.layers * config.kv_heads * config.head_size  # per token
    shared = f", {config.kv_heads} keys and values" if config.kv_heads != config.heads else ""
    seen = f" (of {config.context:,})" if decoder.context != config.context else ""
    rows = {
        "name": opened.name + (" (not saved)" if shell.session.unsaved else ""),
        "family": family_title(config),
        "sizes": f"{config.layers} layers · width {config.width:,} · {config.heads} heads of {config.head_size}{shared}"
        f" · context {decoder.context:,} tokens{seen}",
        "parameters": f"{config.parameters:,}",
        "memory": f"{weights / 2**20:,.1f} MiB of weights ({checkpoint.dtype}) + {decoder.cache_bytes / 2**20:,.2f} MiB"
        f" KV cache; {cache * decoder.context / 2**20:,.2f} MiB when the context is full",
        "vocabulary": _vocabulary(checkpoint),
        "runs on": f"{decoder.name}: {decoder.why}",
        "file": str(checkpoint.path) if checkpoint.path else "none yet",
    }
    if checkpoint.chat is not None:
        rows["chat"] = "has a chat template; `:prompt` shows what becomes of a conversation"
    if checkpoint.end:
        rows["ends with"] = " or ".join(label(checkpoint.tokenizer, token) for token in checkpoint.end)
    record = checkpoint.training
    if record is not None:
        rows["trained"] = f"{record.steps:,} steps, {record.tokens:,} tokens, seed {record.seed}, on {record.corpus}"
        validation = "" if record.val_loss is None else f", validation {record.val_loss:.4f}"
        rows["loss"] = f"{record.train_loss:.4f} nats per token{validation}"
        rows["made with"] = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    shell.screen.out.print(card(rows))


def _vocabulary(checkpoint: Checkpoint) -> str:
    """Return the first tokens: characters side by side, longer ones apart."""
    size, tokenizer = checkpoint.config.vocab, checkpoint.tokenizer
    characters = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in range(min(size, _CHARACTERS))]
    if all(len(character) == 1 for character in characters):
        shown, sample = _CHARACTERS, "".join(characters)
    else:
        shown, sample = _WORDS, " ".join(label(tokenizer, token) for token in range(min(size, _WORDS)))
    return f"{size:,} tokens: {sample}{' …' if size > shown else ''}"
