"""Between hftune's channels and Aurora's variables, and the network itself."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hftune.utils.errors import ConfigurationError

from ..weather.fields import split_channel
from .variants_aurora import variant_arguments, variant_class

if TYPE_CHECKING:
    from .configuration_aurora import AuroraConfig

__all__ = ["ChannelMap", "build_network"]

#: What aurora.model.util.init_weights draws the weights of every linear layer with.
_PACKAGE_WEIGHT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class ChannelMap:
    """Where each channel is in the variables of Aurora, and back.

    Attributes:
        variables (tuple of str): Names of the ``V`` variables of the channels.
        surface (mapping): Channel of each surface variable; None where the input is zero.
        atmospheric (mapping): Channels of each atmospheric variable by level; None as above.
        static (mapping): Index of each static variable; None as above.
        levels (tuple of float): Pressure levels in hPa.
        runs (tuple): The channels in order, as pieces of variables: name, and first and last (not
            included) level, or None for a surface variable.
    """

    variables: tuple[str, ...]
    surface: Mapping[str, int | None]
    atmospheric: Mapping[str, tuple[int | None, ...]]
    static: Mapping[str, int | None]
    levels: tuple[float, ...]
    runs: tuple[tuple[str, tuple[int, int] | None], ...]

    @classmethod
    def of(cls, config: AuroraConfig) -> ChannelMap:
        """Makes the map of a configuration."""
        split = [split_channel(channel) for channel in config.channels]
        at = {pair: i for i, pair in enumerate(split)}
        levels = tuple(config.levels) or (1000,)
        surface = {name: at[name, None] for name, level in split if level is None}
        atmospheric = {
            name: tuple(at.get((name, float(level))) for level in levels)
            for name, level in split
            if level is not None
        }
        static = {name: i for i, name in enumerate(config.static_channels)}
        runs: list[tuple[str, tuple[int, int] | None]] = []
        for name, level in split:
            if level is None:
                runs.append((name, None))
                continue
            k = [float(v) for v in levels].index(level)
            if runs and runs[-1][0] == name and runs[-1][1] and runs[-1][1][1] == k:
                runs[-1] = (name, (runs[-1][1][0], k + 1))
            else:
                runs.append((name, (k, k + 1)))
        return cls(
            variables=tuple(dict.fromkeys(name for name, _ in split)),
            # Variables that the network predicts only, and the one that stands in for none.
            surface={
                name: None if name in config.output_only_surf_vars else i
                for name, i in surface.items()
            }
            or {config.surf_vars[0]: None},
            atmospheric={
                name: (None,) * len(levels) if name in config.output_only_atmos_vars else channels
                for name, channels in atmospheric.items()
            }
            or {config.atmos_vars[0]: (None,) * len(levels)},
            static=static or {config.static_vars[0]: None},
            levels=levels,
            runs=tuple(runs),
        )

    def unpack(self, state: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits ``[B, T, C, H, W]`` into surface ``[B, T, H, W]`` and atmospheric variables
        ``[B, T, levels, H, W]``: views wherever the channels of a variable are in one piece."""
        zero = state.new_zeros(()).expand(*state.shape[:2], *state.shape[-2:])

        def channel(i: int | None) -> torch.Tensor:
            return zero if i is None else state[:, :, i]

        surface = {name: channel(i) for name, i in self.surface.items()}
        atmospheric = {}
        for name, channels in self.atmospheric.items():
            first = channels[0]
            if first is not None and channels == tuple(range(first, first + len(channels))):
                atmospheric[name] = state[:, :, first : first + len(channels)]
            else:
                atmospheric[name] = torch.stack([channel(i) for i in channels], dim=2)
        return surface, atmospheric

    def unpack_static(
        self, static: torch.Tensor | None, state: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Splits ``[S, H, W]`` or ``[B, S, H, W]`` into static variables ``[B, T, H, W]``."""
        shape = (*state.shape[:2], *state.shape[-2:])
        if static is None:
            return {name: state.new_zeros(()).expand(shape) for name in self.static}
        return {name: static[..., None, i, :, :].expand(shape) for name, i in self.static.items()}

    def pack(
        self, surface: Mapping[str, torch.Tensor], atmospheric: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Joins surface ``[B, H, W]`` and atmospheric ``[B, levels, H, W]`` variables into
        ``[B, C, H, W]``."""
        pieces = [
            surface[name][:, None] if piece is None else atmospheric[name][:, slice(*piece)]
            for name, piece in self.runs
        ]
        return torch.cat(pieces, dim=1)


def build_network(config: AuroraConfig) -> Any:
    """Builds the network of a configuration with the ``aurora`` package.

    Weights that the data cannot reach (of variables they do not hold) do not require gradients.
    With ``residual_prediction`` the output layers are zero, so that the first forecast is the last
    state. The linear layers of a custom network begin with a standard deviation of
    ``1 / sqrt(inputs)`` (LeCun et al. 1998, Efficient BackProp, equation 16). The package's 0.02 is
    for widths of 512 and more: a narrow network then passes hardly anything on, begins with a plain
    mean over the levels in place of their aggregation, and learns more slowly.

    Args:
        config (AuroraConfig): The configuration.

    Returns:
        aurora.Aurora: The network, of the variant's class.
    """
    arguments = {name: getattr(config, name) for name in variant_arguments(config.variant)}
    arguments["timestep"] = datetime.timedelta(hours=arguments.pop("timestep_hours"))
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }
    arguments["autocast"] = False  # the model sees to it, on the device that its tensors are on
    try:
        # Aurora reads numbers from tensors as it is built, which a meta device does not have.
        with _empty_weights() if _on_meta() else contextlib.nullcontext():
            network = variant_class(config.variant)(**arguments)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigurationError(f"aurora cannot build this model: {error}") from error
    used = _UsedVariables.of(config)
    for name, parameter in network.named_parameters():
        if not used.reaches(name):
            parameter.requires_grad_(False)
    if config.variant == "custom":
        _widen_initial_weights(network)
    if config.residual_prediction:
        for heads in (network.decoder.surf_heads, network.decoder.atmos_heads):
            for parameter in heads.parameters():
                torch.nn.init.zeros_(parameter)
    return network


