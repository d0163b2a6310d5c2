"""Everything a user can set in a session."""

from dataclasses import dataclass

from minillm_repl.engine.options import Sampling
from minillm_repl.settings import setting, strings, whole

VERBOSE_ROWS = 10  # candidates, when nobody says how many


@dataclass(frozen=True)
class Settings(Sampling):
    """The samplers, and what surrounds them."""

    seed: int | None = setting(
        None,
        whole(0, 2**63 - 1),
        "starts the random numbers anew; the same seed gives the same text",
        words={"random": None},
    )
    max_tokens: int = setting(100, whole(1), "how many tokens a completion has at most", unit="tokens", aliases=("n",))
    stop: tuple[str, ...] = setting(
        (), strings, "a completion ends before any of these texts", metavar="TEXT", words={"off": ()}
    )
    verbose: int = setting(
        0,
        whole(0, 1000),
        "show a table of the K likeliest next tokens at each step",
        unit="rows",
        metavar="K",
        words={"off": 0, "on": VERBOSE_ROWS},
    )


def samplers_text(settings: Sampling) -> str:
    """Return which samplers are on, for the heading of the probabilities after them: `after temp 0.8, top-k 4`."""
    from minillm_repl.engine.sampling import stages

    if settings.temp == 0:
        return "temp 0: the likeliest"
    names = [name for name, _ in stages(settings, ())]
    values = [f"{name} {getattr(settings, name.replace('-', '_')):g}" for name in names]
    return "after " + ", ".join(values) if values else "drawn from"
