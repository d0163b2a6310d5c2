"""`:tokens`: what the tokenizer makes of a text, and the embedding of each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, SPECIAL
from minillm_repl.render.drawing import short_label
from minillm_repl.render.tables import plain_table, tokens_line
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.lookup import count_prefix_spaces
from minillm_repl.views.base import Row, View, show

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from minillm_repl.model.quantised import BlockMatrix, QuantisedMatrix
    from minillm_repl.repl.shell import Shell

_MAX_NUMBERS = 64  # numbers of a vector that a row shows; `--json` has all


@dataclass(frozen=True)
class Piece:
    """One token of a text, and its embedding."""

    token: Token
    norm: float  # the L2 norm of the vector
    vector: Row  # (d_model,)


@dataclass(frozen=True, kw_only=True)
class TokensView(View):
    """The tokens of a text."""

    characters: int  # of the text as it was given
    bytes: int
    tokens_per_character: float | None  # special tokens are not counted
    bytes_per_token: float | None  # without a space that the tokenizer put before the text
    pieces: tuple[Piece, ...]

    def draw(self, width: int) -> RenderableType:
        """Return the tokens in alternating colours, a row for each, and the counts."""
        tokens = [piece.token for piece in self.pieces]
        strip = Text.assemble(("│", FIGURES))
        for index, token in enumerate(tokens):
            style = (POSITIVE, NEGATIVE)[index % 2] if token.bytes else SPECIAL
            strip.append(token.label, style).append("│", FIGURES)
        rates = []
        if self.tokens_per_character is not None:
            rates.append(_("{rate:.2f} tokens per character", rate=self.tokens_per_character))
        if self.bytes_per_token is not None:
            rates.append(_("{rate:.2f} bytes per token", rate=self.bytes_per_token))
        notes = [Text(" · ".join(rates), FIGURES)] if rates else []
        counts = tokens_line(len(tokens), self.characters, self.bytes)
        return Group(strip, Text(), self._table(width), counts, *notes)

    def _table(self, width: int) -> RenderableType:
        hex_width = max((3 * len(piece.token.bytes) for piece in self.pieces), default=0)
        numbers = min(_MAX_NUMBERS, max(1, (width - 40 - min(hex_width, 24)) // 7))
        table = plain_table(
            "#", _("token"), "id", _("bytes"), _("norm"), _("vector"), right=(0, 2, 4)
        )
        for index, piece in enumerate(self.pieces):
            token = piece.token
            vector = "".join(f"{number:+7.2f}" for number in piece.vector[:numbers])
            more = " …" if len(piece.vector) > numbers else ""
            table.add_row(
                str(index), short_label(token), str(token.id),
                Text(bytes(token.bytes).hex(" ").upper() or _("special"), FIGURES),
                f"{piece.norm:.2f}",
                Text(vector + more, FIGURES, no_wrap=True, overflow="crop"),
            )  # fmt: skip
        return table


def compute(
    tokenizer: Tokenizer,
    embedding: "NDArray[Any] | QuantisedMatrix | BlockMatrix",
    ids: Sequence[int],
    text: str,
) -> TokensView:
    """Return the tokens of a text, each with its row of the embedding (vocab, d_model)."""
    import numpy as np

    from minillm_repl.model.bfloat16 import to_float32

    tokens = [Token.from_id(tokenizer, token) for token in ids]
    vectors = to_float32(embedding[list(ids)])  # (time, d_model)
    norms = np.linalg.norm(vectors, axis=-1)  # (time,)
    sizes = [len(token.bytes) for token in tokens if token.bytes]
    text_bytes = sum(sizes) - count_prefix_spaces(tokenizer, ids, text)
    return TokensView(
        characters=len(text),
        bytes=len(text.encode("utf-8", "replace")),
        tokens_per_character=len(sizes) / len(text) if text else None,
        bytes_per_token=text_bytes / len(sizes) if sizes else None,
        pieces=tuple(
            Piece(token, float(norm), tuple(vector.tolist()))
            for token, norm, vector in zip(tokens, norms, vectors, strict=True)
        ),
    )


@command(
    "tokens",
    arguments=(TextArgument(verbatim=True, required=True),),
    json=True,
    aliases=("토큰",),
    group="Predictions",
    example=":tokens 날씨가 좋다",
)
def tokens(shell: "Shell", asked: Arguments) -> None:
    """Show the tokens of a text, with ids and bytes.

    The command takes TEXT exactly as typed, with quotes and spaces. If the tokenizer puts a start
    token before every text, the view shows it too.

    norm and vector: the L2 norm of the token's embedding, and its first values.
    """
    model = shell.require_model()
    ids = shell.encode(model, asked.text)
    view = compute(model.checkpoint.tokenizer, model.embedding, ids, asked.text)
    show(shell, view, asked.output)
