"""The ranking recipe from images to report, as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hftune.recipes.ranking  # noqa: F401  (so that no forked run has to)
import matplotlib.figure  # noqa: F401  (so that no forked run has to)
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from processes import Script
from transformers import TrainerCallback

from hftune.tasks.ranking.example_ranking import write_example
from hftune.tasks.ranking.modeling_ranking import PairwiseRankingModel
from hftune.tasks.ranking.splitter_ranking import DataSplitter
from hftune.utils.home import hftune_home

SMALL = {
    "backbone": "new",
    "backbone_type": "resnet",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "image_size": 32,
    "projector_output_dim": 8,
    "train_ratio": 0.6,
    "val_ratio": 0.2,
    "test_ratio": 0.2,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "logging_steps": 1,
}
PRODUCTS = (
    "report.html", "run.json", "scores.json", "model/model.safetensors", "model/config.json",
    "model/preprocessor_config.json", "last_model/model.safetensors",
)  # fmt: skip


class KillAt(TrainerCallback):
    """Kills its process, as a machine that goes down does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Told(TrainerCallback):
    """Writes the metrics of each process."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        known = {k: v for k, v in metrics.items() if "runtime" not in k and "per_second" not in k}
        with open(self.folder / f"rank_{args.process_index}.jsonl", "a") as file:
            file.write(json.dumps(known) + "\n")


def write_images(folder: Path, count: int = 30, hidden: bool = False) -> Path:
    """Writes ``images/`` and ``metadata.csv``: the brighter the better, or nothing to be seen."""
    draw = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["image_id,filename,tier"]
    for number in range(count):
        tier = number % 4
        level = 120 if hidden else 40 + 55 * tier
        pixels = (level + draw.normal(0, 40, (32, 32, 3))).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number:03}.png")
        lines.append(f"id_{number:03},{number:03}.png,{'CBAS'[tier]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def bright(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("bright") / "data")


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """Images of which nothing can be learnt: the best model comes anywhere."""
    return write_images(tmp_path_factory.mktemp("noise") / "data", count=40, hidden=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture
def recipe_again(repository, config, tables, finished, monkeypatch):
    """``recipe_again(*arguments)`` starts the command of ``finished`` again."""

    def run(*arguments: str) -> Script:
        monkeypatch.chdir(tables)
        return Script(
            repository / "recipes/ranking.py", "--config", config, *GUIDE,
            "--test-metadata", "data/test_metadata.csv", "--output-dir", "checkpoints",
            *arguments, COLUMNS="1000", HFTUNE_HOME=str(tables / "hftune"),
        )  # fmt: skip

    return run


@pytest.fixture
def recipe(repository, config):
    """``recipe(data, out, *arguments)`` starts the recipe in a process of its own."""

    def run(data: Path, out: Path, *arguments: str | Path, **more) -> Script:
        command = (repository / "recipes/ranking.py", "--config", config, "--data-dir", data)
        return Script(*command, "--output-dir", out, *arguments, COLUMNS="1000", **more)

    return run


def ended(process: Script) -> str:
    """What a run that must end well has printed."""
    assert process.wait() == 0, process.printed()
    return process.printed()


def refused(process: Script) -> str:
    """What a run said that must end with one message and without a traceback, on one line."""
    assert process.wait() == 2, process.printed()
    printed = process.printed()
    assert "Traceback" not in printed and printed.count("error: ") == 1, printed
    return " ".join(printed.partition("error: ")[2].split())


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def log_of(out: Path) -> list[dict]:
    """What the run logged until its last checkpoint, without times."""
    last = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    timed = ("runtime", "per_second")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timed)}
        for entry in read(last / "trainer_state.json")["log_history"]
    ]


def split(folder: Path) -> tuple[pandas.DataFrame, ...]:
    """Training, validation and test images by the documented splitter alone."""
    frame = pandas.read_csv(folder / "metadata.csv", dtype=str)
    return DataSplitter(0.6, 0.2, 0.2, seed=42).split(frame)


def held_out(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Test images and their tiers."""
    test = split(folder)[2]
    tiers = np.array(["CBAS".index(tier) for tier in test["tier"]])
    return [folder / "images" / name for name in test["filename"]], tiers


def pair_accuracy(scores, tiers: np.ndarray) -> float:
    """Pair by pair."""
    scores, pairs = np.asarray(scores), np.argwhere(tiers[:, None] > tiers)
    return float(np.mean([np.sign(scores[a] - scores[b]) / 2 + 0.5 for a, b in pairs]))


# A run


