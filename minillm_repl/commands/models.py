"""`:model`, `:models`, `:load`, `:save` and `:adapter`: the open model, and the files of models."""

from dataclasses import replace
from pathlib import Path

from minillm_repl.checkpoint import Adapter, Checkpoint
from minillm_repl.checkpoint.foreign import find_adapter_folder
from minillm_repl.checkpoint.gguf.architectures import GGUF_TYPES
from minillm_repl.checkpoint.load_save import summarise
from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.errors import UserError
from minillm_repl.language import N_, _, _n
from minillm_repl.model.config import AnyConfig, LlamaConfig
from minillm_repl.render.tables import card, models_table
from minillm_repl.repl.arguments import Arguments, Choice, ChoiceOption, Words
from minillm_repl.repl.model_loading import LoadedModel, ModelFuture
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import describe_recommended
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import SPACE, safe_line
from minillm_repl.storage.paths import (
    SUFFIX,
    exists,
    find_checkpoint,
    is_shipped,
    shipped_names,
    user_path,
)
from minillm_repl.storage.stores import GGUF_SUFFIX
from minillm_repl.tokenizer import label


@command("models", aliases=("모델목록",))
def models(shell: Shell, _asked: Arguments) -> None:
    """List the models that can be opened by name.

    The list shows the shipped models, recently opened models, and models that other programs have
    on this disk: those in the Hugging Face cache, and the GGUF files of ollama and LM Studio;
    `:load NAME` opens one. The size is that of the files on disk; dtype is how the weights are
    stored. While a model on a server is open, the models of that server are listed too.

    Nothing is downloaded.
    """
    found = [
        (name, source, summarise(find_checkpoint(name)))
        for name, source in shell.session.workspace.models()
    ]
    model = shell.session.workspace.model
    server = model.server if model else None
    if server is not None:
        found += [(name, server.source, None) for name in server.models]
    shell.screen.out.print(models_table(found))


@command(
    "load",
    arguments=(Words("path", "PATH|NAME", completion="checkpoint"),),
    aliases=("열기",),
    example=":load nalssi",
)
def load(shell: Shell, asked: Arguments) -> None:
    """Open another checkpoint.

    PATH is a .safetensors or .gguf file, or a Hugging Face folder. NAME is a name from `:models`.
    `:load http://127.0.0.1:8080 NAME` opens a model on a server; without NAME, its first.

    The open model stays open until the new one is ready. It also stays open if the new one cannot
    be opened.
    """
    if not asked.path:
        raise UserError(
            _(
                ":load needs a file, a folder, or a name: {names}; `:models` lists more",
                names=", ".join(shipped_names()),
            )
        )
    session, path = shell.session, find_checkpoint(asked.path)
    session.confirm_discard("load")  # before the wait, not after it
    model = shell.wait_for_model(ModelFuture(session.workspace.loader, path), path)
    session.adopt(model, unsaved=False)
    shell.screen.note(model.headline)
    shell.show_notes_once(model)


