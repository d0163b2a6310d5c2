"""What a learner does in a lesson or a quiz.

Each exercise is a generator: it yields what it waits for, is sent a line, and returns whether the
answer was right: None where there is no right and wrong, or no answer was given.
"""

import random
import re
from collections.abc import Generator
from dataclasses import dataclass
from math import log2
from typing import Literal

from rich.text import Text

from minillm_repl.language import _
from minillm_repl.lessons.blocks import Ask, Choose, Exercise, Explain, Guess, Order, Try
from minillm_repl.lessons.draw import Led, Prose, answers, filled, verdict
from minillm_repl.lessons.values import Facts
from minillm_repl.render.console import FIGURES, MODEL
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Token, decode

_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?|[-+−]?\.\d+")
# what `3 피드포워드` is not: another name with a 3 is another one
_BARE = re.compile(rf"(?:{_NUMBER.pattern})\s*%?")


@dataclass(frozen=True)
class Wait:
    """What a lesson waits for: Enter, an answer, or a line that is run before the lesson is told
    of it.
    """

    kind: Literal["enter", "answer", "try"]
    expected: str = ""  # what `--auto` types; for `try` what an empty Enter does, too
    prompt: bool = False  # that is a prompt, whatever it looks like: a model may have made it
    hint: str = ""


Steps = Generator[Wait, str, bool | None]


def exercise(shell: Shell, facts: Facts, block: Exercise) -> Steps:
    """Let the learner answer a question."""
    match block:
        case Ask():
            return (yield from _ask(shell, facts, block))
        case Choose():
            return (yield from _choose(shell, facts, block))
        case Order():
            return (yield from _order(shell, facts, block))
        case Explain():
            return (yield from _explain(shell, facts, block))


def attempt(shell: Shell, facts: Facts, block: Try) -> Steps:
    """Let the learner do something at the prompt; what was typed has run when it is sent."""
    shell.screen.out.print(Led("▸ ", block.task, facts.value))
    do = filled(block.do, facts.value)
    hint = _("type it, or Enter: {line}", line=safe_line(do))
    line = yield Wait("try", do, not block.do.startswith(":"), hint)
    done = (
        not line.strip()
        or _same_kind(shell, line, do)
        or bool(block.match and re.search(block.match, line))
    )
    return done


