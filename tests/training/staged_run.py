"""A small run in three stages, for tests of the engine; also a script:

python staged_run.py OUTPUT_DIR ['{"setting": value, "kill": "journal:2"}']
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_run

from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.stage_arguments import StageArguments
from hftune.training import plan, saving, stage_weights, stages
from hftune.training.stages import StagedTrainer, StageSpec
from hftune.utils.recipes import run_recipe


class Part(small_run.SmallData):
    """The first samples."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples

    def __len__(self) -> int:
        return self.samples


def specs(sizes=(20, 40, 75), **arguments) -> list[StageSpec]:
    return [
        StageSpec(f"part_{{number}}_{n}", Part(n), f"{n} samples", arguments, key=str(n))
        for n in sizes
    ]


class Hungry(small_run.SmallModel):
    """A model whose device has room for three samples at a time."""

    def forward(self, x, target):
        if self.training and len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x, target)


def make_trainer(
    output_dir, stage_specs=None, staging=None, callbacks=None, hungry=False, **settings
):
    defaults = dict(
        output_dir=str(output_dir),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.01,
        logging_steps=2,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        disable_tqdm=True,
        use_cpu=True,
    )
    torch.manual_seed(0)
    return StagedTrainer(
        Hungry() if hungry else small_run.SmallModel(),
        HFTuneArguments(**{**defaults, **settings}),
        stages=specs() if stage_specs is None else stage_specs,
        staging=StageArguments(**(staging or {})),
        evaluator=small_run.Evaluate(),
        callbacks=callbacks,
    )


def outcome(output_dir) -> dict:
    """Everything of a finished run that must not depend on how often it was interrupted."""
    root = Path(output_dir)
    journal = json.loads((root / "stages.json").read_text())
    times = ("_runtime", "_per_second")
    found = {}
    for name, entry in journal["stages"].items():
        assert entry["status"] == "done"
        metrics = json.loads((root / name / "training_metrics.json").read_text())
        result = {k: v for k, v in entry["result"].items() if k not in ("attempts", "seconds")}
        weights = {
            str(p.relative_to(root)): p.read_bytes().hex()
            for p in sorted((root / name / "checkpoints").glob("*/model.safetensors"))
        }
        log = [
            {k: v for k, v in line.items() if not k.endswith(times)}
            for line in metrics["log_history"]
            if "train_runtime" not in line
        ]
        found[name] = {"result": result, "weights": weights, "log": log}
    return found


def arm(trainer: StagedTrainer, point: str) -> None:
    """Has this process killed at a point of stage N: ``weights:N`` (the stage is trained, its best
    model not written), ``sealed:N`` (before the best model gets its name), ``journal:N`` (before
    the journal says done), ``rename:N`` (in the journal's rename), ``begin:N`` (before stage N),
    ``between:N`` (after stage N),
    ``prune:N`` (its checkpoints are being deleted), ``step:N:K`` (in step K), ``save:N:K`` (in the
    save of step K, before the manifest), ``evaluation:N:K``.
    """
    kind, number, *step = point.split(":")

    def here() -> bool:
        stage = trainer._stage
        if stage is None or stage.number != int(number):
            return False
        return not step or trainer.state.global_step == int(step[0])

    def kill_at(owner, name, condition=here):
        original = getattr(owner, name)

        def killed(*args, **kwargs):
            if condition(*args, **kwargs) if condition is not here else here():
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, killed)

    def journal_says_done(path, value, *args, **kwargs) -> bool:
        if Path(path).name != "stages.json":
            return False
        name = trainer.plan.stages[int(number) - 1].name
        return (
            Path(path).name == "stages.json"
            and value["stages"].get(name, {}).get("status") == "done"
        )

    if kind == "weights":
        kill_at(trainer, "_save_weights", lambda folder: here() and folder.name == "best_model")
    elif kind == "sealed":
        kill_at(
            stage_weights, "sync_folder", lambda folder: here() and trainer.state.global_step > 0
        )
    elif kind == "journal":
        kill_at(plan, "write_json", journal_says_done)
    elif kind == "rename":
        from hftune.utils import files

        original = os.replace

        def replace(source, target):
            if Path(target).name == "stages.json" and trainer.__dict__.get("journal"):
                value = trainer.journal.values
                if journal_says_done(target, value):
                    os.kill(os.getpid(), signal.SIGKILL)
            original(source, target)

        files.os.replace = replace
    elif kind in ("begin", "between"):
        begun = int(number) + (kind == "between")
        kill_at(trainer, "_run_stage", lambda stage, *rest: stage.number == begun)
    elif kind == "prune":
        kill_at(
            stages.shutil,
            "rmtree",
            lambda folder, **more: (
                Path(folder).name.startswith("checkpoint-")
                and trainer.journal.is_done(trainer.plan.stages[int(number) - 1].name)
                and not trainer.journal.status(trainer.plan.stages[-1].name) == "done"
            ),
        )
    elif kind == "step":
        kill_at(trainer, "floating_point_ops")
    elif kind == "save":
        kill_at(saving, "seal_checkpoint")
    elif kind == "evaluation":
        kill_at(trainer, "evaluate")
    else:
        raise ValueError(point)


def run(output_dir: str | Path, settings: dict) -> None:
    """A run from start to end; ``kill`` and ``stop`` say what happens to it."""
    settings = dict(settings)
    kill, stop = settings.pop("kill", None), settings.pop("stop", None)
    trainer = make_trainer(output_dir, **settings)
    if kill:
        arm(trainer, kill)
    if stop:
        number, step = stop
        original, sent = trainer.floating_point_ops, []

        def signalled(inputs):
            if trainer._stage.number == number and trainer.state.global_step == step and not sent:
                sent.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
            return original(inputs)

        trainer.floating_point_ops = signalled
    trainer.train()
    trainer.end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_recipe(lambda: run(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))
