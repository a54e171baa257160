"""The Trainer that all tasks share: a `transformers.Trainer` whose runs can be trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from ..callbacks.gradient_health import GradientHealthCallback
from ..callbacks.plugins import load_callbacks
from ..callbacks.progress import HftuneProgressCallback
from ..configuration.arguments import HFTuneArguments
from ..utils.errors import ConfigurationError
from .averaging import WeightAverage
from .durable import DurableRuns
from .optimizers import set_learning_rates

# Each process has the whole gradient of every parameter.
_WHOLE_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

__all__ = ["Evaluator", "HFTuneMixin", "HFTuneTrainer"]


class Evaluator(Protocol):
    """What scores a model during training.

    Attributes:
        primary_metric (str): The metric that chooses the best model, without ``eval_``.
        greater_is_better (bool): Its direction.
    """

    primary_metric: str
    greater_is_better: bool

    def __call__(self, trainer: Trainer) -> Mapping[str, float]:
        """Returns metrics by name, the same in every process of a run (each of them calls it)."""
        ...


class HFTuneMixin(DurableRuns):
    """What hftune adds to a Trainer class: ``class MyTrainer(HFTuneMixin, Seq2SeqTrainer)``.

    - The loss of a model is a mean over its batch, and is treated as one: dividing by the number of
      accumulation steps and not by a count of labels, unless the model's class says
      ``accepts_loss_kwargs = True``. (The Trainer guesses from ``**kwargs`` in ``forward``, and
      multiplies loss and gradients by steps and processes where the guess is wrong.)
    - The parts of a loss that a model returns as ``losses`` (scalars by name) are logged as
      ``loss_<name>``, and what it returns as ``measures`` by its names, averaged over the logging
      window and all processes.
    - An ``evaluator`` adds its metrics to each evaluation, and its primary metric chooses the best
      model where ``metric_for_best_model`` is left open. Without an ``eval_dataset`` it is the
      whole evaluation.
    - ``args.ema_decay``: a moving average of the weights is what is evaluated, what the best model
      is, and what the model holds after training.
    - ``args.learning_rate_patterns``: learning rates by parameter name.
    - ``args.callbacks``: callbacks of installed packages by name, before those of ``callbacks=``:
      what they add to the logs, the tracking callback records.
    - Gradient health, a progress bar that is right after a resume, and all of
      :class:`~hftune.training.durable.DurableRuns`: checkpoints that are whole, exact resume,
      signals.

    Args:
        model (torch.nn.Module): Returns a loss from its batch.
        args (HFTuneArguments): Settings.
        evaluator (Evaluator, *optional*): Scores the model.
        data_fingerprint (str, *optional*): Says which data this run trains on; a resume with
            another one is an error. Defaults to the number of training samples alone.
        **kwargs: As for the Trainer class.

    Raises:
        ConfigurationError: If the arguments are not hftune's, or plain ``python`` was started on a
            machine with several GPUs.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: HFTuneArguments | None = None,
        *,
        evaluator: Evaluator | None = None,
        data_fingerprint: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, HFTuneArguments):
            raise ConfigurationError(
                f"args: found {type(args).__name__}, expected HFTuneArguments(output_dir=...)"
            )
        if args.n_gpu > 1:
            raise ConfigurationError(
                f"one process sees {args.n_gpu} GPUs; DataParallel is not supported: start the run "
                "with 'accelerate launch', or set CUDA_VISIBLE_DEVICES to one of them"
            )
        self.evaluator = evaluator
        self.evaluates_by_loss = kwargs.get("eval_dataset") is not None
        if evaluator is not None:
            if isinstance(kwargs.get("eval_dataset"), dict):
                raise ConfigurationError(
                    "found an evaluator and a dict of evaluation datasets, expected one of them"
                )
            if args.metric_for_best_model in (None, "loss"):
                args.metric_for_best_model = evaluator.primary_metric
                args.greater_is_better = evaluator.greater_is_better
            if not self.evaluates_by_loss:
                kwargs["eval_dataset"] = []
        plugins = load_callbacks(args.callbacks, args.callback_errors)
        kwargs["callbacks"] = [*plugins, *(kwargs.get("callbacks") or [])]
        self.average: WeightAverage | None = None
        self._parameter_count: int | None = None
        self._named_parameters: list[tuple[str, nn.Parameter]] | None = None
        super().__init__(model=model, args=args, **kwargs)
        core = self.accelerator.unwrap_model(self.model)
        if not hasattr(core, "accepts_loss_kwargs"):
            self.model_accepts_loss_kwargs = False
        # The Trainer believes this only of models with "labels" or "return_loss" in their forward.
        self.can_return_loss = True
        self._start_durable(data_fingerprint)
        self.gradient_health = self._find_gradient_health(args)
        self.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        if not any(isinstance(c, HftuneProgressCallback) for c in self.callback_handler.callbacks):
            self.add_callback(HftuneProgressCallback())

    def _find_gradient_health(self, args: HFTuneArguments) -> GradientHealthCallback | None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, GradientHealthCallback):
                callback.measured_by_trainer = True
                return callback
        if args.gradient_health == "off":
            return None
        callback = GradientHealthCallback(
            policy=args.gradient_health,
            spike_policy=args.gradient_spikes,
            spike_factor=args.gradient_spike_factor,
            followed=args.gradient_modules,
        )
        callback.measured_by_trainer = True
        self.add_callback(callback)
        return callback

    # The step

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # The one place between a complete gradient and its clipping.
        self._clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = self._measure_and_clip

    @torch.no_grad()
    def _measure_and_clip(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        health = self.gradient_health
        if health is None:
            return self._clip(parameters, max_norm, norm_type=norm_type)
        if self._named_parameters is None:
            self._named_parameters = [
                (name, p) for name, p in self.model.named_parameters() if p.requires_grad
            ]
        if norm_type != 2 or self.accelerator.distributed_type not in _WHOLE_GRADIENTS:
            scaler = self.accelerator.scaler
            health.measure(self._named_parameters, scaler.get_scale() if scaler else 1.0)
            return self._clip(parameters, max_norm, norm_type=norm_type)
        self.accelerator.unscale_gradients()
        total = health.measure(self._named_parameters)
        if total is not None:
            # What clip_grad_norm_ does, with the norms that are already there: to the bit the same,
            # since below the limit it multiplies by 1.
            factor = max_norm / (total + 1e-6)
            if not float(factor) >= 1:
                torch._foreach_mul_(
                    [p.grad for _, p in self._named_parameters if p.grad is not None], factor
                )
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if model.training and isinstance(outputs, Mapping):
            parts = {f"loss_{name}": v for name, v in (outputs.get("losses") or {}).items()}
            if parts := parts | dict(outputs.get("measures") or {}):
                self.loss_window.add_parts(parts)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.loss_window.add_loss(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.loss_window.close(self.state.global_step, self.accelerator))
            if self.gradient_health is not None:
                logs.update(self.gradient_health.log_values(self.state.global_step))
        if "train_loss" in logs:
            # Over the whole run; the Trainer divides by the steps of this session.
            logs["train_loss"] = self.loss_window.mean(self.state.global_step)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        # The Trainer counts the model's parameters anew for each micro-batch.
        name = getattr(self.model, "main_input_name", None)
        if name not in inputs:
            return 0
        if self._parameter_count is None:
            self._parameter_count = sum(p.numel() for p in self.model.parameters())
        return 6 * inputs[name].numel() * self._parameter_count

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        new = self.optimizer is None
        optimizer = (
            super().create_optimizer(model) if model is not None else super().create_optimizer()
        )
        if new and self.args.learning_rate_patterns:
            set_learning_rates(optimizer, model or self.model, self.args.learning_rate_patterns)
        return optimizer

    # Evaluation

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Has the moving average in the model's place, if there is one."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.averaged_weights():
            return super().evaluate(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if hasattr(eval_dataset, "__len__") and not len(eval_dataset):
            return None  # the evaluator has data of its own; sampling by length fails on none
        return super()._get_eval_sampler(eval_dataset)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        if self.evaluator is None or metric_key_prefix != "eval":
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if len(dataloader) == 0:
            output = EvalLoopOutput(None, None, {}, num_samples=0)
        else:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        for name, value in self.evaluator(self).items():
            key = name if name.startswith("eval_") else f"eval_{name}"
            output.metrics[key] = float(value)
        return output


class HFTuneTrainer(HFTuneMixin, Trainer):
    """A `transformers.Trainer` with everything of :class:`HFTuneMixin`.

    Example:
        >>> trainer = HFTuneTrainer(
        ...     model, HFTuneArguments(output_dir="out"), train_dataset=samples, evaluator=evaluator
        ... )
        >>> trainer.train()  # goes on from the newest whole checkpoint in out/, if there is one
        >>> trainer.save_model("out/model")
    """
