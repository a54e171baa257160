"""The programs in docs/training.md do what the page says."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys

from processes import run_alone


def test_programs(repository, tmp_path):
    text = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    small, plain = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for setting, shorter in (
        ("num_train_epochs=16", "num_train_epochs=0.2"),
        ("eval_steps=400", "eval_steps=20"),
        ("save_steps=400", "save_steps=20"),
    ):
        assert setting in small
        small = small.replace(setting, shorter)
    (tmp_path / "small.py").write_text(small)
    (tmp_path / "plain.py").write_text(plain)

    def run(name):
        os.chdir(tmp_path)
        sys.path.insert(0, str(tmp_path))
        runpy.run_path(name, run_name="__main__")

    assert run_alone(lambda: run("small.py")) == 0
    found = {path.name for path in (tmp_path / "runs" / "small").iterdir()}
    assert {"checkpoint-50", "gradient_health.json", "model"} <= found
    assert run_alone(lambda: run("plain.py")) == 0
    health = json.loads((tmp_path / "runs" / "plain" / "gradient_health.json").read_text())
    assert set(health["modules"]) == {"body", "head"}
