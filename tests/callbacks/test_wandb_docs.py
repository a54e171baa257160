"""The program and the commands in docs/wandb.md do what the page says."""

from __future__ import annotations

import contextlib
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from processes import run_alone
from wandb_files import close, history, isolate
from wandb_server import WandbServer

from hftune.callbacks import wandb_mirror

pytest.importorskip("wandb")


@pytest.fixture
def page(repository):
    return (repository / "docs" / "wandb.md").read_text(encoding="utf-8")


def test_offline_then_sync(page, tmp_path, monkeypatch):
    close()
    isolate(tmp_path, monkeypatch)
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    Path("mirror.py").write_text(program)

    def run():
        with open("said.txt", "w") as said, contextlib.redirect_stdout(said):
            with contextlib.redirect_stderr(said):
                runpy.run_path("mirror.py", run_name="__main__")

    assert run_alone(run) == 0
    said = Path("said.txt").read_text()
    assert "W&B: there is no login: the run is kept offline" in said
    assert re.search(r"best: \{'loss': [\d.e-]+\} at step 75", said)
    rows = history(tmp_path / "runs" / "mirrored")
    named = {name.partition(".")[0] for row in rows for name in row}
    for name in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "epoch"):
        assert name in named and name in page
    assert {"prediction_samples", "learning_curves_table", "train/global_step"} <= named

    (sync,) = re.findall(r"^wandb sync .*offline.*$", page, re.MULTILINE)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        subprocess.run(sync, shell=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    (run_id,) = server.runs
    assert list(tmp_path.glob(f"runs/mirrored/wandb/offline-run-*-{run_id}")) != []
    sent = server.history(run_id)
    assert [row.get("train/loss") for row in sent] == [row.get("train/loss") for row in rows]


def test_limits(page):
    table = dict(re.findall(r"^\| ([a-z ]+) \| (\d+) \|", page, re.MULTILINE))
    assert table == {
        "first answer of the server": f"{wandb_mirror.ANSWER_SECONDS:g}",
        "start of the run": f"{wandb_mirror.INIT_SECONDS:g}",
        "last uploads at the end": f"{wandb_mirror.FINISH_SECONDS:g}",
        "upload of a model": f"{wandb_mirror.MODEL_SECONDS:g}",
    }
