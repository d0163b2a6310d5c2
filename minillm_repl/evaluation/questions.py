"""Measures models on questions: the probabilities of choices, or the answer that a model writes."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence

from minillm_repl.chat import Message, Prompt, make_prompts
from minillm_repl.errors import UserError
from minillm_repl.evaluation import (
    AnswerResult,
    BadLine,
    ChoiceResult,
    Item,
    ItemError,
    Measured,
    Result,
    Subject,
)
from minillm_repl.generate import Finished, GenerationConfig, Sampling, Step
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

_MAX_NAMED = 8  # characters that an error names
_BATCH = 32  # prompts that a chat template renders in one process
Interrupted = Callable[[], bool]


def measure_questions(
    subjects: Sequence[Subject],
    items: Sequence[Item],
    interrupted: Interrupted,
    *,
    space: bool = True,
    max_tokens: int = 64,
) -> Iterator[Measured | BadLine]:
    """Yield what each model makes of each item; an item that one of them cannot read is bad.

    `space` puts a space between prompt and choice where neither has one. Raises UserError after
    Ctrl-C; what was yielded before stays good.
    """
    for item, prompts in _with_prompts(subjects, items):
        if interrupted():
            raise UserError(_("stopped"))
        results = list[Result]()
        try:
            for subject, prompt in zip(subjects, prompts, strict=True):
                if isinstance(prompt, ItemError):
                    raise prompt
                results.append(
                    score_choices(subject, item, prompt, interrupted, space=space)
                    if item.choices
                    else answer(subject, item, prompt, interrupted, max_tokens)
                )
        except ItemError as error:
            yield BadLine(item.line, str(error))
        else:
            yield Measured(item, tuple(results))


ChatPrompt = Prompt | ItemError | None
"""A prompt through a chat template, or why there is none; None for a text that is continued."""


def _with_prompts(
    subjects: Sequence[Subject], items: Sequence[Item]
) -> Iterator[tuple[Item, tuple[ChatPrompt, ...]]]:
    """Yield each item with its prompt for each model; a template renders several at once."""
    for first in range(0, len(items), _BATCH):
        batch = items[first : first + _BATCH]
        prompts = [chat_prompts(subject, batch) for subject in subjects]
        yield from zip(batch, zip(*prompts, strict=True), strict=True)


def chat_prompts(subject: Subject, items: Sequence[Item]) -> list[ChatPrompt]:
    """Return the prompt of each item as the message of a user to a model that chats."""
    template, tokenizer = subject.template, subject.checkpoint.tokenizer
    if template is None:
        return [None] * len(items)
    system = [Message("system", subject.system)] if subject.system else []
    talks = [[*system, Message("user", item.prompt)] for item in items]
    try:
        return [*make_prompts(template, tokenizer, talks, subject.parse_special)]
    except UserError as error:
        if len(items) == 1:
            return [ItemError(str(error))]
        # The template refuses one of them: which one?
        return [prompt for item in items for prompt in chat_prompts(subject, [item])]


def score_choices(
    subject: Subject,
    item: Item,
    chat: Prompt | None,
    interrupted: Interrupted,
    *,
    space: bool = True,
) -> ChoiceResult:
    """Return the log-probability of each choice after the prompt. Raises ItemError, UserError.

    The prompt is read once: the decoder keeps it.
    """
    logprobs, greedy = list[float](), list[bool]()
    for choice in item.choices:
        check_readable(subject, item.prompt + choice)
        start, ids = (
            continue_text(subject, item.prompt, choice, space=space)
            if chat is None
            else (len(chat.ids), [*chat.ids, *_choice_ids(subject, choice)])
        )
        _check_fits(subject, len(ids) - 1)
        scores = list(subject.decoder.score(ids, start, 0, interrupted))
        logprobs.append(sum(each.logprob for each in scores))
        greedy.append(all(each.rank == 1 for each in scores))
    return ChoiceResult(
        line=item.line,
        gold=item.gold,
        logprobs=tuple(logprobs),
        greedy=tuple(greedy),
        sizes=tuple(len(choice.encode()) for choice in item.choices),
        lengths=tuple(map(len, item.choices)),
    )


def continue_text(
    subject: Subject, prompt: str, choice: str, *, space: bool = True
) -> tuple[int, list[int]]:
    """Return the ids of a prompt and a choice, and how many of them are the prompt's.

    As lm-eval does it: spaces at the end of the prompt belong to the choice, and both are
    tokenized together. Raises ItemError if nothing is left of the choice.
    """
    tokenizer, special = subject.checkpoint.tokenizer, subject.parse_special
    if space and prompt and not prompt[-1].isspace() and not choice[0].isspace():
        choice = " " + choice
    stripped = prompt.rstrip()
    choice = prompt[len(stripped) :] + choice
    if stripped:
        context = tokenizer.encode(stripped, parse_special=special)
        whole = tokenizer.encode(stripped + choice, parse_special=special)
        continuation = whole[len(context) :]
    else:
        context = list(subject.start_ids)
        continuation = subject.encode_start(choice)
    if not context:
        raise ItemError(_("the prompt is empty, and the model has no start token"))
    if not continuation:
        raise ItemError(_("a choice has no token of its own after the prompt"))
    return len(context), [*context, *continuation]


def _choice_ids(subject: Subject, choice: str) -> list[int]:
    ids = subject.checkpoint.tokenizer.encode(
        choice, add_special=False, parse_special=subject.parse_special
    )
    if not ids:
        raise ItemError(_("a choice has no token of its own after the prompt"))
    return ids


def answer(
    subject: Subject,
    item: Item,
    chat: Prompt | None,
    interrupted: Interrupted,
    max_tokens: int = 64,
) -> AnswerResult:
    """Return the greedy answer of a model. Raises ItemError, UserError.

    A text that is continued ends at the first line break. The answer is right if it is the text of
    the file, apart from spaces around it.
    """
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.sampling import make_rng

    check_readable(subject, item.prompt)
    tokenizer, ends = subject.checkpoint.tokenizer, subject.checkpoint.eos_token_ids
    if chat:
        ids, ends = chat.ids, ends + chat.eos_token_ids
    else:
        ids = tokenizer.encode(item.prompt, parse_special=subject.parse_special)
        ids = ids or list(subject.start_ids)
    if not ids:
        raise ItemError(_("the prompt is empty, and the model has no start token"))
    _check_fits(subject, len(ids))
    config = GenerationConfig(
        max_tokens=max_tokens,
        sampling=Sampling(temp=0),
        stop=() if chat else ("\n",),
        eos_token_ids=ends,
        context_shift=False,
    )
    prob: float | None = 1.0
    for event in generate(subject.decoder, tokenizer, ids, config, make_rng(0), interrupted):
        if isinstance(event, Step):
            prob = None if prob is None or event.model_prob is None else prob * event.model_prob
        elif isinstance(event, Finished):
            if event.reason == "interrupt":
                break
            given = event.text.strip()
            return AnswerResult(
                line=item.line,
                given=given,
                is_right=_normal(given) == _normal(item.answer),
                prob=prob,
            )
    raise UserError(_("stopped"))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def check_readable(subject: Subject, text: str) -> None:
    """Raise ItemError for a text that the vocabulary cannot write: another would be measured."""
    unknown = subject.checkpoint.tokenizer.find_unknown(text)
    if unknown:
        named = ", ".join(map(safe_line, unknown[:_MAX_NAMED]))
        raise ItemError(_("the vocabulary of {name} lacks {characters}",
                          name=subject.name, characters=named))  # fmt: skip


def _check_fits(subject: Subject, tokens: int) -> None:
    context = subject.decoder.context_length
    if tokens > context:
        raise ItemError(
            _("{count:,} tokens are more than the context of {context:,}",
              count=tokens, context=context)
        )  # fmt: skip
