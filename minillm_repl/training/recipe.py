"""Recipes: how a model of a certain kind comes out of a folder of texts, as a file in `recipes/`.

A recipe names its sources, how much of each is taken, and the settings of the training. What it
makes of them is a corpus of two files: what is trained on, shuffled, and what is held out of every
source.
"""

import dataclasses
import json
import random
import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import PARTICLES, _, choose_particle
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.encoding import DetectedEncoding, read_text
from minillm_repl.storage.files import read_utf8
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.talk import TALK_FOLDERS, Document, as_record, read_conversations

RECIPES_FOLDER = Path(__file__).with_name("recipes")
_MAX_RECIPE = 1 << 20  # bytes
_VAL_EVERY = 20  # one block of documents in 20 goes to the validation split
_SLOT = re.compile(r"\{(?:(\w+):)?(\w+)\}")
_PAIR = re.compile(rf"([가-힣])({'|'.join(PARTICLES)})")
_WEIGHT = re.compile(r"\s\*(\d+)$")
_ATTEMPTS = 20  # to draw a text that has not been there before


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text of a recipe: a file in the folder of data; or a grammar or talks of the recipes."""

    name: str
    file: str = ""
    grammar: str = ""
    talks: str = ""  # the language of talks (training/talk.py); `count` is how often each is begun
    separator: str = r"\n"  # of a file: what stands between two documents, as an expression
    drops_lines: bool = False  # whether what is unwanted costs a line, not the document
    joins_lines: bool = False  # whether lines that follow one another are one paragraph
    rule: str = ""  # of a grammar: the one whose texts are documents,
    count: int = 0  # and how many of them
    match: str = ""  # only documents that match this expression as a whole are taken,
    characters: int = 10**9  # and of these about this many characters, evenly over the file
    block: int = 1  # documents that are held out together, for neighbours may be alike
    copies: int = 1  # how often the documents that are trained on come in one pass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train on, and how."""

    name: str
    sources: tuple[Source, ...]
    plan: TrainPlan
    chat: ChatTemplate | None
    excluded: re.Pattern[str]  # documents in which this is found are left out
    folder: Path = RECIPES_FOLDER  # in which its grammars are

    @property
    def files(self) -> list[str]:
        """The texts that it needs, by their names in the folder of data."""
        return list(dict.fromkeys(source.file for source in self.sources if source.file))

    def prepare(
        self, data: Path, folder: Path, tell: Callable[[str], object] = lambda _note: None
    ) -> tuple[Path, Path]:
        """Write the corpus into `folder`; return the file to train on, and the held-out one.

        The same texts and recipe give the same files; `tell` is told of a text that is not UTF-8.
        Raises UserError for a text that is missing.
        """
        missing = [name for name in self.files if not exists(data / name)]
        if missing:
            raise UserError(
                _(
                    "recipe {recipe} needs {files} in {folder}",
                    recipe=safe_line(self.name),
                    files=safe_line(", ".join(missing)),
                    folder=safe_line(str(data)),
                )
            )
        train, val = list[Document](), list[tuple[str, Document]]()
        for source in self.sources:
            documents = self._documents(source, data, tell)
            train_texts = [
                document
                for place, document in enumerate(documents)
                if place // source.block % _VAL_EVERY != _VAL_EVERY // 2
            ]
            val_only = set(documents).difference(train_texts)
            val += [(source.name, text) for text in documents if text in val_only]
            train += train_texts * source.copies
        random.Random(self.plan.seed).shuffle(train)  # noqa: S311 - nothing secret
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "train.jsonl", folder / "held-out.jsonl"
        write_atomically(paths[0], _to_jsonl(map(as_record, train)))
        write_atomically(
            paths[1], _to_jsonl({"source": name, **as_record(document)} for name, document in val)
        )
        return paths

    def _documents(
        self, source: Source, data: Path, tell: Callable[[str], object]
    ) -> Sequence[Document]:
        if source.talks:
            return read_conversations(source.talks, self.plan.seed, source.count)
        if source.grammar:
            grammar = Grammar(read_text(self.folder / source.grammar))
            return list(grammar.texts(source.rule, source.count, self.plan.seed))
        path = data / source.file
        encoding = DetectedEncoding()
        text = unicodedata.normalize("NFC", read_text(path, encoding))
        for note in encoding.notes(path):
            tell(note)
        if source.drops_lines:
            text = "\n".join(line for line in text.split("\n") if not self.excluded.search(line))
        candidates = [part.strip() for part in re.split(source.separator, text)]
        if source.joins_lines:
            candidates = [re.sub(r"(?<!\n)\n(?!\n)", " ", part) for part in candidates]
        pattern = re.compile(source.match or r"(?s:.+)")
        matching = [
            part
            for part in candidates
            if pattern.fullmatch(part) and not self.excluded.search(part)
        ]
        share = min(1.0, source.characters / max(1, sum(map(len, matching))))
        return [
            part
            for place, part in enumerate(matching)
            if int((place + 1) * share) > int(place * share)
        ]


