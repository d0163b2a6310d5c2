"""What pictures of numbers are made of: shades, bars for and against, strips of tokens."""

import re
from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, MODEL, NEGATIVE, POSITIVE, SPECIAL, TITLE
from minillm_repl.tokenizer import Token

_EIGHTHS = " ▏▎▍▌▋▊▉"  # of a cell

SHADES = " ░▒▓█"
LEVELS = "▁▂▃▄▅▆▇█"
_HEAT = ("", "cyan", "yellow", "bold red")  # colder to hotter; the level says the same
UNLIMITED_WIDTH = 20_000  # cells: a view that is drawn so wide leaves nothing out
MAX_PROSE_WIDTH = 100  # cells: longer lines of words are hard to read
# Digits after the point: a float32 has fewer, so more would show nothing new.
_MAX_DIGITS = 12
MAX_LABEL_WIDTH = 16  # cells of a token in a picture
_COMPONENTS = {  # of a model: the names that views and JSON have, and those on the screen
    "embedding": N_("embedding"),
    "bias": N_("bias"),
    "others": N_("others"),
    "head {n}": N_("head {n}"),
    "attention {n}": N_("L{n} attn"),
    "attention bias {n}": N_("L{n} attn bias"),
    "convolution {n}": N_("L{n} conv"),
    "feed-forward {n}": N_("L{n} mlp"),
    "added after layer {n}": N_("added after layer {n}"),
    # The places in the residual stream have the same names as the parts that end there.
    "{n} attention": N_("L{n} attn"),
    "{n} convolution": N_("L{n} conv"),
    "{n} feed-forward": N_("L{n} mlp"),
    "{n} block": N_("L{n} block"),
}
_LAYER_OR_HEAD = re.compile(r"\d+(\.\d+)?")


