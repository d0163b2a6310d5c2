"""Everything a user can set in a session."""

from dataclasses import dataclass

from minillm_repl.generate.options import Sampling
from minillm_repl.language import _
from minillm_repl.settings import setting, show, specs, strings, switch, value_of, whole

VERBOSE_ROWS = 10  # candidates, when nobody says how many
COMPLETION, ANSWER = 100, 500  # tokens, when nobody says how many

_VERBOSE = """model: the probability that the model itself gives the token (softmax of its logits)
after ...: the probability of being drawn, once the samplers have had their say; `cut` is 0
▶ the token that was drawn; # its rank by the model, 1 = likeliest
entropy: how unsure the model was, −Σ p·log2 p over all tokens in bits, by its own probabilities
surprisal: how unexpected the drawn token was, −log2 of its probability by the model, in bits
␣ is a space, ⏎ a newline, <EA B0> bytes that are only a part of a character"""


@dataclass(frozen=True)
class Settings(Sampling):
    """The samplers, and what surrounds them."""

    seed: int | None = setting(
        None,
        whole(0, 2**63 - 1),
        "the same seed gives the same text",
        aliases=("시드",),
        words={"random": None},
    )
    max_tokens: int | None = setting(
        None,
        whole(1),
        "how many tokens a completion has at most",
        details=f"auto is {COMPLETION}, or {ANSWER} in a chat, where the model itself says when it "
        "has done.",
        unit="tokens",
        aliases=("n",),
        words={"auto": None},
    )
    stop: tuple[str, ...] = setting(
        (),
        strings,
        "a completion ends before any of these texts",
        metavar="TEXT",
        words={"off": ()},
    )
    chat: bool | None = setting(
        None,
        switch,
        "talk in turns, through the model's chat template",
        aliases=("대화",),
        details="auto talks with a model that has a chat template, and lets any other complete what "
        "is typed.",
        metavar="",
        words={"on": True, "off": False, "auto": None},
    )
    system: str = setting(
        "", str, "what a chat model is told before all turns", metavar="TEXT", words={"off": ""}
    )
    special: bool = setting(
        False,
        switch,
        "names of special tokens that are typed mean them",
        details="off reads `<|im_end|>` as text, on as the one token that ends a turn.",
        metavar="",
        words={"on": True, "off": False},
    )
    verbose: int = setting(
        0,
        whole(0, 1000),
        "show the K likeliest next tokens at each step",
        details=_VERBOSE,
        unit="rows",
        metavar="K",
        aliases=("자세히",),
        words={"off": 0, "on": VERBOSE_ROWS},
    )


def samplers_on(settings: Sampling) -> list[str]:
    """Return the samplers that do something, with their values; the temperature always."""
    shown = {name: show(spec, value_of(settings, name)) for name, spec in specs(Sampling).items()}
    return [f"{name} {value}" for name, value in shown.items() if value != "off"]


def samplers_text(settings: Sampling) -> str:
    """Return a heading for the probabilities that are drawn from: `after temp 0.8, top-k 4`."""
    if settings.temp == 0:
        return _("temp 0: the likeliest")
    on = [each for each in samplers_on(settings) if each != "temp 1"]
    return _("after {samplers}", samplers=", ".join(on)) if on else _("drawn from")
