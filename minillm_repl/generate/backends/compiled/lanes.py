"""Sixteen numbers at a time inside compiled code, and weights found by their address.

numba leaves it to LLVM to find what can be done side by side, which it does poorly for products of
many rows and weights of other kinds than float32. So these few functions say it outright: `Lanes`
is a register of sixteen float32, whatever the processor makes of it (one register with AVX-512, two
with AVX2, four with NEON). Weights widen to float32 on their way in: float32 as they are, bfloat16
as uint16, float16 as int16, whole numbers as int8.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from minillm_repl.generate.backends.compiled.room import LANES

LINE = 64  # bytes that memory hands over at once

_FLOAT, INT, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)
REGISTER = ir.VectorType(_FLOAT, LANES)
WHOLE = np.empty(0, np.int64)  # for their kind
_UNDEFINED = ir.Constant(REGISTER, ir.Undefined)


class _LanesType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="Lanes")


Lanes = _LanesType()


@register_default(_LanesType)
class _LanesModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, REGISTER)


def place_of(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the address of `array.flat[index]` of a C-contiguous array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def processor_has(context: Any, feature: str) -> bool:
    """Tell whether code is compiled for a processor that has, say, `avx512f`."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


def _widened(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    """Return float32 for numbers of a weight's kind, one or a register of them."""
    many = isinstance(value.type, ir.VectorType)
    floats, whole = (REGISTER, ir.VectorType(INT, LANES)) if many else (_FLOAT, INT)

    def constant(of: ir.Type, number: float) -> ir.Constant:
        return ir.Constant(of, [number] * LANES if many else number)

    if kind == types.uint16:  # bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(builder.zext(value, whole), constant(whole, 16)), floats)
    if kind == types.int8:
        return builder.sitofp(builder.sext(value, whole), floats)
    if kind == types.int16 and (
        processor_has(context, "f16c") or not context.codegen().magic_tuple()[0].startswith("x86")
    ):
        half = ir.VectorType(ir.HalfType(), LANES) if many else ir.HalfType()
        return builder.fpext(builder.bitcast(value, half), floats)
    if kind == types.int16:  # put where float32 has its bits, it is 2 ** 112 times too small
        bits = builder.zext(value, whole)
        size = builder.shl(builder.and_(bits, constant(whole, 0x7FFF)), constant(whole, 13))
        size = builder.fmul(builder.bitcast(size, floats), constant(floats, 2.0**112))
        sign = builder.shl(builder.and_(bits, constant(whole, 0x8000)), constant(whole, 16))
        return builder.bitcast(builder.or_(builder.bitcast(size, whole), sign), floats)
    return value


def fetched(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return a register of the sixteen numbers from `array.flat[index]` on, widened to float32."""
    number = context.get_data_type(kind.dtype)
    width = 4 if isinstance(number, ir.FloatType) else number.width // 8
    place = place_of(context, builder, kind, array, index)
    pointer = builder.bitcast(place, ir.VectorType(number, LANES).as_pointer())
    return _widened(context, builder, builder.load(pointer, align=width), kind.dtype)


def spread_out(builder: Any, number: Any) -> Any:
    """Return a register of sixteen times the same number."""
    first = builder.insert_element(_UNDEFINED, number, ir.Constant(INT, 0))
    return builder.shuffle_vector(
        first, _UNDEFINED, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES)
    )


def stored(context: Any, builder: Any, kind: Any, array: Any, index: Any, register: Any) -> None:
    """Put a register into `array.flat[index]` and the places after it."""
    place = place_of(context, builder, kind, array, index)
    builder.store(register, builder.bitcast(place, REGISTER.as_pointer()), align=4)


def multiplied_added(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c of registers."""
    kind = ir.FunctionType(REGISTER, [REGISTER] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), (a, b, c)
    )


@intrinsic
def wide(_typing: Any) -> Any:
    """Tell whether `Lanes` is one register, as with AVX-512; the other way is not even compiled."""
    return types.boolean(), lambda context, *_: ir.Constant(
        ir.IntType(1), processor_has(context, "avx512f")
    )


@intrinsic
def load(_typing: Any, array: Any, _index: Any) -> Any:
    """Return sixteen numbers from `array.flat[index]` on, widened to float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return fetched(context, builder, signature.args[0], *arguments)

    return Lanes(array, types.intp), code


@intrinsic
def store(_typing: Any, array: Any, _index: Any, _lanes: Any) -> Any:
    """Put sixteen float32 into `array.flat[index]` and the places after it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored(context, builder, signature.args[0], *arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes), code


@intrinsic
def widen(_typing: Any, number: Any) -> Any:
    """Return one number of a weight's kind as float32."""
    return types.float32(number), lambda context, builder, signature, arguments: _widened(
        context, builder, arguments[0], signature.args[0]
    )


@intrinsic
def zeros(_typing: Any) -> Any:
    """Return sixteen zeros."""
    return Lanes(), lambda *_: ir.Constant(REGISTER, [0.0] * LANES)


@intrinsic
def all_of(_typing: Any, _number: Any) -> Any:
    """Return sixteen times the same number."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return spread_out(builder, *arguments)

    return Lanes(types.float32), code


@intrinsic
def turn(
    _typing: Any, array: Any, _index: Any, _step: Any, _out: Any, _at: Any, _out_step: Any
) -> Any:
    """Turn 16 × 16: rows of `array.flat[index]`, `step` apart, to columns of `out.flat[at]`.

    The rows of `out`, float32, are `out_step` apart. Halves, quarters, eighths and sixteenths are
    exchanged in turn.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index, step, at, out_step = arguments[1], arguments[2], arguments[4], arguments[5]
        rows = []
        for row in range(LANES):
            place = builder.add(index, builder.mul(step, step.type(row)))
            rows.append(fetched(context, builder, signature.args[0], arguments[0], place))
        half = LANES // 2
        while half:
            for first in (row for row in range(LANES) if not row & half):
                pair = rows[first], rows[first + half]
                for row, shift in ((first, 0), (first + half, half)):
                    picked = [
                        lane + shift if not lane & half else lane + shift + LANES - half
                        for lane in range(LANES)
                    ]
                    rows[row] = builder.shuffle_vector(
                        *pair, ir.Constant(ir.VectorType(INT, LANES), picked)
                    )
            half //= 2
        for row in range(LANES):
            place = builder.add(at, builder.mul(out_step, out_step.type(row)))
            stored(context, builder, signature.args[3], arguments[3], place, rows[row])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _out, types.intp, types.intp), code


