"""LayerNormalization, RMSNormalization and MultiHeadAttention: against Keras, and against torch's modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kernels
import nnlib
from kernels.attention.relative import t5_buckets
from nnlib import layers, models, ops
from tests.nnlib.keras_twin import assert_like_keras, randomize

keras = pytest.importorskip("keras")


def pair(name, *arguments, **options):
    return getattr(layers, name)(*arguments, **options), getattr(keras.layers, name)(*arguments, **options)


@pytest.mark.parametrize("shape, axis", [((3, 7), -1), ((3, 5, 7), -1), ((2, 3, 4, 5), [1, 2, 3])])
@pytest.mark.parametrize("center, scale", [(True, True), (False, True), (True, False), (False, False)])
def test_layer_normalization_against_keras(shape, axis, center, scale, random_image):
    ours, theirs = pair("LayerNormalization", axis, epsilon=0.01, center=center, scale=scale)
    x = random_image(*shape)
    assert_like_keras(ours, theirs, [x])
    assert tuple(ours(x.float()).shape) == ours.compute_output_shape(shape)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("axis, axes", [(1, [1]), ((1, 3), [1, 3]), ((-3,), [1])])
def test_layer_normalization_of_inner_axes(axis, axes, random_image):
    """Keras on torch fails here, so that this one is against torch."""
    x = random_image(2, 5, 3, 4)
    layer = layers.LayerNormalization(axis, epsilon=0.01)
    layer(x)
    randomize(layer)
    last = [-2, -1] if len(axes) == 2 else [-1]
    turned = F.layer_norm(x.movedim(axes, last), layer.weight.shape, layer.weight, layer.bias, 0.01)
    expected = turned.movedim(last, axes)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    wanted = [x, *layer.parameters()]
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(*(torch.autograd.grad(y, wanted, cotangent) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_rms_normalization_against_keras(random_image):
    assert_like_keras(*pair("RMSNormalization", -1, epsilon=0.01), [random_image(3, 5, 7)])


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("value_dim", [None, 5])
@pytest.mark.parametrize("output_shape", [None, 6])
@pytest.mark.parametrize("inputs", ["self", "cross", "three"])
def test_attention_against_keras(use_bias, value_dim, output_shape, inputs, random_image):
    ours, theirs = pair("MultiHeadAttention", 3, 4, value_dim, use_bias=use_bias, output_shape=output_shape)
    x = random_image(2, 5, 7)
    given = {
        "self": [x, x],
        "cross": [x, random_image(2, 6, 7, seed=1)],
        "three": [x, random_image(2, 6, 8, seed=1), random_image(2, 6, 9, seed=2)],
    }[inputs]
    assert_like_keras(ours, theirs, given)
    packed = inputs != "three"
    assert ("in_proj_weight" in ours.state_dict()) == packed
    assert tuple(ours(*(one.float() for one in given)).shape) == ours.compute_output_shape((2, 5, 7))


def test_the_same_input_is_projected_at_once(random_image):
    layer = layers.MultiHeadAttention(3, 4)
    x = random_image(2, 5, 7).float()
    with ops.recording() as uses:
        once = layer(x)
    assert [use.op for use in uses] == ["linear", "attention", "linear"]
    torch.testing.assert_close(once, layer(x, x.clone(), x.clone()))


def mask_of(kind):
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand((2, 5, 6), generator=generator) < 0.6
    mask[:, :, 0] = True
    return mask if kind == "each" else mask[:1]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", [None, "each", "all"])
def test_attention_masks_against_keras(causal, kind, random_image):
    ours, theirs = pair("MultiHeadAttention", 3, 4)
    x, y = random_image(2, 5, 7), random_image(2, 6, 7, seed=1)
    options = {"use_causal_mask": causal} | ({} if kind is None else {"attention_mask": mask_of(kind)})
    assert_like_keras(ours, theirs, [x, y], options, options)
    given = {**options, "return_attention_scores": True}
    assert_like_keras(ours, theirs, [x, y], given, given)


def test_padded_keys_against_keras(random_image):
    ours, theirs = pair("MultiHeadAttention", 3, 4)
    x, y = random_image(2, 5, 7), random_image(2, 6, 7, seed=1)
    lengths = torch.tensor([6, 2])
    key_mask = torch.arange(6) < lengths[:, None]
    given = {"return_attention_scores": True}
    assert_like_keras(ours, theirs, [x, y], {"lengths": lengths, **given}, {"key_mask": key_mask, **given})
    unseen, weights = ours(x.float(), y.float(), lengths=torch.tensor([0, 6]), return_attention_scores=True)
    assert (weights[0] == 0).all() and torch.equal(unseen[0], ours.out_proj.bias.expand(5, 7))


def test_attention_is_torchs_module(random_image):
    nnlib.set_seed(0)
    twin = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    layer = layers.MultiHeadAttention(3, 4)
    layer.build_once((None, None, 12))
    layer.double()
    layer.load_state_dict(twin.state_dict())
    randomize(layer)
    twin.load_state_dict(layer.state_dict())
    x, y = random_image(2, 5, 12), random_image(2, 6, 12, seed=1)
    for given in ([x, x, x], [x, y, y]):
        found, expected = layer(*given), twin(*given, need_weights=False)[0]
        torch.testing.assert_close(found, expected)
        parameters = list(layer.parameters()), list(twin.parameters())
        cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ours = torch.autograd.grad(found, [x, *parameters[0]], cotangent)
        theirs = torch.autograd.grad(expected, [x, *parameters[1]], cotangent)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)
    other = torch.nn.MultiheadAttention(12, 3, kdim=5, vdim=7, batch_first=True)
    layer = layers.MultiHeadAttention(3, 4)
    layer(torch.zeros(2, 5, 12), torch.zeros(2, 6, 7), torch.zeros(2, 6, 5))
    assert {n: v.shape for n, v in layer.state_dict().items()} == {n: v.shape for n, v in other.state_dict().items()}


def test_initial_weights_are_keras():
    """Glorot's limit for each matrix (features, heads * size) and for that of the output, as Keras 3.15 counts them."""
    nnlib.set_seed(0)
    layer = layers.MultiHeadAttention(4, 16, 8)
    layer(torch.zeros(1, 2, 64))
    parts = [*layer.in_proj_weight.split((64, 64, 32)), layer.out_proj.weight]
    for part, fans in zip(parts, (64 + 64, 64 + 64, 64 + 32, 32 + 64), strict=True):
        limit = (6 / fans) ** 0.5
        assert 0.98 * limit < part.abs().max() <= limit
    assert not layer.in_proj_bias.any() and not layer.out_proj.bias.any()


