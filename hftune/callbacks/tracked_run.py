"""What a recipe needs to have its run recorded: a start, its trainer's callbacks, the model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from ..configuration.resolve import Resolved
from ..configuration.tracking_arguments import TrackingArguments
from ..tracking.index import plain
from ..tracking.query import find_run
from ..tracking.run_record import RunRecord
from ..tracking.tracker import ExperimentTracker
from ..utils.terminal import say
from .model_info import model_config, model_type, unwrapped
from .registry import (
    derived_name,
    describe_training,
    evaluated_performance,
    register_run_model,
    step_of_model,
)
from .tracking import ExperimentTrackingCallback

__all__ = ["recorded_run", "register_best_model", "run_callbacks", "start_run"]


@contextlib.contextmanager
def recorded_run(
    settings: Resolved,
    args: TrainingArguments,
    arguments: TrackingArguments,
    task: str,
    wandb_names: Mapping[str, str] | None = None,
) -> Iterator[tuple[RunRecord, list[TrainerCallback]]]:
    """Begins a recipe: says what its settings are and starts the record of its run.

    Args:
        settings (Resolved): Of :func:`~hftune.configuration.resolve.parse`.
        args (TrainingArguments): The training settings among them.
        arguments (TrackingArguments): The tracking settings among them.
        task (str): For example ``"aurora"``.
        wandb_names (mapping, *optional*): Second names of values in Weights & Biases.

    Yields:
        The record, and the callbacks that its trainers get.
    """
    if settings.is_given("wandb_project") and not settings.is_given("wandb"):
        settings = settings.changed("wandb_project is given", wandb="auto")
    say(settings.show(changed_only=True))
    with start_run(
        args.output_dir,
        arguments,
        task=task,
        configuration=settings.as_dict(),
        seeds={"seed": args.seed, "data_seed": args.data_seed},
    ) as record:
        yield record, run_callbacks(record, arguments, wandb_names)


def start_run(
    output_dir: str | os.PathLike[str],
    arguments: TrackingArguments,
    *,
    task: str,
    configuration: Mapping[str, Any],
    seeds: Mapping[str, int] | None = None,
) -> RunRecord:
    """Starts the record of a recipe's run, in the experiment store unless that is turned off.

    Args:
        output_dir (path): The run's folder.
        arguments (TrackingArguments): Settings.
        task (str): For example ``"aurora"``.
        configuration (mapping): The resolved settings with their sources.
        seeds (mapping, *optional*): Name to seed.

    Returns:
        The record, a context manager that ends with the run.

    Raises:
        ConfigurationError: If a run that is alive has the folder, or there is no such parent run.
        StoreError: If a parent is named and the store cannot be reached.
    """
    texts = {"description": arguments.experiment_description, "tags": arguments.tags}
    if arguments.tracking == "off":
        return RunRecord.start(
            output_dir,
            task=task,
            configuration=configuration,
            seeds=seeds,
            name=arguments.experiment_name or os.path.basename(os.path.abspath(output_dir)),
            **texts,
        )
    tracker = ExperimentTracker()
    parent = arguments.parent_run
    return tracker.start(
        output_dir,
        name=arguments.experiment_name,
        task=task,
        configuration=configuration,
        seeds=seeds,
        parent_run=parent and find_run(tracker.store, parent).id,
        **texts,
    )


def run_callbacks(
    record: RunRecord,
    arguments: TrackingArguments,
    wandb_names: Mapping[str, str] | None = None,
) -> list[TrainerCallback]:
    """Returns the callbacks that log a training into the record and its mirrors.

    Args:
        record (RunRecord): Of :func:`start_run`.
        arguments (TrackingArguments): Settings.
        wandb_names (mapping, *optional*): Second names of values in Weights & Biases.

    Raises:
        ConfigurationError: If Weights & Biases is asked for and is not installed.
    """
    callbacks: list[TrainerCallback] = [ExperimentTrackingCallback(record)]
    if arguments.wandb != "off":
        from .wandb_mirror import WandbCallback

        callbacks.append(
            WandbCallback(
                arguments.wandb_project,
                record.values["name"],
                tags=arguments.tags,
                notes=arguments.experiment_description or None,
                config=plain(record.values["configuration"]),
                mode=arguments.wandb,
                run_id=record.values.get("wandb_run_id"),
                on_run_id=lambda run_id: record.update(wandb_run_id=run_id),
                also_as=wandb_names,
            )
        )
    return callbacks


def register_best_model(
    record: RunRecord,
    arguments: TrackingArguments,
    trainer: Trainer,
    folder: str | os.PathLike[str],
    scores: Mapping[str, float],
) -> str | None:
    """Registers the model that a recipe saved at its end, unless that is turned off.

    Args:
        record (RunRecord): Of :func:`start_run`.
        arguments (TrackingArguments): Settings.
        trainer (Trainer): Trained, its best model loaded.
        folder (path): Where the model was saved.
        scores (mapping): What the recipe measured, beside the validation's metrics.

    Returns:
        The model's id; None where it was not registered, and in every process but the first.
    """
    if arguments.tracking == "off" or not arguments.register_model:
        return None
    args, state = trainer.args, trainer.state
    model = unwrapped(trainer.model)
    step, _ = step_of_model(args, state)
    return register_run_model(
        record,
        None,
        folder,
        arguments.registered_name or derived_name(record, args),
        {**evaluated_performance(state, step), **scores},
        architecture=model_type(model),
        checkpoint=getattr(model_config(model), "_name_or_path", "") or None,
        training_info=describe_training(args, state),
        step=step,
    )
