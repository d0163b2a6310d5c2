"""`:models`, `:load` and `:save`: the files of models."""

from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.tables import headline, models_table
from minillm_repl.repl.arguments import Arguments, Choice, Words
from minillm_repl.repl.model_loading import ModelFuture
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import (
    SUFFIX,
    exists,
    find_checkpoint,
    is_shipped,
    shipped_names,
    user_path,
)


@command("models", aliases=("모델목록",))
def models(shell: Shell, _asked: Arguments) -> None:
    """List the models that can be opened by name.

    The list shows the shipped models, recently opened models, and models in the Hugging Face cache;
    `:load NAME` opens one.

    Nothing is downloaded. The command only lists what other programs have put into the cache.
    """
    shell.screen.out.print(models_table(shell.session.workspace.models()))


@command(
    "load",
    arguments=(Words("path", "PATH|NAME", completion="checkpoint"),),
    aliases=("열기",),
    example=":load nalssi",
)
def load(shell: Shell, asked: Arguments) -> None:
    """Open another checkpoint.

    PATH is a .safetensors file or a Hugging Face folder. NAME is a name from `:models`.

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
    session.confirm_discard("load")
    model = shell.wait_for_model(ModelFuture(session.workspace.loader, path), path)
    session.adopt(model, unsaved=False)
    decoder = model.decoder
    shell.screen.note(
        headline(
            model.name, model.family, model.checkpoint.config, decoder.name, decoder.context_length
        )
    )
    shell.show_notes_once(model)


@command(
    "save",
    arguments=(
        Words("path", "FILE|FOLDER/", completion="file"),
        Choice("adapter", name="part"),
    ),
    aliases=("저장",),
    example=":save copy.safetensors",
)
def save(shell: Shell, asked: Arguments) -> None:
    """Save the model to a file, or as a Hugging Face folder.

    The file is saved completely or not at all. Without a path, the model goes to the file that it
    came from, unless that file ships with the program.

    A path that ends in / becomes a folder for the transformers library. `adapter` saves only the
    LoRA weights; `:load` opens them together with their model.
    """
    from minillm_repl.checkpoint.save import save as save_checkpoint

    model, argument = shell.require_model(), asked.path
    if asked.part == "adapter":
        from minillm_repl.checkpoint.formats.adapter import save_adapter

        file = _named(argument)
        save_adapter(model.checkpoint, file)
        shell.screen.note(_("adapter saved to {path}", path=safe_line(str(file))))
        return
    folder = argument.rstrip("'\"").endswith("/")
    path = (
        (user_path(argument) if folder else _named(argument))
        if argument
        else shell.session.workspace.path
    )
    if path is None or (not argument and is_shipped(path)):
        raise UserError(_(":save needs a path, such as `:save my{suffix}`", suffix=SUFFIX))
    saved = save_checkpoint(model.checkpoint, path, folder=folder, interrupted=shell.interrupted)
    shell.session.workspace.mark_saved(saved)
    shell.screen.note(_("saved to {path}", path=safe_line(str(path)) + ("/" if folder else "")))


def _named(argument: str) -> Path:
    """Return the path of a file to write; without an ending it gets the usual one."""
    path = user_path(argument)
    return path if path.suffix or exists(path) else user_path(f"{path}{SUFFIX}")
