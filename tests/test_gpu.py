"""A GPU, where there is one: its recorded step says what the model says, and all else works.

How the step looks that is recorded is checked without a GPU too: it is the same Python.
"""

import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.generate import prefill
from minillm_repl.model.attention import KVCache
from minillm_repl.model.bfloat16 import BFLOAT16, convert, to_float32
from minillm_repl.model.build import build
from tests.conftest import ROOT
from tests.test_huggingface import logits_of, random_ids
from tests.test_kernel_decoder import family  # noqa: F401 - a fixture
from tests.test_terminal import models, visit  # noqa: F401 - fixtures
from tests.test_training_runs import SIZES, losses, run, start, train, until, with_text

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
PROGRAM = [sys.executable, "-m", "minillm_repl"]
VIEWS = [
    "attn", "attn 0.1", "lens", "why", "why vs 다", "residual", "shapes", "grad", "qkv 0.1",
    "neurons 0", "surprise", "sampler", "near 가", "map", "patch 날씨가 좋 -> 산책을 하",
    "ablate scan",
]  # fmt: skip


@torch.inference_mode()
def test_a_token_may_stand_where_a_number_on_the_device_says(family):
    theirs, checkpoint = family
    ids = random_ids(300)
    expected = logits_of(theirs, ids)[0]
    model = build(checkpoint.config, checkpoint.tensors)
    kv = KVCache(model.config, torch.device("cpu"))
    model(ids[:, :140], kv)
    assert kv.capacity == 256
    for place in (140, 141, 142):
        with kv.static(torch.tensor([place])):
            logits = model(ids[:, place : place + 1], kv)
        torch.testing.assert_close(logits[0, 0], expected[place], rtol=0, atol=1e-4)
    kv.length = 143
    torch.testing.assert_close(model(ids[:, 143:150], kv)[0], expected[143:150], rtol=0, atol=1e-4)


def test_where_a_step_cannot_be_recorded_its_operations_are_launched(family):
    _, checkpoint = family
    ours, expected = (TorchDecoder(build(checkpoint.config, checkpoint.tensors)) for _ in range(2))
    ours._uses_cuda_graph = True  # as on a GPU, and this is none
    for decoder in (ours, expected):
        decoder.prefill([1, 2, 3])
    for token in (4, 5):
        np.testing.assert_array_equal(ours.decode(token), expected.decode(token))
    assert ours.ids == expected.ids == [1, 2, 3, 4, 5]
    assert ours.name == expected.name


@gpu
def test_logits_of_every_family_are_those_of_transformers(family):
    """Read at once, in parts, and token by token, while the cache grows three times."""
    theirs, checkpoint = family
    ids = random_ids(300)
    expected = logits_of(theirs, ids)[0].numpy()
    ours = make_decoder(checkpoint, "cuda")
    for first in (1, 100, 200):
        ours.trim(0)
        np.testing.assert_allclose(
            ours.prefill(ids[0, :first].tolist()), expected[first - 1], rtol=0, atol=1e-3
        )
        middle = first + 30
        np.testing.assert_allclose(
            ours.prefill(ids[0, first:middle].tolist()), expected[middle - 1], rtol=0, atol=1e-3
        )
        for place in range(middle, 300):
            np.testing.assert_allclose(
                ours.decode(int(ids[0, place])), expected[place], rtol=0, atol=1e-3
            )


@gpu
def test_the_cache_never_changes_what_is_read(family):
    _, checkpoint = family
    used, fresh = (
        make_decoder(checkpoint, "cuda"),
        TorchDecoder(build(checkpoint.config, checkpoint.tensors)),
    )
    used.context_length = fresh.context_length = 40
    rng, text = np.random.default_rng(2), []
    for _ in range(25):
        text = (
            text[: rng.integers(0, len(text) + 1)]
            + rng.integers(0, 97, rng.integers(1, 4)).tolist()
        )
        fresh.trim(0)
        np.testing.assert_allclose(prefill(used, text), prefill(fresh, text), rtol=0, atol=1e-3)
        assert used.ids == fresh.ids


