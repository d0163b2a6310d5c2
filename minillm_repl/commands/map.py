"""`:map`."""

from minillm_repl.repl.inspecting import Asked, get_ready, show
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("map", ":map [--json FILE]", aliases=("지도",), group="Look inside")
def map_(shell: Shell, argument: str) -> None:
    """Draw the embedding as a map.

    Each token lies where the first two principal components of the embedding put it: the directions
    along which its vectors differ most. What is near on the map need not be near in all the other
    directions; `:near` asks in all.
    """
    asked, model = Asked.of(argument), shell.model()
    asked.nothing()
    get_ready(shell)
    from minillm_repl.insight.embeddings import map_view
    from minillm_repl.render.texts import map_picture

    view = map_view(model.torch, model.checkpoint.tokenizer, shell.session.ids)
    show(shell, view, map_picture, asked.output)
