"""The ``data:`` section of the weather recipes' configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, ClassVar, Literal

__all__ = ["WeatherDataArguments", "WeatherFieldsArguments"]


@dataclasses.dataclass
class WeatherFieldsArguments:
    """Which weather fields to learn from, and their dates.

    Args:
        data (list of str): Files, globs, Zarr stores or URLs, as
            :func:`~hftune.tasks.weather.store.open_fields` takes them. Empty (the default): the
            simulated atmosphere of ``simulation_years`` years.
        static_data (list of str): Stores of time-invariant fields (``lsm``, ``z``, ``slt``).
        variables (list of str, *optional*): Variables to use. Defaults to all that are found.
        levels (list of float, *optional*): Pressure levels in hPa. Defaults to all.
        train_dates (str): Dates to train on: ``1961-01-01:1994-12-31``, ``1995``, several separated
            by commas. Defaults to the first 80 % of the times.
        validation_dates (str): Dates to choose the best model on. Defaults to the next 10 %.
        test_dates (str): Dates to score the best model on. Defaults to the last 10 %.
        cache_dir (str, *optional*): Where fields that cannot be read in place are written once.
            Defaults to ``cache/weather`` in the hftune home.
        audit (str): ``strict`` stops on errors in the data, ``warn`` prints them and goes on,
            ``off`` does not look. Defaults to ``strict``.
        simulation_years (int): Length of the simulated atmosphere in years. Defaults to 12.
        simulation_seed (int): Its seed. Defaults to 0.
    """

    _section: ClassVar[str] = "data"

    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files, globs, Zarr stores or URLs with the fields; several are merged. "
            "None: the simulated atmosphere."
        },
    )
    static_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Stores of time-invariant fields (lsm, z, slt)."},
    )
    variables: list[str] | None = field(
        default=None, metadata={"help": "Variables to use (2t msl z t ...). Default: all found."}
    )
    levels: list[float] | None = field(
        default=None, metadata={"help": "Pressure levels in hPa. Default: all found."}
    )
    train_dates: str | None = field(
        default=None,
        metadata={
            "help": "Dates to train on, 1961-01-01:1994-12-31 for example. Default: first 80 %."
        },
    )
    validation_dates: str | None = field(
        default=None,
        metadata={"help": "Dates to choose the best model on. Default: the next 10 %."},
    )
    test_dates: str | None = field(
        default=None, metadata={"help": "Dates to score the best model on. Default: last 10 %."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where fields are cached. Default: in the hftune home."}
    )
    audit: Literal["strict", "warn", "off"] = field(
        default="strict",
        metadata={"help": "What errors in the data do: strict stops the run, warn prints them."},
    )
    simulation_years: int = field(
        default=12, metadata={"help": "Length of the simulated atmosphere, in years."}
    )
    simulation_seed: int = field(default=0, metadata={"help": "Seed of the simulated atmosphere."})

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        from .dates import parse_dates

        problems = []
        given = [name for name in ("train_dates", "validation_dates", "test_dates") if values[name]]
        if len(given) not in (0, 3):
            missing = sorted({"train_dates", "validation_dates", "test_dates"} - set(given))
            problems.append(
                f"{', '.join(given)} given without {', '.join(missing)}: give all three or none."
            )
        ranges = {}
        for name in given:
            try:
                ranges[name] = parse_dates(values[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
        for i, (first, one) in enumerate(ranges.items()):
            for second, other in list(ranges.items())[i + 1 :]:
                if any(a < d and c < b for a, b in one for c, d in other):
                    problems.append(
                        f"{first} ({values[first]}) and {second} ({values[second]}) overlap: the "
                        "scores would be of samples that were trained or chosen on."
                    )
        return problems


@dataclasses.dataclass
class WeatherDataArguments(WeatherFieldsArguments):
    """The fields of :class:`WeatherFieldsArguments`, and how they are cut into samples.

    Args:
        lead_hours (list of int): Lead times to score, in hours, multiples of the model's step; the
            first one is that step unless the model brings its own. Defaults to 24.
        history (int): Number of past states the model sees. Defaults to 2.
    """

    lead_hours: list[int] = field(
        default_factory=lambda: [24],
        metadata={"help": "Lead times to score, in hours; multiples of the model's step."},
    )
    history: int = field(default=2, metadata={"help": "Number of past states the model sees."})

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        leads = values["lead_hours"]
        if not leads or min(leads) < 1 or sorted(set(leads)) != list(leads):
            problems.append(
                f"lead_hours is {leads}; give positive hours in increasing order, such as 24 48 72."
            )
        elif any(lead % leads[0] for lead in leads):
            problems.append(
                f"lead_hours {leads} are not all multiples of the first, {leads[0]}, "
                "which is the model's step."
            )
        if values["history"] < 1:
            problems.append(f"history is {values['history']}; it must be 1 or more.")
        return problems + super().check(values)
