"""The commands and the Python of docs/ranking.md and docs/ranking_python.md, in small, do what the
pages say.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from processes import run_alone
from transformers import Dinov2Config, Dinov2Model

import hftune.tasks.ranking as ranking
from hftune.cli.main import main
from hftune.tasks.ranking import PairwiseRankingModel, TrainingConfig
from hftune.tasks.ranking.arguments_ranking import (
    PRESETS,
    RankingDataArguments,
    RankingModelArguments,
    RankingTrainingArguments,
)
from hftune.tasks.ranking.configuration_ranking import LOSS_FUNCTIONS
from hftune.tasks.ranking.fit_ranking import WANDB_NAMES
from hftune.tasks.ranking.image_processing_ranking import RESIZE_MODES
from hftune.tasks.ranking.losses_ranking import pair_losses
from hftune.tasks.ranking.tables_ranking import read_images
from hftune.utils.errors import DataError
from hftune.utils.files import read_json

SMALLER = ["--use_cpu", "--wandb", "off", "--logging_steps", "50", "--early_stopping_patience", "0"]
NEW = ["--hidden_size", "8", "--num_hidden_layers", "1", "--image_size", "32"]


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "ranking.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def python_page(repository):
    return (repository / "docs" / "ranking_python.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@contextlib.contextmanager
def inside(folder):
    """A folder with what the pages speak of; the user's own are left alone."""
    before = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTUNE_HOME", str(folder / "home"))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def make_world(folder) -> None:
    """Images that are the better the brighter, and a small backbone in place of DINOv2."""
    draw = np.random.default_rng(0)
    (folder / "data" / "images").mkdir(parents=True)
    lines, votes = ["image_id,filename,tier,score,artist"], ["image_1,image_2,votes_1,votes_2"]
    for number in range(1, 41):
        tier = "SABC"[number % 4]
        pixels = draw.normal(220 - 50 * (number % 4), 20, (36, 36 + number % 8, 3)).clip(0, 255)
        name = f"image_{number:03}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / "images" / name)
        score = 9 - 2 * (number % 4) + draw.normal() / 4
        lines.append(f"img_{number:03},{name},{tier},{score:.2f},artist {number % 20}")
        for other in range(1, number):  # the brighter one has more votes, and sometimes does not
            better = (number % 4 < other % 4) ^ (draw.random() < 0.2)
            votes.append(f"{name},image_{other:03}.jpg,{int(better)},{int(not better)}")
    (folder / "data" / "metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "data" / "comparisons.csv").write_text("\n".join(votes) + "\n")
    images = sorted((folder / "data" / "images").iterdir())
    for number, name in enumerate(("image1.jpg", "image2.jpg", "a.jpg", "b.jpg", "c.jpg")):
        (folder / name).write_bytes(images[number].read_bytes())
    (folder / "photos").symlink_to(folder / "data" / "images")
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28)
    ).save_pretrained(folder / "tiny")


# Python


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_the_python(python_page, tmp_path, capsys):
    """The blocks run in their order, as one program."""
    torch.set_num_threads(1)
    make_world(tmp_path)
    names: dict = {}
    with inside(tmp_path):
        for block in blocks(python_page, "python"):
            capsys.readouterr()
            exec(compile(in_small(block), "docs/ranking_python.md", "exec"), names)
            check(block, names, capsys.readouterr().out)


def in_small(block: str) -> str:
    size = "" if "image_size=" in block else ", image_size=28"
    for text, small in {
        '"facebook/dinov2-large"': f'"tiny"{size}',
        "756": "28",
        "max_epochs=100": "max_epochs=2",
        "scheduler_t_max=100": "scheduler_t_max=2",
        "save_every_n_epochs=5": "save_every_n_epochs=1",
        "wandb_enabled=True": "wandb_enabled=False",
        "num_train_epochs=20": "num_train_epochs=2",
        "num_workers=4": "num_workers=1",
        "PerformanceBenchmarks(": "PerformanceBenchmarks(image_size=28, ",
        '"cuda"': '"cuda"' if torch.cuda.is_available() else '"cpu"',
    }.items():
        block = block.replace(text, small)
    return block


