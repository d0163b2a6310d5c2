"""Tiles: some rows of 32 sums each, held in registers while whatever is multiplied passes by.

All products of many by many are made of one step: a number for each row, times 32 numbers that all
rows share, added to the tile. Activations times weights are that (a row is a token), queries times
keys, and weights of attention times values (a row is a query). How many rows a tile has is part of
its kind, so each number of rows is compiled apart.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic

from minillm_repl.generate.backends.compiled.lanes import (
    BYTE,
    INT,
    REGISTER,
    fetched,
    multiplied_added,
    place_of,
    processor_has,
    spread_out,
    stored,
)
from minillm_repl.generate.backends.compiled.room import LANES, WIDTH


class _TileType(types.Type):  # type: ignore[misc]
    def __init__(self, rows: int) -> None:
        super().__init__(name=f"Tile({rows})")
        self.rows = rows


@register_default(_TileType)
class _TileModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.ArrayType(REGISTER, 2 * kind.rows))


@intrinsic(prefer_literal=True)
def tile(_typing: Any, rows: Any) -> Any:
    """Return a tile of so many rows of zeros; the number is to be written out."""
    kind = _TileType(rows.literal_value)
    return kind(rows), lambda context, *_: ir.Constant(context.get_value_type(kind), None)


@intrinsic
def rows_of(_typing: Any, some: Any) -> Any:
    """Return how many rows a tile has."""
    return types.intp(some), lambda *_: ir.Constant(ir.IntType(64), some.rows)


@intrinsic
def rows_from(_typing: Any, like: Any, _array: Any, _at: Any, _step: Any) -> Any:
    """Return a tile like another, of float32 from `array.flat[at]` on, its rows `step` apart."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        filled, array, at, step = arguments
        for row in range(like.rows):
            place = builder.add(at, builder.mul(step, step.type(row)))
            for half, register in enumerate(
                _pair(context, builder, signature.args[1], array, place)
            ):
                filled = builder.insert_value(filled, register, 2 * row + half)
        return filled

    return like(like, _array, types.intp, types.intp), code


@intrinsic
def rows_to(_typing: Any, full: Any, _array: Any, _at: Any, _step: Any) -> Any:
    """Put a tile into `array.flat[at]` and the places after it; its rows are `step` apart."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        full_, array, at, step = arguments
        for row in range(full.rows):
            for half in range(2):
                place = builder.add(
                    at, builder.add(builder.mul(step, step.type(row)), at.type(half * LANES))
                )
                register = builder.extract_value(full_, 2 * row + half)
                stored(context, builder, signature.args[1], array, place, register)
        return context.get_dummy_value()

    return types.void(full, _array, types.intp, types.intp), code


@intrinsic
def plus(_typing: Any, one: Any, _other: Any) -> Any:
    """Return the sum of two tiles."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        result = arguments[0]
        for place in range(2 * one.rows):
            both = [builder.extract_value(each, place) for each in arguments]
            result = builder.insert_value(result, builder.fadd(*both), place)
        return result

    return one(one, one), code


@intrinsic
def outer(
    _typing: Any, sums: Any, _numbers: Any, _at: Any, _step: Any, _shared: Any, _place: Any
) -> Any:
    """Return a tile to which, in each row, that row's number times the 32 from `shared.flat[place]`
    on is added.

    The numbers of the rows are the float32 at `numbers.flat[at]`, `step` apart; the 32 may be whole
    numbers in 8 bits (int8), or in 4 (uint8, of which sixteen hold 32).
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result, numbers, at, step, shared, place = arguments
        pair = _pair(context, builder, signature.args[4], shared, place)
        for row in range(sums.rows):
            where = builder.add(at, builder.mul(step, step.type(row)))
            number = builder.load(place_of(context, builder, signature.args[1], numbers, where))
            spread = spread_out(builder, number)
            for half, register in enumerate(pair):
                before = builder.extract_value(result, 2 * row + half)
                after = multiplied_added(builder, spread, register, before)
                result = builder.insert_value(result, after, 2 * row + half)
        return result

    return sums(sums, _numbers, types.intp, types.intp, _shared, types.intp), code


@intrinsic
def scaled(_typing: Any, some: Any, _array: Any, _at: Any) -> Any:
    """Return a tile, each of whose rows is multiplied by the 32 from `array.flat[at]` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        result, array, at = arguments
        pair = _pair(context, builder, signature.args[1], array, at)
        for place in range(2 * some.rows):
            register = builder.fmul(builder.extract_value(result, place), pair[place % 2])
            result = builder.insert_value(result, register, place)
        return result

    return some(some, _array, types.intp), code


@intrinsic
def span(_typing: Any, array: Any) -> Any:
    """Return how many items of an array hold 32 numbers."""
    items = WIDTH // 2 if array.dtype == types.uint8 else WIDTH
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, items)


def _pair(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> tuple[Any, Any]:
    """Return two registers of the 32 numbers from `array.flat[place]` on, in float32."""
    if kind.dtype != types.uint8:
        second = builder.add(place, place.type(LANES))
        return fetched(context, builder, kind, array, place), fetched(
            context, builder, kind, array, second
        )
    whole = ir.VectorType(INT, LANES)
    address = builder.bitcast(
        place_of(context, builder, kind, array, place), ir.VectorType(BYTE, LANES).as_pointer()
    )
    both = builder.sext(builder.load(address, align=1), whole)
    four, above = ir.Constant(whole, [4] * LANES), ir.Constant(whole, [28] * LANES)
    upper = builder.ashr(both, four)
    # sixteen numbers are a register, in which the lowest four bits look one up
    if processor_has(context, "avx512f"):
        table = ir.Constant(REGISTER, [float(number - 16 * (number > 7)) for number in range(16)])
        kind = ir.FunctionType(REGISTER, [REGISTER, whole])
        found = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.x86.avx512.permvar.sf.512"
        )
        return builder.call(found, [table, both]), builder.call(found, [table, upper])
    lower = builder.ashr(builder.shl(both, above), above)
    return builder.sitofp(lower, REGISTER), builder.sitofp(upper, REGISTER)
