"""The block formats of GGUF; the oracle is the `gguf` package of llama.cpp."""

import numpy as np
import pytest

from minillm_repl.model.blocks import BLOCK_TYPES, dequantise

gguf = pytest.importorskip("gguf")


def random_blocks(kind, count, rng):
    """Some blocks of every bit pattern, but for the float16 scales, which are finite."""
    data = rng.integers(0, 256, (count, kind.nbytes), dtype=np.uint8)
    for first, last in scale_places(kind):
        scales = rng.normal(size=(count, (last - first) // 2)) * 10 ** rng.uniform(-7, 2)
        data[:, first:last] = scales.astype("<f2").view(np.uint8).reshape(count, -1)
    return data


def scale_places(kind):
    """The bytes of a block that are float16 numbers."""
    return {
        "Q4_0": [(0, 2)], "Q4_1": [(0, 4)], "Q5_0": [(0, 2)], "Q5_1": [(0, 4)], "Q8_0": [(0, 2)],
        "Q4_K": [(0, 4)], "Q5_K": [(0, 4)], "Q6_K": [(208, 210)],
    }.get(kind.name, [])  # fmt: skip


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
    kind = BLOCK_TYPES[8]
    with pytest.raises(ValueError, match="33"):
        dequantise(np.zeros(34, np.uint8), kind, (1, 33))
    with pytest.raises(ValueError, match=r"3, 32"):
        dequantise(np.zeros(68, np.uint8), kind, (3, 32))
