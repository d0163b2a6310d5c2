"""What a user can say about sampling; apart from the arithmetic, so that the prompt line needs no numpy."""

from dataclasses import dataclass

from minillm_repl.settings import number, setting, whole


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temp: float = setting(
        0.8,
        number(0, 1e8),
        "how adventurous: 0 always takes the likeliest, 1 is the model's own distribution, more is wilder",
        metavar="X",
        aliases=("temperature",),
    )
    top_k: int = setting(
        0, whole(0), "draw only from the K likeliest tokens", unit="tokens", metavar="K", words={"off": 0}
    )
    top_p: float = setting(
        1.0,
        number(0, 1),
        "draw only from the likeliest tokens that make up this probability",
        words={"off": 1.0},
        metavar="X",
    )
    min_p: float = setting(
        0.0,
        number(0, 1),
        "draw only from tokens at least this fraction as likely as the likeliest",
        words={"off": 0.0},
        metavar="X",
    )
    repeat_penalty: float = setting(
        1.0,
        number(0.01, 100),
        "above 1, tokens that are already in the text become less likely",
        aliases=("repetition-penalty",),
        metavar="X",
        words={"off": 1.0},
    )
