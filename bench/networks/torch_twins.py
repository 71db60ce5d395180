"""The networks as PyTorch's users write them: torch's own modules, eager mode, a plain training loop."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

#: Distances from which on the relative term tells none apart, as in `nnlib.layers.MultiHeadAttention`.
MAX_DISTANCE = 16


class Recurrent(nn.Module):
    """An embedding, two LSTMs and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10000, 64)
        self.first = nn.LSTM(64, 64, batch_first=True)
        self.second = nn.LSTM(64, 32, batch_first=True)
        self.head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10) of tokens (N, T)."""
        x, _ = self.first(self.embedding(tokens))
        _, (h_n, _) = self.second(x)
        return self.head(h_n[0])


class Block(nn.Module):
    """Self-attention with Shaw's relative positions and a feed-forward part, each with its sum and norm."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.empty(2 * MAX_DISTANCE + 1, width // heads))
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """The relative term goes to torch's fused attention as a bias, the fastest way that torch has."""
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in self.in_proj(x).chunk(3, -1))
        steps = torch.arange(x.shape[1])
        rows = (steps[None] - steps[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE
        by_row = (q @ self.table.t()) * q.shape[-1] ** -0.5
        bias = by_row.gather(-1, rows.expand(*by_row.shape[:2], -1, -1))
        dropped = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropped)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, width) -> (N, T, width)."""
        x = self.norm1(x + self.dropout(self.attend(x)))
        return self.norm2(x + self.dropout(self.dense(x)))


class Transformer(nn.Module):
    """Two blocks over an embedding, averaged over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10000, 512)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(Block(512, 8, 2048, 0.1) for _ in range(2)))
        self.final = nn.Linear(512, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10) of tokens (N, T)."""
        x = self.dropout(self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim))
        return self.final(self.blocks(x).mean(1))


def build_cnn() -> nn.Module:
    """For images (N, 28, 28, 1), whose one channel makes them (N, 1, 28, 28) for free."""
    return nn.Sequential(
        _ChannelsFirst(),
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class _ChannelsFirst(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)


BUILDERS = {"cnn": build_cnn, "rnn": Recurrent, "transformer": Transformer}


@torch.no_grad()
def initialize_as_keras(module: nn.Module) -> None:
    """Keras' distributions: Glorot's uniform one, orthogonal recurrent weights, biases 0 and 1 for forget gates.

    An LSTM's second bias, which Keras' has not, stays 0.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.uniform_(part.weight, -0.05, 0.05)
        elif isinstance(part, Block):
            nn.init.xavier_uniform_(part.table)
        elif isinstance(part, nn.LSTM):
            of = dict(part.named_parameters())
            nn.init.xavier_uniform_(of["weight_ih_l0"])
            nn.init.orthogonal_(of["weight_hh_l0"])
            nn.init.zeros_(of["bias_ih_l0"])
            of["bias_ih_l0"][part.hidden_size : 2 * part.hidden_size] = 1.0
            nn.init.zeros_(of["bias_hh_l0"]).requires_grad_(False)


class TorchTrainer:
    """Adam as Keras has it, over shuffled batches."""

    def __init__(self, name: str, x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = BUILDERS[name]()
        initialize_as_keras(self.model)
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(wanted, lr=1e-3, eps=1e-7)
        self.x, self.y, self.batch_size = torch.from_numpy(x), torch.from_numpy(y).long(), batch_size

    def train_epoch(self) -> None:
        """One pass over the data, with the running loss and accuracy that everyone shows."""
        self.model.train()
        loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for rows in torch.randperm(len(self.x)).split(self.batch_size):
            labels = self.y[rows]
            logits = self.model(self.x[rows])
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                loss_sum += loss * len(rows)
                right += (logits.argmax(-1) == labels).sum()

    @torch.no_grad()
    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of right answers."""
        self.model.eval()
        found = [self.model(rows).argmax(-1) for rows in torch.from_numpy(x).split(self.batch_size)]
        return float((torch.cat(found).numpy() == y).mean())
