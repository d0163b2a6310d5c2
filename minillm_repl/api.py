"""The program as a library: `import minillm_repl as mr` (docs/python.md).

Each function does what its command does, through the same code below. Nothing is printed. What the
user can fix is raised as UserError; a warning is a Python warning.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from minillm_repl.chat import Message, parse_messages
from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.load_save import save
from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.configuration import Launch
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.repl.care import help_for
from minillm_repl.repl.conversation import is_chatting
from minillm_repl.repl.model_loading import Intervention, LoadedModel, ModelLoader
from minillm_repl.repl.settings import Settings, Source
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import raising_interruptible
from minillm_repl.settings import find, with_values
from minillm_repl.storage.paths import SUFFIX, find_checkpoint, user_path
from minillm_repl.views import headless
from minillm_repl.views.base import View
from minillm_repl.views.headless import Generation

if TYPE_CHECKING:
    from minillm_repl.training import TrainEvent

__all__ = ("Generation", "Model", "UserError", "View", "load", "train")


class Model:
    """An open model. `load` and `train` return one."""

    def __init__(self, loader: ModelLoader, loaded: LoadedModel) -> None:
        self.loader = loader
        self._loaded = loaded

    def __repr__(self) -> str:
        return f"<Model {self._loaded.name}: {self.config.n_params:,} parameters>"

    @property
    def config(self) -> AnyConfig:
        """Its sizes."""
        return self._loaded.checkpoint.config

    @property
    def training(self) -> TrainingRecord | None:
        """How it was trained, if that is known."""
        return self._loaded.checkpoint.record

    @property
    def checkpoint(self) -> Checkpoint:
        """Its weights as numpy arrays, and all else that a file holds."""
        return self._loaded.checkpoint

    def generate(self, prompt: str, *, candidates: int = 0, **settings: Any) -> Generation:
        """Continue a text.

        `settings` are those of `:set`: max_tokens, temp, top_k, top_p, seed, stop and so on.
        Each step lists the `candidates` most likely tokens. Raises UserError, and KeyboardInterrupt
        after Ctrl-C: the model can be used again.
        """
        shell = self._shell(prompt, settings)
        ids = shell.session.conversation.ids or shell.encode(self._loaded, "")
        if not ids:  # only a model with a start token can begin from nothing
            raise UserError(_("the prompt is empty"))
        shell.session.conversation.start_turn(ids, shell.session.settings)
        return headless.generate(shell, prompt, candidates)

    def chat(
        self,
        messages: str | Sequence[Message | Mapping[str, str]],
        *,
        candidates: int = 0,
        **settings: Any,
    ) -> Generation:
        """Answer the last of the messages, a text or `{"role": "user", "content": …}` each.

        To go on, give the `messages` of the result and one more. A system prompt is `system=…`, or
        the first message. To a crisis the program answers, not a shipped model (`:help care`), and
        the reason is `care`; with `care=False` the model does. Raises as `generate` does, and for
        a model without a chat template.
        """
        *earlier, last = parse_messages(messages)
        shell = self._shell(settings=settings)
        if earlier and earlier[0].role == "system" and "system" not in settings:
            shell.session.chosen = replace(shell.session.chosen, system=earlier[0].content)
        is_chatting(self._loaded, setting=True)  # raises if it has no template
        crisis_help = help_for(shell, last.content, self._loaded)
        if crisis_help is not None:
            answer = Message("assistant", str(crisis_help))
            return headless.without_model(last.content, (*earlier, last, answer))
        shell.session.conversation.messages = earlier
        shell.start_chat_turn(self._loaded, last.content)
        return headless.generate(shell, last.content, candidates)

    def save(self, path: str | Path) -> Path:
        """Save the model as a file, or, if `path` ends in `/`, as a Hugging Face folder.

        Return the path. Raises UserError; the file is there completely or not at all.
        """
        is_folder = str(path).endswith("/")
        target = user_path(str(path))
        if not is_folder and not target.suffix:
            target = target.with_name(target.name + SUFFIX)
        with raising_interruptible() as interrupted:
            saved = save(self.checkpoint, target, folder=is_folder, interrupted=interrupted)
        self._loaded = replace(self._loaded, checkpoint=saved)
        return target

    def view(
        self,
        name: str,
        of: str | Generation = "",
        *arguments: str | int,
        at: str | int | None = None,
        **settings: Any,
    ) -> View:
        """Return what the command `name` shows of a text, or of a result.

        `arguments` are what is typed after the command: `m.view("attn", r, "2.1")`. `at` is a
        position, or a text: the position where it ends. Raises UserError.
        """
        words = [str(each) for each in arguments]  # as they would be typed
        if isinstance(of, str) and not words and headless.needs_argument(name):
            words, of = [of], ""  # `m.near("서울")`: it reads no other text
        shell = self._shell(of, settings)
        if at is not None:
            words.append(f"@{headless.position_of(shell, at)}")
        return headless.run_view(shell, name, " ".join(words))

    def __getattr__(self, name: str) -> Callable[..., View]:
        """Return the view of this name as a method: `m.lens(text, at="서울")`."""
        if name.startswith("_") or not headless.view_commands().has(name):
            names = ", ".join(each.name for each in headless.view_commands())
            raise AttributeError(f"a model has no {name!r}; its views: {names}")
        return partial(self.view, name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(each.name for each in headless.view_commands())]

    def _shell(
        self, of: str | Generation = "", settings: Mapping[str, Any] = MappingProxyType({})
    ) -> Shell:
        """Return a shell that prints nothing, with `of` as the text so far.

        What `settings` leaves out, or has as None, is the model's own value, or the program's.
        """
        chosen = with_values(Settings(), settings)
        names = (name for name, value in settings.items() if value is not None)
        sources: dict[str, Source] = {find(Settings, name)[0]: "session" for name in names}
        shell = headless.make_shell(self.loader, self._loaded, chosen, _warn, sources)
        if isinstance(of, Generation):
            shell.session.conversation.ids = list(of.ids)
        elif of:
            shell.session.conversation.ids = shell.encode(self._loaded, of)
        return shell

    @contextmanager
    def ablate(
        self, where: str | int, how: str = "zero", of: str | Generation = ""
    ) -> Iterator["Model"]:
        """Ablate a head ("2.1") or a layer (2) while a `with` block lasts.

        `how` is `zero`, or `mean`: the mean over the positions of `of`. Raises UserError.
        """
        with self._intervening(headless.ablation(self._shell(of), str(where), how)):
            yield self

    @contextmanager
    def steer(
        self, towards: str, away: str = "", *, layer: int = -1, strength: float = 4.0
    ) -> Iterator["Model"]:
        """Steer towards one text and away from another while a `with` block lasts, as `:steer`.

        Layer -1 is the middle one. Raises UserError.
        """
        with self._intervening(headless.steering(self._shell(), towards, away, layer, strength)):
            yield self

    @contextmanager
    def _intervening(self, intervention: Intervention) -> Iterator[None]:
        before = self._loaded
        self._loaded = before.with_interventions((*before.interventions, intervention))
        try:
            yield
        finally:
            self._loaded = before


def load(name: str | Path, **settings: Any) -> Model:
    """Open a model: a file, a folder, a name that `:models` lists.

    `settings` are the flags of the program: dtype, quant, device, context_length, threads,
    vocab_file, allow_nonfinite. Raises UserError.
    """
    loader = with_values(Launch(), settings).loader(os.environ)
    loaded = loader.load(find_checkpoint(str(name)))
    for note in loaded.checkpoint.notes:
        _warn(note)
    return Model(loader, loaded)


def train(
    corpus: str | Path,
    *,
    model: Model | None = None,
    device: str = "auto",
    threads: int = 0,
    progress: "Callable[[TrainEvent], object]" = lambda _event: None,
    **settings: Any,
) -> Model:
    """Train a new model on a text, or `model` further, and return it. `model` does not change.

    `settings` are those of `:train`: steps, lr, batch_size, seed, d_model, … `progress` gets each
    event. Nothing is written: `save` does that. Ctrl-C ends the training, and returns what was
    learnt so far; before the first step it raises KeyboardInterrupt. Raises UserError.
    """
    from minillm_repl.training import TrainingFinished
    from minillm_repl.training.plan import TrainPlan
    from minillm_repl.training.prepare import start_run
    from minillm_repl.training.run import RunContext

    launch = with_values(Launch(), {"device": device, "threads": threads})
    plan = with_values(TrainPlan(), settings)
    start = model.checkpoint if model else None
    with raising_interruptible() as interrupted:
        # Nothing is saved on the way: the path is never used.
        context = RunContext(
            path=Path(), device=launch.device, threads=launch.threads, interrupted=interrupted
        )
        run = start_run(start, str(corpus), plan, context)
        for warning in run.warnings:
            _warn(warning)
        for event in run.events(interrupted, save=False):
            progress(event)
        assert isinstance(event, TrainingFinished)
        if not event.steps:
            raise KeyboardInterrupt
    loader = model.loader if model else launch.loader(os.environ)
    return Model(loader, loader.prepare(run.checkpoint(event)))


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
