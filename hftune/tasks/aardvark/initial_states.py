"""Where initial conditions come from: an encoder, the data themselves, another model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ...utils.errors import ConfigurationError, DataError
from ...utils.files import free_bytes
from ...utils.modules import evaluating
from ...utils.terminal import console, progress
from ..weather.chain import SPLITS
from ..weather.config_checks import grid_differences
from ..weather.fields import FieldLayout, WeatherFields
from ..weather.initial_conditions import (
    InitialConditions,
    manifest_path,
    open_initial_conditions,
)
from ..weather.initial_conditions_partial import gigabytes
from ..weather.initial_conditions_write import (
    initial_condition_bytes,
    match_layout,
    write_initial_conditions,
)
from ..weather.statistics import FieldStatistics
from .observations import collate_observations, encoder_samples

if TYPE_CHECKING:
    from ..weather.stations import Stations
    from .modeling_aardvark_encoder import AardvarkEncoder

__all__ = [
    "AnalysisStates",
    "EncoderStates",
    "ForecastStates",
    "Processes",
    "StateSource",
    "has_conditions",
    "initial_conditions",
    "weights_digest",
    "write_conditions",
]


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run, as writers of files need them.

    Attributes:
        rank, world (int): This one, and how many there are.
        wait (callable): Waits for all of them.
        device (torch.device): Where this one computes.
    """

    rank: int = 0
    world: int = 1
    wait: Callable[[], Any] = lambda: None
    device: torch.device = torch.device("cpu")

    @classmethod
    def of(cls, state: Any) -> Processes:
        """Returns those of an accelerate ``PartialState``."""
        return cls(state.process_index, state.num_processes, state.wait_for_everyone, state.device)


class StateSource(Protocol):
    """What makes states.

    Attributes:
        layout (FieldLayout): Channels and grid of the states.
        history (int): ``T``, fields of a state.
        timestep_hours (float): Hours between two of them.
        source (dict): What the states depend on, for the manifest.
    """

    layout: FieldLayout
    history: int
    timestep_hours: float
    source: dict[str, Any]

    def known(self, times: np.ndarray) -> np.ndarray:
        """Returns those of some times that it has a state for."""

    def states(self, times: np.ndarray, device: torch.device) -> np.ndarray:
        """Returns the states of known times, float32 ``[n, T, C, H, W]``."""


class AnalysisStates:
    """The data themselves, as a :class:`StateSource`.

    Args:
        fields (WeatherFields): The data.
        config: Of the model: ``channels``, ``latitude``, ``longitude``, ``history`` and
            ``timestep_hours``.
    """

    def __init__(self, fields: WeatherFields, config: Any) -> None:
        fields = fields.select(config.channels)
        self.layout = _state_layout(fields.layout, config)
        self.history, self.timestep_hours = config.history, config.timestep_hours
        self.source = {"kind": "fields", "fingerprint": fields.fingerprint}
        self._inputs = match_layout(fields, self.layout, self.history, self.timestep_hours)

    def known(self, times: np.ndarray) -> np.ndarray:
        return times[np.isin(times, self._inputs.times)]

    def states(self, times: np.ndarray, device: torch.device) -> np.ndarray:
        return self._inputs.read(np.searchsorted(self._inputs.times, times))


class EncoderStates:
    """What an encoder finds in observations, as a :class:`StateSource`.

    Args:
        encoder (AardvarkEncoder): Trained.
        stations (Stations): The observations.
        fields (WeatherFields): The data, for encoders that see a background.
        config (*optional*): Of the model that goes on from the states.

    Raises:
        DataError: If stations or fields are not those that the encoder knows, or the model has
            other channels or another grid.
    """

    history, timestep_hours = 1, 24.0

    def __init__(
        self,
        encoder: AardvarkEncoder,
        stations: Stations,
        fields: WeatherFields,
        config: Any = None,
    ) -> None:
        if config is not None:
            _check_same(encoder.config, config)
        fields = fields.select(encoder.config.channels)
        self.layout = _state_layout(fields.layout, encoder.config)
        self.source = {
            "kind": "encoder",
            "weights": weights_digest(encoder),
            "stations": stations.fingerprint,
            "fields": fields.fingerprint,
        }
        self._encoder, self._stations, self._fields = encoder, stations, fields

    def _samples(self, times: np.ndarray) -> Any:
        return encoder_samples(self._encoder.config, self._stations, times, fields=self._fields)

    def known(self, times: np.ndarray) -> np.ndarray:
        return np.asarray(self._samples(times).with_format(None)["time"], dtype=np.int64)

    def states(self, times: np.ndarray, device: torch.device) -> np.ndarray:
        batch = collate_observations(self._samples(times).__getitems__(list(range(len(times)))))
        observations = {name: values.to(device) for name, values in batch["observations"].items()}
        encoder = self._encoder.to(device)
        with evaluating(encoder), torch.no_grad():
            output = encoder(observations, batch["times"].to(device))
        return output.prediction.float().cpu().numpy()


