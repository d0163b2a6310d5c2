'''Texts of several lines between """ and """, alone or after a command: `:system """`.'''

import re
from collections.abc import Iterable, Iterator

BLOCK = '"""'
_OPENED = re.compile(rf'\s*(?P<command>[:/][^"\n]*\s)?{BLOCK}')


def open_block(text: str) -> bool:
    '''Tell whether a text has opened a """ block and not yet closed it.'''
    return bool(_OPENED.match(text)) and text.count(BLOCK) % 2 == 1


def unwrap_block(text: str) -> str:
    '''Return what stands in a """ block, after the command before it; any other text as it is.'''
    opened, end = _OPENED.match(text), text.rstrip()
    if opened and len(end) >= opened.end() + len(BLOCK) and end.endswith(BLOCK):
        return (opened["command"] or "") + end[opened.end() : -len(BLOCK)].strip("\n")
    return text


def joined(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines without their ends, a block of several as one."""
    text = ""
    for line in lines:
        text += line
        if not open_block(text):
            yield unwrap_block(text.rstrip("\r\n"))
            text = ""
    if text:
        yield text