@pytest.fixture(scope="module")
def tables(bright, tmp_path_factory) -> Path:
    """``data/`` with the tables of the guide beside the images of ``bright``."""
    folder = tmp_path_factory.mktemp("tables")
    shutil.copytree(bright, folder / "data")
    for name, part in zip(("train", "val", "test"), split(bright), strict=True):
        part.to_csv(folder / "data" / f"{name}_metadata.csv", index=False)
    return folder


GUIDE = """
    --data-dir data/images --metadata data/train_metadata.csv --val-metadata data/val_metadata.csv
    --epochs 3 --batch-size 4 --learning-rate 3e-3 --weight-decay 0.02 --gradient-clip-norm 0.5
    --early-stopping-patience 5 --seed 7 --gradient-accumulation-steps 2
""".split()


@pytest.fixture(scope="module")
def finished(repository, config, tables) -> Path:
    """The folder of a run that a launcher started with the guide's command line."""
    wandb = importlib.util.find_spec("wandb") is not None
    mirror = "--wandb-project mirip-ranking --wandb-run-name experiment-001".split()
    launch = [Path(sys.executable).parent / "accelerate", "launch"]
    launch += ["--config_file", repository / "accelerate_configs/cpu.yaml"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "tests/callbacks")
        import wandb_files

        wandb_files.isolate(tables, patch)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("HFTUNE_HOME", str(tables / "hftune"))
        done = subprocess.run(
            [*launch, repository / "recipes/ranking.py", "--config", config, *GUIDE]
            + ["--test-metadata", "data/test_metadata.csv", "--output-dir", "checkpoints"]
            + (mirror if wandb else ["--experiment_name", mirror[-1]]),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tables,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return tables / "checkpoints"


def test_leaves_every_file_that_a_run_promises(finished):
    for name in PRODUCTS:
        assert (finished / name).stat().st_size > 0, name
    run = read(finished / "run.json")
    assert run["status"] == "completed" and run["task"] == "ranking"
    assert run["name"] == "experiment-001" and run["data"]["source"] == "data/images"
    assert run["data"]["images"] == {"train": 18, "validation": 6, "test": 6}
    assert run["data"]["tiers"] == ["S", "A", "B", "C"] and run["data"]["fingerprint"]
    assert run["seeds"] == {"seed": 7, "data_seed": 7}
    training = run["configuration"]["training"]
    assert training["learning_rate"] == {"value": 3e-3, "source": "command line"}
    assert training["max_grad_norm"] == {"value": 0.5, "source": "command line"}
    assert run["results"]["accuracy"] == read(finished / "scores.json")["summary"]["accuracy"]
    assert not [path for path in finished.rglob("*") if path.name.endswith(".tmp")]


def test_the_names_that_the_guide_tells_of_in_wandb(repository, finished, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.syspath_prepend(repository / "tests/callbacks")
    import wandb_files

    logged: dict[str, list[float]] = {}
    for row in wandb_files.history(finished):
        for name, value in row.items():
            logged.setdefault(name, []).append(value)
    log = log_of(finished)
    assert logged["train/loss"] == [entry["loss"] for entry in log if "loss" in entry]
    assert logged["train/accuracy"] == [entry["accuracy"] for entry in log if "loss" in entry]
    assert logged["learning_rate"] == [entry["learning_rate"] for entry in log if "loss" in entry]
    for name in ("loss", "accuracy"):
        expected = [entry[f"eval_{name}"] for entry in log if "eval_loss" in entry]
        assert logged[f"val/{name}"] == expected and len(expected) == 3
    tracking = read(finished / "run.json")["configuration"]["tracking"]
    assert tracking["wandb"] == {"value": "auto", "source": "wandb_project is given"}


def test_saved_models_score_as_the_run_says(finished, bright):
    scores = read(finished / "scores.json")
    assert scores["split"] == "test" and scores["remark"] is None and scores["images"] == 6
    low, high = scores["interval"]
    assert low <= scores["summary"]["accuracy"] <= high
    assert list(scores["baselines"]) == ["brightness"]

    model = PairwiseRankingModel.from_pretrained(finished / "model")
    assert model.config.score_temperature == scores["temperature"] > 0
    paths, tiers = held_out(bright)
    assert scores["summary"]["accuracy"] == pytest.approx(pair_accuracy(model.score(paths), tiers))
    assert scores["total_pairs"] == (tiers[:, None] > tiers).sum()

    last = PairwiseRankingModel.from_pretrained(finished / "last_model")
    assert np.isfinite(np.asarray(last.score([bright / "images" / "000.png"]))).all()


def test_is_tracked_and_registered(finished, monkeypatch):
    from hftune import ExperimentTracker, ModelRegistry

    monkeypatch.setenv("HFTUNE_HOME", str(finished.parent / "hftune"))
    run = ExperimentTracker().get_experiment("latest")
    assert (
        run["status"] == "completed"
        and run["task"] == "ranking"
        and run["name"] == "experiment-001"
    )
    accuracy = read(finished / "scores.json")["summary"]["accuracy"]
    assert run["metrics"]["test_accuracy"] == accuracy
    registry = ModelRegistry()
    [model] = registry.get_best_models("test_accuracy")
    assert model["experiment_id"] == run["experiment_id"]
    registered = PairwiseRankingModel.from_pretrained(registry.folder("experiment-001"))
    saved = PairwiseRankingModel.from_pretrained(finished / "model")
    for name, value in saved.state_dict().items():
        assert registered.state_dict()[name].equal(value), name


def test_the_report_is_one_page_without_network(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "pair accuracy" in page.lower() and "brightness" in page
    assert 'src="http' not in page and 'href="http' not in page and "@import" not in page


def test_the_same_command_again_does_nothing_new(recipe_again, finished):
    names = ("scores.json", "model/model.safetensors", "last_model/model.safetensors")
    kept = {name: (finished / name).read_bytes() for name in names}
    printed = ended(recipe_again())
    assert "nothing to train" in printed
    assert {name: (finished / name).read_bytes() for name in kept} == kept
    assert read(finished / "run.json")["status"] == "completed"


def test_another_run_is_refused(recipe_again, finished):
    told = refused(recipe_again("--hidden_size", "24"))
    assert "parameters" in told and "--resume never" in told
    told = refused(recipe_again("--seed", "8"))
    assert "backbone" in told and "seed" in told
    assert "data" in refused(recipe_again("--tiers", *"CBAS"))
    told = refused(recipe_again("--loss-function", "margin", "--pairing", "pairs"))
    assert "loss_function: the checkpoint has 'bradley_terry', this run 'margin'." in told
    assert "pairing: the checkpoint has 'batch', this run 'PairIndex'." in told
    told = refused(recipe_again("--feature-cache", "off", "--rotation", "9"))
    assert "changes: the checkpoint has {'views': 1}" in told
    assert read(finished / "scores.json")["images"] == 6


def test_a_validation_table_and_a_preset(repository, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tables)
    less = {k: v for k, v in SMALL.items() if k not in ("learning_rate", "num_train_epochs")}
    (tmp_path / "less.yaml").write_text(json.dumps(less))
    printed = ended(Script(
        repository / "recipes/ranking.py", "--config", tmp_path / "less.yaml", *GUIDE[:6],
        "--output-dir", tmp_path / "out", "--preset", "auto", "--max-steps", "2",
    ))  # fmt: skip
    assert "Preset small for 18 training images" in printed
    scores = read(tmp_path / "out" / "scores.json")
    assert scores["split"] == "validation" and scores["images"] == 6
    assert scores["remark"].startswith("These are the images that the best model was chosen on")
    run = read(tmp_path / "out" / "run.json")
    assert run["data"]["images"] == {"train": 18, "validation": 6}
    training = run["configuration"]["training"]
    assert training["learning_rate"] == {"value": 5e-5, "source": "preset small"}
    assert training["num_train_epochs"] == {"value": 200.0, "source": "preset small"}
    assert training["per_device_train_batch_size"]["value"] == 8
    assert [e["learning_rate"] for e in log_of(tmp_path / "out") if "loss" in e][0] == 5e-5


# Runs that are killed


KINDS = {
    "cached": "--feature_views 3 --horizontal_flip 0.5 --brightness 0.3 "
    "--early_stopping_patience 3",
    "lora": "--backbone_type dinov2 --patch_size 8 --lora_rank 2 --early_stopping_patience 3 "
    '--pairing pairs --pairs_per_epoch 20 --tier_pair_weights {"S>C":3}',
    "pixels": "--backbone_type dinov2 --patch_size 8 --unfreeze_last_blocks 1 --brightness 0.3 "
    "--train_on comparisons --batch_size 100 --early_stopping_patience 0",
}
"""Each has 3 steps an epoch."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_as_if_nothing_had_been(recipe, noise, tmp_path, kind):
    arguments = [*KINDS[kind].split(), "--epochs", "8"]
    if kind == "pixels":
        arguments += ["--comparisons", str(_write_comparisons(noise, tmp_path))]
    whole, out = tmp_path / "whole", tmp_path / "out"
    printed = ended(recipe(noise, whole, *arguments))

    at = "test_ranking_recipe:KillAt:step=8"
    process = recipe(noise, out, *arguments, "--callbacks", at)
    assert process.wait() == -signal.SIGKILL, process.printed()
    assert not (out / "scores.json").exists()
    assert (out / "checkpoint-6").exists() and not (out / "checkpoint-9").exists()
    ended(recipe(noise, out, *arguments))
    for name in ("model/model.safetensors", "last_model/model.safetensors", "scores.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert log_of(out) == log_of(whole)
    run = read(out / "run.json")
    assert [attempt["status"] for attempt in run["attempts"]] == ["crashed", "completed"]
    epochs = max(entry["epoch"] for entry in log_of(out))
    if kind in ("cached", "lora"):
        assert epochs < 8 and "Ended early" in printed
    else:
        assert epochs == 8


def _write_comparisons(data: Path, folder: Path) -> Path:
    lines = ["image_1,image_2,votes_1,votes_2"]
    lines += [f"id_{a:03},id_{b:03},{1 + (a * b) % 3},1" for a in range(40) for b in range(a)]
    path = folder / "comparisons.csv"
    path.write_text("\n".join(lines))
    return path


# Other runs


def test_two_processes_agree(recipe, bright, tmp_path):
    out = tmp_path / "out"
    told = f"test_ranking_recipe:Told:folder={tmp_path}"
    printed = ended(recipe(bright, out, "--callbacks", told, processes=2))
    first, second = ((tmp_path / f"rank_{rank}.jsonl").read_text() for rank in (0, 1))
    assert first == second and len(first.split("\n")) >= 4
    scores = read(out / "scores.json")
    assert scores["images"] == 6 and printed.count("Scores on") == 1
    model = PairwiseRankingModel.from_pretrained(out / "model")
    paths, tiers = held_out(bright)
    assert scores["summary"]["accuracy"] == pytest.approx(pair_accuracy(model.score(paths), tiers))


def test_scores_groups_and_korean_names(recipe, tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "자료" / "images").mkdir(parents=True)
    lines = ["filename,score,작가"]
    for number in range(24):
        image = Image.fromarray((draw.random((32, 40, 3)) * (40 + 8 * number)).astype(np.uint8))
        image.save(tmp_path / "자료" / "images" / f"그림 {number}.png")
        lines.append(f"그림 {number}.png,{number / 3:.2f},작가 {number % 8}")
    text = "\ufeff" + "\r\n".join(lines)
    (tmp_path / "자료" / "metadata.csv").write_text(text, encoding="utf-8")
    ended(recipe(tmp_path / "자료", tmp_path / "결과", "--group-column", "작가",
                 "--pairing", "pairs", "--loss-function", "margin"))  # fmt: skip
    scores = read(tmp_path / "결과" / "scores.json")
    assert scores["images_by_tier"] == {} and scores["correlated_with"] == "score"
    assert scores["summary"]["srcc"] is not None and "adjacent_accuracy" not in scores["summary"]
    assert "그림" in (tmp_path / "결과" / "report.html").read_text(encoding="utf-8")
    assert read(tmp_path / "결과" / "run.json")["data"]["tiers"] == []


def test_comparisons_alone(recipe, noise, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(noise / "images", data)
    comparisons = _write_comparisons(noise, tmp_path)
    text = comparisons.read_text().replace("id_", "")
    comparisons.write_text(text)
    ended(recipe(data, tmp_path / "out", "--comparisons", comparisons, "--epochs", "2"))
    scores = read(tmp_path / "out" / "scores.json")
    assert scores["primary_metric"] == "votes_accuracy" and scores["total_pairs"] is None
    assert scores["votes"]["pairs"] == 28 and scores["votes"]["ceiling"]["votes"] > 28
    assert read(tmp_path / "out" / "run.json")["data"]["train_on"] == "comparisons"


def test_pretrained_backbone_from_a_folder(recipe, repository, bright, tmp_path):
    from transformers import AutoModel, Dinov2Config

    torch.manual_seed(0)
    backbone = AutoModel.from_config(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=8,
                     image_size=32)
    )  # fmt: skip
    backbone.save_pretrained(tmp_path / "backbone")
    settings = {k: v for k, v in SMALL.items() if "backbone" not in k and "hidden" not in k}
    (tmp_path / "some.yaml").write_text(json.dumps(settings))
    command = (
        repository / "recipes/ranking.py", "--config", tmp_path / "some.yaml", "--data-dir", bright,
        "--output-dir", tmp_path / "out", "--backbone", tmp_path / "backbone",
    )  # fmt: skip
    ended(Script(*command))
    model = PairwiseRankingModel.from_pretrained(tmp_path / "out" / "model")
    for name, value in backbone.state_dict().items():
        assert model.backbone.state_dict()[name].equal(value), name

    with torch.no_grad():
        backbone.layernorm.weight.add_(0.5)
    backbone.save_pretrained(tmp_path / "backbone")  # another model of the same name
    assert "backbone" in refused(Script(*command))


# What cannot be meant


def test_a_run_that_was_refused_is_no_obstacle(recipe, bright, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(bright, data)
    broken = data / "images" / "003.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:500])
    (data / "images" / "011.png").write_bytes(b"")
    told = refused(recipe(data, out))
    assert "2 of 30 images cannot be used" in told and "003.png is damaged or cut off" in told
    assert "011.png is empty" in told
    assert not (out / "model").exists() and not list(out.glob("checkpoint-*"))
    assert read(out / "run.json")["status"] != "completed"

    shutil.copy(bright / "images" / "011.png", data / "images")
    broken.write_bytes(content)
    ended(recipe(data, out))
    assert read(out / "run.json")["status"] == "completed"
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--train-ratio 0.9", "add up to 1, not 1.3"),
        ("--train-on comparisons", "--train_on comparisons needs --comparisons FILE"),
        ("--metadata no_such.csv", "no_such.csv cannot be read"),
        ("--tier-pair-weights {\"S>Z\":2}", "found 'S>Z', expected BETTER>WORSE"),
        ("--min-tier-gap 4", "no two training images are as many tiers apart"),
        ("--backbone facebook/dinov2-base", "--backbone new, or leave them out"),
        ("--eval-strategy no", "eval"),
        ("--tiers S A B", "tier 'C' is none of S, A, B"),
        ("--learning-rates 1", "learning_rate"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(recipe, bright, tmp_path, arguments, message):
    out = tmp_path / "out"
    told = refused(recipe(bright, out, *arguments.split()))
    assert message in told, told
    assert not (out / "model").exists() and not list(out.glob("checkpoint-*"))


def test_an_unknown_backbone_without_network(repository, bright, tmp_path):
    told = refused(Script(
        repository / "recipes/ranking.py", "--data-dir", bright, "--output-dir", tmp_path / "out",
        "--backbone", "facebook/dinov9-large", HF_HOME=str(tmp_path / "hub"),
    ))  # fmt: skip
    assert "facebook/dinov9-large cannot be loaded" in told
    assert "the sizes of a small new one" in told


def test_help_teaches(repository):
    printed = ended(Script(repository / "recipes/ranking.py", "--help"))
    for text in ("accelerate launch recipes/ranking.py", "--preset", "--tier_pair_weights",
                 "--feature_cache", "--wandb_project", "--early_stopping_patience", "data:",
                 "model:", "training:", "tracking:"):  # fmt: skip
        assert text in printed, text


# Real and made data


def test_websites_that_people_judged(repository, test_data, tmp_path):
    data = test_data / "ranking" / "websites"
    ended(Script(
        repository / "recipes/ranking.py",
        "--config", repository / "recipes/configs/ranking_no_download.yaml",
        "--data-dir", data, "--comparisons", data / "comparisons.csv",
        "--output-dir", tmp_path / "out", "--early-stopping-patience", "3",
    ))  # fmt: skip
    scores = read(tmp_path / "out" / "scores.json")
    assert scores["images"] == 20 and scores["total_pairs"] == 150
    low, high = scores["interval"]
    assert low < scores["summary"]["accuracy"] < high and high - low > 0.2
    votes = scores["votes"]
    assert 0.5 < votes["accuracy"] < 1 and votes["pairs"] == 190
    assert votes["interval"][0] < votes["accuracy"] < votes["interval"][1]
    assert votes["accuracy"] < votes["ceiling"]["upper_bound"] < 1
    assert scores["correlated_with"] == "score"


def test_the_quickstart_learns_the_order(repository, tmp_path):
    ended(Script(
        repository / "recipes/ranking.py",
        "--config", repository / "recipes/configs/ranking_quickstart.yaml",
        "--output-dir", tmp_path / "out", "--epochs", "8", "--batch-size", "16",
    ))  # fmt: skip
    scores = read(tmp_path / "out" / "scores.json")
    assert scores["images"] == 64 and scores["total_pairs"] == 1536
    assert scores["summary"]["accuracy"] >= 0.9 and scores["above_chance"]
    assert write_example(hftune_home() / "cache" / "ranking_example").exists()
