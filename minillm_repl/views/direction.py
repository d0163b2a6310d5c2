"""`:direction`: directions in the residual stream from pairs of texts, to steer by."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, title
from minillm_repl.render.export import check_overwritable
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, ChoiceOption, Words
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention
from minillm_repl.repl.quoting import Output, unquoted
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding
from minillm_repl.storage.paths import user_path
from minillm_repl.views import effect
from minillm_repl.views.base import View, inspect_ids, show
from minillm_repl.views.direction_fit import (
    NAME,
    Direction,
    LayerQuality,
    find_pairs,
    fit,
    load,
    read_pairs,
    save,
    shipped_pairs,
)
from minillm_repl.views.inspected_text import check_layer
from minillm_repl.views.prompts import lead_ids
from minillm_repl.views.steering import Named, random_steering_hooks, steering_hook

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_ROWS = 14  # layers on a screen
_ASKED = re.compile(r"(\S+)(?:\s+(from|save)\s+(.+))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class DirectionView(View):
    """A direction: how well it tells held-out texts apart after each layer. Layers count from 0."""

    name: str
    source: str
    model: str
    method: str
    pairs: tuple[int, int]
    best: int  # layer
    layers: tuple[LayerQuality, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each layer: held-out AUC and accuracy, beside random directions."""
        table = plain_table(
            _("layer"), "AUC", _("accuracy"), _("PC1 AUC"), _("accuracy"), _("random AUC"),
            _("cos"), _("norm"), right=range(8), wrap=(),
        )  # fmt: skip
        count = len(self.layers)
        everything = count <= _ROWS or width >= UNLIMITED_WIDTH
        shown = (
            list(range(count))
            if everything
            else sorted({round(row * (count - 1) / (_ROWS - 2)) for row in range(_ROWS - 1)}
                        | {self.best})
        )  # fmt: skip
        for layer in shown:
            each = self.layers[layer]
            table.add_row(
                Text(str(layer), TITLE if layer == self.best else ""),
                f"{each.auc:.3f}", f"{each.accuracy:.0%}",
                f"{each.pca_auc:.3f}", f"{each.pca_accuracy:.0%}", f"{each.random_auc:.3f}",
                f"{each.cosine:+.2f}", f"{each.norm:.1f}",
            )  # fmt: skip
        about = _("{train} pairs of {source}, {held} held out · {model}",
                  train=self.pairs[0], held=self.pairs[1], source=self.source,
                  model=self.model)  # fmt: skip
        legend = _(
            "on held-out texts: AUC 0.5 is chance · PC1: first principal "
            "component · random: 32 directions · cos: of the two · norm: of the residual stream "
            "there · `:steer {name}=0.2` adds 20% of that norm after layer {layer}",
            name=self.name,
            layer=self.best,
        )
        heading = title(_("direction {name}", name=self.name), about)
        return Group(heading, table, Text(legend, FIGURES))


def view_of(direction: Direction) -> DirectionView:
    """Return the view of a direction."""
    return DirectionView(
        name=direction.name,
        source=direction.source,
        model=direction.model,
        method=direction.method,
        pairs=direction.pairs,
        best=direction.best_layer,
        layers=direction.layers,
    )


def _is_saving(asked: Arguments) -> bool:
    parsed = _ASKED.fullmatch(asked.values.get("asked", ""))
    return parsed is not None and parsed[2] == "save"


@command(
    "direction",
    arguments=Forms(
        (
            Words("asked", "NAME [from FILE|save FILE]", completion="file"),
            ChoiceOption("method", "mean", "pca"),
        ),
        ("load", Words("file", "FILE", required=True, completion="file")),
        ("delete", Words("name", "NAME", required=True)),
    ),
    json=True,
    group="Interventions",
    restores=lambda asked: not _is_saving(asked),
    example=":direction polite from register-ko",
)
def direction(shell: "Shell", asked: Arguments) -> None:
    """Find a direction to steer by, from pairs of texts.

    :direction NAME from FILE reads a file with a pair in each line, two texts with a tab between
    them. The model reads each text after its start token, and the residual stream is read at the
    last token. `register-ko` (존댓말, 반말) and `register-en` (formal, casual) come with the
    program, 60 pairs each.

    Two directions are found after each layer, of norm 1: the difference of the means of both kinds,
    and the first principal component (PC1) of the differences within the pairs, as repeng has it.
    Every third pair is held out. accuracy: the share of held-out texts on their side of the middle.
    AUC: the chance that a text of the first kind lies further along than one of the second. The
    same of 32 random directions is beside them: it is the placebo.

    :steer NAME=0.2 steers by it: 0.2 of the norm of the residual stream at its best layer, or
    `:steer NAME=0.2 5` after layer 5. `method=pca` steers by PC1.
    :direction lists all, :direction NAME shows one, :direction delete NAME removes one.
    :direction NAME save FILE.safetensors keeps it, :direction load FILE brings it back. FILE.gguf
    is a control vector for llama.cpp; a scale of 0.2 means there what it means here.
    """
    directions = shell.session.workspace.directions
    if asked.keyword == "load":
        path = user_path(unquoted(asked.file))
        found = replace(load(path), line=f":direction load {_typed(path)}")
        directions[found.name] = found
        show(shell, view_of(found), asked.output)
    elif asked.keyword == "delete":
        require(shell, asked.name)
        del directions[asked.name]
        shell.screen.note(_("direction {name} removed", name=asked.name))
    elif not asked.asked:
        _list(shell)
    else:
        _make_show_or_save(shell, asked)


