"""What is going on: the model that is open, the text so far, the settings, the random numbers."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.model_loading import Intervention, LoadedModel, ModelFuture, ModelLoader
from minillm_repl.repl.recent_models import RecentModels
from minillm_repl.repl.settings import DEFAULT_ANSWER_TOKENS, DEFAULT_COMPLETION_TOKENS, Settings
from minillm_repl.repl.turn import Turn
from minillm_repl.settings import change
from minillm_repl.storage.paths import cached_models, shipped_names

if TYPE_CHECKING:  # numpy and numba are imported by the thread that loads, while the user types
    from minillm_repl.chat.template import Message
    from minillm_repl.checkpoint.checkpoint import Checkpoint
    from minillm_repl.generate.events import GenerationEvent
    from minillm_repl.insight.views.changes import WatchView
    from minillm_repl.tokenizer.base import Tokenizer

_MAX_TURNS = 1_000  # that can be taken back: a visit of weeks must not fill the memory


@dataclass
class Session:
    """The state of a visit. Nothing here draws."""

    settings: Settings = field(default_factory=Settings)
    loader: ModelLoader = field(default_factory=ModelLoader)
    recent_models: RecentModels = field(default_factory=lambda: RecentModels(None))
    threads: int = 0  # for torch; 0 chooses by the model's size
    path: Path | None = None  # what was asked for; may not exist yet
    ids: list[int] = field(default_factory=list)
    # the conversation, where the model talks in turns
    messages: "list[Message]" = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    user_selected: bool = True  # somebody has named the model, or made it
    # the file at `path` is this visit's to write: it was named to be made, or saved to
    writable: bool = False
    saved: bool = False  # this visit has saved a model at `path`
    is_practice: bool = False  # any model that is trained here goes to `path`: a lesson's
    unsaved: bool = False  # the open model was trained and lies in no file
    is_training: bool = False  # a model is being trained that nothing else holds yet
    # it is that of a run that was stopped, which going on with the run keeps
    resumable: bool = False
    speed: float = 0.0  # tokens per second, last time
    shown_notes: tuple[str, ...] = ()  # what was told of the files of the open model
    turn_end_ids: tuple[int, ...] = ()  # what the open model's chat template ends an answer with
    branches: list[list[int]] = field(default_factory=list)  # whole texts that `:branch` has found,
    branch_prompt_length: int = 0  # from that many tokens,
    branch_seed: int = 0  # the last with this seed
    watch_prompt: str = ""  # a prompt that is looked at while a model is trained
    watch_view: "WatchView | None" = None  # what was seen of it
    _loading_future: "ModelFuture | None" = None
    _model: LoadedModel | None = None
    _warned_action: str = ""  # the wish that was last answered by "the weights are not saved"
    seed: int = 0  # of the last completion: with it, the same prompt gives the same text

    # -- settings

    def set(self, name: str, text: str, spelling: str | None = None) -> None:
        """Change a setting. Raises UserError, leaving everything as it was."""
        self.settings = change(self.settings, name, text, display_name=spelling)

    # -- the model

    def start_loading(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Begin to open `path` in the background, once, if there; that thread calls `changed`."""
        if self.path is not None and not self.writable and self.has_no_model:
            self._loading_future = ModelFuture(self.loader, self.path, on_progress)

    @property
    def is_loading(self) -> bool:
        """Whether a model is being opened right now."""
        return self._loading_future is not None and not self._loading_future.done()

    @property
    def loading_future(self) -> "ModelFuture | None":
        """The model that is being opened, or could not be; None if there is none to wait for."""
        return self._loading_future

    @property
    def model(self) -> LoadedModel | None:
        """The open model, if any; one that has finished loading in the background becomes the
        open one here.
        """
        if (
            self._loading_future is not None
            and self._loading_future.done()
            and self._loading_future.exception() is None
        ):
            self._model, self._loading_future = self._loading_future.result(), None
            # of a file in a Hugging Face folder, the folder
            self.path = self._model.checkpoint.path
            self.recent_models.add(self.path)
        return self._model

    @property
    def has_no_model(self) -> bool:
        """Whether no model is open and none is being opened."""
        return self.model is None and self._loading_future is None

    def models(self) -> list[tuple[str, str]]:
        """Return what can be opened: a name to open it by, and where it comes from."""
        hub = cached_models()
        recent = [path for path in self.recent_models.paths() if path not in hub.values()]
        return [
            *((name, _("built in")) for name in shipped_names()),
            *((str(path), _("opened recently")) for path in recent),
            *((name, _("Hugging Face cache")) for name in hub),
        ]

    def adopt(self, model: LoadedModel, *, unsaved: bool) -> None:
        """Make `model` the open one; the text so far belonged to the other."""
        self._model, self._loading_future, self.user_selected = model, None, True
        if not unsaved:
            self.path, self.writable, self.shown_notes = model.checkpoint.path, False, ()
            self.recent_models.add(self.path)
        elif (
            model.checkpoint.path is None
            and (self.saved or not self.writable)
            and not self.is_practice
        ):
            # a new model does not go where another one lies
            self.path, self.writable, self.saved = None, False, False
        self.unsaved, self.resumable, self._warned_action = unsaved, False, ""
        self.clear()

    def add_intervention(self, intervention: Intervention) -> None:
        """Let the open model think with one more change, in place of one by the same command to
        the same part.
        """
        assert self._model is not None
        self._model = self._model.with_interventions(
            (
                *self._model.without_interventions(
                    intervention.command, intervention.component
                ).interventions,
                intervention,
            )
        )

    def remove_interventions(self, command: str) -> bool:
        """Take back all changes of one command; tell whether there were any."""
        before = self._model.interventions if self._model else ()
        others = tuple(each for each in before if each.command != command)
        if self._model and len(others) < len(before):
            self._model = self._model.with_interventions(others)
        return len(others) < len(before)

    def forget_failed_load(self) -> None:
        """Drop a load that did not work out; a model opened before stays."""
        self._loading_future = None

    def mark_saved(self, checkpoint: "Checkpoint") -> None:
        """Note that the open model now lies on disk as `checkpoint`."""
        assert self._model is not None
        self._model = replace(self._model, checkpoint=checkpoint)
        self.path, self.writable, self.saved = checkpoint.path, True, True
        self.recent_models.add(self.path)
        self.unsaved, self._warned_action = False, ""

    def confirm_discard(self, action: str) -> None:
        """Raise UserError the first time in a row that a wish would drop trained weights that
        lie in no file.
        """
        if self.unsaved and self._warned_action != action:
            self._warned_action = action
            raise UserError(
                _(
                    "unsaved trained weights: `:save FILE` keeps them; repeat the command "
                    "to discard them"
                )
            )

    # -- the text

    def clear(self) -> None:
        """Forget the text and its turns."""
        self.ids, self.messages, self.turns, self.branches = [], [], [], []

    def is_chatting(self, model: LoadedModel) -> bool:
        """Whether what is typed is said to the model, not to be completed.

        Raises UserError if it cannot chat.
        """
        chat = self.settings.chat
        if chat and model.checkpoint.chat_template is None:
            raise UserError(
                _(
                    "{model} has no chat template; with `:chat off` it completes what you type",
                    model=model.name,
                )
            )
        return model.checkpoint.chat_template is not None and chat is not False

    @property
    def max_new_tokens(self) -> int:
        """How many tokens the model may add in the turn that has begun."""
        return self.settings.max_tokens or (
            DEFAULT_ANSWER_TOKENS
            if self.turns and self.turns[-1].prompt_messages
            else DEFAULT_COMPLETION_TOKENS
        )

    def start_chat_turn(self, model: LoadedModel, text: str) -> int:
        """Start a turn that the model answers; return how many oldest turns it no longer sees.

        Raises UserError if the chat template refuses, or the text is too long.
        """
        from minillm_repl.chat.history import fit_messages
        from minillm_repl.chat.template import Message

        settings, context, template = (
            self.settings,
            model.decoder.context_length,
            model.checkpoint.chat_template,
        )
        assert template is not None
        system = [Message("system", settings.system)] if settings.system else []
        earlier = [message for message in self.messages if message.role != "system"]
        messages = [*system, *earlier, Message("user", text)]
        max_prompt_tokens = context - self.reserved_answer_tokens(context)
        prompt, kept_messages = fit_messages(
            template, model.checkpoint.tokenizer, messages, max_prompt_tokens, settings.special
        )
        self.turn_end_ids = prompt.eos_token_ids
        self.start_turn(prompt.ids, prompt_messages=tuple(kept_messages))
        return (len(messages) - len(kept_messages)) // 2

    def reserved_answer_tokens(self, context: int) -> int:
        """Return how many tokens of a context a conversation leaves free for the answer."""
        return min(self.settings.max_tokens or DEFAULT_ANSWER_TOKENS, context // 2)

    def continue_text(self, new_ids: list[int], text: str) -> None:
        """Start a turn in which the model goes on from the text's end, or from `more` after it.

        Raises UserError if there is no text.
        """
        ids = self.ids + new_ids
        if not ids:
            raise UserError(_("no text to continue: type a prompt first"))
        if self.messages and self.messages[-1].role == "assistant":
            self.start_turn(
                ids,
                prompt_messages=tuple(self.messages[:-1]),
                assistant_prefix=self.messages[-1].content + text,
            )
        else:
            self.start_turn(ids)

    def start_turn(
        self,
        prompt_ids: list[int],
        *,
        prompt_messages: "tuple[Message, ...]" = (),
        assistant_prefix: str = "",
        seed: int | None = None,
    ) -> None:
        """Start a turn: the model will continue `given`, with a seed, or with that of the
        settings, or any.
        """
        self.seed = self.fresh_seed() if seed is None else seed
        self._warned_action = ""
        before = tuple(self.ids), tuple(self.messages)
        self.turns.append(
            Turn(
                *before,
                tuple(prompt_ids),
                prompt_messages,
                assistant_prefix,
                self.seed,
                self.settings.seed,
            )
        )
        del self.turns[:-_MAX_TURNS]
        self.ids, self.messages = list(prompt_ids), list(prompt_messages)

    def undo(self) -> Turn:
        """Take the last turn back, and return it. Raises UserError if there is none."""
        if not self.turns:
            raise UserError(_("nothing to undo"))
        turn = self.turns.pop()
        self.ids, self.messages = list(turn.ids_before), list(turn.messages_before)
        return turn

    def retry_turn(self) -> None:
        """Start the last turn once more, not with a seed that it was drawn with.

        Raises UserError if there is none.
        """
        if not self.turns:
            raise UserError(_("nothing to regenerate: type a prompt first"))
        turn = self.undo()
        self.start_turn(
            list(turn.prompt_ids),
            prompt_messages=turn.prompt_messages,
            assistant_prefix=turn.assistant_prefix,
            seed=turn.next_seed(self.settings.seed),
        )

    def set_turn_seed(self, seed: int) -> None:
        """Note the last seed drawn for the present turn: another try takes the next one."""
        self.turns[-1] = replace(self.turns[-1], seed=seed)

    def generate(
        self, model: LoadedModel, interrupted: Callable[[], bool], top: int
    ) -> "Iterator[GenerationEvent]":
        """Continue the text, keeping `ids` at what has been shown, however the generation ends."""
        from minillm_repl.generate.detokenizer import text_token_ids
        from minillm_repl.generate.events import Finished, Step
        from minillm_repl.generate.generate import generate
        from minillm_repl.generate.options import GenerationConfig
        from minillm_repl.generate.sampling import make_rng

        tokenizer, settings = model.checkpoint.tokenizer, self.settings
        start, before = len(self.ids), self.answer(tokenizer)
        walked = start - len(self.turns[-1].prompt_ids)
        config = GenerationConfig(
            max_tokens=max(0, self.max_new_tokens - walked),
            sampling=settings,
            stop=settings.stop,
            eos_token_ids=self.eos_token_ids(model),
            context_shift=not self.turns[-1].prompt_messages,
            n_candidates=top,
        )
        rng = make_rng(self.seed, walked)
        for event in generate(model.decoder, tokenizer, self.ids, config, rng, interrupted):
            if isinstance(event, Step):
                self.ids.append(event.id)
            elif isinstance(event, Finished):
                self.speed = event.tokens / event.seconds if event.seconds else 0.0
                self.ids[start:] = text_token_ids(tokenizer, self.ids[start:], event, settings.stop)
                self._record_answer(before + event.text)
            yield event

    def eos_token_ids(self, model: LoadedModel) -> tuple[int, ...]:
        """Return the tokens that end what the model says: in a chat, what ends a turn too."""
        return model.checkpoint.eos_token_ids + (
            self.turn_end_ids if self.turns and self.turns[-1].prompt_messages else ()
        )

    def answer(self, tokenizer: "Tokenizer") -> str:
        """Return what the present turn has added to the text so far."""
        tokens = self.ids[len(self.turns[-1].prompt_ids) :]
        return self.turns[-1].assistant_prefix + b"".join(
            map(tokenizer.token_bytes, tokens)
        ).decode("utf-8", "replace")

    def fresh_seed(self) -> int:
        """Return the seed that is set, or any."""
        return secrets.randbelow(2**32) if self.settings.seed is None else self.settings.seed

    def set_text(self, ids: list[int], tokenizer: "Tokenizer") -> None:
        """Let the text be `ids`, which go on from what the present turn was given."""
        self.ids = ids
        self._record_answer(self.answer(tokenizer))

    def _record_answer(self, answer: str) -> None:
        from minillm_repl.chat.template import Message

        if self.turns[-1].prompt_messages:
            self.messages = [*self.turns[-1].prompt_messages, Message("assistant", answer)]
