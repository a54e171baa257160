"""Samples of observations as rows of a :class:`datasets.Dataset` of times.

A row holds no values: its transform reads them when it is asked for, all rows of a batch at once.
Stations are in memory, fields are read where they lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import DataError
from ..weather.dates import describe_times, format_time
from ..weather.fields import WeatherFields
from ..weather.samples import collate
from ..weather.stations import Stations

if TYPE_CHECKING:
    import datasets
    import torch

__all__ = ["BACKGROUND", "STATIONS", "ObservationReader", "collate_observations",
           "encoder_samples", "observation_samples"]  # fmt: skip

STATIONS, BACKGROUND = "stations", "background"
"""Names of the two modalities."""


@dataclasses.dataclass(frozen=True, eq=False)
class ObservationReader:
    """Reads the observations of samples; the transform of :func:`observation_samples`.

    Attributes:
        stations (Stations): The modality ``stations``.
        background (WeatherFields or None): The modality ``background``: fields of an earlier time.
        background_seconds (int): How much earlier.
        targets (WeatherFields or None): What the encoder should find.
    """

    stations: Stations
    background: WeatherFields | None
    background_seconds: int
    targets: WeatherFields | None

    def known(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """Returns for each source, by its name in messages, which of the times it has."""
        found = {"the stations": np.isin(times, self.stations.times)}
        if self.background is not None:
            found[f"the fields {self.background_seconds / 3600:g} h before"] = np.isin(
                times - self.background_seconds, self.background.times
            )
        if self.targets is not None:
            found["the fields"] = np.isin(times, self.targets.times)
        return found

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Reads a batch of rows.

        Args:
            batch (dict): Column ``time``: seconds since 1970 of ``n`` samples.

        Returns:
            dict: ``observations``, a list of ``n`` dicts of tensors; ``times [n]`` and, where there
            are targets, ``target_fields [n, 1, C, H, W]``.
        """
        import torch

        times = np.asarray(batch["time"], dtype=np.int64)
        values = {STATIONS: torch.from_numpy(self.stations.at(times))}
        if self.background is not None:
            fields = _read(self.background, times - self.background_seconds)
            # Encoders count longitudes first.
            values[BACKGROUND] = torch.from_numpy(np.ascontiguousarray(fields.swapaxes(2, 3)))
        result = {
            "observations": [{name: v[i] for name, v in values.items()} for i in range(len(times))],
            "times": torch.from_numpy(times),
        }
        if self.targets is not None:
            result["target_fields"] = torch.from_numpy(_read(self.targets, times)[:, None])
        return result


def _read(fields: WeatherFields, times: np.ndarray) -> np.ndarray:
    return fields.read(np.searchsorted(fields.times, times))


def observation_samples(
    stations: Stations,
    times: Sequence[int] | np.ndarray,
    *,
    targets: WeatherFields | None = None,
    background: WeatherFields | None = None,
    background_hours: float = 24,
    every: bool = False,
) -> datasets.Dataset:
    """Makes samples for an :class:`~.modeling_aardvark_encoder.AardvarkEncoder`.

    Keep ``remove_unused_columns=False`` in the training arguments; the columns are not the model's.

    Args:
        stations (Stations): Observations, the modality ``stations``.
        times (int64 array): Seconds since 1970-01-01 UTC. Those that a source does not have are
            left out.
        targets (WeatherFields, *optional*): The fields at these times, to train and to score on.
            Without them the samples have none, as initial conditions are made of.
        background (WeatherFields, *optional*): Fields of ``background_hours`` before, all channels,
            as a second modality ``background``: yesterday's reanalysis.
        background_hours (float): How long before. Defaults to 24.
        every (bool): Whether a time that is left out is an error. Defaults to False.

    Returns:
        datasets.Dataset: Column ``time`` under a transform: a sample is a dict of ``observations``
        (``stations`` float32 ``[V, S]``, NaN where missing; ``background [C, W, H]``, north first),
        ``times`` int64 and ``target_fields`` float32 ``[1, C, H, W]``, torch tensors.

    Raises:
        DataError: If no time is left, or fewer than were wanted and ``every`` is True.
    """
    import datasets

    times = np.asarray(times, dtype=np.int64)
    reader = ObservationReader(stations, background, round(background_hours * 3600), targets)
    known = reader.known(times)
    whole = np.logical_and.reduce(list(known.values()))
    if every and not whole.all() or not whole.any():
        lacks = ", ".join(f"{name} lack {np.sum(~has):,}" for name, has in known.items())
        first = "" if not len(times) else f", the first {format_time(times[~whole][0])}"
        raise DataError(
            f"of {describe_times(times)}, {np.sum(~whole):,} cannot be samples ({lacks}{first}). "
            f"The stations have {describe_times(stations.times)}: change the dates."
        )
    dataset = datasets.Dataset.from_dict({"time": times[whole]})
    dataset.set_transform(reader)
    return dataset


