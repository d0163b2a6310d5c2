"""The samplers as settings, and the order in which they apply.

Needs no numpy, so that the prompt line starts without it. `sampling` has what each of them does.
"""

import re
from dataclasses import dataclass

from minillm_repl.language import _
from minillm_repl.settings import integer, number, one_of, setting

# That of the `transformers` library, whose processors have the temperature first.
SAMPLER_ORDER = (
    "repeat-penalty",
    "presence-penalty",
    "frequency-penalty",
    "dry",
    "top-n-sigma",
    "temp",
    "top-k",
    "top-p",
    "min-p",
    "typical-p",
    "xtc",
)
LLAMA_CPP_ORDER = (
    "repeat-penalty",
    "presence-penalty",
    "frequency-penalty",
    "dry",
    "top-n-sigma",
    "top-k",
    "typical-p",
    "top-p",
    "min-p",
    "xtc",
    "temp",
)
# Settings that say how another one works: alone they change nothing.
PARAMETERS = (
    "xtc-threshold",
    "dry-base",
    "dry-length",
    "penalise",
    "mirostat-rate",
    "sampler-order",
)


NO_NUMBERS = ("penalise", "sampler-order")  # the two of these that a server is not told


def sampler_names(text: str) -> tuple[str, ...]:
    """Parse the names of samplers, in the order in which they shall apply."""
    names = tuple(filter(None, re.split(r"[\s,;]+", text.replace("_", "-"))))
    if not names or not set(names) <= set(SAMPLER_ORDER) or len(set(names)) < len(names):
        raise ValueError(_("names among {names}, each once", names=" ".join(SAMPLER_ORDER)))
    return names


def answer_format(text: str) -> str:
    """Parse what `:format` is given: a kind, and its file, expression or choices."""
    kind, equals, value = text.partition("=")
    kind, value = kind.strip().lower(), value.strip()
    if kind == "json" and not equals:
        return kind
    if kind not in ("json", "regex", "choice", "grammar") or not value:
        raise ValueError(_("json, json=FILE, regex=..., choice=A,B or grammar=FILE"))
    return f"{kind}={value}"


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
    typical_p: float = setting(
        1.0,
        number(0, 1),
        "keep tokens whose surprisal is near the entropy",
        details="Locally typical sampling (Meister et al., 2023): the tokens are ordered by how "
        "far their surprisal −ln p is from the entropy, and kept until they sum to X.",
        metavar="X",
        special_values={"off": 1.0},
        example="0.95",
    )
    top_n_sigma: float = setting(
        0.0,
        number(0, 1000),
        "keep tokens within X standard deviations of the top logit",
        details="Tang et al., 2024: σ is the standard deviation of the logits of all tokens that "
        "are left. The temperature does not change which tokens stay.",
        metavar="X",
        special_values={"off": 0.0},
        example="1",
    )
    xtc: float = setting(
        0.0,
        number(0, 1),
        "with probability X, drop the top choices (XTC)",
        details="Exclude top choices: of the tokens with a probability of xtc-threshold or more, "
        "only the least likely one stays. A coin with probability X decides at each token whether "
        "this is done.",
        metavar="X",
        aliases=("xtc-probability",),
        special_values={"off": 0.0},
        example="0.5",
    )
    xtc_threshold: float = setting(
        0.1,
        number(0, 1),
        "probability from which a token is a top choice for XTC",
        details="Above 0.5 there is at most one such token, and XTC drops nothing.",
        metavar="X",
        example="0.1",
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
    presence_penalty: float = setting(
        0.0,
        number(-100, 100),
        "subtract X from the logit of tokens already in the text",
        details="Once for each such token, however often it occurs. Below 0 they are more likely.",
        metavar="X",
        special_values={"off": 0.0},
        example="0.5",
    )
    frequency_penalty: float = setting(
        0.0,
        number(-100, 100),
        "subtract X for each time that a token is in the text",
        details="From the logit. Below 0 such tokens are more likely.",
        metavar="X",
        special_values={"off": 0.0},
        example="0.2",
    )
    dry: float = setting(
        0.0,
        number(0, 100),
        "penalty on tokens that would extend a repetition (DRY)",
        details="Don't repeat yourself: where the last n tokens of the text occur earlier in it, "
        "X × dry-base^(n − dry-length) is subtracted from the logit of the token that came next "
        "there, for the longest such n, of dry-length or more. A token with a newline, a colon, "
        "a double quote or an asterisk ends what can be repeated.",
        metavar="X",
        aliases=("dry-multiplier",),
        special_values={"off": 0.0},
        example="0.8",
    )
    dry_base: float = setting(
        1.75,
        number(1, 10),
        "growth of the DRY penalty with each repeated token",
        metavar="X",
        example="1.75",
    )
    dry_length: int = setting(
        2,
        integer(1, 1000),
        "repeated tokens from which DRY has a penalty",
        unit="tokens",
        aliases=("dry-allowed-length",),
        example="2",
    )
    penalise: str = setting(
        "all",
        one_of("all", "answer"),
        "the text that penalties look at: all, or the answer",
        details="The penalties are repeat-penalty, presence-penalty, frequency-penalty and dry. "
        "With all they count the prompt too, in a chat also the tokens of the chat template, such "
        "as those that end a turn.",
        metavar="all|answer",
        aliases=("penalize",),
        example="answer",
    )
    mirostat: float = setting(
        0.0,
        number(0, 100),
        "keep the surprisal of the text near X bits (Mirostat 2)",
        details="Basu et al., 2021. Drops tokens with a surprisal above μ bits, after all other "
        "samplers. μ is 2·X at the start; each token moves it by mirostat-rate × (X − surprisal of "
        "the token). It does what top-k and top-p are for: leave these off.",
        metavar="X",
        special_values={"off": 0.0},
        example="3",
    )
    mirostat_rate: float = setting(
        0.1,
        number(0, 1),
        "how fast Mirostat follows the surprisal of the text",
        metavar="X",
        aliases=("mirostat-eta",),
        example="0.1",
    )
    sampler_order: tuple[str, ...] = setting(
        SAMPLER_ORDER,
        sampler_names,
        "the order in which the samplers apply",
        details="Samplers that you do not name follow in their usual order. transformers and "
        "llama.cpp are the orders of these programs: one has the temperature before top-k, the "
        "other has it last. :format, :ban and :bias always come first, and mirostat comes last.",
        metavar="NAMES",
        special_values={"transformers": SAMPLER_ORDER, "llama.cpp": LLAMA_CPP_ORDER},
        example="top-k temp",
    )
