#!/usr/bin/env python
r"""Fine-tunes Aardvark's processor lead time by lead time, 1 to 10 days: each day's predictions are
the next day's inputs.

From a trained encoder and a pretrained processor:

    accelerate launch recipes/aardvark.py --assimilation_model_path ENCODER \
        --forecast_model_path PROCESSOR --stations STATIONS --data FIELDS.nc \
        --lr 5e-5 --finetune_epochs 1 --output_dir runs/aardvark

Without them both are trained first, in OUTPUT_DIR/encoder and OUTPUT_DIR/processor; without data,
on a simulated atmosphere and simulated stations, for a first look:

    accelerate launch recipes/aardvark.py --config recipes/configs/aardvark_quickstart.yaml \
        --output_dir runs/aardvark

An Aurora goes through the same chain: `--task aurora --forecast_model_path runs/aurora/model`.
Stopped or killed at any moment, the same command goes on where it was.

OUTPUT_DIR then holds `report.html`, `scores.json`, `model/` (that of the last day), `run.json`, a
folder for each day with its model, `forecast_1/checkpoints/best_model/`, ..., and the states,
`ic_train_10.mmap`, `ic_val_1.mmap`, ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# A script's folder is first on the path, where recipes have the names of packages.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

import numpy as np
from hftune.recipes import aardvark_encoder, aardvark_processor

from hftune.callbacks.tracked_run import recorded_run, register_best_model
from hftune.configuration.resolve import Resolved, parse
from hftune.configuration.stage_arguments import StageArguments
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tasks.aardvark.arguments_aardvark import (
    AardvarkDataArguments,
    ChainArguments,
    ChainModelArguments,
    ChainTrainingArguments,
    InitialConditionArguments,
)
from hftune.tasks.aardvark.convert_aardvark import load_encoder, load_processor
from hftune.tasks.aardvark.initial_states import (
    AnalysisStates,
    EncoderStates,
    Processes,
    has_conditions,
    initial_conditions,
    weights_digest,
)
from hftune.tasks.aardvark.prepare_aardvark import prepare_chain_data
from hftune.tasks.aurora.modeling_aurora import AuroraForForecasting
from hftune.tasks.weather.arguments_weather import WeatherFieldsArguments
from hftune.tasks.weather.chain import WeatherChain
from hftune.tasks.weather.chain_results import chain_example, chain_scores, render_chain_scores
from hftune.tasks.weather.report_chain import write_chain_report
from hftune.tasks.weather.samples import collate
from hftune.tasks.weather.stations import read_stations
from hftune.training.lead_time import LeadTimeTrainer
from hftune.utils.files import write_json
from hftune.utils.recipes import NEXT_STAGE, run_recipe
from hftune.utils.terminal import is_main_process, say

_CONFIGS = Path(__file__).resolve().parent / "configs"


def main(argv: Sequence[str] | None = None) -> LeadTimeTrainer:
    """Runs the recipe; returns its trainer.

    Args:
        argv (sequence of str, *optional*): Arguments, defaults to the command line's.
    """
    settings = parse(
        AardvarkDataArguments,
        ChainModelArguments,
        InitialConditionArguments,
        ChainArguments,
        StageArguments,
        ChainTrainingArguments,
        TrackingArguments,
        argv=argv,
        description=__doc__,
    )
    data_args, model_args, ic_args, chain_args, staging, args, tracking = settings.values
    output_dir = Path(args.output_dir)
    encoder_path, stations, processor_path = _train_what_is_missing(settings)

    with recorded_run(settings, args, tracking, "aardvark") as (record, callbacks):
        # 1. Model and data: the truth, its splits, statistics and climatology
        if model_args.task == "aurora":
            model, encoder_path = AuroraForForecasting.from_pretrained(processor_path), None
        else:
            model = load_processor(processor_path, data_args.norm_factors, data_args.static_file)
            model.config.loss_function = model_args.loss or model.config.loss_function
            model.config.time_channels = model_args.time_channels or model.config.time_channels
        with record.timed("data"):
            data = prepare_chain_data(data_args, output_dir, model.config)
        record.update(data=data.describe())

        # 2. Initial conditions: those of the encoder, or the data themselves
        folder = ic_args.initial_conditions_dir or encoder_path or output_dir / "initial_conditions"
        source = None
        if encoder_path is None:
            if ic_args.initial_conditions_dir is None or not has_conditions(folder):
                source = AnalysisStates(data.fields, model.config)
        elif stations is not None:
            encoder = load_encoder(encoder_path, data_args.norm_factors, data_args.static_file)
            source = EncoderStates(encoder, read_stations(stations), data.fields, model.config)
        with record.timed("initial_conditions"):
            initial = initial_conditions(
                folder,
                source,
                data.times,
                data.fields.layout,
                data.statistics,
                dtype=ic_args.ic_dtype,
                batch_size=ic_args.ic_batch_size,
                processes=Processes.of(args.distributed_state),
            )

        # 3. The chain, and what the model does without it: rolled out day by day
        aardvark = model_args.task == "aardvark"
        chain = WeatherChain(
            output_dir,
            initial,
            data.fields,
            model.config,
            statistics=data.statistics,
            lead_times=chain_args.lead_time,
            climatology=data.climatology,
            clock=model.config.time_channels if aardvark else "valid",
            batch_size=ic_args.ic_batch_size,
            dtype=ic_args.ic_dtype,
            keep_train_ics=chain_args.keep_train_ics,
            keep_predictions=chain_args.keep_predictions,
            write_targets=chain_args.write_targets,
            folds=chain_args.cross_fit,
        )
        trainer = LeadTimeTrainer(
            model,
            args,
            chain=chain,
            staging=staging,
            plan_settings={
                "forecast_model": weights_digest(model),
                "loss": model.config.loss_function,
            },
            data_collator=collate,
            callbacks=callbacks,
            data_fingerprint=chain.fingerprint,
        )
        with record.timed("untuned"):
            untuned = chain.untuned_scores(trainer.model, trainer.plan_settings["forecast_model"])
        with record.timed("training"):
            trainer.train()
        trainer.save_model(str(output_dir / "model"))

        # 4. Scores by lead time, beside the untuned model, persistence and climatology
        days = [
            result
            for result in trainer.results  # of an earlier run there may be more
            if "fold" not in result and result["lead_time"] <= chain.lead_times
        ]
        folders = [output_dir / day["name"] for day in days]
        chain.complete_scores(folders)
        drift = chain.drift(0)
        if is_main_process():
            results = chain_scores(
                chain,
                folders,
                untuned,
                std=data.statistics.std,
                drift=[drift, *(day["predictions"] for day in days)],
            )
            write_json(output_dir / "scores.json", results)
            record.update(results=results["summary"])
            means = zip(
                results["lead_hours"], results["summary"]["rmse_normalised"]["model"], strict=True
            )
            measured = {f"test_rmse_normalised_{hours}h": value for hours, value in means}
            measured["test_rmse_normalised"] = float(np.mean(list(measured.values())))
            trainer.log(measured)  # into the record and its mirrors
            register_best_model(record, tracking, trainer, output_dir / "model", measured)
            record.finish()
            report = write_chain_report(
                output_dir,
                fields=data.fields,
                results=results,
                example=chain_example(chain),
                stages=trainer.results,
            )
            say(render_chain_scores(results))
            say(f"Scores: {output_dir / 'scores.json'}\nReport: {report}")
    return trainer


def _train_what_is_missing(settings: Resolved) -> tuple[str | None, str | None, str]:
    """Trains the encoder and the processor that are not given.

    Returns:
        Folders of the encoder (None: the chain starts from the data), of the observations and of
        the processor.
    """
    data_args, model_args, ic_args, _, _, args, _ = settings.values
    output_dir = Path(args.output_dir)
    again = NEXT_STAGE not in os.environ  # else another process of this run has done it
    encoder, stations = ic_args.assimilation_model_path, data_args.stations
    wanted = stations is not None or not data_args.data
    if encoder is None and model_args.task == "aardvark" and wanted:
        folder = output_dir / "encoder"
        if again:
            own = [] if stations is None else ["--stations", stations]
            config = _config(model_args.encoder_config, "aardvark_encoder_background.yaml")
            aardvark_encoder.main([*_passed_on(settings, folder, config), *own])
        encoder, stations = str(folder / "model"), stations or str(folder / "stations")
    processor = model_args.forecast_model_path
    if processor is None:
        folder = output_dir / "processor"
        if again:
            config = _config(model_args.processor_config, "aardvark_processor_regional.yaml")
            aardvark_processor.main(_passed_on(settings, folder, config))
        processor = str(folder / "model")
    return encoder, stations, processor


def _config(path: str | None, default: str) -> str:
    """A configuration file: as given, or one that comes with hftune."""
    return path if path is not None and Path(path).exists() else str(_CONFIGS / (path or default))


def _passed_on(settings: Resolved, folder: Path, config: str) -> list[str]:
    """The arguments of a recipe that is a part of this one."""
    words = ["--config", config, "--output_dir", str(folder), "--audit", "off"]
    shared = {*WeatherFieldsArguments.__dataclass_fields__} - {"audit"}
    shared |= {*TrackingArguments.__dataclass_fields__} | {"resume", "seed", "use_cpu"}
    shared -= {"experiment_name", "registered_name"}
    for row in settings.table:
        if row.name in shared and row.source != "default" and row.value is not None:
            values = row.value if isinstance(row.value, list) else [row.value]
            words += [f"--{row.name}", *map(str, values)]
    return words


if __name__ == "__main__":
    run_recipe(main)
