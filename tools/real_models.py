"""Take real architectures through export, fuse and validate, and print what became of their norms.

    python tools/real_models.py                   builds an environment in build/real-models, runs there
    python tools/real_models.py --here resnet     runs in this environment, the models whose name contains "resnet"
    python tools/real_models.py --opset 18 --form standard custom ort primitive

Architectures come from transformers, diffusers, monai and pytorchcv, built from their configurations: no weights are
downloaded. Every norm gets random statistics that are not 0 and 1, every bias of zeros other values. For each model: norms
before and after, nodes, the worst error as a share of what its budget allows, the verdict, and the seconds of export, fuse
and validate; and how many norms are still written in several operators (all are in the form primitive, and where the opset
has no operator).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("transformers==5.23.0", "diffusers==0.42.1", "monai==1.6.1")
WITHOUT_DEPENDENCIES = ("pytorchcv==0.0.74", "timm==1.0.31")  # their torchvision would bring a CUDA build of torch

Built = tuple[Any, tuple[Any, ...]]


def _image(*shape: int) -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def transformers_resnet() -> Built:
    """ResNet of transformers: BatchNorm."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic")
    return ResNetForImageClassification(config), (_image(2, 3, 64, 64),)


def transformers_segformer() -> Built:
    """SegFormer of transformers: LayerNorm, and one BatchNorm in the head."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16, depths=[1, 1, 1, 1])
    return SegformerForSemanticSegmentation(config), (_image(1, 3, 64, 64),)


def transformers_bert() -> Built:
    """Bert of transformers: LayerNorm."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return BertModel(config), (torch.arange(24).reshape(2, 12),)


def transformers_llama() -> Built:
    """Llama of transformers: RMSNorm."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        use_cache=False,
    )
    return LlamaModel(config), (torch.arange(24).reshape(2, 12),)


def transformers_gpt2() -> Built:
    """GPT-2 of transformers: LayerNorm."""
    import torch
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False)
    return GPT2Model(config), (torch.arange(24).reshape(2, 12),)


def transformers_gemma() -> Built:
    """Gemma of transformers: RMSNorm with the weight 1 + w."""
    import torch
    from transformers import GemmaConfig, GemmaModel

    config = GemmaConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        use_cache=False,
    )
    return GemmaModel(config), (torch.arange(24).reshape(2, 12),)


def transformers_t5() -> Built:
    """The encoder of T5 of transformers, whose other attention than eager torch cannot export: RMSNorm."""
    import torch
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=120, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, attn_implementation="eager"
    )
    return T5EncoderModel(config), (torch.arange(24).reshape(2, 12),)


def transformers_convnextv2() -> Built:
    """ConvNeXt V2 of transformers: LayerNorm, channels first and last, and global response norm."""
    from transformers import ConvNextV2Config, ConvNextV2Model

    config = ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return ConvNextV2Model(config), (_image(1, 3, 64, 64),)


def transformers_wav2vec2() -> Built:
    """Wav2Vec 2 of transformers: GroupNorm over time, LayerNorm, a weight norm on a Conv."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16, 16],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Wav2Vec2Model(config), (_image(1, 800),)


def diffusers_unet2d() -> Built:
    """UNet2DModel of diffusers: GroupNorm + SiLU."""
    import torch
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    return model, (_image(1, 3, 16, 16), torch.tensor([7]))