@intrinsic
def multiply_add(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """Return a · b + c, lane by lane."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return multiplied_added(builder, *arguments)

    return Lanes(Lanes, Lanes, Lanes), code


@intrinsic
def add(_typing: Any, _a: Any, _b: Any) -> Any:
    """Return a + b, lane by lane."""
    return Lanes(Lanes, Lanes), lambda _context, builder, _signature, arguments: builder.fadd(
        *arguments
    )


def _halved(builder: Any, register: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Return what is left of sixteen numbers when halves are joined until one is left."""
    count = LANES
    while count > 1:
        count //= 2
        halves = [
            builder.shuffle_vector(
                register, register, ir.Constant(ir.VectorType(INT, count), list(range(first, last)))
            )
            for first, last in ((0, count), (count, 2 * count))
        ]
        register = join(*halves)
    return builder.extract_element(register, ir.Constant(INT, 0))


@intrinsic
def total(_typing: Any, _lanes: Any) -> Any:
    """Return the sum of sixteen numbers."""
    return types.float32(Lanes), lambda _context, builder, _signature, arguments: _halved(
        builder, arguments[0], builder.fadd
    )


@intrinsic
def greatest(_typing: Any, _lanes: Any) -> Any:
    """Return the largest of sixteen numbers."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _halved(
            builder,
            arguments[0],
            lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b),
        )

    return types.float32(Lanes), code


@intrinsic
def larger(_typing: Any, _a: Any, _b: Any) -> Any:
    """Return the larger of two, lane by lane; the second where one is no number."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return Lanes(Lanes, Lanes), code


@intrinsic
def float_of_bits(_typing: Any, _bits: Any) -> Any:
    """Return the float32 whose bits a whole number has."""
    return types.float32(
        types.int32
    ), lambda _context, builder, _signature, arguments: builder.bitcast(arguments[0], _FLOAT)


@intrinsic(prefer_literal=True)
def fetch(_typing: Any, array: Any, _index: Any, count: Any) -> Any:
    """Ask for numbers from `array.flat[index]` on to come near; they may lie past the end.

    `count`, how many, is to be written out.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, eight = signature.args[0], ir.IntType(8).as_pointer()
        place = builder.bitcast(place_of(context, builder, kind, *arguments[:2]), eight)
        function_kind = ir.FunctionType(ir.VoidType(), [eight, INT, INT, INT])
        function = cgutils.get_or_insert_function(builder.module, function_kind, "llvm.prefetch.p0")
        reading, soon, data = INT(0), INT(3), INT(1)
        for line in range(0, count.literal_value * kind.dtype.bitwidth // 8, LINE):
            builder.call(function, [builder.gep(place, [INT(line)]), reading, soon, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, count), code


def _array_at(context: Any, builder: Any, kind: Any, address: Any, shape: Any) -> Any:
    """Return an array at an address, which is empty if that is 0."""
    data, whole = context.get_data_type(kind.dtype), context.get_value_type(types.intp)
    item = whole(context.get_abi_sizeof(data))
    first, *others = cgutils.unpack_tuple(builder, shape, kind.ndim)
    sizes = [
        builder.select(builder.icmp_unsigned("==", address, address.type(0)), whole(0), first),
        *others,
    ]
    strides = [item]
    for length in reversed(others):
        strides.insert(0, builder.mul(strides[0], length))
    array = context.make_array(kind)(context, builder)
    populate_array(
        array, builder.inttoptr(address, data.as_pointer()), sizes, strides, item, meminfo=None
    )
    return array._getvalue()


@intrinsic
def array_at(_typing: Any, _address: Any, like: Any, shape: Any) -> Any:
    """Return the numbers at an address as an array of some shape, of the kind that are in `like`;
    none at address 0.

    It must be kept by somebody else meanwhile. numba's own `carray` makes one whose users are
    counted, which is a locked instruction for every slice and every call.
    """
    kind = types.Array(like.dtype, len(shape), "C")

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, _, lengths = arguments
        return _array_at(context, builder, kind, address, lengths)

    return kind(types.uintp, like, types.UniTuple(types.intp, len(shape))), code


@intrinsic
def floats(_typing: Any, _address: Any, shape: Any) -> Any:
    """Return the float32 numbers at an address as an array of some shape; none at address 0."""
    kind = types.Array(types.float32, len(shape), "C")
    signature = kind(types.uintp, types.UniTuple(types.intp, len(shape)))
    return signature, lambda context, builder, _signature, arguments: _array_at(
        context, builder, kind, *arguments
    )
