"""What forecast models have in common: inputs, outputs, static fields, weights that fit or not."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hftune.utils.errors import CheckpointError, DataError
from hftune.utils.modules import raise_on_mismatch, without_bars

__all__ = ["ForecastOutput", "WeatherModel"]


@dataclasses.dataclass
class ForecastOutput(ModelOutput):
    """What a :class:`WeatherModel` returns.

    Args:
        loss (tensor, *optional*): Scalar; None without targets.
        prediction (tensor ``[B, L, C, H', W]``): Forecast of each step, in physical units, float32.
        losses (dict, *optional*): Error of each variable, before weights: detached scalars by name.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None


class WeatherModel(PreTrainedModel):
    """A model that forecasts weather fields step by step.

    Its ``forward(fields, times, target_fields=None, steps=None)`` takes ``fields [B, T, C, H, W]``
    in physical units and the ``times [B]`` of the last of them, int64 seconds since 1970-01-01 UTC,
    and returns a :class:`ForecastOutput`. Its configuration has ``channels``, ``static_channels``,
    ``latitude`` (decreasing), ``longitude``, ``timestep_hours`` and ``history`` (``T``).
    """

    main_input_name = "fields"
    # The loss is a mean: the Trainer divides by the accumulation steps, and must.
    accepts_loss_kwargs = False

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leaves the network as its own code initialised it (transformers would redo it)."""

    def get_input_embeddings(self) -> None:
        """None: there are no words. FSDP asks for them."""

    def get_output_embeddings(self) -> None:
        """None, as for :meth:`get_input_embeddings`."""

    @property
    def output_latitude(self) -> np.ndarray:
        """float64 latitudes of the predictions, in degrees north."""
        return np.asarray(self.config.latitude)

    def post_init(self) -> None:
        """Called at the end of a model's constructor."""
        self._frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
        super().post_init()

    def make_static_fields(self) -> None:
        """Adds the buffer ``static_fields [S, H, W]``, or None without static channels."""
        config = self.config
        if config.static_channels:
            shape = (len(config.static_channels), len(config.latitude), len(config.longitude))
            # NaN until they are set, so that a model without them says so.
            self.register_buffer("static_fields", torch.full(shape, float("nan")))
        else:
            self.static_fields = None

    def set_static_fields(self, values: np.ndarray | torch.Tensor) -> None:
        """Makes time-invariant fields a part of the model.

        Args:
            values (array or tensor ``[S, H, W]``): Fields in the order of
                ``config.static_channels``, in physical units.

        Raises:
            DataError: If the shape is another one, or a value is not finite.
        """
        if not isinstance(values, torch.Tensor):
            values = torch.tensor(np.asarray(values), dtype=torch.float32)
        config = self.config
        expected = (len(config.static_channels), len(config.latitude), len(config.longitude))
        if tuple(values.shape) != expected:
            raise DataError(
                f"static fields have the shape {list(values.shape)}; expected {list(expected)}: "
                f"{', '.join(config.static_channels) or 'none'} on the model's grid."
            )
        for name, field in zip(config.static_channels, values, strict=True):
            if not torch.isfinite(field).all():
                raise DataError(f"static field {name} is not finite everywhere: fill it first.")
        if self.static_fields is not None:
            self.static_fields.copy_(values)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> WeatherModel:
        """Loads a saved model.

        Args:
            pretrained_model_name_or_path (str or path): A folder that ``save_pretrained`` wrote, or
                a Hub repository of one.
            *args: As for any ``PreTrainedModel``.
            **kwargs: As for any ``PreTrainedModel``. Parameters are float32 unless ``dtype`` says
                otherwise.

        Raises:
            CheckpointError: If the weights are of another architecture.
        """
        source = str(pretrained_model_name_or_path)
        if kwargs.get("config") is None:
            # Says what is wrong with the configuration, before all else.
            cls.config_class.get_config_dict(source, **kwargs)
        kwargs.setdefault("dtype", torch.float32)
        wants_information = kwargs.pop("output_loading_info", False)
        try:
            with without_bars():
                model, information = super().from_pretrained(
                    source, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
                )
        except SafetensorError as error:
            raise CheckpointError(f"the weights in {source} are damaged: {error}.") from error
        raise_on_mismatch(
            source,
            missing=information["missing_keys"],
            unexpected=information["unexpected_keys"],
            reshaped=[str(key[0]) for key in information["mismatched_keys"]],
            advice="Use the configuration that they were saved with.",
        )
        for name in model._frozen:  # transformers makes every parameter that it loads anew
            model.get_parameter(name).requires_grad_(False)
        return (model, information) if wants_information else model
