"""`:models`, `:load`, `:save` and `:adapter`: the files of models."""

from dataclasses import replace
from pathlib import Path

from minillm_repl.checkpoint.foreign import find_adapter_folder
from minillm_repl.checkpoint.gguf.architectures import GGUF_TYPES
from minillm_repl.checkpoint.load_save import summarise
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.tables import models_table
from minillm_repl.repl.arguments import Arguments, Choice, ChoiceOption, Words
from minillm_repl.repl.model_loading import ModelFuture
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.missing import missing_model, refuse_download
from minillm_repl.storage.paths import (
    SUFFIX,
    exists,
    find_checkpoint,
    is_shipped,
    server_url,
    shipped_names,
    user_path,
)
from minillm_repl.storage.stores import GGUF_SUFFIX


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
    Nothing is downloaded: a name that is not here, or the address of a file, says how to get it.
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
    refuse_download(asked.path)
    session, path = shell.session, find_checkpoint(asked.path)
    if not exists(path) and not server_url(path):
        raise UserError(missing_model(asked.path))
    session.confirm_discard("load")  # before the wait, not after it
    model = shell.wait_for_model(ModelFuture(session.workspace.loader, path), path)
    session.adopt(model, unsaved=False)
    shell.screen.note(model.headline)
    shell.show_notes_once(model)


@command(
    "save",
    arguments=(
        Words("path", "FILE|FOLDER/", completion="file"),
        Choice("adapter", name="part", 어댑터="adapter"),
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


@command(
    "adapter",
    arguments=(Choice("on", "off", 켜기="on", 끄기="off"),),
    aliases=("어댑터",),
    example=":adapter off",
)
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
    shell.screen.note(_("adapter {state}: {about}", state=state, about=attached.description))
