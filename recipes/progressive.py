#!/usr/bin/env python
r"""Trains a text classifier on 10 % of the data, 20 %, ... 100 %, each stage from the last one's
best model, and says after each stage what more data can be expected to gain.

On generated messages, for a first look; nothing to download:

    accelerate launch recipes/progressive.py --output_dir runs/progressive

On a table of your own, with a pretrained model:

    accelerate launch recipes/progressive.py --data intents.csv \
        --pretrained distilbert-base-uncased --start-ratio 0.1 --step-size 0.1 --max-ratio 1.0 \
        --epochs-per-stage 2 --max-memory-mb 4000 --output_dir runs/intents

A quick check on 10 % (--max-ratio 0.1), then up to half (--max-ratio 0.5), then on from there
(--start-ratio 0.5): in the same folder each goes on from what the one before has done. Stopped or
killed at any moment, the same command goes on where it was.

OUTPUT_DIR then holds `report.html`, `progressive_training_results.json`,
`progressive_training_summary.txt`, `scores.json`, `model/` (for `from_pretrained`), `run.json`,
`logs/` and a folder for each stage: `stage_1_10pct/checkpoints/best_model/`, ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# A script's folder is first on the path, where recipes have the names of packages.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from hftune.callbacks.tracked_run import recorded_run, register_best_model
from hftune.configuration.resolve import parse
from hftune.configuration.stage_arguments import ProgressiveArguments, StageArguments
from hftune.configuration.staged_training_arguments import StagedTrainingArguments
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tasks.classification.arguments_classification import (
    ClassificationDataArguments,
    ClassificationModelArguments,
)
from hftune.tasks.classification.baselines_classification import baseline_scores
from hftune.tasks.classification.evaluation_classification import ClassificationEvaluator
from hftune.tasks.classification.modeling_classification import build_model
from hftune.tasks.classification.prepare_classification import (
    ClassificationData,
    prepare_classification,
)
from hftune.tasks.classification.report_classification import (
    classification_scores,
    classification_sections,
    render_scores,
)
from hftune.training.progressive import ProgressiveTrainer
from hftune.training.progressive_results import SUMMARY
from hftune.training.report_progressive import ProgressiveReport, write_progressive_report
from hftune.utils.files import write_json
from hftune.utils.recipes import run_recipe
from hftune.utils.terminal import is_main_process, say

TITLE = "Progressive training"


def main(argv: Sequence[str] | None = None) -> ProgressiveTrainer:
    """Runs the recipe; returns its trainer.

    Args:
        argv (sequence of str, *optional*): Arguments, defaults to the command line's.
    """
    settings = parse(
        ClassificationDataArguments,
        ClassificationModelArguments,
        ProgressiveArguments,
        StageArguments,
        StagedTrainingArguments,
        TrackingArguments,
        argv=argv,
        description=__doc__,
    )
    data_args, model_args, progressive, staging, args, tracking = settings.values
    output_dir = Path(args.output_dir)
    if model_args.pretrained is None and args.learning_rate < 2e-4:
        say(
            f"A new model learns little with --learning_rate {args.learning_rate:g}: about 1e-3 "
            "suits it; a pretrained one (--pretrained) wants the default.",
            style="yellow",
        )

    with recorded_run(settings, args, tracking, "classification") as (record, callbacks):
        callbacks.append(ProgressiveReport(TITLE))

        # 1. Data: read, checked, split and tokenised once; a stage is a selection of rows
        with record.timed("data"):
            data = prepare_classification(data_args, model_args, seed=args.data_seed)
        record.update(data=data.describe())

        # 2. Model; a new one begins with weights of the seed
        model = build_model(
            model_args,
            label_names=data.label_names,
            tokenizer=data.tokenizer,
            max_length=data.max_length,
            seed=args.seed,
        )

        def evaluator(split):
            return ClassificationEvaluator(
                split, data.label_names, data.collator, args.per_device_eval_batch_size
            )

        # 3. Training, stage by stage
        trainer = ProgressiveTrainer(
            model,
            args,
            progressive=progressive,
            staging=staging,
            train_dataset=data.train,
            sample_keys=data.keys,
            sample_labels=data.labels("train"),
            score_bounds=(0.0, 1.0),
            plan_settings={"pretrained": model_args.pretrained},
            data_collator=data.collator,
            processing_class=data.tokenizer,
            evaluator=evaluator(data.validation),
            callbacks=callbacks,
            data_fingerprint=data.fingerprint,
        )
        with record.timed("training"):
            trainer.train()
        trainer.save_model(str(output_dir / "model"))

        # 4. Scores on the test samples, beside simple baselines
        test = evaluator(data.test)
        with record.timed("evaluation"):
            measured = {f"test_{name}": value for name, value in test(trainer).items()}
        if is_main_process():
            scores = classification_scores(test, _baselines(data))
            write_json(output_dir / "scores.json", scores)
            record.update(results=scores["summary"])
            trainer.log(measured)  # into the record and its mirrors
            register_best_model(record, tracking, trainer, output_dir / "model", measured)
            record.finish()
            sections = classification_sections(test, data.texts("test"), scores["baselines"])
            report = write_progressive_report(trainer, TITLE, sections)
            say(render_scores(scores))
            say(f"Stages: {output_dir / SUMMARY}\nScores: {output_dir / 'scores.json'}")
            say(f"Report: {report}")
    return trainer


def _baselines(data: ClassificationData) -> dict[str, dict[str, float]]:
    return baseline_scores(
        data.texts("train"),
        data.labels("train"),
        data.texts("test"),
        data.labels("test"),
        len(data.label_names),
    )


if __name__ == "__main__":
    run_recipe(main)
