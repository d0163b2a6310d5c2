"""What is asked of training: by the words after `:train`, or by flags.

A corpus, whose name may have spaces, stands among the settings of a plan.
"""

import argparse
import shlex
from dataclasses import dataclass, field

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Argument, Arguments, Values
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change, specs
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.training.plan import TrainPlan

_WORDS = ("new", "check")
_SHARED_FLAGS = ("seed", "context-length")  # mean something for training too
TRAINING_FLAGS = tuple(name for name in specs(TrainPlan) if name not in _SHARED_FLAGS)


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A plan, the corpus if one was named, and which model is to learn it."""

    plan: TrainPlan = field(default_factory=TrainPlan)
    corpus: str = ""
    is_new: bool = False  # a new model, not the open one
    is_check: bool = False  # only look at the corpus
    is_resume: bool = False  # the run that was stopped; its plan is in its file
    is_remake: bool = False  # the run that made the open model; its plan is in its record
    recipe: str = ""  # of a new model: its corpus is made from the folder `data`
    data: str = ""
    out: str = ""  # where the trained model goes, in place of the open one's file


# -- words


def make_request(asked: Arguments) -> TrainRequest:
    """Return what `:train` asks for. Raises UserError."""
    if not asked.keyword:
        return TrainRequest(
            plan=asked.plan, corpus=asked.corpus, is_new=asked.new, is_check=asked.check
        )
    words, is_resume = split_words(asked.corpus), asked.keyword == "resume"
    if any(word and is_setting(word) for word in words):
        raise UserError(
            _(
                "`:train {word}` uses the settings of the run before; no other settings may follow",
                word=asked.keyword,
            )
        )
    corpus = " ".join(words).strip()
    return TrainRequest(is_resume=is_resume, is_remake=not is_resume, corpus=corpus)


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


# -- flags


def training_request(options: argparse.Namespace) -> TrainRequest | None:
    """Return what the training flags ask for, if anything.

    Raises UserError, also for a flag without a corpus.
    """
    # A flag that is not there is None: the plan, a recipe or the run before decides.
    training_flags = {
        name: getattr(options, name)
        for name in TRAINING_FLAGS
        if getattr(options, name) is not None
    }
    if options.resume or options.remake:
        if training_flags or options.new or options.check or options.recipe is not None:
            raise UserError(
                _(
                    "--resume and --remake use the settings of the run before; only --train "
                    "may be given, for a text file that has moved"
                )
            )
        return TrainRequest(
            is_resume=options.resume,
            is_remake=not options.resume,
            corpus=options.train or "",
            out=options.out or "",
        )
    if options.recipe is not None:
        return _recipe_request(options)
    if options.data is not None:
        raise UserError(_("--data is the folder of the texts of --recipe NAME"))
    if options.train is None:
        others = ("new", "check") if options.out is None else ("new", "check", "out")
        named = [*training_flags, *(name for name in others if getattr(options, name))]
        if named:
            raise UserError(
                _(
                    "--{name} is a training setting and needs --train CORPUS",
                    name=named[0],
                )
            )
        return None
    plan = _apply_flags(TrainPlan(), options)
    return TrainRequest(
        plan=plan,
        corpus=options.train,
        is_new=options.new,
        is_check=options.check,
        out=options.out or "",
    )


def _recipe_request(options: argparse.Namespace) -> TrainRequest:
    """Return what --recipe asks for. Raises UserError that names the texts it needs."""
    from minillm_repl.training.recipe import read_recipe, recipes

    if options.train is not None:
        raise UserError(_("--recipe builds its own corpus: leave out --train"))
    recipe, data = read_recipe(options.recipe), options.data
    if data is None and options.recipe not in recipes():
        data = str(recipe.folder)  # A user's own recipe lies beside its texts.
    if data is None:
        raise UserError(
            _(
                "recipe {recipe} needs --data FOLDER with {files}",
                recipe=options.recipe,
                files=", ".join(recipe.files),
            )
        )
    return TrainRequest(
        plan=_apply_flags(recipe.plan, options),
        is_new=True,
        is_check=options.check,
        recipe=options.recipe,
        data=data,
        out=options.out or "",
    )


def _apply_flags(plan: TrainPlan, options: argparse.Namespace) -> TrainPlan:
    """Return the plan with what the flags say. Raises UserError."""
    for name in (*TRAINING_FLAGS, *_SHARED_FLAGS):
        if getattr(options, name) is not None:
            plan = change(plan, name, getattr(options, name), display_name=f"--{name}")
    return plan
