"""The C functions of minillm_repl/kernels against numpy in float64, in every variant that runs."""

import ctypes

import numpy as np
import pytest

from minillm_repl.generate.backends.kernel_model import in_panels
from minillm_repl.kernels.library import available, load_library
from minillm_repl.kernels.structs import (
    BF16,
    F16,
    F32,
    KINDS,
    MAX_TOKENS,
    PANELS,
    Q4,
    Q4_K,
    Q5_0,
    Q6_K,
    Q8,
    Layer,
    Matrix,
    Model,
    declare,
)
from minillm_repl.model.blocks import BLOCK_TYPES, RowBlocks, dequantise
from minillm_repl.model.panels import GROUP_SIZE
from minillm_repl.model.quantised import pack_blocks, quantise

VARIANTS = available()
# Rows and inputs that fill no register, one, a panel, a tile of AMX, and a little more.
SHAPES = [(1, 1), (3, 7), (16, 32), (50, 70), (97, 31), (33, 200), (64, 64), (100, 544)]
TOKENS = (1, 2, 3, 4, 12, 13, 16, 33, MAX_TOKENS)
BLOCKS = {KINDS[kind.name]: kind for kind in BLOCK_TYPES.values() if kind.bits}


@pytest.fixture(params=VARIANTS)
def functions(request):
    library = load_library(request.param)
    assert library.functions is not None
    return declare(library.functions)


def random_blocks(kind, count, rng):
    """Some blocks of GGUF (count, bytes) of every bit pattern, but for finite float16 scales."""
    data = rng.integers(0, 256, (count, kind.nbytes), dtype=np.uint8)
    if kind.bits:
        scales = rng.normal(size=(count, kind.scales)) * 10 ** rng.uniform(-7, 2)
        first = kind.nbytes - 2 if kind.name == "Q6_K" else 0
        at = slice(first, first + 2 * kind.scales)
        data[:, at] = scales.astype("<f2").view(np.uint8)
    return data


