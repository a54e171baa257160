"""From a run's settings to fields, stations, an encoder's configuration and its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import DataError
from ...utils.terminal import is_main_process
from ..weather.arguments_weather import WeatherFieldsArguments
from ..weather.climatology import Climatology, compute_climatology
from ..weather.dates import describe_times, select_rows
from ..weather.fields import FieldLayout, WeatherFields
from ..weather.prepare_weather import DEFAULT_SPLITS, audited, open_weather
from ..weather.simulated_stations import simulated_stations
from ..weather.stations import Stations, read_stations, write_stations
from ..weather.statistics import FieldStatistics, compute_statistics
from .arguments_aardvark_encoder import AardvarkEncoderArguments
from .configuration_aardvark_encoder import AardvarkEncoderConfig, Modality
from .encoder_presets import background_modality, build_encoder_config, grid_spacing
from .observations import BACKGROUND, STATIONS, encoder_samples

if TYPE_CHECKING:
    import datasets

    from ..weather.audit import Audit

__all__ = ["EncoderData", "prepare_encoder_data", "station_encoder_config"]

_RAIN = ("precip", "precipitation", "prcp", "pr", "rain", "rainfall", "rr", "tp")
_LARGEST_PATCH = 4
_DAY_HOURS = 24


@dataclasses.dataclass(frozen=True)
class EncoderData:
    """Everything that a run of the encoder reads.

    Attributes:
        fields (WeatherFields): What the encoder should find.
        stations (Stations): What it sees.
        audit (Audit or None): What the audit of the fields found; None if it was turned off, and in
            all processes but the first.
        statistics (FieldStatistics): Of the training times.
        climatology (Climatology): Of the training times.
        config (AardvarkEncoderConfig): Of an encoder for these data.
        train, validation, test (datasets.Dataset): Samples with targets.
    """

    fields: WeatherFields
    stations: Stations
    audit: Audit | None
    statistics: FieldStatistics
    climatology: Climatology
    config: AardvarkEncoderConfig
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset

    @property
    def fingerprint(self) -> str:
        """Identifies fields and stations."""
        return f"{self.fields.fingerprint}-{self.stations.fingerprint}"

    def describe(self) -> dict[str, Any]:
        """Returns what ``run.json`` says of the data."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "sources": list(self.fields.sources),
            "fingerprint": self.fingerprint,
            "times": describe_times(self.fields.times),
            "channels": list(self.fields.layout.channels),
            "grid": list(self.fields.layout.grid),
            "audit": None if self.audit is None else self.audit.verdict,
            "stations": {
                "count": len(self.stations.names),
                "variables": list(self.stations.variables),
                "times": describe_times(self.stations.times),
                "missing": float(np.isnan(self.stations.values).mean()),
            },
            "splits": {
                name: {"times": describe_times(np.array(samples.with_format(None)["time"])),
                       "samples": len(samples)}
                for name, samples in splits.items()
            },
        }  # fmt: skip


def prepare_encoder_data(
    data: WeatherFieldsArguments,
    model: AardvarkEncoderArguments,
    output_dir: str | Path,
) -> EncoderData:
    """Opens and splits fields and stations of a run; every process of it calls this.

    Dates that are not given are shares of the times that fields and stations have in common.

    Args:
        data (WeatherFieldsArguments): The ``data:`` section.
        model (AardvarkEncoderArguments): The ``model:`` section.
        output_dir (path): Where ``audit.json`` is written, and simulated stations.

    Raises:
        DataError: If something cannot be read, the audit found errors (``audit`` is ``strict``),
            or a split has no sample.
        ConfigurationError: If no encoder can be made for the data.
    """
    fields = open_weather(data)
    hours = model.background_hours or _DAY_HOURS
    audit = audited(fields, data, hours, None, Path(output_dir))
    if model.stations is None:
        stations = simulated_stations(
            fields, count=model.simulated_stations, seed=data.simulation_seed
        )
        if is_main_process():
            write_stations(stations, Path(output_dir) / "stations")
    else:
        stations = read_stations(model.stations)

    common = np.intersect1d(fields.times, stations.times)
    if not len(common):
        raise DataError(
            f"the stations have {describe_times(stations.times)}, the fields "
            f"{describe_times(fields.times)}: not one in common."
        )
    times = {
        name: common[select_rows(common, getattr(data, f"{name}_dates") or share)]
        for name, share in DEFAULT_SPLITS.items()
    }
    rows = np.searchsorted(fields.times, times["train"])
    statistics = compute_statistics(fields, rows, hours)
    config = station_encoder_config(model, fields.layout, statistics, stations, times["train"])
    return EncoderData(
        fields=fields,
        stations=stations,
        audit=audit,
        statistics=statistics,
        climatology=compute_climatology(fields, rows),
        config=config,
        **{
            name: encoder_samples(config, stations, own, fields=fields, targets=True)
            for name, own in times.items()
        },
    )


def station_encoder_config(
    arguments: AardvarkEncoderArguments,
    layout: FieldLayout,
    statistics: FieldStatistics,
    stations: Stations,
    training_times: Sequence[int] | np.ndarray,
) -> AardvarkEncoderConfig:
    """Makes the configuration of an encoder for stations, with or without a background.

    The positions and the statistics of the stations are part of it, and ``background_hours``: a
    saved encoder needs nothing but observations (see :func:`~.observations.encoder_samples`).

    Args:
        arguments (AardvarkEncoderArguments): The ``model:`` section.
        layout (FieldLayout): Channels and grid.
        statistics (FieldStatistics): Of the fields' training times.
        stations (Stations): All of them.
        training_times (int64 array): Seconds since 1970 of the training times.

    Raises:
        ConfigurationError: All that is wrong, together.
        DataError: If ``log_variables`` names what the stations do not observe.
    """
    logarithms = arguments.log_variables
    if logarithms is None:
        logarithms = [name for name in stations.variables if name.lower() in _RAIN]
    else:
        stations.select(logarithms)  # says what is wrong with the names
    variables = [f"log1p({v})" if v in logarithms else v for v in stations.variables]
    observed = stations.select(variables).at(training_times)
    modalities = [
        Modality(
            STATIONS,
            "points",
            variables,
            longitude=stations.longitude,
            latitude=stations.latitude,
            mean=np.nanmean(observed, axis=(0, 2), dtype=np.float64),
            std=np.nanstd(observed, axis=(0, 2), dtype=np.float64),
            length_scale=arguments.length_scale or grid_spacing(layout),
            trainable_length_scale=arguments.trainable_length_scale,
        )
    ]
    if arguments.background_hours:
        modalities.append(background_modality(layout, statistics, BACKGROUND))
    patch_size = arguments.patch_size or max(
        size for size in range(1, _LARGEST_PATCH + 1) if not any(n % size for n in layout.grid)
    )
    sizes = ("embed_dim", "depth", "num_heads", "mlp_ratio", "head_depth", "drop_path",
             "mixer_hidden", "mixer_layers", "mixer_width", "loss_function")  # fmt: skip
    return build_encoder_config(
        layout,
        statistics,
        modalities,
        static_channels=layout.static_channels,
        static_mean=statistics.static_mean,
        # A field that is the same everywhere becomes 0.
        static_std=np.where(statistics.static_std > 0, statistics.static_std, 1.0),
        patch_size=patch_size,
        background_hours=arguments.background_hours,
        **{name: getattr(arguments, name) for name in sizes},
    )
