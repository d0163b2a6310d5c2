"""What `:train` and the training flags ask for."""

import shlex
from dataclasses import dataclass, field

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.training.plan import TrainPlan


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A plan, the corpus if one was named, and which model is to learn it."""

    plan: TrainPlan = field(default_factory=TrainPlan)
    corpus: str = ""
    is_new: bool = False  # a new model, not the open one
    is_resume: bool = False  # the run that was stopped; its plan is in its file
    recipe: str = ""  # of a new model: its corpus is made from the folder `data`
    data: str = ""


def parse_request(argument: str) -> TrainRequest:
    """Read what follows `:train`: settings, before or after a corpus that may have spaces.

    Raises UserError.
    """
    words = _words(argument)
    if words[:1] == ["resume"]:
        if any(word and _is_setting(word) for word in words[1:]):
            raise UserError(
                _(
                    "`:train resume` uses the settings of the stopped run; no other settings "
                    "may follow"
                )
            )
        return TrainRequest(is_resume=True, corpus=" ".join(words[1:]).strip())
    settings = list[str]()
    while words and _is_setting(words[-1]):
        settings.insert(0, words.pop())
    while words and _is_setting(words[0]):
        settings.append(words.pop(0))
    corpus = " ".join(words).strip()
    _check_corpus(corpus, words)
    plan = TrainPlan()
    for word in settings:
        name, equals, value = word.partition("=")
        if equals:
            plan = change(plan, name, value, display_name=f":train {name}")
    names = [word.partition("=")[0] for word in settings if "=" in word]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(_("{name} is set twice; set it once", name=twice[0]))
    return TrainRequest(plan=plan, corpus=corpus, is_new="new" in settings)


def _check_corpus(corpus: str, words: list[str]) -> None:
    """Raise UserError where a word in the name of a missing text was meant as a setting."""
    meant = [word for word in words[1:] if word and _is_setting(word)]
    if meant and not exists(user_path(corpus)):
        raise UserError(
            _(
                "{corpus:.80} does not exist; put settings such as {word:.40} before or "
                "after the text, each as NAME=VALUE without spaces",
                corpus=safe_line(corpus),
                word=safe_line(meant[0]),
            )
        )


def _words(text: str) -> list[str]:
    """Split at spaces, but for those in quotes; a quote without its second is a letter."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace, lexer.whitespace_split, lexer.escape, lexer.commenters = " ", True, "", ""
    try:
        return list(lexer)
    except ValueError:
        return text.split(" ")


def _is_setting(word: str) -> bool:
    name, equals, _value = word.partition("=")
    return word in ("", "new") or (
        bool(equals) and name.replace("-", "").replace("_", "").isalpha()
    )
