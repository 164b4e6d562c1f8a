"""Transformer encoder: Vaswani et al., "Attention Is All You Need", 2017 (arXiv:1706.03762), with the norm before
each branch: Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020 (arXiv:2002.04745).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sample import Sample
from models.statistics import randomise_statistics, seeded

VOCABULARY = 64


class EncoderBlock(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x)). x: (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attention(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        attended: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return attended

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Encoder(nn.Module):
    """Embeddings, two blocks, a final norm. tokens: (N, T) int64; the result: (N, T, width)."""

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 2, longest: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.randn(1, longest, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[:, : tokens.shape[1]]
        encoded: Tensor = self.norm(self.blocks(x))
        return encoded


def transformer_encoder(seed: int = 0) -> nn.Module:
    """Return the encoder, in eval mode."""
    with seeded(seed):
        return randomise_statistics(Encoder(), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1)),)


# Two in each of two blocks, one at the end.
EXPECTED = {"layer": 5}
SAMPLES = (Sample("transformer_encoder", transformer_encoder, example_inputs, EXPECTED),)