class ForecastStates:
    """The forecasts of another model, such as an Aurora, as a :class:`StateSource`.

    Args:
        model (WeatherModel): Trained.
        fields (WeatherFields): The data that it starts from.
        hours (float): Its lead time: the state of a time is what it forecasts for then, so many
            hours before. Defaults to 24.

    Raises:
        ConfigurationError: If ``hours`` is no multiple of the model's time step.
    """

    history = 1

    def __init__(self, model: torch.nn.Module, fields: WeatherFields, hours: float = 24) -> None:
        config = model.config
        fields = fields.select(config.channels)
        if hours <= 0 or hours % config.timestep_hours:
            raise ConfigurationError(
                f"forecast_hours: found {hours:g}, expected a multiple of "
                f"{config.timestep_hours:g}, the model's time step"
            )
        self.layout = _state_layout(fields.layout, config)
        self.timestep_hours = config.timestep_hours
        self.source = {
            "kind": "model",
            "weights": weights_digest(model),
            "hours": hours,
            "fields": fields.fingerprint,
        }
        self._model, self._seconds = model, round(hours * 3600)
        self._steps = round(hours / config.timestep_hours)
        self._inputs = match_layout(fields, self.layout, config.history, config.timestep_hours)

    def known(self, times: np.ndarray) -> np.ndarray:
        return times[np.isin(times - self._seconds, self._inputs.times)]

    def states(self, times: np.ndarray, device: torch.device) -> np.ndarray:
        begin = times - self._seconds
        fields = self._inputs.read(np.searchsorted(self._inputs.times, begin))
        model = self._model.to(device)
        with evaluating(model), torch.no_grad():
            output = model(
                fields=torch.from_numpy(fields).to(device),
                times=torch.from_numpy(begin).to(device),
                steps=self._steps,
            )
        return output.prediction[:, -1:].float().cpu().numpy()


def write_conditions(
    folder: str | Path,
    source: StateSource,
    times: Mapping[str, np.ndarray],
    statistics: FieldStatistics,
    *,
    dtype: str = "float32",
    batch_size: int = 64,
    processes: Processes | None = None,
) -> dict[str, InitialConditions]:
    """Writes ``ic_train.mmap``, ``ic_val.mmap`` and ``ic_test.mmap``, or what is missing of them.

    Times that the source has no state for are left out.

    Args:
        folder (path): Where the files are written.
        source (StateSource): What makes the states.
        times (mapping of str to int64 array): Times of each split.
        statistics (FieldStatistics): Of the training times, for the manifests.
        dtype (str): ``"float32"`` or ``"float16"``. Defaults to ``"float32"``.
        batch_size (int): States that are computed together. Defaults to 64.
        processes (Processes, *optional*): Defaults to this one alone.

    Raises:
        DataError: If the disk is too small, or a split has no state.
    """
    processes = processes or Processes()
    places = [statistics.channels.index(name) for name in source.layout.channels]
    known = {split: source.known(of_split) for split, of_split in times.items()}
    empty = [split for split, own in known.items() if not len(own)]
    if empty:
        raise DataError(f"there is no state for any time of {', '.join(empty)}: change the dates.")
    _check_room(
        [(Path(folder) / f"ic_{split}.mmap", len(own)) for split, own in known.items()],
        source,
        dtype,
        processes,
    )
    written = {}
    for split, own in known.items():
        path = Path(folder) / f"ic_{split}.mmap"
        bar = contextlib.nullcontext()
        if processes.rank == 0:
            bar = progress(len(own), f"Writing {path.name}", "states")
        with bar as shown:
            show = shown and (lambda rows, shown=shown: shown.update(rows - shown.done))
            written[split] = write_initial_conditions(
                path,
                layout=source.layout,
                times=own,
                compute=lambda rows, own=own: source.states(own[rows], processes.device),
                source=source.source,
                history=source.history,
                timestep_hours=source.timestep_hours,
                statistics={
                    name: getattr(statistics, name)[places].tolist() for name in ("mean", "std")
                },
                dtype=dtype,
                block_rows=batch_size,
                rank=processes.rank,
                world=processes.world,
                wait=processes.wait,
                progress=show,
            )
    return written


