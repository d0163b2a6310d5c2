"""Views and generations without a terminal: the same code, and what it makes is returned."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

import minillm_repl.views as views_package
from minillm_repl.errors import UsageError, UserError
from minillm_repl.generate import AnswerEvent, Finished, Inserted, Step
from minillm_repl.language import _
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention, LoadedModel, ModelLoader
from minillm_repl.repl.registry import Registry, discover, load_plugins
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings, Source
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import raising_interruptible
from minillm_repl.repl.workspace import Workspace
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Token
from minillm_repl.views.base import View, inspect_ids, text_ids
from minillm_repl.views.inspected_text import InspectedText

if TYPE_CHECKING:  # numpy is not needed to find the commands
    import numpy as np
    from numpy.typing import NDArray

    from minillm_repl.chat import Message


@cache
def view_commands() -> Registry:
    """Return the commands of all views, those of plugins too."""
    return discover(views_package, find_plugins=load_plugins)


@dataclass(frozen=True)
class SilentScreen(Screen):
    """A screen that shows nothing; a warning is given to `on_warning`."""

    on_warning: Callable[[str], object] = print

    def warn(self, text: str) -> None:
        """Pass a warning on."""
        self.on_warning(text)


def make_shell(
    loader: ModelLoader,
    model: LoadedModel,
    settings: Settings,
    on_warning: Callable[[str], object],
    sources: Mapping[str, Source] = MappingProxyType({}),
) -> Shell:
    """Return a shell that prints nothing; warnings go to `on_warning`.

    `sources` are those of the settings that the user has chosen.
    """
    nowhere = StringIO()
    options: dict[str, Any] = {"file": nowhere, "quiet": True, "force_jupyter": False}
    out, err = Transcript(**options), Console(**options)
    screen = SilentScreen(out, err, on_warning=on_warning)
    # No file is written from here: the workspace has none.
    workspace = Workspace(loader=loader, model=model)
    session = Session(settings, workspace, sources=dict(sources))
    return Shell(session=session, screen=screen, registry=view_commands())


@dataclass(frozen=True, eq=False)
class Generation:
    """A text that a model wrote, and the numbers behind it."""

    prompt: str
    text: str  # what the model added
    prompt_ids: tuple[int, ...]
    tokens: tuple[Token, ...]  # of `text`: no end token, no stop string
    logprobs: "NDArray[np.float32]"  # (tokens,), by the model's own softmax, in nats
    steps: tuple[Step, ...]  # one for each token that was sampled, an end token included
    reason: str  # why it ended: `length`, `stop`, `end` or `context`; `care`: no model wrote it
    seed: int  # the same prompt, settings and seed give the same text
    messages: "tuple[Message, ...]" = ()  # of a chat, with the answer

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the prompt and of the text."""
        return (*self.prompt_ids, *(token.id for token in self.tokens))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Generation({self.text!r}, {len(self.tokens)} tokens, reason={self.reason!r})"


def generate(shell: Shell, prompt: str, candidates: int) -> Generation:
    """Let the model continue the present turn of a shell, which `prompt` has begun.

    Raises KeyboardInterrupt after Ctrl-C.
    """
    import numpy as np

    # Not `require_model`: the notes on its files were given when it was opened.
    model = shell.session.workspace.model
    assert model is not None
    conversation, settings = shell.session.conversation, shell.session.settings
    prompt_ids = tuple(conversation.ids)
    with raising_interruptible() as interrupted:
        events = list(conversation.generate(model, settings, interrupted, candidates))
    finished = events[-1]
    assert isinstance(finished, Finished)
    if finished.reason == "interrupt":
        raise KeyboardInterrupt
    steps = tuple(event for event in events if isinstance(event, Step))
    ids = conversation.ids[len(prompt_ids) :]
    with np.errstate(divide="ignore"):  # a probability below the smallest float is 0
        probs = np.array(_model_probs(events)[: len(ids)], np.float64)
        logprobs = np.log(probs)  # NaN where a server does not tell, and of what was inserted
    return Generation(
        prompt=prompt,
        text=finished.text,
        prompt_ids=prompt_ids,
        tokens=tuple(Token.from_id(model.checkpoint.tokenizer, token) for token in ids),
        logprobs=logprobs.astype(np.float32),
        steps=steps,
        reason=finished.reason,
        seed=conversation.seed,
        messages=tuple(conversation.messages),
    )


