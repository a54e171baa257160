"""Gradient norms by module, and what to do before a step that would harm the weights."""

from __future__ import annotations

import collections
import copy
import logging
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.state import GradientState
from torch import nn

from ..utils.errors import ConfigurationError, HftuneError
from ..utils.files import write_json
from ..utils.modules import parameter_name
from .state import StatefulCallback

__all__ = ["GradientHealthCallback", "GradientHealthError", "module_groups"]

logger = logging.getLogger(__name__)

_KEPT_EVENTS = 1000
_SAID_EVENTS = 20


class GradientHealthError(HftuneError):
    """A run that was stopped before a step with unhealthy gradients; the weights are unharmed."""


def module_groups(
    names: Iterable[str], most: int = 24, followed: Sequence[str] = ()
) -> dict[str, str]:
    """Groups parameters by module, as deep as the number of groups allows.

    Args:
        names (iterable of str): Parameter names, ``"encoder.layer.0.attention.weight"``.
        most (int): Most groups that depth alone may make. Defaults to 24.
        followed (sequence of str): Modules that are groups of their own whatever the depth: each is
            one part of a name, or several (``"encoder.level_agg"``). Defaults to none.

    Returns:
        The group of each name.
    """
    modules = {name: parameter_name(name).split(".")[:-1] or ["(top)"] for name in names}
    deepest = max((len(parts) for parts in modules.values()), default=1)
    counts = [len({tuple(parts[:d]) for parts in modules.values()}) for d in range(1, deepest + 1)]
    # The first depth that makes as many groups as are allowed; the names are then shortest.
    depth = 1 + counts.index(max((c for c in counts if c <= most), default=counts[0]))
    groups = {name: ".".join(parts[:depth]) for name, parts in modules.items()}
    for name, parts in modules.items():
        for wanted in followed:
            length = wanted.count(".") + 1
            for end in range(length, len(parts) + 1):
                if ".".join(parts[end - length : end]) == wanted:
                    groups[name] = ".".join(parts[:end])
    return groups


