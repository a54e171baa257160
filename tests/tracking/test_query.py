"""Runs are found by what they are, have and measured: the filter language, sorting, JSON."""

import itertools
import json
import math
import operator
import random
import time
import unicodedata

import pytest
import sqlalchemy as sa
from recorded_runs import record_run

from hftune.tracking import index
from hftune.tracking.filters import where_condition
from hftune.tracking.query import (
    compare_runs,
    experiment_json,
    find_run,
    load_experiment,
    search_runs,
    summary_json,
)
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.tracking.store import Store
from hftune.tracking.tables import models, runs
from hftune.tracking.tracker import ExperimentTracker
from hftune.utils.errors import ConfigurationError


@pytest.fixture
def store(store_url):
    return Store(store_url)


def training(rate, batch=8, **more):
    return {"training": {"learning_rate": rate, "batch_size": batch, **more}}


@pytest.fixture
def library(store, tmp_path):
    """Six runs, the first the oldest."""
    nan, inf = math.nan, math.inf
    for number, (name, logs, more) in enumerate(
        [
            (
                "good",
                [{"eval_loss": 0.9}, {"eval_loss": 0.3, "rouge1_f1": 0.45}],
                {
                    "configuration": training(3e-5, optimizer="adamw", bf16=True),
                    "tags": ["baseline", "한국어"],
                    "metric_directions": {"eval_loss": False, "rouge1_f1": True},
                    "data": {"fingerprint": "9f31"},
                },
            ),
            (
                "better",
                [{"eval_loss": 0.1, "rouge1_f1": 0.5}, {"eval_loss": 0.4, "rouge1_f1": 0.4}],
                {
                    "configuration": training(1e-4, optimizer="AdamW", bf16=False),
                    "tags": ["base"],
                    "parent_run": "exp_20260101_001",
                    "notes": "50% of the data",
                },
            ),
            (
                "diverged",
                [{"eval_loss": 0.5}, {"eval_loss": nan}],
                {"configuration": training(1), "status": "failed", "error": "ValueError: no"},
            ),
            (
                "overflown",
                [{"eval_loss": inf, "rouge1_f1": 0.1}],
                {"configuration": training("auto"), "status": "killed", "task": "ranking"},
            ),
            (
                'say "hi", it\'s',
                [],
                {"configuration": {"model": {"batch_size": 1}}, "task": "ranking"},
            ),
            ("under", [{"eval_loss": -inf}], {"configuration": training(None, batch=16)}),
        ],
        1,
    ):  # fmt: skip
        record_run(store, tmp_path / str(number), number, name, logs, **more)
    return store


def names(store, where=None, sort="created", **more):
    return [run["name"][:4] for run in search_runs(store, where, sort, **more)]


