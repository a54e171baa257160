"""Augmentation is the same after a resume, with workers of any kind, bit for bit."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from processes import run_alone, run_together
from torch.utils.data import DataLoader, Dataset

from hftune.training.augmentation import AugmentedDataset
from hftune.training.conductor import separate_seeds

sys.path.insert(0, str(Path(__file__).parent))
import small_run

torch.set_num_threads(1)


class Indices(Dataset):
    """Samples that say which they are."""

    def __init__(self, count: int = 10) -> None:
        self.count = count
        self.epochs = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if index >= self.count:
            raise IndexError(index)
        return {"index": index}


def draw(sample: dict, rng: np.random.Generator) -> dict:
    return {"index": int(sample["index"]), "number": rng.random(), "more": rng.random()}


# What is drawn


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone():
    data = AugmentedDataset(Indices(), draw, seed=7)
    forward = list(data)
    assert [data[i] for i in reversed(range(10))] == forward[::-1]
    assert AugmentedDataset(Indices(), draw, seed=7)[3] == data[3]
    assert data[-1] == data[9] | {"index": -1}
    assert len(data) == len(forward) == 10
    seen = {s["number"] for s in forward}
    for epoch in (1, 2, 2**40):
        data.set_epoch(epoch)
        assert data.epoch == epoch
        seen |= {s["number"] for s in data}
    seen |= {s["number"] for s in AugmentedDataset(Indices(), draw, seed=8)}
    seen |= {s["more"] for s in forward}
    assert len(seen) == 60
    data.set_epoch(0)
    assert list(data) == forward
    assert data.dataset.epochs == [1, 2, 2**40, 0]


def test_global_random_numbers_are_left_alone():
    np.random.seed(1)
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(AugmentedDataset(Indices(), draw, seed=7))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_batches_are_read_at_once_where_the_data_can():
    rows = datasets.Dataset.from_dict({"index": list(range(10))})
    for inner in (rows, Indices()):
        data = AugmentedDataset(inner, draw, seed=7)
        data.set_epoch(2)
        assert data.__getitems__([4, 2, 9]) == [data[4], data[2], data[9]]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_outlive_an_epoch_are_told(context):
    data = AugmentedDataset(Indices(6), draw, seed=7)
    loader = DataLoader(
        data, None, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 1, 5):
        data.set_epoch(epoch)
        assert list(loader) == list(data)


def test_a_loader_leaves_the_global_random_numbers_alone():
    loader = DataLoader(Indices())
    separate_seeds(loader, 3)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# Runs that are killed

WORKERS = {
    "0": dict(dataloader_num_workers=0),
    "2": dict(dataloader_num_workers=2),
    "2 that persist": dict(dataloader_num_workers=2, dataloader_persistent_workers=True),
}


class Recorded:
    """An augmentation that writes down what it drew for whom, from whichever process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: AugmentedDataset

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        noise = rng.normal(size=6).astype(np.float32)
        line = f"{self.data.epoch} {sample['index']} {noise[0].item().hex()}\n"
        with open(self.path, "a") as file:  # in one piece: lines of workers do not mix
            file.write(line)
        return {"x": sample["x"] + 0.3 * noise, "target": sample["target"]}


class Samples(small_run.SmallData):
    """The small run's data without its own noise."""

    def __getitem__(self, index: int) -> dict:
        return super().__getitem__(index) | {"index": index}


def run(
    output_dir: Path,
    *,
    draws: str = "draws",
    kill: str | None = None,
    eval_dataset: Any = None,
    **settings,
) -> None:
    trainer = small_run.make_trainer(output_dir, **settings)
    if eval_dataset is not None:
        trainer.eval_dataset, trainer.evaluates_by_loss = eval_dataset, True
    augment = Recorded(output_dir.with_name(f"{draws}_{trainer.args.process_index}"))
    trainer.train_dataset = augment.data = AugmentedDataset(Samples(noise=0.0), augment, seed=5)
    if kill:
        small_run.arm(trainer, kill)
    trainer.train()
    if trainer.is_world_process_zero():
        (output_dir / "results.json").write_text(json.dumps(small_run.results(trainer)))
    trainer.end()


def outcome(output_dir: Path) -> dict:
    return json.loads((output_dir / "results.json").read_text())


