"""Checkpoints of Microsoft's Aurora: official files and those of their own fine-tuning loop."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hftune.utils.errors import CheckpointError, ConfigurationError
from hftune.utils.modules import raise_on_mismatch

from .configuration_aurora import AuroraConfig
from .modeling_aurora import AuroraForForecasting
from .variants_aurora import VARIANTS

__all__ = ["is_aurora_checkpoint", "load_aurora_checkpoint"]

#: Hub repository of the published checkpoints.
REPOSITORY = "microsoft/aurora"

# Names under which training loops keep the weights.
_NESTS = ("model", "state_dict", "model_state_dict")


def is_aurora_checkpoint(source: str | os.PathLike[str]) -> bool:
    """Whether ``source`` is a checkpoint of Microsoft's, not a model that hftune saved."""
    return str(source) == REPOSITORY or Path(source).suffix == ".ckpt"


def load_aurora_checkpoint(
    source: str | os.PathLike[str] = REPOSITORY,
    variant: str | None = None,
    *,
    config: AuroraConfig | None = None,
    zero_new_variables: bool = True,
    revision: str | None = None,
    **arguments: Any,
) -> AuroraForForecasting:
    """Loads an official Aurora checkpoint.

    Weights that the checkpoint cannot have are allowed to be missing from it: those of variables
    that the variant does not know, LoRA's, and the layer normalisations of
    ``stabilise_level_agg``. A longer history than the checkpoint's is filled with zeros. The
    variant's adaptors of the ``aurora`` package are applied.

    Args:
        source (str or path): ``"microsoft/aurora"`` or a local ``.ckpt`` file. Defaults to the Hub.
        variant (str, *optional*): Published model. Defaults to that of ``config``, else the one
            whose file ``source`` is named like, else ``"pretrained"``.
        config (AuroraConfig, *optional*): Channels and grid of the data. Defaults to the variant's
            own channels and global grid.
        zero_new_variables (bool): Input weights of new variables begin at zero, which leaves the
            forecasts of the others exactly as they were; False keeps random ones. Defaults to True.
        revision (str, *optional*): Commit of the Hub repository. Defaults to the one that the
            package pins.
        **arguments: Arguments of :class:`AuroraConfig` where ``config`` is not given.

    Returns:
        AuroraForForecasting: The model, with float32 parameters.

    Raises:
        CheckpointError: If the file cannot be read safely or is of another architecture; what is
            missing, unexpected or of another shape is listed.
        ConfigurationError: If the variant and the configuration do not agree.
    """
    if config is None:
        config = AuroraConfig(variant or _variant_of(source), **arguments)
    elif arguments or variant not in (None, config.variant):
        raise ConfigurationError(
            f"variant {variant!r} and {', '.join(arguments) or 'no arguments'} were given beside a "
            f"config of the variant {config.variant!r}: put them into the config."
        )
    path = _download(config, revision) if str(source) == REPOSITORY else Path(source)
    weights = _read(path)
    # Random weights take minutes to make for the large models: only where some are needed.
    with torch.device("meta"):
        model = AuroraForForecasting(config)
    try:
        weights = model.aurora._adapt_checkpoint(weights)
    except (AssertionError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of the Aurora variant {config.variant!r} ({error!r}): "
            "name the variant that it is."
        ) from error
    _fit_history(model.aurora, weights, path)

    own = model.aurora.state_dict()
    missing = own.keys() - weights.keys()
    new = {name for name in missing if _may_be_missing(name, config, weights)}
    raise_on_mismatch(
        str(path),
        missing=missing - new,
        unexpected=weights.keys() - own.keys(),
        reshaped=[n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape],
        advice=f"The variant is {config.variant!r}: name the one that the checkpoint is of.",
    )
    if new:
        model = AuroraForForecasting(config)
    elif config.static_channels:
        model.static_fields = torch.full(model.static_fields.shape, float("nan"))
    weights = {name: weight.float() for name, weight in weights.items()}
    model.aurora.load_state_dict(weights, strict=False, assign=True)
    if zero_new_variables:
        with torch.no_grad():
            for name, parameter in model.aurora.named_parameters():
                if name in new and "_token_embeds." in name:
                    parameter.zero_()
    return model


def _variant_of(source: str | os.PathLike[str]) -> str:
    for name, variant in VARIANTS.items():
        if variant.checkpoint == Path(source).name:
            return name
    return "pretrained"


def _download(config: AuroraConfig, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    from .variants_aurora import variant_class

    checkpoint = VARIANTS[config.variant].checkpoint
    if checkpoint is None:
        raise ConfigurationError(
            "a custom model has no published checkpoint: choose a variant, one of "
            f"{', '.join(name for name, v in VARIANTS.items() if v.checkpoint)}."
        )
    pinned = variant_class(config.variant).default_checkpoint_revision
    return Path(hf_hub_download(REPOSITORY, checkpoint, revision=revision or pinned))


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Reads a flat dict of tensors, without running what a pickle may hold."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint of tensors ({first}). It is damaged, or holds "
            "objects that would run code when they are loaded."
        ) from error
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else "no"
        raise CheckpointError(
            f"{path} holds {found} ...; expected weights by name, such as "
            "encoder.surf_token_embeds.weights.2t."
        )
    return dict(content)


def _fit_history(network: Any, weights: dict[str, torch.Tensor], path: Path) -> None:
    embeddings = [name for name in weights if "encoder.surf_token_embeds.weights." in name]
    if not embeddings:
        return  # listed as missing
    history = weights[embeddings[0]].shape[2]
    if history > network.max_history_size:
        raise CheckpointError(
            f"{path} was trained with {history} past states, the model takes "
            f"{network.max_history_size}: set max_history_size to {history}; history may be less."
        )
    if history < network.max_history_size:
        network.adapt_checkpoint_max_history_size(weights)


def _may_be_missing(name: str, config: AuroraConfig, weights: Mapping[str, torch.Tensor]) -> bool:
    parts = name.split(".")
    if ".lora_" in name:
        return not any(".lora_" in other for other in weights)
    if config.stabilise_level_agg and parts[-2] in ("ln_k", "ln_q"):
        return True
    if "_token_embeds.weights" in name or "_heads." in name:
        variable = parts[3] if parts[0] == "encoder" else parts[2]
        return not any(variable in other.split(".") for other in weights)
    return False