EVERY = ["good", "bett", "dive", "over", "say ", "unde"]
FILTERS = {
    "status=completed": ["good", "bett", "say ", "unde"],
    "status != completed": ["dive", "over"],
    "status in (failed, killed)": ["dive", "over"],
    "status not in (failed, 'killed')": ["good", "bett", "say ", "unde"],
    "name=good": ["good"],
    "name==good": ["good"],
    "name~O": ["good", "over"],
    'name="say \\"hi\\", it\'s"': ["say "],
    "name~'%'": [],
    "notes~50%": ["bett"],
    "notes=none": ["good", "dive", "over", "say ", "unde"],
    "notes!=none": ["bett"],
    "tags=base": ["bett"],
    "tags~base": ["good", "bett"],
    "tags=BASE": [],
    "tags=한국어": ["good"],
    unicodedata.normalize("NFD", "name~'' and tags=한국어"): ["good"],  # as macOS types it
    "tags in (base, baseline)": ["good", "bett"],
    "tags=none": ["dive", "over", "say ", "unde"],
    "not tags=base": ["good", "dive", "over", "say ", "unde"],
    "parent_run=exp_20260101_001": ["bett"],
    "parent_run!=exp_20260101_001": ["good", "dive", "over", "say ", "unde"],
    "not parent_run=exp_20260101_001": ["good", "dive", "over", "say ", "unde"],
    "parent_run!=none": ["bett"],
    "data_fingerprint=9f31": ["good"],
    "id=exp_20260101_004": ["over"],
    "step>=2": ["good", "bett", "dive"],
    "step=none": ["say "],
    "not step>=2": ["over", "say ", "unde"],
    "step<1.5": ["over", "unde"],
    "attempts=1 and seconds<1h": EVERY,
    "created=2026-01-03": ["dive"],
    "created>2026-01-03": ["over", "say ", "unde"],
    "created>=2026-01-03": ["dive", "over", "say ", "unde"],
    "created<=2026-01-03": ["good", "bett", "dive"],
    "created<2026-01-03": ["good", "bett"],
    "created=2026-01": EVERY,
    "created>2026-01": [],
    "created<2026-02": EVERY,
    "created<=2026-01-03T00:00": ["good", "bett", "dive"],
    "created<2026-01-03T00:00:00": ["good", "bett"],
    "created='2026-01-03 00:00'": ["dive"],
    "created>3d": ["say ", "unde"],
    "created>=72h": ["over", "say ", "unde"],
    "created<=3d": ["good", "bett", "dive", "over"],
    "created>1w": EVERY,
    "ended>1h": EVERY,
    "metrics.eval_loss<0.5": ["good", "bett", "unde"],
    "metrics.eval_loss<=0.4": ["good", "bett", "unde"],
    "metrics.eval_loss>0": ["good", "bett", "over"],
    "metrics.eval_loss=0.3": ["good"],
    "metrics.eval_loss!=0.3": ["bett", "dive", "over", "unde"],
    "metrics.eval_loss=nan": ["dive"],
    "metrics.eval_loss!=NaN": ["good", "bett", "over", "unde"],
    "metrics.eval_loss=inf": ["over"],
    "metrics.eval_loss>=-inf": ["good", "bett", "over", "unde"],
    "metrics.eval_loss in (0.3, nan, inf)": ["good", "dive", "over"],
    "not metrics.eval_loss<0.5": ["dive", "over", "say "],
    "min.eval_loss<0.2": ["bett"],
    "max.eval_loss>0.8": ["good"],
    "best.eval_loss=0.1": ["bett"],
    "best.rouge1_f1>=0.5": ["bett"],
    "metrics.eval_loss<0.5 and metrics.rouge1_f1>0.4": ["good"],
    "metrics.eval_loss<0.35 or metrics.rouge1_f1>0.35": ["good", "bett", "unde"],
    "status=completed and (name=good or name=under)": ["good", "unde"],
    "status=completed and name=good or name=overflown": ["good", "over"],
    "status=completed AND NOT name=good": ["bett", "say ", "unde"],
    "config.learning_rate>3e-5": ["bett", "dive"],
    "config.training.learning_rate<=1e-4": ["good", "bett"],
    "config.learning_rate=auto": ["over"],
    "config.learning_rate!=auto": ["good", "bett", "dive", "unde"],
    "config.learning_rate!=1": ["good", "bett", "over", "unde"],
    "config.learning_rate=none": ["unde"],
    "config.learning_rate='1'": [],
    "config.optimizer=adamw": ["good"],
    "config.optimizer~adamw": ["good", "bett"],
    "config.bf16=true": ["good"],
    "config.bf16=1": [],
    "config.bf16 in (true, false)": ["good", "bett"],
    "config.training.batch_size=16": ["unde"],
    "  status = completed\n and\tname = good ": ["good"],
}


def test_filters(library, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1767744000.0)  # 2026-01-07
    for where, expected in FILTERS.items():
        assert names(library, where) == expected, where


def test_ages_count_back_from_now(library):
    assert names(library, "ended>1h and ended<=0s") == EVERY
    assert names(library, "created>1d") == []


