"""Real architectures, built from their configurations: transformers, diffusers, monai, timm and pytorchcv.

No weights are downloaded. Each function returns a module and its inputs; its libraries are imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Built = tuple[Any, tuple[Any, ...]]


def image(*shape: int) -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def transformers_resnet() -> Built:
    """ResNet of transformers: BatchNorm."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic")
    return ResNetForImageClassification(config), (image(2, 3, 64, 64),)


def transformers_segformer() -> Built:
    """SegFormer of transformers: LayerNorm, and one BatchNorm in the head."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16, depths=[1, 1, 1, 1])
    return SegformerForSemanticSegmentation(config), (image(1, 3, 64, 64),)


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
    return ConvNextV2Model(config), (image(1, 3, 64, 64),)


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
    return Wav2Vec2Model(config), (image(1, 800),)


def diffusers_unet2d() -> Built:
    """UNet2DModel of diffusers: GroupNorm + SiLU."""
    import torch
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    return model, (image(1, 3, 16, 16), torch.tensor([7]))


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
    return model, (image(1, 3, 16, 16),)


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
    return model, (image(1, 4, 8, 8), torch.tensor([7]), torch.tensor([3]))


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
    return model, (image(1, 4, 8, 8), image(1, 6, 16), image(1, 16), torch.tensor([7]))


def monai_unet_batch() -> Built:
    """UNet of monai with BatchNorm, 2-D."""
    from monai.networks.nets import UNet

    model = UNet(2, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm="BATCH")
    return model, (image(2, 1, 32, 32),)


def monai_unet_instance() -> Built:
    """UNet of monai with InstanceNorm, 3-D."""
    from monai.networks.nets import UNet

    model = UNet(
        3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2), norm=("INSTANCE", {"affine": True})
    )
    return model, (image(1, 1, 16, 16, 16),)


def monai_segresnet_group() -> Built:
    """SegResNet of monai with GroupNorm, 3-D."""
    from monai.networks.nets import SegResNet

    return SegResNet(3, init_filters=8, in_channels=1, out_channels=2), (image(1, 1, 16, 16, 16),)


def monai_segresnet_batch() -> Built:
    """SegResNet of monai with BatchNorm before each activation, 2-D."""
    from monai.networks.nets import SegResNet

    return SegResNet(2, init_filters=8, in_channels=1, out_channels=2, norm="BATCH"), (image(1, 1, 32, 32),)


def timm_bit() -> Built:
    """BiT of timm: GroupNorm and ReLU before each convolution, whose weights are standardised."""
    from tools.without_torchvision import import_timm

    return import_timm().create_model("resnetv2_50x1_bit", num_classes=10), (image(1, 3, 64, 64),)


def timm_repvgg_a0() -> Built:
    """RepVGG-A0 of timm at 224: three branches a block, each with its BatchNorm."""
    from tools.without_torchvision import import_timm

    return import_timm().create_model("repvgg_a0"), (image(1, 3, 224, 224),)


def timm_mobileone_s0() -> Built:
    """MobileOne-S0 of timm at 224: up to six branches a block, depthwise and pointwise, each with its BatchNorm."""
    from tools.without_torchvision import import_timm

    return import_timm().create_model("mobileone_s0"), (image(1, 3, 224, 224),)


def pytorchcv_resnet18() -> Built:
    """ResNet-18 of pytorchcv at 224: BatchNorm."""
    from pytorchcv.models.resnet import resnet18

    return resnet18(), (image(1, 3, 224, 224),)


def pytorchcv_mobilenetv2() -> Built:
    """MobileNetV2 of pytorchcv at 224: BatchNorm, depthwise."""
    from pytorchcv.models.mobilenetv2 import mobilenetv2_w1

    return mobilenetv2_w1(), (image(1, 3, 224, 224),)


def pytorchcv_densenet121() -> Built:
    """DenseNet-121 of pytorchcv at 224: BatchNorm before each activation."""
    from pytorchcv.models.densenet import densenet121

    return densenet121(), (image(1, 3, 224, 224),)


def pytorchcv_preresnet18() -> Built:
    """PreResNet-18 of pytorchcv at 224: BatchNorm and Relu before each Conv."""
    from pytorchcv.models.preresnet import preresnet18

    return preresnet18(), (image(1, 3, 224, 224),)


def pytorchcv_shufflenetv2() -> Built:
    """ShuffleNetV2 of pytorchcv at 224: BatchNorm, Split, Concat, channel shuffle."""
    from pytorchcv.models.shufflenetv2 import shufflenetv2_wd2

    return shufflenetv2_wd2(), (image(1, 3, 224, 224),)


def pytorchcv_ibn_resnet50() -> Built:
    """IBN-ResNet-50 of pytorchcv at 224: Split, InstanceNorm of one half and BatchNorm of the other, Concat."""
    from pytorchcv.models.ibnresnet import ibn_resnet50

    return ibn_resnet50(), (image(1, 3, 224, 224),)


def transformers_levit() -> Built:
    """LeViT of transformers: BatchNorm behind Linear of three axes, through Reshape."""
    from transformers import LevitConfig, LevitForImageClassification

    config = LevitConfig(image_size=64, depths=[1, 1, 1], hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4])
    return LevitForImageClassification(config), (image(2, 3, 64, 64),)


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

    return Csp(32), (image(1, 32, 32, 32),)


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
