#!/usr/bin/env python
r"""Trains a model that ranks images by quality, from tiers (S > A > B > C), scores or comparisons,
and says how sure it is.

On pictures that are degraded in steps, for a first look; nothing to download:

    accelerate launch recipes/ranking.py --config recipes/configs/ranking_quickstart.yaml \
        --output_dir runs/ranking

On images of your own, with DINOv2: `data/images/` and `data/metadata.csv` (image_id, filename,
tier):

    accelerate launch recipes/ranking.py --data-dir data --output-dir runs/art

With tables that are split already, and the settings for the number of images:

    accelerate launch recipes/ranking.py --data-dir data/images \
        --metadata data/train_metadata.csv --val-metadata data/val_metadata.csv \
        --test-metadata data/test_metadata.csv --preset auto --output-dir runs/art

The backbone stays as it is unless --no_freeze_backbone, --unfreeze_last_blocks or --lora_rank say
otherwise: each image then passes it once, its features are kept, and training takes minutes.
Stopped or killed at any moment, the same command goes on where it was.

OUTPUT_DIR then holds `report.html`, `scores.json`, `model/` (for `hftune rank` and
`PairwiseRankingModel.from_pretrained`), `last_model/`, `run.json` and the checkpoints.
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
from hftune.configuration.tracking_arguments import TrackingArguments
from hftune.tasks.ranking.arguments_ranking import (
    RankingDataArguments,
    RankingModelArguments,
    RankingTrainingArguments,
)
from hftune.tasks.ranking.baselines_ranking import simple_baseline
from hftune.tasks.ranking.evaluation_ranking import RankingEvaluator
from hftune.tasks.ranking.prepare_ranking import (
    apply_preset,
    build_model,
    make_images,
    pair_settings,
    prepare_ranking,
)
from hftune.tasks.ranking.report_ranking import (
    ranking_scores,
    render_scores,
    write_ranking_run_report,
)
from hftune.tasks.ranking.trainer_ranking import WANDB_NAMES, RankingTrainer
from hftune.utils.files import write_json
from hftune.utils.recipes import run_recipe
from hftune.utils.seeds import seed_everything
from hftune.utils.terminal import is_main_process, say

TITLE = "Ranking"


def main(argv: Sequence[str] | None = None) -> RankingTrainer:
    """Runs the recipe; returns its trainer.

    Args:
        argv (sequence of str, *optional*): Arguments, defaults to the command line's.
    """
    settings = parse(
        RankingDataArguments,
        RankingModelArguments,
        RankingTrainingArguments,
        TrackingArguments,
        argv=argv,
        description=__doc__,
    )
    data_args, model_args, args, tracking = settings.values
    output_dir = Path(args.output_dir)

    with recorded_run(settings, args, tracking, "ranking", WANDB_NAMES) as (record, callbacks):
        # 1. Data: read, checked and split by image, before there is any pair
        with record.timed("data"):
            data = prepare_ranking(data_args)
        record.update(data=data.describe())
        training = apply_preset(settings, args, len(data.train.table)).as_dict()["training"]
        record.update(configuration={**record.values["configuration"], "training": training})
        pairs = pair_settings(data_args, data)

        # 2. Model; what is new in it begins with weights of the seed
        seed_everything(args.seed)
        model = build_model(model_args, tiers=data.tiers, seed=args.seed)

        # 3. Images: a frozen backbone's features, computed once, or pixels
        def images(split, training=False):
            return make_images(split, model, data_args, args, training=training)

        def evaluator(split):
            return RankingEvaluator(
                images(split),
                split.table.targets,
                split.table.scores,
                split.comparisons,
                tiers=split.table.tiers,
                groups=split.table.groups,
                batch_size=args.per_device_eval_batch_size,
                num_workers=args.dataloader_num_workers,
            )

        with record.timed("features"):
            train_images = images(data.train, training=True)
            validation = evaluator(data.validation)
            test = None if data.test is None else evaluator(data.test)

        # 4. Training
        trainer = RankingTrainer(
            model,
            args,
            images=train_images,
            evaluator=validation,
            callbacks=callbacks,
            data_fingerprint=data.fingerprint,
            **pairs,
        )
        with record.timed("training"):
            trainer.train()
        temperature = trainer.calibrate()
        trainer.save_model(str(output_dir / "model"))

        # 5. Scores on the test images, beside the best single number of an image
        scored, split = (validation, data.validation) if test is None else (test, data.test)
        with record.timed("evaluation"):
            measured = {f"{split.name}_{k}": v for k, v in scored(trainer).items()}
        if is_main_process():
            train = data.train
            baselines = simple_baseline(train.table.paths, train.known_targets(), split.table.paths)
            scores = ranking_scores(
                scored,
                split.table,
                temperature=temperature,
                split=split.name,
                baselines=baselines,
                comparisons=data.all_comparisons,
                images=data.all_images,
            )
            write_json(output_dir / "scores.json", scores)
            record.update(results=scores["summary"])
            trainer.log(measured)  # into the record and its mirrors
            register_best_model(record, tracking, trainer, output_dir / "model", measured)
            record.finish()
            report = write_ranking_run_report(
                output_dir,
                scores,
                scored,
                split.table,
                title=TITLE,
            )
            say(render_scores(scores))
            say(f"Scores: {output_dir / 'scores.json'}\nReport: {report}")
    return trainer


if __name__ == "__main__":
    run_recipe(main)
