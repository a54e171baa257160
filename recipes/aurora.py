#!/usr/bin/env python
r"""Fine-tunes Aurora on weather fields, or trains a small one of its kind from scratch.

On the simulated atmosphere, for a first look:

    accelerate launch recipes/aurora.py --config recipes/configs/aurora_quickstart.yaml \
        --output_dir runs/aurora

On fields of your own, one day ahead:

    accelerate launch recipes/aurora.py --config recipes/configs/aurora_regional_daily.yaml \
        --data era5_*.nc --train_dates 1961-01-01:1994-12-31 \
        --validation_dates 1995-01-01:1996-12-31 --test_dates 1997-01-01:1999-12-31 \
        --output_dir runs/region

On several GPUs: `accelerate launch --config_file accelerate_configs/multi_gpu_ddp.yaml ...`.
Started again with the same command, the run goes on from its newest whole checkpoint.

OUTPUT_DIR then holds `report.html`, `scores.json`, `model/` (for `hftune forecast` and
`AuroraForForecasting.from_pretrained`), `run.json`, `audit.json` and the checkpoints.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

# A script's folder is first on the path, and `import aurora` would find this very file there.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from hftune.callbacks.tracked_run import recorded_run, register_best_model
from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.resolve import parse
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tasks.aurora.arguments_aurora import AuroraModelArguments
from hftune.tasks.aurora.prepare_aurora import base_config, prepare_aurora
from hftune.tasks.weather.arguments_weather import WeatherDataArguments
from hftune.tasks.weather.evaluation_weather import ForecastEvaluator
from hftune.tasks.weather.losses import weights_table
from hftune.tasks.weather.prepare_weather import prepare_weather_data
from hftune.tasks.weather.report_weather import write_weather_report
from hftune.tasks.weather.samples import collate
from hftune.tasks.weather.scores_render import render_scores
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.files import write_json
from hftune.utils.recipes import run_recipe
from hftune.utils.seeds import seed_everything
from hftune.utils.terminal import is_main_process, progress, say


def main(argv: Sequence[str] | None = None) -> HFTuneTrainer:
    """Runs the recipe; returns its trainer.

    Args:
        argv (sequence of str, *optional*): Arguments, defaults to the command line's.
    """
    settings = parse(
        WeatherDataArguments,
        AuroraModelArguments,
        HFTuneArguments,
        TrackingArguments,
        argv=argv,
        description=__doc__,
    )
    data_args, model_args, args, tracking = settings.values
    output_dir = Path(args.output_dir)

    with recorded_run(settings, args, tracking, "aurora") as (record, callbacks):
        # 1. Data: opened, audited, split
        base = base_config(model_args, data_args.lead_hours)
        with record.timed("data"):
            data = prepare_weather_data(
                data_args,
                step_hours=data_args.lead_hours[0] if base is None else base.timestep_hours,
                output_dir=output_dir,
                reference=base,
            )
        record.update(data=data.describe())

        # 2. Model; a new one begins with weights of the seed
        seed_everything(args.seed)
        model = prepare_aurora(
            model_args,
            data.fields,
            data.statistics,
            history=data_args.history,
            base=base,
        )
        say(weights_table(model.config.channels, model.config.channel_weights()))

        def evaluator(samples):
            return ForecastEvaluator(
                samples,
                dataclasses.replace(data.fields.layout, latitude=model.output_latitude),
                data_args.lead_hours,
                data.climatology,
                batch_size=args.per_device_eval_batch_size,
            )

        # 3. Training; the best model by the validation samples stays in memory
        trainer = HFTuneTrainer(
            model,
            args,
            train_dataset=data.train,
            data_collator=collate,
            evaluator=evaluator(data.validation),
            callbacks=callbacks,
            data_fingerprint=data.fields.fingerprint,
        )
        test = evaluator(data.test)
        untuned = None
        if base is not None:
            with record.timed("untuned"):
                untuned = _scored("Scoring the untuned model", test, trainer.model)
        with record.timed("training"):
            trainer.train()
        trainer.save_model(str(output_dir / "model"))

        # 4. Scores on the test samples, beside persistence, climatology and the untuned model
        with record.timed("evaluation"):
            scores = _scored("Scoring the best model", test, trainer.model)
        if untuned is not None:
            scores.adopt("untuned", untuned)
        results = scores.result()
        example = test.example(trainer.model)
        if is_main_process():
            write_json(output_dir / "scores.json", results)
            record.update(results=results["summary"])
            measured = {f"test_{name}": value for name, value in test.metrics(scores).items()}
            trainer.log(measured)  # into the record and its mirrors
            register_best_model(record, tracking, trainer, output_dir / "model", measured)
            record.finish()
            report = write_weather_report(
                output_dir,
                fields=data.fields,
                example=example,
                log_history=trainer.state.log_history,
                title="Aurora",
            )
            say(render_scores(results))
            say(f"Scores: {output_dir / 'scores.json'}\nReport: {report}")
    return trainer


def _scored(what: str, evaluator: ForecastEvaluator, model):
    with progress(len(evaluator.samples), what, "samples") as bar:
        return evaluator.evaluate(model, lambda done: bar.update(done - bar.done))


if __name__ == "__main__":
    run_recipe(main)
