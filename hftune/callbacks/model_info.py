"""What a model is, without what a trainer put around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.trainer_pt_utils import get_model_param_count
from transformers.trainer_utils import unwrap_peft_model

__all__ = [
    "describe_model",
    "is_sharded",
    "model_config",
    "model_settings",
    "model_type",
    "unwrapped",
]

_LONG = 128  # entries of a list or table inside a configuration that are kept


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns a model without what DDP, FSDP, DeepSpeed or ``torch.compile`` put around it."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Returns class, numbers of parameters and dtypes of a model, and the kind of its adapter.

    Args:
        model (torch.nn.Module): Also wrapped: by DDP, FSDP, DeepSpeed, PEFT, ``torch.compile``.
    """
    inner = unwrapped(model)
    base = unwrap_peft_model(inner)
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in inner.parameters()}
    found = {
        "class": _class_name(base),
        "parameters": get_model_param_count(inner),
        "trainable_parameters": get_model_param_count(inner, trainable_only=True),
        "dtype": ", ".join(sorted(dtypes)),
    }
    if base is not inner:
        found["adapter"] = inner.active_peft_config.peft_type.value
    return found


def model_config(model: nn.Module) -> Any:
    """Returns the configuration of a model of transformers, None of any other."""
    config = getattr(unwrapped(model), "config", None)
    return config if hasattr(config, "to_dict") else None


def model_type(model: nn.Module) -> str:
    """Returns the type that a model's configuration names, else the name of its class."""
    named = getattr(model_config(model), "model_type", "")
    return named or _class_name(unwrap_peft_model(unwrapped(model)))


def model_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns the configurations of a model and its adapter, without long tables in them."""
    inner, config = unwrapped(model), model_config(model)
    found = {} if config is None else {"model": config.to_dict()}
    if unwrap_peft_model(inner) is not inner:
        found["adapter"] = inner.active_peft_config.to_dict()
    return {
        section: {key: _cut(value) for key, value in values.items()}
        for section, values in found.items()
    }


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has a part of the weights alone: FSDP, DeepSpeed ZeRO-3."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters()) or any(
        isinstance(module, FullyShardedDataParallel) for module in model.modules()
    )


def _class_name(model: nn.Module) -> str:
    # FSDP2 puts a class of its own before the model's.
    classes = type(model).__mro__
    return next(c.__name__ for c in classes if not c.__module__.startswith("torch.distributed"))


def _cut(value: Any) -> Any:
    """A setting without long tables, such as the names of a thousand labels."""
    if isinstance(value, (Mapping, list, tuple, set)) and len(value) > _LONG:
        return f"{len(value)} entries"
    if isinstance(value, Mapping):
        return {key: _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, (list, tuple)) else value