def test_filters_of_metrics_agree_with_python(store, tmp_path, monkeypatch):
    """Also where so many runs have the metric that each is asked for by itself."""
    chance = random.Random(0)
    values = {}
    for number in range(1, 13):
        value = chance.choice([0.1, 0.2, 0.3, 0.4, math.nan, math.inf, -math.inf, None])
        values[f"run {number}"] = value
        logs = [] if value is None else [{"x": 1.0}, {"x": value}]
        record_run(store, tmp_path / str(number), number, logs=logs)
    record_run(store, tmp_path / "13", 13, logs=[{"x": 0.2, "y": 0.0}])
    values["run 13"] = 0.2
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
               "=": operator.eq, "!=": operator.ne}  # fmt: skip
    for many, symbol, bound in itertools.product((3, 20_000), compare, (0.1, 0.25, 0.4, math.inf)):
        monkeypatch.setattr("hftune.tracking.filters._MANY", many)
        where, holds = f"metrics.x {symbol} {bound}", compare[symbol]
        expected = {n for n, v in values.items() if v is not None and holds(v, bound)}
        found = search_runs(store, where, limit=None)
        assert {run["name"] for run in found} == expected, where
        found = search_runs(store, f"not {where}", limit=None)
        assert {run["name"] for run in found} == values.keys() - expected, where


WRONG = {
    "status=complete": ("'complete' is no status; expected created, running, completed, failed, "
                        "killed, preempted, crashed. Did you mean 'completed'?", "complete"),
    "metrics.eval_los<1": ("no run has logged a metric 'eval_los'. Did you mean 'eval_loss'?",
                           "metrics.eval_los"),
    "name=x or min.nothing<1": ("no run has logged a metric 'nothing'.", "min.nothing"),
    "eval_loss<1": ("'eval_loss' is nothing that runs are searched by. Did you mean "
                    "'metrics.eval_loss'?", "eval_loss"),
    "statu=failed": ("'statu' is nothing that runs are searched by. Did you mean 'status'?",
                     "statu"),
    "config.learning_rat=1": ("no run has a setting 'learning_rat'. Did you mean "
                              "'learning_rate'?", "config.learning_rat"),
    "config.batch_size=1": ("several settings are called 'batch_size': write "
                            "config.model.batch_size or config.training.batch_size",
                            "config.batch_size"),
    "best.eval_lss<1": ("no run has logged a metric 'eval_lss'. Did you mean 'eval_loss'?",
                        "best.eval_lss"),
    "status=completed and": ("expected a condition such as status=completed, found the end", None),
    "status=completed and or": ("expected a condition such as status=completed, found 'or'", "or"),
    "(status=completed": ("expected ')', found the end", None),
    "status=completed)": ("expected 'and', 'or' or the end (a text with spaces needs quotes), "
                          "found ')'", ")"),
    "name=my run": ("expected 'and', 'or' or the end (a text with spaces needs quotes), found "
                    "'run'", "run"),
    "name='my run": ("this quote has no end", "'"),
    "name!good": ("expected != after !", "!"),
    "status": ("expected one of = != < <= > >= ~ in, found the end", None),
    "status=": ("expected a value after '=', found the end", None),
    "status=(a)": ("expected a value after '=', found '('", "("),
    "status in failed": ("expected '(' after 'in', found 'failed'", "failed"),
    "status in (failed": ("expected ',' or ')', found the end", None),
    "status not failed": ("expected 'in', found 'failed'", "failed"),
    "name<b": ("'name' is text, which has =, !=, ~ and in", "<"),
    "step~3": ("'step' is no text, which alone has ~ (contains)", "~"),
    "step=three": ("expected a number for 'step', found 'three'", "three"),
    "step>nan": ("expected a number for 'step', found 'nan'", "nan"),
    "metrics.eval_loss<low": ("expected a number for 'metrics.eval_loss', found 'low'", "low"),
    "metrics.eval_loss<nan": ("nan is neither greater nor smaller: only = and != work with it",
                              "nan"),
    "config.learning_rate<auto": ("expected a number for 'config.learning_rate', found 'auto'",
                                  "auto"),
    "created>yesterday": ("expected a time for 'created' such as 2026-11-20, 2026-11-20T10:30 "
                          "(UTC) or 7d (7 days ago; s, m, h, d, w), found 'yesterday'",
                          "yesterday"),
    "created>2026-02-30": ("expected a time for 'created' such as", "2026-02-30"),
    "not " * 60 + "name=x": ("more than 50 levels of 'not' and parentheses", "not"),
}  # fmt: skip


