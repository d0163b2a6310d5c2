"""`:model`: what the open model is."""

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.language import N_, _, _n
from minillm_repl.model.config import AnyConfig, LlamaConfig
from minillm_repl.render.tables import card
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import describe_recommended
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import SPACE, safe_line
from minillm_repl.tokenizer import label

REASONS = {  # why a run ended
    "done": N_("done"),
    "interrupt": N_("stopped by Ctrl-C"),
    "patience": N_("stopped early"),
    "diverged": N_("diverged"),
    "running": N_("saved on its way"),
}
_CHARACTERS, _WORDS = 120, 30  # of the vocabulary, that are shown


@command("model", aliases=("모델",))
def model(shell: Shell, _asked: Arguments) -> None:
    """Show the model card: sizes, memory, training, file."""
    loaded = shell.require_model()
    if loaded.server is not None:
        shell.screen.out.print(card(_server_rows(loaded)))
        return
    checkpoint, config, decoder = loaded.checkpoint, loaded.checkpoint.config, loaded.decoder
    weights = sum(array.nbytes for array in checkpoint.tensors.values())  # bytes, as stored
    rows = {
        _("name"): (
            _("{model} (not saved)", model=loaded.name)
            if shell.session.workspace.unsaved
            else loaded.name
        ),
        _("family"): loaded.family,
        _("sizes"): _sizes(config, decoder.context_length),
        _("parameters"): f"{config.n_params:,}",
        _("memory"): _(
            "{weights:,.1f} MiB of weights ({kind}) + {cache:,.2f} MiB KV cache;"
            " {full:,.2f} MiB when the context is full",
            weights=weights / 2**20,
            kind=checkpoint.dtype,
            cache=decoder.cache_bytes / 2**20,
            full=decoder.max_cache_bytes / 2**20,
        ),
        _("vocabulary"): _vocabulary(checkpoint),
        _("runs on"): f"{decoder.name}: {decoder.backend_details}",
        _("file"): str(checkpoint.path) if checkpoint.path else _("none yet"),
    }
    if checkpoint.chat_template is not None:
        rows[_("chat")] = _("has a chat template; `:prompt` shows how it formats a conversation")
    if checkpoint.eos_token_ids:
        rows[_("end token")] = _(" or ").join(
            label(checkpoint.tokenizer, token) for token in checkpoint.eos_token_ids
        )
    if checkpoint.recommended:
        rows[_("settings")] = describe_recommended(checkpoint.recommended)
    if checkpoint.notes:
        rows[_("note")] = " · ".join(checkpoint.notes)
    if loaded.adapted is not None:
        rows[_("adapter")] = _("off; `:adapter on` switches it on again")
    if checkpoint.adapter is not None:
        rows[_("adapter")] = checkpoint.adapter.description
    if checkpoint.record is not None:
        rows |= _training(checkpoint.record)
    shell.screen.out.print(card(rows))


def _server_rows(loaded: LoadedModel) -> dict[str, str]:
    assert loaded.server is not None
    return {
        _("name"): loaded.name,
        _("runs on"): loaded.server.source,
        _("about"): loaded.server.headline,
    }


def _sizes(config: AnyConfig, context: int) -> str:
    heads = {"n": config.n_heads, "size": config.head_dim, "shared": config.n_kv_heads}
    return " · ".join(
        [
            _("{n} layers", n=config.n_layers),
            _("d_model {n:,}", n=config.d_model),
            _("{n} heads, head_dim {size}", **heads)
            if config.n_kv_heads == config.n_heads
            else _("{n} heads, {shared} KV heads, head_dim {size}", **heads),
            *_convolutions(config),
            *_experts(config),
            _("context {n:,} tokens", n=context)
            if context == config.context_length
            else _("context {n:,} tokens (of {most:,})", n=context, most=config.context_length),
        ]
    )


def _convolutions(config: AnyConfig) -> list[str]:
    count = config.n_layers - len(config.attention_layers)
    return [_("{n} layers have a short convolution instead", n=count)] if count else []


def _experts(config: AnyConfig) -> list[str]:
    if not isinstance(config, LlamaConfig) or not config.n_experts:
        return []
    return [
        _(
            "{chosen} of {all} experts per token, of width {width:,}",
            chosen=config.n_experts_per_tok,
            all=config.n_experts,
            width=config.d_expert,
        )
    ]


def _training(record: TrainingRecord) -> dict[str, str]:
    loss = _("{loss:.4f} nats per token", loss=record.train_loss)
    if record.val_loss is not None:
        loss = _("{loss}, validation {validation:.4f}", loss=loss, validation=record.val_loss)
    rows = {
        _("trained"): _(
            "{steps:,} steps, {tokens:,} tokens, seed {seed}, on {corpus}",
            steps=record.steps, tokens=record.tokens, seed=record.seed, corpus=record.corpus,
        ),
        _("loss"): loss,
        _("made with"): ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }  # fmt: skip
    run = record.run
    if run is None:
        return rows
    reason = _(REASONS[run.reason]) if run.reason in REASONS else safe_line(run.reason)
    rows[_("last run")] = _(
        "{reason} after {steps:,} steps, {seconds:,.1f} s; loss {first:.4f} → {last:.4f}, "
        "weights of step {kept:,}",
        reason=reason, steps=run.steps, seconds=run.seconds,
        first=run.first_loss, last=run.last_loss, kept=run.kept,
    )  # fmt: skip
    rows[_("plan")] = " ".join(f"{name}={value}" for name, value in run.plan.items())
    rows[_("text")] = _("SHA-256 {digest}", digest=record.corpus_sha256)
    if run.start_sha256:
        start = {"path": run.start_path or "?", "digest": run.start_sha256}
        rows[_("started from")] = _("{path}, weights of SHA-256 {digest}", **start)
    machine = [f"{name} {value}" for name, value in run.machine.items()]
    threads = _n("{n} thread", "{n} threads", run.threads) if run.threads else _("default threads")
    rows[_("machine")] = ", ".join([*machine, threads])
    return rows


def _vocabulary(checkpoint: Checkpoint) -> str:
    """Return the first tokens: characters side by side, longer ones apart."""
    size, tokenizer = checkpoint.config.vocab_size, checkpoint.tokenizer
    characters = [
        tokenizer.token_bytes(token).decode("utf-8", "replace")
        for token in range(min(size, _CHARACTERS))
    ]
    if all(len(character) == 1 for character in characters):  # a vocabulary of characters
        shown, sample = _CHARACTERS, "".join(characters).replace(" ", SPACE)
    else:
        shown, sample = (
            _WORDS,
            " ".join(label(tokenizer, token) for token in range(min(size, _WORDS))),
        )
    return _("{size:,} tokens: {sample}", size=size, sample=sample + (" …" if size > shown else ""))
