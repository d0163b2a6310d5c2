"""What `:features` does: trains features, keeps them, and intervenes by them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook
from minillm_repl.render.console import FIGURES
from minillm_repl.render.drawing import title
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.model_loading import Intervention, LoadedModel
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import cache_folder, user_path
from minillm_repl.views.base import View, import_torch
from minillm_repl.views.features_dictionary import Dictionary, Figures, features_title
from minillm_repl.views.features_folder import CONFIG, load, save
from minillm_repl.views.features_train import (
    Trainer,
    collect,
    find_examples,
    max_windows,
    measure,
)
from minillm_repl.views.inspected_text import InspectedText, check_layer
from minillm_repl.views.lens_maps import digest
from minillm_repl.views.prompts import with_time_left
from minillm_repl.views.steering import steering_hook
from minillm_repl.views.windows import text_windows

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_WINDOW = 128  # tokens, or the context
_HELD_OUT = 32  # windows, at most; a tenth
_SHOWN_EVERY = 10  # steps between two figures


@dataclass(frozen=True, kw_only=True)
class TrainedView(View):
    """What a training of features has come to."""

    layer: int
    features: int
    k: int
    steps: int
    source: str
    figures: Figures | None
    kind: str  # `sae`, or `transcoder`: from the input of the MLP to what it adds

    def draw(self, _width: int) -> RenderableType:
        """Return the figures."""
        heading = title(
            features_title(self.layer, self.kind),
            _("{n:,} features, k={k}, {steps:,} steps",
              n=self.features, k=self.k, steps=self.steps),
        )  # fmt: skip
        return Group(heading, about(self.figures, self.features))


def about(figures: Figures | None, features: int) -> Text:
    """Return how good the features are."""
    if figures is None:
        return Text(_("not measured on a text yet: `:features open FOLDER text=FILE`"), FIGURES)
    told = _(
        "on held-out text: loss {loss:.3f}, with the features {with_:.3f}, with 0 in their place "
        "{without:.3f} nats: {recovered:.1%} recovered · {explained:.1%} of the variance · "
        "{l0:.1f} active at a token · {dead:,} of {all:,} never active",
        loss=figures.loss, with_=figures.loss_with, without=figures.loss_without,
        recovered=figures.recovered, explained=figures.explained, l0=figures.l0,
        dead=figures.dead, all=features,
    )  # fmt: skip
    return Text(told, FIGURES)


def folders(model: LoadedModel) -> list[Path]:
    """Return the folders of the model's features, the newest first."""
    root = cache_folder("features") / digest(model)
    found = [path.parent for path in root.glob(f"*/{CONFIG}")] if root.is_dir() else []
    return sorted(found, key=lambda folder: -(folder / CONFIG).stat().st_mtime_ns)


def stored(shell: "Shell", layer: int | None) -> Dictionary:
    """Return the features of a layer, or those that were trained last. Raises UserError."""
    model = shell.require_model()
    import_torch(shell)
    for folder in folders(model):
        if layer is None or folder.name in (f"layer-{layer}", f"layer-{layer}-mlp"):
            device = next(model.language_model.parameters()).device
            return on_device(load(folder, model.checkpoint.config), device)
    raise UserError(
        _("this model has no features yet: `:features train layer=0 text=FILE` trains some")
        if layer is None
        else _("layer {layer} has no features yet: `:features train layer={layer} text=FILE`",
               layer=layer)
    )  # fmt: skip


def on_device(dictionary: Dictionary, device: object) -> Dictionary:
    """Return the same with its weights on a device."""
    names = ("encoder", "decoder", "encoder_bias", "decoder_bias", "threshold")
    found = {name: getattr(dictionary, name) for name in names}
    return replace(dictionary, **{name: each.to(device) for name, each in found.items()
                                  if each is not None})  # fmt: skip


def _keep(model: LoadedModel, dictionary: Dictionary) -> None:
    mlp = "-mlp" if dictionary.is_transcoder else ""
    folder = cache_folder("features") / digest(model) / f"layer-{dictionary.layer}{mlp}"
    save(dictionary, folder, model.name, replace_files=True)


