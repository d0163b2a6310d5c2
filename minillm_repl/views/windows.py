"""Windows of tokens that a view reads beside the text: of a text file, or samples of the model."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.storage.paths import user_path

if TYPE_CHECKING:
    from minillm_repl.repl.model_loading import LoadedModel
    from minillm_repl.repl.shell import Shell

Interrupted = Callable[[], bool]

_MIN_TOKENS = 4  # of a window


def text_windows(model: "LoadedModel", text: str, count: int, size: int) -> list[tuple[int, ...]]:
    """Return windows of `size` tokens, spread evenly over a text, each after the start token.

    They do not overlap; there are fewer than `count` where the text is short, and shorter ones
    where it is very short. Raises UserError if the text is too short for two.
    """
    tokenizer = model.checkpoint.tokenizer
    start = tuple(tokenizer.start_ids)
    row = tokenizer.encode(text)[len(start) :]
    inner = min(size - len(start), len(row) // 2)
    if inner < _MIN_TOKENS:
        raise UserError(_("the text has {n} tokens: too few", n=len(row)))
    there = len(row) // inner
    chosen = (there * each // min(count, there) for each in range(min(count, there)))
    return [(*start, *row[at * inner : (at + 1) * inner]) for at in chosen]


def sample_windows(
    model: "LoadedModel", count: int, size: int, interrupted: Interrupted
) -> Iterator[tuple[int, ...]]:
    """Yield samples of the model, each `size` tokens long, at temperature 1 with no other sampler.

    Each begins with the start token, or with a token by chance. Raises UserError after Ctrl-C.
    """
    from minillm_repl.generate import GenerationConfig, Sampling, Step
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.sampling import make_rng

    decoder, tokenizer = model.base_decoder or model.decoder, model.checkpoint.tokenizer
    for number in range(count):
        rng = make_rng(number)
        start = tuple(tokenizer.start_ids) or (int(rng.integers(tokenizer.vocab_size)),)
        config = GenerationConfig(max_tokens=size - len(start), sampling=Sampling(temp=1.0))
        events = generate(decoder, tokenizer, start, config, rng, interrupted)
        ids = [event.id for event in events if isinstance(event, Step)]
        if interrupted():
            raise UserError(_("stopped"))
        yield (*start, *ids)


def file_windows(
    shell: "Shell",
    model: "LoadedModel",
    file: str,
    count: int,
    size: int,
    update: Callable[[str], None],
) -> list[tuple[int, ...]]:
    """Return windows of a text file, or without one, samples of the model. Raises UserError."""
    from minillm_repl.evaluation.items import read_whole

    if file:
        return text_windows(model, read_whole(user_path(file)), count, size)
    windows = list[tuple[int, ...]]()
    for window in sample_windows(model, count, size, shell.interrupted):
        windows.append(window)
        update(_("sampling: {done:,} of {total:,} texts", done=len(windows), total=count))
    return windows