def guess(shell: Shell, block: Guess, text: str) -> Steps:
    """Play the guessing game: the learner bets half of all belief on one token, and the model
    has its probabilities.
    """
    from minillm_repl.generate.next_token import next_logits
    from minillm_repl.generate.sampling import LN2, softmax

    model, out = shell.model(), shell.screen.out
    tokenizer, vocabulary = model.checkpoint.tokenizer, model.checkpoint.config.vocab
    ids = tokenizer.encode(text)
    start = max(1, min(len(ids) // 3, len(ids) - block.rounds))
    mine = models = 0.0
    played = 0
    bet = Prose(
        _(
            "You bet half of your belief on what you type; the other half is spread over all "
            "the others. A hit costs"
            " **1 bit**, a miss **{miss} bits**. The model pays −log2 of the probability "
            "that it gave.",
            miss=f"{1 + log2(max(vocabulary - 1, 1)):.2f}",
        ),
        lambda name: name,
    )
    out.print(bet)
    for place in range(start, min(start + block.rounds, len(ids))):
        log_probabilities = softmax(next_logits(model.decoder, ids[:place], shell.interrupted))[1]
        answer = Token.of(tokenizer, ids[place])
        out.print(Text.assemble((safe_line(decode(tokenizer, ids[:place])), MODEL), "▁"))
        line = yield Wait("answer", answer.text, hint=_("what comes next?"))
        hit = bool(line) and answer.text in (line, line.strip() or " ", " " + line.strip())
        cost = 1.0 if hit else 1 + log2(max(vocabulary - 1, 1))
        model_cost = -float(log_probabilities[ids[place]]) / LN2
        mine, models, played = mine + cost, models + model_cost, played + 1
        said = _(
            "{token} · you {mine:.2f} bits · the model {models:.2f} bits",
            token=answer.label,
            mine=cost,
            models=model_cost,
        )
        out.print(Text.assemble(verdict(hit), "  ", said))
    if played:
        out.print(
            Text(
                _(
                    "together: you {mine:.1f} bits, the model {models:.1f} bits; a blind "
                    "guess costs {blind:.1f}",
                    mine=mine,
                    models=models,
                    blind=played * log2(vocabulary),
                )
            )
        )
    return None


def _ask(shell: Shell, facts: Facts, block: Ask) -> Steps:
    shell.screen.out.print(Prose(block.question, facts.value))
    wanted = [filled(each.strip(), facts.value) for each in block.answer.split(" | ")]
    line = yield Wait("answer", wanted[0], hint=_("your answer; Enter shows it"))
    right = any(_equal(line, answer, block.within) for answer in wanted) if line.strip() else None
    reaction = block.right if right else block.wrong
    shell.screen.out.print(Text.assemble(verdict(right), "  ", (wanted[0], MODEL)))
    if reaction:
        shell.screen.out.print(Prose(reaction, facts.value))
    return right


def _choose(shell: Shell, facts: Facts, block: Choose) -> Steps:
    out = shell.screen.out
    out.print(Prose(block.question, facts.value))
    out.print(answers([option.text for option in block.options], facts.value))
    right_ones = [
        number
        for number, option in enumerate(block.options, 1)
        if option.right == "x" or (option.right.startswith("if ") and facts.holds(option.right[3:]))
    ]
    line = yield Wait(
        "answer", str(right_ones[0] if right_ones else 1), hint=_("the number of your answer")
    )
    right = line.strip() in map(str, right_ones) if line.strip() else None
    out.print(verdict(right))
    reasons = [
        ("✓ " if number in right_ones else "✗ ") + f"**{option.text}**: {option.why}"
        for number, option in enumerate(block.options, 1)
    ]
    out.print(answers(reasons, facts.value))
    return right


def _order(shell: Shell, facts: Facts, block: Order) -> Steps:
    out, count = shell.screen.out, len(block.steps)
    shuffled = list(range(count))
    random.Random(block.question).shuffle(shuffled)  # noqa: S311 - the same each time: nobody is to be surprised
    out.print(Prose(block.question, facts.value))
    out.print(answers([block.steps[each] for each in shuffled], facts.value))
    order = " ".join(str(shuffled.index(place) + 1) for place in range(count))
    line = yield Wait("answer", order, hint=_("the numbers in the right order: 3 1 2"))
    right = re.findall(r"\d+", line) == order.split() if line.strip() else None
    out.print(Text.assemble(verdict(right), "  ", (order, MODEL)))
    out.print(answers(list(block.steps), facts.value))
    if block.why:
        out.print(Prose(block.why, facts.value))
    return right


def _explain(shell: Shell, facts: Facts, block: Explain) -> Steps:
    out = shell.screen.out
    out.print(Prose(block.question, facts.value))
    line = yield Wait(
        "answer",
        filled(block.answer, facts.value).replace("\n", " "),
        hint=_("say it in a sentence of your own"),
    )
    out.print(Text(_("One way to say it:"), FIGURES))
    out.print(Prose(block.answer, facts.value))
    if not line.strip():
        return None
    said = yield Wait("answer", "y", hint=_("does yours say the same? y or n"))
    return (
        None
        if not said.strip()
        else said.strip().lower()[:1] in ("y", "예", "네", "응", "ㅇ", "ㅛ")
    )


def _same_kind(shell: Shell, line: str, do: str) -> bool:
    """Tell whether two lines run the same command, or are both prompts."""

    def kind(text: str) -> str:
        word = text[1:].split(maxsplit=1)[:1]
        known = shell.is_command(text) and word and shell.registry.known(word[0])
        return shell.registry.get(word[0]).name if known else ":" if shell.is_command(text) else ""

    return kind(line) == kind(do)


def _equal(line: str, answer: str, within: str) -> bool:
    """Tell whether an answer is the right one: numbers as far as they are shown, or as near as
    `within` says.
    """
    said, wanted = _number(line), _number(answer)
    if said is None or wanted is None or not _BARE.fullmatch(answer.strip()):
        return _plain(line) == _plain(answer)
    # what is shown of it
    near = 0.501 * 10.0 ** -len(answer.split(maxsplit=1)[0].partition(".")[2].rstrip("%"))
    if within:
        near = max(near, abs(wanted) * float(within.rstrip("% ")) / 100)
    return abs(said - wanted) <= near


def _number(text: str) -> float | None:
    """Return the number that a text is, a unit behind it or not."""
    found = _NUMBER.match(text.strip())
    rest = text.strip()[found.end() :].strip() if found else ""
    if not found or len(rest) > 6 or any(character.isdigit() for character in rest):
        return None
    return float(found[0].replace(",", "").replace("−", "-"))


def _plain(text: str) -> str:
    return " ".join(text.replace("␣", " ").casefold().strip(" .,!?:'\"`").split())
