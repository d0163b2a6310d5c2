"""The curves of `:watch heads`, `:watch lens` and `:watch kl`: during training, and in `:plot`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL
from minillm_repl.render.drawing import component_name, level
from minillm_repl.views.base import View

PROBES = ("heads", "lens", "kl")  # as in training/probes.py, which imports torch
_COLUMNS = (40, 100)  # cells of a plot
_ROWS = 18
_CELLS = 16  # of a curve in a line

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class CurvesView(View):
    """What a probe measured while the model was trained: (step, value) by name.

    Of `heads` a value is a share or a probability, 0 to 1; of `lens` and `kl` it is in nats.
    """

    probe: str
    curves: Mapping[str, Points]
    rows: int = _ROWS
    has_color: bool = True

    def draw(self, width: int) -> Text:
        """Return a curve for each name, with a letter, or for as many as there are letters."""
        from minillm_repl.render.plot import OVERLAY_MARKS, Losses, overlay_plot

        names = _spread(list(self.curves), len(OVERLAY_MARKS))
        runs = [Losses(curve_name(self.probe, name), self.curves[name], ()) for name in names]
        columns = min(max(width, _COLUMNS[0]), _COLUMNS[1])
        plot = overlay_plot(runs, columns, self.rows, self.has_color, unit_name(self.probe))
        if len(names) < len(self.curves):
            told = _("{n} of {all} places", n=len(names), all=len(self.curves))
            plot.append("\n").append(told, FIGURES)
        return plot


def _spread(names: list[str], most: int) -> list[str]:
    """Return at most so many of the names, spread evenly."""
    if len(names) <= most:
        return names
    return [names[round(at * (len(names) - 1) / (most - 1))] for at in range(most)]


def curve_name(probe: str, name: str) -> str:
    """Return what a curve is called on the screen."""
    known = {
        "heads.induction": _("induction"),
        "heads.previous": _("previous token"),
        "heads.copying": _("copying"),
        "kl.start": _("from the start"),
        "kl.before": _("from the last measurement"),
        "lens.embedding": component_name("embedding"),
    }
    found = known.get(f"{probe}.{name}", "")
    # The record is a file's: what is no name of ours is shown as a number of a layer, or not.
    return found or (f"L{int(name)}" if name.isascii() and name.isdigit() else "?")


def unit_name(probe: str) -> str:
    """Return what the values of a probe are."""
    units = {
        "heads": _("share of attention, probability"),
        "lens": _("KL(final ‖ lens), nats"),
        "kl": _("KL(now ‖ then), nats"),
    }
    return units[probe]


def curves_view(probes: Mapping[str, Points], probe: str, rows: int) -> CurvesView:
    """Return the curves of a probe from a training record. Raises UserError without any."""
    curves = {
        name.partition(".")[2]: points
        for name, points in probes.items()
        if name.partition(".")[0] == probe and points
    }
    if not curves:
        raise UserError(
            _(
                "nothing of this was measured while the model was trained: enter `:watch {probe}`, "
                "then `:train`",
                probe=probe,
            )
        )
    return CurvesView(probe, curves, rows)


def lines(
    probes: Mapping[str, Points], names: Sequence[str], best: Mapping[str, str], width: int
) -> list[Text]:
    """Return a line for each probe: each curve so far as levels, and its last value.

    `best` are the heads with the highest scores.
    """
    found = []
    for probe in names:
        curves = {
            name.partition(".")[2]: points
            for name, points in probes.items()
            if name.partition(".")[0] == probe
        }
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(_("watch") + f" {probe}", FIGURES)
        for name in _spread(list(curves), 3):
            line.append(f"  {curve_name(probe, name)} ", FIGURES)
            line.append_text(_curve(curves[name], 1.0 if probe == "heads" else 0.0, width))
            value = curves[name][-1][1]
            line.append(f" {value:.0%}" if probe == "heads" else f" {value:.3f}")
            line.append(f" ({best[name]})" if name in best and probe == "heads" else "", FIGURES)
        found.append(line)
    return found


def _curve(points: Points, top: float, width: int) -> Text:
    """Return a curve as levels, of which the highest is `top`, or the largest value."""
    cells = _CELLS if width >= 100 else _CELLS // 2
    values = [value for _step, value in points]
    chosen = [values[round(at * (len(values) - 1) / max(cells - 1, 1))] for at in range(cells)]
    shown = values if len(values) <= cells else chosen
    highest = top or max(values) or 1.0
    return Text("".join(level(value / highest) for value in shown), MODEL)
