"""The experiment tracker: runs that record themselves, wherever their store is."""

from __future__ import annotations

import datetime
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigurationError
from ..utils.files import read_json
from ..utils.terminal import console, is_main_process
from . import index
from .background import Background
from .run_record import STATES, RunRecord
from .run_values import clean_text, read_record
from .store import Store, StoreError, next_id
from .warning_events import WarningEvents

__all__ = ["ExperimentTracker"]

_ELSEWHERE = "exp_of_the_first_process"
_ALIASES = {"in_progress": "running", "success": "completed", "finished": "completed"}


class ExperimentTracker:
    """Starts runs, logs into them and ends them.

    Everything is written to the run's own folder first and indexed in the experiment store beside
    it, by a thread: no fault of the store stops or slows a run. A run records by itself: settings
    with their sources, git commit, versions, machine, command line, seeds, attempts.

    Args:
        store (Store, *optional*): Defaults to the one that ``HFTUNE_TRACKING_URL`` names, else to
            SQLite in ``HFTUNE_HOME``.

    Example:
        >>> tracker = ExperimentTracker()
        >>> experiment_id = tracker.start_experiment("kobart_baseline", config={"seed": 1})
        >>> tracker.log_metrics({"loss": 0.7}, step=100)
        >>> tracker.end_experiment(experiment_id, best_metrics={"rouge1_f1": 0.45})
    """

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self._runs: dict[str, RunRecord] = {}
        self._newest: str | None = None

    def start(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        task: str = "",
        configuration: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> RunRecord:
        """Starts a run, or the next attempt of the run that ``output_dir`` holds.

        Args:
            output_dir (path, *optional*): The run's folder; defaults to one in ``HFTUNE_HOME``.
            name (str, *optional*): Defaults to the name of the folder, else to the task.
            task (str): For example ``"aurora"``.
            configuration (mapping, *optional*): The settings, with or without sources.
            **more: As for :meth:`~hftune.tracking.run_record.RunRecord.start`, and ``description``,
                ``model_type``, ``tags``, ``parent_run``, ``wandb_run_id``.

        Returns:
            The record, a context manager that ends with the run.

        Raises:
            ConfigurationError: If a run that is alive has the folder.
        """
        more = {key: value for key, value in more.items() if value is not None}
        if not is_main_process():  # it writes nothing: the first process has the run
            folder = Path(output_dir or ".")
            record = RunRecord.start(folder, task=task, configuration=configuration or {}, **more)
            self._runs[_ELSEWHERE] = record
            self._newest = _ELSEWHERE
            return record
        known = {} if output_dir is None else _identity(Path(output_dir))
        if known.get("experiment_id"):
            experiment_id, uid = known["experiment_id"], known["uid"]
        else:
            experiment_id, uid = self._allocate()
        if "copy_of" in known:
            more.setdefault("parent_run", known["copy_of"])
        folder = Path(output_dir) if output_dir is not None else index.run_links() / experiment_id
        if name is not None or "name" not in known:
            name = name or (folder.resolve().name if output_dir is not None else task or "run")
            more["name"] = clean_text(name)
        record = RunRecord.start(
            folder,
            task=task,
            configuration=configuration or {},
            experiment_id=experiment_id,
            uid=uid,
            **more,
        )
        try:
            index.link(folder, experiment_id)
        except OSError as error:
            record.trouble(
                "files: home",
                f"{index.run_links()} cannot be written ({error}): the run is recorded in "
                f"{folder} alone; 'hftune runs reindex {folder}' makes it known later",
            )
        record.warning_events = WarningEvents(record)
        record.background = Background(record, self.store)
        self._runs[experiment_id] = record
        self._newest = experiment_id
        return record

    def _allocate(self) -> tuple[str, str]:
        uid = uuid.uuid4().hex
        try:
            with self.store.write() as connection:
                experiment_id = next_id(connection, "exp")
                # A run of a store that is no more may have it.
                while os.path.lexists(index.run_links() / experiment_id):
                    experiment_id = next_id(connection, "exp")
            return experiment_id, uid
        except StoreError as error:
            day = datetime.datetime.now(datetime.timezone.utc)
            experiment_id = f"exp_{day:%Y%m%d}_x{uid[:8]}"
            console().print(
                f"tracking: {error}. The run gets the id {experiment_id}, which needs no store, "
                "and is indexed once the store can be reached.",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
            return experiment_id, uid

    # The manual's calls

    def start_experiment(
        self,
        name: str,
        description: str = "",
        config: Mapping[str, Any] | None = None,
        model_type: str = "",
        dataset_info: Mapping[str, Any] | None = None,
        wandb_run_id: str | None = None,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        **more: Any,
    ) -> str:
        """Starts an experiment.

        Args:
            name (str): Any text.
            description (str): Any text. Defaults to nothing.
            config (mapping, *optional*): The settings. What JSON has no word for is kept as text,
                tokens and passwords are left out.
            model_type (str): For example ``"kobart"``.
            dataset_info (mapping, *optional*): For example ``{"train_size": 1000}``.
            wandb_run_id (str, *optional*): The run of Weights & Biases that mirrors this one.
            output_dir (path, *optional*): The run's folder; defaults to one in ``HFTUNE_HOME``.
            **more: As for :meth:`start`.

        Returns:
            The id, ``exp_YYYYMMDD_NNN``; in every process but the first, which alone writes,
            ``"exp_of_the_first_process"``.
        """
        record = self.start(
            output_dir,
            name=name,
            configuration=config,
            description=clean_text(description),
            model_type=clean_text(model_type),
            data=dict(dataset_info or {}),
            wandb_run_id=wandb_run_id,
            **more,
        )
        record.running()
        return self._newest

    def update_experiment_status(
        self, experiment_id: str, status: str, notes: str | None = None
    ) -> None:
        """Sets an experiment's state by hand.

        Args:
            experiment_id (str): Of this process or another.
            status (str): One of :data:`~hftune.tracking.run_record.STATES`, or ``in_progress``.
            notes (str, *optional*): Replace the experiment's notes.

        Raises:
            ConfigurationError: If there is no such experiment or state.
        """
        record = self.record(experiment_id)
        record.set_status(_checked_status(status), notes)
        self._index(record)

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        experiment_id: str | None = None,
    ) -> None:
        """Logs numbers.

        Args:
            metrics (mapping): Numbers by name.
            step (int, *optional*): Optimizer steps that are done.
            experiment_id (str, *optional*): Defaults to the one started last.

        Raises:
            ConfigurationError: If no experiment was started.
        """
        record = self._runs.get(experiment_id or self._newest or "")
        if record is None:
            record = self.record(experiment_id)
        record.log_metrics(metrics, step)

    def end_experiment(
        self,
        experiment_id: str | None = None,
        final_metrics: Mapping[str, Any] | None = None,
        best_metrics: Mapping[str, Any] | None = None,
        status: str = "completed",
        notes: str | None = None,
    ) -> None:
        """Ends an experiment.

        Args:
            experiment_id (str, *optional*): Defaults to the one started last.
            final_metrics (mapping, *optional*): Numbers at the end.
            best_metrics (mapping, *optional*): Numbers of the best model.
            status (str): How it ended. Defaults to ``"completed"``.
            notes (str, *optional*): Replace the experiment's notes.

        Raises:
            ConfigurationError: If there is no such experiment or state.
        """
        status = _checked_status(status)
        record = self.record(experiment_id)
        numbers = {
            f"{prefix}_{name}": value
            for prefix, metrics in (("final", final_metrics), ("best", best_metrics))
            for name, value in (metrics or {}).items()
        }
        if numbers:
            record.log_metrics(numbers)
            record.update(final_metrics=final_metrics or {}, best_metrics=best_metrics or {})
        record.set_status(status, notes)
        self._index(record)

    def get_experiment(self, experiment_id: str) -> dict[str, Any]:
        """Returns everything that is known of an experiment but its curves.

        Args:
            experiment_id (str): As for :func:`~hftune.tracking.query.find_run`.

        Returns:
            See :func:`~hftune.tracking.query.experiment_json`.

        Raises:
            ConfigurationError: If there is no such experiment.
        """
        from .query import load_experiment

        index.refresh(self.store)
        return load_experiment(self.store, experiment_id)

    def list_experiments(
        self, where: str | None = None, sort: str | None = None, limit: int | None = 50
    ) -> list[dict[str, Any]]:
        """Returns experiments, the newest first.

        Args:
            where (str, *optional*): A filter such as ``"status=completed and
                metrics.eval_loss<0.5"``, see :mod:`~hftune.tracking.filters`. Defaults to all.
            sort (str, *optional*): What to sort by, see :func:`~hftune.tracking.query.search_runs`.
                Defaults to ``"-created"``.
            limit (int, *optional*): How many at the most; None for all. Defaults to 50.

        Raises:
            ConfigurationError: If the filter cannot be read.

        Example:
            >>> tracker.list_experiments("status=completed", sort="metrics.eval_loss", limit=5)
        """
        from .query import search_runs, summary_json

        index.refresh(self.store)
        return [summary_json(run) for run in search_runs(self.store, where, sort, limit)]

    def record(self, experiment_id: str | None = None) -> RunRecord:
        """Returns the record of an experiment, by default of the one started last.

        Raises:
            ConfigurationError: If there is no such experiment.
        """
        experiment_id = experiment_id or self._newest
        if experiment_id is None:
            raise ConfigurationError(
                "no experiment was started by this tracker: call start_experiment() first, or give "
                "an experiment_id"
            )
        if experiment_id not in self._runs:
            from .query import find_run

            index.refresh(self.store)  # it may have started a moment ago
            folder = find_run(self.store, experiment_id).folder
            try:
                self._runs[experiment_id] = RunRecord.open(folder)
            except OSError:
                raise ConfigurationError(
                    f"experiment '{experiment_id}' is known, its folder {folder} is not here "
                    "(moved, deleted, or on another machine): only its index can be read"
                ) from None
        return self._runs[experiment_id]

    def _index(self, record: RunRecord) -> None:
        """Has changes of an experiment of another process in the index at once."""
        if record.background is None and is_main_process():
            try:
                index.catch_up(self.store, record.folder)
            except (StoreError, OSError) as error:
                record.trouble("files: store", f"{error}; the next 'hftune runs' catches up")


def _checked_status(status: str) -> str:
    from ..utils.errors import did_you_mean

    status = _ALIASES.get(status, status)
    if status not in STATES:
        raise ConfigurationError(
            f"found the status '{status}', expected one of {', '.join(STATES)}."
            f"{did_you_mean(status, STATES)}"
        )
    return status


def _identity(folder: Path) -> dict[str, Any]:
    """Which run a folder holds: id, uid and name; a copy of a run's folder is a new run."""
    try:
        record = read_record(folder / "run.json")
    except FileNotFoundError:
        return {}
    if not record.get("experiment_id"):
        return {}
    known = {key: record[key] for key in ("experiment_id", "uid", "name")}
    home = index.run_links() / known["experiment_id"]
    try:
        elsewhere = home.resolve() != folder.resolve()
        original = elsewhere and read_json(home / "run.json").get("uid") == known["uid"]
    except (OSError, ValueError):
        original = False
    return {"copy_of": known["experiment_id"]} if original else known
