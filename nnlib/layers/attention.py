"""MultiHeadAttention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from typing_extensions import Unpack

import kernels
from nnlib.checks import positive_integer, share
from nnlib.initializers import InitializerChoice, fill
from nnlib.layers.base import Layer, Shape
from nnlib.layers.core import Dense
from nnlib.layers.options import KernelOptions
from nnlib.layers.padding import checked_mask, noted_lengths, real_steps
from nnlib.layers.rules import features_last
from nnlib.names import look_up

#: Kinds of relative position, and from which distance on each tells none apart, by default.
RELATIVE = {"shaw": 16, "t5": 128, "alibi": 0}
T5_BUCKETS = 32

Heads = tuple[torch.Tensor, torch.Tensor]


def _with_heads(weight: torch.Tensor) -> torch.Tensor:
    """(rows, D) -> (D, 1, rows): Keras' kernels of projections have three axes."""
    return features_last(weight)[:, None]


@dataclass(frozen=True)
class _OfProjections:
    """A constraint of projections that lie side by side, each as Keras lays it out: kernels (D, heads, size), biases
    (heads, size). widths: heads * size of each."""

    constraint: Any
    heads: int
    widths: tuple[int, ...]

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """weight: (D, 1, rows) or (rows,)."""
        rows = weight.flatten(0, -2) if weight.dim() > 1 else weight
        parts = [part.unflatten(-1, (self.heads, -1)) for part in rows.split(self.widths, -1)]
        return torch.cat([self.constraint(part).flatten(-2) for part in parts], -1).reshape(weight.shape)


@dataclass(frozen=True)
class _OutputView:
    """(out, heads * size) -> (heads, size, out), Keras' kernel of the output's projection."""

    heads: int

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T.unflatten(0, (self.heads, -1))


