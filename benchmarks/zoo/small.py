"""Small networks of one kind of layer: products, and recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.entry import ZooEntry, random_entry, seeded


class StackedLSTM(nn.Module):
    """Stacked LSTM over [batch, steps, features]; returns outputs, last hidden, last cell."""

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the whole sequence from a zero state."""
        output, (hidden, cell) = self.lstm(x)
        return output, hidden, cell


class StackedGRU(nn.Module):
    """Stacked GRU over [batch, steps, features]; returns outputs and last hidden."""

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the whole sequence from a zero state."""
        output, hidden = self.gru(x)
        return output, hidden


@seeded
def mlp() -> ZooEntry:
    """Three layers of 256 with ReLU, batch 1."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return random_entry(nn.Sequential(*layers[:-1]), (torch.randn(1, 256),))


@seeded
def lstm() -> ZooEntry:
    """Two layers of LSTM, 256 hidden units, 64 steps of 80 features."""
    return random_entry(StackedLSTM(80, 256, 2), (torch.randn(1, 64, 80),))


@seeded
def gru() -> ZooEntry:
    """Two layers of GRU, 256 hidden units, 64 steps of 80 features."""
    return random_entry(StackedGRU(80, 256, 2), (torch.randn(1, 64, 80),))
