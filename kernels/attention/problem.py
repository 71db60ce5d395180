"""What attention computes, checked and normalised: every array 4-d, (batch, heads, length, width)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kernels import checks
from kernels.arrays import ArraySpec
from kernels.attention.relative import exact_buckets
from kernels.op import Problem, ValueRange

CAUSAL = (None, "top_left", "bottom_right")
INDICES = ("int32", "int64")
#: Windows below this are taken as they are, even where they reach past all keys.
FAR = 2**30


def check_inputs(op: str, query: ArraySpec, key: ArraySpec, value: ArraySpec) -> None:
    """The rules for the three arrays, already 4-d."""
    for name, spec in (("query", query), ("key", key), ("value", value)):
        checks.rank(op, name, spec, (4,), "(..., L, E), as many dimensions as query")
    checks.dtype(op, "query", query)
    checks.same_dtype(op, ("query", query), ("key", key), ("value", value))
    if key.shape[0] != query.shape[0]:
        checks.fail(op, "key", f"must have query's batch size {query.shape[0]}", key.shape)
    if key.shape[3] != query.shape[3]:
        checks.fail(op, "key", f"must have query's last dimension {query.shape[3]}", key.shape)
    if value.shape[:3] != key.shape[:3]:
        checks.fail(op, "value", f"must have key's batch, heads and length {key.shape[:3]}", value.shape)
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads != 0):
        checks.fail(op, "key", f"must have a number of heads that divides query's {heads}", kv_heads)


def check_broadcast(op: str, argument: str, spec: ArraySpec, query: ArraySpec, key: ArraySpec) -> None:
    """`spec`, already 4-d, broadcasts to the scores (B, H, L, S)."""
    scores = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    if spec.ndim != 4 or any(mine != 1 and mine != theirs for mine, theirs in zip(spec.shape, scores)):
        checks.fail(op, argument, f"must broadcast to the scores (batch, heads, queries, keys) {scores}", spec.shape)


def check_probability(op: str, argument: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    found = checks.number(op, argument, value)
    if not 0 <= found <= 1:
        checks.fail(op, argument, "must lie in [0, 1]", value)
    return found


def resolve_window(op: str, window: Any) -> tuple[int, int] | None:
    """(left, right), -1 for no limit on a side; None for no window."""
    if window is None:
        return None
    sides = window if isinstance(window, (tuple, list)) else (window, window)
    if len(sides) != 2:
        checks.fail(op, "window", "must be an int or a pair (left, right)", window)
    left, right = (-1 if side is None else checks.integer(op, "window", side, 0) for side in sides)
    return left, right


@dataclass(frozen=True)
class AttentionProblem(Problem):
    """attention, checked. L queries, S keys, H heads of queries and H / group heads of keys and values."""

    query: ArraySpec
    key: ArraySpec
    value: ArraySpec
    mask: ArraySpec | None
    bias: ArraySpec | None
    lengths: ArraySpec | None
    relative: ArraySpec | None
    seed: ArraySpec | None
    causal: str | None
    window: tuple[int, ...] | None
    softcap: float | None
    scale: float | None
    dropout_p: float
    #: "shaw", "t5", "alibi" or None, and what the term's object says beside its table.
    relative_kind: str | None
    relative_limit: int
    bidirectional: bool
    return_lse: bool

    @classmethod
    def check(
        cls,
        query: ArraySpec,
        key: ArraySpec,
        value: ArraySpec,
        mask: ArraySpec | None,
        bias: ArraySpec | None,
        lengths: ArraySpec | None,
        relative: ArraySpec | None,
        seed: ArraySpec | None,
        causal: Any,
        window: Any,
        softcap: Any,
        scale: Any,
        dropout_p: Any,
        relative_kind: str | None,
        relative_limit: Any,
        bidirectional: Any,
        return_lse: Any,
    ) -> AttentionProblem:
        """See :func:`kernels.attention` for the rules."""
        op = "attention"
        check_inputs(op, query, key, value)
        if mask is not None:
            checks.dtype(op, "mask", mask, ("bool",))
            check_broadcast(op, "mask", mask, query, key)
        if bias is not None:
            checks.same_dtype(op, ("query", query), ("bias", bias))
            check_broadcast(op, "bias", bias, query, key)
        checks.one_of(op, "causal", causal, CAUSAL)
        window = resolve_window(op, window)
        if softcap is not None:
            softcap = checks.finite(op, "softcap", softcap)
            if not softcap > 0:
                checks.fail(op, "softcap", "must be above 0, or None", softcap)
        scale = None if scale is None else checks.finite(op, "scale", scale)
        dropout_p = check_probability(op, "dropout_p", dropout_p)
        if seed is not None:
            checks.dtype(op, "seed", seed, ("int64",))
            checks.shape(op, "seed", seed, (), "(one number)")
        if lengths is not None:
            checks.dtype(op, "lengths", lengths, INDICES)
            checks.shape(op, "lengths", lengths, (query.shape[0],), "(the number of keys of every row of the batch)")
        if checks.boolean(op, "return_lse", return_lse) and value.shape[3] == 0:
            checks.fail(op, "value", "must have at least one column when return_lse is True", value.shape)
        limit = 0
        if relative is not None:
            limit = _check_relative(op, relative, relative_kind, relative_limit, bidirectional, query)
        return cls(
            query, key, value, mask, bias, lengths, relative, seed, causal, window, softcap, scale, dropout_p,
            relative_kind, limit, bool(bidirectional), return_lse,
        )  # fmt: skip

    @property
    def group(self) -> int:
        """Heads of queries that share a head of keys and values."""
        return self.query.shape[1] // max(self.key.shape[1], 1)

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are multiplied with: 1 / sqrt(E) unless given."""
        if self.scale is not None:
            return self.scale
        width: int = self.query.shape[3]
        return float(width) ** -0.5 if width > 0 else 1.0

    @property
    def reach(self) -> tuple[int, int]:
        """How many keys before and after its own position a query sees, causality included; -1: all of them.

        Kernels add these to positions. So what reaches past all of them is no limit, however large; but only numbers
        that no model has, so that kernels made for a window do not change with the lengths.
        """
        most = max(self.query.shape[2] + self.key.shape[2], FAR)
        left, right = (side if side < most else -1 for side in self.window or (-1, -1))
        return left, right if self.causal is None else 0

    @property
    def from_end(self) -> bool:
        """Whether the last query stands at the last key (of the row), not the first query at the first key."""
        return self.causal == "bottom_right"

    @property
    def hides(self) -> bool:
        """Whether some query may be kept from seeing some key that another one sees."""
        return self.mask is not None or self.bias is not None or self.reach != (-1, -1)

    @property
    def kept(self) -> float:
        """What a probability that is not dropped is multiplied with."""
        return 1.0 / (1.0 - self.dropout_p) if self.dropout_p < 1 else 0.0

    @property
    def score_shape(self) -> tuple[int, int, int, int]:
        """(B, H, L, S)."""
        return self.query.shape[0], self.query.shape[1], self.query.shape[2], self.key.shape[2]

    def results(self) -> tuple[ArraySpec | None, ...]:
        """The output, and the log-sum-exp of every query's scores where it is returned or backward needs it."""
        return attention_results(self.query, self.value, self.trains or self.return_lse)

    @cached_property
    def empty(self) -> bool:
        """Whether the output has no element; asked at every call, hence kept."""
        return super().empty

    @property
    def returned(self) -> int:
        """The output, and on request the log-sum-exp."""
        return 2 if self.return_lse else 1

    def gradients(self) -> tuple[ArraySpec | None, ...]:
        """Contiguous, in the shapes of what they belong to: that of a bias that broadcasts is summed to its shape."""
        given = (self.query, self.key, self.value, None, self.bias, None, self.relative, None)
        return tuple(None if s is None else s.like(s.shape) for s in given)

    def saved(self) -> tuple[str, ...]:
        """The inputs, the output and the log-sum-exp; never the scores."""
        return (
            "query", "key", "value", "mask", "bias", "lengths", "relative", "seed", "output", "lse",
        )  # fmt: skip

    @cached_property
    def value_range(self) -> ValueRange | None:
        """Every length must lie in [0, S]."""
        if self.lengths is None or self.lengths.size == 0:
            return None
        return ValueRange("lengths", 0, self.key.shape[2])

    def value_error(self, value: int, where: str) -> Exception:
        """A ValueError."""
        return ValueError(
            f"attention: lengths must lie in [0, {self.key.shape[2]}] (the keys there are), got {value}{where}"
        )

    def flops(self) -> int:
        """Two for every multiply-add, of the pairs that causality and window leave."""
        batch, heads, queries, keys = self.score_shape
        left, right = self.reach
        offset = keys - queries if self.from_end else 0
        # A query sees what is before its right end, less what is before its left one.
        before_last = keys * queries if right < 0 else _sum_clipped(offset + right + 1, queries, keys)
        before_first = 0 if left < 0 else _sum_clipped(offset - left, queries, keys)
        # Where a window lies behind all keys or before them both ends are the same.
        pairs = before_last - before_first
        return 2 * batch * heads * pairs * (self.query.shape[3] + self.value.shape[3])


