"""The best model of a Trainer's run in the model registry."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn
from transformers import TrainerCallback
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration.arguments import HFTuneArguments
from ..tracking import exits, index
from ..tracking.json_lines import from_number, to_number
from ..tracking.registry import ModelRegistry
from ..tracking.run_record import RunRecord
from ..utils.errors import ConfigurationError, HftuneError
from ..utils.files import read_json, write_json
from ..utils.terminal import console, is_main_process
from .best_metrics import add_rouge_combined
from .model_info import is_sharded, model_config, model_type, unwrapped
from .tracking import evaluation_metrics, record_of

__all__ = [
    "ModelRegistryCallback",
    "derived_name",
    "describe_training",
    "evaluated_performance",
    "register_again",
    "register_run_model",
    "step_of_model",
]

_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, ADAPTER_SAFE_WEIGHTS_NAME)
_REQUEST = "registration.json"  # what register_again reads


class ModelRegistryCallback(TrainerCallback):
    """Registers the best model of any `transformers.Trainer` when its training ends well.

    That is the model in memory: of the best evaluation with ``load_best_model_at_end=True``, of the
    last step without. It is saved together with its tokenizer or processor. Where the processes of
    a run share its weights out (FSDP, DeepSpeed ZeRO-3) it is taken from the checkpoint on disk, if
    that has them whole.

    A registration that fails is reported with the command that tries again; it never fails the run.
    With an :class:`~hftune.callbacks.tracking.ExperimentTrackingCallback` before it, model and run
    know each other.

    Args:
        registry (ModelRegistry, *optional*): Where to. Defaults to a ``ModelRegistry()``.
        name (str, *optional*): Runs that share it make versions of one model. Defaults to the run's
            name.
        architecture (str, *optional*): Defaults to the configuration's ``model_type``, else to the
            name of the model's class.
        checkpoint (str, *optional*): What training began with. Defaults to the path, or name on the
            Hub, that the model was loaded from.

    Attributes:
        model_id (str or None): Id of the model that was registered last.

    Example:
        >>> callbacks = [ExperimentTrackingCallback(), ModelRegistryCallback(name="kobart")]
        >>> trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=callbacks)
        >>> trainer.train()
        >>> ModelRegistry().folder(callbacks[1].model_id)
    """

    def __init__(
        self,
        registry: ModelRegistry | None = None,
        name: str | None = None,
        *,
        architecture: str | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self.registry, self.name = registry, name
        self.architecture, self.checkpoint = architecture, checkpoint
        self.model_id: str | None = None

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        record = record_of(args.output_dir)
        stopped = exits.stopping_signal() and state.global_step < state.max_steps
        if record is not None:
            stopped = stopped or record.values["status"] in ("killed", "preempted")
        if stopped or not state.is_world_process_zero:
            return
        try:
            self._register(record, args, state, model, processing_class)
        except Exception as error:
            _say(record, f"the model is not registered: {error}")

    def _register(
        self, record: RunRecord | None, args: Any, state: Any, model: nn.Module, processor: Any
    ) -> None:
        step, is_best = step_of_model(args, state)
        if is_sharded(model):
            last = Path(args.output_dir, f"checkpoint-{step}")
            folder = Path(state.best_model_checkpoint) if is_best else last
            _check_weights(folder)
        else:
            if isinstance(args, HFTuneArguments) and args.ema_decay and not is_best:
                raise ConfigurationError(
                    "the moving average takes the place of the weights after training only: set "
                    "load_best_model_at_end, or save the model then and call register_run_model"
                )
            folder = Path(args.output_dir, "unregistered_model")
            _save(unwrapped(model), processor, folder)
        self.model_id = register_run_model(
            record,
            self.registry,
            folder,
            self.name or derived_name(record, args),
            evaluated_performance(state, step),
            architecture=self.architecture or model_type(model),
            checkpoint=self.checkpoint or getattr(model_config(model), "_name_or_path", "") or None,
            training_info=describe_training(args, state),
            step=step,
            config={"training": args.to_dict()} if record is None else None,
        )
        if self.model_id is not None and not is_sharded(model):
            shutil.rmtree(folder)


def register_run_model(
    record: RunRecord | None,
    registry: ModelRegistry | None,
    folder: str | os.PathLike[str],
    name: str,
    performance: Mapping[str, float],
    *,
    architecture: str,
    checkpoint: str | None = None,
    training_info: Mapping[str, Any] | None = None,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> str | None:
    """Registers a saved model as what a run made, and notes that in the run's record.

    A registration that fails is reported with the command that tries again; nothing is raised. The
    same content is the same version, however often it is registered.

    Args:
        record (RunRecord, *optional*): The run, also after its end.
        registry (ModelRegistry, *optional*): Defaults to a ``ModelRegistry()``.
        folder (path): Of the saved model, such as ``OUTPUT_DIR/model``. Its files are copied.
        name (str): Of the model; see :meth:`ModelRegistry.register_model`.
        performance (mapping): Metrics by name.
        architecture (str): For example ``"kobart"``.
        checkpoint (str, *optional*): What training began with.
        training_info (mapping, *optional*): Anything about the training.
        step (int, *optional*): Optimizer steps that were done.
        config (mapping, *optional*): The settings. Defaults to those that the run was given; its
            record has the defaults too.

    Returns:
        The model's id; None where that failed, and in every process but the first.
    """
    if not is_main_process():
        return None
    folder = Path(folder)
    values = {} if record is None else record.values
    facts = {
        "name": name,
        "architecture": architecture,
        "checkpoint": checkpoint,
        "config": index.given(values.get("configuration", {})) if config is None else config,
        "performance": performance,
        "training_info": training_info or {},
        "experiment_id": values.get("experiment_id"),
        "stage": values["stages"][-1] if values.get("stages") else None,
        "step": step,
        "data_fingerprint": values.get("data", {}).get("fingerprint"),
        "metric_directions": {
            metric: greater
            for metric, greater in values.get("metric_directions", {}).items()
            if metric in performance
        },
    }
    try:
        model_id = _register(record, registry or ModelRegistry(), folder, facts)
    except Exception as error:
        again = _keep_request(record, folder, facts)
        _say(record, f"the model in {folder} is not registered: {error}.{again}")
        return None
    (folder.parent / _REQUEST).unlink(missing_ok=True)
    return model_id


def register_again(output_dir: str | os.PathLike[str]) -> str:
    """Repeats the registration that failed in a run's folder.

    Args:
        output_dir (path): The run's folder.

    Returns:
        The model's id.

    Raises:
        ConfigurationError: If there is nothing to repeat there, or it is still wrong.
    """
    path = Path(output_dir, _REQUEST)
    try:
        request = read_json(path)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{output_dir}: no registration failed there (found no {_REQUEST})"
        ) from None
    facts = request["facts"]
    facts["performance"] = {key: to_number(value) for key, value in facts["performance"].items()}
    try:
        record = RunRecord.open(output_dir)
    except OSError:
        record = None
    model_id = _register(record, ModelRegistry(), path.parent / request["folder"], facts)
    path.unlink()
    return model_id


def _register(
    record: RunRecord | None, registry: ModelRegistry, folder: Path, facts: Mapping[str, Any]
) -> str:
    model_id = registry.register_model(file_path=folder, **facts)
    info = registry.get_model_info(model_id)
    what = {"model_id": model_id, "name": info["name"], "version": info["version"]}
    if record is not None:
        path = {"checkpoint_path": str(info["file_path"])}
        record.update(model_info={**what, **path})
        record.log_event("model", facts["step"], **what)
        if record.background is None and record.experiment_id is not None:
            index.catch_up(registry.store, record.folder)  # a run that another process wrote
    console().print(
        f"model registry: {what['name']}:{what['version']} ({model_id})",
        markup=False,
        soft_wrap=True,
    )
    return model_id


def _keep_request(record: RunRecord | None, folder: Path, facts: Mapping[str, Any]) -> str:
    """Notes what was to be registered; returns how to try again."""
    output_dir = folder.parent
    try:
        numbers = {key: from_number(float(value)) for key, value in facts["performance"].items()}
        request = {"folder": folder.name, "facts": {**facts, "performance": numbers}}
        write_json(output_dir / _REQUEST, request)
    except (OSError, TypeError, ValueError):
        return " Try again with hftune.callbacks.registry.register_run_model"
    command = shlex.join([sys.executable, "-m", "hftune.callbacks.registry", str(output_dir)])
    return f" Once that is mended: {command}"


def _say(record: RunRecord | None, message: str) -> None:
    if record is not None:
        record.trouble(f"registry: {message}", message)
    else:
        console().print(f"model registry: {message}", style="yellow", markup=False, soft_wrap=True)


# What there is to register


def _save(model: nn.Module, processor: Any, folder: Path) -> None:
    # In the output folder: /tmp is often small, and a failure leaves it for a second attempt.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
        else:
            save_model(model, str(folder / SAFE_WEIGHTS_NAME))
        if processor is not None:
            processor.save_pretrained(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_weights(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ConfigurationError(
            f"the processes of this run share its weights out, and {folder} does not have them "
            f"whole (expected {SAFE_WEIGHTS_NAME}): save the model in all processes, "
            "trainer.save_model(FOLDER), and call register_run_model"
        )


def derived_name(record: RunRecord | None, args: Any) -> str:
    """Returns the run's name as far as a model can have it.

    Args:
        record (RunRecord, *optional*): The run.
        args (TrainingArguments): Of its trainer.
    """
    run = args.run_name or Path(args.output_dir).resolve().name
    name = run if record is None else record.values.get("name") or run
    return re.sub(r"[^\w .\-]+", "-", name)[:128].strip(" .-_") or "model"


def step_of_model(args: Any, state: Any) -> tuple[int, bool]:
    """Returns the step that the model in memory is of after training, and whether it is the best.

    Args:
        args (TrainingArguments): Of the trainer.
        state (TrainerState): Of the trainer.
    """
    is_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
    return (state.best_global_step if is_best else state.global_step), is_best


def evaluated_performance(state: Any, step: int) -> dict[str, float]:
    """Returns the metrics of the evaluation at a step; the training loss where there was none.

    Args:
        state (TrainerState): Of the trainer.
        step (int): Optimizer steps.
    """
    found = add_rouge_combined(evaluation_metrics(state.log_history, step))
    losses = [logs["train_loss"] for logs in state.log_history if "train_loss" in logs]
    if not found and losses:  # without an evaluation
        found["train_loss"] = losses[-1]
    return found


def describe_training(args: Any, state: Any) -> dict[str, Any]:
    """Returns epochs, steps, batch size, learning rate and seconds of a training.

    Args:
        args (TrainingArguments): Of the trainer.
        state (TrainerState): Of the trainer.
    """
    return {
        "epochs": state.epoch,
        "steps": state.global_step,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "seconds": sum(logs.get("train_runtime", 0.0) for logs in state.log_history),
    }


if __name__ == "__main__":
    try:
        register_again(*sys.argv[1:])
    except (HftuneError, TypeError) as error:
        sys.exit(f"error: {error}")