def has_conditions(folder: str | Path) -> bool:
    """Whether a folder has the files of all three splits."""
    return all((Path(folder) / f"ic_{split}.mmap").exists() for split in SPLITS)


def _check_room(
    files: list[tuple[Path, int]], source: StateSource, dtype: str, processes: Processes
) -> None:
    """Says how much the files that are not begun will take, and whether there is room for all."""
    sizes = {
        path: initial_condition_bytes(rows, source.layout, dtype, source.history)
        for path, rows in files
        if not path.exists() and not path.with_name(f".{path.name}.partial").exists()
    }
    if not sizes:
        return
    need, free = sum(sizes.values()), free_bytes(next(iter(sizes)).parent)
    told = f"{gigabytes(need)}, {gigabytes(free)} are free on their disk"
    names = ", ".join(path.name for path in sizes)
    if need > free:
        half = f"--ic_dtype float16 ({gigabytes(need / 2)}) or " if dtype == "float32" else ""
        raise DataError(
            f"{names} need {told}: use {half}another folder (--initial_conditions_dir)."
        )
    if processes.rank == 0:
        console().print(f"initial conditions: {names} take {told}")


def initial_conditions(
    folder: str | Path,
    source: StateSource | None,
    times: Mapping[str, np.ndarray],
    layout: FieldLayout,
    statistics: FieldStatistics,
    **options: Any,
) -> dict[str, InitialConditions]:
    """Opens the initial conditions in a folder, or writes them.

    Files without a manifest, as the reference writes them, are read as they are and never replaced.

    Args:
        folder (path): Where ``ic_train.mmap`` and the others are.
        source (StateSource or None): What makes them; None to take what is there.
        times (mapping of str to int64 array): Times of each split.
        layout (FieldLayout): Channels and grid of files without a manifest.
        statistics (FieldStatistics): Of the training times.
        **options: Of :func:`write_conditions`.

    Raises:
        DataError: If a file is not what its manifest says, of another size than its times need, or
            not there and cannot be made.
    """
    paths = {split: Path(folder) / f"ic_{split}.mmap" for split in times}
    plain = {s for s, path in paths.items() if path.exists() and not manifest_path(path).exists()}
    if source is not None and not plain:
        return write_conditions(folder, source, times, statistics, **options)
    missing = [path.name for path in paths.values() if not path.exists()]
    if missing:
        raise DataError(
            f"{folder} has no {', '.join(missing)}, and nothing to make them of: give the "
            "observations (--stations) for the encoder, or leave --assimilation_model_path out to "
            "start from the data."
        )
    layout = dataclasses.replace(layout, static_channels=())
    stated = {split: {"layout": layout, "times": times[split]} for split in plain}
    return {s: open_initial_conditions(path, **stated.get(s, {})) for s, path in paths.items()}


def weights_digest(model: torch.nn.Module) -> str:
    """Returns a hash of a model's tensors, the same however they are stored."""
    import xxhash

    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()))
    return digest.hexdigest()


def _check_same(encoder: Any, processor: Any) -> None:
    """Raises an error where a processor cannot go on from what an encoder finds."""
    problems = []
    if list(encoder.channels) != list(processor.channels):
        problems.append(
            f"the encoder finds the channels {', '.join(encoder.channels)}, the processor knows "
            f"{', '.join(processor.channels)}"
        )
    problems += grid_differences(encoder, processor, "the encoder has", "the processor")
    if problems:
        raise DataError(
            f"{'; '.join(problems)}. Train both on the same variables, levels and grid."
        )


def _state_layout(layout: FieldLayout, config: Any) -> FieldLayout:
    """The channels of a model, on its grid, with the units of the data."""
    units = dict(zip(layout.channels, layout.units, strict=True))
    return FieldLayout(
        tuple(config.channels),
        tuple(units[name] for name in config.channels),
        (),
        np.asarray(config.latitude),
        np.asarray(config.longitude),
    )
