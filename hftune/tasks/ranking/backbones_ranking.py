"""Vision backbones: pretrained by name, small ones from sizes, what of them trains, pooling."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ...utils.errors import CheckpointError, ConfigurationError
from ...utils.modules import without_bars
from .configuration_ranking import PairwiseRankingConfig

__all__ = [
    "TIMM",
    "backbone_config",
    "blocks_of",
    "class_tokens",
    "load_backbone",
    "make_trainable",
    "new_backbone",
    "patch_size_of",
    "pool",
    "prefix_tokens",
]

TIMM = "timm:"
"""Beginning of the name of a backbone that the timm library has."""

_CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
_EXTRA_TOKENS = ("register_tokens", "reg_token", "distillation_token", "dist_token")


def backbone_config(name: str, image_size: int) -> PreTrainedConfig:
    """Returns the configuration of a backbone by name.

    Args:
        name (str): A model on the Hub (``facebook/dinov2-large``), the folder of a saved one, or
            ``timm:NAME`` for one that the timm library has (``timm:resnet18.a1_in1k``). Of a model
            of images and texts, such as CLIP, the images' part is taken.
        image_size (int): Pixels; transformers of timm are made for one size.

    Raises:
        CheckpointError: If there is no such model.
    """
    if name.startswith(TIMM):
        return _timm_config(name.removeprefix(TIMM), image_size)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(_not_found(name, "its configuration", error)) from error
    return getattr(config, "vision_config", config)


def _not_found(name: str, what: str, error: Exception) -> str:
    return (
        f"backbone {name}: {what} cannot be loaded: {error}\nGive the folder of a saved model, a "
        "model that is in the cache of the Hub, or the sizes of a small new one (--hidden_size, "
        "--num_hidden_layers)."
    )


def _timm_config(architecture: str, image_size: int) -> PreTrainedConfig:
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            f"backbone {TIMM}{architecture} needs the timm library: pip install 'hftune[vision]'"
        ) from error
    from transformers import TimmWrapperConfig

    # Convolutions take any size and know no such argument; windows take the size alone.
    sizes: list[dict[str, Any]] = [
        {"img_size": image_size, "dynamic_img_size": True},
        {"img_size": image_size},
        {},
    ]
    for model_args in sizes:
        try:
            with torch.device("meta"):
                timm.create_model(architecture, pretrained=False, num_classes=0, **model_args)
        except TypeError:
            continue
        except RuntimeError as error:
            near = timm.list_models(f"*{architecture.split('.')[0].split('_')[0]}*")[:5]
            known = f" Near it are {', '.join(near)}." if near else ""
            raise CheckpointError(f"timm has no model {architecture!r}: {error}.{known}") from error
        return TimmWrapperConfig(architecture=architecture, model_args=model_args, do_pooling=False)
    raise ConfigurationError(f"timm's model {architecture!r} cannot be made at {image_size} pixels")


def new_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Makes a backbone with new weights, in float32.

    Args:
        config (PreTrainedConfig): Its configuration.
    """
    return AutoModel.from_config(config, dtype=torch.float32)


def load_backbone(name: str | os.PathLike[str], config: PreTrainedConfig) -> PreTrainedModel:
    """Loads a pretrained backbone, in float32.

    Args:
        name (str or path): As for :func:`backbone_config`.
        config (PreTrainedConfig): Of that function.

    Raises:
        CheckpointError: If its weights cannot be loaded, or some are missing.
    """
    name = str(name)
    if name.startswith(TIMM):
        import timm

        model = new_backbone(config)
        try:
            source = timm.create_model(
                config.architecture, pretrained=True, num_classes=0, **config.model_args
            )
        except (OSError, RuntimeError) as error:
            raise CheckpointError(_not_found(name, "its weights", error)) from error
        model.timm_model.load_state_dict(source.state_dict())
        return model
    try:
        with without_bars():
            model, loading = AutoModel.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(_not_found(name, "its weights", error)) from error
    missing = [key for key in loading["missing_keys"] if "pooler" not in key]
    if missing:
        raise CheckpointError(
            f"backbone {name} has no weights for {', '.join(sorted(missing)[:5])} "
            f"({len(missing)} in all): it is not a {config.model_type} as its configuration says."
        )
    return model


# Pooling


def _tokens_named(backbone: nn.Module, endings: Sequence[str]) -> int:
    """How many tokens a backbone's parameters of these names put in front of the patches."""
    return sum(
        parameter.shape[-2] if parameter.ndim > 1 else 1
        for name, parameter in backbone.named_parameters()
        if name.endswith(tuple(endings))
    )


