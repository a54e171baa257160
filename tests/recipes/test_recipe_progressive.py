"""The progressive recipe from a table to a report, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import Script

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 600,
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "logging_steps": 5,
    "step_size": 0.3,
    "use_cpu": True,
}
STAGES = ["stage_1_10pct", "stage_2_40pct", "stage_3_70pct", "stage_4_100pct"]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    from hftune.tasks.classification.example_classification import example_rows

    path = tmp_path_factory.mktemp("table") / "messages.jsonl"
    lines = [json.dumps({"text": t, "label": n}, ensure_ascii=False) for t, n in example_rows(500)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory, table) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(json.dumps({**SMALL, "data": [str(table)]}))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def start(repository: Path, home: Path, *arguments: str | Path, **settings: int) -> Script:
    script = repository / "recipes/progressive.py"
    return Script(script, *arguments, HFTUNE_HOME=str(home), **settings)


def run(*arguments, expected: int = 0, **settings: int) -> str:
    process = start(*arguments, **settings)
    assert process.wait() == expected, process.printed()
    return " ".join(process.printed().split())


@pytest.fixture(scope="module")
def finished(repository, home, config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    said = run(repository, home, "--config", config, "--output_dir", folder)
    assert "stage 4 of 4: 100 % of the data" in said
    assert f"Report: {folder}/report.html" in said
    return folder


def compared(folder: Path) -> dict:
    """What must not depend on how often a run was interrupted, or on how many processes."""
    found = {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.glob("**/model.safetensors"))
        if "quarantine" not in p.parts
    }
    results = json.loads((folder / "progressive_training_results.json").read_text())
    del results["total_seconds"]
    for stage in results["stages"]:
        for name in ("seconds", "attempts", "resources"):
            del stage[name]
    scores = json.loads((folder / "scores.json").read_text())
    return {**found, "results": results, "scores": scores}


def test_what_a_run_leaves(finished):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for name in (
        "run.json",
        "report.html",
        "scores.json",
        "plan.json",
        "stages.json",
        "progressive_training_results.json",
        "progressive_training_summary.txt",
    ):
        assert (finished / name).is_file()
    assert len(list((finished / "logs").glob("progressive_training_*.log"))) == 1
    for folder in (finished / "model", finished / STAGES[1] / "checkpoints/best_model"):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        logits = model(**tokenizer("환불해 주세요", return_tensors="pt")).logits
        assert logits.shape == (1, 8)
        assert "refund" in model.config.label2id
    scores = json.loads((finished / "scores.json").read_text())
    assert set(scores["baselines"]) == {"majority", "naive_bayes"}
    page = (finished / "report.html").read_text()
    for text in ("Learning curve", "Confusions", "Confident mistakes", "100 % of the data"):
        assert text in page
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["stages"] == STAGES
    assert {json.loads(line)["stage"] for line in open(finished / "metrics.jsonl")} == {0, 1, 2, 3}
    events = [json.loads(line) for line in open(finished / "events.jsonl")]
    assert [e["name"] for e in events if e["kind"] == "stage"] == STAGES


def test_again_is_nothing_to_do(repository, home, config, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("stage_*/**/*") if p.is_file()}
    said = run(repository, home, "--config", config, "--output_dir", finished)
    assert "all 4 stages are done, nothing to train" in said
    assert "tokenised before" in said
    assert {p: p.stat().st_mtime_ns for p in finished.glob("stage_*/**/*") if p.is_file()} == before


def wait_for(condition, process) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.printed()
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_and_started_again(repository, home, config, finished, tmp_path):
    """kill -9 once in a stage, once between two; then Ctrl-C; the end is the same to the bit."""
    arguments = (repository, home, "--config", config, "--output_dir", tmp_path / "out")
    moments = [
        lambda: list(tmp_path.glob(f"out/{STAGES[1]}/checkpoints/checkpoint-*/optimizer.pt")),
        lambda: '"done"' in (tmp_path / "out/stages.json").read_text().partition(STAGES[1])[2],
    ]
    for moment in moments:
        process = start(*arguments)
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = start(*arguments)
    wait_for(lambda: (tmp_path / "out" / STAGES[3] / "checkpoints").is_dir(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 75, process.printed()
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "killed"
    run(*arguments)
    assert compared(tmp_path / "out") == compared(finished)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert [a["status"] for a in record["attempts"]] == [
        "crashed",
        "crashed",
        "killed",
        "completed",
    ]


def test_a_process_for_each_stage(repository, home, config, finished, tmp_path):
    """The script replaces itself: what the new processes arrive at is what one process does."""
    arguments = ("--config", config, "--output_dir", tmp_path, "--isolate_stages", "true")
    said = run(repository, home, *arguments)
    assert "stage 4 of 4" in said
    assert compared(tmp_path) == compared(finished)
    record = json.loads((tmp_path / "run.json").read_text())
    assert [a["status"] for a in record["attempts"]] == [*["preempted"] * 3, "completed"]
    assert record["status"] == "completed"


def test_two_processes(repository, home, config, tmp_path):
    """Each stage in processes of its own, which meet again after each stage."""
    run(
        *(repository, home, "--config", config, "--start_ratio", "0.4"),
        *("--output_dir", tmp_path, "--isolate_stages", "true"),
        processes=2,
    )
    results = json.loads((tmp_path / "progressive_training_results.json").read_text())
    assert [s["title"] for s in results["stages"]] == [
        "40 % of the data",
        "70 % of the data",
        "100 % of the data",
    ]


def test_bad_input_is_named_before_anything_is_written(repository, home, config, table, tmp_path):
    def fails(*arguments: str | Path) -> str:
        said = run(
            *(repository, home, "--config", config, "--output_dir", tmp_path / "out"),
            *arguments,
            expected=2,
        )
        assert not list(tmp_path.glob("out/stage_*"))
        assert not (tmp_path / "out/plan.json").exists()
        return said

    said = fails("--start-ratio", "0.5", "--max-ratio", "20", "--epochs-per-stage", "0", "--foo")
    assert "max_ratio: found 20, expected a fraction" in said
    assert "epochs_per_stage: found 0" in said
    assert "foo" in said
    assert "num_train_epochs: stages have epochs of their own" in fails("--num_train_epochs", "5")
    said = fails("--text-column", "txet")
    assert "txet" in said and "Did you mean 'text'?" in said
    cut = tmp_path / "cut.jsonl"
    cut.write_text(table.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert "cut.jsonl" in fails("--data", cut)


def test_another_plan_is_refused(repository, home, config, finished):
    said = run(
        *(repository, home, "--config", config, "--output_dir", finished),
        *("--step-size", "0.2"),
        expected=2,
    )
    assert "stage 2 ('40 % of the data', which is done)" in said
    assert "Another plan needs another output_dir" in said.replace("another plan", "Another plan")


def test_the_guide_shortcut_of_a_shell_script(repository):
    assert os.access(repository / "run_progressive_training.sh", os.X_OK)
    assert shutil.which("bash")
