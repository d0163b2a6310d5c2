"""Fitted lenses: an affine map for each place of the residual stream, and the file that keeps it.

Two kinds are fitted (`lens_fit.py`). The Jacobian lens is the mean derivative of the last layer's
stream by that of an earlier place. The tuned lens (Belrose et al., 2023) is trained to predict the
model's own output. What a map makes of a residual stream is read by the last norm and the head.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import make_parent_folder, write_atomically
from minillm_repl.storage.paths import SUFFIX, cache_folder, exists
from minillm_repl.views.inspected_text import InspectedText, no_grad, place_name

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.config import AnyConfig
    from minillm_repl.repl.model_loading import LoadedModel

Kind = Literal["j", "tuned"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_FORMAT, _VERSION = "minillm-lens", "1"
_SEED = 0  # of the shuffled control: it is always the same one
_MAX_NAME = 200  # characters of the source's name


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well three lenses tell the model's own output at one place, on text held out.

    KL is KL(final ‖ lens) in nats, the mean over tokens; `same` is the share of tokens at which the
    most likely token is that of the model's own output, 0 to 1.
    """

    place: str
    kl: float
    same: float
    logit_kl: float  # of the logit lens, which maps nothing
    logit_same: float
    control_kl: float  # of the shuffled control
    control_same: float


@dataclass(frozen=True, kw_only=True)
class LensMaps:
    """A fitted lens. `maps` are by the hook name of the place, (d_model, d_model) each."""

    kind: Kind
    maps: "Mapping[str, Tensor]"
    biases: "Mapping[str, Tensor]"  # (d_model,) each; of the Jacobian lens 0
    source: str  # the text that it was fitted on; empty: the model's own samples
    texts: int
    tokens: int  # of each text
    steps: int  # of training; 0 for the Jacobian lens
    held_out: tuple[HeldOut, ...] = ()

    def read(self, place: str, residual: "Tensor") -> "Tensor":
        """Return what the lens makes of a residual stream: (..., d_model). The last place has no
        map: it is what the head reads already.
        """
        if place not in self.maps:
            return residual
        return residual @ self.maps[place].T + self.biases[place]

    def to(self, device: Any) -> "LensMaps":
        """Return the same on a device."""
        return self._mapped(lambda tensor: tensor.to(device))

    @cached_property
    def control(self) -> "LensMaps":
        """The same lens with what it has learnt shuffled: its difference from the identity.

        Its size stays the same, so a lens that is no better has learnt nothing that counts.
        """
        import torch

        generator = torch.Generator().manual_seed(_SEED)

        def shuffled(tensor: "Tensor") -> "Tensor":
            start = torch.eye(len(tensor)) if tensor.ndim == 2 else torch.zeros(len(tensor))
            flat = (tensor.cpu() - start).flatten()
            order = torch.randperm(flat.numel(), generator=generator)
            return (start + flat[order].view_as(start)).to(tensor)

        return self._mapped(shuffled)

    def _mapped(self, change: Any) -> "LensMaps":
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["maps"] = {name: change(tensor) for name, tensor in self.maps.items()}
        values["biases"] = {name: change(tensor) for name, tensor in self.biases.items()}
        return LensMaps(**values)


def lens_name(kind: Kind | Literal[""]) -> str:
    """Return what a lens is called; empty is the one that maps nothing."""
    names = {"j": _("Jacobian lens"), "tuned": _("tuned lens"), "": _("logit lens")}
    return names[kind]


def places(config: "AnyConfig") -> list[str]:
    """Return the hook names of the places that have a map; the last layer has none."""
    return ["embedding", *(f"blocks.{layer}.residual" for layer in range(config.n_layers - 1))]


def residuals(
    inspected: InspectedText, *, last_only: bool = False
) -> "tuple[Tensor, dict[str, Tensor]]":
    """Return the logits (time, vocab), and the stream at each place: (time, d_model).

    With `last_only`, both are those of the last position.
    """
    rows = int(last_only)
    return inspected.run_with_cache("embedding", ".residual", last_only=last_only, rows=rows)


@no_grad
def measure(maps: LensMaps, texts: "list[InspectedText]", interrupted: Any) -> tuple[HeldOut, ...]:
    """Return how well a lens, the logit lens and the control do on texts that it has not seen.

    Raises UserError after Ctrl-C.
    """
    found: dict[str, list[list[float]]] = {}
    count = sum(len(text.ids) for text in texts)
    for text in texts:
        logits, streams = residuals(text)
        final = logits.double().log_softmax(-1)  # (time, vocab)
        for place in maps.maps:
            if interrupted():
                raise UserError(_("stopped"))
            read = (maps.read(place, streams[place]), streams[place],
                    maps.control.read(place, streams[place]))  # fmt: skip
            row = [number for each in read for number in _totals(text, final, each)]
            found.setdefault(place_name(text, place), []).append(row)
    names = [each.name for each in fields(HeldOut)][1:]
    return tuple(
        HeldOut(
            place=place,
            **{
                name: sum(column) / count
                for name, column in zip(names, zip(*rows, strict=True), strict=True)
            },
        )
        for place, rows in found.items()
    )


