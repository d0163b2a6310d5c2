"""The flags that train, as the request that `:train` makes of what is typed."""

import argparse

from minillm_repl.commands.train import TrainRequest
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.settings import change, specs
from minillm_repl.training.plan import TrainPlan

_SHARED_FLAGS = ("seed", "context-length")  # mean something for training too
TRAINING_FLAGS = tuple(name for name in specs(TrainPlan) if name not in _SHARED_FLAGS)


def training_request(options: argparse.Namespace) -> TrainRequest | None:
    """Return what the training flags ask for, if anything.

    Raises UserError, also for a flag without a corpus.
    """
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
