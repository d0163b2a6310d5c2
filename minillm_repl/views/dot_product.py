"""`:qkv … key=P`: the dot product of one query and one key, number by number."""

from dataclasses import dataclass
from math import exp, sqrt, tanh

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import digits, is_same, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import Row, View

_SAME = 1e-9  # two scales that differ by less are the same
_ALL, _LARGEST = 16, 12  # all, up to 16; of more, the 12 largest


@dataclass(frozen=True)
class Scoring:
    """What a model makes of a dot product q·k before the softmax."""

    scale: float  # 1/√head_dim in most models
    softcap: float = 0.0  # c: a score s becomes c · tanh(s / c); 0: it stays

    def of(self, dot: float) -> float:
        """Return the score of a dot product."""
        score = dot * self.scale
        return self.softcap * tanh(score / self.softcap) if self.softcap else score

    def label(self, head_dim: int, root: str) -> str:
        """Return what is done: `÷` and `root`, which stands for √head_dim, or another factor."""
        is_usual = abs(self.scale * sqrt(head_dim) - 1) < _SAME
        factor = f"÷{root}" if is_usual else f"×{self.scale:.4g}"
        return f"{factor}, tanh" if self.softcap else factor


@dataclass(frozen=True, kw_only=True)
class DotView(View, Truncation):
    """One query and one key, and what the softmax makes of their dot product."""

    table = "query", "key", "products"

    layer: int
    head: int
    position: int  # of the query
    met: int  # the position of the key
    tokens: tuple[Token, ...]  # up to the position
    query: Row  # (head_dim,)
    key: Row  # (head_dim,)
    products: Row  # (head_dim,): query × key, number by number
    dot: float  # their sum
    scaled: float  # that divided by √head_dim, or what the model makes of it instead
    weight: float  # the softmax of that over all keys
    all_scaled: tuple[tuple[int, float, float], ...]  # (position, scaled, weight) of each key
    scoring: Scoring

    def draw(self, _width: int) -> RenderableType:
        """Return the products, their sum, that divided by √d, and the softmax over all keys."""
        # As many digits as it takes to compute each line from the lines above it.
        scaled = digits(2, self._softmax_agrees)
        return Group(
            self._title(),
            self._products(scaled),
            Text(),
            Text(_("softmax: e to the power of each score, divided by the sum over all keys")),
            self._softmax(scaled),
        )

    def _title(self) -> Text:
        return title(
            _("layer {layer} head {head}", layer=self.layer, head=self.head),
            _(
                "query: {asks} at position {position} · key: {answers} at position {met}",
                asks=self.tokens[-1].label,
                position=self.position,
                answers=self.tokens[self.index_of(self.met)].label,
                met=self.met,
            ),
        )

    def _products(self, scaled: int) -> Table:
        """Return the products as a table; `scaled` is how many digits the last line has."""
        size = len(self.query)
        largest = sorted(range(size), key=lambda index: -abs(self.products[index]))
        listed = sorted(largest if size <= _ALL else largest[:_LARGEST])
        rest = [self.products[index] for index in range(size) if index not in listed]
        summands = [*(self.products[index] for index in listed), sum(rest)]
        dot, product, factor = self._digits(scaled, listed, summands)
        table = plain_table("#", "q", "k", "q × k", right=range(4))
        for index in listed:
            table.add_row(
                str(index),
                f"{self.query[index]:+.{factor}f}",
                f"{self.key[index]:+.{factor}f}",
                f"{self.products[index]:+.{product}f}",
            )
        if rest:
            more = _("{count} more", count=len(rest))
            table.add_row("", "", more, f"{sum(rest):+.{product}f}")
        table.add_section()
        table.add_row("", "", _("sum, q·k"), Text(f"{self.dot:+.{dot}f}", TITLE))
        table.add_row(
            "", "", self.scoring.label(size, f" √{size}"), Text(f"{self.scaled:+.{scaled}f}", TITLE)
        )
        return table

    def _digits(
        self, scaled: int, listed: list[int], summands: list[float]
    ) -> tuple[int, int, int]:
        """Return the digits of the sum, of the products, and of the numbers multiplied."""

        def scaled_agrees(places: int) -> bool:
            return is_same(self.scoring.of(round(self.dot, places)), self.scaled, scaled)

        dot = digits(scaled, scaled_agrees)

        def sum_agrees(places: int) -> bool:
            return is_same(sum(round(each, places) for each in summands), self.dot, dot)

        product = digits(dot, sum_agrees)

        def products_agree(places: int) -> bool:
            return all(
                is_same(
                    round(self.query[index], places) * round(self.key[index], places),
                    self.products[index],
                    product,
                )
                for index in listed
            )

        return dot, product, digits(product, products_agree)

    def _softmax_agrees(self, places: int) -> bool:
        powers = [
            exp(round(score, places) - self.scaled) for _key, score, _weight in self.all_scaled
        ]
        total = sum(powers)
        return all(
            f"{power / total:.1%}" == f"{weight:.1%}"
            for power, (_key, _score, weight) in zip(powers, self.all_scaled, strict=True)
        )

    def _softmax(self, places: int) -> RenderableType:
        """Return the score and the weight of each key; of many, the largest and this one."""
        order = sorted(self.all_scaled, key=lambda each: (each[0] != self.met, -each[2]))
        listed = sorted(order if len(order) <= _ALL else order[:_LARGEST])
        keys = [
            Text.assemble(
                (f"{position} ", FIGURES),
                short_label(self.tokens[self.index_of(position)]),
                f" {score:+.{places}f}",
                (f" {percent(weight)}", TITLE if position == self.met else ""),
            )
            for position, score, weight in listed
        ]
        if len(listed) < len(order):
            keys.append(Text(_("… and {count} more", count=len(order) - len(listed)), FIGURES))
        return Columns(keys, padding=(0, 2))
