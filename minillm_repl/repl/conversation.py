"""The text of a session: what was said, its tokens, its turns and its branches."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.settings import DEFAULT_ANSWER_TOKENS, DEFAULT_COMPLETION_TOKENS, Settings

if TYPE_CHECKING:  # the first prompt needs no numpy
    from minillm_repl.chat import Message
    from minillm_repl.generate import AnswerEvent, GenerationEvent
    from minillm_repl.tokenizer import Tokenizer

MAX_TURNS = 1_000  # that can be undone: a session of weeks must not fill the memory


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One prompt, continuation or retry: the text before it, and what the model was given."""

    ids_before: tuple[int, ...]
    messages_before: "tuple[Message, ...]"
    prompt_ids: tuple[int, ...]
    prompt_messages: "tuple[Message, ...]" = ()  # that the model answers; () completes a text
    assistant_prefix: str = ""  # the part of the answer that was there before
    answer_start: int = 0  # where the answer begins; before the end of a prompt that continues one
    seed: int = 0  # of the last try
    seed_setting: int | None = None  # the setting then

    def next_seed(self, setting: int | None) -> int | None:
        """Return the seed of another try under the present setting; None is a random one.

        A seed that was set after the turn is used as it is, unless the turn was sampled with it.
        """
        if setting is None:
            return None
        return (self.seed + 1) % 2**63 if setting in (self.seed_setting, self.seed) else setting


@dataclass(frozen=True)
class Branches:
    """The continuations that `:branch` sampled last."""

    texts: tuple[tuple[int, ...], ...] = ()  # the ids of each, from the start of the text
    prompt_length: int = 0  # tokens that all of them begin with
    seed: int = 0  # of the last one


