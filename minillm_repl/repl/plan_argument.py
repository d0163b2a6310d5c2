"""What follows `:train`: a corpus, whose name may have spaces, among the settings of a plan."""

import shlex

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Argument, Values
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change, specs
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.training.plan import TrainPlan

_WORDS = ("new", "check")


class PlanArgument(Argument):
    """`NAME=VALUE` for each setting of a plan, and the words `new` and `check`.

    They stand after a corpus or before it; its name may have spaces.
    """

    def __init__(self) -> None:
        values = {"plan": TrainPlan(), **dict.fromkeys(_WORDS, False)}
        super().__init__("[new] [check] [NAME=VALUE ...]", values)
        self.completions = (*_WORDS, *(f"{name}=" for name in specs(TrainPlan)))

    def take_last(self, text: str) -> tuple[Values, str]:
        """Read the settings at both ends of `text`; return what stands between them.

        Raises UserError.
        """
        words, settings = split_words(text), list[str]()
        while words and is_setting(words[-1]):
            settings.insert(0, words.pop())
        while words and is_setting(words[0]):
            settings.append(words.pop(0))
        corpus = " ".join(words).strip()
        _check_corpus(corpus, words)
        plan = make_plan([word for word in settings if "=" in word])
        return {"plan": plan, **{word: word in settings for word in _WORDS}}, corpus


def _check_corpus(corpus: str, words: list[str]) -> None:
    """Raise UserError where a word in the name of a missing text was meant as a setting."""
    # `take_last` leaves no setting at the start, so the first word belongs to the name.
    meant = [word for word in words[1:] if word and is_setting(word)]
    if meant and not exists(user_path(corpus)):
        raise UserError(
            _(
                "{corpus:.80} does not exist; put settings such as {word:.40} before or "
                "after the text, each as NAME=VALUE without spaces",
                corpus=safe_line(corpus),
                word=safe_line(meant[0]),
            )
        )


def make_plan(settings: list[str]) -> TrainPlan:
    """Return the plan of some `NAME=VALUE`. Raises UserError."""
    plan, names = TrainPlan(), list[str]()
    for setting in settings:
        name, _equals, value = setting.partition("=")
        plan = change(plan, name, value, display_name=f":train {name}")
        if name in names:
            raise UserError(_("{name} is set twice; set it once", name=name))
        names.append(name)
    return plan


def split_words(text: str) -> list[str]:
    """Split at spaces, but for those in quotes; a quote without its second is a letter."""
    lexer = shlex.shlex(text, posix=True)
    # A backslash and # are letters of a file's name.
    lexer.whitespace, lexer.whitespace_split, lexer.escape, lexer.commenters = " ", True, "", ""
    try:
        return list(lexer)
    except ValueError:
        return text.split(" ")


def is_setting(word: str) -> bool:
    """Tell whether a word is `NAME=VALUE`, `new` or `check`, or empty; a path with `=` is none."""
    name, equals, _value = word.partition("=")
    # `a/b=c.txt` is a path: a name of a setting has letters, - and _ only.
    return word in ("", *_WORDS) or (
        bool(equals) and name.replace("-", "").replace("_", "").isalpha()
    )