@gpu
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_weights_of_16_bits_are_computed_with_in_float32(family, kind):
    """Prompts, and the step that is recorded: both widen a matrix where they use it."""
    _, checkpoint = family
    dtype = BFLOAT16 if kind == "bfloat16" else np.dtype(kind)
    tensors = {name: convert(array, dtype) for name, array in checkpoint.tensors.items()}
    exact = build(checkpoint.config, {name: to_float32(array) for name, array in tensors.items()})
    ids = random_ids(300)
    expected = logits_of(exact.double(), ids)[0].numpy()
    ours = TorchDecoder(build(checkpoint.config, tensors).cuda())
    for first, last in ((0, 100), (100, 200)):
        np.testing.assert_allclose(
            ours.prefill(ids[0, first:last].tolist()), expected[last - 1], rtol=0, atol=1e-4
        )
    for place in range(200, 300):
        np.testing.assert_allclose(
            ours.decode(int(ids[0, place])), expected[place], rtol=0, atol=1e-4
        )


@gpu
def test_another_model_may_be_loaded_while_a_step_is_recorded(nalssi):
    done = threading.Event()

    def load_again():
        while not done.is_set():
            build(nalssi.config, nalssi.tensors).cuda()

    thread = threading.Thread(target=load_again)
    thread.start()
    try:
        for _ in range(20):
            decoder = make_decoder(nalssi, "cuda")
            decoder.prefill([1])
            decoder.decode(2)
    finally:
        done.set()
        thread.join()


def said(folder, device, lines):
    """What the program prints for these lines."""
    done = subprocess.run(
        [*PROGRAM, "--ckpt", "nalssi", "--device", device, "--seed", "1"],
        input="\n".join(lines),
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "HOME": str(folder)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(value):
    """All numbers of a view, in their order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


@gpu
def test_every_view_shows_what_it_shows_elsewhere(tmp_path):
    views = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        folder.mkdir()
        files = [f"{place}.json" for place in range(len(VIEWS))]
        asked = [
            f":{name.partition(' ')[0]} --json {file} {name.partition(' ')[2]}"
            if name.startswith("patch")
            else f":{name} --json {file}"
            for name, file in zip(VIEWS, files, strict=True)
        ]
        said(folder, device, [":temp 0", ":max-tokens 6", "날씨가", *asked])
        views[device] = [numbers(json.loads((folder / file).read_text())) for file in files]
    for name, here, there in zip(VIEWS, views["cpu"], views["cuda"], strict=True):
        np.testing.assert_allclose(there, here, rtol=2e-3, atol=2e-3, err_msg=name)


@gpu
def test_what_is_changed_changes_the_text_and_is_not_recorded(tmp_path):
    lines = [
        ":temp 0",
        ":max-tokens 8",
        ":model",
        "날씨가",
        ":ablate 0",
        ":clear",
        ":model",
        "날씨가",
        ":ablate off",
    ]
    here, there = (said(tmp_path, device, lines).splitlines() for device in ("cpu", "cuda"))
    texts = [[line for line in output if line.startswith("날씨가")] for output in (here, there)]
    assert texts[0] == texts[1]
    # not while it is changed
    assert sum("one CUDA graph per token" in line for line in there) == 1


@gpu
def test_ctrl_c_comes_back_with_what_was_written(visit):
    terminal = visit("--device", "cuda")
    terminal.wait_for_prompt()
    terminal.do("가", timeout=60)
    terminal.do(":max-tokens 1000000")
    terminal.send("가")
    terminal.wait_for("파하:가나다라마바사아자차카타파하:가나다라")
    terminal.keys("ctrl-c")
    terminal.wait_for("stopped by Ctrl-C")
    terminal.wait_for(lambda terminal: terminal.at_empty_prompt)


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_is_told_to_end_goes_on_where_it_was(tmp_path, precision):
    folder = with_text(tmp_path)
    cuda = ["--device", "cuda", "--precision", precision, "--dropout", "0.1"]
    whole = losses(train(folder, "whole", *cuda)[0])
    given = ["--ckpt", "cut.safetensors", "--train", "text.txt", "--json", "--steps", 60]
    process = start(folder, *given, *SIZES, *cuda)
    until(process, "train_step", 20)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    rest = losses(
        run(folder, "--ckpt", "cut.safetensors", "--resume", "--json", "--device", "cuda")[0]
    )
    assert 0 < len(rest) < len(whole)
    np.testing.assert_allclose(
        rest, whole[-len(rest) :], rtol=2e-2 if precision == "bfloat16" else 1e-3
    )
    assert whole[-1] < whole[0]
