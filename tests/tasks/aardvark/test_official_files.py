"""Folders as Aardvark's scripts leave them: the best epoch, prefixes, what is refused."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from hftune.tasks.aardvark.official_files import (
    is_official_folder,
    read_official,
    write_official,
)
from hftune.utils.errors import CheckpointError


class RunsCommand:
    """What a hostile file holds."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def save_epoch(folder, epoch, value=None, *, prefix="module.", **more):
    """One file as DDPTrainer writes it: a numpy loss, the optimizer beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    value = epoch if value is None else value
    weights = {f"{prefix}decoder_lr.pos_embed": torch.full((1, 4), float(value))}
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    content = {
        "epoch": epoch,
        "model_state_dict": weights,
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": np.float64(0.25),
        **more,
    }
    torch.save(content, folder / f"epoch_{epoch}")
    return folder / f"epoch_{epoch}"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "encoder"
    for epoch in (0, 2, 3):
        save_epoch(folder, epoch)
    np.save(folder / "losses_0.npy", np.array([0.9, 0.95, 0.4, 0.7]))
    return folder


def refusal(path, **arguments):
    with pytest.raises(CheckpointError) as raised:
        read_official(path, **arguments)
    return str(raised.value)


def value(checkpoint):
    return checkpoint.weights["decoder_lr.pos_embed"][0, 0].item()


def test_the_epoch_with_the_lowest_loss(folder):
    checkpoint = read_official(folder)
    assert checkpoint.path == folder / "epoch_2"
    assert (checkpoint.epoch, checkpoint.loss, checkpoint.settings) == (2, 0.25, {})
    assert list(checkpoint.weights) == ["decoder_lr.pos_embed"] and value(checkpoint) == 2
    assert value(read_official(folder, epoch=3)) == 3
    assert value(read_official(folder / "epoch_0")) == 0


def test_a_loss_of_nan_is_never_the_best(folder):
    np.save(folder / "losses_0.npy", np.array([0.9, np.nan, np.nan, 0.7]))
    assert value(read_official(folder)) == 3
    np.save(folder / "losses_0.npy", np.full(4, np.nan))
    assert refusal(folder).endswith(
        "losses_0.npy holds no number that is not NaN, so no epoch is the best: name one of the "
        "files, epoch_0, epoch_2, epoch_3."
    )


def test_losses_and_epochs_that_do_not_fit(folder):
    np.save(folder / "losses_0.npy", np.array([0.9, 0.1]))
    assert refusal(folder) == (
        f"losses_0.npy says that epoch 1 is the best (0.1), but {folder} has no epoch_1: get it, "
        "or name one of the files that are there, epoch_0, epoch_2, epoch_3."
    )
    assert refusal(folder, epoch=7) == (
        f"{folder} has no epoch_7; there is epoch_0, epoch_2, epoch_3."
    )
    np.save(folder / "losses_0.npy", np.array([object()]), allow_pickle=True)
    assert "losses_0.npy is damaged or no plain array of numbers (Object arrays" in refusal(folder)
    (folder / "losses_0.npy").unlink()
    assert "has no losses_0.npy that says which epoch is the best: name one" in refusal(folder)
    for epoch in (0, 3):
        (folder / f"epoch_{epoch}").unlink()
    assert value(read_official(folder)) == 2


def test_config_pkl_beside_the_file_or_above_it(tmp_path):
    path = save_epoch(tmp_path / "processor" / "forecast_1", 0)
    above = tmp_path / "processor" / "config.pkl"
    above.write_bytes(pickle.dumps({"mode": "forecast"}))
    assert read_official(path).settings == {"mode": "forecast"}
    (path.parent / "config.pkl").write_bytes(pickle.dumps({"mode": "nearer"}))
    assert read_official(path.parent).settings == {"mode": "nearer"}
    assert refusal(tmp_path / "processor") == (
        f"{tmp_path / 'processor'} is no folder of Aardvark's: expected files such as epoch_0. "
        f"Did you mean {path.parent}?"
    )
    (path.parent / "config.pkl").write_bytes(pickle.dumps({"a": RunsCommand(tmp_path / "trace")}))
    assert f"holds {os.system.__module__}.system: it would run code" in refusal(path)
    assert not (tmp_path / "trace").exists()


def test_prefixes_of_training_loops(tmp_path):
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod."):
        path = save_epoch(tmp_path, 1, prefix=prefix)
        assert list(read_official(path).weights) == ["decoder_lr.pos_embed"]


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_refused_by_name_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / "epoch_0", tmp_path / "trace"
    content = {"model_state_dict": {"a": torch.zeros(1)}, "loss": RunsCommand(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert refusal(path) == (
        f"{path} holds {os.system.__module__}.system: it could run code when it is loaded. Nothing "
        "of it was run. Expected tensors and plain numbers only: get the file from where the model "
        "was published."
    )
    assert not trace.exists()
    torch.save({"model_state_dict": {"a": torch.zeros(1)}, "f": np.zeros(3)}, path)
    assert "multiarray._reconstruct: it could run code" in refusal(path)
    torch.save({"model_state_dict": {"a": torch.zeros(1)}, "f": np.float32(3)}, path)
    assert "holds numpy.dtypes.Float32DType: it could" in refusal(path)


def test_what_is_safe_stays_safe_for_others(folder):
    before = set(torch.serialization.get_safe_globals())
    read_official(folder)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match="multiarray.scalar"):
        torch.load(folder / "epoch_2", weights_only=True)


def test_damaged_files(folder):
    path = folder / "epoch_2"
    whole = path.read_bytes()
    # A bit inside the tensor itself: torch would load it.
    where = whole.index(np.full(4, 2.0, np.float32).tobytes())
    path.write_bytes(whole[:where] + b"\x01" + whole[where + 1 :])
    assert " is damaged: " in refusal(path) and "another check sum" in refusal(path)
    for data in (whole[:500], b"", b"no pickle"):
        path.write_bytes(data)
        assert f"{path} cannot be read as a checkpoint of tensors" in refusal(path)
    assert refusal(folder / "epoch_9") == (
        f"{folder / 'epoch_9'} cannot be read: No such file or directory."
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1], "holds a list; expected a dict"),
        ({"model_state_dict": {}}, "expected weights by name in model_state_dict, found none"),
        ({"model_state_dict": {"a": 1}}, "holds a; expected weights by name"),
        ({"lr": 1.0}, "holds lr; expected weights by name"),
    ],
)
def test_files_of_other_things(tmp_path, content, found):
    torch.save(content, tmp_path / "epoch_0")
    assert found in refusal(tmp_path / "epoch_0")


def test_parts_of_an_end_to_end_checkpoint(tmp_path):
    names = ["se_model.a", "forecast_model.1.b", "forecast_model.2.b", "sf_model.c"]
    weights = {f"module.{name}": torch.full((1,), float(i)) for i, name in enumerate(names)}
    path = tmp_path / "epoch_4"
    torch.save({"model_state_dict": weights}, path)
    checkpoint = read_official(path)
    assert checkpoint.part("encoder") == {"a": torch.tensor([0.0])}
    assert checkpoint.part("processor", 2) == {"b": torch.tensor([2.0])}
    for wanted in (None, 3):
        with pytest.raises(CheckpointError, match="with the processors 1, 2: say which one with"):
            checkpoint.part("processor", wanted)
    torch.save({"model_state_dict": {n: w for n, w in weights.items() if ".2." not in n}}, path)
    assert read_official(path).part("processor") == {"b": torch.tensor([1.0])}
    torch.save({"model_state_dict": {"forecast_model.1.b": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="end-to-end checkpoint without an encoder"):
        read_official(path).part("encoder")
    alone = read_official(save_epoch(tmp_path / "alone", 0))
    assert list(alone.part("encoder")) == list(alone.part("processor")) == ["decoder_lr.pos_embed"]
    with pytest.raises(CheckpointError, match="no end-to-end checkpoint: forecast_model 1 is not"):
        alone.part("processor", 1)


def test_which_paths_are_official(folder, tmp_path):
    assert is_official_folder(folder) and is_official_folder(folder / "epoch_2")
    assert not is_official_folder(tmp_path) and not is_official_folder(folder / "losses_0.npy")
    assert not is_official_folder("someone/model") and not is_official_folder(folder / "epoch_9")
    (folder / "config.json").write_text("{}")
    assert not is_official_folder(folder)


def test_written_folders(tmp_path):
    weights = {"decoder_lr.pos_embed": torch.randn(1, 4).T}
    path = write_official(tmp_path / "out", weights, settings={"res": 1}, epoch=2, loss=0.5)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "config.pkl",
        "epoch_2",
        "losses_0.npy",
    ]
    plain = torch.load(path, weights_only=True)  # without any allowance
    assert list(plain) == ["epoch", "model_state_dict", "loss"]
    assert list(plain["model_state_dict"]) == ["module.decoder_lr.pos_embed"]
    # As the reference chooses.
    assert np.argmin(np.load(path.parent / "losses_0.npy")) == 2
    checkpoint = read_official(path.parent)
    assert torch.equal(checkpoint.weights["decoder_lr.pos_embed"], weights["decoder_lr.pos_embed"])
    assert (checkpoint.epoch, checkpoint.loss, checkpoint.settings) == (2, 0.5, {"res": 1})
    first = path.read_bytes()
    shutil.rmtree(path.parent)
    write_official(tmp_path / "out", weights, settings={"res": 1}, epoch=2, loss=0.5)
    assert path.read_bytes() == first