def _windows(model: LoadedModel, file: str) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return windows of a text to train on, and those held out. Raises UserError."""
    from minillm_repl.evaluation.items import read_whole

    if not file:
        raise UserError(_("which text? `:features train layer=0 text=FILE`"))
    config = model.checkpoint.config
    size = min(_WINDOW, config.context_length)
    windows = text_windows(model, read_whole(user_path(file)), max_windows(config.d_model, size),
                           size)  # fmt: skip
    held = max(1, min(_HELD_OUT, len(windows) // 10))
    measured = windows[:: len(windows) // held][:held]
    chosen = set(measured)
    return [each for each in windows if each not in chosen] or windows, measured


def train(shell: "Shell", asked: Arguments, *, is_more: bool) -> TrainedView:
    """Train features, or train them further, and keep them, also after Ctrl-C. Raises UserError."""
    model = shell.require_model()
    start = stored(shell, asked.layer) if is_more else None
    layer = start.layer if start else asked.layer
    if layer is None:
        layer = model.checkpoint.config.n_layers // 2
    check_layer(model.checkpoint.config, layer)
    if start and (start.threshold is not None or not start.k):
        raise UserError(_("only features of the kind TopK can be trained further"))
    import_torch(shell)
    plain = InspectedText(model.language_model, model.checkpoint.tokenizer, (0,))
    with shell.screen.waiting(_("reading the text")) as update:
        learnt, held = _windows(model, asked.text)
        is_mlp = start.is_transcoder if start else asked.kind == "transcoder"
        names = ("mlp.in", "mlp.out") if is_mlp else ("residual",)
        told = with_time_left(update, _("reading the text"))
        read = partial(collect, plain, learnt, interrupted=shell.interrupted, progress=told)
        streams, *targets = (read(f"blocks.{layer}.{name}") for name in names)
        size = start.size if start else asked.width * model.checkpoint.config.d_model
        k = start.k if start else asked.k
        trainer = Trainer(streams, layer, k, size, start, targets=targets[0] if targets else None)
        for step in trainer.steps(asked.steps):
            if shell.interrupted():
                break
            if step % _SHOWN_EVERY == 0:
                update(_progress(trainer, asked.steps))
        update(_("measuring"))
        stopped = shell.interrupted()
        source = safe_line(user_path(asked.text).name)
        dictionary = replace(trainer.dictionary(), source=source)
        dictionary = _with_figures(dictionary, plain, (learnt, held), streams, stopped=stopped)
    if stopped:
        shell.screen.note(_("stopped early; `:features more text=FILE` goes on"))
    _keep(model, dictionary)
    return view_of(dictionary)


def _progress(trainer: Trainer, steps: int) -> str:
    return _(
        "step {done:,} of {steps:,} · {explained:.1%} of the variance · L0 {l0:.1f} · "
        "{dead:,} dead",
        done=trainer.step, steps=steps, explained=1 - trainer.loss, l0=trainer.l0,
        dead=trainer.dead,
    )  # fmt: skip


def _with_figures(
    dictionary: Dictionary,
    plain: InspectedText,
    windows: tuple[list[tuple[int, ...]], list[tuple[int, ...]]],
    streams: "Tensor",
    *,
    stopped: bool,
) -> Dictionary:
    """Return a dictionary with its figures and the texts of its features.

    After Ctrl-C, from a little text: that is soon done, and the same Ctrl-C does not count again.
    """
    learnt, held = windows
    few: Callable[[], bool] = lambda: stopped  # noqa: E731 - a question that is asked
    return replace(
        dictionary,
        figures=measure(dictionary, plain, held[:1] if stopped else held),
        examples=find_examples(dictionary, streams, learnt, few),
    )


def view_of(dictionary: Dictionary) -> TrainedView:
    """Return what features have come to."""
    return TrainedView(
        layer=dictionary.layer, features=dictionary.size, k=dictionary.k, steps=dictionary.steps,
        source=dictionary.source, figures=dictionary.figures, kind=dictionary.kind,
    )  # fmt: skip


def open_folder(shell: "Shell", path: str, file: str) -> TrainedView:
    """Open a folder of SAELens for the model, and keep it as its features. Raises UserError."""
    model = shell.require_model()
    import_torch(shell)
    dictionary = load(user_path(path), model.checkpoint.config)
    if file:
        device = next(model.language_model.parameters()).device
        dictionary = replace(on_device(dictionary, device), source=user_path(file).name)
        plain = InspectedText(model.language_model, model.checkpoint.tokenizer, (0,))
        with shell.screen.waiting(_("measuring")):
            learnt, held = _windows(model, file)
            streams = collect(plain, learnt, dictionary.reads, shell.interrupted)
            windows = (learnt, held)
            dictionary = _with_figures(dictionary, plain, windows, streams, stopped=False)
    _keep(model, dictionary)
    return view_of(dictionary)


def save_folder(shell: "Shell", path: str, layer: int | None) -> None:
    """Write the features of a layer as a folder of SAELens. Raises UserError."""
    folder = user_path(path)
    save(stored(shell, layer), folder, shell.require_model().name)
    shell.screen.note(_("features saved to {path}", path=safe_line(str(folder))))


# -- interventions


def ablating_hook(dictionary: Dictionary, feature: int) -> Hook:
    """Return a hook that subtracts what a feature adds to the stream, wherever it is active."""
    read: dict[str, Tensor] = {}  # of the present pass, what the MLP reads

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name == dictionary.reads:
            read[name] = tensor
        if name != dictionary.writes:
            return tensor
        x = read.pop(dictionary.reads).float()
        active = dictionary.encode(x)[..., feature : feature + 1]  # (b, t, 1)
        return tensor - (active * dictionary.decoder[feature]).to(tensor)

    return hook


def intervene(shell: "Shell", asked: Arguments) -> None:
    """Steer by a feature, or ablate it, until `:features off`. Raises UserError."""
    from torch.nn.functional import normalize

    dictionary = stored(shell, asked.layer)
    feature, layer = dictionary.feature(asked.number), dictionary.layer
    if asked.keyword == "ablate":
        hook = ablating_hook(dictionary, feature)

        def describe() -> str:
            return _("feature {n} of layer {layer} ablated", n=feature, layer=layer)

    else:
        if not asked.strength:  # without a hook, the output stays the same to the last bit
            shell.screen.note(_("strength=0 adds nothing: no steering is active"))
            return
        vector = normalize(dictionary.decoder[feature], dim=0)
        hook, strength = steering_hook(vector, layer, asked.strength), asked.strength

        def describe() -> str:
            return _("feature {n} of layer {layer} added, strength {strength:g}",
                     n=feature, layer=layer, strength=strength)  # fmt: skip

    component = f"{layer}.{feature}"
    # Which layer is meant without `layer=` changes when other features are trained.
    option = f" strength={asked.strength!r}" if asked.keyword == "steer" else ""
    line = f":features {asked.keyword} {feature} layer={layer}{option}"
    change = Intervention("features", describe, hook, component, lines=(line,))
    shell.session.workspace.add_intervention(change)
    shell.screen.note(_("{change} · `:features off` ends it", change=describe()))


def off(shell: "Shell") -> None:
    """End all interventions by features."""
    removed = shell.session.workspace.remove_interventions("features")
    shell.screen.note(
        _("features: all interventions removed")
        if removed
        else _("no feature is steered or ablated")
    )