@dataclass(kw_only=True)
class Conversation:
    """The text so far. What depends on the settings is given them."""

    ids: list[int] = field(default_factory=list)  # all tokens of the text
    messages: "list[Message]" = field(default_factory=list)  # if the model talks in turns
    turns: list[Turn] = field(default_factory=list)
    branches: Branches = Branches()
    turn_end_ids: tuple[int, ...] = ()  # tokens that end an answer, by the chat template
    seed: int = 0  # of the last completion: the same prompt and seed give the same text
    speed: float = 0.0  # tokens per second of the last completion
    attached: list[str] = field(default_factory=list)  # texts of files, before the next prompt

    def clear(self) -> None:
        """Forget the text and its turns."""
        self.ids, self.messages, self.turns, self.branches = [], [], [], Branches()
        self.attached = []

    # -- turns

    def start_chat_turn(
        self, model: LoadedModel, text: str, settings: Settings, *, is_first: bool = False
    ) -> int:
        """Start a turn in which the model answers; return how many of the oldest turns it no
        longer sees. `is_first` begins a new conversation.

        Raises UserError if the chat template refuses the messages, or the text is too long.
        """
        from minillm_repl.chat import Message, fit_messages
        from minillm_repl.repl.thinking import chosen_template, finish_prompt

        context, template = model.decoder.context_length, model.checkpoint.chat_template
        assert template is not None
        template = chosen_template(template, settings)
        system = [Message("system", settings.system)] if settings.system else []
        # The setting of today counts, not the system prompt of the turns before.
        before = [] if is_first else self.messages
        earlier = [message for message in before if message.role != "system"]
        messages = [*system, *earlier, Message("user", text)]
        max_prompt_tokens = context - reserved_answer_tokens(context, settings)
        prompt, kept_messages = fit_messages(
            template, model.checkpoint.tokenizer, messages, max_prompt_tokens, settings.special
        )
        self.turn_end_ids = prompt.eos_token_ids
        ids = finish_prompt(
            template,
            model.checkpoint.tokenizer,
            prompt.ids,
            thinks=settings.think != "off",
            has_format=bool(settings.format),
        )
        self.start_turn(ids, settings, prompt_messages=tuple(kept_messages))
        return (len(messages) - len(kept_messages)) // 2

    def continue_text(self, new_ids: list[int], text: str, settings: Settings) -> None:
        """Start a turn that continues the text, or `text` (its tokens: `new_ids`) after it.

        Raises UserError if there is no text.
        """
        ids = self.ids + new_ids
        if not ids:
            raise UserError(_("no text to continue: type a prompt first"))
        goes_on = bool(self.messages) and self.messages[-1].role == "assistant"
        start = self.turns[-1].answer_start if self.turns and (goes_on or not new_ids) else None
        if goes_on:
            # In a chat, the answer goes on: the messages before it stay, and so does its beginning.
            self.start_turn(
                ids,
                settings,
                prompt_messages=tuple(self.messages[:-1]),
                assistant_prefix=self.messages[-1].content + text,
                answer_start=start,
            )
        else:
            self.start_turn(ids, settings, answer_start=start)

    def start_turn(
        self,
        prompt_ids: list[int],
        settings: Settings,
        *,
        prompt_messages: "tuple[Message, ...]" = (),
        assistant_prefix: str = "",
        answer_start: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Start a turn: the model continues `prompt_ids`.

        The answer begins at their end, if not at `answer_start`. Without `seed`, the seed is that
        of the settings, or a random one.
        """
        self.seed = fresh_seed(settings) if seed is None else seed
        turn = Turn(
            ids_before=tuple(self.ids),
            messages_before=tuple(self.messages),
            prompt_ids=tuple(prompt_ids),
            prompt_messages=prompt_messages,
            assistant_prefix=assistant_prefix,
            answer_start=len(prompt_ids) if answer_start is None else answer_start,
            seed=self.seed,
            seed_setting=settings.seed,
        )
        self.turns.append(turn)
        del self.turns[:-MAX_TURNS]
        self.ids, self.messages = list(prompt_ids), list(prompt_messages)

    def undo(self) -> Turn:
        """Remove the last turn, and return it. Raises UserError if there is none."""
        if not self.turns:
            raise UserError(_("nothing to undo"))
        turn = self.turns.pop()
        self.ids, self.messages = list(turn.ids_before), list(turn.messages_before)
        return turn

    def retry_turn(self, settings: Settings) -> None:
        """Start the last turn again, with another seed. Raises UserError if there is none."""
        if not self.turns:
            raise UserError(_("nothing to regenerate: type a prompt first"))
        turn = self.undo()
        self.start_turn(
            list(turn.prompt_ids),
            settings,
            prompt_messages=turn.prompt_messages,
            assistant_prefix=turn.assistant_prefix,
            answer_start=turn.answer_start,
            seed=turn.next_seed(settings.seed),
        )

    def set_turn_seed(self, seed: int) -> None:
        """Record the last seed of the present turn: a retry uses the next one."""
        self.turns[-1] = replace(self.turns[-1], seed=seed)

    # -- the answer

    def generate(
        self,
        model: LoadedModel,
        settings: Settings,
        interrupted: Callable[[], bool],
        top: int,
    ) -> "Iterator[AnswerEvent]":
        """Continue the text. `ids` is what has been shown, however the generation ends."""
        from minillm_repl.generate import Finished, GenerationConfig, Inserted, Step
        from minillm_repl.generate.detokenizer import text_token_ids
        from minillm_repl.generate.generate import generate
        from minillm_repl.generate.sampling import make_rng
        from minillm_repl.repl.thinking import check_limit, limit_thought, splitter_of

        tokenizer = model.checkpoint.tokenizer
        start, before = len(self.ids), self.answer(tokenizer)
        # `:step` may have chosen tokens of this turn: they used up random numbers and length.
        walked = start - len(self.turns[-1].prompt_ids)
        eos_token_ids = self.eos_token_ids(model)
        config = GenerationConfig(
            max_tokens=max(0, self._max_new_tokens(settings) - walked),
            sampling=settings,
            stop=settings.stop,
            eos_token_ids=eos_token_ids,
            context_shift=not self.turns[-1].prompt_messages,
            n_candidates=top,
            rules=model.token_rules(settings, eos_token_ids),
            answer_start=self.turns[-1].answer_start,
        )

        def run(done: int) -> "Iterator[GenerationEvent]":
            """Continue the text after `done` tokens of this generation."""
            rest = replace(config, max_tokens=max(0, config.max_tokens - done))
            rng = make_rng(self.seed, walked + done)
            return generate(model.decoder, tokenizer, self.ids, rest, rng, interrupted)

        events: Iterator[AnswerEvent]
        if isinstance(settings.think, int) and self.turns[-1].prompt_messages:
            check_limit(self.ids, model.decoder.name)
            events = limit_thought(run, splitter_of(self, tokenizer), settings.think, tokenizer)
        else:
            events = run(0)
        for event in events:
            if isinstance(event, Step):
                self.ids.append(event.id)
            elif isinstance(event, Inserted):
                self.ids.extend(event.ids)
            elif isinstance(event, Finished):
                self.speed = event.tokens / event.seconds if event.seconds else 0.0
                # Neither an end token nor what belongs to a stop string stays in the text.
                self.ids[start:] = text_token_ids(tokenizer, self.ids[start:], event, settings.stop)
                self._record_answer(before + event.text)
            yield event

    def eos_token_ids(self, model: LoadedModel) -> tuple[int, ...]:
        """Return the tokens that end the model's text; in a chat, those that end a turn too."""
        turn_end_ids = self.turn_end_ids if self.turns and self.turns[-1].prompt_messages else ()
        return model.checkpoint.eos_token_ids + turn_end_ids

    def answer(self, tokenizer: "Tokenizer") -> str:
        """Return what the present turn has added to the text so far."""
        tokens = self.ids[len(self.turns[-1].prompt_ids) :]
        added = b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")
        return self.turns[-1].assistant_prefix + added

    def last_text(self, tokenizer: "Tokenizer") -> str:
        """Return the text so far; in a chat, the last message."""
        from minillm_repl.tokenizer import decode

        return self.messages[-1].content if self.messages else decode(tokenizer, self.ids)

    def set_text(self, ids: list[int], tokenizer: "Tokenizer") -> None:
        """Make `ids` the text; it begins with the prompt of the present turn."""
        self.ids = ids
        self._record_answer(self.answer(tokenizer))

    def _record_answer(self, answer: str) -> None:
        from minillm_repl.chat import Message

        if self.turns[-1].prompt_messages:
            self.messages = [*self.turns[-1].prompt_messages, Message("assistant", answer)]

    def _max_new_tokens(self, settings: Settings) -> int:
        answers = bool(self.turns[-1].prompt_messages)
        default = DEFAULT_ANSWER_TOKENS if answers else DEFAULT_COMPLETION_TOKENS
        return settings.max_tokens or default


def is_chatting(model: LoadedModel, setting: bool | None) -> bool:
    """Tell whether a typed text is a message to the model; else the model completes it.

    `setting` is that of `:chat`. Raises UserError if it is on and the model cannot chat.
    """
    has_template = model.checkpoint.chat_template is not None
    if setting and not has_template:
        raise UserError(
            _(
                "{model} has no chat template; with `:chat off` it completes what you type",
                model=model.name,
            )
        )
    return has_template and setting is not False


def reserved_answer_tokens(context: int, settings: Settings) -> int:
    """Return how many tokens of a context a chat leaves free for the answer: a fifth at most."""
    return min(settings.max_tokens or DEFAULT_ANSWER_TOKENS, context // 5)


def fresh_seed(settings: Settings) -> int:
    """Return the seed that is set, or a random one."""
    return secrets.randbelow(2**32) if settings.seed is None else settings.seed
