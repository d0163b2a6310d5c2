"""The options of a generation; they need no numpy, so that the prompt line starts without it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from minillm_repl.settings import integer, number, setting


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temp: float = setting(
        0.8,
        number(0, 1e8),
        "sampling temperature: 0 is greedy, higher is more random",
        details="The logits are divided by it before the softmax: "
        "1 is the model's own distribution.",
        metavar="X",
        aliases=("temperature", "온도"),
        example="0.8",
    )
    top_k: int = setting(
        0,
        integer(0),
        "keep only the K most likely tokens",
        details="Tokens as likely as the K-th are kept too.",
        unit="tokens",
        metavar="K",
        special_values={"off": 0},
        example="40",
    )
    top_p: float = setting(
        1.0,
        number(0, 1),
        "nucleus sampling: keep top tokens that sum to at least X",
        details="Keeps the smallest set of top tokens whose probabilities sum to X or "
        "more, and at least one token.",
        metavar="X",
        special_values={"off": 1.0},
        example="0.9",
    )
    min_p: float = setting(
        0.0,
        number(0, 1),
        "drop tokens less likely than X × the top token",
        metavar="X",
        special_values={"off": 0.0},
        example="0.05",
    )
    repeat_penalty: float = setting(
        1.0,
        number(0.01, 100),
        "above 1, tokens already in the text are less likely",
        details="Divides the logit of a token that is in the text if the logit is "
        "positive; multiplies it otherwise.",
        metavar="X",
        aliases=("repetition-penalty",),
        special_values={"off": 1.0},
        example="1.1",
    )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a text is continued, and what ends it."""

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()  # the text ends before the first of these strings
    eos_token_ids: Collection[int] = ()  # the text ends at one of these tokens, which has no text
    context_shift: bool = True  # past the context, see the last tokens; otherwise, end there
    n_candidates: int = 0  # candidates that each step lists