class MultiHeadAttention(Layer):
    """Attention in several heads (Vaswani et al., 2017), keras.layers.MultiHeadAttention.

    Call: layer(query, value=None, key=None, ...) with query (N, T, D), value (N, S, Dv) (default the query:
    self-attention) and key (N, S, Dk) (default the value); output (N, T, output features). Further arguments:
    attention_mask: bool, or 1 and 0, (T, S), (N, T, S) or (N, heads, T, S), True where the query sees the key.
    query_mask (N, T), value_mask and key_mask (N, S): the same, False for a query that sees nothing (default: what the
    query tells of its steps, see Layer), or for what no query sees.
    use_causal_mask: query i sees keys up to i. lengths: how many keys of a row are real (N,), or which (N, S), bool
    (default: what the value tells, see Layer). A query that sees no key has the output of zeros.
    return_attention_scores: (output, weights (N, heads, T, S)), the weights before dropout; they are computed apart and
    take T x S numbers, which attention itself never does. keys_values: what project(value, key) gave, in place of the
    two: keys of the past for generation; with use_causal_mask the last query then stands at the last key.

    The parameters are torch.nn.MultiheadAttention's: in_proj_weight (2 heads * key_dim + heads * value_dim, D) where
    query, key and value have the same number of features, else q_proj_weight, k_proj_weight and v_proj_weight;
    in_proj_bias; out_proj.weight and out_proj.bias.

    num_heads: heads; key_dim: size of each for queries and keys; value_dim: for values (default key_dim).
    dropout: share of the attention weights that is zeroed in training. use_bias: of all four projections.
    output_shape: features of the output (default the query's).
    kernel_initializer, bias_initializer: see nnlib.initializers; kernel_regularizer, bias_regularizer,
    kernel_constraint, bias_constraint, each of all four projections, and the other options: see Layer.
    relative: a term of the distance between query and key in the scores, trained with the layer: "shaw" (a vector for
    each distance up to max_distance, default 16), "t5" (a number for each head and bucket, those of T5, max_distance
    128; relative_bidirectional=False where keys ahead are hidden) or "alibi" (fixed slopes); see kernels.attention.
    Default None.

    Raises ValueError if an argument is out of its range, or an input does not fit.
    """

    takes_lengths = True
    keeps_lengths = True
    regularized = constrained = ("kernel", "bias")

    kernel_regularizer: Any
    bias_regularizer: Any
    kernel_constraint: Any
    bias_constraint: Any
    in_proj_weight: torch.Tensor | None
    q_proj_weight: torch.Tensor | None
    k_proj_weight: torch.Tensor | None
    v_proj_weight: torch.Tensor | None
    in_proj_bias: torch.Tensor | None
    relative_table: torch.Tensor

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | Sequence[int] | None = None,
        *,
        kernel_initializer: InitializerChoice = "glorot_uniform",
        bias_initializer: InitializerChoice = "zeros",
        relative: str | None = None,
        max_distance: int | None = None,
        relative_bidirectional: bool = True,
        **options: Unpack[KernelOptions],
    ) -> None:
        super().__init__(**options)
        num_heads, key_dim = positive_integer("num_heads", num_heads), positive_integer("key_dim", key_dim)
        value_dim = key_dim if value_dim is None else positive_integer("value_dim", value_dim)
        if self.activity_regularizer is not None:
            raise ValueError("activity_regularizer: None is expected, since Keras' is one of each projection inside")
        if isinstance(output_shape, (list, tuple)) and len(output_shape) == 1:
            (output_shape,) = output_shape
        distance = 0 if relative is None else look_up("relative", relative, RELATIVE)
        if max_distance is not None and max_distance < 1:
            raise ValueError(f"max_distance: a positive integer is expected, got {max_distance}")
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.dropout = share("dropout", dropout, below_1=True)
        self.use_bias = use_bias
        self.output_features = None if output_shape is None else positive_integer("output_shape", output_shape)
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.relative = None if relative is None else relative.lower()
        self.max_distance = max_distance or distance
        self.relative_bidirectional = relative_bidirectional
        #: Features of query, key and value; None while not built.
        self.features: tuple[int, int, int] | None = None

    # Shapes and parameters.

    def expected_input(self) -> tuple[int | str, ...]:
        return ("N", "T", "D" if self.features is None else self.features[0])

    def compute_output_shape(
        self, input_shape: Shape, value_shape: Shape | None = None, key_shape: Shape | None = None
    ) -> Shape:
        """The output's shape for queries of this shape. Raises ValueError if values and keys differ in their number."""
        if value_shape is not None and key_shape is not None and value_shape[:-1] != key_shape[:-1]:
            raise ValueError(f"{self.name}: value and key must have as many steps, got {value_shape} and {key_shape}")
        return (*input_shape[:-1], self.output_features or input_shape[-1])

    def build(self, input_shape: Shape) -> None:
        """Builds for self-attention on inputs of this shape; a first call with others builds for those."""
        self.build_for(input_shape, input_shape, input_shape)

    def build_for(self, query: Shape, key: Shape, value: Shape) -> None:
        """Makes the parameters for inputs of these shapes. Raises ValueError if their features are not known."""
        sizes = (query[-1], key[-1], value[-1])
        known = tuple(size for size in sizes if size is not None)
        if len(known) < 3:
            raise ValueError(f"{self.name}: the last axes of query, key and value must be known, got {sizes}")
        heads, out = self.num_heads, self.output_features or known[0]
        rows = (heads * self.key_dim, heads * self.key_dim, heads * self.value_dim)

        def fill_packed(weight: torch.Tensor) -> None:
            for part in weight.split(rows):  # three matrices, each with fans of its own
                fill(f"{self.name}: kernel_initializer", self.kernel_initializer, part, features_last)

        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        if len(set(known)) == 1:
            shape = (sum(rows), known[0])
            self.add_parameter("in_proj_weight", shape, fill_packed, "kernel_initializer", rule_view=_with_heads)
            for name in names:
                self.register_parameter(name, None)
        else:
            self.register_parameter("in_proj_weight", None)
            for name, row, size in zip(names, rows, known):
                shape = (row, size)
                self.add_parameter(name, shape, self.kernel_initializer, "kernel_initializer", rule_view=_with_heads)
        if self.use_bias:
            self.add_parameter("in_proj_bias", (sum(rows),), self.bias_initializer, "bias_initializer")
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = Dense(
            out, None, self.use_bias, self.kernel_initializer, self.bias_initializer,
            device=self.device, backend=self.backend, name=self.name,
            kernel_regularizer=self.kernel_regularizer, bias_regularizer=self.bias_regularizer,
            kernel_constraint=self.kernel_constraint, bias_constraint=self.bias_constraint,
        )  # fmt: skip
        self.out_proj.build_once((None, None, rows[2]))
        self._constrain(rows)
        self._build_relative()
        self.features = known  # type: ignore[assignment]

    def _constrain(self, widths: tuple[int, ...]) -> None:
        """Has the constraints see each projection by itself, as Keras lays it out."""
        alone = dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), widths))
        for name, rule in self.weight_rules.items():
            if rule.constraint is not None:
                parts = (alone[name],) if name in alone else widths
                constraint = _OfProjections(rule.constraint, self.num_heads, parts)
                self.weight_rules[name] = replace(rule, constraint=constraint)
        output = self.out_proj.weight_rules.get("weight")
        if output is not None and output.constraint is not None:
            self.out_proj.weight_rules["weight"] = replace(output, view=_OutputView(self.num_heads))

    def _build_relative(self) -> None:
        if self.relative == "shaw":
            shape = (2 * self.max_distance + 1, self.key_dim)
            self.add_parameter("relative_table", shape, "glorot_uniform", "relative")
        elif self.relative == "t5":
            self.add_parameter("relative_table", (T5_BUCKETS, self.num_heads), "glorot_uniform", "relative")
        elif self.relative == "alibi":
            slopes = torch.tensor(
                kernels.alibi_slopes(self.num_heads), dtype=torch.get_default_dtype(), device=self.device
            )
            self.register_buffer("relative_table", slopes, persistent=False)

    # Calls.

    def forward(  # type: ignore[override]
        self, query: torch.Tensor, value: torch.Tensor | None = None, key: torch.Tensor | None = None, **options: Any
    ) -> Any:
        value = query if value is None else value
        key = value if key is None else key
        options.setdefault("lengths", noted_lengths(value))
        if not self.built and all(isinstance(one, torch.Tensor) and one.dim() == 3 for one in (query, key, value)):
            self.build_for(tuple(query.shape), tuple(key.shape), tuple(value.shape))
            self.built_input_shape = (None, *query.shape[1:])
            self.built = True
        return super().forward(query, value, key, **options)

    def call(  # type: ignore[override]
        self,
        query: torch.Tensor,
        value: torch.Tensor,
        key: torch.Tensor,
        *,
        query_mask: torch.Tensor | None = None,
        value_mask: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
        lengths: torch.Tensor | None = None,
        keys_values: Heads | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if keys_values is not None:
            heads = (self._project_query(query), *keys_values)
        elif query is value and value is key and self.in_proj_weight is not None:
            heads = self._project_all(query)
        else:
            heads = (self._project_query(query), *self.project(value, key))
        q, k, v = heads
        if lengths is not None and lengths.dtype == torch.bool:
            key_mask = lengths if key_mask is None else key_mask.bool() & lengths
            lengths = None
        mask = self._mask(q, k, attention_mask, query_mask, value_mask, key_mask)
        causal = None if not use_causal_mask else "top_left" if keys_values is None else "bottom_right"
        y = self.run(
            "attention",
            q,
            k,
            v,
            mask=mask,
            causal=causal,
            lengths=lengths,
            dropout_p=float(self.dropout) if self.training else 0.0,
            relative=self._relative_term(),
        )
        padded = noted_lengths(query) if query_mask is None else None
        if padded is not None:  # in place of a mask, which the kernel would have to read for every key
            y = y.masked_fill(~real_steps(padded, query.shape[1])[:, None, :, None], 0)
        output = self.out_proj(y.transpose(1, 2).flatten(2))
        if return_attention_scores:
            return output, self._weights(q, k, mask, causal, lengths)
        return output

    def project(self, value: torch.Tensor, key: torch.Tensor | None = None) -> Heads:
        """The keys (N, heads, S, key_dim) and values (N, heads, S, value_dim) of value (N, S, Dv) and key (default the
        value), for `keys_values`. Raises ValueError if their features are not those that the layer was built for."""
        key = value if key is None else key
        assert self.features is not None, "call builds the layer"
        for name, given, features in (("key", key, self.features[1]), ("value", value, self.features[2])):
            if given.dim() != 3 or given.shape[2] != features:
                raise ValueError(f"{self.name}: {name} must have shape (N, S, {features}), got {tuple(given.shape)}")
        middle = self.num_heads * self.key_dim
        if key is value and self.in_proj_weight is not None:
            weight = self.in_proj_weight[middle:]
            bias = None if self.in_proj_bias is None else self.in_proj_bias[middle:]
            k, v = self.run("linear", value, weight, bias).split((middle, self.num_heads * self.value_dim), -1)
            return self._heads(k), self._heads(v)
        k, v = (self._project_one(part, given) for part, given in ((1, key), (2, value)))
        return self._heads(k), self._heads(v)

    def _project_query(self, query: torch.Tensor) -> torch.Tensor:
        return self._heads(self._project_one(0, query))

    def _project_one(self, part: int, x: torch.Tensor) -> torch.Tensor:
        """One of query, key and value, before the heads are split."""
        width = self.num_heads * self.key_dim
        rows = slice(part * width, (part + 1) * width if part < 2 else None)
        if self.in_proj_weight is None:
            weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[part]
        else:
            weight = self.in_proj_weight[rows]
        return self.run("linear", x, weight, None if self.in_proj_bias is None else self.in_proj_bias[rows])

    def _project_all(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        width = self.num_heads * self.key_dim
        together = self.run("linear", x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = together.split((width, width, self.num_heads * self.value_dim), -1)
        return self._heads(q), self._heads(k), self._heads(v)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, heads * size) -> a view (N, heads, T, size)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        attention: torch.Tensor | None,
        query: torch.Tensor | None,
        value: torch.Tensor | None,
        key: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """All masks in one, that broadcasts to (N, heads, T, S); None where there is none."""
        rows, queries, keys = q.shape[0], q.shape[2], k.shape[2]
        whole = None
        if attention is not None:
            one = (queries, keys)
            several = [(n, *one) for n in (rows, 1)] + [(rows, h, *one) for h in (self.num_heads, 1)]
            whole = checked_mask(self.name, attention, one, *several, argument="attention_mask")
            whole = whole[:, None] if whole.dim() == 3 else whole
        for name, mask, steps in (("query_mask", query, queries), ("value_mask", value, keys), ("key_mask", key, keys)):
            if mask is not None:
                mask = checked_mask(self.name, mask, (rows, steps), argument=name)
                mask = mask[:, None, :, None] if name == "query_mask" else mask[:, None, None, :]
                whole = mask if whole is None else whole & mask
        return whole

    def _relative_term(self) -> Any:
        if self.relative == "shaw":
            return kernels.RelativeShaw(self.relative_table)
        if self.relative == "t5":
            return kernels.RelativeT5(self.relative_table, self.relative_bidirectional, self.max_distance)
        return kernels.RelativeALiBi(self.relative_table) if self.relative == "alibi" else None

    def _weights(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        mask: torch.Tensor | None,
        causal: str | None,
        lengths: torch.Tensor | None,
    ) -> torch.Tensor:
        """The attention weights (N, heads, T, S), which the kernel does not keep."""
        if self.relative is not None:
            raise ValueError(
                f"{self.name}: return_attention_scores needs relative=None, got {self.relative!r}: "
                "the weights are computed apart, without that term"
            )
        queries, keys = q.shape[2], k.shape[2]
        visible = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device)
        if causal is not None:
            visible = visible.tril(0 if causal == "top_left" else keys - queries)
        if mask is not None:
            visible = visible & mask
        if lengths is not None:
            visible = visible & real_steps(lengths, keys)[:, None, None]
        scores = (q @ k.transpose(-1, -2)) * self.key_dim**-0.5
        weights = self.run("softmax", scores.masked_fill(~visible, -torch.inf), -1)
        return weights.masked_fill(~visible, 0)  # a query that sees no key has weights of zero, not of NaN
