"""What a step says of its numbers: all of them, or what a server tells, and how much that is."""

from math import isfinite, log2

from minillm_repl.generate import Candidate, FormatMask, Listing, Step
from minillm_repl.language import _
from minillm_repl.safetext import safe_line, show_token
from minillm_repl.tokenizer import FIRST_OWN_ID

_MIN_PROBABILITY = 2.0**-1074  # the smallest float above 0: a probability of 0 has no logarithm
UNKNOWN = "–"  # a number that a server does not tell


def visible_token(candidate: Candidate) -> str:
    """Return a token made visible, a special one by its name."""
    return show_token(bytes(candidate.bytes)) if candidate.bytes else safe_line(candidate.text)


def visible_step(step: Step) -> str:
    """Return the token of a step made visible."""
    chosen = next((each for each in step.top if each.chosen), None)
    return visible_token(chosen) if chosen else show_token(bytes(step.bytes) or step.text.encode())


def visible_id(token: int) -> str:
    """Return an id; a dash for text that has none."""
    return str(token) if 0 <= token < FIRST_OWN_ID else UNKNOWN


def step_figures(step: Step) -> str:
    """Return entropy, rank and surprisal of a step; of a server, what is known of them."""
    if step.listing is None:
        assert step.entropy is not None
        assert step.rank is not None
        return _(
            "entropy {entropy:.2f} bits · sampled rank {rank} · surprisal {surprisal:.2f} bits",
            entropy=step.entropy,
            rank=step.rank,
            surprisal=surprisal(step.model_prob or 0.0),
        )
    prob = step.prob if step.listing.stage == "sampled" else step.model_prob
    if prob is None and not step.top:
        return _("the server tells no probabilities of this step")
    figures = [_entropy(step.listing), _rank(step)]
    if prob is not None:
        figures.append(_("surprisal {bits:.2f} bits", bits=surprisal(prob)))
    return " · ".join(figures)


def surprisal(prob: float) -> float:
    """Return −log2 of a probability, in bits."""
    # abs, not a minus sign: -log2(1) would be shown as -0.00.
    return abs(log2(max(prob, _MIN_PROBABILITY)))


def _entropy(listing: Listing) -> str:
    if listing.entropy is None:
        return _("entropy unknown")
    least, most = listing.entropy
    if not isfinite(most):
        return _("entropy {least:.2f} bits or more", least=least)
    if round(least, 2) == round(most, 2):
        return _("entropy {entropy:.2f} bits", entropy=least)
    return _("entropy {least:.2f} to {most:.2f} bits", least=least, most=most)


def _rank(step: Step) -> str:
    assert step.listing is not None
    return _("sampled rank {rank}", rank=rank_text(step.rank, step.listing.k))


def rank_text(rank: int | None, k: int) -> str:
    """Return a rank; of a token that is not among the `k` listed ones, `> 20`."""
    return f"{rank:,}" if rank is not None else f"> {k}" if k else UNKNOWN


SOURCE_ROWS = 2


def source_lines(listing: Listing) -> list[str]:
    """Return SOURCE_ROWS lines: how much the numbers of a step leave out; where they come from."""
    stage = {
        "raw": _("before the samplers"),
        "sampled": _("after the temperature"),
        "unknown": _("before or after the samplers, as the server is set"),
    }[listing.stage]
    facts = [stage]
    if listing.mass is not None:
        other = max(1.0 - listing.mass, 0.0)
        facts.insert(0, _("{n} listed, other tokens {other:.1%}", n=listing.k, other=other))
    exact = [] if listing.exact_bytes else [_("bytes from text")]
    return [" · ".join(facts), " · ".join([safe_line(listing.source), *exact])]


def format_figures(mask: FormatMask) -> str:
    """Return how much a format dropped at a step."""
    return _(
        "the format allows {n:,} tokens with {mass} of the probability, and drops the other {rest}",
        n=mask.allowed,
        mass=f"{mask.mass:.2%}",
        rest=f"{1 - mask.mass:.2%}",
    )