def test_broken_filters_say_what_and_where(library):
    for where, (message, wrong) in WRONG.items():
        with pytest.raises(ConfigurationError) as error:
            search_runs(library, where)
        said, shown, marks = str(error.value).splitlines()
        assert said.startswith(f"the filter: {message}"), where
        if wrong is None:
            assert marks == " " * (2 + len(where.rstrip())) + "^"
        else:
            start = marks.index("^")
            assert shown[start:].startswith(wrong) and marks[start:] == "^" * len(wrong), where


def test_marks_stand_under_wide_letters(library):
    with pytest.raises(ConfigurationError) as error:
        search_runs(library, "name=한국어 and status=완료")
    _, shown, marks = str(error.value).splitlines()
    assert shown == "  name=한국어 and status=완료"
    assert marks == " " * (2 + 5 + 6 + 12) + "^" * 4  # a Korean letter takes two cells


def test_strange_names_are_only_text(library):
    for text in (
        "../../etc/passwd",
        "x" * 300,
        "a\nb\x00c\x1b[31m",
        "'; DROP TABLE hftune_runs; --",
    ):
        quoted = f'"{text}"'
        assert names(library, f"name={quoted} or tags={quoted} or notes~{quoted}") == []
        for word in (text, f"metrics.{text}", f"config.{text}"):
            with pytest.raises(ConfigurationError):
                search_runs(library, sort=word)
        with pytest.raises(ConfigurationError, match="no run '") as error:
            find_run(library, text)
        assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
    assert len(names(library)) == 6


def test_runs_with_strange_names_are_found(store, tmp_path):
    strange = ["../../etc", "x" * 300, "line\nbreak", "'; --", "100%_\\"]
    for number, name in enumerate(strange, 1):
        record_run(store, tmp_path / str(number), number, name, [{"bad name/x": number}])
    for number, name in enumerate(strange, 1):
        quoted = '"' + name.replace("\\", "\\\\") + '"'
        for where in (f"name={quoted}", f"name~{quoted}"):
            assert [run["name"] for run in search_runs(store, where)] == [name]
        assert find_run(store, name).id == f"exp_20260101_{number:03d}"
    assert names(store, 'metrics."bad name/x">4') == ["100%"]


# Sorting


ORDERS = {
    "created": EVERY,
    "-created": EVERY[::-1],
    None: EVERY[::-1],
    "name": ["bett", "dive", "good", "over", "say ", "unde"],
    "-id": EVERY[::-1],
    # finite, infinite, NaN, without
    "metrics.eval_loss": ["good", "bett", "unde", "over", "dive", "say "],
    "-metrics.eval_loss": ["bett", "good", "over", "unde", "dive", "say "],
    "min.eval_loss": ["bett", "good", "dive", "unde", "over", "say "],
    "best.eval_loss": ["bett", "good", "dive", "unde", "over", "say "],
    "-best.rouge1_f1": ["bett", "good", "over", "unde", "say ", "dive"],
    # numbers, the rest, without
    "config.learning_rate": ["good", "bett", "dive", "over", "unde", "say "],
    "-config.learning_rate": ["dive", "bett", "good", "unde", "over", "say "],
    "parent_run": ["bett", "unde", "say ", "over", "dive", "good"],
    "-step": ["dive", "bett", "good", "unde", "over", "say "],
}