def check(block: str, names: dict, told: str) -> None:
    """What the page says of a block."""
    if "DataSplitter(" in block:
        parts = [names[name] for name in ("train_df", "val_df", "test_df")]
        assert [len(part) for part in parts] == [32, 4, 4]
        assert sorted(sum((part["image_id"].tolist() for part in parts), [])) == [
            f"img_{number:03}" for number in range(1, 41)
        ]
        assert os.path.isfile("data/test_metadata.csv")
    elif "transform = " in block and "PairwiseDataset(" in block:
        tiers = names["train_df"]["tier"].value_counts()
        assert f"{(32**2 - (tiers**2).sum()) // 2}" in told  # each pair once
        rows, label = names["train_dataset"].pairs(np.array([0]))
        targets = names["train_dataset"].table.targets[rows[0]]
        assert names["label"] == label[0] == np.sign(targets[0] - targets[1])
    elif "config = TrainingConfig(\n" in block:
        left = set(os.listdir("checkpoints"))
        assert {"best_model", "last_model", "checkpoint_epoch_1", "checkpoint_epoch_2"} <= left
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            assert os.path.isfile(f"checkpoints/best_model/{name}")
        kept = {"model.safetensors", "optimizer.pt", "scheduler.pt", "training_args.json"}
        assert kept <= set(os.listdir("checkpoints/checkpoint_epoch_2"))
        state = read_json("checkpoints/checkpoint_epoch_2/trainer_state.json")
        assert state["epoch"] == 2 and state["best_metric"] == names["trainer"].best_accuracy
        assert names["model"].config.score_temperature is not None
    elif "load_checkpoint" in block:
        best = PairwiseRankingModel.from_pretrained("checkpoints/best_model").state_dict()
        assert all(torch.equal(best[k], v) for k, v in names["model"].state_dict().items())
        assert not os.path.exists("checkpoints/quarantine")  # it went on, and nothing was left
        # The guide's name of it does the same.
        again = ranking.Trainer(names["model"], names["config"])
        again.load_checkpoint("checkpoints/last_model.pt")
        assert again._resume == names["trainer"]._resume is not None
    elif "evaluate_detailed" in block:
        results = names["detailed_results"]
        assert results["total_pairs"] == 6  # of four images, one of each tier
        assert results["correct_predictions"] / 6 == names["accuracy"] == results["accuracy"]
        keys = "accuracy total_pairs correct_predictions loss srcc krcc plcc adjacent_accuracy"
        assert set(results) == {*keys.split(), "tier_pairs", "interval"}
    elif "image 1 is better" in block:
        files = [names["img1"], names["img2"]]
        better = 1 if names["model"](*files)[0] > names["model"](*files)[1] else 2
        assert f"image {better} is better, by" in told
    elif "batch_compare" in block:
        first, second = names["results"]
        keys = "image1 image2 score1 score2 winner confidence probability"
        assert list(first) == keys.split()
        assert first["score1"] == second["score1"]
        assert first["score1"] == pytest.approx(names["score1"].item(), abs=1e-6)
        assert first["confidence"] == abs(first["score1"] - first["score2"])
        temperature = names["model"].config.score_temperature
        probability = 1 / (1 + np.exp(-first["confidence"] / temperature))
        assert first["probability"] == pytest.approx(probability)
    elif "RankingPipeline" in block:
        assert len(told.splitlines()) == 5 and names["one"].rank == 3
    elif "run_full_benchmark" in block:
        assert len(told.splitlines()) == 3
        assert {"image_size", "batch_size", "dtype"} <= set(names["report"])
    elif "Augmentation(" in block:
        picture = Image.open("image1.jpg")
        turned = names["augmentation"].augment(picture, np.random.default_rng(0))
        assert turned.size == picture.size
        assert names["train_transform"](picture).shape == (3, 28, 28)
        assert names["model"].config.projector_dropout == 0.3
    elif "GradScaler" in block:
        assert torch.isfinite(names["loss"])
    elif "CachedPairwiseDataset" in block:
        cached, plain = names["cached_dataset"][3], names["train_dataset"][3]
        assert torch.equal(cached[0], plain[0]) and len(names["cached_dataset"].cache) == 2
    elif "model.encode(" in block:
        assert names["features"].shape == (2, names["model"].config.feature_size) == (2, 32)
        assert names["scores"].shape == (2,)
        saved = PairwiseRankingModel.from_pretrained("runs/untrained")
        assert saved.image_processor.settings() == names["model"].image_processor.settings()
    elif "Dinov2Model(" in block:
        assert names["small"].config.tiers == ["S", "A", "B", "C"]
    elif "FeatureCache.open" in block:
        assert "(4, 96)" in told
    elif "RankingTrainer(" in block:
        assert os.path.isfile("runs/small/model/model.safetensors")
        assert names["small"].config.score_temperature is not None
    elif "PlainTrainer(" in block:
        assert names["images"][0]["pixel_values"].shape == (3, 56, 56)


def test_the_names_of_the_page(python_page):
    table = python_page.split("| in the guide |")[1].split("\n\n")[0]
    named = set()
    for line in table.splitlines()[2:]:
        named |= set(re.findall(r"`(\w+)`", line.split("|")[2]))
    assert named == set(ranking.__all__)
    told = set(re.findall(r"`(\w+)`", python_page)) | set(re.findall(r"(\w+)=", python_page))
    assert {field.name for field in dataclasses.fields(TrainingConfig)} <= told | {"wandb_run_name"}
    settings = inspect.signature(ranking.PairwiseRankingConfig.__init__).parameters
    shown = blocks(python_page.split("## Models")[1], "python")[0]
    for name, value in re.findall(r"^    (\w+)=(.+?),", shown, re.MULTILINE):
        if name in settings and name != "backbone_name":
            assert ast.literal_eval(value) == settings[name].default, name


