"""Aurora as a :class:`~transformers.PreTrainedModel`: fields in, loss and forecast out.

Notation used for shapes: ``B`` samples, ``T`` past states (``config.history``), ``L`` steps, ``C``
channels, ``S`` static channels, ``H`` latitudes, ``H'`` latitudes that are predicted (a last row
too many for the patch size is left out), ``W`` longitudes.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import os
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel

from ..weather.losses import LOSS_FUNCTIONS, channel_errors
from ..weather.model_inputs import EPOCH, check_values, checked_steps
from ..weather.weather_model import ForecastOutput, WeatherModel
from .configuration_aurora import AuroraConfig
from .constants_aurora import Constants, past_insolation
from .network_aurora import ChannelMap, build_network

__all__ = ["AuroraForForecasting"]


class AuroraForForecasting(WeatherModel):
    """Microsoft Aurora with its own statistics, grid, channels and loss.

    The network is an unchanged model of the ``aurora`` package, ``model.aurora``. Around it this
    class normalises with the statistics of the configuration (never the package's process-wide
    tables), crops the grid, gives times in UTC, rolls out, and computes the loss on normalised
    fields. Static fields are part of the model once :meth:`set_static_fields` was called, so a
    saved model works alone.

    Weights of variables that the data do not hold (of the published models' variables, or the
    placeholder for data without surface variables) are kept and frozen.

    **Longitudes.** Aurora encodes longitude in degrees from 0 to 360, without knowing that the two
    ends meet. A region that crosses Greenwich is moved west by whole grid steps until it ends below
    360, as little as possible: distances and cell areas are right, and the network is told
    longitudes that are too small by that constant, the same ones in training and in use. Only the
    position encoding sees them; a global grid and a region that does not cross are not moved.

    **Grids and patches.** As in Aurora, one latitude too many for the patch size is left out, the
    southernmost. Where the longitudes of a region are no multiple of it, the easternmost column is
    repeated for the network, and what it predicts there is left out: forecasts have all ``W``.

    Args:
        config (AuroraConfig): Architecture, channels, grid, statistics and loss.

    Example:
        >>> config = AuroraConfig(
        ...     "custom",
        ...     channels=["2t", "z_500"],
        ...     latitude=[50.0, 47.5, 45.0, 42.5],
        ...     longitude=[0.0, 2.5, 5.0, 7.5],
        ...     timestep_hours=24,
        ...     patch_size=2,
        ... )
        >>> model = AuroraForForecasting(config)
        >>> fields = torch.tensor([280.0, 54000.0]).view(1, 1, 2, 1, 1).expand(1, 2, 2, 4, 4)
        >>> output = model(fields, torch.tensor([0]), steps=3)
        >>> output.prediction.shape
        torch.Size([1, 3, 2, 4, 4])
    """

    config_class = AuroraConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["Swin3DTransformerBlock", "PerceiverResampler"]

    def __init__(self, config: AuroraConfig) -> None:
        super().__init__(config)
        self.aurora = build_network(config)
        self.channel_map = ChannelMap.of(config)
        self.make_static_fields()
        self._constants_by_device: dict[torch.device, Constants] = {}
        self.gradient_checkpointing = False  # what transformers looks at
        self.post_init()

    @property
    def output_latitude(self) -> np.ndarray:
        """float64 latitudes ``[H']`` of the predictions, in degrees north."""
        return np.asarray(self.config.latitude[: self.config.output_rows])

    def forward(
        self,
        fields: torch.Tensor,
        times: torch.Tensor,
        static_fields: torch.Tensor | None = None,
        target_fields: torch.Tensor | None = None,
        steps: int | None = None,
    ) -> ForecastOutput:
        """Forecasts one or more steps, each from the one before, and compares with targets.

        Args:
            fields (float32 tensor ``[B, T, C, H, W]``): The last ``T`` states, a step apart, in
                physical units.
            times (int64 tensor ``[B]``): Seconds since 1970-01-01 UTC of the last state.
            static_fields (float32 tensor ``[S, H, W]`` or ``[B, S, H, W]``, *optional*): Used in
                place of the model's own for this call.
            target_fields (float32 tensor ``[B, L, C, H or H', W]``, *optional*): The next ``L``
                states, a step apart; NaN where there is no value. Gives the loss.
            steps (int, *optional*): Number ``L`` of steps. Defaults to those of ``target_fields``,
                else 1.

        Returns:
            ForecastOutput: Loss, prediction and losses by variable.

        Raises:
            DataError: If a shape does not fit, or an input is NaN or infinite (named by channel,
                level and time).
        """
        config = self.config
        steps = checked_steps(
            config, fields, times, target_fields, steps, rows=[config.output_rows]
        )
        if static_fields is None:
            static_fields = self.static_fields
        missing_targets = check_values(config, fields, times, static_fields, target_fields)

        constants = self._constants(fields.device)
        rows = config.output_rows
        state = self._normalise(fields[..., :rows, :], constants)
        static = None
        if static_fields is not None:
            static = (static_fields[..., :rows, :] - constants.static_mean) / constants.static_std
            static = self._pad(static)
        moments = [EPOCH + datetime.timedelta(seconds=second) for second in times.tolist()]
        step_length = datetime.timedelta(hours=config.timestep_hours)

        predictions = []
        for step in range(steps):
            if step:
                fed_back = predictions[-1]
                if constants.bounds is not None:
                    fed_back = fed_back.clamp(*constants.bounds)
                state = torch.cat([state[:, 1:], fed_back[:, None]], dim=1)
                moments = [moment + step_length for moment in moments]
            predictions.append(self._step(state, static, moments, step, constants))
        forecast = torch.stack(predictions, dim=1)  # [B, L, C, H', W], normalised

        loss = losses = None
        if target_fields is not None:
            target = self._normalise(target_fields[..., :rows, :], constants)
            errors = channel_errors(
                forecast,
                target,
                power=LOSS_FUNCTIONS[config.loss_function],
                area=constants.area,
                masked=missing_targets,
            )
            loss = (constants.weights * errors).sum()
            by_variable = (constants.variables * errors.detach()).sum(dim=1)
            losses = dict(zip(self.channel_map.variables, by_variable.unbind(), strict=True))
        prediction = forecast * constants.std + constants.mean
        if constants.log_scaled is not None:
            from aurora.normalisation import log_untransform

            prediction = torch.where(constants.log_scaled, log_untransform(prediction), prediction)
        return ForecastOutput(loss=loss, prediction=prediction, losses=losses)

    def _step(
        self,
        state: torch.Tensor,
        static: torch.Tensor | None,
        moments: list[datetime.datetime],
        step: int,
        constants: Constants,
    ) -> torch.Tensor:
        """One pass through the network: normalised ``[B, T, C, H', W]`` to ``[B, C, H', W]``.

        It takes the steps of ``aurora.Aurora.forward`` with everything that is the same for all
        variables done once for all: that method copies and normalises each variable by itself with
        process-wide statistics, and casts to the wrong device's type where a GPU is present and
        not used.
        """
        from aurora import Batch

        network, config = self.aurora, self.config
        metadata = copy.copy(constants.metadata)  # a new one would check the grid again
        metadata.time = tuple(moments)
        metadata.rollout_step = step
        padded = self._pad(state)
        surface, atmospheric = self.channel_map.unpack(padded)
        if "insolation" in network.surf_vars:
            surface["insolation"] = past_insolation(config, moments, padded)
        for names, variables in (
            (network.positive_surf_vars, surface),
            (network.positive_atmos_vars, atmospheric),
        ):
            for name in names:
                if name in variables:
                    variables[name] = variables[name].clamp(min=0)
        batch = Batch(
            surface, self.channel_map.unpack_static(static, padded), atmospheric, metadata
        )
        patches = (
            network.encoder.latent_levels,
            padded.shape[-2] // config.patch_size,
            padded.shape[-1] // config.patch_size,
        )
        hours = float(config.timestep_hours)
        lead_times = torch.full((len(state),), hours, device=state.device)
        with self._precision(state.device, "encoder"):
            x = network.encoder(batch, lead_times=lead_times)
        with self._precision(state.device, "backbone"):
            x = network.backbone(x, lead_times=lead_times, patch_res=patches, rollout_step=step)
        with self._precision(state.device, "decoder"):
            # It takes float() of each lead time, which would wait for a GPU sample by sample.
            output = network.decoder(x, batch, lead_times=[hours] * len(state), patch_res=patches)
        prediction = self.channel_map.pack(output.surf_vars, output.atmos_vars)
        prediction = prediction[..., : state.shape[-1]].float()
        if constants.change is not None:
            prediction = state[:, -1] + constants.change * prediction
        if constants.positive is not None and (step > 0 or config.clamp_at_first_step):
            # As in Aurora, not at the first step, where the clamp would stop gradients.
            prediction = torch.where(constants.positive, prediction.clamp(min=0), prediction)
        return prediction

    def _normalise(self, fields: torch.Tensor, constants: Constants) -> torch.Tensor:
        if constants.log_scaled is not None:
            from aurora.normalisation import log_transform

            # log is not defined below zero, where the other channels may be.
            scaled = log_transform(fields.clamp(min=0))
            fields = torch.where(constants.log_scaled, scaled, fields)
        return (fields - constants.mean) / constants.std

    def _pad(self, fields: torch.Tensor) -> torch.Tensor:
        """Repeats the easternmost column until the patches are whole."""
        padding = -fields.shape[-1] % self.config.patch_size
        if not padding:
            return fields
        return torch.cat([fields, fields[..., -1:].expand(*fields.shape[:-1], padding)], dim=-1)

    def _precision(self, device: torch.device, part: str) -> contextlib.AbstractContextManager:
        """Autocast for one part of the network, on the device that its tensors are on."""
        if self.config.autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast(
            device.type,
            dtype=getattr(torch, self.config.autocast_dtype),
            enabled=self.config.autocast == "full" or part == "backbone",
        )

    def _constants(self, device: torch.device) -> Constants:
        """The configuration's numbers on a device, made once; they are never in a checkpoint."""
        if device not in self._constants_by_device:
            self._constants_by_device[device] = Constants.of(
                self.config, self.channel_map, self.aurora.rollout_input_clipping, device
            )
        return self._constants_by_device[device]

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Any = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """What the Trainer's ``activation_checkpointing`` switch comes down to.

        The encoder, the decoder and each block of the backbone are computed again in the backward
        pass. Aurora's own ``configure_activation_checkpointing`` also wraps what holds the blocks,
        so that they are computed up to four times, and it puts ``_checkpoint_wrapped_module`` into
        parameter names. Here the module tree stays as it is; it can be switched on twice, and off.
        The backbone as a whole is never computed again: with noise in it (v1p5_ensemble) that
        would give wrong gradients.
        """
        blocks = [m for m in self.modules() if type(m).__name__ == "Swin3DTransformerBlock"]
        whole = [self.aurora.encoder, self.aurora.decoder]
        for module in [*blocks, *whole]:
            module.__dict__.pop("forward", None)
        if enable:
            for module in [*blocks[::every_n_layers], *whole]:
                module.forward = functools.partial(
                    _checkpointed, gradient_checkpointing_func, module.forward
                )
        self.gradient_checkpointing = enable

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> AuroraForForecasting:
        """Loads a saved model, or a published one.

        Args:
            pretrained_model_name_or_path (str or path): A folder that ``save_pretrained`` wrote, a
                Hub repository of one, an official checkpoint file (``*.ckpt``), or
                ``"microsoft/aurora"``.
            *args: As for any ``PreTrainedModel``.
            **kwargs: As for any ``PreTrainedModel``. Parameters are float32 unless ``dtype`` says
                otherwise. For checkpoints of Microsoft's, those of
                :func:`~hftune.tasks.aurora.convert_aurora.load_aurora_checkpoint`.

        Raises:
            CheckpointError: If the weights are of another architecture.
        """
        from .convert_aurora import is_aurora_checkpoint, load_aurora_checkpoint

        if is_aurora_checkpoint(pretrained_model_name_or_path):
            return load_aurora_checkpoint(pretrained_model_name_or_path, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def _checkpointed(function: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # The reentrant kind finds no input with a gradient inside a Batch, and gives none.
    return function(forward, *args, **kwargs, use_reentrant=False)


AutoConfig.register(AuroraConfig.model_type, AuroraConfig)
AutoModel.register(AuroraConfig, AuroraForForecasting)
