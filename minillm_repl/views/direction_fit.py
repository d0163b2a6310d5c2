"""Directions in the residual stream, found from pairs of texts, and the files they are kept in."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.checkpoint.header import parse_header
from minillm_repl.checkpoint.serialise import serialise
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.paths import user_path
from minillm_repl.views.inspected_text import InspectedText, no_grad

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

FORMAT = "minillm-direction"
METHODS = ("mean", "pca")
NAME = re.compile(r"[^\W\d]\w{0,39}")
_SHIPPED = Path(__file__).parent / "pairs"
_MAX_CHARACTERS = 1 << 20  # of a file of pairs
_MIN_PAIRS = 4
_HELD_OUT = 3  # every third pair is held out
_PLACEBOS = 32  # random directions
Pair = tuple[str, str]


@dataclass(frozen=True)
class LayerQuality:
    """How well a direction tells the held-out texts apart, after one layer."""

    norm: float  # the mean L2 norm of the residual stream where it was read
    accuracy: float  # of the difference of means: share of held-out texts on their side, 0 to 1
    auc: float  # the chance that a text of the first kind lies further along than one of the second
    pca_accuracy: float  # the same of the first principal component
    pca_auc: float
    random_accuracy: float  # the same of random directions: a mean over 32
    random_auc: float
    cosine: float  # between the two directions


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction from the second texts of pairs to the first, after each layer."""

    name: str
    source: str  # the file of pairs
    model: str
    method: str  # which of the two is used
    pairs: tuple[int, int]  # that it was found from, and that were held out
    mean: "Vectors"  # (layer, d_model), of norm 1 each: the difference of means
    pca: "Vectors"  # the first principal component of the differences within the pairs
    layers: tuple[LayerQuality, ...]
    line: str = ""  # what makes it again

    @property
    def vectors(self) -> "Vectors":
        """Those of the method that is used: (layer, d_model)."""
        return self.pca if self.method == "pca" else self.mean

    @property
    def best_layer(self) -> int:
        """The layer whose direction tells most held-out texts apart; of equal ones the middle."""
        middle = (len(self.layers) - 1) / 2

        def rank(layer: int) -> tuple[float, float, float]:
            each = self.layers[layer]
            is_pca = self.method == "pca"
            auc, accuracy = (
                (each.pca_auc, each.pca_accuracy) if is_pca else (each.auc, each.accuracy)
            )
            return auc, accuracy, -abs(layer - middle)

        return max(range(len(self.layers)), key=rank)


def shipped_pairs() -> list[str]:
    """Return the names of the files of pairs that come with the program."""
    return sorted(path.stem for path in _SHIPPED.glob("*.tsv"))


def find_pairs(name: str) -> Path:
    """Return the path of a file of pairs: the user's, else a shipped one."""
    path = user_path(name)
    shipped = _SHIPPED / f"{name}.tsv"
    return shipped if name in shipped_pairs() and not path.exists() else path