def encoder_samples(
    config: Any,
    stations: Stations,
    times: Sequence[int] | np.ndarray,
    *,
    fields: WeatherFields | None = None,
    targets: bool = False,
    every: bool = False,
) -> datasets.Dataset:
    """Makes the samples that a trained encoder, or one to be trained, is made for.

    Args:
        config (AardvarkEncoderConfig): Of
            :func:`~.prepare_aardvark_encoder.station_encoder_config`:
            its modality ``stations`` says which variables (``log1p(precip)`` of ``precip``) of
            which stations, ``background_hours`` how old the fields of its modality ``background``
            are.
        stations (Stations): As :func:`~hftune.tasks.weather.stations.read_stations` gives them;
            others than those that the encoder knows are left out.
        times (int64 array): Seconds since 1970-01-01 UTC.
        fields (WeatherFields, *optional*): With the encoder's channels and grid; needed for
            targets and for a background.
        targets (bool): Whether samples have targets. Defaults to False.
        every (bool): Whether a time that is left out is an error. Defaults to False.

    Returns:
        datasets.Dataset: See :func:`observation_samples`.

    Raises:
        DataError: If stations or fields are not those that the encoder knows, or no time is left.
    """
    modalities = {modality["name"]: modality for modality in config.modalities}
    if set(modalities) - {STATIONS, BACKGROUND} or STATIONS not in modalities:
        raise DataError(
            f"the encoder observes {', '.join(modalities)}; only {STATIONS}, with or without "
            f"{BACKGROUND}, can be read from files of stations and fields."
        )
    wanted = BACKGROUND in modalities
    if fields is None and (wanted or targets):
        hours = f" of {config.background_hours:g} hours before" if wanted else ""
        raise DataError(f"the encoder needs fields{hours}: give the gridded data too.")
    if fields is not None and (wanted or targets):
        layout = fields.layout
        same = layout.channels == tuple(config.channels) and all(
            len(ours) == len(theirs) and np.allclose(ours, theirs, atol=1e-3)
            for ours, theirs in (
                (layout.latitude, config.latitude), (layout.longitude, config.longitude)
            )
        )  # fmt: skip
        if not same:
            raise DataError(
                f"the encoder knows {', '.join(config.channels)} on {len(config.latitude)} x "
                f"{len(config.longitude)} points, the fields have {', '.join(layout.channels)} on "
                f"{layout.grid[0]} x {layout.grid[1]}: choose them with --variables and --levels, "
                "and give the grid that it was trained on."
            )
    return observation_samples(
        _known_stations(stations, modalities[STATIONS]),
        times,
        targets=fields if targets else None,
        background=fields if wanted else None,
        background_hours=config.background_hours or 0,
        every=every,
    )


def _known_stations(stations: Stations, modality: dict[str, Any]) -> Stations:
    """The variables and stations of a modality, in its order."""
    stations = stations.select(modality["variables"])
    places = np.stack([modality["longitude"], modality["latitude"]])
    own = np.stack([stations.longitude, stations.latitude])
    away = np.abs(places[:, :, None] - own[:, None, :])
    away[0] = np.minimum(away[0] % 360, -away[0] % 360)
    away = away.max(axis=0)
    chosen = away.argmin(axis=1)
    lost = np.flatnonzero(away.min(axis=1) > 1e-3)
    if len(lost):
        longitude, latitude = places[:, lost[0]]
        raise DataError(
            f"the encoder knows {places.shape[1]} stations, of which {len(lost)} are not among the "
            f"{len(stations.names)} given, the first at longitude {longitude:g}, latitude "
            f"{latitude:g}. A station that has closed stays in the table, with empty cells."
        )
    return dataclasses.replace(
        stations,
        names=tuple(stations.names[i] for i in chosen),
        longitude=stations.longitude[chosen],
        latitude=stations.latitude[chosen],
        values=stations.values[:, :, chosen],
    )


def collate_observations(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joins samples to a batch; the ``collate_fn`` of a loader.

    Samples that were read together are not copied.

    Returns:
        dict: ``observations``, a dict of tensors, ``times`` and ``target_fields``: what an
        encoder's ``forward`` takes.
    """
    batch: dict[str, torch.Tensor | dict[str, torch.Tensor]] = {
        "observations": collate([sample["observations"] for sample in samples])
    }
    rest = [{k: v for k, v in sample.items() if k != "observations"} for sample in samples]
    return batch | collate(rest)
