"""A mirror of a run in Weights & Biases, for any Trainer; never the truth, never in the way."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig
from transformers.integrations import rewrite_logs

from ..tracking.exits import stopping_signal
from ..utils.errors import ConfigurationError, did_you_mean
from ..utils.secrets import without_secrets
from ..utils.terminal import console, is_main_process
from ..utils.versions import installed_version
from .best_metrics import add_rouge_combined
from .state import StatefulCallback

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbCallback"]

ANSWER_SECONDS = 5.0
"""How long the server has for a first answer before a run is kept offline."""
INIT_SECONDS = 20.0
"""How long it then has to take the run (``WANDB_INIT_TIMEOUT`` has the last word)."""
FINISH_SECONDS = 20.0
"""How long the end of a run waits for the upload (``WANDB_FINISH_TIMEOUT`` has the last word): less
than the 30 s that schedulers usually leave to what they preempt."""
MODEL_SECONDS = 600.0
"""How long the upload of a model is waited for."""

_MODES = ("auto", "online", "offline", "disabled")
_TOTALS = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
}
_CURVE_POINTS = 1000
# What a checkpoint holds beside the model.
_NOT_THE_MODEL = (
    "optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args",
    "loss_window", "global_step", "callbacks", "hftune_manifest",
)  # fmt: skip


class WandbCallback(StatefulCallback):
    """Mirrors a run to Weights & Biases.

    Logs have the names of the transformers integration (``train/loss``, ``train/learning_rate``,
    ``eval/loss``, ...) and ``epoch`` and ``step``; ROUGE is there as ``eval/rouge1_f1``,
    ``eval/rouge2_f1``, ``eval/rougeL_f1`` and ``eval/rouge_combined_f1`` too. The x axis is
    ``train/global_step``. At the end of training come the ``learning_curves``.

    Training never waits for W&B and never fails with it: without a login, or where the server does
    not answer within 5 seconds, the run is kept offline (``wandb sync`` uploads it later); after
    an error of wandb, which is reported once, the mirror is off. Only process zero talks to W&B. A
    run that was started with ``wandb.init`` before is used, and not finished.

    One callback is one W&B run: give the same one to every Trainer of a run with several stages.
    It ends with :meth:`finish`, with the next callback's run, or with the process. A run that is
    resumed from a checkpoint goes on in the same W&B run.

    Args:
        project (str, *optional*): Defaults to ``WANDB_PROJECT``, else to ``"hftune"``.
        name (str, *optional*): Defaults to ``args.run_name``, else to one that W&B makes up.
        tags (sequence of str): Defaults to none.
        group (str, *optional*): Runs that belong together.
        notes (str, *optional*): Any text.
        config (mapping, *optional*): Further settings to show, beside the Trainer's arguments and
            the model's configuration; of values with their source only the value is. Tokens and
            passwords are left out.
        mode (str): ``"auto"`` (what ``WANDB_MODE`` says, else online where there is a login),
            ``"online"``, ``"offline"`` or ``"disabled"``. Defaults to ``"auto"``. There is never a
            question for a login.
        run_id (str, *optional*): The W&B run to continue, or a new one to have this id.
        on_run_id (callable, *optional*): Called with the id of the W&B run once it has started.
        log_model (bool): Whether to upload the model of the best checkpoint, or else of the last
            one, at the end of training; not of one that a signal stopped. Defaults to False.
        also_as (mapping, *optional*): Second names of logged values, such as
            ``{"eval/accuracy": "val/accuracy"}``. Defaults to none.

    Attributes:
        run_id (str or None): Id of the W&B run.

    Raises:
        ConfigurationError: If wandb is not installed, the mode is unknown or there is no login for
            ``"online"``; and before training if ``report_to`` has the transformers integration
            write to W&B as well.

    Example:
        >>> mirror = WandbCallback("dialogue-summarization", "kobart_baseline", tags=["kobart"])
        >>> trainer = Trainer(model, args, callbacks=[mirror], ...)
        >>> trainer.train()
        >>> mirror.log_predictions([{"input": "...", "prediction": "...", "reference": "..."}])
        >>> mirror.finish()
    """

    state_name = "wandb"
    _newest: ClassVar[WandbCallback | None] = None  # whose own run is open in this process

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        tags: Sequence[str] = (),
        group: str | None = None,
        notes: str | None = None,
        config: Mapping[str, Any] | None = None,
        mode: str = "auto",
        run_id: str | None = None,
        on_run_id: Callable[[str], None] | None = None,
        log_model: bool = False,
        also_as: Mapping[str, str] | None = None,
    ) -> None:
        if mode not in _MODES:
            raise ConfigurationError(
                f"WandbCallback: found mode '{mode}', expected one of {', '.join(_MODES)}."
                + did_you_mean(mode, _MODES)
            )
        if installed_version("wandb") is None:
            raise ConfigurationError(
                'WandbCallback needs wandb, which is not installed: pip install "hftune[wandb]"'
            )
        # Its reports about its own errors keep a process alive for 20 s where nothing answers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.project, self.name = project, name
        self.tags, self.group, self.notes = list(tags), group, notes
        self.config = dict(config or {})
        self.mode, self.run_id, self.on_run_id = mode, run_id, on_run_id
        self.uploads_model = log_model
        self.also_as = dict(also_as or {})
        self._run: wandb.Run | None = None
        self._own = False  # the run is this callback's to finish
        self._off = mode == "disabled"
        self._position: dict[str, Any] = {}
        if mode == "online" and is_main_process() and (problem := _login_problem()):
            raise ConfigurationError(
                f"WandbCallback: mode 'online', but {problem}; run 'wandb login', set "
                "WANDB_API_KEY, or use mode 'auto' or 'offline'"
            )

    # A resumed run

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.run_id is None:
            self.run_id = state["run_id"]

    # Events

    def on_init_end(self, args, state, control, **kwargs):
        _refuse_second_mirror(args)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        _refuse_second_mirror(args)
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_hyper_param_search:  # each trial is a run
            self.finish()
            self.run_id = None
        if self._run is None:
            self._off = self.mode == "disabled"
        self._ready(args, state, model)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if not self._ready(args, state, model):
            return
        with self._guarded("a log"):
            values = add_rouge_combined(logs or {})
            for name in _TOTALS & values.keys():
                self._run.summary[name] = values.pop(name)
            self._run.log({**self._named(values), **self._position})

    def on_predict(self, args, state, control, metrics=None, model=None, **kwargs):
        if self._ready(args, state, model):
            with self._guarded("a log"):
                values = add_rouge_combined(metrics or {})
                self._run.log({**self._named(values), **self._position})

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        named = rewrite_logs(values)
        return named | {new: named[old] for old, new in self.also_as.items() if old in named}

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if not self._ready(args, state, model):
            return
        if stopping_signal() is not None:
            self.finish("preempted")
            return
        with self._guarded("the learning curves"):
            curves = _learning_curves(state.log_history)
            if curves is not None and self._server_answers("the learning curves"):
                self._run.log({"learning_curves": curves, **self._position})
        if self.uploads_model:
            best = state.best_model_checkpoint
            folder = Path(best or Path(args.output_dir, f"checkpoint-{state.global_step}"))
            if not folder.is_dir():
                _say(f"W&B: no model is uploaded: {folder} is not there (save_strategy?)")
            elif (folder / "ema.safetensors").exists():
                _say(
                    "W&B: no model is uploaded: a checkpoint has the averaged weights apart; call "
                    "log_model(folder) after save_model(folder)"
                )
            else:
                self.log_model(folder, aliases=["best"] if best else ["final"])

    # What a program calls itself

    def log_predictions(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Logs samples as the table ``prediction_samples``.

        Args:
            samples (sequence of mapping): Each with the texts ``input`` (the first 100 characters
                are shown), ``prediction`` and ``reference``.
        """
        if self._run is None or self._off:
            return
        with self._guarded("the prediction samples"):
            import wandb

            if not self._server_answers("the prediction samples"):
                return
            table = wandb.Table(columns=["Input", "Prediction", "Reference"])
            for sample in samples:
                text = sample["input"]
                shown = text[:100] + "..." if len(text) > 100 else text
                table.add_data(shown, sample["prediction"], sample["reference"])
            self._run.log({"prediction_samples": table, **self._position})

    def log_model(self, folder: str | os.PathLike[str], aliases: Sequence[str] = ()) -> None:
        """Uploads a saved model as the artifact ``model-<run id>`` of type ``model``.

        Waits until it is there, 10 minutes at most.

        Args:
            folder (path): Of the model, or a checkpoint, of which the optimizer and the rest of
                the training state are left out.
            aliases (sequence of str): For example ``["best"]``; W&B adds ``latest``.
        """
        if self._run is None or self._off:
            return
        with self._guarded("the model"):
            import wandb

            if not self._server_answers("the model"):
                return
            artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
            for path in sorted(Path(folder).iterdir()):
                if path.name.startswith((".", *_NOT_THE_MODEL)):
                    continue
                if path.is_dir():
                    artifact.add_dir(str(path), name=path.name)
                else:
                    artifact.add_file(str(path), name=path.name)
            logged = self._run.log_artifact(artifact, aliases=["latest", *aliases])
            if not self._run.offline:
                logged.wait(timeout=MODEL_SECONDS)

    def finish(self, status: str = "completed") -> None:
        """Ends the W&B run, if it is this callback's own; waits for the upload 20 s at most.

        Args:
            status (str): How the run ended: ``completed``, ``preempted`` (will be resumed) or
                another, which W&B calls failed. Defaults to ``completed``.
        """
        if self._run is not None and self._own:
            WandbCallback._newest = None
            with self._guarded("the end of the run"):
                if status == "preempted":
                    self._run.mark_preempting()
                self._run.finish(exit_code=0 if status == "completed" else 1)
        self._run, self._off = None, True

    # The run in W&B

    def _ready(self, args: Any, state: Any, model: Any) -> bool:
        """Whether there is a run to log to; starts it if there was none yet."""
        if self._off or not state.is_world_process_zero:
            return False
        if self._run is None:
            with self._guarded("the start"):
                self._start(args, state, model)
            if self._run is None:
                self._off = True
            elif self.on_run_id is not None:
                self.on_run_id(self.run_id)
        step = state.global_step
        self._position = {"epoch": state.epoch, "step": step, "train/global_step": step}
        return not self._off

    def _start(self, args: Any, state: Any, model: Any) -> None:
        import wandb

        if WandbCallback._newest is not None:
            WandbCallback._newest.finish()
        self._own = wandb.run is None
        run = self._init(args, state) if self._own else wandb.run
        if run is None:
            return
        self._run, self.run_id = run, run.id
        if self._own:
            WandbCallback._newest = self
        # W&B wants steps that only grow, and a resumed run goes back to its checkpoint: the step
        # is a value like others, and the axis.
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
        run.config.update(_configuration(args, model, self.config), allow_val_change=True)

    def _init(self, args: Any, state: Any) -> wandb.Run | None:
        import wandb

        limits = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        limits = {k: v for k, v in limits.items() if f"WANDB_{k.upper()}" not in os.environ}
        options = {
            "project": self.project or os.environ.get("WANDB_PROJECT", "hftune"),
            "name": state.trial_name or self.name or args.run_name,
            "tags": self.tags,
            "group": self.group,
            "notes": self.notes,
            "dir": os.environ.get("WANDB_DIR", args.output_dir),
            "id": self.run_id,
            "settings": wandb.Settings(**limits),
        }
        Path(options["dir"]).mkdir(parents=True, exist_ok=True)
        settings = wandb.setup().settings
        mode = settings.mode if self.mode == "auto" else self.mode
        if mode == "disabled":
            return None
        if mode != "offline":
            problem = _login_problem() or _server_problem(settings.base_url)
            if problem is None:
                try:
                    with _clean_command_line():
                        resume = None if self.run_id is None else "allow"
                        return wandb.init(mode=mode, resume=resume, **options)
                except Exception as error:
                    problem = f"the start failed ({_short(error)})"
                    wandb.teardown(exit_code=1)  # else the id stays in use
            _say(f"W&B: {problem}: the run is kept offline; 'wandb sync' uploads it")
        with _clean_command_line():
            return wandb.init(mode="offline", **options)

    def _server_answers(self, what: str) -> bool:
        """Asks before what wandb itself would wait for, 20 s where the network is dead."""
        if self._run.offline or not (problem := _server_problem(self._run.settings.base_url)):
            return True
        _say(f"W&B: {problem}: {what} left out there")
        return False

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Turns an error of W&B into a message and the end of the mirror."""
        try:
            yield
        except Exception as error:
            if not self._off:
                _say(
                    f"W&B: {doing} failed ({_short(error)}): the mirror is off from here, the run "
                    "goes on"
                )
            self._off = True


def _say(text: str) -> None:
    console().print(without_secrets(text), markup=False, soft_wrap=True)


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _refuse_second_mirror(args: Any) -> None:
    if "wandb" in args.report_to:
        raise ConfigurationError(
            "found WandbCallback and report_to 'wandb', expected one of them: both would write to "
            "one W&B run; set report_to to 'none'"
        )


def _server_problem(url: str) -> str | None:
    """Says why W&B's server cannot be talked to; None if it gave any answer."""
    problem = f"{url} did not answer within {ANSWER_SECONDS:g} s"

    def ask() -> None:
        nonlocal problem
        try:
            urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # it is there
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, TimeoutError):
                return
            if not isinstance(reason, ssl.SSLError):  # wandb has certificates of its own
                problem = f"{url} cannot be reached ({reason})"
                return
        problem = None

    # The timeout of a connection does not count the search for its address.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return problem


