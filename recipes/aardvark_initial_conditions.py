#!/usr/bin/env python
r"""Writes the initial conditions that Aardvark's lead-time chain begins with, as memory maps.

From observations, by a trained encoder, into its folder:

    accelerate launch recipes/aardvark_initial_conditions.py --encoder_model_path ENCODER \
        --stations STATIONS --data FIELDS.nc --train_dates 1979-01-01:1994-12-31 \
        --validation_dates 1995-01-01:1996-12-31 --test_dates 1997-01-01:1999-12-31

From a reanalysis itself (without an encoder), or from another model's forecasts:

    accelerate launch recipes/aardvark_initial_conditions.py --data FIELDS.nc \
        --initial_conditions_dir states
    accelerate launch recipes/aardvark_initial_conditions.py --data FIELDS.nc \
        --forecast_model_path runs/aurora/model --forecast_hours 24 --initial_conditions_dir states

Each `ic_train.mmap`, `ic_val.mmap`, `ic_test.mmap` is (time, latitude from south to north,
longitude, channel) in physical units, with a manifest beside it. Several processes share the work;
stopped or killed at any moment, the same command goes on with the states that are missing.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

# A script's folder is first on the path, where recipes have the names of packages.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

import torch
from accelerate import PartialState
from transformers import AutoModel

import hftune.tasks.aurora  # noqa: F401  (makes the model known to AutoModel)
from hftune.configuration.resolve import parse
from hftune.tasks.aardvark.arguments_aardvark import (
    AardvarkDataArguments,
    InitialConditionArguments,
)
from hftune.tasks.aardvark.convert_aardvark import load_encoder
from hftune.tasks.aardvark.initial_states import (
    AnalysisStates,
    EncoderStates,
    ForecastStates,
    Processes,
    initial_conditions,
)
from hftune.tasks.aardvark.prepare_aardvark import prepare_chain_data
from hftune.tasks.weather.dates import describe_times
from hftune.tasks.weather.stations import read_stations
from hftune.utils.files import human_bytes
from hftune.utils.recipes import run_recipe
from hftune.utils.terminal import say


@dataclasses.dataclass
class SourceArguments:
    """Another source than an encoder.

    Args:
        forecast_model_path (str, *optional*): A model whose forecasts are the states: what
            ``recipes/aurora.py`` or ``recipes/aardvark_processor.py`` saved.
        forecast_hours (float): Their lead time, hours. Defaults to 24.
    """

    _section: ClassVar[str] = "initial_conditions"

    forecast_model_path: str | None = field(
        default=None, metadata={"help": "A model whose forecasts are the states."}
    )
    forecast_hours: float = field(default=24, metadata={"help": "Their lead time, hours."})

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        if values["forecast_model_path"] and values["assimilation_model_path"]:
            problems.append("give an encoder (assimilation_model_path) or forecast_model_path")
        if not (values["initial_conditions_dir"] or values["assimilation_model_path"]):
            problems.append("initial_conditions_dir: say where the files are to be written")
        if values["assimilation_model_path"] and not values["stations"]:
            problems.append("stations: an encoder needs the folder of the observations")
        return problems


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe.

    Args:
        argv (sequence of str, *optional*): Arguments, defaults to the command line's.
    """
    settings = parse(
        AardvarkDataArguments,
        InitialConditionArguments,
        SourceArguments,
        argv=argv,
        description=__doc__,
    )
    data_args, args, other = settings.values
    say(settings.show(changed_only=True))
    state = PartialState(cpu=not torch.accelerator.is_available())
    folder = Path(args.initial_conditions_dir or args.assimilation_model_path)

    # The model first: yearly memory maps have its channels and grid
    model = None
    if args.assimilation_model_path is not None:
        model = load_encoder(
            args.assimilation_model_path, data_args.norm_factors, data_args.static_file
        )
    elif other.forecast_model_path is not None:
        model = AutoModel.from_pretrained(other.forecast_model_path)
    data = prepare_chain_data(data_args, folder, None if model is None else model.config)

    if args.assimilation_model_path is not None:
        source = EncoderStates(model, read_stations(data_args.stations), data.fields)
    elif model is not None:
        source = ForecastStates(model, data.fields, other.forecast_hours)
    else:
        source = AnalysisStates(data.fields, _OneState(data.fields.layout))
    written = initial_conditions(
        folder,
        source,
        data.times,
        data.fields.layout,
        data.statistics,
        dtype=args.ic_dtype,
        batch_size=args.ic_batch_size,
        processes=Processes.of(state),
    )
    for states in written.values():
        size = human_bytes(states.path.stat().st_size)
        say(f"{states.path}: {describe_times(states.times)}, {size}")
    state.wait_for_everyone()
    state.destroy_process_group()


class _OneState:
    """What a model reads that needs all channels of the data once."""

    history, timestep_hours = 1, 24.0

    def __init__(self, layout: Any) -> None:
        self.channels = layout.channels
        self.latitude, self.longitude = layout.latitude, layout.longitude


if __name__ == "__main__":
    run_recipe(main)
