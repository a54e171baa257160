"""Vision backbones: pretrained by name, small ones from sizes, what of them trains, pooling."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.utils import logging

from ...utils.errors import CheckpointError, ConfigurationError, did_you_mean
from ...utils.modules import raise_on_mismatch, without_bars
from .configuration_ranking import PairwiseRankingConfig

__all__ = [
    "TIMM",
    "BackboneFacts",
    "backbone_config",
    "blocks_of",
    "channels_last",
    "class_tokens",
    "facts_of",
    "load_backbone",
    "make_trainable",
    "new_backbone",
    "patch_size_of",
    "pool",
    "prefix_tokens",
    "quietly",
    "require_hub",
    "still_modules",
]

TIMM = "timm:"
"""Beginning of the name of a backbone that the timm library has."""

_ANSWER_SECONDS = 5
"""How long the Hub has for a first answer."""

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
        ConfigurationError: If it cannot score images.
    """
    if name.startswith(TIMM):
        return _timm_config(name.removeprefix(TIMM), image_size)
    require_hub(name)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(_not_found(name, error)) from error
    if isinstance(config, PairwiseRankingConfig):
        raise CheckpointError(
            f"{name} is a ranking model, not a backbone: PairwiseRankingModel.from_pretrained "
            "loads it as it is"
        )
    if config.model_type == "vit_mae":  # masks patches in every pass, also when it does not train
        raise ConfigurationError(
            f"backbone {name}: a ViT-MAE sees a random part of each image, so that its scores "
            "would be random too; load its weights into a ViTModel, and give the folder of that"
        )
    return getattr(config, "vision_config", config)


def require_hub(name: str) -> None:
    """Asks the Hub once for a model that is not on this machine, where its own client would try
    for half a minute a file.

    Args:
        name (str): A folder, or a repository of the Hub.

    Raises:
        CheckpointError: If the Hub does not answer.
    """
    if os.path.isdir(name):
        return
    try:
        in_cache = repo_folder_name(repo_id=name, repo_type="model")
        if not Path(constants.HF_HUB_CACHE, in_cache).is_dir():
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_ANSWER_SECONDS)
    except (HfHubHTTPError, HFValidationError):
        pass  # there is no such model: who loads it says more
    except Exception as error:  # of the client's HTTP library
        raise CheckpointError(
            _not_found(name, f"there is no such folder, and the Hub does not answer: {error}")
        ) from error


def _not_found(name: str, error: Exception | str) -> str:
    return (
        f"{name} cannot be loaded: {error}\nGive the folder of a saved model, a model that is in "
        "the cache of the Hub, or, for a backbone, the sizes of a small new one (--hidden_size, "
        "--num_hidden_layers)."
    )


def _timm_config(architecture: str, image_size: int) -> PreTrainedConfig:
    timm = _timm(architecture)
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
            near = did_you_mean(architecture, [*timm.list_models(), *timm.list_pretrained()])
            raise CheckpointError(f"timm: {error}{near}") from error
        except AssertionError as error:
            raise ConfigurationError(
                f"timm's model {architecture} cannot be made for images of {image_size} pixels "
                f"({error}): give another image_size"
            ) from error
        config = TimmWrapperConfig(
            architecture=architecture, model_args=model_args, do_pooling=False
        )
        if "img_size" in model_args:  # the image processor makes whole patches
            model_args["img_size"] -= image_size % patch_size_of(config)
        return config
    raise ConfigurationError(f"timm's model {architecture} takes no images of any size")


def _timm(architecture: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            f"backbone {TIMM}{architecture} needs the timm library: pip install 'hftune[vision]'"
        ) from error
    return timm


