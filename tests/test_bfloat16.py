"""bfloat16 and 8-bit floats without a library, against torch; and weights that are held once."""

import tracemalloc

import numpy as np
import pytest
import torch

from minillm_repl.checkpoint import weights
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.model.bfloat16 import (
    BFLOAT16,
    convert,
    dtype_name,
    float8_to_float32,
    is_finite,
    to_float32,
)
from minillm_repl.model.build import to_torch
from tests.small import random_checkpoint


def every_bfloat16():
    return np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16)


def test_every_bfloat16_widens_to_the_float32_of_torch():
    expected = to_torch(every_bfloat16()).float().numpy()
    np.testing.assert_array_equal(
        to_float32(every_bfloat16()).view(np.uint32), expected.view(np.uint32)
    )


def test_float32_rounds_as_in_torch():
    """Ties, numbers beside ties, infinities, the smallest numbers; NaN stays NaN."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    near_ties = [upper | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    random_bits = np.random.default_rng(0).integers(0, 1 << 32, 3_000_000, dtype=np.uint32)
    values = np.concatenate([*near_ties, random_bits]).view(np.float32)
    expected = torch.from_numpy(values).bfloat16()
    rounded = convert(values, BFLOAT16)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(
        rounded.view(np.uint16)[numbers], expected.view(torch.uint16).numpy()[numbers]
    )
    assert np.isnan(to_float32(rounded)[~numbers]).all()


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_other_floats_become_bfloat16_and_back_as_in_torch(name):
    dtype = np.dtype(name)
    values = np.random.default_rng(0).normal(size=(50, 40)).astype(dtype)
    rounded = convert(values, BFLOAT16)
    expected = torch.from_numpy(values).bfloat16()
    assert torch.equal(to_torch(rounded), expected)
    back = convert(rounded, dtype)
    assert torch.equal(torch.from_numpy(back), expected.to(getattr(torch, name)))


@pytest.mark.parametrize(
    ("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)]
)
def test_every_8_bit_float_is_that_of_torch(name, dtype):
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(dtype).float().numpy()
    np.testing.assert_array_equal(float8_to_float32(codes, name), expected)


def test_numpy_refuses_to_compute_with_bfloat16():
    """Otherwise a forgotten conversion would compute with the bits as whole numbers."""
    array = convert(np.ones((2, 3), np.float32), BFLOAT16)
    with pytest.raises(ValueError, match="sequence"):
        array.astype(np.float32)
    with pytest.raises(TypeError):
        array * 2
    with pytest.raises(TypeError):
        torch.from_numpy(array)


def test_every_dtype_has_its_usual_name():
    dtypes = (BFLOAT16, np.dtype(np.float32), np.dtype(np.float16))
    assert [*map(dtype_name, dtypes)] == ["bfloat16", "float32", "float16"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan, 3e38, -3e38, 0.0])
def test_is_finite_is_that_of_numpy(value):
    values = np.array([1.0, value, -2.0], np.float32)
    for dtype in (BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)):
        assert is_finite(convert(values, dtype)) == np.isfinite(value)


def test_a_bfloat16_model_is_held_once(tmp_path):
    """Beside the weights, less than one more matrix is allocated; torch shares their memory."""
    model = random_checkpoint(vocab=2_000, width=240, layers=3)
    path = save(model, tmp_path / "wide.safetensors").path
    narrow = load(path, dtype="bfloat16")
    save(narrow, tmp_path / "narrow.safetensors")
    tracemalloc.start()
    checkpoint = load(tmp_path / "narrow.safetensors")
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sizes = [array.nbytes for array in checkpoint.tensors.values()]
    assert checkpoint.dtype == "bfloat16"
    assert peak < sum(sizes) + 2 * max(sizes)
    for array in checkpoint.tensors.values():
        assert to_torch(array).data_ptr() == array.ctypes.data


def test_a_bfloat16_file_is_written_as_it_was_read(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save(load(save(random_checkpoint(), first).path, dtype="bfloat16"), first)
    save(load(first), second)
    assert first.read_bytes() == second.read_bytes()
    assert weights.DTYPES["BF16"] == BFLOAT16
