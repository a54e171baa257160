"""The commands and the Python of docs/ranking.md and docs/ranking_python.md, in small, do what the
pages say.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

import hftune.tasks.ranking as ranking
from hftune.tasks.ranking import PairwiseRankingModel, TrainingConfig
from hftune.tasks.ranking.configuration_ranking import LOSS_FUNCTIONS
from hftune.tasks.ranking.losses_ranking import pair_losses
from hftune.utils.files import read_json

GUIDE = {"epochs", "batch_size", "gradient_clip_norm", "wandb_run_name"}  # other names of settings


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
        pixels = draw.normal(220 - 50 * (number % 4), 20, (28, 28 + number % 8, 3)).clip(0, 255)
        name = f"image_{number:03}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / "images" / name)
        score = 9 - 2 * (number % 4) + draw.normal() / 4
        lines.append(f"img_{number:03},{name},{tier},{score:.2f},artist {number % 20}")
        for other in range(1, number):  # the brighter one has more votes, and sometimes does not
            better = (number % 4 < other % 4) ^ (draw.random() < 0.2)
            votes.append(f"img_{number:03},img_{other:03},{int(better)},{int(not better)}")
    (folder / "data" / "metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "data" / "comparisons.csv").write_text("\n".join(votes) + "\n")
    images = sorted((folder / "data" / "images").iterdir())
    for number, name in enumerate(("image1.jpg", "image2.jpg", "a.jpg", "b.jpg", "c.jpg")):
        (folder / name).write_bytes(images[number].read_bytes())
    (folder / "photos").symlink_to(folder / "data" / "images")
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    ).save_pretrained(folder / "tiny")


# Python


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