def stored(kind, matrix, functions):
    """A matrix as it lies in memory: the structure, what keeps it alive, and its float64 values.

    In a block format its numbers are others, of every bit pattern.
    """
    rows, inputs = matrix.shape
    arrays, exact = [matrix], matrix
    if kind in BLOCKS:
        block = BLOCKS[kind]
        rng = np.random.default_rng(rows)
        blocks = random_blocks(block, rows * inputs // block.weights, rng).reshape(rows, -1)
        small = pack_blocks(RowBlocks(block, blocks))
        arrays, exact = (
            [small.packed_weights, small.scales],
            dequantise(blocks, block, (rows, inputs)),
        )
    elif kind in (Q8, Q4):
        small = quantise(matrix, 8 if kind == Q8 else 4)
        arrays, exact = [small.packed_weights, small.scales], small[range(rows)]
    elif kind == PANELS:
        arrays = [in_panels(matrix, functions.minillm_panel_rows())]
    elif kind == BF16:
        arrays = [(matrix.view(np.uint32) >> 16).astype(np.uint16)]
        exact = (arrays[0].astype(np.uint32) << 16).view(np.float32)
    elif kind == F16:
        arrays = [matrix.astype(np.float16)]
        exact = arrays[0].astype(np.float32)
    arrays = [np.ascontiguousarray(array) for array in arrays]
    addresses = [array.ctypes.data for array in arrays]
    scales = addresses[1] if len(arrays) > 1 else None
    matrix = Matrix(addresses[0], scales, None, kind=kind, rows=rows, inputs=inputs)
    return matrix, arrays, exact.astype(np.float64)


def shapes_of(kind):
    """Shapes that have whole blocks."""
    whole = BLOCKS[kind].weights if kind in BLOCKS else 1
    return sorted({(rows, -(-inputs // whole) * whole) for rows, inputs in SHAPES})


def largest_of_groups(x):
    """Each number's bound: the largest in its group of 32 inputs, which share a step."""
    bounds = np.empty_like(x)
    for first in range(0, x.shape[1], GROUP_SIZE):
        group = slice(first, first + GROUP_SIZE)
        bounds[:, group] = np.abs(x[:, group]).max(axis=1, keepdims=True)
    return bounds


@pytest.mark.parametrize("kind", [F32, BF16, F16, PANELS, Q8, Q4, *BLOCKS])
def test_a_product_is_float32_arithmetic_on_the_weights_as_they_are(functions, kind):
    """Each sum is within some roundings of float32 of the exact one."""
    rng = np.random.default_rng(kind)
    for rows, inputs in shapes_of(kind):
        weights = rng.normal(0, rng.uniform(0.01, 10), (rows, inputs)).astype(np.float32)
        weights[0, :20] = 0
        matrix, alive, exact = stored(kind, weights, functions)
        bias = rng.normal(size=rows).astype(np.float32)
        matrix.bias = bias.ctypes.data
        for tokens in TOKENS:
            x = rng.normal(size=(tokens, inputs)).astype(np.float32)
            x[0, :40] = 0  # a group of nothing
            y = np.full((tokens, rows), np.nan, np.float32)
            failed = functions.minillm_matmul(
                ctypes.byref(matrix), x.ctypes.data, tokens, y.ctypes.data
            )
            assert not failed
            off = np.abs(y - (x @ exact.T + bias))
            allowed = 1e-6 * (np.abs(x) @ np.abs(exact).T + np.abs(bias))
            if kind >= Q8:
                allowed += 1.01 * 2**-20 * (largest_of_groups(x) @ np.abs(exact).T)
            assert (off <= allowed + 1e-30).all(), (rows, inputs, tokens)
        assert alive


@pytest.mark.parametrize("kind", [F32, BF16, PANELS, Q8, Q4, Q5_0, Q4_K, Q6_K])
def test_what_is_no_number_stays_none(functions, kind):
    """NaN and infinity in an activation reach every sum that they are part of, and no other."""
    weights = np.ones((40, 256), np.float32)
    matrix, alive, _ = stored(kind, weights, functions)
    for tokens in (1, 16):
        for wrong in (np.nan, np.inf):
            x = np.ones((tokens, 256), np.float32)
            x[-1, 5] = wrong
            y = np.zeros((tokens, 40), np.float32)
            functions.minillm_matmul(ctypes.byref(matrix), x.ctypes.data, tokens, y.ctypes.data)
            assert not np.isfinite(y[-1]).any()
            assert np.isfinite(y[:-1]).all()
    assert alive


def test_whole_number_products_are_the_same_in_every_variant():
    """One number, one computation: a token times quantised weights, whatever the processor."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 256)).astype(np.float32)
    x = rng.normal(size=(1, 256)).astype(np.float32)
    for kind in (Q8, Q4, *BLOCKS):
        results = []
        for variant in VARIANTS:
            functions = declare(load_library(variant).functions)
            matrix, _alive, exact = stored(kind, weights, functions)
            y = np.zeros((1, 64), np.float32)
            functions.minillm_matmul(ctypes.byref(matrix), x.ctypes.data, 1, y.ctypes.data)
            results.append(y)
        for other in results[1:]:
            # Scales and sums are float32, and not every processor rounds a·b + c once.
            bound = 1e-7 * np.abs(exact).max() * np.abs(x).sum()
            np.testing.assert_allclose(other, results[0], rtol=3e-7, atol=bound)


def test_sizes_that_do_not_fit_together_are_refused(functions):
    matrix = Matrix(1, None, None, kind=F32, rows=8, inputs=4)
    layers = (Layer * 1)()
    model = Model(
        n_layers=1, d_model=4, n_heads=2, n_kv_heads=1, head_dim=2, d_mlp=8, vocab_size=8,
        context_length=8, n_threads=1, embedding=matrix, head=matrix, layers=layers,
    )  # fmt: skip
    assert functions.minillm_check(ctypes.byref(model)) == b"norm"
    model.norm.gain = 1
    assert functions.minillm_check(ctypes.byref(model)) == b"norms of attention"
    model.n_kv_heads = 3
    assert functions.minillm_check(ctypes.byref(model)) == b"n_heads and n_kv_heads"
    model.head.kind = Q8
    model.n_kv_heads = 1
    assert functions.minillm_check(ctypes.byref(model)) == b"head"
    model.n_layers = 0
    assert functions.minillm_check(ctypes.byref(model)) == b"a size below 1"
