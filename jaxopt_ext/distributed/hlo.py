"""Reading communication off compiled programs."""

import re

from jax.stages import Compiled

_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}
_BYTES |= {"s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1}
_COLLECTIVES = "collective-permute|all-reduce|all-gather|all-to-all|reduce-scatter"
_CALL = re.compile(rf"= (.*?) ({_COLLECTIVES})(-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def collective_bytes(compiled: Compiled) -> dict[str, int]:
    """Bytes that one device hands to each kind of collective in one execution of the program.

    Sizes are those of the results written in the compiled text; a loop's body counts once.

    **Arguments:**

    - `compiled`: `jax.jit(f).lower(...).compile()`, for any backend.

    **Returns:** bytes by collective, as named in HLO: `collective-permute`, `all-reduce`, ...
    """
    totals: dict[str, int] = {}
    for line in (compiled.as_text() or "").splitlines():
        match = _CALL.search(line)
        if match is None:
            continue
        result, kind, start = match.groups()
        shapes = [s for s in _SHAPE.findall(result) if s[0] in _BYTES]
        if start:
            # An asynchronous start returns operand, result and tokens: the operand comes first.
            shapes = shapes[:1]
        size = 0
        for dtype, dims in shapes:
            count = 1
            for dim in filter(None, dims.split(",")):
                count *= int(dim)
            size += _BYTES[dtype] * count
        totals[kind] = totals.get(kind, 0) + size
    return totals
