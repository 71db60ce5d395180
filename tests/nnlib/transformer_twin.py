"""TransformerModel written out with torch's own functions, on the model's weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def distances(steps: int) -> torch.Tensor:
    """Key less query."""
    return torch.arange(steps)[None] - torch.arange(steps)[:, None]


def logits(
    state: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    *,
    num_layers: int,
    num_heads: int,
    positions: str = "sinusoidal",
    norm_first: bool = False,
) -> torch.Tensor:
    """The logits (N, classes) of tokens (N, T). state: the parameters by their names in the model."""
    embedding = state["encoder.embedding.weight"]
    depth, steps = embedding.shape[1], tokens.shape[1]
    x = F.embedding(tokens, embedding) * depth**0.5
    if positions == "sinusoidal":
        rate = 10000 ** (torch.arange(0, depth, 2, dtype=torch.float64) / depth)
        angle = torch.arange(steps, dtype=torch.float64)[:, None] / rate
        x = x + torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(x.dtype)
    for number in range(num_layers):
        part = f"encoder.blocks.{number}."

        def norm(y: torch.Tensor, name: str, part: str = part) -> torch.Tensor:
            return F.layer_norm(y, (depth,), state[f"{part}{name}.weight"], state[f"{part}{name}.bias"], 1e-6)

        def attend(y: torch.Tensor, part: str = part) -> torch.Tensor:
            name = f"{part}attention."
            projected = F.linear(y, state[name + "in_proj_weight"], state[name + "in_proj_bias"]).chunk(3, -1)
            q, k, v = (one.unflatten(-1, (num_heads, -1)).transpose(1, 2) for one in projected)
            scores = q @ k.transpose(-1, -2)
            if positions == "relative":
                table = state[name + "relative_table"]
                limit = (len(table) - 1) // 2
                scores = scores + torch.einsum(
                    "nhtd,tsd->nhts", q, table[distances(steps).clamp(-limit, limit) + limit]
                )
            weights = (scores * q.shape[-1] ** -0.5).softmax(-1)
            return F.linear(
                (weights @ v).transpose(1, 2).flatten(2), state[name + "out_proj.weight"], state[name + "out_proj.bias"]
            )

        def dense(y: torch.Tensor, part: str = part) -> torch.Tensor:
            y = F.linear(y, state[part + "dense1.weight"], state[part + "dense1.bias"]).relu()
            return F.linear(y, state[part + "dense2.weight"], state[part + "dense2.bias"])

        for name, function in (("norm1", attend), ("norm2", dense)):
            x = x + function(norm(x, name)) if norm_first else norm(x + function(x), name)
    if norm_first:
        x = F.layer_norm(x, (depth,), state["encoder.norm.weight"], state["encoder.norm.bias"], 1e-6)
    return F.linear(x.mean(1), state["final.weight"], state["final.bias"])