def read_recipe(name: str) -> Recipe:
    """Read the recipe of that name, or the file of a user. Raises UserError."""
    path = RECIPES_FOLDER / f"{name}.toml"
    if name not in recipes():
        path = user_path(name)
        if not exists(path):
            raise UserError(
                _(
                    "no recipe {name!r}; available: {recipes}, or a file NAME.toml",
                    name=safe_line(name),
                    recipes=", ".join(recipes()),
                )
            )
    try:
        return _parse_recipe(name, path)
    except (tomllib.TOMLDecodeError, re.error, TypeError) as error:
        raise UserError(
            _(
                "{name} is no recipe: {error:.200}",
                name=safe_line(name),
                error=safe_line(str(error)),
            )
        ) from None


def _parse_recipe(name: str, path: Path) -> Recipe:
    """Raises UserError, and TOMLDecodeError, re.error or TypeError for what is no recipe."""
    read = tomllib.loads(read_utf8(path, _MAX_RECIPE))
    unknown = sorted(set(read) - {"plan", "chat", "source", "unwanted"})
    sources, settings, chat = read.get("source"), read.get("plan", {}), read.get("chat")
    if unknown or not isinstance(sources, list) or not sources or not isinstance(settings, dict):
        raise TypeError(_("it needs [[source]] tables, and may have [plan], [chat] and unwanted"))
    plan = TrainPlan()
    for setting, value in settings.items():
        plan = change(plan, setting, str(value), display_name=setting)
    return Recipe(
        name=name,
        sources=tuple(map(_parse_source, sources)),
        plan=plan,
        chat=None if chat is None else _parse_chat(chat),
        excluded=re.compile(read.get("unwanted", r"(?!)")),
        folder=path.parent,
    )


def _parse_source(fields: Any) -> Source:
    """Raises TypeError or re.error for a source that is none."""
    source = Source(**fields)
    for field in dataclasses.fields(Source):
        value = getattr(source, field.name)
        if type(value) is not field.type:
            raise TypeError(
                _("{field} is {value:.40}", field=field.name, value=safe_line(repr(value)))
            )
    kinds = sum(map(bool, (source.file, source.grammar, source.talks)))
    if kinds != 1 or min(source.block, source.copies) < 1:
        raise TypeError(_("a source needs a file, a grammar or talks, and block and copies from 1"))
    if source.talks and source.talks not in TALK_FOLDERS:
        raise TypeError(_("talks are in {languages}", languages=", ".join(TALK_FOLDERS)))
    re.compile(source.separator)
    re.compile(source.match)
    return source


def _parse_chat(fields: Any) -> ChatTemplate:
    match fields:
        case {"source": str(source), **others} if set(others) <= {"variables"}:
            variables = others.get("variables", {})
            if isinstance(variables, dict) and all(
                isinstance(value, str) for value in variables.values()
            ):
                return ChatTemplate(source, variables)
    raise TypeError(_("[chat] needs a source, and may have variables"))


def recipes() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def _to_jsonl(records: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


class Grammar:
    r"""Text made from rules of alternatives, from which one is drawn each time.

    A line `name = this | that {other} | ...` is a rule; lines that begin with spaces continue its
    alternatives. `{other}` becomes an alternative of that rule, drawn anew each time; `{it:other}`
    is drawn once in a text, and is the same wherever `it` stands. `*3` at the end of an alternative
    makes it three times as likely, and `\n` is a line break. A line that begins with `#` is a
    comment. Korean particles are written as pairs (`을/를`): the one that fits the letter before is
    taken.

    Raises UserError for a rule that names a rule which does not exist.
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
