'''Texts of several lines between """ and """.'''

from collections.abc import Iterable, Iterator

BLOCK = '"""'


def open_block(text: str) -> bool:
    '''Tell whether a text has opened a """ block and not yet closed it.'''
    return text.lstrip().startswith(BLOCK) and text.count(BLOCK) % 2 == 1


def unwrap_block(text: str) -> str:
    '''Return what stands in a """ block; any other text as it is.'''
    stripped = text.strip()
    if len(stripped) >= 2 * len(BLOCK) and stripped.startswith(BLOCK) and stripped.endswith(BLOCK):
        return stripped[len(BLOCK) : -len(BLOCK)].strip("\n")
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
