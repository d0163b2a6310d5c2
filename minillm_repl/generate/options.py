"""What a user can say about sampling; apart from the arithmetic, so that the prompt line needs
no numpy.
"""

from dataclasses import dataclass

from minillm_repl.settings import number, setting, whole


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temp: float = setting(
        0.8,
        number(0, 1e8),
        "0 always takes the likeliest token, higher is wilder",
        details="The logits are divided by it before the softmax: 1 is the model's own distribution.",
        metavar="X",
        aliases=("temperature", "온도"),
    )
    top_k: int = setting(
        0,
        whole(0),
        "draw only from the K likeliest tokens",
        details="Tokens as likely as the K-th stay too.",
        unit="tokens",
        metavar="K",
        words={"off": 0},
    )
    top_p: float = setting(
        1.0,
        number(0, 1),
        "draw only from the likeliest that add up to X",
        details="The smallest set of likeliest tokens whose probabilities add up to X or more; at "
        "least one.",
        metavar="X",
        words={"off": 1.0},
    )
    min_p: float = setting(
        0.0,
        number(0, 1),
        "cut tokens less likely than X times the likeliest",
        metavar="X",
        words={"off": 0.0},
    )
    repeat_penalty: float = setting(
        1.0,
        number(0.01, 100),
        "above 1, tokens already in the text are less likely",
        details="The logit of a token that is in the text is divided by it if positive, else "
        "multiplied.",
        metavar="X",
        aliases=("repetition-penalty",),
        words={"off": 1.0},
    )
