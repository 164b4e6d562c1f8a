"""Transformer decoder in the manner of Llama: Touvron et al., "LLaMA", 2023 (arXiv:2302.13971).

RMS norm: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019 (arXiv:1910.07467). SwiGLU: Shazeer, 2020
(arXiv:2002.05202).

The norm comes twice: as torch's own module, and written out as Llama's code has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sample import Sample
from models.statistics import randomise_statistics, seeded

VOCABULARY = 64
EPSILON = 1e-5


class LlamaRMSNorm(nn.Module):
    """``x · rsqrt(mean(x²) + ε) · weight`` over the last axis, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPSILON)
        return self.weight * y.to(x.dtype)


def _norm(width: int, written_out: bool) -> nn.Module:
    return LlamaRMSNorm(width) if written_out else nn.RMSNorm(width, eps=EPSILON)


class DecoderBlock(nn.Module):
    """x + attention(RMS(x)), each position seeing those before it, then x + SwiGLU(RMS(x)). x: (N, T, width)."""

    def __init__(self, width: int, heads: int, written_out: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = _norm(width, written_out)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = _norm(width, written_out)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        attended: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return attended

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        z: Tensor = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return z


class Decoder(nn.Module):
    """Embedding, two blocks, a final norm, logits through the embedding's own weight. tokens: (N, T) int64."""

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 2, written_out: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(DecoderBlock(width, heads, written_out) for _ in range(blocks)))
        self.norm = _norm(width, written_out)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.tokens(tokens)))
        return functional.linear(x, self.tokens.weight)


def transformer_decoder(seed: int = 0) -> nn.Module:
    """Return the decoder with nn.RMSNorm, in eval mode."""
    with seeded(seed):
        return randomise_statistics(Decoder(), seed).eval()


def transformer_decoder_written_out(seed: int = 0) -> nn.Module:
    """Return the decoder with Llama's own RMS norm, in eval mode."""
    with seeded(seed):
        return randomise_statistics(Decoder(written_out=True), seed).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1)),)


# Two in each of two blocks, one at the end.
EXPECTED = {"rms": 5}
SAMPLES = (
    Sample("transformer_decoder", transformer_decoder, example_inputs, EXPECTED),
    Sample("transformer_decoder_written_out", transformer_decoder_written_out, example_inputs, EXPECTED),
)
