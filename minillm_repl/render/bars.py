"""Bars made of block characters."""

_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int) -> str:
    """Return a bar of `share` (0 to 1) of `width` cells, an eighth of a cell fine."""
    full, rest = divmod(round(min(max(share, 0.0), 1.0) * width * 8), 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")