def _model_probs(events: list[AnswerEvent]) -> list[float | None]:
    """Return the probability of each token of an answer."""
    probs = list[float | None]()
    for event in events:
        if isinstance(event, Step):
            probs.append(event.model_prob)
        elif isinstance(event, Inserted):
            probs += [None] * len(event.ids)
    return probs


def without_model(prompt: str, messages: "tuple[Message, ...]") -> Generation:
    """Return a chat whose last message the program wrote."""
    import numpy as np

    return Generation(
        prompt=prompt,
        text=messages[-1].content,
        prompt_ids=(),
        tokens=(),
        logprobs=np.empty(0, np.float32),
        steps=(),
        reason="care",
        seed=0,
        messages=messages,
    )


def run_view(shell: Shell, name: str, arguments: str) -> View:
    """Run the command of a view with what would be typed after its name; return what it shows.

    Raises UserError, also if it shows nothing: `:ablate off`.
    """
    command = view_commands().get(name)
    command.run(shell, command.parse(arguments))
    if not isinstance(shell.last_shown, View):
        raise UsageError(command.usage)
    return shell.last_shown


def needs_argument(name: str) -> bool:
    """Tell whether the command of a view means nothing without an argument: `:near`, `:tokens`."""
    try:
        view_commands().get(name).parse("")
    except UsageError:
        return True
    return False


def position_of(shell: Shell, at: str | int) -> int:
    """Return a position of the text so far; of a text, where its last occurrence ends.

    Raises UserError if it is not there.
    """
    if not isinstance(at, str):
        return at
    model = shell.require_model()
    return _last_end(inspect_ids(shell, model, text_ids(shell, model)), at)


def _last_end(inspected: InspectedText, text: str) -> int:
    """Return the position of the token in which the last occurrence of `text` ends.

    Raises UserError if there is none.
    """
    tokens = [inspected.tokenizer.token_bytes(token) for token in inspected.all_ids]
    start = b"".join(tokens).rfind(text.encode())
    if start < 0 or not text:
        raise UserError(_("{text!r} is not in the text", text=safe_line(text)))
    ends = list(accumulate(map(len, tokens)))  # bytes from the start of the text
    return bisect_left(ends, start + len(text.encode()))


def ablation(shell: Shell, part: str, how: str) -> Intervention:
    """Return what ablates a layer (`2`), a head (`2.1`), its MLP (`2.mlp`) or its attention, by
    `zero` or the `mean` over the text so far. Raises UserError.
    """
    from minillm_repl.views.ablation import How, PartArgument, ablation_hook

    asked = Forms((PartArgument(),)).parse(part)
    if how not in ("zero", "mean"):
        raise UserError(_("ablate needs how='zero', or how='mean' and a text"))
    model = shell.require_model()
    # Zero needs no text: any token serves.
    ids = text_ids(shell, model) if how == "mean" else [0]
    hook = ablation_hook(inspect_ids(shell, model, ids), asked.layer, asked.piece, cast(How, how))
    return Intervention("ablate", lambda: part, hook, part)


def steering(shell: Shell, towards: str, away: str, layer: int, strength: float) -> Intervention:
    """Return what steers towards a text and away from another; layer -1 is the middle one.

    Raises UserError.
    """
    from minillm_repl.views.steer import direction, make_sides
    from minillm_repl.views.steering import steering_hook

    if not towards or not away:
        raise UserError(_("steer needs two texts"))
    model = shell.require_model()
    layer = model.checkpoint.config.n_layers // 2 if layer < 0 else layer
    vector = direction(*make_sides(shell, model, towards, away), layer)
    hook = steering_hook(vector, layer, strength)
    return Intervention("steer", lambda: f"{towards} vs {away}", hook)