def shaw(q, k, table, scale):
    distance = torch.arange(k.shape[2])[None] - torch.arange(q.shape[2])[:, None]
    limit = (len(table) - 1) // 2
    return scale * torch.einsum("nhtd,tsd->nhts", q, table[distance.clamp(-limit, limit) + limit])


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("relative", ["shaw", "t5", "alibi"])
@pytest.mark.parametrize("causal", [False, True])
def test_relative_position(relative, causal, random_image):
    layer = layers.MultiHeadAttention(
        3, 4, relative=relative, max_distance=20 if relative == "t5" else 2, relative_bidirectional=not causal
    )
    x = random_image(2, 12, 7)
    layer(x)
    randomize(layer)
    found = layer(x, use_causal_mask=causal)
    q, k, v = (
        part.unflatten(-1, (3, 4)).transpose(1, 2)
        for part in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    )
    scores = q @ k.transpose(-1, -2) / 2
    distance = torch.arange(12)[None] - torch.arange(12)[:, None]
    if relative == "shaw":
        scores = scores + shaw(q, k, layer.relative_table, 0.5)
    elif relative == "alibi":
        assert torch.equal(layer.relative_table, torch.tensor(kernels.alibi_slopes(3)))
        scores = scores - layer.relative_table[:, None, None] * distance.abs()
    else:
        buckets = torch.from_numpy(t5_buckets(distance.numpy(), 32, not causal, 20))
        scores = scores + layer.relative_table[buckets].permute(2, 0, 1)
    if causal:
        scores = scores.masked_fill(distance > 0, -torch.inf)
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = F.linear(y, layer.out_proj.weight, layer.out_proj.bias)
    torch.testing.assert_close(found, expected)
    wanted = [x, *layer.parameters()]
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(*(torch.autograd.grad(y, wanted, cotangent) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)
    assert ("relative_table" in layer.state_dict()) == (relative != "alibi")


def test_dropout_falls_on_the_weights(random_image):
    layer = layers.MultiHeadAttention(2, 4, dropout=0.5)
    x = random_image(2, 5, 7).float()
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_every_backend(random_image):
    x = random_image(2, 5, 8).float()
    model = models.Sequential([layers.MultiHeadAttention(2, 4, relative="shaw"), layers.LayerNormalization()])
    results = {}
    for backend in ("numba", "torch", "reference"):
        with ops.recording() as uses:
            results[backend] = model.to_backend(backend)(x)
        assert [(use.op, use.backend) for use in uses] == [
            (op, backend) for op in ("linear", "attention", "linear", "layer_norm")
        ]
    torch.testing.assert_close(results["numba"], results["reference"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results["torch"], results["reference"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: layers.MultiHeadAttention(0, 4), ValueError, "num_heads: a positive integer is expected, got 0"),
        (lambda: layers.MultiHeadAttention(2, 4, dropout=1), ValueError, r"dropout: a number in \[0, 1\) is .*, got 1"),
        (
            lambda: layers.MultiHeadAttention(2, 4, relative="rotary"),
            ValueError,
            "relative: known names are shaw, t5, alibi; got 'rotary'.*",
        ),
        (
            lambda: layers.MultiHeadAttention(2, 4)(torch.zeros(2, 3)),
            ValueError,
            r"multi_head_attention: input must have shape \(N, T, D\), got \(2, 3\)",
        ),
        (
            lambda: models.Sequential([layers.MultiHeadAttention(2, 4, input_shape=(5, 8))]).layers[0](
                torch.zeros(2, 3, 8), torch.zeros(2, 3, 7)
            ),
            ValueError,
            r"multi_head_attention: key must have shape \(N, S, 8\), got \(2, 3, 7\)",
        ),
        (
            lambda: layers.MultiHeadAttention(2, 4)(torch.zeros(2, 3, 8), attention_mask=torch.full((3, 3), 2.0)),
            ValueError,
            "multi_head_attention: attention_mask must be bool, or 1 for True and 0 for False, got 2.0",
        ),
        (
            lambda: layers.MultiHeadAttention(2, 4)(
                torch.zeros(2, 3, 8), attention_mask=torch.ones(2, 3, 4, dtype=torch.bool)
            ),
            ValueError,
            r"multi_head_attention: attention_mask must have shape \(3, 3\) or \(2, 3, 3\) or .*, got \(2, 3, 4\)",
        ),
        (
            lambda: layers.MultiHeadAttention(2, 4, relative="t5")(torch.zeros(2, 3, 8), return_attention_scores=True),
            ValueError,
            "multi_head_attention: return_attention_scores needs relative=None, got 't5': .*",
        ),
        (lambda: layers.LayerNormalization(epsilon=0), ValueError, "epsilon: a positive number is expected, got 0"),
        (
            lambda: layers.LayerNormalization(0)(torch.zeros(2, 3)),
            ValueError,
            r"layer_normalization: axis 0 must be of the input's but the batch, got \(2, 3\)",
        ),
        (
            lambda: models.Sequential([layers.LayerNormalization(input_shape=(3,))])(torch.zeros(2, 4)),
            ValueError,
            r"layer_normalization: input must have sizes \(3,\) in axis -1, got \(2, 4\)",
        ),
    ],
)
def test_errors(make, kind, message):
    with pytest.raises(kind, match=f"^{message}$"):
        make()
