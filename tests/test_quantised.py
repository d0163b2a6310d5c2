"""Weights in 8 and 4 bits: what is lost by rounding, and that nothing else is; the oracle is
numpy in float64.
"""

import numba
import numpy as np
import pytest

from minillm_repl.checkpoint.load import load
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.compiled.matrices import LIKE, product, row_of
from minillm_repl.generate.backends.compiled.quantised import quantise, rounded
from minillm_repl.generate.backends.compiled.room import PIECE, ROOM, SPARE
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.model.build import build
from minillm_repl.model.layers import QuantisedWeight
from minillm_repl.model.quantised import GROUP_SIZE, PANEL_ROWS
from tests.conftest import run_on
from tests.test_huggingface import FAMILIES, random_ids, random_model

SHAPES = [(1, 1), (16, 32), (50, 70), (97, 31), (33, 200)]


@numba.njit
def _multiply(counters, at, like, x, y, stream, rooms):
    product(counters, 1, 0, at, like, x, y, stream, rooms[0])


@numba.njit
def _row(at, like, row, y):
    row_of(at, like, row, y)


def multiply(at, like, x, y, stream):
    """Let one thread multiply, with room for what it does meanwhile."""
    arrays = {
        "panel": np.empty(x.shape[1] * PANEL_ROWS, np.float32),
        "few": np.empty((PIECE + SPARE) * PANEL_ROWS, np.float32),
    }
    rooms, counters = np.zeros(1, ROOM), np.zeros(64, np.int64)
    for name, array in arrays.items():
        rooms[f"{name}_at"] = array.ctypes.data
    _multiply(counters.ctypes.data, at, like, x, y, stream, rooms)


def table(matrix, bits, bias):
    """What compiled code reads of a matrix: addresses, an array like it, what keeps both alive."""
    small = quantise(matrix, bits)
    arrays = small.packed_weights, small.scales, bias
    at = np.array([array.ctypes.data if len(array) else 0 for array in arrays], np.uint64)
    return at, LIKE[f"int{bits}"], arrays


def widened(matrix, bits):
    """The matrix that is left after rounding, in float64."""
    small, scale = rounded(matrix, bits)
    return small * np.repeat(scale.astype(float), GROUP_SIZE, axis=1)[:, : matrix.shape[1]]


def random_matrix(shape, rng):
    matrix = rng.normal(0, rng.uniform(0.01, 10), shape).astype(np.float32)
    matrix[0, :20] = 0
    return matrix


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_off_by_half_a_step_and_by_one_only_at_the_upper_end(bits):
    matrix = random_matrix((50, 70), np.random.default_rng(0))
    matrix[3] = 0
    small, scale = rounded(matrix, bits)
    assert small.min() == -(1 << bits - 1)
    assert small.max() == (1 << bits - 1) - 1
    assert (scale.view(np.uint32) & 0xFFFF == 0).all(), "a scale has 16 bits"
    step = np.abs(np.repeat(scale, GROUP_SIZE, axis=1)[:, :70])
    off = np.abs(widened(matrix, bits) - matrix)
    ends = (small == small.max()) | (small == small.min())
    assert (off[~ends] <= 0.5001 * step[~ends]).all()
    # a scale is off by 1/512 of itself
    assert (off <= 1.6 * step if bits == 8 else off <= 1.05 * step).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_is_that_of_the_rounded_weights_in_float32(bits, shape):
    """For one token, a few, many; rows and inputs that fill no register; with bias and stream."""
    rng = np.random.default_rng(bits)
    rows, inputs = shape
    matrix, bias = random_matrix(shape, rng), rng.normal(size=rows).astype(np.float32)
    at, like, alive = table(matrix, bits, bias)
    left = widened(matrix, bits)
    for tokens in (1, 2, 3, 13):
        x = rng.normal(size=(tokens, inputs)).astype(np.float32)
        x[0, :40] = 0  # a group of nothing
        stream = rng.normal(size=(tokens, rows)).astype(np.float32)
        y, added = (np.full((tokens + SPARE, rows), np.nan, np.float32) for _ in range(2))
        y, added[:tokens] = y[:tokens], stream
        added, padded = added[:tokens], np.zeros((tokens + SPARE, inputs), np.float32)
        padded[:tokens] = x
        multiply(at, like, padded[:tokens], y, added)
        ours = np.abs(y - (x @ left.T + bias))
        assert (ours <= 1e-6 * (np.abs(x) @ np.abs(left).T + np.abs(bias)) + 1e-30).all()
        np.testing.assert_allclose(added, stream + y, rtol=1e-6, atol=1e-6)
    assert alive


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_found_in_its_tile(shape):
    matrix = random_matrix(shape, np.random.default_rng(0))
    at, like, alive = table(matrix, 8, np.empty(0, np.float32))
    expected = widened(matrix, 8)
    for row in range(shape[0]):
        y = np.full(shape[1], np.nan, np.float32)
        _row(at, like, row, y)
        np.testing.assert_allclose(y, expected[row], rtol=1e-6)
    assert alive
    for bits in (8, 4):
        small = quantise(matrix, bits)
        np.testing.assert_array_equal(
            small[range(shape[0])], widened(matrix, bits).astype(np.float32)
        )
        np.testing.assert_array_equal(small[[[shape[0] - 1], [0]]][0, 0], small[shape[0] - 1])
        weight = QuantisedWeight(small)
        for rows in (slice(None), slice(shape[0] // 2, shape[0])):
            np.testing.assert_array_equal(weight[rows].numpy(), small[range(shape[0])][rows])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_gives_what_torch_gives_on_its_rounded_weights(bits, tmp_path):
    """Sizes that no group divides."""
    random_model(*FAMILIES["qwen3 tied, biased"]).save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    left = {
        name: widened(array, bits if name.startswith("blocks.") else 8).astype(np.float32)
        if array.ndim == 2
        else array
        for name, array in checkpoint.tensors.items()
    }
    ids = random_ids(60)[0].tolist()
    expected = TorchDecoder(build(checkpoint.config, left)).prefill(ids)
    ours = make_decoder(checkpoint, threads=2, quant=f"int{bits}")
    given = ours.prefill(ids)
    np.testing.assert_allclose(given, expected, rtol=0, atol=2e-5)
    assert f"int{bits}" in ours.backend_details


ELSEWHERE = """
from tests.test_quantised import SHAPES
from tests.test_quantised import test_a_product_is_that_of_the_rounded_weights_in_float32 as holds
for shape in SHAPES[2:4]:
    holds(8, shape)
    holds(4, shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_processors_with_shorter_registers_get_the_same(processor):
    run_on(processor, ELSEWHERE)
