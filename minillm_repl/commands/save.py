"""`:save`."""

from minillm_repl.checkpoint.names import SUFFIX, is_shipped, there, user_path
from minillm_repl.errors import UserError
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line


@command("save", ":save [FILE|FOLDER/]", completion="file")
def save(shell: Shell, argument: str) -> None:
    """Write the model to a file, or as a Hugging Face folder.

    Whole or not at all. Without a path it goes to the file it came from, unless that one ships with the program.
    A path that ends in / becomes a folder that the transformers library opens.
    """
    from minillm_repl.checkpoint.save import save as save_checkpoint

    model = shell.model()
    path = user_path(argument) if argument else shell.session.path
    if path is None or (not argument and is_shipped(path)):
        raise UserError(f":save needs a path, such as `:save my{SUFFIX}`")
    folder = argument.rstrip("'\"").endswith("/")
    if not folder and not path.suffix and not there(path):
        path = path.with_name(path.name + SUFFIX)
    shell.session.saved(save_checkpoint(model.checkpoint, path, folder=folder))
    shell.screen.note(f"saved to {safe_line(str(path))}{'/' if folder else ''}")
