"""The figures of an evaluation, from what was found for each item: plain data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from typing import Any

from minillm_repl.evaluation import (
    AnswerResult,
    ChoiceResult,
    Measured,
    Result,
    TextResult,
)
from minillm_repl.evaluation.statistics import (
    Calibration,
    Difference,
    McNemar,
    Rate,
    calibrate,
    mcnemar,
    paired_difference,
    wilson,
)

_LN2 = log(2)
_WORST = 10  # items that are listed


@dataclass(frozen=True, kw_only=True)
class WorstItem:
    """A question that a model gets most wrong."""

    line: int
    prompt: str
    answer: str
    given: str  # what the model takes or writes
    answer_prob: float | None  # of the right choice, among the choices
    given_prob: float | None  # of what it takes, among the choices; of what it writes


@dataclass(frozen=True)
class WorstLine:
    """A line of a text that a model finds most unlikely."""

    line: int
    text: str
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class QuestionFigures:
    """How many questions a model gets right. None is a figure that the kind of question lacks."""

    accuracy: Rate
    per_byte: Rate | None  # of the choice with the highest log-probability per byte
    per_character: Rate | None
    chance: float | None  # the accuracy of a blind guess: the mean of 1 ÷ choices
    calibration: Calibration | None  # of the share of the likeliest choice
    worst: tuple[WorstItem, ...]


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """How unlikely a model finds a text."""

    perplexity: float  # e to the power of the mean over its tokens, in nats
    bits_per_byte: float | None  # None for a text without bytes
    result: TextResult
    worst: tuple[WorstLine, ...]


def question_figures(measured: Sequence[Measured], model: int) -> QuestionFigures:
    """Return the figures of one of the models, over one item or more."""
    results = [each.results[model] for each in measured]
    choices = [each for each in results if isinstance(each, ChoiceResult)]
    count = len(results)
    accuracy = wilson(sum(each.is_right for each in results), count)
    worst = sorted(zip(measured, results, strict=True), key=lambda pair: -pair[1].badness)
    named = tuple(_worst_item(item, each) for item, each in worst[:_WORST] if not each.is_right)
    if not choices:
        return QuestionFigures(
            accuracy=accuracy, per_byte=None, per_character=None, chance=None, calibration=None,
            worst=named,
        )  # fmt: skip
    return QuestionFigures(
        accuracy=accuracy,
        per_byte=wilson(sum(each.picked_per_byte == each.gold for each in choices), count),
        per_character=wilson(
            sum(each.picked_per_character == each.gold for each in choices), count
        ),
        chance=sum(1 / len(each.logprobs) for each in choices) / count,
        calibration=calibrate(
            [max(each.shares) for each in choices], [each.is_right for each in choices]
        ),
        worst=named,
    )


def _worst_item(measured: Measured, result: Result) -> WorstItem:
    item = measured.item
    if isinstance(result, AnswerResult):
        return WorstItem(
            line=item.line, prompt=item.prompt, answer=item.answer, given=result.given,
            answer_prob=None, given_prob=result.prob,
        )  # fmt: skip
    return WorstItem(
        line=item.line, prompt=item.prompt, answer=item.answer, given=item.choices[result.picked],
        answer_prob=result.shares[result.gold], given_prob=result.shares[result.picked],
    )  # fmt: skip


def text_figures(result: TextResult, lines: Sequence[str]) -> TextFigures:
    """Return the figures of a text, of which one token or more was predicted."""
    worst = sorted(result.lines, key=lambda each: -each.bits / each.size)[:_WORST]
    return TextFigures(
        perplexity=exp(min(result.nats / result.tokens, 700.0)),
        bits_per_byte=result.nats / _LN2 / result.size if result.size else None,
        result=result,
        worst=tuple(
            WorstLine(each.line, lines[each.line - 1] if each.line <= len(lines) else "",
                      each.bits / each.size)
            for each in worst
        ),
    )  # fmt: skip


def compare_questions(measured: Sequence[Measured]) -> McNemar:
    """Return the test of two models on the same questions."""
    rights = [[each.results[model].is_right for each in measured] for model in (0, 1)]
    return mcnemar(*rights)


def compare_texts(first: TextResult, second: TextResult) -> Difference | None:
    """Return the difference over the lines of which both predicted the same bytes; None without."""
    theirs = {(each.line, each.size): each.bits for each in second.lines}
    pairs = [
        (each.bits, theirs[each.line, each.size], each.size)
        for each in first.lines
        if (each.line, each.size) in theirs
    ]
    if not pairs:
        return None
    ours, others, sizes = zip(*pairs, strict=True)
    return paired_difference(ours, others, sizes)


def item_data(measured: Measured) -> dict[str, Any]:
    """Return a question and what each model makes of it, as JSON has it."""
    item = measured.item
    results = [
        {**asdict(each), "is_right": each.is_right}
        | ({"picked": each.picked} if isinstance(each, ChoiceResult) else {})
        for each in measured.results
    ]
    data: dict[str, Any] = {"line": item.line, "prompt": item.prompt, "answer": item.answer}
    return data | ({"choices": item.choices} if item.choices else {}) | {"results": results}
