"""One call of attention in CUDA C++: its arrays, what its kernels are told of them, and how they are launched."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kernels.attention.cuda_tiles import CudaTile, parts_of, query_tile, shared_layout, width_block
from kernels.attention.problem import AttentionProblem
from kernels.attention.relative import t5_buckets
from kernels.random import drop_threshold
from kernels.runtime.cuda_source import storage
from kernels.runtime.cupy_gpu import (
    computed_dtype,
    contiguous,
    dtype_name,
    element_strides,
    empty,
    from_host,
    index_type,
    launch,
    target_of,
    types,
    vector_of,
)

#: Warps of a block of the kernels that go over rows or places alone.
WARPS = 8


def blocks_of(count: int, size: int) -> int:
    """How many blocks of a size hold so many."""
    return -(-count // size)


@functools.lru_cache(maxsize=32)
def _buckets(limit: int, most: int, buckets: int, bidirectional: bool) -> np.ndarray[Any, Any]:
    """T5's bucket of each distance from -limit to limit, int32."""
    return t5_buckets(np.arange(-limit, limit + 1), buckets, bidirectional, most).astype(np.int32)


class CudaCall:
    """One call: its arrays, and what its kernels are told of them."""

    def __init__(self, p: AttentionProblem, *inputs: Any, grad: Any = None) -> None:
        self.p, self.grad = p, grad
        self.query, self.key, self.value, self.mask, self.bias, lengths, self.table, self.seed = inputs
        self.lengths = None if lengths is None else contiguous(lengths.astype("int64", copy=False))
        self.dtype = dtype_name(self.query)
        self.wide = computed_dtype(self.dtype)
        self.itemsize = self.query.dtype.itemsize
        self.batch, self.heads, self.queries, self.keys = p.score_shape
        self.widths = p.query.shape[3], p.value.shape[3]
        self.target = target_of(self.query)
        self.limit = p.relative_limit
        self.places: Any = None
        if p.relative_kind == "t5":
            # Beyond the largest distance that there is, or that T5 tells apart, nothing changes.
            self.limit = min(self.limit, self.queries + self.keys)
            places = _buckets(self.limit, p.relative_limit, self.table.shape[0], p.bidirectional)
            self.places = from_host(places, self.query)
        elif p.relative_kind == "alibi":
            self.limit, self.places = -1, from_host(np.zeros(1, np.int32), self.query)
        self.term = self._term()

    def _term(self) -> Any:
        """The relative term as the kernels read it, 4-d."""
        kind, table = self.p.relative_kind, self.table
        if kind in ("t5", "alibi"):
            heads, count = self.heads, self.places.size
            term = empty((1, heads, 1, count), self.wide)
            steps = element_strides(table if kind == "t5" else table.reshape(1, -1))
            self.launch_sums(
                "take_rows", heads * count, table, self.places, term, heads, count, *steps, index=(table, term)
            )
            return term
        if kind == "shaw":
            rows = table.shape[0]
            term = empty((self.batch, self.heads, self.queries, rows), self.wide)
            tile = query_tile(self.queries, self.widths[0], self.itemsize)
            blocks = blocks_of(rows, tile.keys) * blocks_of(self.queries, tile.queries) * self.batch * self.heads
            self.launch_shaw(
                "shaw_products", blocks, tile, self.query, table, term, self.heads, self.queries, self.widths[0], rows,
                *element_strides(self.query), *element_strides(table), float(self.p.score_scale), index=(term,),
            )  # fmt: skip
            return term
        return None

    def launch_sums(self, kernel: str, places: int, *arguments: Any, index: tuple[Any, ...], **more: int | str) -> None:
        """Run a kernel of sums.cu that has a thread for each of some places (or, with a grid of its own, `places`)."""
        constants = types(self.dtype) | {"RESULT": storage(self.dtype), "COLUMNS": 32, "WARPS": WARPS} | more
        blocks = places if kernel == "sum_queries" else blocks_of(places, WARPS * 32)
        launch(
            "attention/sums.cu", kernel, (blocks,), (WARPS * 32,), *arguments,
            constants=constants | {"INDEX": index_type(*index)},
        )  # fmt: skip

    def launch_shaw(self, kernel: str, blocks: int, tile: CudaTile, *arguments: Any, index: tuple[Any, ...]) -> None:
        """Run a kernel of shaw.cu."""
        width = width_block(self.widths[0], self.itemsize)
        layout = shared_layout("shaw", tile, width, width, self.itemsize, self.itemsize)
        line = 16 // self.itemsize
        constants = types(self.dtype) | {
            "INDEX": index_type(self.query, self.table, *index),
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
            "WARPS": tile.warps,
            "WIDTH_E": width,
            "WIDE": int(parts_of(self.widths[0]) > 1),
            "ALIGNED": int(vector_of(self.widths[0], self.query, self.table) == line),
            **dict(layout.constants),
        }
        launch(
            "attention/shaw.cu", kernel, (blocks,), (tile.warps * 32,), *arguments, constants=constants,
            shared_bytes=layout.size,
        )  # fmt: skip

    @property
    def extras(self) -> bool:
        """Whether a score is more than a product, or a weight may be dropped."""
        p = self.p
        return p.dropout_p > 0 or any(given is not None for given in (p.bias, p.softcap, p.relative_kind))

    @property
    def width(self) -> int:
        """The larger of E and Ev."""
        return max(self.widths)

    def arrays(self) -> tuple[Any, ...]:
        """What the kernels read, in the order of their parameters behind `grad`."""
        return self.query, self.key, self.value, self.mask, self.bias, self.lengths, self.term, self.seed

    def sizes(self) -> tuple[int, ...]:
        """B, H, GROUP, L, S, E, EV."""
        return self.batch, self.heads, self.p.group, self.queries, self.keys, *self.widths

    def steps(self) -> tuple[int, ...]:
        """Strides of the arrays that have some, those of `grad` first when there is one."""
        given = (self.query, self.key, self.value, self.mask, self.bias, self.term)
        incoming = () if self.grad is None else (self.grad,)
        return tuple(s for a in (*incoming, *given) for s in ((0, 0, 0, 0) if a is None else element_strides(a)))

    def numbers(self) -> tuple[float | int, ...]:
        """scale, cap, left, right, from_end, limit, wide, threshold, kept."""
        p, most = self.p, self.queries + self.keys
        vector = 16 // max(self.itemsize, 4)
        wide = sum(
            bit for bit, array in ((1, self.mask), (2, self.bias))
            if array is not None and vector_of(self.keys, array) >= vector
        ) + (4 if self.keys % vector == 0 else 0)  # fmt: skip
        left, right = (min(side, most) for side in p.reach)
        return (
            float(p.score_scale), float(p.softcap or 0.0), left, right, int(p.from_end), self.limit, wide,
            drop_threshold(p.dropout_p), float(p.kept),
        )  # fmt: skip

    def launch(
        self, kernel: str, blocks: int, tile: CudaTile, before: tuple[Any, ...], results: tuple[Any, ...],
        sizes: tuple[int, ...], result: str,
    ) -> None:  # fmt: skip
        """Run one of the kernels that make scores.

        Args:
            kernel: its name, and that of its file.
            blocks: how many.
            tile: its tile.
            before: arrays behind `seed`.
            results: what it writes.
            sizes: numbers behind EV.
            result: dtype of the rows that it writes.
        """
        p = self.p
        width_e, width_v = (width_block(w, self.itemsize) for w in self.widths)
        size = 8 if result == "float64" else 4 if result == "float32" else 2
        layout = shared_layout(kernel, tile, width_e, width_v, self.itemsize, size)
        table = self.table if p.relative_kind == "shaw" else None
        rows = ((self.widths[0], self.query, self.key, table), (self.widths[1], self.value, self.grad))
        line = 16 // self.itemsize
        constants = types(self.dtype) | {
            "RESULT": storage(result),
            "INDEX": index_type(self.grad, *self.arrays(), *before, *results),
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
            "WARPS": tile.warps,
            "BLOCKS": tile.blocks,
            "WIDTH_E": width_e,
            "WIDTH_V": width_v,
            "WIDE": int(parts_of(self.width) > 1),
            "ALIGNED": int(all(vector_of(width, *given) == line for width, *given in rows)),
            "HIDES": int(p.hides or self.extras),
            "HAS_MASK": int(self.mask is not None),
            "EXTRAS": int(self.extras),
            **dict(layout.constants),
        }
        incoming = () if self.grad is None else (self.grad,)
        launch(
            f"attention/{kernel}.cu", kernel, (blocks,), (tile.warps * 32,), *incoming, *self.arrays(), *before,
            *results, *self.sizes(), *sizes, *self.steps(), *self.numbers(), constants=constants,
            shared_bytes=layout.size,
        )  # fmt: skip