def _sum_clipped(start: int, count: int, most: int) -> int:
    """The sum of ``min(max(start + i, 0), most)`` over i in [0, count)."""
    first = min(max(-start, 0), count)
    last = min(max(most - start, first), count)
    return (start + first + start + last - 1) * (last - first) // 2 + most * (count - last)


def attention_results(query: ArraySpec, value: ArraySpec, wants_lse: bool) -> tuple[ArraySpec | None, ...]:
    """Specs of the output (B, H, L, Ev) and of the log-sum-exp (B, H, L), which is never less than float32."""
    rows = query.shape[:3]
    half = query.dtype in ("float16", "bfloat16")
    lse = query.like(rows, dtype="float32" if half else query.dtype) if wants_lse else None
    return query.like((*rows, value.shape[3])), lse


def _check_relative(
    op: str, table: ArraySpec, kind: str | None, limit: Any, bidirectional: Any, query: ArraySpec
) -> int:
    """The rules for a relative term; its limit normalised."""
    heads, width = query.shape[1], query.shape[3]
    name = {"shaw": "RelativeShaw.table", "t5": "RelativeT5.table", "alibi": "RelativeALiBi.slopes"}[kind or "shaw"]
    checks.same_dtype(op, ("query", query), (name, table))
    if kind == "alibi":
        checks.shape(op, name, table, (heads,), "(one slope for each head of query)")
        return 0
    checks.rank(op, name, table, (2,), "(2 * clip + 1, E)" if kind == "shaw" else "(buckets, heads)")
    rows, columns = table.shape
    if kind == "shaw":
        if columns != width or rows % 2 == 0:
            checks.fail(op, name, f"must have shape (2 * clip + 1, {width})", table.shape)
        clip = (rows - 1) // 2 if limit is None else checks.integer(op, "RelativeShaw.clip", limit, 0)
        if rows != 2 * clip + 1:
            checks.fail(op, name, f"must have 2 * clip + 1 = {2 * clip + 1} rows", table.shape)
        return clip
    if columns != heads:
        checks.fail(op, name, f"must have shape (buckets, {heads}), a column for each head of query", table.shape)
    checks.boolean(op, "RelativeT5.bidirectional", bidirectional)
    exact = exact_buckets(rows, bidirectional)
    if exact < 1 or (bidirectional and rows % 2):
        rule = "must have an even number of buckets, at least 4" if bidirectional else "must have at least 2 buckets"
        checks.fail(op, name, rule, table.shape)
    most = checks.integer(op, "RelativeT5.max_distance", limit, 1)
    if most <= exact:
        checks.fail(op, "RelativeT5.max_distance", f"must be above the {exact} distances with their own bucket", most)
    return most