def diffusers_autoencoder() -> Built:
    """AutoencoderKL of diffusers: GroupNorm + SiLU, and before attention without."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        norm_num_groups=8,
        sample_size=16,
    )
    return model, (_image(1, 3, 16, 16),)


def diffusers_dit() -> Built:
    """DiT of diffusers: LayerNorm without parameters, scaled and shifted by the condition."""
    import torch
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
    )
    return model, (_image(1, 4, 8, 8), torch.tensor([7]), torch.tensor([3]))


def diffusers_sd3() -> Built:
    """SD3Transformer2DModel of diffusers: LayerNorm by the condition, RMSNorm of queries and keys."""
    import torch
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return model, (_image(1, 4, 8, 8), _image(1, 6, 16), _image(1, 16), torch.tensor([7]))


def monai_unet_batch() -> Built:
    """UNet of monai with BatchNorm, 2-D."""
    from monai.networks.nets import UNet

    model = UNet(2, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm="BATCH")
    return model, (_image(2, 1, 32, 32),)


def monai_unet_instance() -> Built:
    """UNet of monai with InstanceNorm, 3-D."""
    from monai.networks.nets import UNet

    model = UNet(
        3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), norm=("INSTANCE", {"affine": True})
    )
    return model, (_image(1, 1, 16, 16, 16),)


def monai_segresnet_group() -> Built:
    """SegResNet of monai with GroupNorm, 3-D."""
    from monai.networks.nets import SegResNet

    return SegResNet(3, init_filters=8, in_channels=1, out_channels=2), (_image(1, 1, 16, 16, 16),)


def monai_segresnet_batch() -> Built:
    """SegResNet of monai with BatchNorm before each activation, 2-D."""
    from monai.networks.nets import SegResNet

    return SegResNet(2, init_filters=8, in_channels=1, out_channels=2, norm="BATCH"), (_image(1, 1, 32, 32),)


def timm_bit() -> Built:
    """BiT of timm: GroupNorm and ReLU before each convolution, whose weights are standardised."""
    from tools.without_torchvision import import_timm

    return import_timm().create_model("resnetv2_50x1_bit", num_classes=10), (_image(1, 3, 64, 64),)


def timm_repvgg_a0() -> Built:
    """RepVGG-A0 of timm at 224: three branches a block, each with its BatchNorm."""
    from tools.without_torchvision import import_timm

    return import_timm().create_model("repvgg_a0"), (_image(1, 3, 224, 224),)


def timm_mobileone_s0() -> Built:
    """MobileOne-S0 of timm at 224: up to six branches a block, depthwise and pointwise, each with its BatchNorm."""
    from tools.without_torchvision import import_timm

    return import_timm().create_model("mobileone_s0"), (_image(1, 3, 224, 224),)


def pytorchcv_resnet18() -> Built:
    """ResNet-18 of pytorchcv at 224: BatchNorm."""
    from pytorchcv.models.resnet import resnet18

    return resnet18(), (_image(1, 3, 224, 224),)


def pytorchcv_mobilenetv2() -> Built:
    """MobileNetV2 of pytorchcv at 224: BatchNorm, depthwise."""
    from pytorchcv.models.mobilenetv2 import mobilenetv2_w1

    return mobilenetv2_w1(), (_image(1, 3, 224, 224),)


def pytorchcv_densenet121() -> Built:
    """DenseNet-121 of pytorchcv at 224: BatchNorm before each activation."""
    from pytorchcv.models.densenet import densenet121

    return densenet121(), (_image(1, 3, 224, 224),)


def pytorchcv_preresnet18() -> Built:
    """PreResNet-18 of pytorchcv at 224: BatchNorm and Relu before each Conv."""
    from pytorchcv.models.preresnet import preresnet18

    return preresnet18(), (_image(1, 3, 224, 224),)


def pytorchcv_shufflenetv2() -> Built:
    """ShuffleNetV2 of pytorchcv at 224: BatchNorm, Split, Concat, channel shuffle."""
    from pytorchcv.models.shufflenetv2 import shufflenetv2_wd2

    return shufflenetv2_wd2(), (_image(1, 3, 224, 224),)


def pytorchcv_ibn_resnet50() -> Built:
    """IBN-ResNet-50 of pytorchcv at 224: Split, InstanceNorm of one half and BatchNorm of the other, Concat."""
    from pytorchcv.models.ibnresnet import ibn_resnet50

    return ibn_resnet50(), (_image(1, 3, 224, 224),)


def transformers_levit() -> Built:
    """LeViT of transformers: BatchNorm behind Linear of three axes, through Reshape."""
    from transformers import LevitConfig, LevitForImageClassification

    config = LevitConfig(image_size=64, depths=[1, 1, 1], hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4])
    return LevitForImageClassification(config), (_image(2, 3, 64, 64),)


def csp_block() -> Built:
    """A cross-stage block whose BatchNorm stands behind the Concat of its two branches, as in YOLOv4 and v5."""
    from torch import cat, nn

    class Csp(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            half = channels // 2
            self.one, self.two = nn.Conv2d(channels, half, 1), nn.Conv2d(channels, half, 1, bias=False)
            self.inner = nn.Sequential(nn.Conv2d(half, half, 3, padding=1), nn.BatchNorm2d(half), nn.LeakyReLU(0.1))
            self.out = nn.Conv2d(half, half, 1, bias=False)
            self.norm, self.last = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1)

        def forward(self, x: Any) -> Any:
            joined = cat((self.out(self.inner(self.one(x))), self.two(x)), 1)
            return self.last(nn.functional.leaky_relu(self.norm(joined), 0.1))

    return Csp(32), (_image(1, 32, 32, 32),)


MODELS: tuple[Callable[[], Built], ...] = (
    transformers_resnet,
    transformers_segformer,
    transformers_bert,
    transformers_llama,
    transformers_gpt2,
    transformers_gemma,
    transformers_t5,
    transformers_convnextv2,
    transformers_wav2vec2,
    diffusers_unet2d,
    diffusers_autoencoder,
    diffusers_dit,
    diffusers_sd3,
    monai_unet_batch,
    monai_unet_instance,
    monai_segresnet_group,
    monai_segresnet_batch,
    timm_bit,
    timm_repvgg_a0,
    timm_mobileone_s0,
    pytorchcv_resnet18,
    pytorchcv_mobilenetv2,
    pytorchcv_densenet121,
    pytorchcv_preresnet18,
    pytorchcv_shufflenetv2,
    pytorchcv_ibn_resnet50,
    transformers_levit,
    csp_block,
)


def norm_counts(model: ir.Model) -> str:
    """Return the norms of a model by kind: "20 batch"."""
    from collections import Counter

    import normfuse

    report = normfuse.inspect(model)
    counts = Counter(record.norm for record in report.norms)
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def decomposed(model: ir.Model) -> int:
    """Return how many norms of a model are written in several operators; batch norms as arithmetic are none."""
    import normfuse

    records = normfuse.inspect(model, normfuse.Target(normfuse.Form.CUSTOM)).norms
    return sum(len(record.nodes) > 1 for record in records if record.norm != "batch")


def exported(build: Callable[[], Built], opset: int | None = None) -> ir.Model:
    """Return a model as it is exported, its norms with random statistics that are not 0 and 1, biases not 0."""
    import normfuse

    return normfuse.export(*randomised(build), opset=opset)


def exported_in_own_form(build: Callable[[], Built]) -> ir.Model | None:
    """Return the same model in the form that its library has for inference; None where it has none (timm only)."""
    import normfuse

    module, inputs = randomised(build)
    if not any(hasattr(part, "reparameterize") for part in module.modules()):
        return None
    from timm.utils.model import reparameterize_model

    return normfuse.export(reparameterize_model(module), inputs)


def randomised(build: Callable[[], Built]) -> Built:
    """Return a module for inference, with random statistics and biases, and its inputs; the same each time."""
    from models.statistics import randomise_biases, randomise_statistics, seeded

    with seeded(0), contextlib.redirect_stdout(open(os.devnull, "w")):
        module, inputs = build()
    return randomise_biases(randomise_statistics(module.eval(), seed=1), seed=2), inputs


def rows(build: Callable[[], Built], forms: list[str], opset: int | None) -> Iterator[list[str]]:
    """Export one model, fuse and validate it in every form; yield a row of the table for each."""
    import normfuse
    from normfuse.emit.target import Form

    start = time.perf_counter()
    original = exported(build, opset)
    exporting = time.perf_counter() - start
    for form in forms:
        clock = [time.perf_counter()]
        fused, report = normfuse.fuse(original, normfuse.Target(Form(form)))
        clock.append(time.perf_counter())
        verdict = normfuse.validate(original, fused)
        clock.append(time.perf_counter())
        shares = [check.error / check.allowed for check in verdict.checks if check.allowed > 0]
        seconds = [exporting, *(after - before for before, after in itertools.pairwise(clock))]
        yield [
            build.__name__,
            form,
            norm_counts(original),
            norm_counts(fused),
            str(decomposed(fused)),
            f"{report.nodes.before}→{report.nodes.after}",
            f"{max(shares):.2f}" if shares else "-",
            " ".join(f"{leg.name}:{leg.verdict.value}" for leg in verdict.legs),
            "/".join(f"{each:.1f}" for each in seconds),
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f}",
        ]


def build_environment(folder: Path) -> Path:
    """Make a virtual environment with the libraries; return its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "-e", f"{ROOT}[cpu,torch]", *LIBRARIES], check=True)
        subprocess.run([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
        (folder / ".ready").touch()
    return python


def run(names: list[str], forms: list[str], opset: int | None) -> int:
    """Print the table; return 1 if any model is not equivalent."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT))
    print(
        "| model | form | norms before | after | of several operators | nodes | worst error / allowed | verdict "
        "| export/fuse/validate s | peak GB |"
    )
    print("|---" * 10 + "|")
    failed = 0
    for build in MODELS:
        if names and not any(name in build.__name__ for name in names):
            continue
        try:
            for cells in rows(build, forms, opset):
                failed += "DIVERGENT" in cells[-3]
                print(f"| {' | '.join(cells)} |", flush=True)
        except Exception as error:
            failed += 1
            print(f"| {build.__name__} | {type(error).__name__}: {str(error).splitlines()[0][:120]} |", flush=True)
    return 1 if failed else 0


def main() -> None:
    """Parse the command line and run, in an environment of its own unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="run only models whose name contains one of these")
    parser.add_argument("--here", action="store_true", help="run in this environment")
    parser.add_argument("--form", nargs="+", default=["auto"])
    parser.add_argument("--opset", type=int, help="the opset of the export")
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "real-models")
    arguments = parser.parse_args()
    if arguments.here:
        sys.exit(run(arguments.names, arguments.form, arguments.opset))
    python = build_environment(arguments.environment)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), str(Path(__file__).resolve()), *arguments.names, "--here", "--form", *arguments.form]
        command += ["--opset", str(arguments.opset)] if arguments.opset else []
        sys.exit(subprocess.run(command, cwd=folder, check=False).returncode)


if __name__ == "__main__":
    main()
