"""`:save-activations`: the activations of a text as a safetensors file, for other programs."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import INDEX, Arguments, Flag, Option, TextArgument, Words
from minillm_repl.repl.places import Place, parse_place
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.tokenizer import decode
from minillm_repl.views.base import inspect_text
from minillm_repl.views.finding import find_predicted
from minillm_repl.views.inspected_text import InspectedText, check_layer

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_SUFFIX = ".safetensors"
_NAMES = {  # of hooks, or how they end; and which axis is time
    "residual": (("embedding", ".residual"), 0),
    "attention": (("attention.out",), 0),
    "mlp": (("mlp.out",), 0),
    "hidden": (("mlp.hidden",), 0),
    "z": (("attention.z",), 0),
    "q": (("attention.q",), 1),
    "k": (("attention.k",), 1),
    "v": (("attention.v",), 1),
    "pattern": (("attention.pattern",), 1),
    "logits": ((), 0),
}
_RANGE = re.compile(rf"({INDEX})(?:-({INDEX}))?")


def _parse_what(text: str) -> tuple[str, ...]:
    names = tuple(text.lower().split(","))
    if not set(names) <= set(_NAMES):
        raise ValueError(_("some of {names}, with commas between", names=", ".join(_NAMES)))
    return names


def _parse_layers(text: str) -> tuple[tuple[int, int], ...]:
    found = [_RANGE.fullmatch(each) for each in text.split(",")]
    if not all(found):
        raise ValueError(_("layers such as 0,2 or 4-7"))
    return tuple((int(each[1]), int(each[2] or each[1])) for each in found if each)


def _parse_places(text: str) -> tuple[Place, ...]:
    return tuple(parse_place(each.removeprefix("@")) for each in text.split(","))


@command(
    "save-activations",
    arguments=(
        Words("file", "FILE", required=True, completion="file"),
        Option("what", _parse_what, ("residual",), "residual,z"),
        Option("layers", _parse_layers, (), "0,2-4"),
        Option("places", _parse_places, (), "@3,@-1"),
        Flag("--overwrite"),
        TextArgument(quoted=True),
    ),
    group="Models and files",
    example=':save-activations a.safetensors what=z places=@-1 "날씨가 좋"',
)
def save_activations(shell: "Shell", asked: Arguments) -> None:
    """Save the activations of a text to a safetensors file.

    The text is the text so far, or the one in quotes. `what` is one or more of residual, attention,
    mlp, hidden, z, q, k, v, pattern and logits, with commas between; the default is residual. All
    layers are saved, or those of layers=0,2-4; all positions, or those of places=@3,@-1. A place
    may be a token (`@날`): its own position.

    The tensors are float32 and have no batch dimension. Each has the name of its place in the
    model: `embedding` and `blocks.2.residual` (time, d_model), `blocks.2.attention.out` and
    `blocks.2.mlp.out` (time, d_model), `blocks.2.mlp.hidden` (time, d_mlp), `blocks.2.attention.z`
    (time, head, head_dim), `blocks.2.attention.q`, `k` and `v` (head, time, head_dim) after norm
    and RoPE, `blocks.2.attention.pattern` (head, time, time), `logits` (time, vocabulary).

    The metadata has `model`, `text`, and as JSON `token_ids` of the whole text and `positions` of
    the rows. Interventions act. The file is there whole or not at all; one that exists needs
    `--overwrite`. The views' own numbers are written by `--json FILE`.
    """
    path = user_path(asked.file)
    if path.suffix != _SUFFIX:
        path = path.with_name(path.name + _SUFFIX)
    if exists(path) and not asked.overwrite:
        raise UserError(_("{path} exists: `--overwrite` replaces it", path=safe_line(str(path))))
    inspected = inspect_text(shell, asked.text)
    model = shell.require_model()
    for first, last in asked.layers:
        check_layer(inspected.config, first)
        check_layer(inspected.config, last)
    indices = [_index(inspected, each) for each in asked.places] or [*range(len(inspected.ids))]
    with shell.screen.waiting(_("computing activations")):
        tensors = dict(_selected(inspected, asked.what, asked.layers, indices))
    positions = [inspected.position_of(index) for index in indices]
    metadata = {
        "format": "minillm-activations",
        "model": model.name,
        "text": decode(inspected.tokenizer, list(inspected.ids)),
        "token_ids": json.dumps(inspected.all_ids),
        "positions": json.dumps(positions),
    }
    from minillm_repl.checkpoint.serialise import serialise
    from minillm_repl.storage.atomic import write_atomically

    arrays = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
    write_atomically(path, *serialise(arrays, metadata), interrupted=shell.interrupted)
    size = sum(array.nbytes for array in arrays.values()) / 2**20
    shell.screen.note(
        _(
            "{n} tensors of {positions} positions, {size:.1f} MiB, saved to {path}",
            n=len(arrays),
            positions=len(positions),
            size=size,
            path=safe_line(str(path)),
        )
    )


def _index(inspected: InspectedText, place: Place) -> int:
    if place.position is not None:
        return inspected.index_of(place.position)
    return inspected.index_of(find_predicted(inspected, place.token, place.number))


def _selected(
    inspected: InspectedText,
    what: tuple[str, ...],
    layers: tuple[tuple[int, int], ...],
    indices: list[int],
) -> "Iterator[tuple[str, Tensor]]":
    """Yield the tensors that are saved, by name. Raises UserError if there are none."""
    names = tuple(name for each in what for name in _NAMES[each][0])
    logits, cache = inspected.run_with_cache(*names) if names else (inspected.logits(), {})
    any_is_saved = "logits" in what
    for name, tensor in cache.items():
        _blocks, *rest = name.split(".")
        wanted = not layers or (
            bool(rest) and any(first <= int(rest[0]) <= last for first, last in layers)
        )
        if wanted:
            any_is_saved = True
            axis = next(axis for ends, axis in _NAMES.values() if ends and name.endswith(ends))
            yield name, tensor[(slice(None),) * axis + (indices,)]
    if "logits" in what:
        yield "logits", logits[indices]
    if not any_is_saved:
        raise UserError(_("these layers have no such activations"))