def test_order(library):
    chosen = ["good", "dive", "say "]
    where = "id in (exp_20260101_001, exp_20260101_003, exp_20260101_005)"
    for sort, expected in ORDERS.items():
        assert names(library, sort=sort) == expected, sort
        for limit in (1, 3, 5):
            assert names(library, sort=sort, limit=limit) == expected[:limit], sort
        assert names(library, where, sort) == [name for name in expected if name in chosen], sort


def test_order_by_what_nobody_knows(library):
    with pytest.raises(ConfigurationError, match="no run has logged a metric 'los'"):
        search_runs(library, sort="-metrics.los")


def test_what_a_search_says_of_a_run(library):
    columns = ["metrics.eval_loss", "best.rouge1_f1", "config.learning_rate", "host", "max_steps"]
    first, second, third, fourth = search_runs(library, sort="created", limit=4, columns=columns)
    assert first["metrics"] == {"eval_loss": 0.3, "rouge1_f1": 0.45}
    assert first["values"] == {
        "metrics.eval_loss": 0.3, "best.rouge1_f1": 0.45, "config.learning_rate": 3e-5,
        "host": first["host"], "max_steps": None,
    }  # fmt: skip
    assert second["values"]["best.rouge1_f1"] == 0.5 and second["tags"] == ["base"]
    assert math.isnan(third["metrics"]["eval_loss"])
    assert "best.rouge1_f1" not in third["values"]
    assert fourth["metrics"]["eval_loss"] == math.inf
    assert fourth["values"]["config.learning_rate"] == "auto"
    assert "record" not in first
    said = summary_json(third)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["experiment_id"] == "exp_20260101_003" and said["metrics"] == {"eval_loss": "NaN"}
    assert said["start_time"] == "2026-01-03T00:00:00Z" and said["status"] == "failed"


def test_lists_of_many_runs_go_through_indexes(library, tmp_path):
    """The tables are small here: what counts is that no plan reads one from end to end."""
    if not library.is_sqlite:
        pytest.skip("PostgreSQL plans by what is in the tables")
    statements = []
    with library.read() as connection:
        engine = connection.engine
    listen = (engine, "before_cursor_execute",
              lambda c, cursor, text, values, *rest: statements.append((text, values)))  # fmt: skip
    sa.event.listen(*listen)
    for where, sort in [
        (None, None),
        ("status=completed", None),
        ("status=completed and metrics.eval_loss<0.5", None),
        ("task=ranking and min.eval_loss<0.5", "metrics.eval_loss"),
        ("config.learning_rate<1", "-best.rouge1_f1"),
    ]:
        search_runs(library, where, sort, limit=2)
    sa.event.remove(*listen)
    reading = [(text, values) for text, values in statements if text.startswith(("SELECT", "WITH"))]
    assert len(reading) > 10
    with library.read() as connection:
        for text, values in reading:
            assert "record" not in text.split("FROM")[0]
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
            steps = [row[3] for row in plan]
            tables = ("hftune_runs", "hftune_summaries", "hftune_params")
            whole = [s for s in steps if s in {f"SCAN {table}" for table in tables}]
            assert not whole, (text, steps)
            assert "USE TEMP B-TREE FOR ORDER BY" not in steps, (text, steps)


# One run


def test_finding_one_run(library, tmp_path):
    expected = "exp_20260101_002"
    for text in (expected, "0101_002", "002", "better", str(tmp_path / "2")):
        assert find_run(library, text).id == expected
    assert find_run(library, "latest").name == "under"
    run = find_run(library, expected)
    assert run.folder == str(tmp_path / "2") and run.status == "completed"
    assert "record" not in run._fields


