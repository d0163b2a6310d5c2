r"""Text made from a grammar: rules of alternatives, from which one is drawn each time.

A line `name = this | that {other} | ...` is a rule, and lines that begin with spaces go on with its
alternatives.
`{other}` becomes an alternative of that rule, drawn anew each time; `{it:other}` is drawn once in a
text, and the same wherever `it` stands. `*3` at the end of an alternative makes it three times as
likely, and `\n` is a line break. A line that begins with `#` is a comment. Korean particles are
written as pairs (`을/를`), of which the one that fits the letter before is taken.
"""

import random
import re
from collections.abc import Iterator

from minillm_repl.errors import UserError
from minillm_repl.korean import PARTICLES, choose_particle
from minillm_repl.language import _

_SLOT = re.compile(r"\{(?:(\w+):)?(\w+)\}")
_PAIR = re.compile(rf"([가-힣])({'|'.join(PARTICLES)})")
_WEIGHT = re.compile(r"\s\*(\d+)$")
_ATTEMPTS = 20  # to draw a text that has not been there before


class Grammar:
    """Rules by name, read from a text.

    Raises UserError for a rule that names one that is not there.
    """

    def __init__(self, text: str) -> None:
        self._rules: dict[str, tuple[list[str], list[int]]] = {}
        text = re.sub(r"\n[ \t]+(?=\S)", " ", re.sub(r"(?m)^#.*\n", "", text))
        for line in filter(str.strip, text.splitlines()):
            name, _equals, alternatives = line.partition("=")
            weighted = [
                _parse_weight(alternative.strip())
                for alternative in alternatives.strip(" |").split("|")
            ]
            self._rules[name.strip()] = (
                [each for each, _weight in weighted],
                [weight for _each, weight in weighted],
            )
        for name, (expansions, _weights) in self._rules.items():
            for _chosen, rule in _SLOT.findall(" ".join(expansions)):
                if rule not in self._rules:
                    raise UserError(
                        _(
                            "rule {name} refers to rule {rule}, which does not exist",
                            name=name,
                            rule=rule,
                        )
                    )

    def texts(self, rule: str, count: int, seed: int) -> Iterator[str]:
        """Yield up to `count` different texts, fewer where no new ones are found."""
        chance, seen = random.Random(seed), set[str]()  # noqa: S311 - nothing secret
        for _attempt in range(count * _ATTEMPTS):
            text = _PAIR.sub(_fit_particle, self._expand(rule, chance, {})).replace("\\n", "\n")
            if text not in seen:
                seen.add(text)
                yield text
            if len(seen) == count:
                return

    def _expand(self, rule: str, rng: random.Random, bindings: dict[str, str]) -> str:
        alternatives, weights = self._rules[rule]

        def fill(match: re.Match[str]) -> str:
            slot, name = match.groups()
            if slot and slot not in bindings:
                bindings[slot] = self._expand(name, rng, bindings)
            return bindings[slot] if slot else self._expand(name, rng, bindings)

        return _SLOT.sub(fill, rng.choices(alternatives, weights)[0])


def _parse_weight(alternative: str) -> tuple[str, int]:
    weight = _WEIGHT.search(alternative)
    return (alternative[: weight.start()], int(weight[1])) if weight else (alternative, 1)


def _fit_particle(pair: re.Match[str]) -> str:
    return pair[1] + choose_particle(pair[1], pair[2])