def test_the_losses(python_page):
    table = python_page.split("| `loss_function` |")[1].split("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == LOSS_FUNCTIONS
    d, y = torch.tensor([0.3, -2.0]), torch.tensor([1.0, -1.0])
    assert torch.equal(
        pair_losses(d, y, loss_function="margin", margin=1.0), (1 - y * d).clamp(min=0)
    )


# Commands


@pytest.fixture(scope="module")
def runs(page, repository, tmp_path_factory):
    """Folder in which all commands of the page were given, and what ``hftune`` printed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ranking")
    make_world(folder)
    (folder / "recipes").symlink_to(repository / "recipes")
    shown: list[tuple[list[str], str]] = []
    with inside(folder):
        train, validation, test = ranking.DataSplitter().split(pandas.read_csv("data/metadata.csv"))
        for name, part in {"train": train, "val": validation, "test": test}.items():
            part.to_csv(f"data/{name}_metadata.csv", index=False)
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                words = shlex.split(line)
                shown.append((words, give(words)))
    return folder, [(words, text) for words, text in shown if words[0] == "hftune"]


def give(words: list[str]) -> str:
    """One command of the page, with small models for few epochs."""
    if words[0] == "pip":
        return ""
    if words[0] == "hftune":
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            assert main(words[1:]) == 0, words
        return shown.getvalue()
    if words[0] == "WANDB_MODE=offline":
        words = words[1:]
    assert words[:3] == ["accelerate", "launch", "recipes/ranking.py"]
    words = words[3:] + SMALLER
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = "2"
    else:
        words += ["--epochs", "2"]
    if "--config" not in words:
        words += ["--backbone", "tiny", "--image_size", "28"]
    else:
        assert os.path.isfile(words[words.index("--config") + 1])
        words += NEW if "--data-dir" in words else [*NEW, "--data_dir", "data"]
    if "runs/art" not in words:
        words += ["--tracking", "off"]
    recipe = importlib.import_module("hftune.recipes.ranking")
    assert run_alone(lambda: recipe.main(words)) == 0, words
    return ""


def printed(runs, *words: str) -> str:
    """What the command with these words printed."""
    (found,) = [text for given, text in runs[1] if set(words) <= set(given)]
    return found


def test_the_runs_leave_what_the_page_says(page, runs):
    folder = runs[0]
    tree = page.split("\n```\nruns/art/")[1].split("```")[0]
    names = [name for line in tree.splitlines()[1:] for name in line.split("   ")[0].split()]
    left = set(os.listdir(folder / "runs/art"))
    for name in names:
        if name not in ("checkpoint-95/", "..."):
            assert name.rstrip("/") in left, name
    named = set(re.findall(r"--output-dir \./?(\S+)|--output[-_]dir (runs/\S+)", page))
    folders = {first or second for first, second in named}
    assert len(folders) == 13
    for name in folders:
        assert (folder / name / "model" / "model.safetensors").is_file(), name
        assert (folder / name / "report.html").is_file()
    small = (folder / "runs/art").glob("checkpoint-*/model.safetensors")
    whole = (folder / "runs/art/model/model.safetensors").stat().st_size
    assert all(path.stat().st_size < whole for path in small)


def test_the_runs_are_what_their_options_say(runs):
    def run(name):
        return read_json(runs[0] / name / "run.json")

    art = run("runs/art")["configuration"]["training"]
    assert art["learning_rate"]["value"] == 5e-5 and "preset small" in str(art["learning_rate"])
    assert run("runs/votes")["data"]["train_on"] == "comparisons"
    assert run("runs/tiers_and_votes")["data"]["train_on"] == "tiers"
    assert run("checkpoints")["data"]["images"] == {"train": 32, "validation": 4}
    assert read_json(runs[0] / "checkpoints/scores.json")["split"] == "validation"
    assert read_json(runs[0] / "runs/lora/model/config.json")["lora_rank"] == 8
    assert read_json(runs[0] / "runs/unfrozen/model/config.json")["unfreeze_last_blocks"] == 2


def test_the_scores(page, runs):
    scores = read_json(runs[0] / "runs/tiers_and_votes/scores.json")
    table = page.split("| in `scores.json` |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named <= set(scores) | set(scores["summary"])
    assert set(scores["summary"]) - named == {"loss", "votes_accuracy"}
    assert {"upper_bound", "oracle"} <= set(scores["votes"]["ceiling"])


def test_the_model_is_used(page, runs):
    folder = runs[0]
    text = printed(runs, "compare", "a.jpg", "runs/art/model", "c.jpg")
    assert "better than the next one" in text
    (row,) = json.loads(printed(runs, "compare", "--json"))
    (like,) = blocks(page, "json")
    assert list(row) == list(json.loads(like))
    told = next(
        text for words, text in runs[1] if words == shlex.split("hftune rank compare a.jpg b.jpg")
    )
    better = row["winner"].replace("image1", "a.jpg").replace("image2", "b.jpg")
    assert f"{better} is better" in told
    with open(folder / "scores.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert ",".join(rows[0]) in page and len(rows) == 40
    assert "✓ scores.csv: 40 images" in printed(runs, "score", "--report")
    assert (folder / "ranking.html").is_file() and (folder / "evaluation.html").is_file()
    assert "S>A" in printed(runs, "evaluate", "evaluation.html")
    assert "share of the votes" in printed(runs, "evaluate", "--comparisons")
    assert "time of a pair" in printed(runs, "benchmark")


def test_the_options(page):
    known, defaults = {}, {}
    for kind in (RankingDataArguments, RankingModelArguments, RankingTrainingArguments):
        for field in dataclasses.fields(kind):
            known[field.name] = field.name
            defaults[field.name] = field.default
            for alias in field.metadata.get("aliases", ()):
                known[alias.lstrip("-").replace("-", "_")] = field.name
    defaults |= {name: value for name, value in RankingModelArguments().sizes.items()}
    told = {}
    for first, default in re.findall(r"^\| (`--.+?) \| (.*?) \|", page, re.MULTILINE):
        for name in re.findall(r"--([\w-]+)", first):
            told[name.replace("-", "_")] = default.strip("`")
    told.pop("resize_mode")  # also the head of a table
    for name, default in told.items():
        value = defaults.get(known.get(name))
        if isinstance(value, (bool, int, float)) and "," not in default:
            assert default in (str(value).lower(), f"{value:g}"), name
        elif isinstance(value, str) and name != "output_dir":
            assert default == value, name
    text = {name.replace("-", "_") for name in re.findall(r"--([\w-]+)", page)}
    own = {
        field.name
        for kind in (RankingDataArguments, RankingModelArguments)
        for field in dataclasses.fields(kind)
    }
    own |= set(vars(RankingTrainingArguments)["__annotations__"]) - {
        *("eval_strategy", "save_strategy", "load_best_model_at_end", "lr_scheduler_type")
    }
    assert own <= {known[name] for name in text if name in known}
    guide = "epochs batch_size learning_rate weight_decay gradient_clip_norm seed"
    guide += " early_stopping_patience gradient_accumulation_steps wandb_project wandb_run_name"
    assert set(guide.split()) <= set(told)
    modes = page.split("| `--resize-mode` | |")[1].split("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", modes, re.MULTILINE)) == RESIZE_MODES


def test_the_presets(page):
    rows = re.findall(r"^\| .+? \| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    assert {name: [float(value) for value in values] for name, *values in rows} == {
        name: [
            settings["per_device_train_batch_size"],
            settings["learning_rate"],
            settings["num_train_epochs"],
        ]
        for name, settings in PRESETS.items()
    }


def test_the_error(page, runs, monkeypatch):
    (shown,) = re.findall(r"```\nerror: (3 problems .*?)\n```", page, re.DOTALL)
    monkeypatch.chdir(runs[0])
    with open("drafts.csv", "w", encoding="utf-8") as stream:
        stream.write("image_id,filename,tier\na,image_001.jpg,S\nb,sketch.jpg,A\n")
        stream.write("c,image_002.jpeg,B\nd,image_003.jpg,X\n")
    with pytest.raises(DataError) as caught:
        read_images("drafts.csv", "data/images")
    assert str(caught.value) == shown


def test_what_weights_and_biases_shows(page):
    for name in [*WANDB_NAMES.values(), "train/loss", "train/accuracy"]:
        assert f"`{name}`" in page


# Names


def test_the_package_loads_nothing_heavy():
    code = "import sys, hftune.tasks.ranking; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "pandas", "PIL"} & set(run.stdout.split())


def test_the_names_are_those_of_the_type_checkers():
    tree = ast.parse(inspect.getsource(ranking))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {f"{node.module}.{alias.asname}" for node in block.body for alias in node.names}
    (table,) = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    modules = ast.literal_eval(table)
    assert seen == {f"{module}.{name}" for module, names in modules.items() for name in names}
    for module, names in modules.items():
        found = importlib.import_module(f"hftune.tasks.ranking.{module}")
        for name in names:
            assert getattr(ranking, name) is getattr(found, name)
            assert name in found.__all__ and name in dir(ranking)
