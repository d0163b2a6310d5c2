"""A conversation as a transcript in Markdown, or as one page that shows the numbers of a token.

The page needs nothing from elsewhere, and asks for nothing: its policy forbids it. All texts are
untrusted: a token may be `</script>`.
"""

import json
import re
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from minillm_repl import __version__
from minillm_repl.language import _, current_language
from minillm_repl.safetext import safe, safe_line, show_token

MADE_BY = "<!-- made by minillm-repl -->"
# Probabilities by the model from which a token has each colour; the last has none.
_LEVELS = (0.02, 0.1, 0.3, 0.7)
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_BACKTICKS = re.compile("`+")


def transcript(conversation: dict[str, Any]) -> str:
    """Return a conversation as Markdown: each text in a fence, so that it is what was said."""
    lines = [MADE_BY, f"# {_title(conversation)}", ""]
    for turn in conversation["turns"]:
        facts = [_("turn {n}", n=turn["number"]), _("seed {seed}", seed=turn["seed"]), turn["at"]]
        facts += [f"{name} {text}" for name, text in turn["settings"].items() if name != "seed"]
        facts += turn["interventions"]
        lines += [_plain_line(" · ".join(facts)), ""]
        name = _("you") if turn["kind"] == "chat" else _("prompt")
        if turn["prompt"]:
            lines += [f"**{name}**", "", _fenced(turn["prompt"]), ""]
        lines += [f"**{_plain_line(conversation['model'])}**", "", _fenced(turn["answer"]), ""]
    return "\n".join(lines)


def _title(conversation: dict[str, Any]) -> str:
    names = ("minillm-repl", conversation["model"], conversation["session"])
    return _plain_line(" · ".join(filter(None, names)))


def _plain_line(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", safe_line(text))


def _fenced(text: str) -> str:
    longest = max((len(each) for each in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{safe(text)}\n{fence}"


def page(conversation: dict[str, Any]) -> str:
    """Return a conversation as one HTML page."""
    title = safe_line(
        " · ".join(filter(None, ("minillm-repl", conversation["model"], conversation["session"])))
    )
    turns = conversation["turns"]
    values = {
        "lang": current_language(),
        "title": escape(title),
        "about": escape(_about(conversation)),
        "hint": escape(
            _("Point at a token, tap it or use the arrow keys: its candidates appear below.")
        ),
        "legend": _legend(),
        "turns": "\n".join(_turn(turn, place) for place, turn in enumerate(turns)),
        "panel": escape(_("No token is chosen.")),
        "data": _embedded({"words": _words(), "turns": [_numbers(turn) for turn in turns]}),
    }
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return _PLACE.sub(lambda found: values[found[1]], template)


def _about(conversation: dict[str, Any]) -> str:
    digest = conversation["sha256"]
    parts = [_("version {version}", version=__version__)]
    parts += [f"sha256 {digest[:16]}…"] if digest else []
    return safe_line(" · ".join(parts))


def _legend() -> str:
    bounds = [0.0, *_LEVELS, 1.0]
    return (
        escape(_("probability by the model:"))
        + " "
        + " ".join(
            f'<span class="l{level}">{low:.0%}–{high:.0%}</span>'
            for level, (low, high) in enumerate(pairwise(bounds))
        )
    )


def _words() -> dict[str, str]:
    return {
        "token": _("token"),
        "model": _("model"),
        "sampled": _("sampling"),
        "dropped": _("dropped"),
        "rank": _("rank"),
        "entropy": _("entropy"),
        "surprisal": _("surprisal"),
        "bits": _("bits"),
    }


def _turn(turn: dict[str, Any], place: int) -> str:
    facts = [_("turn {n}", n=turn["number"]), _("seed {seed}", seed=turn["seed"]), turn["at"]]
    facts += [f"{name} {text}" for name, text in turn["settings"].items() if name != "seed"]
    facts += turn["interventions"]
    said = "".join(_token(step, f"{place}.{index}") for index, step in enumerate(turn["tokens"]))
    answer = said or escape(safe(turn["answer"]))
    note = f'<p class="note">{escape(safe_line(turn["note"]))}</p>' if turn["note"] else ""
    prompt, language = escape(safe(turn["prompt"])), _language_of(turn["prompt"])
    return (
        f'<section><p class="facts">{escape(safe_line(" · ".join(facts)))}</p>'
        f'<p class="prompt" lang="{language}">{prompt}</p>'
        f'<p class="answer" lang="{_language_of(turn["answer"])}">{answer}</p>{note}</section>'
    )


def _token(step: dict[str, Any], name: str) -> str:
    prob = step["model_prob"]
    level = sum(prob >= bound for bound in _LEVELS)
    text = escape(safe(step["text"]))
    part = "" if text else " part"  # of a character that a later token completes
    return f'<span class="t l{level}{part}" id="t{name}" role="button" tabindex="-1">{text}</span>'


def _language_of(text: str) -> str:
    """Return the language of a text for a screen reader; empty where it is unknown."""
    if re.search("[가-힣ㄱ-ㅣ]", text):
        return "ko"
    return "en" if re.search("[A-Za-z]", text) and text.isascii() else ""


def _numbers(turn: dict[str, Any]) -> list[Any]:
    """Return the numbers of a turn, short: a list for each token, and in it one per candidate."""
    return [
        [
            show_token(bytes(step["bytes"])) or step["text"],
            step["id"],
            step["model_prob"],
            step["prob"],
            step["rank"],
            step["entropy"],
            [
                [
                    show_token(bytes(each["bytes"])) or safe_line(each["text"]),
                    each["id"],
                    each["model_prob"],
                    each["prob"],
                    int(each["kept"]),
                    int(each["chosen"]),
                ]
                for each in step["top"]
            ],
        ]
        for step in turn["tokens"]
    ]


def _embedded(data: Any) -> str:
    r"""Return JSON for a script element: `<`, `>` and `&` are `\u003c`, so nothing ends it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
