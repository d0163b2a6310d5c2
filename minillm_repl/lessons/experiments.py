"""Experiments that the condition of a claim can make with the open model, by name."""

import re
from collections.abc import Callable
from math import nan
from typing import TYPE_CHECKING, Any

from minillm_repl.generate import GenerationConfig, Sampling, Step
from minillm_repl.generate.generate import generate
from minillm_repl.generate.sampling import make_rng
from minillm_repl.language import current_language
from minillm_repl.lessons.parse import practice_file
from minillm_repl.lessons.values import LessonValues
from minillm_repl.tokenizer import decode
from minillm_repl.views.sampler import next_logits

if TYPE_CHECKING:
    from minillm_repl.views.effect import EffectView

_TOKENS = 40  # that `writes` writes


def experiments(values: LessonValues) -> dict[str, Callable[..., Any]]:
    """Return what can be tried on a model and its text; docs/lessons.md explains each."""
    return {
        "p": values.next_prob,
        "told_apart": values.told_apart,
        "continues": lambda text: _continues(values, text),
        "writes": lambda seed=0, temp=0.0: _writes(values, seed, temp),
        "known": _known,
        "practice": lambda text: _practice().count(text),
        "tokens": lambda text: len(_tokenizer(values).encode(text)),
        "bytes": lambda text: len(text.encode()),
        "bits": lambda text: _mean(_bits(values, text)),
        "starts": lambda text: _mean(_bits(values, text, begins=True)),
        "inside": lambda text: _mean(_bits(values, text, begins=False)),
        "near": lambda word, most=10: _neighbours(values, word)[0][:most],
        "reads": lambda word, most=10: _neighbours(values, word)[1][:most],
        "kl": lambda layer, head=None: _ablate(values, layer, head).kl,
        "ablated": lambda layer: _ablate(values, layer).after[0].token.label,
        "unneeded": lambda nats: _unneeded(values, nats),
        "clearer": lambda: _clearer(values),
        "stepped": lambda rate: _stepped(values, rate),
    }


def _tokenizer(values: LessonValues) -> Any:
    return values.model.checkpoint.tokenizer


def _continues(values: LessonValues, text: str) -> bool:
    """Return whether the model, at temperature 0, goes on with exactly this text."""
    expected, decoder = _tokenizer(values).encode(text), values.model.decoder
    before = ([*values.ids, *expected[:place]] for place in range(len(expected)))
    return [int(next_logits(decoder, ids).argmax()) for ids in before] == list(expected)


def _writes(values: LessonValues, seed: int, temp: float) -> str:
    """Return what the model writes next, from a seed, at a temperature."""
    config = GenerationConfig(max_tokens=_TOKENS, sampling=Sampling(temp=temp))
    tokenizer = _tokenizer(values)
    events = generate(values.model.decoder, tokenizer, values.ids, config, make_rng(seed))
    return decode(tokenizer, [event.id for event in events if isinstance(event, Step)])


def _practice() -> str:
    return practice_file(current_language()).read_text(encoding="utf-8")


def _known(text: str) -> float:
    """Return the share of the words of a text that stand in the practice text; the first and the
    last may be cut, and do not count.
    """
    words = text.split()[1:-1]
    practice = set(_practice().split())
    return sum(word in practice for word in words) / len(words) if words else 0.0


def _bits(values: LessonValues, text: str, begins: bool | None = None) -> list[float]:
    """Return the surprisals of a text: of all tokens but the first, or of those that begin a word,
    or of those inside one. None where the model cannot read the text.
    """
    from minillm_repl.views.surprise import compute

    about = values.about(text)
    if about is None or len(about.ids) < 2:
        return []
    view = compute(about.subject)
    written = [token.text for token in view.tokens]
    found = []
    for before, token, bits in zip(written, written[1:], view.bits[1:], strict=False):
        is_word = bool(re.match(r"\s?\w", token))
        starts = token[:1].isspace() or before[-1:].isspace()
        if bits is not None and (begins is None or (is_word and starts == begins)):
            found.append(bits)
    return found


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else nan  # no comparison holds for it


def _neighbours(values: LessonValues, word: str) -> tuple[list[str], list[str]]:
    """Return a token's neighbours, nearest first, as `:near` shows them: in the output head, and
    in the embedding.
    """
    from minillm_repl.views.embedding import compute_near  # takes torch along

    tokenizer = _tokenizer(values)
    ids = next(
        (ids for spelt in (f" {word}", word) if len(ids := tokenizer.encode(spelt)) == 1), ()
    )
    if not ids:
        return [], []
    view = compute_near(values.model.language_model, tokenizer, [(1, ids[0])])
    reads, writes = (
        [each.token.text.strip() for each in found] for found in (view.input, view.output or ())
    )
    return writes or reads, reads


def _ablate(values: LessonValues, layer: float, head: float | None = None) -> "EffectView":
    """Return the effect of `:ablate` with a layer, or with a layer and a head."""
    from minillm_repl.views import effect
    from minillm_repl.views.ablation import ablation_hook

    hook = ablation_hook(values.subject, int(layer), None if head is None else int(head))
    return effect.compute(values.subject, "", hook)


def _stepped(values: LessonValues, rate: float) -> float:
    """Return the loss on the text after one step of gradient descent, in nats."""
    from minillm_repl.views.descent import compute

    return compute(values.subject, rate).loss_after


def _unneeded(values: LessonValues, nats: float) -> float:
    """Return the share of heads without which the loss on the text grows by less than `nats`."""
    from minillm_repl.views.ablate_scan import compute_scan

    effects = compute_scan(values.subject).effects
    return sum(each.change < nats for each in effects) / len(effects)


def _clearer(values: LessonValues) -> float:
    """Return the share of places where the fitted Jacobian lens is nearer to the model's output
    than the logit lens and its control are, on text held out. Raises UserError if none was fitted.
    """
    from minillm_repl.views.lens_maps import load

    places = load(values.model, "j").held_out
    return sum(each.kl < min(each.logit_kl, each.control_kl) for each in places) / len(places)
