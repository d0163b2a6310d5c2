"""Everything a user can set in a session."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minillm_repl.generate import Sampling
from minillm_repl.generate.options import SAMPLER_ORDER, answer_format
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line
from minillm_repl.settings import (
    format_value,
    integer,
    parse_number,
    setting,
    specs,
    strings,
    switch,
    value_of,
)


def template_variables(text: str) -> tuple[str, ...]:
    """Parse `name=value` words for a chat template."""
    from minillm_repl.chat.thinking import parse_variables

    return parse_variables(strings(text))


DEFAULT = "default"  # the value that drops what the user chose
DEFAULT_VERBOSE_ROWS = 10  # candidates, when nobody says how many
DEFAULT_COMPLETION_TOKENS, DEFAULT_ANSWER_TOKENS = 100, 500  # tokens, when nobody says how many

_VERBOSE = """line: one line for each token, with the most likely others
colour: running text, tinted by the model's own probability of each token
model: the model's own probability of the token (softmax of its logits)
after ...: the sampling probability, after all samplers; it is 0 for a token marked `dropped`
▶ the sampled token; # its rank by the model, 1 = most likely
entropy: the uncertainty of the model, −Σ p·log2 p over all tokens, in bits
surprisal: −log2 of the model's probability of the sampled token, in bits
␣ is a space, ⏎ a newline, <EA B0> bytes that are only part of a character"""


@dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """The samplers, and what surrounds them."""

    seed: int | None = setting(
        None,
        integer(0, 2**63 - 1),  # what fits a signed 64-bit integer
        "sampling seed: the same seed gives the same text",
        aliases=("시드",),
        special_values={"random": None},
        example="7",
    )
    max_tokens: int | None = setting(
        None,
        integer(1),
        "the maximum number of tokens to generate",
        details=f"auto is {DEFAULT_COMPLETION_TOKENS} tokens, or {DEFAULT_ANSWER_TOKENS} in a chat,"
        " where the model ends its own turn.",
        unit="tokens",
        aliases=("n",),
        special_values={"auto": None},
        example="50",
    )
    stop: tuple[str, ...] = setting(
        (),
        strings,
        "stop strings: generation stops before any of them",
        metavar="TEXT",
        special_values={"off": ()},
        example="다.",
    )
    format: str = setting(
        "",
        answer_format,
        "the form that an answer must have",
        details="json: a JSON object. json=FILE: JSON as the JSON Schema in FILE says. regex=X: "
        "the whole answer matches the expression. choice=A,B: one of these texts; a comma in one "
        "needs double quotes around it. grammar=FILE: a grammar in the notation of Lark, or of "
        "llama.cpp (GBNF). At each step only tokens with which the answer can still have this "
        "form are kept; an end token only where the answer is complete. Between the parts of JSON "
        "there is one space at most. Needs llguidance: `pip install 'minillm-repl[format]'`.",
        metavar="json|json=FILE|regex=X|choice=A,B|grammar=FILE",
        special_values={"off": ""},
        aliases=("형식",),
        example="regex=[가-힣]{2,5}",
    )
    ban: tuple[str, ...] = setting(
        (),
        strings,
        "tokens that are never sampled",
        details="A word is a token, with and without a space before it; #123 is an id, and "
        "`<|im_end|>` a special token. Several words ban several tokens. A text of several tokens "
        "cannot be banned as a whole.",
        metavar="TOKEN",
        special_values={"off": ()},
        example="#3",
    )
    bias: tuple[str, ...] = setting(
        (),
        strings,
        "add a number to the logit of a token",
        details="TOKEN=+2 makes it e² times as likely, in proportion to all others, before the "
        "temperature; -2 makes it less likely. Tokens are written as for :ban.",
        metavar="TOKEN=+2",
        special_values={"off": ()},
        example="#3=+2",
    )
    chat: bool | None = setting(
        None,
        switch,
        "talk in turns, using the model's chat template",
        aliases=("대화",),
        details="auto chats if the model has a chat template; any other model completes"
        " the text that you type.",
        metavar="",
        special_values={"on": True, "off": False, "auto": None},
        example="off",
    )
    system: str = setting(
        "",
        str,
        "system prompt for chat models",
        metavar="TEXT",
        special_values={"off": ""},
        example="짧게 답해.",
    )
    care: bool | None = setting(
        None,
        switch,
        "answer a crisis in the model's place, and name whom to call",
        aliases=("돌봄",),
        details="Where what you say speaks of suicide, self-harm or violence, the program answers "
        "and names whom to call: a tiny model would say anything. The model does not see what was "
        "said, nor does the conversation keep it. auto does so in lessons and for the built-in "
        "models that chat; on does so for every model.",
        metavar="",
        special_values={"on": True, "off": False, "auto": None},
        example="off",
    )
    think: int | str = setting(
        "auto",
        integer(0),
        "thoughts of a reasoning model: shown, hidden, off, limited",
        aliases=("생각",),
        details="auto lets the chat template decide whether the model thinks, and shows its "
        "<think> block dimmed, apart from the answer. on and off set the template's variable "
        "enable_thinking (or thinking); where it has none, off begins the answer after an empty "
        "block. hide shows one line in place of the thoughts; `:scroll` shows them. After N "
        "tokens of thought the program writes </think>, and the model answers. A server that "
        "only takes messages is asked to think or not, and cannot be limited (docs/remote.md).",
        unit="tokens",
        special_values={"auto": "auto", "on": "on", "off": "off", "hide": "hide"},
        example="off",
    )
    template: tuple[str, ...] = setting(
        (),
        template_variables,
        "variables for the chat template",
        details="Values are JSON if they can be, else text. Which variables a template has, its "
        "model card says; `:prompt` shows what comes of them.",
        metavar="NAME=VALUE",
        special_values={"off": ()},
        example="enable_thinking=false",
    )
    special: bool = setting(
        False,
        switch,
        "parse special tokens such as `<|im_end|>` in what you type",
        details="off reads `<|im_end|>` as plain text; on reads it as the one token "
        "that ends a turn.",
        metavar="",
        special_values={"on": True, "off": False},
        example="on",
    )
    verbose: int | str = setting(
        0,
        integer(0, 1000),
        "show the top K next tokens at each step",
        details=_VERBOSE,
        unit="rows",
        metavar="K",
        aliases=("자세히",),
        special_values={
            "off": 0,
            "on": DEFAULT_VERBOSE_ROWS,
            "line": "line",
            "colour": "colour",
            "color": "colour",
        },
        example="5",
    )


def verbose_rows(settings: Settings) -> int:
    """Return how many candidates a view lists: those of `:verbose K`, or as many as usual."""
    is_count = isinstance(settings.verbose, int) and settings.verbose > 0
    return settings.verbose if is_count else DEFAULT_VERBOSE_ROWS  # type: ignore[return-value]


def active_samplers(settings: Sampling) -> list[str]:
    """Return the samplers that do something, with their values; the temperature always."""
    known = specs(Sampling)
    # In the order in which they apply; mirostat is always last.
    names = dict.fromkeys([*settings.sampler_order, *SAMPLER_ORDER, "mirostat"])
    shown = {name: format_value(known[name], value_of(settings, name)) for name in names}
    return [f"{name} {value}" for name, value in shown.items() if value != "off"]


def samplers_heading(settings: Sampling) -> str:
    """Return a heading for the probabilities that are drawn from: `after temp 0.8, top-k 4`."""
    if settings.temp == 0:
        return _("temp 0: greedy")
    # Temperature 1 leaves the distribution of the model as it is.
    on = [each for each in active_samplers(settings) if each != "temp 1"]
    return _("after {samplers}", samplers=", ".join(on)) if on else _("sampled from")


# -- where a value comes from

Source = Literal["program", "model", "file", "variable", "flag", "session"]
SOURCES: dict[Source, str] = {  # as `:set` shows them, from the weakest on
    "program": N_("program"),
    "model": N_("model"),
    "file": N_("file"),
    "variable": N_("variable"),
    "flag": N_("flag"),
    "session": N_("session"),
}


def check_recommended(recommended: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the samplers that a model's files set, and a note on those values that are ignored.

    The files are untrusted: a value may have a wrong type, or be out of range.
    """
    known, checked, ignored = specs(Sampling), dict[str, Any](), list[str]()
    for name, value in recommended.items():
        try:
            checked[name] = parse_number(known[name], value)
        except (KeyError, ValueError):
            ignored.append(f"{name} {value!r}"[:60])
    if not ignored:
        return checked, ()
    what = safe_line(", ".join(ignored))
    return checked, (_("the model's files set {what:.200}: ignored", what=what),)


def describe_recommended(recommended: Mapping[str, Any]) -> str:
    """Return the samplers that a model's files set, in a line."""
    known = specs(Sampling)
    shown = [f"{name} {format_value(known[name], value)}" for name, value in recommended.items()]
    return _("{settings}, where you set nothing", settings=", ".join(shown))