def new_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Makes a backbone with new weights, in torch's default precision whatever it was saved in.

    Args:
        config (PreTrainedConfig): Its configuration.
    """
    return AutoModel.from_config(config, dtype=torch.get_default_dtype())


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
        return _load_timm(name, config)
    try:
        with quietly():
            model, loading = AutoModel.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise CheckpointError(f"the weights in {name} are damaged: {error}.") from error
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(_not_found(name, error)) from error
    raise_on_mismatch(
        name,
        missing=[key for key in loading["missing_keys"] if "pooler" not in key],
        unexpected=(),  # heads, and the part of a model that reads texts
        reshaped=[str(key[0]) for key in loading["mismatched_keys"]],
        advice=f"They are not a {config.model_type} as the configuration beside them says.",
    )
    return model


def _load_timm(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    timm = _timm(config.architecture)
    model = new_backbone(config)
    if repository := timm.get_pretrained_cfg(config.architecture).hf_hub_id:
        require_hub(repository)
    try:
        source = timm.create_model(
            config.architecture, pretrained=True, num_classes=0, **config.model_args
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(_not_found(name, error)) from error
    model.timm_model.load_state_dict(source.state_dict())
    return model


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Has transformers load weights without bars, and without a table of those that do not fit."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars():
            yield
    finally:
        logging.set_verbosity(level)


# Pooling


def _tokens_named(backbone: nn.Module, endings: Sequence[str]) -> int:
    """How many tokens a backbone's parameters of these names put in front of the patches."""
    return sum(
        parameter.shape[-2] if parameter.ndim > 1 else 1
        for name, parameter in backbone.named_parameters()
        if name.endswith(tuple(endings)) and not name.startswith("head.")
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
        size = getattr(getattr(_on_meta(config).timm_model, "patch_embed", None), "patch_size", 1)
    return max(size) if isinstance(size, (list, tuple)) else size or 1


# What an image becomes


@dataclasses.dataclass(frozen=True)
class BackboneFacts:
    """What a backbone makes of an image.

    Attributes:
        width (int): Numbers of each token or place.
        tokens (int): How many tokens, patches and others, an image has; 0 where it is a map
            ``[C, H, W]`` or ``[H, W, C]``.
        unused (frozenset of str): Parameters that they do not depend on, such as those of a pooling
            layer of its own.
        linear (tuple of str): Linear layers that can have adapters: they depend on them, and these
            are called, where some models use their weights alone.
    """

    width: int
    tokens: int
    unused: frozenset[str]
    linear: tuple[str, ...]


def facts_of(config: PreTrainedConfig) -> BackboneFacts:
    """Finds out what a backbone makes of an image, on the meta device: without weights or numbers.

    Args:
        config (PreTrainedConfig): Of the backbone.

    Raises:
        ConfigurationError: If it is not a model of images.
    """
    backbone = _on_meta(config).requires_grad_(True)
    sides = getattr(config, "image_size", None) or (
        (getattr(config, "model_args", None) or {}).get("img_size", 224)
    )
    height, width = sides if isinstance(sides, (list, tuple)) else (sides, sides)
    called: set[nn.Module] = set()
    linear = {n: module for n, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    for module in linear.values():
        module.register_forward_hook(lambda layer, *_: called.add(layer))
    try:
        with torch.enable_grad():
            pixels = torch.empty(1, 3, height, width, device="meta")
            hidden = backbone(pixel_values=pixels).last_hidden_state
            total = hidden.sum()
    except Exception as error:  # whatever the code of a model of something else raises
        raise ConfigurationError(
            f"backbone: a {type(backbone).__name__} makes no tokens and no map of an image of "
            f"{width} x {height} pixels ({type(error).__name__}: {error})"
        ) from error
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    unused = frozenset(n for n, g in zip(names, gradients, strict=True) if g is None)
    return BackboneFacts(
        width=hidden.shape[-1 if hidden.ndim == 3 or channels_last(backbone) else 1],
        tokens=hidden.shape[1] if hidden.ndim == 3 else 0,
        unused=unused,
        linear=tuple(n for n, m in linear.items() if m in called and f"{n}.weight" not in unused),
    )


def _on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return new_backbone(config)


def channels_last(backbone: nn.Module) -> bool:
    """Returns whether a backbone's maps are ``[B, H, W, C]``."""
    timm_model = getattr(backbone, "timm_model", None)
    return getattr(timm_model, "output_fmt", "NCHW") == "NHWC"


# What trains


def blocks_of(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns a backbone's blocks in their order: its layers, or the stages of a convolutional one.

    They are the largest series of modules that are numbered within one parent, as ``layer.0``,
    ``layer.1``, ... or ``layer1``, ``layer2``, ...

    Args:
        backbone (torch.nn.Module): A vision model.
    """
    series: dict[tuple[str, str], list[tuple[str, nn.Module]]] = {}
    for parent, module in backbone.named_modules():
        for name, child in module.named_children():
            if stem := re.fullmatch(r"(\D*)\d+", name):
                full = f"{parent}.{name}".removeprefix(".")
                series.setdefault((parent, stem[1]), []).append((full, child))
    # A series is larger than those within its members, or as large and found before them.
    return max(series.values(), key=_parameters_in, default=[("", backbone)])


def _parameters_in(blocks: list[tuple[str, nn.Module]]) -> int:
    return sum(parameter.numel() for _, block in blocks for parameter in block.parameters())


def make_trainable(backbone: nn.Module, config: PairwiseRankingConfig) -> None:
    """Freezes a backbone, unfreezes its last blocks, or gives it adapters, as a model says.

    Parameters that features do not depend on stay frozen: a group of processes would wait for their
    gradients.

    Args:
        backbone (torch.nn.Module): Changed in place.
        config (PairwiseRankingConfig): Of the model.

    Raises:
        ConfigurationError: If peft is not installed, no layer has a name of
            ``lora_target_modules``, or there are fewer blocks.
    """
    backbone.requires_grad_(False)
    if not config.trains_backbone:
        return
    facts = facts_of(backbone.config)
    if config.lora_rank:
        _add_adapters(backbone, config, facts.linear)
        return
    parameters = list(backbone.named_parameters())
    if count := config.unfreeze_last_blocks:
        blocks = blocks_of(backbone)
        if count > len(blocks):
            raise ConfigurationError(
                f"unfreeze_last_blocks: found {count}, but the backbone has {len(blocks)} blocks; "
                "freeze_backbone false trains all of it"
            )
        # The last blocks and all behind them, such as the last normalisation.
        names = [name for name, _ in parameters]
        start = f"{blocks[-count][0]}."
        parameters = parameters[next(i for i, name in enumerate(names) if name.startswith(start)) :]
    for name, parameter in parameters:
        parameter.requires_grad_(name not in facts.unused)


def still_modules(module: nn.Module) -> list[nn.Module]:
    """Returns the largest parts of a module in which there are parameters and none of them trains.

    Args:
        module (torch.nn.Module): A backbone, after :func:`make_trainable`.
    """
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [still for child in module.children() for still in still_modules(child)]


def _add_adapters(
    backbone: nn.Module, config: PairwiseRankingConfig, linear: Sequence[str]
) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigurationError(
            "lora_rank needs the peft library: pip install 'hftune[peft]'"
        ) from error
    wanted = config.lora_target_modules
    ends = [wanted] if isinstance(wanted, str) else wanted
    chosen = [
        name
        for name in linear
        if wanted == "all-linear" or any(f".{name}".endswith(f".{end}") for end in ends)
    ]
    if not chosen:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigurationError(
            f"lora_target_modules: found {', '.join(ends)}, but the backbone's linear layers that "
            f"can have adapters are {', '.join(known) or 'none'}"
        )
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=chosen,
    )
    inject_adapter_in_model(lora, backbone)
    for name, module in backbone.named_modules():
        if ".lora_" in name:
            # Else transformers draws those anew that are 0, and features start as other ones.
            module._is_hf_initialized = True
