"""Weights in 8 and 4 bits: what is lost by rounding, and that nothing else is; the oracle is
numpy in float64.
"""

import numpy as np
import pytest

from minillm_repl.checkpoint.load_save import load
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.model.build import build
from minillm_repl.model.layers import QuantisedWeight
from minillm_repl.model.panels import GROUP_SIZE
from minillm_repl.model.quantised import quantise, round_groups
from tests.test_huggingface import FAMILIES, random_ids, random_model

SHAPES = [(1, 1), (16, 32), (50, 70), (97, 31), (33, 200)]


def widened(matrix, bits):
    """The matrix that is left after rounding, in float64."""
    small, scale = round_groups(matrix, bits)
    return small * np.repeat(scale.astype(float), GROUP_SIZE, axis=1)[:, : matrix.shape[1]]


def random_matrix(shape, rng):
    matrix = rng.normal(0, rng.uniform(0.01, 10), shape).astype(np.float32)
    matrix[0, :20] = 0
    return matrix


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_off_by_half_a_step_and_by_one_only_at_the_upper_end(bits):
    matrix = random_matrix((50, 70), np.random.default_rng(0))
    matrix[3] = 0
    small, scale = round_groups(matrix, bits)
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
def test_a_row_is_found_in_its_panel(shape):
    matrix = random_matrix(shape, np.random.default_rng(0))
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


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_taken_from_anywhere(bits):
    small = quantise(random_matrix((50, 70), np.random.default_rng(0)), bits)
    for first, last in ((0, 16), (16, 50), (3, 40), (19, 20), (25, 50)):
        part = small.take_rows(first, last)
        assert part.shape == (last - first, 70)
        np.testing.assert_array_equal(part[range(last - first)], small[range(first, last)])