def _login_problem() -> str | None:
    """Says what is wrong with the login to W&B, without asking anybody."""
    import wandb

    if wandb.run is not None:
        return None
    settings = wandb.setup().settings
    if settings.mode in ("offline", "disabled"):
        return f"W&B is {settings.mode} (WANDB_MODE)"
    # To print the user's name it would wait for the server, 5 s where nothing answers.
    silent, settings.silent = settings.silent, True
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        return str(error)
    finally:
        settings.silent = silent
    return None if found else "there is no login"


@contextlib.contextmanager
def _clean_command_line() -> Iterator[None]:
    """W&B records the command line: without tokens."""
    before, sys.argv = sys.argv, without_secrets(sys.argv)
    try:
        yield
    finally:
        sys.argv = before


def _configuration(args: Any, model: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    model_config = getattr(model, "config", None)
    shown = model_config.to_dict() if isinstance(model_config, PreTrainedConfig) else {}
    settings = _values(without_secrets({**shown, **args.to_dict(), **more}))
    return json.loads(json.dumps(settings, default=str))


def _values(settings: Any) -> Any:
    """Settings without their sources."""
    if not isinstance(settings, Mapping):
        return settings
    if settings.keys() == {"value", "source"}:
        return settings["value"]
    return {name: _values(value) for name, value in settings.items()}


def _learning_curves(history: Sequence[Mapping[str, Any]]) -> Any:
    """The loss in training and evaluation over the epochs; None where there is neither."""
    import wandb

    curves = {}
    for name, key in (("train_loss", "loss"), ("val_loss", "eval_loss")):
        points = [(row["epoch"], row[key]) for row in history if key in row and "epoch" in row]
        if points:
            curves[name] = points[:: len(points) // _CURVE_POINTS + 1]
    if not curves:
        return None
    return wandb.plot.line_series(
        xs=[[x for x, _ in points] for points in curves.values()],
        ys=[[y for _, y in points] for points in curves.values()],
        keys=list(curves),
        title="Training Progress",
        xname="Epoch",
    )
