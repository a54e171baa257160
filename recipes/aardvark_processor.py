#!/usr/bin/env python
r"""Trains Aardvark's processor one day ahead on weather fields: what the chain begins with.

On the simulated atmosphere, for a first look:

    accelerate launch recipes/aardvark_processor.py --output_dir runs/processor

On fields of your own:

    accelerate launch recipes/aardvark_processor.py \
        --config recipes/configs/aardvark_processor_regional.yaml --data era5_*.nc \
        --train_dates 1961-01-01:1994-12-31 --validation_dates 1995-01-01:1996-12-31 \
        --test_dates 1997-01-01:1999-12-31 --output_dir runs/processor

Started again with the same command, the run goes on from its newest whole checkpoint.

OUTPUT_DIR then holds `report.html`, `scores.json`, `model/` (for `--forecast_model_path` of
`recipes/aardvark.py` and `AardvarkProcessor.from_pretrained`), `run.json`, `audit.json` and the
checkpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script's folder is first on the path, where recipes have the names of packages.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from hftune.callbacks.tracked_run import recorded_run, register_best_model
from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.resolve import parse
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tasks.aardvark.arguments_aardvark import AardvarkDataArguments, ProcessorArguments
from hftune.tasks.aardvark.prepare_aardvark import prepare_chain_data, prepare_processor
from hftune.tasks.weather.evaluation_weather import ForecastEvaluator
from hftune.tasks.weather.report_weather import write_weather_report
from hftune.tasks.weather.samples import collate, make_samples
from hftune.tasks.weather.scores_render import render_scores
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.files import write_json
from hftune.utils.recipes import run_recipe
from hftune.utils.seeds import seed_everything
from hftune.utils.terminal import is_main_process, progress, say

_DAY_HOURS = 24


def main(argv: Sequence[str] | None = None) -> HFTuneTrainer:
    """Runs the recipe; returns its trainer.

    Args:
        argv (sequence of str, *optional*): Arguments, defaults to the command line's.
    """
    settings = parse(
        AardvarkDataArguments,
        ProcessorArguments,
        HFTuneArguments,
        TrackingArguments,
        argv=argv,
        description=__doc__,
    )
    data_args, model_args, args, tracking = settings.values
    output_dir = Path(args.output_dir)

    with recorded_run(settings, args, tracking, "aardvark_processor") as (record, callbacks):
        # 1. Data: opened, audited, split; each sample is a state and that of the day after
        with record.timed("data"):
            data = prepare_chain_data(data_args, output_dir)
        record.update(data=data.describe())
        fields = data.fields

        def samples(split):
            times = data.times[split]
            return make_samples(
                fields,
                history=1,
                step_hours=_DAY_HOURS,
                lead_hours=[_DAY_HOURS],
                rows=fields.times.searchsorted(times[times + _DAY_HOURS * 3600 <= times[-1]]),
            )

        def evaluator(split):
            return ForecastEvaluator(
                samples(split),
                fields.layout,
                [_DAY_HOURS],
                data.climatology,
                batch_size=args.per_device_eval_batch_size,
            )

        # 2. Model; a new one begins with weights of the seed
        seed_everything(args.seed)
        model = prepare_processor(model_args, data, data_args)

        # 3. Training; the best model by the validation samples stays in memory
        trainer = HFTuneTrainer(
            model,
            args,
            train_dataset=samples("train"),
            data_collator=collate,
            evaluator=evaluator("val"),
            callbacks=callbacks,
            data_fingerprint=fields.fingerprint,
        )
        with record.timed("training"):
            trainer.train()
        trainer.save_model(str(output_dir / "model"))

        # 4. Scores on the test samples, beside persistence and climatology
        test = evaluator("test")
        with record.timed("evaluation"), progress(len(test.samples), "Scoring", "samples") as bar:
            scores = test.evaluate(trainer.model, lambda done: bar.update(done - bar.done))
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
                fields=fields,
                example=example,
                log_history=trainer.state.log_history,
                title="Aardvark's processor",
            )
            say(render_scores(results))
            say(f"Scores: {output_dir / 'scores.json'}\nReport: {report}")
    return trainer


if __name__ == "__main__":
    run_recipe(main)
