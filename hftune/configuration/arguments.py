"""Training settings: `transformers.TrainingArguments` with safer defaults and hftune's own fields.

NOTE: Defaults that differ from `TrainingArguments`, and why.

===============================  ==========  =====================================================
setting                          default     why
===============================  ==========  =====================================================
``logging_nan_inf_filter``       ``False``   the filter logs 0.0 for a loss that is NaN
``logging_steps``                ``10``      500 hides the start of a run, where most of it is lost
``save_total_limit``             ``2``       the newest two and the best are kept, not all
``remove_unused_columns``        ``False``   it deletes the columns that an on-the-fly transform
                                             reads
``ddp_find_unused_parameters``   ``False``   `True` for a `PreTrainedModel` costs a pass a step
``data_seed``                    ``seed``    the order of samples is then a setting of its own
``use_cpu``                      automatic   two CPU processes without it train alone, side by side
===============================  ==========  =====================================================
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments

from ..utils.errors import ConfigurationError
from .plugins import resolve_callbacks

__all__ = ["HFTuneArguments", "redeclare"]

_POLICIES = ("warn", "skip", "stop")


def redeclare(name: str, default: Any, **more: Any) -> Any:
    """Returns a field of `TrainingArguments` with another default and the help text it has.

    Args:
        name (str): Of the field.
        default: What it is by default.
        **more: Further metadata: ``env``, ``aliases``.
    """
    inherited = TrainingArguments.__dataclass_fields__[name]
    return field(default=default, metadata={**inherited.metadata, **more})


@dataclass
class HFTuneArguments(TrainingArguments):
    """Training settings of an hftune run.

    Everything that `transformers.TrainingArguments` has, with the defaults changed that the NOTE at
    the top of this module lists, and:

    Args:
        resume (str): ``"auto"`` continues from the newest whole checkpoint in ``output_dir`` and
            starts anew where there is none, ``"never"`` starts anew, anything else is the folder of
            a checkpoint. Defaults to ``"auto"``.
        allow_resume_changes (bool): Whether a run may continue with settings, data or a number of
            processes that differ from the checkpoint's. Defaults to False.
        ema_decay (float): Decay of the moving average of the weights that is evaluated and saved as
            the best model; 0 turns it off. Early on a smaller decay, ``(1 + step) / (10 + step)``,
            is in effect. Defaults to 0.
        learning_rate_patterns (dict of str to float, *optional*): Learning rates by regular
            expression, searched in the parameter's name; the first that is found wins.
        gradient_health (str): What to do before an optimizer step whose gradients are not finite:
            ``"stop"`` the run, ``"skip"`` the step, ``"warn"`` and step all the same, or ``"off"``.
            Defaults to ``"stop"``.
        gradient_spikes (str): The same for a gradient norm far above its running median:
            ``"warn"``, ``"skip"`` or ``"stop"``. Defaults to ``"warn"``.
        gradient_spike_factor (float): How many times the running median is a spike. Defaults to 10.
        gradient_modules (list of str): Names of modules whose gradient norms are followed for
            themselves, whatever the depth of the others. Defaults to none.
        callbacks (list of str or dict): Callbacks of installed packages, by name, with arguments:
            ``"name"``, ``"name:key=value,key=value"``, ``'name:{"key": value}'``,
            ``{"name": {"key": value}}``, or ``package.module:Class`` in place of the name; see
            :mod:`~hftune.configuration.plugins`. Defaults to none.
        callback_errors (str): What to do when one of these raises in training: ``"stop"`` the run,
            or ``"disable"`` the callback for the rest of it. Defaults to ``"stop"``.
    """

    _section: ClassVar[str] = "training"
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "learning_rate_patterns"]

    # The names that the user's scripts set in the environment.
    learning_rate: float = redeclare("learning_rate", 5e-5, env=["LEARNING_RATE"])
    per_device_train_batch_size: int = redeclare(
        "per_device_train_batch_size", 8, env=["BATCH_SIZE"], aliases=["batch_size"]
    )
    num_train_epochs: float = redeclare("num_train_epochs", 3.0, env=["NUM_EPOCHS"])

    logging_nan_inf_filter: bool = redeclare("logging_nan_inf_filter", False)
    logging_steps: float = redeclare("logging_steps", 10)
    save_total_limit: int | None = redeclare("save_total_limit", 2)
    remove_unused_columns: bool = redeclare("remove_unused_columns", False)
    ddp_find_unused_parameters: bool | None = redeclare("ddp_find_unused_parameters", False)

    resume: str = field(
        default="auto",
        metadata={
            "help": "auto: continue from the newest whole checkpoint in output_dir, if there is "
            "one; never: start anew; or the folder of a checkpoint."
        },
    )
    allow_resume_changes: bool = field(
        default=False,
        metadata={
            "help": "Continue although settings, data or the number of processes differ from the "
            "checkpoint's. The result is then not that of an uninterrupted run."
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay of the moving average of weights that is evaluated and saved as the "
            "best model, for example 0.999; 0 turns it off."
        },
    )
    learning_rate_patterns: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Learning rates by regular expression in parameter names, the first match "
            'wins, for example {"level_agg": 1e-4}.'
        },
    )
    gradient_health: Literal["stop", "skip", "warn", "off"] = field(
        default="stop",
        metadata={"help": "Before a step with gradients that are not finite: stop, skip or warn."},
    )
    gradient_spikes: Literal["warn", "skip", "stop"] = field(
        default="warn",
        metadata={"help": "Before a step whose gradient norm is far above its running median."},
    )
    gradient_spike_factor: float = field(
        default=10.0, metadata={"help": "How many times the running median is a spike."}
    )
    gradient_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Modules whose gradient norms are followed by name, whatever the depth."},
    )
    callbacks: list[Any] = field(
        default_factory=list,
        metadata={
            "help": "Callbacks of installed packages ('hftune callbacks' lists them): NAME, "
            'NAME:KEY=VALUE,KEY=VALUE or NAME:{"KEY": VALUE}; package.module:Class for NAME works '
            "too."
        },
    )
    callback_errors: Literal["stop", "disable"] = field(
        default="stop",
        metadata={
            "help": "When one of these callbacks raises: stop the run, or disable the callback."
        },
    )

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with settings, before anything is constructed.

        Args:
            values (dict): Settings by name; those that are missing are not looked at.
        """
        problems = []
        for name, low, high in (
            ("learning_rate", 0, float("inf")),
            ("per_device_train_batch_size", 1, float("inf")),
            ("per_device_eval_batch_size", 1, float("inf")),
            ("gradient_accumulation_steps", 1, float("inf")),
            ("max_grad_norm", 0, float("inf")),
            ("weight_decay", 0, float("inf")),
            ("dataloader_num_workers", 0, float("inf")),
        ):
            value = values.get(name)
            if value is not None and not low <= value <= high:
                problems.append(f"{name}: found {value}, expected {low} or more")
        ema_decay = values.get("ema_decay", 0.0)
        if not 0 <= ema_decay < 1:
            problems.append(
                f"ema_decay: found {ema_decay}, expected 0 (off) or a number below 1 such as 0.999"
            )
        if values.get("max_steps", -1) <= 0 and values.get("num_train_epochs", 1) <= 0:
            problems.append(
                f"num_train_epochs: found {values['num_train_epochs']}, expected more than 0 "
                "(or set max_steps)"
            )
        if values.get("gradient_spike_factor", 10.0) <= 1:
            problems.append(
                f"gradient_spike_factor: found {values['gradient_spike_factor']}, expected more "
                "than 1"
            )
        for pattern, rate in (values.get("learning_rate_patterns") or {}).items():
            try:
                re.compile(pattern)
            except re.error as error:
                problems.append(
                    f"learning_rate_patterns: '{pattern}' is no regular expression: {error}"
                )
            if not isinstance(rate, (int, float)) or not rate >= 0:
                problems.append(
                    f"learning_rate_patterns: '{pattern}' has the rate {rate!r}, expected a number "
                    "of 0 or more"
                )
        if values.get("resume_from_checkpoint") and values.get("resume", "auto") != "auto":
            problems.append(
                f"resume: found both --resume {values['resume']} and --resume_from_checkpoint "
                f"{values['resume_from_checkpoint']}; give one of them"
            )
        if values.get("logging_nan_inf_filter"):
            problems.append(
                "logging_nan_inf_filter: it hides a loss that is NaN; leave it false (see "
                "gradient_health for what to do about such steps)"
            )
        if values.get("save_only_model") and values.get("resume", "auto") == "auto":
            problems.append(
                "save_only_model: such checkpoints cannot be resumed; set resume to never"
            )
        save, evaluate = (
            str(getattr(values.get(name), "value", values.get(name)))
            for name in ("save_strategy", "eval_strategy")
        )
        if values.get("load_best_model_at_end") and save != "best" and save != evaluate:
            problems.append(
                f"load_best_model_at_end: needs the same save_strategy and eval_strategy, found "
                f"'{save}' and '{evaluate}'"
            )
        problems += resolve_callbacks(values.get("callbacks") or [])[1]
        return problems

    def __post_init__(self) -> None:
        problems = self.check(self.__dict__)
        for name, known in (
            ("gradient_health", (*_POLICIES, "off")),
            ("gradient_spikes", _POLICIES),
            ("callback_errors", ("stop", "disable")),
        ):
            if getattr(self, name) not in known:
                problems.append(
                    f"{name}: found '{getattr(self, name)}', expected one of {', '.join(known)}"
                )
        if problems:
            raise ConfigurationError(problems)
        if self.resume_from_checkpoint:
            # The Trainer itself never looks at this one; here it means what people expect.
            self.resume = self.resume_from_checkpoint
        if self.data_seed is None:
            self.data_seed = self.seed
        if not self.use_cpu and not torch.accelerator.is_available():
            self.use_cpu = True
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if self.use_cpu and processes > 1 and not torch.distributed.is_initialized():
            # Left to TrainingArguments, ddp_timeout is ignored on CPU.
            torch.distributed.init_process_group(
                self.ddp_backend or "gloo", timeout=timedelta(seconds=self.ddp_timeout)
            )
        super().__post_init__()
        if processes > 1 and self.world_size == 1:
            raise ConfigurationError(
                f"the launcher started {processes} processes but each of them would train alone: "
                "set use_cpu to true for processes on CPU, and look for 'distributed_type: NO' in "
                "the accelerate config"
            )
