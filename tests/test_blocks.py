"""The block formats of GGUF; the oracle is the `gguf` package of llama.cpp."""

import numpy as np
import pytest

from minillm_repl.model.blocks import BLOCK_TYPES, Q4_K, Q8_0, RowBlocks, dequantise
from minillm_repl.model.layers import QuantisedWeight
from minillm_repl.model.quantised import BlockMatrix, pack_blocks
from tests.test_kernels import random_blocks

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("number", BLOCK_TYPES)
def test_weights_have_the_bits_that_the_gguf_package_gives_them(number):
    kind, theirs = BLOCK_TYPES[number], gguf.GGMLQuantizationType(number)
    assert theirs.name == kind.name
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.weights, kind.nbytes)
    rows, blocks = 7, 3
    rng = np.random.default_rng(number)
    data = random_blocks(kind, rows * blocks, rng).reshape(rows, -1)
    ours = dequantise(data, kind, (rows, blocks * kind.weights))
    assert ours.dtype == np.float32
    expected = gguf.quants.dequantize(data, theirs).astype(np.float32)
    np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


def test_bytes_that_are_no_whole_tensor_are_refused():
    with pytest.raises(ValueError, match="33"):
        dequantise(np.zeros(34, np.uint8), Q8_0, (1, 33))
    with pytest.raises(ValueError, match="3, 32"):
        dequantise(np.zeros(68, np.uint8), Q8_0, (3, 32))


@pytest.mark.parametrize("kind", [kind for kind in BLOCK_TYPES.values() if kind.bits], ids=str)
def test_no_bit_of_a_weight_is_lost_where_rows_lie_side_by_side(kind):
    shape = (50, 2 * kind.weights)
    blocks = random_blocks(kind, 100, np.random.default_rng(0)).reshape(50, -1)
    expected = dequantise(blocks, kind, shape)
    matrix = pack_blocks(RowBlocks(kind, blocks), threads=2)
    np.testing.assert_array_equal(matrix[range(50)], expected)
    np.testing.assert_array_equal(matrix[[[49], [0]]][:, 0], expected[[49, 0]])
    np.testing.assert_array_equal(matrix[19:40], expected[19:40])
    for first, last in ((0, 16), (16, 50), (3, 40), (19, 20)):
        part = matrix.take_rows(first, last)
        np.testing.assert_array_equal(part[range(last - first)], expected[first:last])
    assert matrix.nbytes <= 1.06 * blocks.nbytes * 64 / 50


def test_matrices_of_different_kinds_are_one():
    rng = np.random.default_rng(0)
    parts, expected = [], []
    for kind, rows in ((Q4_K, 20), (Q8_0, 7)):
        blocks = random_blocks(kind, rows * 256 // kind.weights, rng).reshape(rows, -1)
        parts.append(pack_blocks(RowBlocks(kind, blocks)))
        expected.append(dequantise(blocks, kind, (rows, 256)))
    parts.append(np.ones((3, 256), np.float16))
    whole = np.concatenate([*expected, parts[2]])
    matrix = BlockMatrix(tuple(parts))
    assert matrix.shape == (30, 256)
    assert matrix.kind is Q4_K
    np.testing.assert_array_equal(matrix.to_float32(), whole)
    np.testing.assert_array_equal(matrix[[[29, 3], [21, -1]]], whole[[[29, 3], [21, -1]]])
    weight = QuantisedWeight(matrix)
    for first, last in ((0, 30), (18, 29), (21, 22)):
        np.testing.assert_array_equal(weight[first:last].numpy(), whole[first:last])