def bar(share: float, width: int) -> str:
    """Return a bar of `share` (0 to 1) of `width` cells, an eighth of a cell fine."""
    # Rounded to the nearest eighth: a share that is not 0 can still have no bar.
    full, rest = divmod(round(min(max(share, 0.0), 1.0) * width * 8), 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def shade(share: float) -> str:
    """Return one cell as dark as a share, 0 to 1, is large: a fifth is the first that shows."""
    return SHADES[min(int(max(share, 0.0) * len(SHADES)), len(SHADES) - 1)]


def signed_shade(share: float) -> str:
    """Return two cells: the shade of a share, −1 to 1, and `-` for a share that is negative."""
    # A sign from -0.1 on: the shade alone is blank up to 0.2.
    return shade(abs(share)) + ("-" if share <= -0.1 else shade(abs(share)))


def level(share: float) -> str:
    """Return one cell as high as a share, 0 to 1, is large."""
    return LEVELS[min(int(max(share, 0.0) * len(LEVELS)), len(LEVELS) - 1)]


def heat(share: float) -> str:
    """Return the colour of a share, 0 to 1."""
    return _HEAT[min(int(max(share, 0.0) * len(_HEAT)), len(_HEAT) - 1)]


def token_style(token: Token) -> str:
    """Return the colour of a token: the model's, or that of special ones."""
    return MODEL if token.bytes else SPECIAL


def fit_to_width(text: str, width: int, *, right: bool = False) -> str:
    """Return text as exactly `width` cells; longer text ends in `…`."""
    if cell_len(text) > width:
        # Half a wide character becomes a space, which rstrip removes before the `…`.
        return (
            set_cell_size(set_cell_size(text, width - 1).rstrip() + "…", width)
            if width > 1
            else "…"[:width]
        )
    gap = " " * (width - cell_len(text))
    return gap + text if right else text + gap


def short_label(token: Token, max_width: int = MAX_LABEL_WIDTH) -> Text:
    """Return a token's label in its colour, no longer than `most` cells."""
    return Text(
        fit_to_width(token.label, min(cell_len(token.label), max_width)), token_style(token)
    )


def label_width(tokens: Iterable[Token], min_width: int = 5) -> int:
    """Return how many cells a column of tokens needs."""
    return min(MAX_LABEL_WIDTH, max([min_width, *(cell_len(token.label) for token in tokens)]))


def numbered_label(token: Token, position: int, last_position: int, width: int) -> Text:
    """Return a position and its token, as wide for each position of a text up to the last one."""
    # At least four digits, so that short and long texts have the same columns.
    digits = max(4, len(str(last_position)))
    label = short_label(token)
    label.pad_right(width - label.cell_len + 2)
    return Text.assemble((f"{position:>{digits}}  ", FIGURES), label)


def largest_first(values: Sequence[float]) -> list[int]:
    """Return the indices of values, the largest |value| first."""
    return sorted(range(len(values)), key=lambda index: -abs(values[index]))


def component_name(name: str) -> str:
    """Return the name of a part of the model, `head 2.1`, in the language of the user."""
    which, kind = _LAYER_OR_HEAD.search(name), _LAYER_OR_HEAD.sub("{n}", name)
    assert kind in _COMPONENTS, name
    return _(_COMPONENTS[kind], n=which[0]) if which else _(_COMPONENTS[kind])


def title(text: str, more: str = "") -> Text:
    """Return the first line of a view: what it is, and figures."""
    return Text.assemble((text, TITLE), (f"   {more}" if more else "", FIGURES))


def format_logit(value: float, *, is_difference: bool) -> str:
    """Return a logit, or how far two are apart, as words and a number."""
    return (
        _("logit difference {value:+.3f}", value=value)
        if is_difference
        else _("logit {value:+.3f}", value=value)
    )


def nats(value: float) -> str:
    """Return a divergence: three places, `0` for none at all, `4e-06` for what would be zeros."""
    # 0.0005 is the smallest value that three places do not show as 0.000.
    return "0" if not value else f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"


def signed_bar(value: float, max_abs: float, width: int) -> Text:
    """Return a bar from the middle of `width` cells: to the right for what is positive, to the
    left for the rest.
    """
    half = width // 2
    cells = bar(abs(value) / max_abs if max_abs else 0.0, half)
    if value >= 0:
        return Text.assemble(" " * half, "│", (f"{cells:{half}}", POSITIVE))
    # Unicode has eighths of a block only from the left, so a bar to the left has whole cells.
    full = "█" * round(min(abs(value) / max_abs, 1.0) * half) if max_abs else ""
    return Text.assemble((f"{full:>{half}}", NEGATIVE), "│", " " * half)


def signed_axis(max_abs: float, width: int) -> Text:
    """Return the scale above bars that `signed_bar` draws: its two ends, and 0 in the middle."""
    half = width // 2
    ends = f"{-max_abs:.3g}", f"{max_abs:+.3g}"
    return Text(f"{ends[0]:<{half}}0{ends[1]:>{half}}", FIGURES)


def token_strip(tokens: Sequence[Token], shares: Sequence[float | None], width: int) -> Text:
    """Return tokens in a row, each coloured by its share (0 to 1) and with its level below it.

    None is for a token that has no share.
    """
    # A view that is drawn whole still breaks its running text.
    width = min(width, MAX_PROSE_WIDTH) if width >= UNLIMITED_WIDTH else width
    picture, above, below, used = Text(), Text(), Text(), 0
    for token, share in zip(tokens, shares, strict=True):
        label = (
            token.label
            if cell_len(token.label) <= width - 1
            else fit_to_width(token.label, width - 1)
        )
        cells = cell_len(label)
        if used and used + cells > width:
            picture.append_text(above).append("\n").append_text(below).append("\n")
            above, below, used = Text(), Text(), 0
        above.append(label, FIGURES if share is None else heat(share))
        below.append(
            " " * cells if share is None else level(share) * cells,
            FIGURES if share is None else heat(share),
        )
        used += cells
    return picture.append_text(above).append("\n").append_text(below)


def digits(least: int, agree: Callable[[int], bool]) -> int:
    """Return the fewest digits after the point, from `least` on, with which the numbers agree.

    So a reader can compute the shown numbers from each other.
    """
    return next((count for count in range(least, _MAX_DIGITS) if agree(count)), _MAX_DIGITS)


def is_same(computed: float, real: float, places: int) -> bool:
    """Tell whether a number that was computed from shown numbers is shown as the real one."""
    return f"{computed:+.{places}f}" == f"{real:+.{places}f}"