def test_runs_that_are_not_there(library, store, tmp_path):
    with pytest.raises(ConfigurationError) as error:
        find_run(library, "exp_20260101_0O2")
    assert "no run 'exp_20260101_0O2' in the store" in str(error.value)
    assert "Did you mean 'exp_20260101_002'" in str(error.value)
    with pytest.raises(ConfigurationError, match="Did you mean 'diverged'"):
        find_run(library, "divergd")
    with pytest.raises(ConfigurationError, match="no run '00'"):
        find_run(library, "00")
    record_run(store, tmp_path / "again", 7, "good")
    with pytest.raises(ConfigurationError) as error:
        find_run(library, "good")
    assert str(error.value) == (
        "several runs are called 'good': exp_20260101_007, exp_20260101_001 (the newest first). "
        "Give an id."
    )
    record_run(store, tmp_path / "other_day", 1, day=20260202, uid="f" * 32)
    with pytest.raises(ConfigurationError, match="'001': exp_20260202_001, exp_20260101_001"):
        find_run(library, "001")
    folder = tmp_path / "unknown"
    RunRecord.start(folder, task="test", configuration={}, uid="e" * 32).finish()
    with pytest.raises(
        ConfigurationError, match=f"not in the store .* hftune runs reindex {folder}"
    ):
        find_run(library, str(folder))


def test_an_empty_store(store):
    for text in ("latest", "exp_20260101_001", ""):
        with pytest.raises(ConfigurationError, match="has no runs yet"):
            find_run(store, text)
    assert search_runs(store) == []
    with pytest.raises(ConfigurationError, match="no run has logged a metric 'loss'"):
        search_runs(store, "metrics.loss<1")


def test_the_json_of_the_manual(store, tmp_path):
    """Its example, key by key."""
    tracker = ExperimentTracker(store)
    experiment_id = tracker.start_experiment(
        name="bart_base_experiment",
        description="KoBART 기본 실험",
        config={"model": {"architecture": "kobart"}, "training": {"learning_rate": 5e-5}},
        model_type="kobart",
        dataset_info={"train_size": 1000, "val_size": 200},
        wandb_run_id="wandb_run_123",
        model_info={"model_id": "model_20250128_001", "checkpoint_path": "/models/best_model"},
    )
    tracker.log_metrics({"loss": math.nan}, step=10)
    tracker.end_experiment(
        experiment_id, {"loss": 1.23}, {"rouge_combined_f1": 0.47}, notes="실험 완료, 좋은 성능"
    )
    known = tracker.get_experiment(experiment_id)
    assert json.loads(json.dumps(known, allow_nan=False)) == known
    assert list(known)[:10] == [
        "experiment_id", "name", "start_time", "end_time", "status", "config", "metrics",
        "model_info", "wandb_run_id", "notes",
    ]  # fmt: skip
    for key in ("start_time", "end_time"):
        time.strptime(known[key], "%Y-%m-%dT%H:%M:%SZ")
    assert known["experiment_id"] == experiment_id and known["status"] == "completed"
    assert known["config"] == {
        "model": {"architecture": "kobart"}, "training": {"learning_rate": 5e-5}
    }  # fmt: skip
    assert known["metrics"] == {"loss": "NaN", "final_loss": 1.23, "best_rouge_combined_f1": 0.47}
    assert known["model_info"]["checkpoint_path"] == "/models/best_model"
    assert known["wandb_run_id"] == "wandb_run_123" and known["notes"] == "실험 완료, 좋은 성능"
    assert known["data"] == {"train_size": 1000, "val_size": 200} and known["step"] == 10
    assert known["children"] == known["models"] == known["checkpoints"] == []
    [listed] = tracker.list_experiments("status=completed and best.loss!=1")
    assert listed["experiment_id"] == experiment_id and listed["metrics"] == known["metrics"]
    assert tracker.list_experiments("status=failed") == []


