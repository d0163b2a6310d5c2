"""What a lesson claims of a model: a condition in numbers, computed where the text is shown.

`{prob.1} > 50%` and `p("좋") > p("춥")` are conditions; so is a line of arithmetic, `2*3 - 1 == 5`.
Nothing else of Python can stand in one: no names, no attributes, no other calls.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.lessons import Claim
from minillm_repl.lessons.answers import is_number, parse_number
from minillm_repl.lessons.draw import PLACEHOLDER, unquoted
from minillm_repl.lessons.values import LessonValues
from minillm_repl.safetext import safe_line
from minillm_repl.views.sampler import next_logits

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: math.pow, ast.USub: operator.neg, ast.Not: operator.not_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda part, whole: part in whole,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt, "log2": math.log2, "ln": math.log, "exp": math.exp, "abs": abs,
    "round": round, "min": min, "max": max,
}  # fmt: skip


def claim_values(claim: Claim, values: LessonValues) -> LessonValues | None:
    """Return the values of the text that a claim is about; None if the model cannot read it."""
    return values.about(unquoted(claim.on)) if claim.on else values


def claim_text(claim: Claim, values: LessonValues) -> tuple[str, LessonValues]:
    """Return the Markdown that is true of the open model, and the values for its placeholders."""
    about = claim_values(claim, values)
    if about is None:
        return claim.otherwise, values
    return (claim.text if holds(claim, about) else claim.otherwise), about


def holds(claim: Claim, values: LessonValues) -> bool:
    """Return whether each line of a condition holds. Raises UserError if one is none."""
    return all(bool(_line(line, values)) for line in claim.holds.splitlines() if line.strip())


def _line(line: str, values: LessonValues) -> Any:
    text = PLACEHOLDER.sub(lambda found: _literal(values.value(found[1])), line)
    text = _PERCENT.sub(lambda found: f"({found[1]} / 100)", text)
    functions = _FUNCTIONS | {
        "p": values.next_prob,
        "continues": lambda text: _continues(values, text),
        "near": lambda word: _near(values, word),
    }
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body, functions)
    except (SyntaxError, TypeError, KeyError, ValueError, ArithmeticError, RecursionError):
        raise UserError(
            _("the lesson has a condition that cannot be computed: {line}", line=safe_line(line))
        ) from None


def _continues(values: LessonValues, text: str) -> bool:
    """Return whether the model, at temperature 0, goes on with exactly this text."""
    expected, decoder = values.model.checkpoint.tokenizer.encode(text), values.model.decoder
    before = ([*values.ids, *expected[:place]] for place in range(len(expected)))
    return [int(next_logits(decoder, ids).argmax()) for ids in before] == expected


def _near(values: LessonValues, word: str) -> list[str]:
    """Return a token's neighbours in the unembedding, nearest first, as `:near` shows them."""
    from minillm_repl.views.embedding import compute_near  # takes torch along

    tokenizer = values.model.checkpoint.tokenizer
    (token,) = tokenizer.encode(word)
    view = compute_near(values.model.language_model, tokenizer, [(1, token)])
    return [each.token.text for each in view.output or view.input]


def _literal(value: str) -> str:
    """Return a value as Python writes it: a number, a share of 1 for a percentage, or a text."""
    number = parse_number(value) if is_number(value) else None
    if number is None:
        return repr(value)
    return repr(number / 100 if value.endswith("%") else number)


def _evaluate(node: ast.expr, functions: dict[str, Callable[..., Any]]) -> Any:
    def of(part: ast.expr) -> Any:
        return _evaluate(part, functions)

    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](of(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](of(left), of(right))
        case ast.BoolOp(op=op, values=parts):
            return (all if isinstance(op, ast.And) else any)(of(part) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=others):
            terms = [of(each) for each in (left, *others)]
            pairs = zip(ops, terms, terms[1:], strict=False)
            return all(_OPERATORS[type(op)](a, b) for op, a, b in pairs)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return functions[name](*map(of, args))
    raise TypeError
