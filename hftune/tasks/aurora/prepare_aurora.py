"""From a run's ``model:`` settings to an Aurora that is ready to train on its data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ...utils.errors import CheckpointError, ConfigurationError
from ..weather.config_checks import grid_differences
from ..weather.fields import WeatherFields
from ..weather.statistics import FieldStatistics
from .arguments_aurora import AuroraModelArguments
from .configuration_aurora import AuroraConfig, build_config_from_fields
from .convert_aurora import is_aurora_checkpoint, load_aurora_checkpoint
from .modeling_aurora import AuroraForForecasting

__all__ = ["base_config", "prepare_aurora"]


def _is_official(arguments: AuroraModelArguments) -> bool:
    path = arguments.model_name_or_path
    return path is not None and is_aurora_checkpoint(path)


def base_config(arguments: AuroraModelArguments, lead_hours: Sequence[int]) -> AuroraConfig | None:
    """Returns the configuration of the model that is to be fine-tuned; None for a new one.

    Args:
        arguments (AuroraModelArguments): The ``model:`` section.
        lead_hours (sequence of int): Lead times, hours: multiples of the model's step.

    Raises:
        ConfigurationError: If they are not, or ``variant`` is another than the saved model's.
        CheckpointError: If there is no such model.
    """
    path = arguments.model_name_or_path
    if path is None:
        return None
    if _is_official(arguments):
        config = AuroraConfig(arguments.variant or "pretrained")
    elif os.path.exists(path) and not os.path.isdir(path):
        raise CheckpointError(
            f"{path} is neither an official checkpoint (*.ckpt) nor a folder of a saved model."
        )
    else:
        config = AuroraConfig.from_pretrained(path)
        if arguments.variant not in (None, config.variant):
            raise ConfigurationError(
                f"--variant {arguments.variant} and {path} disagree, which is a "
                f"{config.variant!r}: leave --variant out."
            )
    wrong = [lead for lead in lead_hours if lead % config.timestep_hours]
    if wrong:
        raise ConfigurationError(
            f"lead_hours {wrong} are no multiples of {config.timestep_hours:g}, the step in hours "
            f"of {path}."
        )
    return config


def _settings(arguments: AuroraModelArguments) -> dict[str, Any]:
    """What holds for every model, new or loaded."""
    settings: dict[str, Any] = {
        "loss_function": arguments.loss_function,
        "area_weights": arguments.area_weights,
        "autocast": arguments.autocast,
        "drop_path": arguments.drop_path,
        "drop_rate": arguments.drop_rate,
        "stabilise_level_agg": arguments.stabilise_level_agg,
    }
    if arguments.loss_weights is not None:
        settings["loss_weights"] = arguments.loss_weights
    return settings


def prepare_aurora(
    arguments: AuroraModelArguments,
    fields: WeatherFields,
    statistics: FieldStatistics,
    *,
    history: int,
    base: AuroraConfig | None,
) -> AuroraForForecasting:
    """Builds or loads the model of a run, with the data's static fields in it.

    Args:
        arguments (AuroraModelArguments): The ``model:`` section.
        fields (WeatherFields): The data; a loaded model must know its channels.
        statistics (FieldStatistics): Of the training times, differences over one model step.
        history (int): Past states that the model sees.
        base (AuroraConfig or None): What :func:`base_config` gave.

    Raises:
        ConfigurationError: If the data and the model do not fit together.
        CheckpointError: If the weights are of another architecture.
    """
    settings = _settings(arguments)
    if base is None:
        heads = [arguments.num_heads * 2**stage for stage in range(len(arguments.depths))]
        config = build_config_from_fields(
            fields.layout,
            statistics,
            history=history,
            patch_size=arguments.patch_size or "auto",
            residual_prediction=arguments.residual_prediction,
            embed_dim=arguments.embed_dim,
            num_heads=arguments.num_heads,
            encoder_depths=arguments.depths,
            encoder_num_heads=heads,
            decoder_depths=arguments.depths[::-1],
            decoder_num_heads=heads[::-1],
            latent_levels=arguments.latent_levels,
            mlp_ratio=arguments.mlp_ratio,
            **settings,
        )
        model = AuroraForForecasting(config)
    elif _is_official(arguments):
        config = build_config_from_fields(
            fields.layout,
            statistics,
            variant=base.variant,
            history=history,
            **settings,
        )
        model = load_aurora_checkpoint(arguments.model_name_or_path, config=config)
    else:
        config = base
        _check_layout(arguments.model_name_or_path, config, fields, history)
        del settings["stabilise_level_agg"]  # part of the architecture that was saved
        for name, value in settings.items():
            setattr(config, name, value)
        model = AuroraForForecasting.from_pretrained(arguments.model_name_or_path, config=config)
    if fields.layout.static_channels:
        model.set_static_fields(fields.static_fields)
    return model


def _check_layout(path: str, config: AuroraConfig, fields: WeatherFields, history: int) -> None:
    layout = fields.layout
    problems = []
    if list(layout.channels) != list(config.channels):
        problems.append(
            f"{path} knows the channels {', '.join(config.channels)}, the data have "
            f"{', '.join(layout.channels)}: choose them with --variables and --levels."
        )
    differences = grid_differences(config, layout, f"{path} has", "the data have")
    problems += [f"{text}." for text in differences]
    if history != config.history:
        problems.append(
            f"{path} sees {config.history} past states: give --history {config.history}."
        )
    if problems:
        raise ConfigurationError(problems)
