"""Whole numbers for sixteen rows at a time: weights in 8 or 4 bits times activations in 8, summed up in 32.

A register holds four weights of each of sixteen rows. Weights are kept without a sign, as the processors' instruction
for such sums (VNNI) wants them; what was added to make them so is taken off the sum by who asks. An array of uint8
holds weights in 8 bits; one of int8, two in 4 bits to a byte. Both lie tile by tile of sixteen rows, and in a tile
group by group of 32 inputs: first the first half of a group, four inputs after the other, each for all rows.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic

from minillm_repl.engine.compiled.lanes import Lanes, place_of, processor_has
from minillm_repl.engine.compiled.room import FOUR, GROUP, LANES

_COUNT = LANES * FOUR
_BYTE, _INT = ir.IntType(8), ir.IntType(32)
_REGISTER, _SUMS = ir.VectorType(_BYTE, _COUNT), ir.VectorType(_INT, LANES)


class _BytesType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="Bytes")


class _SumsType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="Sums")


Bytes, Sums = _BytesType(), _SumsType()


@register_default(_BytesType)
class _BytesModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _REGISTER)


@register_default(_SumsType)
class _SumsModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _SUMS)


@intrinsic
def bits_of(_typing: Any, array: Any) -> Any:
    """Return how many bits a weight in such an array has: 8 or 4."""
    bits = 4 if array.dtype == types.int8 else 8
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, bits)


def _loaded(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Return the register at a place of an array of bytes."""
    place = place_of(context, builder, signature.args[0], *arguments[:2])
    return builder.load(builder.bitcast(place, _REGISTER.as_pointer()), align=1)


@intrinsic
def first_half(_typing: Any, array: Any, _index: Any) -> Any:
    """Return four weights of sixteen rows from `array.flat[index]` on: whole bytes, or their lower halves."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _loaded(context, builder, signature, arguments)
        if array.dtype == types.int8:
            return builder.and_(value, ir.Constant(_REGISTER, [15] * _COUNT))
        return value

    return Bytes(array, types.intp), code


@intrinsic
def second_half(_typing: Any, array: Any, _index: Any) -> Any:
    """Return the four weights half a group further: of other bytes, or the upper halves of the same."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, index = arguments
        if array.dtype == types.int8:
            value = _loaded(context, builder, signature, arguments)
            return builder.lshr(value, ir.Constant(_REGISTER, [4] * _COUNT))
        further = builder.add(index, ir.Constant(index.type, GROUP // 2 * LANES))
        return _loaded(context, builder, signature, (place, further))

    return Bytes(array, types.intp), code


def _repeated(builder: Any, number: Any) -> Any:
    """Return a whole number of 32 bits sixteen times."""
    empty = ir.Constant(_SUMS, ir.Undefined)
    first = builder.insert_element(empty, number, _INT(0))
    return builder.shuffle_vector(first, empty, ir.Constant(_SUMS, [0] * LANES))


@intrinsic
def four_for_all(_typing: Any, array: Any, _index: Any) -> Any:
    """Return four signed bytes from `array.flat[index]` on, the same for each of sixteen rows."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = place_of(context, builder, signature.args[0], *arguments)
        four = builder.load(builder.bitcast(place, _INT.as_pointer()), align=1)
        return builder.bitcast(_repeated(builder, four), _REGISTER)

    return Bytes(array, types.intp), code


@intrinsic
def all_sums(_typing: Any, _number: Any) -> Any:
    """Return sixteen times the same whole number, to begin sums with."""
    return Sums(types.int32), lambda _context, builder, _signature, arguments: _repeated(builder, arguments[0])


@intrinsic
def add_products(_typing: Any, _weights: Any, _activations: Any, _sums: Any) -> Any:
    """Add to each sum the products of its four weights, 0 to 255, with four activations, −127 to 127, of all rows."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        weights, activations, sums = arguments
        if not processor_has(context, "avx512vnni"):
            products = _by_pairs if processor_has(context, "avx2") else _one_by_one
            return builder.add(sums, _neighbours(builder, products(builder, weights, activations)))
        kind = ir.FunctionType(_SUMS, [_SUMS, _REGISTER, _REGISTER])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return builder.call(function, [sums, weights, activations])

    return Sums(Bytes, Bytes, Sums), code


def _one_by_one(builder: Any, weights: Any, activations: Any) -> Any:
    """Return the sums of two products each, on any processor."""
    wide = ir.VectorType(_INT, _COUNT)
    return _neighbours(builder, builder.mul(builder.zext(weights, wide), builder.sext(activations, wide)))


def _by_pairs(builder: Any, weights: Any, activations: Any) -> Any:
    """Return the same where one instruction multiplies numbers of 16 bits and adds up two products (AVX2)."""
    sixteen, eight = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(_INT, LANES // 2)
    pairs = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(eight, [sixteen, sixteen]), "llvm.x86.avx2.pmadd.wd"
    )
    four_times = builder.sext(_part(builder, activations, range(LANES)), sixteen)
    parts = [
        builder.call(pairs, [builder.zext(_part(builder, weights, range(at, at + LANES)), sixteen), four_times])
        for at in range(0, _COUNT, LANES)
    ]
    halves = [_part(builder, parts[first], range(LANES), parts[first + 1]) for first in (0, 2)]
    return _part(builder, halves[0], range(2 * LANES), halves[1])


def _neighbours(builder: Any, numbers: Any) -> Any:
    """Return the sums of each two neighbours of a register."""
    even, odd = (_part(builder, numbers, range(first, numbers.type.count, 2)) for first in (0, 1))
    return builder.add(even, odd)


def _part(builder: Any, register: Any, places: range, further: Any = None) -> Any:
    """Return the numbers at some places of a register, or of two that count as one."""
    wanted = ir.Constant(ir.VectorType(_INT, len(places)), list(places))
    return builder.shuffle_vector(register, register if further is None else further, wanted)


@intrinsic
def to_floats(_typing: Any, _sums: Any) -> Any:
    """Return sixteen sums as float32."""
    return Lanes(Sums), lambda _context, builder, _signature, arguments: builder.sitofp(
        arguments[0], ir.VectorType(ir.FloatType(), LANES)
    )