def test_everything_that_is_known_of_a_run(store, tmp_path):
    table = {"training": {"rate": {"value": 1e-4, "source": "command line"},
                          "steps": {"value": [1, 2], "source": "default"}}}  # fmt: skip
    folder = tmp_path / "run"
    start = dict(
        task="test", configuration=table, experiment_id="exp_20260101_001", uid="1" * 32, name="a"
    )
    record = RunRecord.start(folder, **start)
    record.begin_stage("first")
    for step in (1, 2, 3):
        record.log_metrics({"loss": step}, step=step)
    record.log_event("checkpoint", step=2, path="checkpoint-2")
    record.finish("preempted", "stopped by SIGTERM")
    record = RunRecord.start(folder, **start)
    record.begin_stage("first")
    record.resumed(2, "checkpoint-2")
    record.log_metrics({"other": 1.0}, step=3)
    record.trouble("odd", "something is odd")
    record.finish("failed", "Traceback:\nValueError: no")
    index.catch_up(store, folder)
    for number in (2, 3):
        record_run(store, tmp_path / str(number), number, parent_run="exp_20260101_001")
    with store.write() as connection:
        row = dict(id="model_20260101_001", name="net", version=2, architecture="x", digest="d",
                   bytes=1, created=0.0, experiment_id="exp_20260101_001", record={})  # fmt: skip
        connection.execute(models.insert().values(**row))
    known = load_experiment(store, "a")
    assert known["metrics"] == {"loss": 2.0, "other": 1.0}  # step 3 of the first attempt is gone
    assert known["config"] == {"training": {"rate": 1e-4, "steps": [1, 2]}}
    assert known["config_sources"] == {
        "training.rate": "command line", "training.steps": "default"
    }  # fmt: skip
    assert [c["path"] for c in known["checkpoints"]] == ["checkpoint-2"]
    assert [w["message"] for w in known["warnings"]] == ["something is odd"]
    assert [a["status"] for a in known["attempts"]] == ["preempted", "failed"]
    assert known["error"] == "Traceback:\nValueError: no" and known["stages"] == ["first"]
    assert known["children"] == ["exp_20260101_002", "exp_20260101_003"]
    assert known["models"] == [{"model_id": "model_20260101_001", "name": "net", "version": 2}]
    view = RunView.from_folder(folder)
    alone = experiment_json(view)
    assert {key for key in known if known[key] != alone[key]} == {"children", "models"}


def test_a_run_that_crashed_ended_when_it_was_last_heard_of(store, tmp_path):
    record = record_run(store, tmp_path / "run", 1, logs=[{"loss": 1.0}])
    values = record.values | {
        "status": "running",
        "finished": None,
        "updated": record.values["started"],
    }
    record.path.write_text(json.dumps(values), encoding="utf-8")
    index.catch_up(store, tmp_path / "run")
    known = load_experiment(store, "exp_20260101_001")
    assert known["status"] == "crashed"
    heard = RunView.from_folder(tmp_path / "run").points[-1].time
    assert known["end_time"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(heard))


def test_comparing(library):
    views = [RunView.from_store(library, f"exp_20260101_00{n}") for n in (1, 2, 3)]
    differing = compare_runs(views)
    assert differing["config"] == {
        "training.learning_rate": [3e-5, 1e-4, 1],
        "training.optimizer": ["adamw", "AdamW", None],
        "training.bf16": [True, False, None],
    }
    assert differing["metrics"] == {
        "eval_loss": [0.3, 0.4, "NaN"], "rouge1_f1": [0.45, 0.4, None]
    }  # fmt: skip
    assert differing["data"] == {"fingerprint": ["9f31", None, None]}
    assert differing["versions"] == differing["git"] == differing["hardware"] == {}
    everything = compare_runs(views, everything=True)
    assert everything["config"]["training.batch_size"] == [8, 8, 8]
    assert everything["versions"]["python"] == [views[0].record["versions"]["python"]] * 3
    assert everything["metrics"] == differing["metrics"]
    assert compare_runs(views[:1]) == {part: {} for part in differing}


def test_conditions_are_never_null(library):
    """``not`` in front of a condition gives exactly the other runs."""
    with library.read() as connection:
        for where in FILTERS:
            condition = where_condition(connection, where)
            count = sa.select(sa.func.count()).select_from(runs)
            both = [connection.scalar(count.where(c)) for c in (condition, sa.not_(condition))]
            assert sum(both) == 6, where