def require(shell: "Shell", name: str) -> Direction:
    """Return a direction of this session. Raises UserError if there is none of that name."""
    directions = shell.session.workspace.directions
    if name not in directions:
        raise UserError(
            _("no direction {name}: `:direction NAME from FILE` makes one", name=safe_line(name))
        )
    found: Direction = directions[name]
    return found


def _list(shell: "Shell") -> None:
    directions = shell.session.workspace.directions
    for each in directions.values():
        quality = each.layers[each.best_layer]
        auc = quality.pca_auc if each.method == "pca" else quality.auc
        shell.screen.note(
            _("{name}: {source}, layer {layer}, held-out AUC {auc:.3f}",
              name=each.name, source=each.source, layer=each.best_layer, auc=auc)
        )  # fmt: skip
    if not directions:
        names = ", ".join(shipped_pairs())
        shell.screen.note(
            _("no directions yet: `:direction NAME from FILE`, of a file of pairs or of {names}",
              names=names)
        )  # fmt: skip


def _make_show_or_save(shell: "Shell", asked: Arguments) -> None:
    parsed = _ASKED.fullmatch(asked.asked)
    if parsed is None:
        raise UsageError(_("unexpected argument {text!r}", text=safe_line(asked.asked[:40])))
    name, verb, file = parsed[1], parsed[2], unquoted((parsed[3] or "").strip())
    if verb == "from":
        if not NAME.fullmatch(name):
            raise UsageError(_("{name} is no name: letters and digits", name=safe_line(name[:40])))
        found = _make(shell, name, file, asked.method)
        shell.session.workspace.directions[name] = found
        show(shell, view_of(found), asked.output)
    elif verb == "save":
        _save(shell, replace(require(shell, name), method=asked.method), user_path(file))
    else:
        show(shell, view_of(require(shell, name)), asked.output)


def _make(shell: "Shell", name: str, file: str, method: str) -> Direction:
    """Return the direction that the pairs of a file give. Raises UserError."""
    model, detected, path = shell.require_model(), DetectedEncoding(), find_pairs(file)
    pairs = read_pairs(path, detected)
    for note in detected.notes(path):
        shell.screen.warn(note)
    tokenizer = model.checkpoint.tokenizer
    lead = lead_ids(tokenizer)
    texts = []
    for pair in pairs:
        ids = [(*lead, *tokenizer.encode(text, add_special=False)) for text in pair]
        if min(map(len, ids)) <= len(lead):
            raise UserError(_("the model knows no character of {text}", text=safe_line(pair[0])))
        first, second = (inspect_ids(shell, model, each) for each in ids)
        texts.append((first, second))
    with shell.screen.waiting(_("reading the pairs")) as update:
        mean, pca, layers = fit(
            texts, lambda share: update(_("reading the pairs  {share:.0%}", share=share))
        )
    held_out = len(pairs) // 3
    return Direction(
        name, safe_line(path.name), safe_line(model.name), method,
        (len(pairs) - held_out, held_out), mean, pca, layers,
        f":direction {name} from {_typed(path)} method={method}",
    )  # fmt: skip


def _typed(path: Path) -> str:
    """Return how a file is typed, from whatever folder."""
    name = str(path.absolute())
    return name if '"' in name else f'"{name}"'


def _save(shell: "Shell", found: Direction, path: Path) -> None:
    check_overwritable(path, overwrite=False)
    if path.suffix == ".gguf":
        from minillm_repl.checkpoint.gguf.write import save_control_vector

        scaled = {
            layer: vector * found.layers[layer].norm for layer, vector in enumerate(found.vectors)
        }
        model = shell.require_model()
        save_control_vector(path, scaled, model.checkpoint.model_type or "llama")
    else:
        save(found, path)
    shell.screen.note(
        _("direction {name} saved to {path}", name=found.name, path=safe_line(str(path)))
    )


def steer_along(shell: "Shell", named: Named, output: Output) -> None:
    """Add a direction after a layer from now on, times `strength` of the residual norm there, and
    show what that changes. Raises UserError.
    """
    import torch

    name, strength, layer = named
    found = require(shell, name)
    model = shell.require_model().without_interventions("steer")
    layer = found.best_layer if layer is None else layer
    check_layer(model.checkpoint.config, layer)
    config = model.checkpoint.config
    if found.vectors.shape != (config.n_layers, config.d_model):
        raise UserError(_("direction {name} is of another model: {model}",
                          name=name, model=found.model))  # fmt: skip
    absolute = strength * found.layers[layer].norm
    hook = steering_hook(torch.from_numpy(found.vectors[layer].copy()), layer, absolute)

    def describe() -> str:
        return _("steering by {name}={strength:g} at layer {layer}",
                 name=name, strength=strength, layer=layer)  # fmt: skip

    ids = shell.session.conversation.ids
    if ids:
        inspected = inspect_ids(shell, model, ids)
        hooks = random_steering_hooks(inspected, layer, absolute)
        show(shell, effect.compute(inspected, describe(), hook, hooks), output, model)
    if not strength:  # without a hook, the output stays the same to the last bit
        shell.session.workspace.remove_interventions("steer")
        shell.screen.note(_("strength=0 adds nothing: no steering is active"))
        return
    lines = found.line, f":steer {name}={strength!r} {layer}"
    shell.session.workspace.add_intervention(Intervention("steer", describe, hook, lines=lines))
    shell.screen.note(_("{change} · `:steer off` stops steering", change=describe()))