def read_pairs(path: Path, detected: DetectedEncoding) -> list[Pair]:
    """Return the pairs of a file: a line each, with a tab between the texts. Raises UserError."""
    parts, size = list[str](), 0
    for part in read_text_chunks(path, detected):
        parts.append(part)
        size += len(part)
        if size > _MAX_CHARACTERS:
            raise UserError(
                _("{name} is longer than {n:,} characters",
                  name=safe_line(str(path)), n=_MAX_CHARACTERS)
            )  # fmt: skip
    pairs = []
    for number, line in enumerate("".join(parts).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        texts = [text.strip() for text in line.split("\t")]
        if len(texts) != 2 or not all(texts):
            raise UserError(
                _("line {n} of {name} is no pair: two texts with a tab between them",
                  n=number, name=safe_line(path.name))
            )  # fmt: skip
        pairs.append((texts[0], texts[1]))
    if len(pairs) < _MIN_PAIRS:
        raise UserError(
            _("{name} has {n} pairs: a direction needs {least} or more",
              name=safe_line(path.name), n=len(pairs), least=_MIN_PAIRS)
        )  # fmt: skip
    return pairs


@no_grad
def fit(
    texts: Sequence[tuple[InspectedText, InspectedText]],
    progress: Callable[[float], None] = lambda _share: None,
) -> "tuple[Vectors, Vectors, tuple[LayerQuality, ...]]":
    """Return the two directions after each layer (layer, d_model), and how good they are.

    The residual stream is read at the last token of each text. Every third pair is held out.
    """
    import numpy as np
    import torch

    names = [f"blocks.{layer}.residual" for layer in range(texts[0][0].config.n_layers)]
    rows = []
    for done, pair in enumerate(texts, 1):
        caches = [each.run_with_cache("residual", last_only=True)[1] for each in pair]
        rows.append(torch.stack([
            torch.stack([cache[name][-1] for name in names]) for cache in caches
        ]))  # fmt: skip
        progress(done / len(texts))
    streams = torch.stack(rows).double().cpu().numpy()  # (pair, 2, layer, d_model)
    is_held_out = np.arange(len(texts)) % _HELD_OUT == _HELD_OUT - 1
    means, components, qualities = [], [], []
    for layer in range(len(names)):
        train, test = streams[~is_held_out, :, layer], streams[is_held_out, :, layer]
        mean, component = _unit(train[:, 0].mean(0) - train[:, 1].mean(0)), _component(train)
        means.append(mean)
        components.append(component)
        norm = float(np.linalg.norm(streams[:, :, layer], axis=-1).mean())
        generator = np.random.default_rng(layer)
        random = [_unit(each) for each in generator.standard_normal((_PLACEBOS, len(mean)))]
        placebos = np.mean([_held_out(each, train, test) for each in random], axis=0).tolist()
        accuracy, auc = _held_out(mean, train, test)
        pca_accuracy, pca_auc = _held_out(component, train, test)
        qualities.append(
            LayerQuality(
                norm=norm,
                accuracy=accuracy,
                auc=auc,
                pca_accuracy=pca_accuracy,
                pca_auc=pca_auc,
                random_accuracy=float(placebos[0]),
                random_auc=float(placebos[1]),
                cosine=float(mean @ component),
            )
        )
    return np.array(means, np.float32), np.array(components, np.float32), tuple(qualities)


def _unit(vector: "NDArray[np.float64]") -> "NDArray[np.float64]":
    import numpy as np

    norm = float(np.linalg.norm(vector))
    if not norm or not np.isfinite(norm):
        raise UserError(_("the texts of the pairs are identical to the model: no direction"))
    return vector / norm


def _component(train: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Return the first principal component of the differences (pair, 2, d_model), as repeng does.

    Its sign is that by which most pairs have their first text further along.
    """
    import numpy as np

    differences = train[:, 0] - train[:, 1]  # (pair, d_model)
    component: NDArray[np.float64]
    component = np.linalg.svd(differences - differences.mean(0), full_matrices=False)[2][0]
    projected = differences @ component
    return component if (projected > 0).sum() >= (projected < 0).sum() else -component


def _held_out(
    vector: "NDArray[np.float64]", train: "NDArray[np.float64]", test: "NDArray[np.float64]"
) -> tuple[float, float]:
    """Return the accuracy and the AUC of a direction on held-out pairs (pair, 2, d_model).

    The sign and the threshold, the middle between the two means, come from the training pairs.
    """
    means = (train @ vector).mean(0)  # (2,)
    sign = 1 if means[0] >= means[1] else -1
    first, second = sign * (test @ vector).T  # (pair,) each
    threshold = sign * means.mean()
    accuracy = ((first > threshold).mean() + (second <= threshold).mean()) / 2
    gaps = first[:, None] - second[None]
    return float(accuracy), float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def save(direction: Direction, path: Path) -> None:
    """Write a direction as a safetensors file. Raises UserError."""
    import numpy as np

    tensors = {
        "mean": direction.mean,
        "pca": direction.pca,
        "layers": np.array([astuple(each) for each in direction.layers], np.float32),
    }
    about = {
        "name": direction.name, "source": direction.source, "model": direction.model,
        "method": direction.method, "pairs": direction.pairs,
    }  # fmt: skip
    metadata = {"format": FORMAT, "version": "1", "direction": json.dumps(about)}
    write_atomically(path, *serialise(tensors, metadata))


def load(path: Path) -> Direction:
    """Read a direction that `save` has written. Raises UserError naming the file."""
    import numpy as np

    wrong = UserError(_("{name} is no file of a direction", name=safe_line(str(path))))
    with open_regular(path) as file:
        header = parse_header(file, path)
        arrays = {}
        for name in ("mean", "pca", "layers"):
            info = header.tensors.get(name)
            if info is None or info.dtype != "F32" or len(info.shape) != 2:
                raise wrong
            file.seek(info.start)
            arrays[name] = np.frombuffer(file.read(info.nbytes), "<f4").reshape(info.shape)
    try:
        about = json.loads(header.metadata["direction"])
        found = (about["name"], about["source"], about["model"], about["method"])
        train, held_out = about["pairs"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise wrong from None
    layers, size = arrays["layers"], len(LayerQuality.__dataclass_fields__)
    if (
        header.metadata.get("format") != FORMAT
        or not all(isinstance(each, str) for each in found)
        or not all(isinstance(each, int) for each in (train, held_out))
        or not NAME.fullmatch(found[0])
        or found[3] not in METHODS
        or arrays["mean"].shape != arrays["pca"].shape
        or not layers.size
        or layers.shape != (len(arrays["mean"]), size)
        or not all(np.isfinite(each).all() for each in arrays.values())
    ):
        raise wrong
    name, source, model, method = found
    return Direction(
        name, safe_line(source[:200]), safe_line(model[:200]), method, (train, held_out),
        arrays["mean"], arrays["pca"],
        tuple(LayerQuality(*map(float, row)) for row in layers),
    )  # fmt: skip