class GradientHealthCallback(StatefulCallback):
    """Watches the gradients of any `transformers.Trainer`.

    Once an optimizer step, after the gradients are complete and before they are clipped, it takes
    the norm of each module's gradient. Two things are unhealthy: a gradient that is not finite
    (also where the loss is), and a norm above ``spike_factor`` times the median of the last steps.
    The policy for each:

    - ``"warn"``: say so, with the modules it comes from, and step all the same;
    - ``"skip"``: the gradients are set to None, which optimizers pass over: weights, momenta and
      weight decay stay as they are, only the learning rate schedule moves on;
    - ``"stop"``: raise :class:`GradientHealthError` before the step. The weights in memory and the
      last checkpoint are as they were.

    With fp16 the loss scaler skips steps whose gradients overflow and lowers its scale; these are
    counted as overflows and left to it.

    It logs ``grad_norm_max`` beside the Trainer's ``grad_norm``, counts of what was unhealthy, and
    writes ``gradient_health.json`` into the output folder: norms by module over the run, counts,
    and each event with the modules it came from.

    Args:
        policy (str): For gradients that are not finite. Defaults to ``"stop"``.
        spike_policy (str): For spikes. Defaults to ``"warn"``.
        spike_factor (float): How many times the running median is a spike. Defaults to 10.
        window (int): Steps in the running median; no spike is seen in the first fifth of it.
            Defaults to 100.
        patience (int): The run stops after this many skipped steps in a row. Defaults to 10.
        followed (sequence of str): Modules to follow by name, see :func:`module_groups`.
            Defaults to none.

    Raises:
        ConfigurationError: If a policy is not known.

    Example:
        >>> trainer = transformers.Trainer(
        ...     model, args, train_dataset=data, callbacks=[GradientHealthCallback(policy="skip")]
        ... )
    """

    state_name = "gradient_health"
    measured_by_trainer = False  # set by a trainer that calls `measure` before it clips

    def __init__(
        self,
        policy: Literal["warn", "skip", "stop"] = "stop",
        spike_policy: Literal["warn", "skip", "stop"] = "warn",
        spike_factor: float = 10.0,
        window: int = 100,
        patience: int = 10,
        followed: Sequence[str] = (),
    ) -> None:
        for value in (policy, spike_policy):
            if value not in ("warn", "skip", "stop"):
                raise ConfigurationError(
                    f"gradient health: found the policy '{value}', expected warn, skip or stop"
                )
        self.policies = {"non_finite": policy, "spike": spike_policy}
        self.spike_factor = spike_factor
        self.patience = patience
        self.followed = tuple(followed)
        self.counts = {"non_finite": 0, "spike": 0, "overflow": 0, "skipped": 0}
        self.events: list[dict[str, Any]] = []
        self._history: collections.deque[float] = collections.deque(maxlen=window)
        self._skipped_in_a_row = 0
        self._step = 0  # the last one that was judged
        self._series: dict[str, list] = {"step": [], "norm": [], "norm_max": []}
        self._module_series: dict[str, list[float]] = {}
        self._window = {"steps": 0, "finite": 0, "norm": 0.0, "norm_max": 0.0}
        self._window_modules: dict[str, float] = {}
        # Of the step at hand.
        self._measured = False
        self.sharded = False  # whether each process has a part of each gradient (FSDP2)
        self._norm = math.nan
        self._parameter_norms = np.zeros(0)
        # Of the model at hand.
        self._model: nn.Module | None = None
        self._optimizer: Any = None
        self._hook: Any = None  # on its forward
        self._names: list[str] = []
        self._groups: list[str] = []
        self._group_of = np.zeros(0, int)
        self._key: tuple[int, ...] = ()

    # What is measured

    @torch.no_grad()
    def measure(self, named: Sequence[tuple[str, nn.Parameter]], scale: float = 1.0) -> Any:
        """Takes the gradient norm of each parameter, and of all.

        Args:
            named (sequence of (str, Parameter)): Parameters with their names.
            scale (float): What the gradients are multiplied with (by a loss scaler).

        Returns:
            The norm of all gradients: a scalar tensor as `torch.nn.utils.clip_grad_norm_` returns
            it, or None where no parameter has a gradient (DeepSpeed keeps them to itself).
        """
        named = [(name, p) for name, p in named if p.grad is not None]
        if not named:
            return None
        gradients = [p.grad for _, p in named]
        self.sharded = hasattr(gradients[0], "device_mesh")
        norms, total = _sharded_norms(gradients) if self.sharded else _norms(gradients)
        self._parameter_norms = norms / scale
        # In float64: the squares of norms that are large but finite do not overflow here.
        self._norm = float(np.sqrt(np.sum(self._parameter_norms**2)))
        self._measured = True
        key = tuple(map(id, (p for _, p in named)))
        if key != self._key:
            self._set_groups([name for name, _ in named])
            self._key = key
        return total

    def _set_groups(self, names: list[str]) -> None:
        self._names = [parameter_name(name) for name in names]
        groups = module_groups(names, followed=self.followed)
        self._groups = list(dict.fromkeys(groups.values()))
        index = {group: i for i, group in enumerate(self._groups)}
        self._group_of = np.array([index[groups[name]] for name in names])

    def _module_norms(self) -> np.ndarray:
        squares = self._parameter_norms**2
        return np.sqrt(np.bincount(self._group_of, squares, len(self._groups)))

    # A trainer that knows nothing of this callback: it is called at the end of each backward pass,
    # through a hook on the model's output, since no event lies between that and the clipping.

    def _on_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled() and GradientState().sync_gradients:
            values = output.values() if isinstance(output, dict) else output
            for value in values if isinstance(values, Iterable) else (values,):
                if isinstance(value, torch.Tensor) and value.requires_grad:
                    value.register_hook(self._on_backward)

    def _on_backward(self, gradient: torch.Tensor) -> None:
        # Queued twice: DDP reduces the gradients in a callback of the same queue, before this one.
        queue = torch.autograd.Variable._execution_engine.queue_callback
        queue(lambda: queue(self._measure_model))

    def _measure_model(self) -> None:
        if self._model is not None and not self._measured:
            scaler = getattr(self._optimizer, "scaler", None)
            self.measure(
                list(self._model.named_parameters()), scaler.get_scale() if scaler else 1.0
            )

    # Events of the trainer

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self._optimizer = optimizer
        self._measured = False
        if not self.measured_by_trainer:
            self._model = model
            if self._hook is not None:
                self._hook.remove()
            self._hook = model.register_forward_hook(self._on_forward)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self._measured:
            return
        self._measured = False
        step = self._step = state.global_step + 1
        kind, median = self._judge()
        if kind is not None:
            self.counts[kind] += 1
            policy = self.policies.get(kind, "leave to the loss scaler")
            event = self._event(step, kind, median, policy)
            self.events = [*self.events, event][-_KEPT_EVENTS:]
            if kind != "overflow":
                self._act(policy, event, args, state, model)
            if policy != "skip":
                self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row = 0
        self._accumulate()

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss) and state.is_world_process_zero:
            logger.warning("step %d: the loss is %s", state.global_step, loss)
        if self.measured_by_trainer:  # it asked for the values before it logged
            return
        values = self.log_values(state.global_step)
        logs.update(values)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(values)

    def on_save(self, args, state, control, **kwargs):
        super().on_save(args, state, control, **kwargs)
        self._write(args, state)

    def on_evaluate(self, args, state, control, **kwargs):
        self._write(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._write(args, state)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    # Judgement

    def _judge(self) -> tuple[str | None, float]:
        enough = len(self._history) >= max(5, (self._history.maxlen or 0) // 5)
        median = statistics.median(self._history) if enough else math.nan
        if not math.isfinite(self._norm):
            scaled = getattr(self._optimizer, "scaler", None) is not None
            return ("overflow" if scaled else "non_finite"), median
        self._history.append(self._norm)
        # Most gradients are 0 where a margin is reached: one that is not is no spike then.
        spike = median > 0 and self._norm > self.spike_factor * median
        return ("spike" if spike else None), median

    def _event(self, step: int, kind: str, median: float, policy: str) -> dict[str, Any]:
        norms = self._module_norms()
        # What is not finite comes first, then by size.
        order = np.argsort(-np.nan_to_num(norms, nan=np.inf, posinf=np.inf), kind="stable")
        bad = np.flatnonzero(~np.isfinite(self._parameter_norms))
        return {
            "step": step,
            "kind": kind,
            "action": policy,
            "norm": self._norm,
            "median": median,
            "worst": [
                {"module": self._groups[i], "norm": float(norms[i])} for i in order[:3].tolist()
            ],
            "parameters": [self._names[i] for i in bad[:5].tolist()],
            "parameter_count": int(bad.size),
        }

    def _act(self, policy: str, event: dict[str, Any], args: Any, state: Any, model: Any) -> None:
        found = describe_event(event)
        if policy == "skip":
            for parameter in model.parameters():
                parameter.grad = None
            self.counts["skipped"] += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= self.patience:
                self._stop(f"{found}; this is skip {self.patience} in a row", args, state)
            found += "; the step is skipped"
        elif policy == "stop":
            self._stop(found, args, state)
        said = self.counts[event["kind"]]
        if state.is_world_process_zero and said <= _SAID_EVENTS:
            if said == _SAID_EVENTS:
                found += "; more of these are in gradient_health.json only"
            logger.warning("%s", found)

    def _stop(self, found: str, args: Any, state: Any) -> None:
        self._write(args, state)
        raise GradientHealthError(
            f"{found}. Stopped before the step: weights and checkpoints are unharmed. Look at "
            "learning_rate, max_grad_norm, the precision and the data of this step, or go on with "
            "--gradient_health skip."
        )

    # What is kept

    def _accumulate(self) -> None:
        window = self._window
        window["steps"] += 1
        if math.isfinite(self._norm):
            window["finite"] += 1
            window["norm"] += self._norm
            window["norm_max"] = max(window["norm_max"], self._norm)
            for group, norm in zip(self._groups, self._module_norms().tolist(), strict=True):
                self._window_modules[group] = self._window_modules.get(group, 0.0) + norm

    def log_values(self, step: int) -> dict[str, float]:
        """Closes the logging window at ``step`` and returns what goes into the logs."""
        if self._window["steps"] == 0:
            return {}
        self._add_window(self._series, self._module_series, step)
        values = {"grad_norm_max": self._series["norm_max"][-1]}
        self._window = {"steps": 0, "finite": 0, "norm": 0.0, "norm_max": 0.0}
        self._window_modules = {}
        for kind, name in (
            ("non_finite", "non_finite_gradients"),
            ("spike", "gradient_spikes"),
            ("overflow", "gradient_overflows"),
            ("skipped", "skipped_steps"),
        ):
            if self.counts[kind]:
                values[name] = self.counts[kind]
        return values

    def _add_window(self, series: dict, modules: dict[str, list[float]], step: int) -> None:
        window, finite = self._window, self._window["finite"]
        series["step"].append(step)
        series["norm"].append(window["norm"] / finite if finite else math.nan)
        series["norm_max"].append(window["norm_max"] if finite else math.nan)
        for group in self._window_modules.keys() | modules.keys():
            values = modules.setdefault(group, [])
            values += [math.nan] * (len(series["step"]) - 1 - len(values))
            total = self._window_modules.get(group)
            values.append(math.nan if total is None or not finite else total / finite)

    def as_dict(self) -> dict[str, Any]:
        """Returns what ``gradient_health.json`` holds; the open window is its last point."""
        series, modules = copy.deepcopy((self._series, self._module_series))
        if self._window["steps"]:
            self._add_window(series, modules, self._step)
        return self._as_dict(series, modules)

    def _as_dict(self, series: dict, modules: dict[str, list[float]]) -> dict[str, Any]:
        return {
            "policies": self.policies,
            "spike_factor": self.spike_factor,
            "counts": self.counts,
            "steps": series["step"],
            "norm": series["norm"],
            "norm_max": series["norm_max"],
            "modules": dict(sorted(modules.items())),
            "events": self.events,
        }

    def _write(self, args: Any, state: Any) -> None:
        if state.is_world_process_zero:
            try:
                write_json(Path(args.output_dir) / "gradient_health.json", self.as_dict())
            except OSError as error:  # a full disk; the next save writes it anew
                logger.warning("gradient_health.json could not be written: %s", error)

    def state_dict(self) -> dict[str, Any]:
        """Counts, events, series, and the open window."""
        return {
            **self._as_dict(self._series, self._module_series),
            "step": self._step,
            "history": list(self._history),
            "skipped_in_a_row": self._skipped_in_a_row,
            "window": self._window,
            "window_modules": self._window_modules,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues counts, events, series and the running median of a checkpoint."""

        def numbers(values: list[float | None]) -> list[float]:
            return [math.nan if value is None else value for value in values]

        self.counts = dict(state["counts"])
        self.events = [
            {
                **event,
                "norm": math.nan if event["norm"] is None else event["norm"],
                "median": math.nan if event["median"] is None else event["median"],
            }
            for event in state["events"]
        ]
        self._series = {
            "step": list(state["steps"]),
            "norm": numbers(state["norm"]),
            "norm_max": numbers(state["norm_max"]),
        }
        self._module_series = {name: numbers(v) for name, v in state["modules"].items()}
        self._history.clear()
        self._history.extend(state["history"])
        self._step = state["step"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._window = dict(state["window"])
        self._window_modules = dict(state["window_modules"])


def _norms(gradients: list[torch.Tensor]) -> tuple[np.ndarray, torch.Tensor]:
    """Norm of each gradient in float64, and of all as `clip_grad_norm_` computes it."""
    each = torch._foreach_norm(gradients)
    device = each[0].device
    stacked = torch.stack([norm.to(device, torch.float32) for norm in each])
    return stacked.cpu().numpy().astype(np.float64), torch.linalg.vector_norm(stacked)


def _sharded_norms(gradients: list[Any]) -> tuple[np.ndarray, torch.Tensor]:
    """The same for FSDP2: each process has a part of each gradient."""
    each = torch._foreach_norm([gradient.to_local() for gradient in gradients])
    squares = torch.stack([norm.float() for norm in each]).square()
    mesh, placements = gradients[0].device_mesh, gradients[0].placements
    for dimension, placement in enumerate(placements):
        if placement.is_shard():
            torch.distributed.all_reduce(squares, group=mesh.get_group(dimension))
    return squares.sqrt().cpu().numpy().astype(np.float64), squares.sum().sqrt()


def describe_event(event: dict[str, Any]) -> str:
    """Says in one line what was found at a step, and where."""
    norm = event["norm"]
    if event["kind"] == "spike":
        found = f"the gradient norm {norm:.4g} is {norm / event['median']:.0f} times its median"
        names = [f"{worst['module']} ({worst['norm']:.4g})" for worst in event["worst"]]
        where = ", ".join(names)
    else:
        found = f"the gradients of {event['parameter_count']} parameters are not finite"
        where = ", ".join(event["parameters"])
        if event["parameter_count"] > len(event["parameters"]):
            where += ", ..."
    return f"step {event['step']}: {found}: {where}"
