'''Texts of several lines between """ and """, alone or after a command: `:system """`.'''

import re
from collections.abc import Iterable, Iterator

TRIPLE_QUOTE = '"""'
_MULTILINE_START = re.compile(rf'\s*(?P<command>[:/][^"\n]*\s)?{TRIPLE_QUOTE}')


def is_multiline_open(text: str) -> bool:
    '''Tell whether a text has opened a """ block and not yet closed it.'''
    return bool(_MULTILINE_START.match(text)) and text.count(TRIPLE_QUOTE) % 2 == 1


def unwrap_multiline(text: str) -> str:
    '''Return what stands in a """ block, after the command before it; any other text as it is.'''
    opened, end = _MULTILINE_START.match(text), text.rstrip()
    if opened and len(end) >= opened.end() + len(TRIPLE_QUOTE) and end.endswith(TRIPLE_QUOTE):
        return (opened["command"] or "") + end[opened.end() : -len(TRIPLE_QUOTE)].strip("\n")
    return text


def join_multiline(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines without their ends, a block of several as one."""
    text = ""
    for line in lines:
        text += line
        if not is_multiline_open(text):
            yield unwrap_multiline(text.rstrip("\r\n"))
            text = ""
    if text:
        yield text