def class_tokens(backbone: nn.Module) -> int:
    """Returns 1 if a backbone has a class token, its first, else 0."""
    return min(_tokens_named(backbone, _CLASS_TOKENS), 1)


def prefix_tokens(backbone: nn.Module) -> int:
    """Returns how many tokens are no patches: class, register and distillation tokens, which come
    first.
    """
    return class_tokens(backbone) + _tokens_named(backbone, _EXTRA_TOKENS)


def pool(
    hidden: torch.Tensor, pooling: str, prefix: int, *, channels_last: bool = False
) -> torch.Tensor:
    """Makes one vector of each image.

    Args:
        hidden (float tensor ``[B, tokens, C]``, or ``[B, C, H, W]`` of a convolutional backbone):
            Its last hidden state.
        pooling (str): ``"cls"``, ``"mean"`` or ``"cls_mean"``.
        prefix (int): Tokens in front of the patches, the class token first.
        channels_last (bool): Whether maps are ``[B, H, W, C]``. Defaults to False.

    Returns:
        Float tensor ``[B, C]``, of ``cls_mean`` ``[B, 2 C]``.
    """
    if hidden.ndim == 4:
        return hidden.mean((1, 2) if channels_last else (2, 3))
    if pooling == "cls":
        return hidden[:, 0]
    mean = hidden[:, prefix:].mean(1)
    return mean if pooling == "mean" else torch.cat([hidden[:, 0], mean], 1)


def patch_size_of(config: PreTrainedConfig) -> int:
    """Returns the side of a backbone's patches in pixels; 1 where images may have any size."""
    size = getattr(config, "patch_size", None)
    if size is None and getattr(config, "architecture", None):
        import timm

        with torch.device("meta"):
            model = timm.create_model(config.architecture, num_classes=0, **config.model_args)
        size = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return max(size) if isinstance(size, (list, tuple)) else size or 1


# What trains


def blocks_of(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns a backbone's blocks in their order: the longest list of modules in it, or the stages
    of a convolutional one.

    Args:
        backbone (torch.nn.Module): A vision model.
    """
    lists = [
        (name, module)
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1
    ]
    # Of transformers this is the list of layers; those within layers are shorter or come later.
    outer = [(n, m) for n, m in lists if not any(n.startswith(f"{o}.") for o, _ in lists if o != n)]
    if not outer:
        return [("", backbone)]
    name, module = max(outer, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    return [(f"{name}.{i}", block) for i, block in enumerate(module)]


def make_trainable(backbone: nn.Module, config: PairwiseRankingConfig) -> None:
    """Freezes a backbone, unfreezes its last blocks, or gives it adapters, as a model says.

    Args:
        backbone (torch.nn.Module): Changed in place.
        config (PairwiseRankingConfig): Of the model.

    Raises:
        ConfigurationError: If peft is not installed, no layer has a name of
            ``lora_target_modules``, or there are fewer blocks.
    """
    backbone.requires_grad_(not config.freeze_backbone)
    if count := config.unfreeze_last_blocks:
        blocks = blocks_of(backbone)
        if count > len(blocks):
            raise ConfigurationError(
                f"unfreeze_last_blocks: found {count}, but the backbone has {len(blocks)} blocks; "
                "freeze_backbone false trains all of it"
            )
        last = [module for _, module in blocks[-count:]]
        # The normalisation behind the last block is a part of what it learns.
        last += [
            module
            for name, module in backbone.named_children()
            if isinstance(module, nn.LayerNorm) or name in ("norm", "layernorm", "post_layernorm")
        ]
        for module in last:
            module.requires_grad_(True)
    if config.lora_rank:
        _add_adapters(backbone, config)


def _add_adapters(backbone: nn.Module, config: PairwiseRankingConfig) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigurationError(
            "lora_rank needs the peft library: pip install 'hftune[peft]'"
        ) from error
    targets: str | list[str] = config.lora_target_modules
    linear = [n for n, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    if targets == "all-linear":
        targets = linear
    elif isinstance(targets, str):
        targets = [targets]
    if not any(n == t or n.endswith(f".{t}") for n in linear for t in targets):
        ends = sorted({n.rpartition(".")[2] for n in linear})
        raise ConfigurationError(
            f"lora_target_modules: no linear layer of the backbone is named "
            f"{', '.join(targets) or 'so'}; there are {', '.join(ends) or 'none'}"
        )
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )
    inject_adapter_in_model(lora, backbone)
