#!/usr/bin/env python
r"""Trains Aardvark's encoder: from observations of stations to the state of the atmosphere.

On the simulated atmosphere and simulated stations, for a first look:

    accelerate launch recipes/aardvark_encoder.py --output_dir runs/encoder

On stations and fields of your own:

    accelerate launch recipes/aardvark_encoder.py \
        --config recipes/configs/aardvark_encoder_stations.yaml \
        --stations STATIONS --data FIELDS.nc --train_dates 1979-01-01:1994-12-31 \
        --validation_dates 1995-01-01:1996-12-31 --test_dates 1997-01-01:1999-12-31 \
        --output_dir runs/encoder

With --background_hours 24 the encoder sees the fields of the day before too. On several GPUs:
`accelerate launch --config_file accelerate_configs/multi_gpu_ddp.yaml ...`. Started again with the
same command, the run goes on from its newest whole checkpoint.

OUTPUT_DIR then holds `report.html`, `scores.json`, `model/` (for
`recipes/aardvark_initial_conditions.py` and `AardvarkEncoder.from_pretrained`), `run.json`,
`audit.json`, the checkpoints and, if they are simulated, the `stations/`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script's folder is first on the path, and its files would hide packages of the same names.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from hftune.callbacks.tracked_run import recorded_run, register_best_model
from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.resolve import parse
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tasks.aardvark.arguments_aardvark_encoder import AardvarkEncoderArguments
from hftune.tasks.aardvark.baselines_aardvark import fit_ridge
from hftune.tasks.aardvark.evaluation_aardvark_encoder import EncoderEvaluator
from hftune.tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder
from hftune.tasks.aardvark.observations import collate_observations
from hftune.tasks.aardvark.prepare_aardvark_encoder import prepare_encoder_data
from hftune.tasks.aardvark.report_aardvark_encoder import write_encoder_report
from hftune.tasks.weather.arguments_weather import WeatherFieldsArguments
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
        WeatherFieldsArguments,
        AardvarkEncoderArguments,
        HFTuneArguments,
        TrackingArguments,
        argv=argv,
        description=__doc__,
    )
    data_args, model_args, args, tracking = settings.values
    output_dir = Path(args.output_dir)

    with recorded_run(settings, args, tracking, "aardvark_encoder") as (record, callbacks):
        # 1. Fields and stations: opened, audited, split
        with record.timed("data"):
            data = prepare_encoder_data(data_args, model_args, output_dir)
        record.update(data=data.describe())
        layout, std = data.fields.layout, data.statistics.std

        # 2. Model, with weights of the seed
        seed_everything(args.seed)
        model = AardvarkEncoder(data.config)
        if layout.static_channels:
            model.set_static_fields(data.fields.static_fields)

        # 3. Training; the best model by the validation samples stays in memory
        trainer = HFTuneTrainer(
            model,
            args,
            train_dataset=data.train,
            data_collator=collate_observations,
            evaluator=EncoderEvaluator(
                data.validation, layout, std, batch_size=args.per_device_eval_batch_size
            ),
            callbacks=callbacks,
            data_fingerprint=data.fingerprint,
        )
        with record.timed("training"):
            trainer.train()
        trainer.save_model(str(output_dir / "model"))

        # 4. Scores on the test samples, beside climatology, background and ridge regression
        with record.timed("ridge"):
            ridge = fit_ridge(data.train, data.validation, layout, std)
        test = EncoderEvaluator(
            data.test,
            layout,
            std,
            data.climatology,
            baselines={} if ridge is None else {"ridge": ridge},
            batch_size=args.per_device_eval_batch_size,
        )
        with record.timed("evaluation"), progress(len(data.test), "Scoring", "samples") as bar:
            scores = test.evaluate(trainer.model, lambda done: bar.update(done - bar.done))
        example = test.example(trainer.model)
        if is_main_process():
            results = test.result(scores)
            write_json(output_dir / "scores.json", results)
            record.update(results=results["summary"])
            measured = {f"test_{name}": value for name, value in test.metrics(scores).items()}
            trainer.log(measured)  # into the record and its mirrors
            register_best_model(record, tracking, trainer, output_dir / "model", measured)
            record.finish()
            report = write_encoder_report(output_dir, example=example, stations=data.stations)
            for name, value in results["summary"].items():
                if name.endswith("rmse_normalised"):
                    say(f"{name}: {value:.3f}")
            say(f"Scores: {output_dir / 'scores.json'}\nReport: {report}")
    return trainer


if __name__ == "__main__":
    run_recipe(main)
