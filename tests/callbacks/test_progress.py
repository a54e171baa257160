"""The progress bar counts from where a run goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from hftune.callbacks import progress
from hftune.callbacks.progress import HftuneProgressCallback


class Arguments:
    disable_tqdm = False
    metric_for_best_model = "error"


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def said(monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    monkeypatch.setattr(progress, "console", lambda: console)
    return stream


def begin(step, callback, **settings):
    state = TrainerState(global_step=step, max_steps=100)
    callback.on_train_begin(Arguments(), state, TrainerControl())
    return state


def test_time_left_is_from_this_sessions_rate(clock, said):
    callback = HftuneProgressCallback()
    state = begin(60, callback)
    assert callback.seconds_left(state) is None
    clock.now += 20
    state.global_step = 65
    assert callback.seconds_left(state) == 4 * 35


def test_lines_where_there_is_no_terminal(clock, said):
    callback = HftuneProgressCallback(stage="lead time 24 h")
    state = begin(60, callback)
    callback.on_log(Arguments(), state, None, logs={"loss": 0.12345678, "learning_rate": 1e-4})
    for _ in range(70):
        clock.now += 1
        state.global_step += 0.5
        callback.on_step_end(Arguments(), state, None)
    callback.on_evaluate(Arguments(), state, None, metrics={"eval_error": 0.5})
    assert said.getvalue().splitlines() == [
        "lead time 24 h: step 60 of 100",
        "lead time 24 h: step 75.0 of 100  loss 0.1235  lr 0.0001  0:50 left",
        "lead time 24 h: step 90.0 of 100  loss 0.1235  lr 0.0001  0:20 left",
        "lead time 24 h: step 95.0 of 100  loss 0.1235  lr 0.0001  eval_error 0.5  0:10 left",
    ]


def test_a_bar_goes_on_where_the_run_does(clock, said):
    callback = HftuneProgressCallback(bar=True)
    state = begin(60, callback)
    bar = callback._progress
    assert bar.tasks[0].completed == 60 and bar.tasks[0].total == 100
    state.global_step = 61
    callback.on_step_end(Arguments(), state, None)
    assert bar.tasks[0].completed == 61
    callback.on_prediction_step(Arguments(), state, None, eval_dataloader=[1, 2, 3])
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
        ("training", 61, 100),
        ("evaluation", 1, 3),
    ]
    callback.on_evaluate(Arguments(), state, None, metrics={})
    assert [task.description for task in bar.tasks] == ["training"]
    callback.on_train_end(Arguments(), state, None)
    assert callback._progress is None
    assert "61/100" in said.getvalue()


def test_only_the_main_process_talks(clock, said):
    callback = HftuneProgressCallback(bar=True)
    state = TrainerState(global_step=3, max_steps=9, is_world_process_zero=False)
    callback.on_train_begin(Arguments(), state, None)
    clock.now += 100
    callback.on_step_end(Arguments(), state, None)
    callback.on_train_end(Arguments(), state, None)
    assert said.getvalue() == ""
