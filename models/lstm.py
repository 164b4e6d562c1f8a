"""LSTM with layer norm: Ba, Kiros, Hinton, "Layer Normalization", 2016 (arXiv:1607.06450), equations 20 to 22.

Statistics are those of one time step, never of the sequence. A BatchNorm would need statistics per step; layer norm
needs none, which is why it came into being.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.sample import Sample
from models.statistics import randomise_statistics, seeded

STEPS = 6


class LayerNormLSTMCell(nn.Module):
    """One step: LN of both linear maps before the gates, LN of the cell before the output."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(inputs, 4 * hidden, bias=False)
        self.from_hidden = nn.Linear(hidden, 4 * hidden, bias=False)
        self.norm_input = nn.LayerNorm(4 * hidden)
        self.norm_hidden = nn.LayerNorm(4 * hidden)
        self.norm_cell = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.norm_input(self.from_input(x)) + self.norm_hidden(self.from_hidden(hidden))
        forget, write, read, candidate = gates.chunk(4, dim=1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(write) * torch.tanh(candidate)
        hidden = torch.sigmoid(read) * torch.tanh(self.norm_cell(cell))
        return hidden, cell


class LayerNormLSTM(nn.Module):
    """The cell unrolled over the sequence, and a classifier on the last hidden state. x: (N, T, inputs)."""

    def __init__(self, inputs: int = 16, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.cell = LayerNormLSTMCell(inputs, hidden)
        self.hidden = hidden
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], self.hidden)
        for step in range(x.shape[1]):
            hidden, cell = self.cell(x[:, step], hidden, cell)
        logits: Tensor = self.fc(hidden)
        return logits


def lstm(seed: int = 0) -> nn.Module:
    """Return the LSTM, in eval mode."""
    with seeded(seed):
        return randomise_statistics(LayerNormLSTM(), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(2, STEPS, 16, generator=torch.Generator().manual_seed(1)),)


# Three in each step: an exported graph is unrolled.
EXPECTED = {"layer": 3 * STEPS}
SAMPLES = (Sample("lstm", lstm, example_inputs, EXPECTED),)
