"""Tiny ranking models of all kinds of backbones, and tiny images with tiers, for all tests here."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    PreTrainedConfig,
    ResNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
)

from hftune.tasks.ranking.backbones_ranking import new_backbone
from hftune.tasks.ranking.modeling_ranking import (
    PairwiseRankingModel,
    make_processor,
    ranking_config,
)

torch.set_num_threads(1)

SIZE = 32
"""Side of the images in pixels."""

_LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": 8,
}
_WIDTHS = {"hidden_sizes": [8, 16, 24], "depths": [1, 1, 2]}

BACKBONES: dict[str, PreTrainedConfig] = {
    "dinov2": Dinov2Config(**{**_LAYERS, "mlp_ratio": 2}),
    "dinov2_registers": Dinov2WithRegistersConfig(
        **{**_LAYERS, "mlp_ratio": 2}, num_register_tokens=3
    ),
    "vit": ViTConfig(**_LAYERS),
    "clip": CLIPVisionConfig(**_LAYERS),
    "siglip": SiglipVisionConfig(**_LAYERS),
    "resnet": ResNetConfig(embedding_size=8, layer_type="basic", **_WIDTHS),
    "convnext": ConvNextConfig(num_stages=3, **_WIDTHS),
    "swin": SwinConfig(
        image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    ),
}
"""Configurations of tiny backbones by family; copy one before you change it."""

_TIMM_LAYERS = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
_TIMM_VIT = {**_TIMM_LAYERS, "dynamic_img_size": True}
_TIMM_WINDOWS = {
    "img_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
    "window_size": 4,
}  # fmt: skip


def _timm(architecture: str, **model_args) -> PreTrainedConfig:
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, do_pooling=False)


TIMM_BACKBONES: dict[str, PreTrainedConfig] = {
    "timm_vit": _timm("vit_tiny_patch16_224", **_TIMM_VIT),
    "timm_registers": _timm("vit_small_patch14_reg4_dinov2", **_TIMM_VIT),
    "timm_siglip": _timm("vit_base_patch16_siglip_224", **_TIMM_VIT),
    "timm_distilled": _timm("deit_tiny_distilled_patch16_224", **_TIMM_VIT),
    "timm_rope": _timm("vit_small_patch16_dinov3", **_TIMM_VIT),
    "timm_eva": _timm("eva02_tiny_patch14_224", **_TIMM_VIT),
    "timm_swin": _timm("swin_tiny_patch4_window7_224", **_TIMM_WINDOWS),
    "timm_swinv2": _timm("swinv2_tiny_window8_256", **_TIMM_WINDOWS),
    "timm_convnext": _timm("convnext_atto", depths=[1, 1, 2, 1], dims=[8, 8, 16, 16]),
    "timm_resnet": _timm("resnet10t", channels=[8, 8, 16, 16], stem_width=8),
}
"""The same of the timm library."""

HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8, "head_hidden_dim": 4}
"""Sizes of a tiny head."""


def small_backbone(family: str = "dinov2", seed: int = 0) -> torch.nn.Module:
    """Makes one of the tiny backbones with weights that are the seed's."""
    torch.manual_seed(seed)
    return new_backbone(copy.deepcopy({**BACKBONES, **TIMM_BACKBONES}[family]))


def small_model(
    family: str = "dinov2", resize_mode: str = "letterbox", seed: int = 0, **settings
) -> PairwiseRankingModel:
    """Makes a model of a tiny backbone, with its image processor, in evaluation mode.

    Biases, position embeddings, register tokens and layer scales are drawn too, which new backbones
    have at 0 or 1: else a weight that is lost in saving would not be seen.
    """
    backbone = small_backbone(family, seed)
    config = ranking_config(backbone, **{**HEAD, **settings})
    model = PairwiseRankingModel(config, backbone=backbone)
    draw_weights(model, seed)
    model.image_processor = make_processor(backbone.config, SIZE, resize_mode)
    return model.eval()


def draw_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Moves all parameters and statistics of a model by random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = 0.05 * torch.randn(value.shape, generator=generator)
                value += noise.abs() if name.endswith("running_var") else noise


def small_pixels(count: int = 4, height: int = SIZE, width: int = SIZE, seed: int = 0):
    """Returns pixel values ``[count, 3, height, width]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator)


def write_images(
    folder: Path, per_tier: int = 5, tiers: str = "SABC", size: int = SIZE, seed: int = 0
) -> Path:
    """Writes ``images/*.png`` and ``metadata.csv`` of images that are the brighter the better.

    Args:
        folder (Path): Made if it is not there.
        per_tier (int): Images of each tier.
        tiers (str): A letter each, best first.
        size (int): Side in pixels.

    Returns:
        Path of ``metadata.csv`` (image_id, filename, tier).
    """
    draw = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["image_id,filename,tier"]
    for place, tier in enumerate(tiers):
        for number in range(per_tier):
            brightness = 40 + 170 * (len(tiers) - 1 - place) / max(len(tiers) - 1, 1)
            pixels = brightness + draw.normal(0, 15, (size, size, 3))
            name = f"{tier}_{number}"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / "images" / f"{name}.png"
            )
            lines.append(f"{name},{name}.png,{tier}")
    metadata = folder / "metadata.csv"
    metadata.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return metadata