def _widen_initial_weights(network: Any) -> None:
    """Scales what the package drew, so that what it began at zero stays there."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(module.in_features**-0.5 / _PACKAGE_WEIGHT_STD)
        latents = network.encoder.atmos_latents
        latents.mul_(latents.shape[-1] ** -0.5 / _PACKAGE_WEIGHT_STD)


def _on_meta() -> bool:
    return torch.empty(0).device.type == "meta"


@contextlib.contextmanager
def _empty_weights():
    from accelerate import init_empty_weights

    with torch.device("cpu"), init_empty_weights():
        yield


@dataclasses.dataclass(frozen=True)
class _UsedVariables:
    surface_inputs: frozenset[str]
    surface: frozenset[str]
    atmospheric_inputs: frozenset[str]
    atmospheric: frozenset[str]
    levels: frozenset[str]
    separate: frozenset[str]

    @classmethod
    def of(cls, config: AuroraConfig) -> _UsedVariables:
        from aurora.normalisation import level_to_str

        split = [split_channel(channel) for channel in config.channels]
        surface = {name for name, level in split if level is None}
        cycles = {f"{period}_{f}" for period in ("tod", "dow", "doy") for f in ("cos", "sin")}
        inputs = surface | set(config.static_channels) | cycles | {"insolation"}
        atmospheric = {name for name, level in split if level is not None}
        return cls(
            frozenset(inputs),
            frozenset(surface),
            frozenset({f"static_{name}" for name in inputs}),
            frozenset(atmospheric),
            frozenset(level_to_str(level) for level in config.levels),
            frozenset(config.separate_perceiver),
        )

    def reaches(self, parameter: str) -> bool:
        """Whether the data reach a parameter, by its name."""
        if parameter.startswith("decoder.level_decoder_alternate."):
            return bool(self.atmospheric & self.separate)
        if parameter.startswith("decoder.level_decoder."):
            return bool(self.atmospheric - self.separate)
        if parameter.startswith("decoder.atmos_levels_embed."):
            return bool(self.atmospheric)
        match = re.fullmatch(
            r"(encoder\.(?:surf|atmos)_token_embeds|decoder\.(?:surf|atmos)_heads\.([^.]+))"
            r"(?:\.layers\.([^.]+))?(?:\.weights\.([^.]+)|\.weight|\.bias)",
            parameter,
        )
        if match is None:
            return True
        where, head, level, embedding = match.groups()
        if level is not None and level not in self.levels:
            return False
        if head is not None:
            return head in (self.surface if "surf" in where else self.atmospheric)
        if embedding is not None:
            atmospheric = self.atmospheric | self.atmospheric_inputs
            return embedding in (self.surface_inputs if "surf" in where else atmospheric)
        return True
