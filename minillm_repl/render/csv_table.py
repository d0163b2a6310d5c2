"""The numbers of a view as CSV: a row for each element of its table, flat; names as in its JSON."""

import csv
import io
import json
from typing import Any

Row = dict[str, Any]
# A spreadsheet takes a cell that begins with one of these for a formula, which can run programs;
# the wide forms are those of a Korean keyboard.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def plain_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: some begin with an apostrophe."""
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text[:1] in _FORMULA else text


def csv_text(fields: Row, table: tuple[str, ...] = ()) -> str:
    """Return the table of a view, of its JSON-ready fields, as CSV; empty if it has none.

    The rows are the elements of the lists of objects; where there are several such lists, the
    first column, `list`, names that of a row. A view whose table is something else names the fields
    that stand side by side in `table`. What is inside an element has its path as its name:
    `token.text`, `top.0.prob`. The bytes of a token are a JSON list in one cell.
    """
    rows = _side_by_side(fields, table) if table else _elements(fields)
    if not rows:
        return ""
    names = dict.fromkeys(name for row in rows for name in row)  # in the order of their appearance
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _elements(fields: Row) -> list[Row]:
    """Return a row for each element of the lists of objects, but for the tokens of the text."""
    lists = {name: value for name, value in fields.items() if _is_table(value)}
    rows = []
    for name, value in lists.items():
        which = {"list": name} if len(lists) > 1 else {}
        rows += [{**which, **_flat(each)} for each in value]
    return rows


def _is_table(value: object) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return "bytes" not in value[0] or "id" not in value[0]


def _side_by_side(fields: Row, names: tuple[str, ...]) -> list[Row]:
    """Return the rows of lists that belong together, from their ends: tokens and their numbers."""
    if len(names) == 1:
        return [_flat(each) for each in fields[names[0]]]
    columns = [fields[name] for name in names if fields[name]]
    length = min(map(len, columns), default=0)
    return [
        _flat({name: fields[name][at - length] for name in names if fields[name]})
        for at in range(length)
    ]


def _flat(value: Any, path: str = "") -> Row:
    """Return an object as one row; a list inside has a column for each element."""
    if path.endswith("bytes") and isinstance(value, list):
        return {path: json.dumps(value)}
    if not isinstance(value, dict | list):
        return {path: plain_cell(value) if isinstance(value, str) else value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    row: Row = {}
    for name, each in items:
        row |= _flat(each, f"{path}.{name}" if path else str(name))
    return row
