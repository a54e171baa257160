"""A small progressive training, for tests and the kill harness."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_run
import staged_run

from hftune.configuration.stage_arguments import ProgressiveArguments, StageArguments
from hftune.configuration.staged_training_arguments import StagedTrainingArguments
from hftune.training.progressive import ProgressiveTrainer


class Resampled(small_run.Evaluate):
    """The error, and what it would have been on other samples."""

    def __call__(self, trainer) -> dict[str, float]:
        data = small_run.SmallData(noise=0.0)
        batch = [data[i] for i in range(40)]
        x, target = (torch.tensor(np.stack([b[k] for b in batch])) for k in ("x", "target"))
        training = trainer.model.training
        trainer.model.eval()
        with torch.no_grad():
            output = trainer.model.head(trainer.model.norm(trainer.model.body(x)))
        trainer.model.train(training)
        self.errors = ((output - target) ** 2).mean(1).double().numpy()
        return {"error": float(self.errors.mean())}

    def bootstrap(self) -> np.ndarray:
        drawn = np.random.default_rng(0).integers(0, 40, (200, 40))
        return self.errors[drawn].mean(1)


def make_trainer(
    output_dir, progressive=None, staging=None, callbacks=None, hungry=False, **settings
):
    defaults = dict(
        output_dir=str(output_dir),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=2,
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.manual_seed(0)
    return ProgressiveTrainer(
        staged_run.Hungry() if hungry else small_run.SmallModel(),
        StagedTrainingArguments(**{**defaults, **settings}),
        train_dataset=small_run.SmallData(),
        progressive=ProgressiveArguments(**{"step_size": 0.3, **(progressive or {})}),
        staging=StageArguments(**(staging or {})),
        sample_labels=[i % 3 for i in range(small_run.SAMPLES)],
        evaluator=Resampled(),
        callbacks=callbacks,
    )


def outcome(output_dir) -> dict:
    """Everything that must not depend on how often the run was interrupted."""
    found = staged_run.outcome(output_dir)
    for stage in found.values():
        del stage["result"]["resources"]
    for path in sorted(Path(output_dir).glob("stage_*/score_replicates.npy")):
        found[path.parent.name]["replicates"] = np.load(path, allow_pickle=False).tolist()
    return found


def run(output_dir: str | Path, settings: dict) -> None:
    """A run from start to end; ``kill`` as in :func:`staged_run.arm`."""
    settings = dict(settings)
    kill = settings.pop("kill", None)
    trainer = make_trainer(output_dir, **settings)
    if kill:
        staged_run.arm(trainer, kill)
    trainer.train()
    trainer.end()
