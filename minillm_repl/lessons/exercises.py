"""The exercises of a lesson or a quiz.

Each is a generator. It yields what it waits for, is sent a line, and returns whether the answer was
right; None if there is no right and wrong, or no answer was given.
"""

import random
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import log2
from typing import Literal

from rich.text import Text

from minillm_repl.language import _
from minillm_repl.lessons import AnswerOption, Ask, Choose, Exercise, Explain, Guess, Order, Try
from minillm_repl.lessons.answers import (
    is_correct,
    is_number,
    parse_choice,
    parse_number,
    parse_order,
    parse_yes,
)
from minillm_repl.lessons.draw import (
    LessonMarkdown,
    PrefixedMarkdown,
    fill_placeholders,
    numbered_answers,
    verdict,
)
from minillm_repl.lessons.values import LessonValues
from minillm_repl.render.console import FIGURES, MODEL, WARNING
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Token, decode


@dataclass(frozen=True)
class InputRequest:
    """What a lesson waits for: Enter, an answer, or a line that is run first."""

    kind: Literal["enter", "answer", "try"]
    expected: str = ""  # what `--auto` types; for `try` what an empty Enter does, too
    is_prompt: bool = False  # that is a prompt, whatever it looks like: a model may have made it
    hint: str = ""


ExerciseSteps = Generator[InputRequest, str, bool | None]


def run_exercise(shell: Shell, facts: LessonValues, block: Exercise) -> ExerciseSteps:
    """Ask a question of any kind. Return whether the answer was right; None without an answer."""
    match block:
        case Ask():
            return (yield from _run_ask(shell, facts, block))
        case Choose():
            return (yield from _run_choose(shell, facts, block))
        case Order():
            return (yield from _run_order(shell, facts, block))
        case Explain():
            return (yield from _run_explain(shell, facts, block))


def run_try(shell: Shell, facts: LessonValues, block: Try) -> ExerciseSteps:
    """Let the learner do a task at the prompt; the line that is sent has already run."""
    shell.screen.out.print(PrefixedMarkdown("▸ ", block.task, facts.value))
    do = fill_placeholders(block.do, facts.value)
    hint = _("type it, or press Enter: {line}", line=safe_line(do))
    line = yield InputRequest("try", do, not block.do.startswith(":"), hint)
    done = (
        # After an empty Enter, the runner has run `do` itself.
        not line.strip()
        or _is_same_command(shell, line, do)
        or bool(block.match and re.search(block.match, line))
    )
    return done