@command(
    "save",
    arguments=(
        Words("path", "FILE|FOLDER/", completion="file"),
        Choice("adapter", name="part"),
        ChoiceOption("type", "auto", *GGUF_TYPES),
    ),
    aliases=("저장",),
    example=":save copy.safetensors",
)
def save(shell: Shell, asked: Arguments) -> None:
    """Save the model to a file, or as a Hugging Face folder.

    The file is saved completely or not at all. Without a path, the model goes to the file that it
    came from, unless that file ships with the program.

    A path that ends in / becomes a folder for the transformers library. A name that ends in .gguf
    becomes a file for llama.cpp and ollama; `type` rounds its matrices: `auto` is bf16 for a model
    in bfloat16, else f16. `adapter` saves only the LoRA weights, in a file that `:load` opens
    together with its model, or in a folder for the peft library.
    """
    # Saving needs safetensors and numpy, which the start does without.
    from minillm_repl.checkpoint.load_save import save as save_checkpoint

    model, argument = shell.require_model(), asked.path
    if asked.part == "adapter":
        from minillm_repl.checkpoint.adapter import save_adapter, save_peft

        is_folder = argument.rstrip("'\"").endswith("/")
        file = user_path(argument) if is_folder else _named(argument)
        (save_peft if is_folder else save_adapter)(model.checkpoint, file)
        shell.screen.note(_("adapter saved to {path}", path=safe_line(str(file))))
        return
    folder = argument.rstrip("'\"").endswith("/")  # a quoted path has its quotes still
    path = (
        (user_path(argument) if folder else _named(argument))
        if argument
        else shell.session.workspace.path
    )
    is_gguf = path is not None and not folder and path.suffix.lower() == GGUF_SUFFIX
    # Without a path, a shipped model is never replaced: it is the program's own file. Nor is a
    # GGUF file, in which the weights would be rounded again, or another program's adapter.
    if path is None or (
        not argument and (is_gguf or is_shipped(path) or find_adapter_folder(path))
    ):
        raise UserError(_(":save needs a path, such as `:save my{suffix}`", suffix=SUFFIX))
    if is_gguf:
        from minillm_repl.checkpoint.gguf.write import save_gguf

        # Rounded weights are a copy: the model's own are still in no file, if they were before.
        save_gguf(model.checkpoint, path, asked.type, shell.interrupted)
        shell.screen.note(_("saved to {path}", path=safe_line(str(path))))
        return
    if asked.type != "auto":
        raise UserError(_("type={type} is for a file that ends in .gguf", type=asked.type))
    saved = save_checkpoint(model.checkpoint, path, folder=folder, interrupted=shell.interrupted)
    shell.session.workspace.mark_saved(saved)
    shell.screen.note(_("saved to {path}", path=safe_line(str(path)) + ("/" if folder else "")))


def _named(argument: str) -> Path:
    """Return the path of a file to write; without an ending it gets the usual one."""
    path = user_path(argument)
    # A file that exists without an ending is meant as it is.
    return path if path.suffix or exists(path) else user_path(f"{path}{SUFFIX}")


@command("adapter", arguments=(Choice("on", "off"),), aliases=("어댑터",), example=":adapter off")
def adapter(shell: Shell, asked: Arguments) -> None:
    """Switch the adapter of the open model off, or on again.

    The adapter is the LoRA weights that were opened together with their model, or trained on it.
    Off, the base model answers, and all views show it; the text so far stays.
    """
    workspace, loaded = shell.session.workspace, shell.require_model()
    attached = (loaded.adapted or loaded).checkpoint.adapter
    if attached is None:
        raise UserError(_("the open model has no adapter: `:load` opens one over its base model"))
    if asked.choice == "off" and loaded.adapted is None:
        workspace.confirm_discard("adapter")
        base = shell.wait_for_model(ModelFuture(workspace.loader, attached.base), attached.base)
        workspace.model = replace(base, adapted=loaded).with_interventions(loaded.interventions)
    elif asked.choice == "on" and loaded.adapted is not None:
        workspace.model = loaded.adapted.with_interventions(loaded.interventions)
    state = _("off") if shell.require_model().adapted else _("on")
    shell.screen.note(_("adapter {state}: {about}", state=state, about=_adapter(attached)))


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
        rows[_("adapter")] = _adapter(checkpoint.adapter)
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
            *_experts(config),
            _("context {n:,} tokens", n=context)
            if context == config.context_length
            else _("context {n:,} tokens (of {most:,})", n=context, most=config.context_length),
        ]
    )


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


def _adapter(adapter: Adapter) -> str:
    return _(
        "{n:,} parameters of rank {rank}, trained on top of {model}",
        n=sum(array.size for array in adapter.tensors.values()),
        # Shapes: (rank, inputs), (outputs, rank). max: a side may be smaller than the rank.
        rank=adapter.rank or max(min(array.shape) for array in adapter.tensors.values()),
        model=adapter.base,
    )


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
