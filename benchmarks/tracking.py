"""Tracking's speed: logging beside MLflow and trackio, lists and searches in a large store.

    python benchmarks/tracking.py [--mlflow_python PYTHON] [--trackio_python PYTHON]

Each tracker runs in processes of its own, MLflow and trackio with the Python of an environment that
has them (their requirements clash with hftune's). A call logs 10 metrics of a step; all trackers
write to SQLite in a temporary folder: MLflow by ``log_metrics`` (which commits each call), trackio
by ``log`` (which hands over to a thread), hftune by ``ExperimentTracker.log_metrics`` (which
appends to the run's file; a thread indexes it). They take turns, medians over the turns are shown:

- calls/s: until the last call returned;
- stored/s: until the run was ended, its rows in the database;
- p50, p99, max: what one call takes;
- the same with 8 processes at once, and how many calls raised, how many rows are in the database.

Then the store is filled with 100,000 runs and 10,000 model versions, through its tables, and asked.
Prints JSON, progress goes to stderr. Exits with 1 where a goal is missed: 100 times MLflow's
calls/s, each row in the database, no answer over 100 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# No hftune here: the other trackers' Pythons run this file too.

CALLS = {"hftune": 10_000, "mlflow": 100, "trackio": 5_000}  # of one run
FASTER, LIMIT_MS = 100, 100
METRICS = (
    "loss", "grad_norm", "learning_rate", "eval_loss", "eval_accuracy", "eval_rouge1_f1",
    "eval_rouge2_f1", "eval_rougeL_f1", "samples_per_second", "memory_gb",
)  # fmt: skip


# One process that logs


def start_hftune() -> tuple[Callable, Callable]:
    from hftune.tracking.tracker import ExperimentTracker

    tracker = ExperimentTracker()
    tracker.start_experiment("bench")
    return tracker.log_metrics, tracker.end_experiment


def start_mlflow() -> tuple[Callable, Callable]:
    import mlflow

    mlflow.set_experiment("bench")
    mlflow.start_run()
    return mlflow.log_metrics, mlflow.end_run


def start_trackio() -> tuple[Callable, Callable]:
    import trackio

    trackio.init(project="bench", name=f"run-{os.getpid()}")
    return trackio.log, trackio.finish


def work(side: str, calls: int) -> None:
    """Starts a run, says ``ready``, waits for a line, logs, ends the run, prints the times."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trackers print is no answer
    log, end = {"hftune": start_hftune, "mlflow": start_mlflow, "trackio": start_trackio}[side]()
    metrics = {name: 0.1 * place for place, name in enumerate(METRICS)}
    log(metrics, step=0)  # the first opens files and connections
    print("ready", file=answers, flush=True)
    sys.stdin.readline()
    errors, moments = [], [time.monotonic()]
    for step in range(1, calls):
        try:
            log(metrics, step=step)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:300])
        moments.append(time.monotonic())
    end()
    ended = time.monotonic()
    times = sorted(after - before for before, after in zip(moments, moments[1:], strict=False))
    parts = [round(1e6 * times[int(part * (len(times) - 1))]) for part in (0.5, 0.99, 1)]
    result = {
        "begin": moments[0], "logged": moments[-1], "ended": ended, "errors": errors,
        "microseconds": parts,
    }  # fmt: skip
    print(json.dumps(result), file=answers, flush=True)


# All of them


