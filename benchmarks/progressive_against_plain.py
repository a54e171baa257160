"""Ten stages of progressive training against ten separate runs with plain ``transformers``.

    python benchmarks/progressive_against_plain.py [--data_folder FOLDER] [--sets banking77,nsmc]

Both train a small BERT of the same sizes on 10 %, 20 %, ... 100 % of the same tables, each stage
from the last one's best model, with the same epochs, batches, learning rate and evaluations, on one
thread, a process at a time:

- hftune: one process of ``recipes/progressive.py``, which also trains the tokenizer, fits the
  learning curve, scores baselines and writes the reports.
- plain: a process for each stage, as one writes them around ``Trainer`` (:func:`plain_stage`),
  which reads the tables, tokenises its subset and saves its best model; the tokenizer is given to
  it, the last one scores the test table.

All caches are cold at the start of a turn: hftune's tables, and those of ``datasets``, which the
ten plain processes share. The sides take turns in going first. Wall and processor times are from
outside, medians over the turns are shown; so is what of the wall time the sides' own clocks tell:

- data: reading, tokenising, subsets;
- training: all of ``train()`` but its evaluations, with its checkpoints;
- evaluating: after each epoch, and on the test table in the end;
- the rest: starting Python and its libraries, models saved after a stage, results and reports.

Then the learning curve: what the first four stages say of the score on all data, which is to lie in
their interval. Exits with 1 where it does not, or the ratio of wall times is over ``--limit``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STAGES, FIRST = 10, 4
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
INTERMEDIATE, VOCABULARY, DROPOUT, MAX_LENGTH = 256, 8000, 0.1, 128
BATCH, EVAL_BATCH = 16, 32
PROCESSOR = ("children_user", "children_system")  # of os.times()
SETS: dict[str, dict[str, Any]] = {
    "banking77": {
        "train": "classification/banking77/train.csv",
        "test": "classification/banking77/test.csv",
        "columns": ("text", "category"),
        "read": {},
        "epochs": 3,
        "learning_rate": 1e-3,
    },
    "nsmc": {
        "train": "classification/nsmc/train.tsv",
        "test": "classification/nsmc/test.tsv",
        "columns": ("document", "label"),
        "read": {"delimiter": "\t", "quoting": 3, "lineterminator": "\n"},
        "epochs": 2,
        "learning_rate": 1e-3,
    },
}


# A stage with plain transformers, in a process of its own


def plain_stage(task: dict[str, Any]) -> None:
    """Trains one stage; no hftune here. Leaves seconds of its parts, and scores, in ``stage.json``.

    Args:
        task (dict): The data set's entry of :data:`SETS`, with paths; ``tokenizer``, ``before``
            (the last stage's model, or None), ``folder``, ``fraction``.
    """
    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(42)
    begin = time.perf_counter()
    files = {"train": task["train"], "test": task["test"]}
    text, label = task["columns"]
    rows = load_dataset("csv", data_files=files, **task["read"])
    rows = rows.select_columns([text, label]).rename_columns({text: "text", label: "labels"})
    rows = rows.class_encode_column("labels")
    names = rows["train"].features["labels"].names
    split = rows["train"].train_test_split(0.1, seed=42, stratify_by_column="labels")
    subset = split["train"].shuffle(seed=42)
    subset = subset.select(range(round(task["fraction"] * len(subset))))
    tokenizer = AutoTokenizer.from_pretrained(task["tokenizer"])

    def tokenized(table: Any) -> Any:
        return table.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
            batched=True,
            remove_columns="text",
        )

    train, validation = tokenized(subset), tokenized(split["test"])
    is_last = task["fraction"] == 1
    test = tokenized(rows["test"]) if is_last else None
    data = time.perf_counter() - begin
    if task["before"] is None:
        config = BertConfig(
            vocab_size=len(tokenizer),
            **SIZES,
            intermediate_size=INTERMEDIATE,
            hidden_dropout_prob=DROPOUT,
            attention_probs_dropout_prob=DROPOUT,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(task["before"])

    def accuracy(prediction: Any) -> dict[str, float]:
        right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(right.mean())}

    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=task["folder"],
            num_train_epochs=task["epochs"],
            learning_rate=task["learning_rate"],
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=EVAL_BATCH,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    begin = time.perf_counter()
    trainer.train()
    training = time.perf_counter() - begin
    trainer.save_model(os.path.join(task["folder"], "model"))
    tested = trainer.evaluate(test)["eval_accuracy"] if is_last else None
    log = trainer.state.log_history
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in log)
    inside = evaluating - (log[-1]["eval_runtime"] if is_last else 0.0)
    found = {
        "data": data,
        "training": training - inside,
        "evaluating": evaluating,
        "validation": [len(validation), trainer.state.best_metric],
        "test": [len(rows["test"]), tested],
    }
    Path(task["folder"], "stage.json").write_text(json.dumps(found), encoding="utf-8")


# The two sides


def run(command: list[Any], folder: Path, **environment: Any) -> None:
    """Runs a Python program on one thread; what it prints goes to a file."""
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",  # of the tokenizers
        "HF_HUB_OFFLINE": "1",
        **{name: str(value) for name, value in environment.items()},
    }
    log = folder / "log.txt"
    with open(log, "a", encoding="utf-8") as stream:
        result = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=folder, env=variables, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if result.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")
        sys.exit(f"{command[0]} ended with {result.returncode}:\n{said[-3000:]}")


def run_hftune(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Ten stages by the recipe, in one process."""
    text, label = task["columns"]
    settings = {
        "data": task["train"], "test_data": task["test"],
        "text_column": text, "label_column": label, "max_length": MAX_LENGTH,
        **SIZES, "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY, "dropout": DROPOUT,
        "start_ratio": 1 / STAGES, "step_size": 1 / STAGES, "max_ratio": 1,
        "epochs_per_stage": task["epochs"], "batch_size": BATCH,
        "per_device_eval_batch_size": EVAL_BATCH, "learning_rate": task["learning_rate"],
        "use_cpu": True, "disable_tqdm": True, "output_dir": folder / "run",
    }  # fmt: skip
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    begin = time.perf_counter()
    run([ROOT / "recipes" / "progressive.py", *flags], folder, HFTUNE_HOME=folder / "home")
    wall = time.perf_counter() - begin
    read = lambda path: json.loads((folder / "run" / path).read_text(encoding="utf-8"))  # noqa: E731
    record, results, scores = map(
        read, ("run.json", "progressive_training_results.json", "scores.json")
    )
    states = [read(f"{stage['name']}/trainer_state.json") for stage in results["stages"]]
    timings = record["attempts"][-1]["timings"]
    inside = sum(entry.get("eval_runtime", 0.0) for s in states for entry in s["log_history"])
    trained = sum(entry.get("train_runtime", 0.0) for s in states for entry in s["log_history"])
    parts = {
        "data": timings["data"],
        "training": trained - inside,
        "evaluating": inside + timings["evaluation"],
    }
    return {
        "wall": wall,
        **parts,
        "the rest": wall - sum(parts.values()),
        "validation": [record["data"]["samples"]["validation"], results["stages"][-1]["score"]],
        "test": [record["data"]["samples"]["test"], scores["summary"]["accuracy"]],
        "run": folder / "run",
    }


def run_plain(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Ten stages by ten processes."""
    begin, before, parts = time.perf_counter(), None, []
    for number in range(1, STAGES + 1):
        stage = {
            **task,
            "before": before,
            "folder": str(folder / f"stage_{number}"),
            "fraction": number / STAGES,
        }
        run([__file__, "--process", "plain", json.dumps(stage)], folder, HF_HOME=folder / "home")
        parts.append(json.loads(Path(stage["folder"], "stage.json").read_text(encoding="utf-8")))
        before = os.path.join(stage["folder"], "model")
    wall = time.perf_counter() - begin
    names = ("data", "training", "evaluating")
    times = {name: sum(part[name] for part in parts) for name in names}
    return {
        "wall": wall,
        **times,
        "the rest": wall - sum(times.values()),
        "validation": parts[-1]["validation"],
        "test": parts[-1]["test"],
    }


def make_tokenizer(task: dict[str, Any]) -> None:
    """Saves the tokenizer that hftune trains, for the plain side; in a process of its own."""
    from transformers import Trainer  # noqa: F401, fills the disk cache for both sides

    from hftune.tasks.classification.arguments_classification import (
        ClassificationDataArguments,
        ClassificationModelArguments,
    )
    from hftune.tasks.classification.prepare_classification import prepare_classification

    text, label = task["columns"]
    data = prepare_classification(
        ClassificationDataArguments(
            data=[task["train"]],
            test_data=[task["test"]],
            text_column=text,
            label_column=label,
            max_length=MAX_LENGTH,
        ),
        ClassificationModelArguments(vocab_size=VOCABULARY),
        seed=42,
    )
    data.tokenizer.save_pretrained(task["tokenizer"])


# Both of them


def side_by_side(task: dict[str, Any], folder: Path, repeats: int) -> dict[str, list[dict]]:
    """What each side did in each of its turns.

    Args:
        task (dict): The data set's entry of :data:`SETS`, with paths.
        folder (Path): For all files.
        repeats (int): Turns of each side.
    """
    folder.mkdir()
    task = {**task, "tokenizer": str(folder / "tokenizer")}
    run([__file__, "--process", "tokenizer", json.dumps(task)], folder, HFTUNE_HOME=folder / "home")
    sides: dict[str, Callable] = {"hftune": run_hftune, "plain": run_plain}
    done: dict[str, list[dict]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in sorted(sides, reverse=turn % 2 == 1):
            place = folder / f"{name}_{turn}"
            place.mkdir()
            before = os.times()
            found = sides[name](task, place)
            after = os.times()
            used = sum(getattr(after, k) - getattr(before, k) for k in PROCESSOR)
            done[name].append({**found, "processor": used})
            load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
            say(f"{folder.name}, {name}: {done[name][-1]['wall']:.1f} s (load {load})")
    return done


def expected_score(root: Path) -> tuple[Any, float]:
    """What the first stages of a run say of its last score, and that score."""
    import numpy as np

    from hftune.training.learning_curve import CurvePoint, fit_learning_curve

    results = json.loads((root / "progressive_training_results.json").read_text(encoding="utf-8"))
    stages = results["stages"]
    points = [
        CurvePoint(
            stage["samples"],
            stage["score"],
            np.load(root / stage["name"] / "score_replicates.npy", allow_pickle=False),
        )
        for stage in stages
    ]
    curve = fit_learning_curve(points[:FIRST], greater_is_better=True, bounds=(0.0, 1.0))
    say("scores of the stages: " + "  ".join(f"{point.score:.3f}" for point in points))
    return curve.predict(points[-1].samples), points[-1].score


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measures, prints a table for each data set, and says whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_folder", type=Path, help="of the test data (default: HFTUNE_TEST_DATA)")
    add("--sets", default=",".join(SETS), help=f"data sets (default: {','.join(SETS)})")
    add("--repeats", type=int, default=1, help="turns of each side (default: 1)")
    add("--limit", type=float, default=0.9, help="hftune's share of plain's time (default: 0.9)")
    add("--process", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        {"plain": plain_stage, "tokenizer": make_tokenizer}[options.process[0]](
            json.loads(options.process[1])
        )
        return 0
    data_folder = options.data_folder or os.environ.get("HFTUNE_TEST_DATA")
    if data_folder is None:
        parser.error("give the folder of the test data: --data_folder or HFTUNE_TEST_DATA")
    from rich.console import Console
    from rich.table import Table

    missed = []
    for name in options.sets.split(","):
        task = dict(SETS[name])
        for split in ("train", "test"):
            task[split] = str(Path(data_folder).resolve() / task[split])
        with tempfile.TemporaryDirectory(prefix="progressive_") as temporary:
            done = side_by_side(task, Path(temporary) / name, options.repeats)
            expected, score = expected_score(done["hftune"][-1]["run"])
        ratios = [a["wall"] / b["wall"] for a, b in zip(done["hftune"], done["plain"], strict=True)]
        ratio = statistics.median(ratios)
        table = Table(title=f"{name}: ten stages, {task['epochs']} epochs each")
        for column in ("", "hftune", "plain"):
            table.add_column(column, justify="right" if column else "left")
        for part in ("data", "training", "evaluating", "the rest", "wall", "processor"):
            medians = [statistics.median(turn[part] for turn in turns) for turns in done.values()]
            table.add_row(f"{part}, s", *(f"{median:.1f}" for median in medians))
        for split in ("validation", "test"):
            scored = [turns[-1][split] for turns in done.values()]
            table.add_row(
                f"accuracy, {split}", *(f"{value:.4f} of {count:,}" for count, value in scored)
            )
        table.add_row("ratio of wall times", f"{ratio:.3f}", "1")
        Console().print(table)
        inside = expected.low <= score <= expected.high
        print(
            f"Score on all data: {score:.4f}; the first {FIRST} stages say {expected.value:.4f}, "
            f"{expected.low:.4f} to {expected.high:.4f}{'' if inside else ': it is outside'}"
        )
        if ratio > options.limit:
            missed.append(f"{name}: {ratio:.3f} of plain's time, over {options.limit:g}")
        if not inside:
            missed.append(f"{name}: the score on all data is outside of its interval")
    for text in missed:
        say(text)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
