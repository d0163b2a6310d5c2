"""`:model`."""

from minillm_repl.render.tables import card
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("model")
def model(shell: Shell, _argument: str) -> None:
    """Show the model's card: sizes, memory, training, file."""
    opened = shell.model()
    checkpoint, config = opened.checkpoint, opened.checkpoint.config
    characters = "".join(
        checkpoint.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in range(min(config.vocab, 120))
    )
    rows = {
        "name": opened.name + (" (not saved)" if shell.session.unsaved else ""),
        "family": checkpoint.family,
        "sizes": f"{config.layers} layers · width {config.width} · {config.heads} heads of {config.head_size}"
        f" · context {config.context} tokens",
        "parameters": f"{config.parameters:,}",
        "memory": f"{4 * config.parameters / 2**20:.1f} MiB of weights (float32)"
        f" + {8 * config.layers * config.context * config.width / 2**20:.2f} MiB KV cache",
        "vocabulary": f"{config.vocab:,} tokens: {characters}{' …' if config.vocab > 120 else ''}",
        "runs on": opened.decoder.name,
        "file": str(checkpoint.path) if checkpoint.path else "none yet",
    }
    record = checkpoint.training
    if record is not None:
        rows["trained"] = f"{record.steps:,} steps, {record.tokens:,} tokens, seed {record.seed}, on {record.corpus}"
        validation = "" if record.val_loss is None else f", validation {record.val_loss:.4f}"
        rows["loss"] = f"{record.train_loss:.4f} nats per token{validation}"
        rows["made with"] = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    shell.screen.out.print(card(rows))
