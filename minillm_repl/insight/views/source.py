"""The program's own code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceView:
    """One part of the program, as it is written."""

    part: str  # what it is asked for by
    file: str  # in this package
    line: int  # where it begins, from 1
    summary: str  # the first line of its docstring
    code: str
    sized: bool = False  # whether the shapes in its comments are those of a text


@dataclass(frozen=True)
class SourcesView:
    """All parts that can be shown."""

    parts: tuple[SourceView, ...]
