"""Numba's missing SIMD vector: values of one register of float32 or float64, and what kernels do with them.

A kernel is ordinary Numba code on pointers and vectors, for any element type and any machine:

    @njit(nogil=True, error_model="numpy")
    def scale(x, n, factor):              # x: pointer to n elements, float32 or float64
        lanes = lanes_of(x)
        for i in range(0, n, lanes):
            store_first(x, i, load_first(x, i, n - i) * factor, n - i)

The lane count follows from the pointer's element type and the machine (target.py). Everything is chosen through
Numba types and literal integers, never through Python closures, so whatever calls it can be cached on disk. All of it
can only be called from compiled code. Do not compile callers with fastmath: exp and its kin rely on exact rounding.
"""

from kernels.simd.arithmetic import (
    absolute,
    all_lanes,
    any_lane,
    copysign,
    evens,
    floor,
    fma,
    interleave_high,
    interleave_low,
    iota,
    is_nan,
    maximum,
    maximum_nan,
    minimum,
    minimum_nan,
    odds,
    reduce_add,
    reduce_max,
    reduce_min,
    round_even,
    select,
    splat_integer,
    sqrt,
)
from kernels.simd.gates import sigmoid_gate, tanh_gate
from kernels.simd.integers import load_bytes_masked, store_bytes_masked, store_int64_first, store_int64_masked
from kernels.simd.math import exp, exp_nonpositive, log, ndtr, sigmoid, tanh
from kernels.simd.memory import (
    advance,
    aligned,
    as_integers,
    broadcast,
    full,
    keep_alive,
    lane_mask,
    lanes_of,
    load,
    load_first,
    load_group,
    load_masked,
    peek,
    pointer,
    pointer_at,
    poke,
    prefetch,
    splat_like,
    stack_room,
    store,
    store_first,
    store_masked,
    sum_of_group,
    zeros_group,
    zeros_like,
)
from kernels.simd.places import array_at
from kernels.simd.target import GROUP, TILE_ROWS, TILE_VECTORS, VECTOR_BYTES
from kernels.simd.tile import multiply_gathered, multiply_tile, multiply_tile_onto, multiply_tile_part
from kernels.simd.tile_dots import dot_tile
from kernels.simd.transpose import transpose, transpose_block, transpose_tile_rows, transpose_vectors
from kernels.simd.types import IntVector, Mask, Vector

__all__ = [
    "GROUP",
    "TILE_ROWS",
    "TILE_VECTORS",
    "VECTOR_BYTES",
    "IntVector",
    "Mask",
    "Vector",
    "absolute",
    "advance",
    "aligned",
    "all_lanes",
    "any_lane",
    "array_at",
    "as_integers",
    "broadcast",
    "copysign",
    "dot_tile",
    "evens",
    "exp",
    "exp_nonpositive",
    "floor",
    "fma",
    "full",
    "interleave_high",
    "interleave_low",
    "iota",
    "is_nan",
    "keep_alive",
    "lane_mask",
    "lanes_of",
    "load",
    "load_bytes_masked",
    "load_first",
    "load_group",
    "load_masked",
    "log",
    "maximum",
    "maximum_nan",
    "minimum",
    "minimum_nan",
    "multiply_gathered",
    "multiply_tile",
    "multiply_tile_onto",
    "multiply_tile_part",
    "ndtr",
    "odds",
    "peek",
    "pointer",
    "pointer_at",
    "poke",
    "prefetch",
    "reduce_add",
    "reduce_max",
    "reduce_min",
    "round_even",
    "select",
    "sigmoid",
    "sigmoid_gate",
    "splat_integer",
    "splat_like",
    "sqrt",
    "stack_room",
    "store",
    "store_bytes_masked",
    "store_first",
    "store_int64_first",
    "store_int64_masked",
    "store_masked",
    "tanh",
    "tanh_gate",
    "transpose",
    "transpose_block",
    "transpose_tile_rows",
    "transpose_vectors",
    "sum_of_group",
    "zeros_group",
    "zeros_like",
]