def run_guess(shell: Shell, block: Guess, text: str) -> ExerciseSteps:
    """Play the guessing game: the learner puts half of the probability on one token; the model has
    its own probabilities.
    """
    from minillm_repl.generate.sampling import LN2, softmax
    from minillm_repl.views.sampler import next_logits

    model, out = shell.require_model(), shell.screen.out
    tokenizer, vocabulary = model.checkpoint.tokenizer, model.checkpoint.config.vocab_size
    ids = tokenizer.encode(text)
    # A third of the text is given, or less, so that all rounds find a token to guess.
    start = max(1, min(len(ids) // 3, len(ids) - block.rounds))
    mine = models = 0.0
    played = 0
    bet = LessonMarkdown(
        _(
            "You put half of the probability on your answer; the other half is spread over "
            "all other tokens. A hit costs **1 bit**, a miss **{miss} bits**. The model "
            "pays the same way: 1 bit for each halving of the probability that it gave.",
            miss=f"{1 + log2(max(vocabulary - 1, 1)):.2f}",
        ),
        # `miss` is filled already: the text has no placeholder of a lesson.
        lambda name: name,
    )
    out.print(bet)
    rounds = min(block.rounds, len(ids) - start)
    for place in range(start, start + rounds):
        log_probabilities = softmax(next_logits(model.decoder, ids[:place], shell.interrupted))[1]
        answer = Token.from_id(tokenizer, ids[place])
        out.print(Text.assemble((safe_line(decode(tokenizer, ids[:place])), MODEL), "▁"))
        hint = _("which token comes next? ({n} of {all})", n=played + 1, all=rounds)
        line = yield InputRequest("answer", answer.text, hint=hint)
        # The space of a token such as `␣the` is easily forgotten, or typed after a word.
        is_right = bool(line) and answer.text in (line, line.strip() or " ", " " + line.strip())
        # The answer has half of the probability: 1 bit. The other tokens share the other half.
        cost = 1.0 if is_right else 1 + log2(max(vocabulary - 1, 1))
        # softmax returns natural logarithms; division by ln 2 gives bits.
        model_cost = -float(log_probabilities[ids[place]]) / LN2
        mine, models, played = mine + cost, models + model_cost, played + 1
        result = _(
            "you {mine:.2f} bits · the model {models:.2f} bits", mine=cost, models=model_cost
        )
        out.print(verdict(is_right, answer.label).append(f" · {result}", style="default"))
    if played:
        out.print(
            Text(
                _(
                    "total: you {mine:.1f} bits, the model {models:.1f} bits; a uniform "
                    "guess {blind:.1f}",
                    mine=mine,
                    models=models,
                    blind=played * log2(vocabulary),
                )
            )
        )
    return None


def _wait_for_answer(
    shell: Shell, request: InputRequest, judge: Callable[[str], bool | None], what: str
) -> ExerciseSteps:
    """Wait for an answer. Return whether it was right; None if none was given.

    What `judge` takes for no answer (None) is asked for again, told that it is to be `what`. After
    a wrong answer there is a second try.
    """
    out, wrong = shell.screen.out, False
    while True:
        line = yield request
        if not line.strip():
            return False if wrong else None
        right = judge(line)
        if right is None:
            out.print(Text(_("that is no answer yet: {what}", what=what), FIGURES))
        elif right or wrong:
            return right
        else:
            wrong = True
            out.print(Text("✗ " + _("not yet: try once more, or press Enter"), WARNING))


def _run_ask(shell: Shell, facts: LessonValues, block: Ask) -> ExerciseSteps:
    shell.screen.out.print(LessonMarkdown(block.question, facts.value))
    accepted = [fill_placeholders(each.strip(), facts.value) for each in block.answer.split(" | ")]

    def judge(line: str) -> bool | None:
        if any(is_correct(line, answer, block.within) for answer in accepted):
            return True
        # A number is asked for: a word that is none is no answer.
        return None if is_number(accepted[0]) and parse_number(line) is None else False

    hint = _("type your answer; Enter alone shows it")
    right = yield from _wait_for_answer(
        shell, InputRequest("answer", accepted[0], hint=hint), judge, _("a number is asked for")
    )
    shell.screen.out.print(verdict(right, accepted[0]))
    reaction = block.right if right else block.wrong
    if reaction:
        shell.screen.out.print(LessonMarkdown(reaction, facts.value))
    return right


def _run_choose(shell: Shell, facts: LessonValues, block: Choose) -> ExerciseSteps:
    out, count = shell.screen.out, len(block.options)
    out.print(LessonMarkdown(block.question, facts.value))
    out.print(numbered_answers([option.text for option in block.options], facts.value))
    # Which answer is right may depend on the open model: `[if rotary]`.
    right_ones = [
        number for number, option in enumerate(block.options, 1) if is_right(option, facts)
    ]

    def judge(line: str) -> bool | None:
        number = parse_choice(line, count)
        return None if number is None else number in right_ones

    # `--auto` needs an answer to type, also where no option holds for the open model.
    expected = str(right_ones[0] if right_ones else 1)
    hint = _("type the number of your answer")
    what = _("a number from 1 to {n}", n=count)
    right = yield from _wait_for_answer(
        shell, InputRequest("answer", expected, hint=hint), judge, what
    )
    out.print(verdict(right))
    reasons = [
        ("✓ " if number in right_ones else "✗ ") + f"**{option.text}**: {option.why}"
        for number, option in enumerate(block.options, 1)
    ]
    out.print(numbered_answers(reasons, facts.value))
    return right


def _run_order(shell: Shell, facts: LessonValues, block: Order) -> ExerciseSteps:
    out, count = shell.screen.out, len(block.steps)
    shuffled = shuffled_steps(block)
    out.print(LessonMarkdown(block.question, facts.value))
    out.print(numbered_answers([block.steps[each] for each in shuffled], facts.value))
    # `shuffled` has the true place of each shown step; the answer is its inverse permutation.
    order = [shuffled.index(place) + 1 for place in range(count)]
    expected = " ".join(map(str, order))

    def judge(line: str) -> bool | None:
        given = parse_order(line, count)
        return None if given is None else given == order

    hint = _("type the numbers in the right order, such as 3 1 2")
    what = _("each number from 1 to {n} once", n=count)
    right = yield from _wait_for_answer(
        shell, InputRequest("answer", expected, hint=hint), judge, what
    )
    out.print(verdict(right, expected))
    out.print(numbered_answers(list(block.steps), facts.value))
    if block.why:
        out.print(LessonMarkdown(block.why, facts.value))
    return right


def is_right(option: AnswerOption, facts: LessonValues) -> bool:
    """Return whether an answer is right for the open model."""
    right = option.right
    return right == "x" or (right.startswith("if ") and facts.holds(right[3:]))


def shuffled_steps(block: Order) -> list[int]:
    """Return the places of the steps as they are shown, counted from 0."""
    shuffled = list(range(len(block.steps)))
    # The same each time: nobody is to be surprised.
    random.Random(block.question).shuffle(shuffled)  # noqa: S311
    return shuffled


def _run_explain(shell: Shell, facts: LessonValues, block: Explain) -> ExerciseSteps:
    out = shell.screen.out
    out.print(LessonMarkdown(block.question, facts.value))
    line = yield InputRequest(
        "answer",
        fill_placeholders(block.answer, facts.value).replace("\n", " "),
        hint=_("answer in your own words"),
    )
    out.print(Text(_("A possible answer:"), FIGURES))
    out.print(LessonMarkdown(block.answer, facts.value))
    if not line.strip():
        return None
    hint = _("does your answer say the same? y or n")
    while (said := (yield InputRequest("answer", "y", hint=hint))).strip():
        same = parse_yes(said)
        if same is not None:
            return same
        out.print(Text(_("that is no answer yet: {what}", what="y, n"), FIGURES))
    return None


def _is_same_command(shell: Shell, line: str, do: str) -> bool:
    """Return whether two lines run the same command, or are both prompts."""

    def kind(text: str) -> str:
        # An alias becomes the name of its command, an unknown command `:`, a prompt nothing.
        word = text[1:].split(maxsplit=1)[:1]
        known = shell.is_command(text) and word and shell.registry.has(word[0])
        return shell.registry.get(word[0]).name if known else ":" if shell.is_command(text) else ""

    return kind(line) == kind(do)
