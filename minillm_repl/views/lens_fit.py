"""Fits the Jacobian lens or the tuned lens of the open model, on a text or on samples
of the model.

Both are fitted on windows of tokens, and measured on other windows of the same text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path
from minillm_repl.views.base import import_torch
from minillm_repl.views.inspected_text import InspectedText, check_finite
from minillm_repl.views.lens_maps import (
    Kind,
    LensMaps,
    digest,
    lens_name,
    measure,
    places,
    save,
)
from minillm_repl.views.prompts import with_time_left
from minillm_repl.views.windows import file_windows

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

Interrupted = Callable[[], bool]
Windows = Sequence[tuple[int, ...]]
Progress = tuple[Callable[[], LensMaps], int]
"""What returns the lens as it is now, and how many texts or steps it has."""

TEXTS = {"j": 32, "tuned": 64}  # that a lens is fitted on, if not said
_SKIPPED = 16  # positions at the start, where attention goes that has nothing to do
_HELD_OUT = 16  # windows, at most; at least one
_MAX_BATCH = 16  # output dimensions in one backward pass
_LAYER_WORK = 20_000_000_000  # multiplications of a layer: Ctrl-C is looked for between two
_KEPT = 1 << 27  # numbers that a backward pass keeps: 512 MiB
_LOGITS = 1 << 22  # numbers of the logits in a step of training
_RATE = 3e-3  # of Adam, which falls to 0


# -- the Jacobian lens


def jacobians(
    text: InspectedText,
    interrupted: Interrupted,
    progress: Callable[[float], None] = lambda _share: None,
) -> "dict[str, Tensor]":
    """Return J of each place over one text: (d_model, d_model).

    J = mean over the positions t of Σ over t' ≥ t of ∂h_final[t'] / ∂h[t], where h_final is the
    last layer's output before the norm. The first positions and the last one count neither as t nor
    as t'. One backward pass has a dimension of h_final in each row of its batch, at all t' at once.
    """
    import torch

    config, names = text.config, places(text.config)
    last, length = f"blocks.{config.n_layers - 1}.residual", len(text.ids)
    valid = slice(min(_SKIPPED, length // 4), length - 1)
    work = 4 * config.n_params * length // config.n_layers
    kept = length * config.n_layers * (10 * config.d_model + 3 * config.d_mlp)  # about
    # Many dimensions at once: the weights, which take longest, are then read once for all of them.
    rows = max(1, min(_MAX_BATCH, config.d_model, _LAYER_WORK // work, _KEPT // kept))
    streams: dict[str, Tensor] = {}

    def stop(_gradient: "Tensor") -> None:
        if interrupted():
            raise UserError(_("stopped"))

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name == "embedding":
            tensor = tensor.detach().requires_grad_()
        if name in names or name == last:
            tensor.register_hook(stop)  # type: ignore[no-untyped-call]
            streams[name] = tensor
        return tensor

    with torch.enable_grad():
        text.model(text.input_ids.expand(rows, -1), hook=hook, last_only=True)
    check_finite(streams[last].detach())
    inputs = [streams[name] for name in names]
    found = {name: torch.empty(config.d_model, config.d_model) for name in names}
    for first in range(0, config.d_model, rows):
        count = min(rows, config.d_model - first)
        cotangent = torch.zeros_like(streams[last])  # (rows, time, d_model)
        for row in range(count):
            cotangent[row, valid, first + row] = 1
        is_last = first + rows >= config.d_model
        gradients = torch.autograd.grad(streams[last], inputs, cotangent, retain_graph=not is_last)
        for name, gradient in zip(names, gradients, strict=True):
            found[name][first : first + count] = gradient[:count, valid].mean(1).cpu()
        progress((first + count) / config.d_model)
    return found


def fit_jacobian(
    text: InspectedText,
    windows: Windows,
    interrupted: Interrupted,
    progress: Callable[[float], None] = lambda _share: None,
) -> Iterator[Progress]:
    """Yield the lens after each window: the mean of their Jacobians.

    `progress` is called with the share of all windows that is done, 0 to 1. Raises UserError after
    Ctrl-C.
    """
    import torch

    total: dict[str, Tensor] = {}
    zeros = torch.zeros(text.config.d_model)
    for done, window in enumerate(windows, 1):
        before = done - 1
        part = lambda share, before=before: progress((before + share) / len(windows))  # noqa: E731
        for name, found in jacobians(replace(text, ids=window), interrupted, part).items():
            total[name] = total[name] + found if name in total else found
        maps = {name: each / done for name, each in total.items()}
        yield partial(_maps, "j", maps, dict.fromkeys(maps, zeros), windows[:done], 0), done


# -- the tuned lens


def tuned_loss(text: InspectedText, final: "Tensor", mapped: "Tensor") -> "Tensor":
    """Return the mean of KL(final ‖ lens) over all tokens, in nats.

    `final` are the log-probabilities of the model (..., vocab), `mapped` the streams after the
    lens (..., d_model).
    """
    here = text.model.unembed(mapped).log_softmax(-1)  # (..., vocab)
    return (final.exp() * (final - here)).sum(-1).mean()


def fit_tuned(
    text: InspectedText, windows: Windows, steps: int, interrupted: Interrupted
) -> Iterator[Progress]:
    """Yield the lens after each step of training, and before the first: the identity, which is the
    logit lens. Each layer learns by itself. Raises UserError after Ctrl-C.
    """
    import torch

    names, size = places(text.config), text.config.d_model
    device = next(text.model.parameters()).device
    maps = {name: torch.eye(size, device=device, requires_grad=True) for name in names}
    biases = {name: torch.zeros(size, device=device, requires_grad=True) for name in names}
    optimizer = torch.optim.Adam([*maps.values(), *biases.values()], lr=_RATE)
    batch = max(1, min(8, _LOGITS // (text.config.vocab_size * len(windows[0]))))
    generator = torch.Generator().manual_seed(0)

    def present() -> LensMaps:
        now = [{name: each.detach().clone() for name, each in part.items()}
               for part in (maps, biases)]  # fmt: skip
        return _maps("tuned", now[0], now[1], windows, step)

    for step in range(steps + 1):
        yield present, step
        if step == steps:
            return
        chosen = torch.randint(len(windows), (batch,), generator=generator).tolist()
        ids = torch.tensor([windows[each] for each in chosen], device=device)  # (b, t)
        streams = _streams(text, ids, names)
        final = streams.pop("logits").log_softmax(-1)  # (b, t, vocab)
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        for name in names:
            if interrupted():
                raise UserError(_("stopped"))
            with torch.enable_grad():
                mapped = streams[name] @ maps[name].T + biases[name]
                tuned_loss(text, final, mapped).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def _streams(text: InspectedText, ids: "Tensor", names: list[str]) -> "dict[str, Tensor]":
    """Return the streams at the places (b, t, d_model), and the `logits` (b, t, vocab)."""
    import torch

    from minillm_repl.model.hooks import caching

    cache: dict[str, Tensor] = {}
    with torch.no_grad():
        logits = text.model(ids, hook=caching(cache, lambda name: name in names))
    return {**cache, "logits": check_finite(logits)}


def _maps(
    kind: Kind, maps: "dict[str, Tensor]", biases: "dict[str, Tensor]", windows: Windows, steps: int
) -> LensMaps:
    return LensMaps(
        kind=kind, maps=maps, biases=biases, source="", texts=len(windows),
        tokens=len(windows[0]), steps=steps,
    )  # fmt: skip


# -- a whole fit


def fit(
    shell: "Shell", kind: Kind, file: str, texts: int | None, tokens: int, steps: int
) -> LensMaps:
    """Fit a lens of the open model, measure it, and keep it. Without a file, on its own samples.

    Ctrl-C ends the fit; what is there by then is measured and kept. Raises UserError.
    """
    model = shell.require_model()
    import_torch(shell)
    plain = InspectedText(model.language_model, model.checkpoint.tokenizer, (0,))
    count, size = texts or TEXTS[kind], min(tokens, model.checkpoint.config.context_length)
    with shell.screen.waiting(_("reading the text")) as update:
        windows = file_windows(
            shell, model, file, count + min(_HELD_OUT, -(-count // 4)), size, update
        )
        held = max(1, min(_HELD_OUT, len(windows) // 5))
        # Spread over the text, as those that are fitted on.
        measured = windows[:: len(windows) // held][:held]
        learnt = [each for each in windows if each not in measured] or windows
        progress = with_time_left(update, _fitting(kind, len(learnt)))
        events = (
            fit_jacobian(plain, learnt, shell.interrupted, progress)
            if kind == "j"
            else fit_tuned(plain, learnt, steps, shell.interrupted)
        )
        now = None
        try:
            for now, done in events:  # noqa: B007 - the last one counts
                if kind == "tuned":
                    progress(done / steps)
        except UserError:
            if now is None or not shell.interrupted():
                raise
        assert now is not None
        maps = replace(now(), source=safe_line(user_path(file).name) if file else "")
        is_stopped = shell.interrupted()
        update(_("measuring"))
        # After Ctrl-C a window is enough, and that Ctrl-C does not count again.
        subjects = [replace(plain, ids=ids) for ids in (measured[:1] if is_stopped else measured)]
        never = (lambda: False) if is_stopped else shell.interrupted
        maps = replace(maps, held_out=measure(maps, subjects, never))
    if is_stopped:
        shell.screen.note(_("stopped early; the lens so far is kept"))
    save(maps, digest(model))
    return maps


def _fitting(kind: Kind, texts: int) -> str:
    """Return what is being done, which may take an hour: the lens, and how many texts."""
    return _("fitting the {lens} on {n} texts", lens=lens_name(kind), n=texts)
