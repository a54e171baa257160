"""``hftune forecast``: rolls a saved model out and writes its forecasts as CF NetCDF."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigurationError
from ..utils.files import human_bytes
from ..utils.terminal import progress

__all__ = ["main"]


def _hours(texts: list[str]) -> list[int]:
    words = [word for text in texts for word in text.split(",") if word]
    wrong = [word for word in words if not word.isdigit() or int(word) == 0]
    if wrong:
        raise ConfigurationError(
            f"--lead_hours: found {', '.join(wrong)}, expected whole hours such as 24,48,72"
        )
    return sorted({int(word) for word in words})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hftune forecast",
        description="Roll a saved Aurora or Aardvark out from fields, or go through the days of a "
        "lead-time chain, and write the forecasts as CF NetCDF, in the layout of WeatherBench 2.",
        epilog="example: hftune forecast runs/region/model era5_*.nc --lead_hours 24,48,72 "
        "-o forecast.nc",
    )
    parser.add_argument(
        "model",
        help="folder of a saved model or of a lead-time chain's run, a Hub repository, or a *.ckpt",
    )
    parser.add_argument(
        "data",
        nargs="+",
        help="files, globs, Zarr stores or URLs with the fields, or initial conditions (*.mmap)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="NetCDF file to write")
    parser.add_argument(
        "--lead_hours", "--lead-hours", nargs="+", required=True, help="lead times, such as 24,48"
    )
    parser.add_argument(
        "--dates",
        help="when forecasts are made: 1997-01-01:1997-12-31, a year, a month, a day, several "
        "separated by commas (default: the last time in the data)",
    )
    parser.add_argument(
        "--static_data", "--static-data", nargs="+", help="stores of static fields (lsm, z, slt)"
    )
    parser.add_argument(
        "--batch_size", "--batch-size", type=int, default=1, help="forecasts at a time (default 1)"
    )
    parser.add_argument("--device", help="cpu, cuda, mps (default: what there is)")
    parser.add_argument("--cache_dir", "--cache-dir", help="where fields are cached")
    return parser


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv (list of str): Arguments after ``hftune forecast``.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    leads = _hours(arguments.lead_hours)

    import torch

    from ..tasks.weather.chain_forecast import ChainForecaster
    from ..tasks.weather.evaluation_weather import model_predictor
    from ..tasks.weather.fields import split_channel
    from ..tasks.weather.forecast_file import match_inputs, write_forecasts
    from ..tasks.weather.initial_conditions import open_initial_conditions
    from ..tasks.weather.store import open_fields
    from ..utils.modules import best_device

    model = _load(arguments.model).eval()
    device = arguments.device or best_device()
    predict = model_predictor(model.to(device), leads)
    parts = [split_channel(channel) for channel in model.config.channels]
    if len(arguments.data) == 1 and arguments.data[0].endswith(".mmap"):
        fields = open_initial_conditions(arguments.data[0]).as_fields()
    else:
        fields = open_fields(
            arguments.data,
            variables=list(dict.fromkeys(name for name, _ in parts)),
            levels=sorted({level for _, level in parts if level is not None}) or None,
            static_data=arguments.static_data,
            cache_dir=arguments.cache_dir,
        )
    one = model.models[0] if isinstance(model, ChainForecaster) else model
    inputs = match_inputs(fields, one.config, arguments.dates)
    if one is model and one.static_fields is not None:
        if not torch.isfinite(one.static_fields).all():
            one.set_static_fields(inputs.read_static(one.config.static_channels))
    with progress(len(inputs.times), "Forecasting", "forecasts") as bar:
        write_forecasts(
            arguments.output,
            predict,
            inputs,
            leads,
            latitudes=len(one.output_latitude),
            batch_size=arguments.batch_size,
            source=f"{type(one).__name__}, {arguments.model}",
            progress=lambda done: bar.update(done - bar.done),
        )
    print(
        f"{arguments.output}: {len(inputs.times)} forecasts of {leads[-1]} hours, "
        f"{human_bytes(arguments.output.stat().st_size)}"
    )
    return 0


def _load(path: str) -> Any:
    """A model of either kind, or the models of a chain."""
    from ..tasks.aardvark.configuration_aardvark import AardvarkProcessorConfig
    from ..tasks.aardvark.modeling_aardvark import AardvarkProcessor
    from ..tasks.aurora.modeling_aurora import AuroraForForecasting
    from ..tasks.weather.chain_forecast import ChainForecaster
    from ..utils.files import read_json

    if ChainForecaster.is_run(path):
        return ChainForecaster.from_run(path)
    config = Path(path, "config.json")
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind == AardvarkProcessorConfig.model_type:
        return AardvarkProcessor.from_pretrained(path)
    return AuroraForForecasting.from_pretrained(path)
