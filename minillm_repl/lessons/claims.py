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
from minillm_repl.lessons import Claim, Exercise
from minillm_repl.lessons.answers import is_number, parse_number
from minillm_repl.lessons.draw import PLACEHOLDER, fill_placeholders, unquoted
from minillm_repl.lessons.experiments import experiments
from minillm_repl.lessons.model_values import NO_VALUE
from minillm_repl.lessons.values import LessonValues
from minillm_repl.safetext import safe_line

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


def _equal(a: Any, b: Any) -> bool:
    """Return whether values are equal; numbers but for the rounding of floats."""
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) if numbers else bool(a == b)


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: math.pow, ast.USub: operator.neg, ast.Not: operator.not_,
    ast.Eq: _equal, ast.NotEq: lambda a, b: not _equal(a, b),
    ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda part, whole: part in whole,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt, "log2": math.log2, "ln": math.log, "exp": math.exp, "abs": abs,
    "round": round, "min": min, "max": max,
}  # fmt: skip


def claim_values(claim: Claim, values: LessonValues) -> LessonValues | None:
    """Return the values of the text that a claim is about; None if the model cannot read it."""
    if not claim.on:
        return values
    return values.about(fill_placeholders(unquoted(claim.on), values.value))


def claim_text(claim: Claim, values: LessonValues) -> tuple[str, LessonValues]:
    """Return the Markdown that is true of the open model, and the values for its placeholders."""
    about = claim_values(claim, values)
    if about is None:
        return claim.otherwise, values
    return (claim.text if holds(claim, about) else claim.otherwise), about


def holds(claim: Claim, values: LessonValues) -> bool:
    """Return whether each line of a condition holds. Raises UserError if one is none."""
    return all(bool(_line(line, values)) for line in claim.holds.splitlines() if line.strip())


def is_true(exercise: Exercise, values: LessonValues) -> bool:
    """Return whether what an exercise says holds. Raises UserError if its condition is none."""
    condition = getattr(exercise, "holds", "")
    return not condition or holds(Claim(holds=condition), values)


def _line(line: str, values: LessonValues) -> Any:
    found = {name: values.value(name) for name in PLACEHOLDER.findall(line)}
    if NO_VALUE in found.values():
        return False  # what cannot be computed is not claimed
    text = PLACEHOLDER.sub(lambda name: _literal(found[name[1]]), line)
    text = _PERCENT.sub(lambda found: f"({found[1]} / 100)", text)
    functions = _FUNCTIONS | experiments(values)
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body, functions)
    except (SyntaxError, TypeError, KeyError, ValueError, ArithmeticError, RecursionError):
        raise UserError(
            _("the lesson has a condition that cannot be computed: {line}", line=safe_line(line))
        ) from None


def _literal(value: str) -> str:
    """Return a value as Python writes it: a number, a share of 1 for a percentage, or a text."""
    value = value.removeprefix("<")  # `<0.1%`: no claim is as fine as that
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
