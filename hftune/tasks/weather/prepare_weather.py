"""From a run's ``data:`` settings to checked fields, statistics, splits and samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...utils.errors import DataError
from ...utils.files import write_json
from ...utils.terminal import console, is_main_process
from .arguments_weather import WeatherDataArguments, WeatherFieldsArguments
from .climatology import Climatology, compute_climatology
from .dates import describe_times, select_rows
from .fields import WeatherFields
from .samples import make_samples
from .statistics import FieldStatistics, compute_statistics
from .store import open_fields

if TYPE_CHECKING:
    import datasets

    from .audit import Audit

__all__ = ["DEFAULT_SPLITS", "WeatherData", "audited", "open_weather", "prepare_weather_data"]

DEFAULT_SPLITS = {"train": "0%:80%", "validation": "80%:90%", "test": "90%:100%"}
"""Of the times, where no dates are given."""


@dataclasses.dataclass(frozen=True)
class WeatherData:
    """Everything that a weather run reads.

    Attributes:
        fields (WeatherFields): All fields of the run.
        audit (Audit or None): What the audit found; None if it was turned off, and in all processes
            but the first.
        statistics (FieldStatistics): Of the training times, differences over one model step.
        climatology (Climatology): Of the training times.
        train (datasets.Dataset): Samples with the first step as their target.
        validation, test (datasets.Dataset): Samples with all lead times as their targets.
        rows (dict of str to int array): Row numbers of the three splits.
    """

    fields: WeatherFields
    audit: Audit | None
    statistics: FieldStatistics
    climatology: Climatology
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    rows: dict[str, np.ndarray]

    def describe(self) -> dict[str, Any]:
        """Returns what ``run.json`` says of the data."""
        return {
            "sources": list(self.fields.sources),
            "fingerprint": self.fields.fingerprint,
            "times": describe_times(self.fields.times),
            "channels": list(self.fields.layout.channels),
            "grid": list(self.fields.layout.grid),
            "audit": None if self.audit is None else self.audit.verdict,
            "splits": {
                name: {"times": describe_times(self.fields.times[rows]), "samples": len(samples)}
                for (name, rows), samples in zip(
                    self.rows.items(), (self.train, self.validation, self.test), strict=True
                )
            },
        }


def open_weather(arguments: WeatherFieldsArguments) -> WeatherFields:
    """Opens the fields that a run's settings name; the simulated atmosphere where they name none.

    Args:
        arguments (WeatherFieldsArguments): The ``data:`` section.

    Raises:
        DataError: If they cannot be read.
    """
    data: Sequence[str | Path] = arguments.data
    if not data:
        from .simulation import simulated_atmosphere_path

        data = [
            simulated_atmosphere_path(
                years=arguments.simulation_years, seed=arguments.simulation_seed
            )
        ]
    # With all dates given, nothing else of a large store is read or cached.
    dates = [arguments.train_dates, arguments.validation_dates, arguments.test_dates]
    return open_fields(
        data,
        times=",".join(dates) if all(dates) else None,
        variables=arguments.variables,
        levels=arguments.levels,
        cache_dir=arguments.cache_dir,
        static_data=arguments.static_data or None,
    )


def audited(
    fields: WeatherFields,
    arguments: WeatherFieldsArguments,
    step_hours: float,
    reference: Any,
    folder: Path,
) -> Audit | None:
    """Audits fields in the first process, as the settings say, and prints what was found.

    Args:
        fields (WeatherFields): The fields.
        arguments (WeatherFieldsArguments): The ``data:`` section.
        step_hours (float): The model's step, hours.
        reference: ``channels``, ``mean`` and ``std`` to compare with, or None.
        folder (Path): Where ``audit.json`` is written.

    Raises:
        DataError: If there are errors and ``audit`` is ``strict``.
    """
    if arguments.audit == "off" or not is_main_process():
        return None  # an error in the first process ends the others too: the launcher sees to it
    from .audit import audit_fields

    audit = audit_fields(fields, reference=reference, step_hours=step_hours)
    console().print(audit.render())
    write_json(folder / "audit.json", audit.as_dict())
    if arguments.audit == "strict":
        audit.raise_on_errors()
    return audit


def prepare_weather_data(
    arguments: WeatherDataArguments,
    *,
    step_hours: float,
    output_dir: str | Path,
    reference: Any = None,
) -> WeatherData:
    """Opens, audits and splits the data of a run; every process of it calls this.

    Args:
        arguments (WeatherDataArguments): The ``data:`` section.
        step_hours (float): The model's step, hours.
        output_dir (path): Where ``audit.json`` is written.
        reference (*optional*): What the data are compared with: ``channels``, ``mean`` and ``std``
            of the model that is fine-tuned.

    Raises:
        DataError: If the data cannot be read, the audit found errors (``audit`` is ``strict``), or
            a split has no sample.
    """
    fields = open_weather(arguments)
    audit = audited(fields, arguments, step_hours, reference, Path(output_dir))
    cut = functools.partial(make_samples, fields, history=arguments.history, step_hours=step_hours)
    samples, rows = {}, {}
    for name, share in DEFAULT_SPLITS.items():
        dates = getattr(arguments, f"{name}_dates") or share
        leads = [step_hours] if name == "train" else arguments.lead_hours
        try:
            samples[name] = cut(lead_hours=leads, rows=dates)
        except DataError:
            if dates != share or name == "train":
                raise
            console().print(
                f"warning: {describe_times(fields.times)} are too few for {name} samples of their "
                "own: all times serve. The scores say nothing about skill on unseen weather.",
                style="yellow",
            )
            dates = None
            samples[name] = cut(lead_hours=leads, rows=dates)
        rows[name] = select_rows(fields.times, dates)
    return WeatherData(
        fields=fields,
        audit=audit,
        statistics=compute_statistics(fields, rows["train"], step_hours),
        climatology=compute_climatology(fields, rows["train"]),
        **samples,
        rows=rows,
    )