def _totals(text: InspectedText, final: "Tensor", residual: "Tensor") -> tuple[float, float]:
    """Return the sum of the KLs over the tokens, and at how many the top token is the same."""
    here = text.model.unembed(residual).double().log_softmax(-1)  # (time, vocab)
    kl = (final.exp() * (final - here)).sum()
    return float(kl), float((here.argmax(-1) == final.argmax(-1)).sum())


# -- the file


def digest(model: "LoadedModel") -> str:
    """Return what a model's lenses are kept under: the SHA-256 of its weights."""
    from minillm_repl.checkpoint.adapter import weights_sha256

    return weights_sha256(model.checkpoint.arrays())


def lens_path(sha256: str, kind: str) -> Path:
    """Return where a lens lies that was fitted on the model with these weights."""
    return cache_folder("lenses") / f"{sha256}.{kind}{SUFFIX}"


def save(maps: LensMaps, sha256: str) -> Path:
    """Write a lens where it is found again; return the path. Raises UserError."""
    from minillm_repl.checkpoint.serialise import serialise

    described = {
        each.name: getattr(maps, each.name)
        for each in fields(maps)
        if each.name not in ("maps", "biases", "held_out")
    }
    described["held_out"] = [asdict(each) for each in maps.held_out]
    tensors = {f"map.{name}": each.float().cpu().numpy() for name, each in maps.maps.items()}
    tensors |= {f"bias.{name}": each.float().cpu().numpy() for name, each in maps.biases.items()}
    metadata = {"format": _FORMAT, "version": _VERSION,
                "lens": json.dumps(described, ensure_ascii=False)}  # fmt: skip
    path = lens_path(sha256, maps.kind)
    make_parent_folder(path)
    write_atomically(path, *serialise(tensors, metadata))
    return path


def load(model: "LoadedModel", kind: Kind) -> LensMaps:
    """Return the lens of this kind that was fitted on the model. Raises UserError."""
    path = lens_path(digest(model), kind)
    if not exists(path):
        raise UserError(
            _(
                "this model has no such lens yet: `:lens fit {kind} FILE` fits one on a text, "
                "`:lens fit {kind}` on samples of the model",
                kind=kind,
            )
        )
    return read_file(path, kind, model.checkpoint.config)


def read_file(path: Path, kind: Kind, config: "AnyConfig") -> LensMaps:
    """Return the lens of a file, which is untrusted. Raises UserError naming it."""
    import torch

    from minillm_repl.checkpoint import ReadOptions, SourceTensor, WeightMap
    from minillm_repl.checkpoint.header import parse_field, read_header
    from minillm_repl.checkpoint.weights import locate_tensors, read_weights

    name, header, size = safe_line(str(path)), read_header(path), config.d_model
    described = parse_field(header, "lens", name)
    shapes: dict[str, tuple[int, ...]] = {f"map.{place}": (size, size) for place in places(config)}
    shapes |= {f"bias.{place}": (size,) for place in places(config)}
    weight_map = WeightMap({each: (SourceTensor(each, shapes[each]),) for each in shapes})
    locations = locate_tensors(weight_map, [header], name, ["F32"])
    arrays = read_weights(weight_map, locations, name, ReadOptions("float32"))
    tensors = {each: torch.from_numpy(array) for each, array in arrays.items()}
    match described:
        case {"kind": str(found), "source": str(source), "texts": int(texts), "tokens": int(tokens),
              "steps": int(steps), "held_out": list(rows)} if (
            found == kind and header.metadata.get("format") == _FORMAT and all(map(_is_row, rows))
        ):  # fmt: skip
            return LensMaps(
                kind=kind,
                maps={place: tensors[f"map.{place}"] for place in places(config)},
                biases={place: tensors[f"bias.{place}"] for place in places(config)},
                source=safe_line(source[:_MAX_NAME]),
                texts=texts,
                tokens=tokens,
                steps=steps,
                held_out=tuple(HeldOut(**row) for row in rows),
            )
    raise UserError(_("{name} is no lens of this kind, or damaged: fit it again", name=name))


def _is_row(row: Any) -> bool:
    """Tell whether a value is the JSON of a `HeldOut`."""
    if not isinstance(row, dict) or row.keys() != {each.name for each in fields(HeldOut)}:
        return False
    from math import isfinite

    numbers = [value for name, value in row.items() if name != "place"]
    return isinstance(row["place"], str) and all(
        type(value) in (int, float) and isfinite(value) for value in numbers
    )