class Side:
    """A tracker with a database of its own.

    Args:
        name (str): Of :data:`CALLS`.
        python (str): The interpreter that has it.
        folder (path): For its files.
        store_url (str, *optional*): hftune's database, where it is not SQLite in the folder.
    """

    def __init__(self, name: str, python: str, folder: Path, store_url: str | None) -> None:
        self.name, self.python, self.folder = name, python, folder
        self.turns: dict[int, list[dict[str, Any]]] = {}
        self.logged = 0
        folder.mkdir()
        unset = {"HFTUNE_TRACKING_URL", "PYTHONPATH", "VIRTUAL_ENV"}
        self.environment = {key: value for key, value in os.environ.items() if key not in unset} | {
            "HFTUNE_HOME": str(folder),
            "TRACKIO_DIR": str(folder),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
        }
        if name == "hftune" and store_url:
            self.environment["HFTUNE_TRACKING_URL"] = store_url

    def turn(self, processes: int, calls: int) -> None:
        """Has processes log at once."""
        command = [self.python, __file__, "--worker", self.name, "--calls", str(calls)]
        with open(self.folder / "output.txt", "a") as output:
            workers = [
                subprocess.Popen(
                    command, env=self.environment, cwd=self.folder, text=True, stderr=output,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
                for _ in range(processes)
            ]  # fmt: skip
        ready = [worker for worker in workers if worker.stdout.readline() == "ready\n"]
        for worker in ready:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        answers = [worker.communicate()[0] for worker in workers]
        results = [json.loads(answer) for answer in answers if answer]
        if not results:
            output = (self.folder / "output.txt").read_text()
            raise SystemExit(f"{self.name} did not run: {output}")
        self.logged += len(results) * calls
        begin = min(result["begin"] for result in results)
        errors = [error for result in results for error in result["errors"]]
        done = len(results) * (calls - 1) - len(errors)
        self.turns.setdefault(processes, []).append(
            {
                "calls_per_second": done / (max(r["logged"] for r in results) - begin),
                "stored_per_second": done / (max(r["ended"] for r in results) - begin),
                "microseconds_p50": statistics.median(r["microseconds"][0] for r in results),
                "microseconds_p99": statistics.median(r["microseconds"][1] for r in results),
                "microseconds_max": max(r["microseconds"][2] for r in results),
                "errors": errors,
                "died": processes - len(results),
            }
        )
        say(f"{self.name}, {processes} processes: {done} calls, {len(errors)} errors")

    def result(self, processes: int) -> dict[str, Any]:
        """Returns the medians over the turns, and the errors of all."""
        turns = self.turns[processes]
        errors = [error for turn in turns for error in turn["errors"]]
        numbers = [name for name in turns[0] if name not in ("errors", "died")]
        return {
            **{name: round(statistics.median(turn[name] for turn in turns)) for name in numbers},
            "errors": len(errors),
            "first_error": errors[0] if errors else None,
            "died": sum(turn["died"] for turn in turns),
        }

    def stored(self) -> int:
        """How many rows are in the database."""
        import sqlalchemy as sa

        url, question = {
            "hftune": ("tracking.db", "SELECT count(*) FROM hftune_metrics"),
            "mlflow": ("mlflow.db", f"SELECT count(*) / {len(METRICS)} FROM metrics"),
            "trackio": ("bench.db", "SELECT count(*) FROM metrics"),
        }[self.name]
        url = self.environment.get("HFTUNE_TRACKING_URL", f"sqlite:///{self.folder / url}")
        with sa.create_engine(url).connect() as connection:
            return connection.exec_driver_sql(question).scalar()


def log_side_by_side(sides: list[Side], repeats: int, processes: int) -> dict[str, Any]:
    """Measures logging, by one process and by several."""
    for side in sides:
        side.turn(1, 20)  # makes the database
        side.turns.clear()
    for _ in range(repeats):
        for side in sides:
            side.turn(1, CALLS[side.name])
    for _ in range(repeats):
        for side in sides:
            side.turn(processes, CALLS[side.name] // 5)
    logging = {
        side.name: {
            "one_process": side.result(1),
            f"{processes}_processes": side.result(processes),
            "rows_logged": side.logged,
            "rows_stored": side.stored(),
        }
        for side in sides
    }
    ours, rate = logging["hftune"], "calls_per_second"
    faster = {
        name: {
            case: round(ours[case][rate] / other[case][rate], 1)
            for case in ("one_process", f"{processes}_processes")
        }
        for name, other in logging.items()
        if name != "hftune"
    }
    return {"logging": logging, "times_faster": faster}


# A large store


def chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := [row for _, row in zip(range(size), rows, strict=False)]:
        yield chunk


def dated_ids(prefix: str, count: int, span: float) -> Iterator[tuple[str, float]]:
    """Ids and times of creation over some days up to yesterday, the oldest first."""
    day, number = "", 0
    for place in range(count):
        created = time.time() - 86_400 * (1 + span * (count - place) / count)
        today = f"{datetime.datetime.fromtimestamp(created, datetime.timezone.utc):%Y%m%d}"
        day, number = today, number + 1 if today == day else 1
        yield f"{prefix}_{day}_{number:03d}", created


def fill_runs(store: Any, count: int) -> None:
    """Adds runs that are like one that was tracked, but for their numbers."""
    import sqlalchemy as sa

    from hftune.tracking.tables import params, records, runs, summaries
    from hftune.tracking.tracker import ExperimentTracker

    chance = random.Random(0)
    settings = {
        "model": {"checkpoint": "gogamza/kobart-base-v2"} | {f"size_{i}": i for i in range(9)},
        "training": {"learning_rate": 1e-4, "batch_size": 32}
        | {f"rate_{i}": 0.1 for i in range(8)},
    }
    tracker = ExperimentTracker(store)
    first = tracker.start_experiment("kobart", config=settings, model_type="kobart", task="bench")
    tracker.log_metrics(dict.fromkeys(METRICS, 0.5), step=1)
    tracker.end_experiment()
    with store.read() as connection:
        template = dict(
            connection.execute(sa.select(runs).where(runs.c.id == first)).mappings().one()
        )
        of_run = [
            [
                dict(row)
                for row in connection.execute(sa.select(t).where(t.c.run_id == first)).mappings()
            ]
            for t in (params, summaries, records)
        ]
    states = ["completed"] * 17 + ["failed", "crashed", "killed"]
    for chunk in chunks(dated_ids("exp", count - 1, 300), 5_000):
        rows: dict[Any, list[dict[str, Any]]] = {runs: [], records: [], params: [], summaries: []}
        for run_id, created in chunk:
            seconds = chance.uniform(60, 90_000)
            name = f"kobart_{chance.randrange(200)}"
            task = chance.choice(["aurora", "ranking", "summarization"])
            rows[runs].append(
                template
                | {"id": run_id, "uid": f"{chance.getrandbits(128):032x}", "name": name}
                | {"status": chance.choice(states), "created": created, "ended": created + seconds}
                | {"seconds": seconds, "task": task}
                | {"tags": ["baseline"] if chance.random() < 0.1 else []}
            )
            rows[records].append(of_run[2][0] | {"run_id": run_id})
            for row in of_run[0]:
                number = row["number"] and row["number"] * chance.choice([0.1, 0.5, 1, 2])
                value = row["value"] if number is None else json.dumps(number)
                rows[params].append(row | {"run_id": run_id, "value": value, "number": number})
            for row in of_run[1]:
                low, last, high = sorted(chance.random() for _ in range(3))
                rows[summaries].append(
                    row | {"run_id": run_id, "last": last, "low": low, "high": high, "count": 1000}
                )
        with store.write() as connection:
            for table, some in rows.items():
                connection.execute(table.insert(), some)


def fill_models(store: Any, folder: Path, count: int) -> None:
    """Adds model versions that are like one that was registered, but for their numbers."""
    import sqlalchemy as sa

    from hftune.tracking.registry import ModelRegistry
    from hftune.tracking.tables import aliases, models, performance

    chance = random.Random(0)
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bart"}')
    first = ModelRegistry(store).register_model(
        "kobart", "kobart", "gogamza/kobart-base-v2", {f"size_{i}": i for i in range(40)},
        {name: 0.5 for name in METRICS[3:8]}, {"epochs": 3}, folder,
    )  # fmt: skip
    with store.read() as connection:
        found = connection.execute(sa.select(models).where(models.c.id == first)).mappings().one()
        template = dict(found)
    names = [f"kobart_{place}" for place in range(max(1, count // 100))]
    rows: dict[Any, list[dict[str, Any]]] = {models: [], performance: [], aliases: []}
    for place, (model_id, created) in enumerate(dated_ids("model", count - 1, 300)):
        name, version = names[place % len(names)], 1 + place // len(names)
        numbers = {metric: chance.random() for metric in METRICS[3:8]}
        changed = {
            "name": name, "version": version, "architecture": chance.choice(["kobart", "t5"]),
            "digest": f"{chance.getrandbits(256):064x}",
        }  # fmt: skip
        when = datetime.datetime.fromtimestamp(created, datetime.timezone.utc).isoformat()
        record = template["record"] | changed
        record |= {"model_id": model_id, "created": when, "performance": numbers}
        rows[models].append(
            template | changed | {"id": model_id, "created": created, "record": record}
        )
        for metric, value in numbers.items():
            rows[performance].append({"model_id": model_id, "metric": metric, "value": value})
        if version == 3:
            rows[aliases].append({"name": name, "alias": "production", "model_id": model_id})
    with store.write() as connection:
        for table, some in rows.items():
            connection.execute(table.insert(), some)


def questions(store: Any) -> dict[str, Callable[[], Any]]:
    """What people ask of a store, by what is said of it."""
    from hftune.tracking.index import refresh
    from hftune.tracking.query import find_run, load_experiment, search_runs
    from hftune.tracking.registry import ModelRegistry
    from hftune.utils.errors import ConfigurationError

    registry = ModelRegistry(store)
    newest = search_runs(store, limit=1000)
    old, model = newest[-1]["id"], registry.search_models(limit=1)[0]["model_id"]

    def unknown(find: Callable, ref: str) -> None:
        with contextlib.suppress(ConfigurationError):
            find(ref)

    def search(where: str | None = None, sort: str | None = None) -> Callable[[], Any]:
        return lambda: search_runs(store, where, sort)

    rouge = "metrics.eval_rouge1_f1"
    return {
        "runs: make true (refresh)": lambda: refresh(store),
        "runs: newest 50": search(),
        "runs: status=failed": search("status=failed"),
        "runs: status=running": search("status=running"),
        "runs: of the last 7 days": search("created>=7d"),
        "runs: one task": search("task=aurora"),
        "runs: one name": search("name=kobart_17"),
        "runs: tag": search("tags=baseline"),
        "runs: name contains": search("name~bart_17"),
        "runs: name contains, none": search("name~nothing"),
        "runs: completed and a metric": search("status=completed and metrics.eval_loss<0.5"),
        "runs: metric, few": search("metrics.eval_loss<0.0001"),
        "runs: metric, none": search("metrics.eval_loss<-1"),
        "runs: two metrics, none": search(f"metrics.eval_loss<0.001 and {rouge}>0.999"),
        "runs: setting and metric": search(f"config.learning_rate<5e-5 and {rouge}>0.99"),
        "runs: or": search(f"status=killed or {rouge}>0.99"),
        "runs: not": search("not (status=completed or status=failed)"),
        "runs: sort by metric": search(sort="metrics.eval_loss"),
        "runs: filter, sort by best": search("status=completed", "-best.eval_rouge1_f1"),
        "runs: sort by setting": search(sort="config.learning_rate"),
        "runs: sort by name": search(sort="name"),
        "runs: sort by status": search(sort="status"),
        "runs: sort by duration": search(sort="-seconds"),
        "runs: by id": lambda: find_run(store, old),
        "runs: by end of id": lambda: find_run(store, old.removeprefix("exp_")),
        "runs: unknown id": lambda: unknown(lambda ref: find_run(store, ref), old + "9"),
        "runs: everything of one": lambda: load_experiment(store, old),
        "models: newest 50": lambda: registry.search_models(limit=50),
        "models: architecture": lambda: registry.search_models("kobart", limit=50),
        "models: architecture, metric": lambda: registry.search_models(
            "kobart", {"eval_rouge1_f1": 0.9}, limit=50
        ),
        "models: three metrics": lambda: registry.search_models(
            min_performance={"eval_rouge1_f1": 0.9, "eval_loss": 0.1, "eval_accuracy": 0.9}
        ),
        "models: one name": lambda: registry.search_models(name="kobart_0"),
        "models: alias": lambda: registry.search_models(alias="production", limit=50),
        "models: all": lambda: registry.search_models(),
        "models: best 5": lambda: registry.get_best_models("eval_rouge1_f1"),
        "models: by id": lambda: registry.get_model_info(model),
        "models: by alias": lambda: registry.get_model_info("kobart_0@production"),
        "models: unknown id": lambda: unknown(registry.get_model_info, model + "9"),
    }


def ask(folder: Path, store_url: str | None, runs: int, models: int) -> dict[str, Any]:
    """Fills a store and measures its answers, in milliseconds."""
    from hftune.tracking.store import Store

    folder.mkdir()
    os.environ["HFTUNE_HOME"] = str(folder)
    store = Store(store_url or f"sqlite:///{folder}/tracking.db")
    begin = time.monotonic()
    fill_runs(store, runs)
    fill_models(store, folder / "model", models)
    if not store.is_sqlite:  # its server does so by itself, minutes later
        import sqlalchemy as sa

        with sa.create_engine(store_url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    say(f"{runs} runs and {models} model versions made in {time.monotonic() - begin:.0f} s")
    answers = {}
    for name, question in questions(store).items():
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            question()
            times.append(1000 * (time.perf_counter() - begin))
        median = statistics.median(times[1:])
        answers[name] = {"median": round(median, 1), "first": round(times[0], 1)}
        say(f"{name}: {median:.1f} ms{' (over the limit)' if median > LIMIT_MS else ''}")
    return answers


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measures, prints JSON, and says whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--mlflow_python", help="interpreter of an environment with mlflow (default: leave it out)")
    add("--trackio_python", help="the same with trackio")
    add("--repeats", type=int, default=5, help="turns of each tracker (default: 5); 0: no logging")
    add("--processes", type=int, default=8, help="processes at once (default: 8)")
    add("--runs", type=int, default=100_000, help="runs in the store (default: 100000); 0: none")
    add("--models", type=int, default=10_000, help="model versions in it (default: 10000)")
    add("--store_url", help="empty database for hftune (default: SQLite in a temporary folder)")
    add("--worker", choices=CALLS, help=argparse.SUPPRESS)
    add("--calls", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.calls)
        return 0
    pythons = {
        "hftune": sys.executable,
        "mlflow": options.mlflow_python,
        "trackio": options.trackio_python,
    }
    result: dict[str, Any] = {"cores": os.cpu_count()}
    missed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.repeats:
            sides = [
                Side(name, os.path.abspath(python), folder / name, options.store_url)
                for name, python in pythons.items()
                if python
            ]
            result |= log_side_by_side(sides, options.repeats, options.processes)
            ours, faster = result["logging"]["hftune"], result["times_faster"]
            if "mlflow" in faster and faster["mlflow"]["one_process"] < FASTER:
                missed.append(f"less than {FASTER} times MLflow's calls/s")
            if ours["rows_stored"] != ours["rows_logged"]:
                missed.append("rows of hftune are missing")
            if any(case["errors"] or case["died"] for case in ours.values() if type(case) is dict):
                missed.append("calls of hftune raised, or its processes died")
        if options.runs:
            answers = ask(folder / "large", options.store_url, options.runs, options.models)
            result["milliseconds"] = answers
            slow = [name for name, answer in answers.items() if answer["median"] > LIMIT_MS]
            missed += [f"{name}: over {LIMIT_MS} ms" for name in slow]
    result["missed"] = missed
    print(json.dumps(result, indent=2))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
