"""Measure whole models: onnxruntime's default session on the exported model against normfuse.session on the fused one.

    python tools/bench_models.py [--rounds N] [--only TEXT] [--opset N]

Models of diffusers, transformers and monai, and two samples of this checkout, with random weights, exported by normfuse, one
thread. Both sessions run in turn, by processor time; printed is the median of their ratio within a round with its 95 %
interval (by ranks), and the largest difference of the results. Needs onnxruntime, torch and those packages.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

import normfuse
from normfuse.runtime.library import find_library

OPSET = 21


class First(nn.Module):
    """The tensor out of what a model returns, called with ``fixed`` beside the inputs."""

    def __init__(self, model: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        result = self.model(*inputs, **self.fixed)
        return result if isinstance(result, torch.Tensor) else result[0]


def unet() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """diffusers UNet2DModel, 128/256/256 channels, 32×32."""
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    model = UNet2DModel(sample_size=32, block_out_channels=(128, 256, 256), layers_per_block=1, **blocks)
    return First(model, timestep=10, return_dict=False), (torch.randn(1, 3, 32, 32),)


def autoencoder() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """diffusers AutoencoderKL, 64/128 channels, 64×64."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(block_out_channels=(64, 128), layers_per_block=1, sample_size=64, **blocks)
    return First(model, return_dict=False), (torch.randn(1, 3, 64, 64),)


def segresnet() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """monai SegResNet, 3-D, GROUP, 32³."""
    from monai.networks.nets import SegResNet

    return SegResNet(spatial_dims=3, init_filters=16, norm=("GROUP", {"num_groups": 8})), (
        torch.randn(1, 1, 32, 32, 32),
    )


def bert() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """transformers Bert, 4 layers of 384, 128 tokens."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=4, num_attention_heads=6, intermediate_size=1536)
    return First(BertModel(config, add_pooling_layer=False)), (torch.randint(0, 1000, (1, 128)),)


def convnext() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """transformers ConvNeXt, 2/2/4/2 blocks of 48 to 384 channels, 128×128."""
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2])
    return First(ConvNextModel(config)), (torch.randn(1, 3, 128, 128),)


def lstm() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The sample LSTM with layer norm: small tensors, and a batch that is not known beforehand."""
    from models.lstm import example_inputs, lstm

    return lstm(), example_inputs()


def style_transfer() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The sample style transfer network: instance norms."""
    from models.style_transfer import SAMPLES

    return SAMPLES[0].factory(), SAMPLES[0].example_inputs()


DYNAMIC = {"sample LSTM, dynamic batch": {"input_0": {0: "batch"}}}
"""Axes of no known size, by model and input."""

MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "diffusers UNet2DModel": unet,
    "diffusers AutoencoderKL": autoencoder,
    "monai SegResNet": segresnet,
    "transformers Bert": bert,
    "transformers ConvNeXt": convnext,
    "sample LSTM, dynamic batch": lstm,
    "sample style transfer": style_transfer,
}


LEAST = 2e-3
"""Seconds that one timing lasts at least."""


def seconds(session: Any, feeds: dict[str, Any], runs: int = 1) -> float:
    """Return the processor time of one of ``runs`` runs."""
    start = time.process_time()
    for _ in range(runs):
        session.run(None, feeds)
    return (time.process_time() - start) / runs


def options() -> Any:
    """Return options of one thread."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 4
    return made


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by order statistics."""
    ordered, n = sorted(values), len(values)
    reach = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    return statistics.median(ordered), ordered[low], ordered[high]


def compare(name: str, rounds: int, opset: int, folder: Path) -> str:
    """Return the row of one model, its first cell aside."""
    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    names = [f"input_{index}" for index in range(len(inputs))]
    model = normfuse.export(module.eval(), inputs, input_names=names, opset=opset, dynamic=DYNAMIC.get(name))
    fused, report = normfuse.fuse(model)
    paths = folder / "plain.onnx", folder / "fused.onnx"
    for each, path in zip((model, fused), paths, strict=True):
        path.write_bytes(ir.to_proto(each).SerializeToString())
    plain = ort.InferenceSession(str(paths[0]), options(), providers=["CPUExecutionProvider"])
    ours = normfuse.session(paths[1], session_options=options())
    feeds = {item.name: value.numpy() for item, value in zip(plain.get_inputs(), inputs, strict=True)}
    pairs = zip(plain.run(None, feeds), ours.run(None, feeds), strict=True)
    error = max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs)
    runs = max(1, math.ceil(LEAST / max(1e-6, seconds(plain, feeds))))
    times = [(seconds(plain, feeds, runs), seconds(ours, feeds, runs)) for _ in range(rounds + 3)][3:]
    ratio = interval([before / after for before, after in times])
    before, after = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    faster = "{:.3f} ({:.3f}-{:.3f})".format(*ratio)
    return f"{before:.3g} ms | {after:.3g} ms | {faster} | {len(report.rewrites)} | {error:.1e}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--only", default="")
    parser.add_argument("--opset", type=int, default=OPSET)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"onnxruntime {ort.__version__}, native operators: {find_library().instruction_set}, opset {arguments.opset}\n"
    )
    print(
        "| model | onnxruntime | normfuse | faster by (95 % interval) | rewrites | difference |\n|---|---|---|---|---|---|"
    )
    for name in MODELS:
        if arguments.only in name:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {name} | {compare(name, arguments.rounds, arguments.opset, Path(folder))} |", flush=True)


if __name__ == "__main__":
    main()
