"""What docs/classification.md says is what happens."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy

import numpy as np
import pytest
from processes import run_alone

from hftune.tasks.classification.arguments_classification import (
    ClassificationDataArguments,
    ClassificationModelArguments,
)
from hftune.tasks.classification.evaluation_classification import ClassificationEvaluator
from hftune.tasks.classification.prepare_classification import prepare_classification
from hftune.utils.errors import DataError


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "classification.md").read_text(encoding="utf-8")


def test_the_program(page, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "num_train_epochs=5" in program
    path = tmp_path / "messages.py"
    path.write_text(program.replace("num_train_epochs=5", "num_train_epochs=0.1"))

    def run():
        os.chdir(tmp_path)
        runpy.run_path(str(path), run_name="__main__")

    assert run_alone(run) == 0
    run = tmp_path / "runs" / "messages"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        entry.name for entry in (run / "model").iterdir()
    }
    report = (run / "report.html").read_text(encoding="utf-8")
    for heading in ("Scores", "Confusions", "Confident mistakes", "Calibration"):
        assert heading in report


def test_the_settings(page):
    tables = page.split("## Models")
    for arguments, text in zip(
        (ClassificationDataArguments, ClassificationModelArguments), tables, strict=True
    ):
        named = set()
        for first in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE):
            named |= set(re.findall(r"`(\w+)`", first))
        fields = {field.name for field in dataclasses.fields(arguments)}
        assert fields - named <= {"data_config"}  # in the text of another one
        assert named <= fields


def test_the_error(page, tmp_path, monkeypatch):
    (shown,) = re.findall(r"```\nerror: (.*?)\n```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.csv").write_bytes(
        "text,label\n좋아요,good\n".encode() + "다른 문장,bad\n".encode("cp949") + b",bad\n"
    )
    with pytest.raises(DataError) as caught:
        prepare_classification(
            ClassificationDataArguments(data=["reviews.csv"]),
            ClassificationModelArguments(),
            seed=0,
        )
    assert str(caught.value) == shown


def test_the_metrics(page):
    named = re.findall(r"`(\w+)`", page.split("## Scores")[1].split("`primary_metric`")[0])
    evaluator = ClassificationEvaluator({"labels": [0], "input_ids": [[1]]}, ["a", "b"], None)
    evaluator._keep([np.zeros((1, 2))])
    assert set(evaluator.metrics()) == set(named) - {"ClassificationEvaluator"}
