"""From the settings of Aardvark's recipes to the truth, its splits and a processor."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import DataError
from ..weather.climatology import Climatology, compute_climatology
from ..weather.dates import describe_times, interval_seconds, select_rows
from ..weather.fields import FieldLayout, WeatherFields
from ..weather.prepare_weather import DEFAULT_SPLITS, audited, open_weather
from ..weather.statistics import FieldStatistics, compute_statistics
from ..weather.variables import VARIABLES
from ..weather.yearly_memmaps import open_yearly_memmaps
from .arguments_aardvark import AardvarkDataArguments, ProcessorArguments
from .configuration_aardvark import (
    OFFICIAL_CHANNELS,
    AardvarkProcessorConfig,
    build_processor_config,
)
from .convert_aardvark import load_processor
from .modeling_aardvark import AardvarkProcessor

if TYPE_CHECKING:
    from ..weather.audit import Audit

__all__ = [
    "ChainData",
    "prepare_chain_data",
    "prepare_processor",
]

# Of the publication; a last day counts at 00 UTC alone.
_PUBLISHED_DATES = {
    "train": "2007-01-02:2017-12-31T00",
    "validation": "2019-01-01:2019-12-31T00",
    "test": "2018-01-01:2018-12-31T00",
}
_FILES = {"train": "train", "validation": "val", "test": "test"}
_LARGEST_PATCH = 5
_DAY_HOURS = 24


@dataclasses.dataclass(frozen=True)
class ChainData:
    """What the recipes of the processor and of the chain read.

    Attributes:
        fields (WeatherFields): The truth.
        times (dict of str to int64 array): Times of the splits ``train``, ``val`` and ``test``.
        statistics (FieldStatistics): Of the training times; differences over 24 hours.
        climatology (Climatology): Of the training times.
        audit (Audit or None): What the audit of the fields found.
    """

    fields: WeatherFields
    times: dict[str, np.ndarray]
    statistics: FieldStatistics
    climatology: Climatology
    audit: Audit | None

    def describe(self) -> dict[str, Any]:
        """Returns what ``run.json`` says of the data."""
        return {
            "sources": list(self.fields.sources),
            "fingerprint": self.fields.fingerprint,
            "times": describe_times(self.fields.times),
            "channels": list(self.fields.layout.channels),
            "grid": list(self.fields.layout.grid),
            "audit": None if self.audit is None else self.audit.verdict,
            "splits": {split: describe_times(times) for split, times in self.times.items()},
        }


def prepare_chain_data(
    arguments: AardvarkDataArguments, output_dir: str | Path, config: Any = None
) -> ChainData:
    """Opens, audits and splits the truth; every process of a run calls this.

    Args:
        arguments (AardvarkDataArguments): The ``data:`` section.
        output_dir (path): Where ``audit.json`` is written.
        config (*optional*): Configuration of the model that the data are for: its channels are
            taken, in its order. Those of yearly memory maps, and their grid, default to the
            published ones.

    Raises:
        DataError: If the data cannot be read, or a split has no time.
    """
    memmaps = _memmap_folder(arguments)
    if memmaps is None:
        fields = open_weather(arguments)
    else:
        fields = open_yearly_memmaps(
            memmaps,
            layout=_layout_of(config),
            mode=arguments.era5_mode,
            res=arguments.res,
            frequency=arguments.frequency or 6,
            static=arguments.static_file,
        )
    if config is not None:
        fields = fields.select(config.channels)
    audit = audited(fields, arguments, _DAY_HOURS, None, Path(output_dir))
    defaults = DEFAULT_SPLITS if memmaps is None else _PUBLISHED_DATES
    wanted = _at_frequency(fields.times, arguments.frequency)
    times = {
        _FILES[name]: wanted[select_rows(wanted, getattr(arguments, f"{name}_dates") or dates)]
        for name, dates in defaults.items()
    }
    rows = np.searchsorted(fields.times, times["train"])
    return ChainData(
        fields=fields,
        times=times,
        statistics=compute_statistics(fields, rows, _DAY_HOURS),
        climatology=compute_climatology(fields, rows),
        audit=audit,
    )


def _memmap_folder(arguments: AardvarkDataArguments) -> str | None:
    """The folder of yearly memory maps that ``data`` names; None for anything else."""
    if len(arguments.data) != 1 or not Path(arguments.data[0]).is_dir():
        return None
    names = (path.name for path in Path(arguments.data[0]).iterdir())
    found = any(re.fullmatch(r"era5_\w+_\d{4}\.memmap", name) for name in names)
    return arguments.data[0] if found else None


def _layout_of(config: Any) -> FieldLayout:
    channels = OFFICIAL_CHANNELS if config is None else tuple(config.channels)
    latitude = np.linspace(90, -90, 121) if config is None else np.asarray(config.latitude)
    longitude = np.arange(240) * 1.5 if config is None else np.asarray(config.longitude)
    units = tuple(VARIABLES[channel.partition("_")[0]].units for channel in channels)
    return FieldLayout(channels, units, (), latitude, longitude)


def _at_frequency(times: np.ndarray, hours: int | None) -> np.ndarray:
    if hours is None:
        return times
    chosen = times[times % (hours * 3600) == 0]
    if interval_seconds(chosen) != hours * 3600:
        raise DataError(
            f"--frequency {hours}: the data have {describe_times(times)}; give a multiple of that."
        )
    return chosen


def prepare_processor(
    arguments: ProcessorArguments, data: ChainData, data_arguments: AardvarkDataArguments
) -> AardvarkProcessor:
    """Loads a processor, or makes a new one for the data.

    Args:
        arguments (ProcessorArguments): The ``model:`` section.
        data (ChainData): The data.
        data_arguments (AardvarkDataArguments): The ``data:`` section, for a published processor.

    Raises:
        CheckpointError: If there is no such model.
        ConfigurationError: If the sizes do not fit.
    """
    layout = data.fields.layout
    if arguments.model_name_or_path is not None:
        model = load_processor(
            arguments.model_name_or_path, data_arguments.norm_factors, data_arguments.static_file
        )
        model.config.loss_function = arguments.loss
        model.config.time_channels = arguments.time_channels
        return model
    patch_size = arguments.patch_size or max(
        size for size in range(1, _LARGEST_PATCH + 1) if not any(n % size for n in layout.grid)
    )
    sizes = ("embed_dim", "depth", "num_heads", "mlp_ratio", "head_depth", "drop_path")
    config: AardvarkProcessorConfig = build_processor_config(
        layout,
        data.statistics,
        patch_size=patch_size,
        loss_function=arguments.loss,
        time_channels=arguments.time_channels,
        **{name: getattr(arguments, name) for name in sizes},
    )
    model = AardvarkProcessor(config)
    if layout.static_channels:
        model.set_static_fields(data.fields.static_fields)
    return model
