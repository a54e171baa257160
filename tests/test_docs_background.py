"""The commands of docs/background.md, on a stand-in for a training, print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

TRAINING = """
import signal, sys, time
from hftune.tracking.run_record import RunRecord
from hftune.utils.errors import TrainingInterrupted

got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
with RunRecord.start("runs/x", task="stand-in", configuration={}) as record:
    record.begin_stage("stage_1_10pct")
    record.log_metrics({"loss": 0.5}, step=7)
    print("step 7", end="")
    open("begun", "w").close()
    for _ in range(600):
        time.sleep(0.1)
        if got:
            raise TrainingInterrupted("SIGTERM", 7, "runs/x/checkpoint-7")
"""


def without_numbers(text: str) -> str:
    for pattern in (r"\d{8}_\d{6}", r"process \d+", r"\d{4}-\d\d-\d\d \d\d:\d\d", r"\(\d+ s\)"):
        text = re.sub(pattern, "N", text)
    return text.strip()


def test_commands_print_what_is_shown(repository: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "train.py").write_text(TRAINING, encoding="utf-8")
    programs = tmp_path / "bin"
    programs.mkdir()
    start = f'exec "{sys.executable}"'
    for name, line in {
        "python": f'{start} "$@"',
        "hftune": f'{start} -c "import sys, hftune.cli.main as m; sys.exit(m.main())" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    text = (repository / "docs" / "background.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```\n```text\n(.*?)```", text, flags=re.DOTALL)
    assert [command.split()[2] for command, _ in blocks] == ["start", "status", "logs", "stop"]
    for command, shown in blocks:
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert without_numbers(done.stdout) == without_numbers(shown)
        while not (tmp_path / "begun").exists():  # the run has a record a moment before
            time.sleep(0.02)
    assert not (tmp_path / "runs" / "x" / "train_training.pid").exists()
