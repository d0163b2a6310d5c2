"""How a team's threads (team.py), inside compiled code, share out tasks and wait for each other."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minillm_repl.generate.backends.compiled.compiling import compiled
from minillm_repl.generate.backends.compiled.team import APART, OFFER

_PATIENCE = 4_000  # looks at the counter, some microseconds, before the core is offered to others

_offer_core = types.ExternalFunction(OFFER, types.int32())


def _counter(builder: Any, counters: Any, index: Any) -> Any:
    """Return a pointer to one of the counters at an address."""
    return builder.gep(builder.inttoptr(counters, ir.IntType(64).as_pointer()), [index])


@intrinsic
def _add(_typing: Any, _counters: Any, _index: Any, _number: Any) -> Any:
    """Add to a counter that others change too; return what it was."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        counters, index, number = arguments
        return builder.atomic_rmw("add", _counter(builder, counters, index), number, "seq_cst")

    return types.int64(types.intp, types.intp, types.int64), code


@intrinsic
def _look(_typing: Any, _counters: Any, _index: Any) -> Any:
    """Return a counter that others change."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_counter(builder, *arguments), "acquire", 8)

    return types.int64(types.intp, types.intp), code


@compiled
# numba infers the types.
def claim(counters, phase):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the number of the next task of a phase that nobody has claimed."""
    return _add(counters, 2 * phase * APART, 1)


@compiled
# numba infers the types.
def meet(counters, size, phase):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Wait until everyone has done with a phase; return the next."""
    arrivals = (2 * phase + 1) * APART
    _add(counters, arrivals, 1)
    looks = 0
    while _look(counters, arrivals) < size:
        looks += 1
        if looks > _PATIENCE:
            _offer_core()
    return phase + 1
