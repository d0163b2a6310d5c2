"""What is done to each position by itself, without a matrix: norms, activations, rotation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.backends.compiled.compiling import compiled
from minillm_repl.generate.backends.compiled.lanes import float_of_bits, floats
from minillm_repl.generate.backends.compiled.tasks import claim, meet

Floats = NDArray[np.float32]

_BENT_AT_ONCE = 1024  # numbers of a hidden layer that make one task

GELU, GELU_TANH, SILU, RELU = range(4)  # the order of model/config.py's ACTIVATIONS


@compiled
def exponential(x: Any) -> Any:
    """Return e^x in float32 within 2 units in the last place; the library's is not side by side.

    x = n·ln 2 + r; e^r by a polynomial (Cephes' expf), 2^n by its bits. Below −87 it is 0 to all
    that reads it.
    """
    x = min(max(x, np.float32(-87.3)), np.float32(88.3))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = r * np.float32(1.9875691500e-4) + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * float_of_bits(
        (np.int32(n) + np.int32(127)) << np.int32(23)
    )


@compiled
def _erf(z: Any) -> Any:
    """Return erf(z) within 7e-7, by the rational approximation that Eigen uses."""
    z = min(max(z, np.float32(-3.8325)), np.float32(3.8325))  # beyond it erf is ±1 in float32
    s = z * z
    p = s * np.float32(0.00022905065861350646) + np.float32(0.0034082910107109506)
    p = s * p + np.float32(0.050955695062380861)
    p = s * p + np.float32(0.18520832239976145)
    p = s * p + np.float32(1.128379143519084)
    q = s * np.float32(-1.1791602954361697e-7) + np.float32(0.000023547966471313185)
    q = s * q + np.float32(0.0010179625278914885)
    q = s * q + np.float32(0.014070470171167667)
    q = s * q + np.float32(0.11098505178285362)
    q = s * q + np.float32(0.49746925110067538)
    q = s * q + np.float32(1)
    return z * p / q


@compiled
def _activate(x: Floats, activation: int) -> None:
    """Bend each number of a row, in place: GELU, its tanh approximation, SiLU or ReLU."""
    one, half = np.float32(1), np.float32(0.5)
    if activation == GELU:
        for i in range(len(x)):
            x[i] = half * x[i] * (one + _erf(x[i] * np.float32(0.7071067811865476)))
    elif activation == GELU_TANH:  # ½(1 + tanh u) = 1 / (1 + e^(−2u))
        for i in range(len(x)):
            u = np.float32(0.7978845608028654) * (x[i] + np.float32(0.044715) * x[i] * x[i] * x[i])
            x[i] = x[i] / (one + exponential(np.float32(-2) * u))
    elif activation == SILU:
        for i in range(len(x)):
            x[i] = x[i] / (one + exponential(-x[i]))
    else:
        for i in range(len(x)):
            x[i] = max(x[i], np.float32(0))


@compiled
def normalise(x: Floats, gain: Floats, bias: Floats, eps: Any, y: Floats) -> None:
    """LayerNorm of a row into `y`, or, where there is no bias, RMSNorm."""
    width = len(x)
    mean = np.float32(0)
    if len(bias):
        for i in range(width):
            mean += x[i]
        mean /= np.float32(width)
    squares = np.float32(0)
    for i in range(width):
        squares += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / np.sqrt(squares / np.float32(width) + eps)
    if len(bias):
        for i in range(width):
            y[i] = (x[i] - mean) * scale * gain[i] + bias[i]
    else:
        for i in range(width):
            y[i] = x[i] * scale * gain[i]


@compiled
def rotate(x: Floats, cos: Floats, sin: Floats) -> None:
    """Turn one query or key in place: number i with number i + n, for the n angles given; what
    is left stays.
    """
    half = len(cos)
    for i in range(half):
        first, second = x[i], x[half + i]
        x[i] = first * cos[i] - second * sin[i]
        x[half + i] = second * cos[i] + first * sin[i]


@compiled
def norms(counters: Any, size: Any, phase: Any, at: Any, eps: Any, x: Any, y: Any) -> Any:
    """Normalise each row of x (t, w) into y; `at` begins with the gain's and bias's address."""
    count, width = x.shape
    gain, bias = floats(at[0], (width,)), floats(at[1], (width,))
    while True:
        t = claim(counters, phase)
        if t >= count:
            break
        normalise(x[t], gain, bias, eps, y[t])
    return meet(counters, size, phase)


@compiled
def bend(counters: Any, size: Any, phase: Any, activation: Any, up: Any, hidden: Any) -> Any:
    """Apply the activation; if `up` is twice as wide as `hidden`, its second half passes the
    gates of the first.
    """
    count, width = hidden.shape
    gated = up.shape[1] > width
    pieces = (width + _BENT_AT_ONCE - 1) // _BENT_AT_ONCE
    while True:
        task = claim(counters, phase)
        if task >= count * pieces:
            break
        t, first = task // pieces, task % pieces * _BENT_AT_ONCE
        last = min(first + _BENT_AT_ONCE, width)
        _activate(up[t, first:last], activation)
        if gated:
            for i in range(first, last):
                hidden[t, i] = up[t, i] * up[t, width + i]
    return meet(counters, size, phase)
