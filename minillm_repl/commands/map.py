"""`:map`."""

from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import import_torch, show_view


@command("map", arguments=(), json=True, aliases=("지도",), group="Look inside")
def map_(shell: Shell, asked: Arguments) -> None:
    """Draw a map of the embedding (PCA).

    The axes are the first two principal components of the embedding: the directions in which its
    vectors vary most. Tokens that are near on the map can be far apart in other dimensions. `:near`
    uses all dimensions.
    """
    model = shell.require_model()
    import_torch(shell)
    from minillm_repl.insight.embeddings import map_view
    from minillm_repl.render.texts import map_picture

    view = map_view(
        model.language_model, model.checkpoint.tokenizer, shell.session.conversation.ids
    )
    show_view(shell, view, map_picture, asked.output)