def drawn(path: Path) -> dict[tuple[int, int], str]:
    """By epoch and index; what is drawn twice must be the same."""
    found: dict[tuple[int, int], str] = {}
    for line in path.read_text().splitlines():
        epoch, index, number = line.split()
        assert found.setdefault((int(epoch), int(index)), number) == number
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run without workers that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_alone(lambda: run(folder / "run", **WORKERS["0"])) == 0
    return folder


@pytest.mark.parametrize("workers", WORKERS)
def test_killed_runs_end_the_same(whole, tmp_path, workers):
    """Of 5 steps an epoch, killed in the middle of the second and of the third."""
    settings = WORKERS[workers]
    folder = tmp_path / "run"
    for number, step in enumerate((8, 13)):
        kill = dict(draws=f"killed{number}", kill=f"step:{step}")
        status = run_alone(lambda kill=kill: run(folder, **kill, **settings))
        assert status == -signal.SIGKILL
    assert run_alone(lambda: run(folder, **settings)) == 0
    assert outcome(folder) == outcome(whole / "run")

    expected = drawn(whole / "draws_0")
    assert sorted(expected) == [(e, i) for e in range(3) for i in range(small_run.SAMPLES)]
    assert len(set(expected.values())) == len(expected)
    # From step 12 on: 2 steps of 2 batches of 8 of the third epoch are done.
    last = drawn(tmp_path / "draws_0")
    assert len(last) == small_run.SAMPLES - 32
    assert {epoch for epoch, _ in last} == {2}
    assert last.items() <= expected.items()
    for number in range(2):
        last |= drawn(tmp_path / f"killed{number}_0")
    assert last.items() <= expected.items()


def test_workers_of_evaluations_draw_nothing(whole, tmp_path):
    """A resumed run starts those that persist once more than one that was not stopped."""
    settings = dict(WORKERS["2 that persist"], eval_dataset=small_run.SmallData(noise=0.0))
    assert run_alone(lambda: run(tmp_path / "one", **settings)) == 0
    killed = dict(kill="step:8", **settings)
    assert run_alone(lambda: run(tmp_path / "two", **killed)) == -signal.SIGKILL
    assert run_alone(lambda: run(tmp_path / "two", **settings)) == 0
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    assert outcome(tmp_path / "one")["weights"] == outcome(whole / "run")["weights"]


def test_batches_of_samples_of_one_length(tmp_path):
    """Their order is drawn at the start of an epoch, and again where a run resumes in it."""

    class Lengths(Samples):
        def __getitem__(self, index: int) -> dict:
            if index >= len(self):
                raise IndexError(index)
            return super().__getitem__(index) | {"input_ids": [0] * (index % 9)}

    def train(folder: Path, kill: str | None = None) -> None:
        settings = dict(eval_strategy="no", load_best_model_at_end=False)
        settings |= dict(train_sampling_strategy="group_by_length", remove_unused_columns=True)
        trainer = small_run.make_trainer(folder, **settings)
        trainer.train_dataset = Lengths()
        if kill:
            small_run.arm(trainer, kill)
        trainer.train()
        (folder / "results.json").write_text(json.dumps(small_run.results(trainer)))

    assert run_alone(lambda: train(tmp_path / "whole")) == 0
    assert run_alone(lambda: train(tmp_path / "killed", "step:8")) == -signal.SIGKILL
    assert run_alone(lambda: train(tmp_path / "killed")) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("workers", ["0", "2 that persist"])
def test_two_processes(tmp_path, workers):
    settings = WORKERS[workers]

    def together(folder: Path, **more) -> list[int]:
        folder.mkdir(exist_ok=True)
        return run_together(lambda rank: run(folder / "run", **more, **settings))

    assert together(tmp_path / "whole") == [0, 0]
    for step in (4, 7):  # 3 steps an epoch
        assert -signal.SIGKILL in together(tmp_path / "killed", draws="before", kill=f"step:{step}")
    assert together(tmp_path / "killed") == [0, 0]
    assert outcome(tmp_path / "killed" / "run") == outcome(tmp_path / "whole" / "run")
    for rank in range(2):
        expected = drawn(tmp_path / "whole" / f"draws_{rank}")
        for draws in ("draws", "before"):
            found = drawn(tmp_path / "killed" / f"{draws}_{rank}")
            assert found and found.items() <= expected.items()
