"""hftune aardvark: networks from Aardvark's form to hftune's and back."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from hftune.cli.main import main

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

CHANNELS = ["10u", "2t", "msl"]


@pytest.fixture(scope="module")
def model():
    """A tiny processor with the tensors that nothing uses, and static fields."""
    from hftune.tasks.aardvark.configuration_aardvark import AardvarkProcessorConfig
    from hftune.tasks.aardvark.modeling_aardvark import AardvarkProcessor

    torch.manual_seed(0)
    config = AardvarkProcessorConfig(
        channels=CHANNELS,
        longitude=(np.arange(12) * 30.0).tolist(),
        latitude=np.linspace(75, -75, 11).tolist(),
        mean=[1.0, 2.0, 3.0],
        std=[1.0, 2.0, 3.0],
        difference_mean=[0.0] * 3,
        difference_std=[1.0] * 3,
        static_channels=["height"],
        static_mean=[0.5],
        static_std=[0.25],
        embed_dim=16,
        depth=2,
        num_heads=4,
        reference_tensors=True,
    )
    model = AardvarkProcessor(config)
    model.set_static_fields(np.random.default_rng(0).random((1, 11, 12)))
    return model


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def lines(text):
    """A table as a dict of its rows."""
    rows = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return {row[0]: row[1].strip() for row in rows if len(row) == 2}


def test_there_and_back(saved, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["aardvark", "export", str(saved), str(tmp_path / "official")]) == 0
    shown = lines(capsys.readouterr().out)
    tensors = model.network.state_dict()
    count = sum(w.numel() for w in tensors.values())
    assert shown["network"] == "processor: 2 blocks of width 16"
    assert shown["weights"] == f"{len(tensors)} tensors, {count:,} numbers"
    assert shown["channels"] == "3: 10u, 2t, msl"
    assert shown["grid"] == "11 latitudes 75 ... -75, 12 longitudes 0 ... 330"
    assert all(f"{name} (" in shown["written"] for name in ("epoch_0", "elev_vars_1.npy"))

    assert main(["aardvark", "import", str(tmp_path / "official"), str(tmp_path / "back")]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown["read"] == str(tmp_path / "official" / "epoch_0")
    assert (shown["epoch"], shown["loss"]) == ("0", "0")
    first = (saved / "model.safetensors").read_bytes()
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == first
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "model", "official"]


def test_factors_and_static_fields_of_the_user(saved, tmp_path, capsys):
    from hftune.tasks.aardvark.modeling_aardvark import AardvarkProcessor

    main(["aardvark", "export", str(saved), str(tmp_path / "official")])
    (tmp_path / "norm_factors").mkdir()
    for i, name in enumerate(("mean", "std", "mean_diff", "std_diff")):
        np.save(tmp_path / "norm_factors" / f"{name}_4u_1.npy", np.full(3, i + 4.0))
    static = np.random.default_rng(5).normal(9, 2, (1, 12, 11)).astype(np.float32)
    np.save(tmp_path / "elev.npy", static)
    command = ["aardvark", "import", str(tmp_path / "official" / "epoch_0"), str(tmp_path / "m")]
    command += ["--norm-factors", str(tmp_path), "--static", str(tmp_path / "elev.npy")]
    assert main(command) == 0
    model = AardvarkProcessor.from_pretrained(tmp_path / "m")
    assert (model.config.mean, model.config.difference_std) == ([4.0] * 3, [7.0] * 3)
    assert model.config.static_mean == pytest.approx([static.mean()], rel=1e-6)
    assert torch.equal(model.static_fields[0, 0], torch.from_numpy(static[0, :, -1]))


def test_static_fields_that_are_missing_are_said(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["aardvark", "export", str(saved), str(tmp_path / "official")])
    (tmp_path / "official" / "elev_vars_1.npy").unlink()
    main(["aardvark", "import", str(tmp_path / "official"), str(tmp_path / "m")])
    assert "1; not given: import again with --static before it is used" in capsys.readouterr().out


def failure(capsys, *arguments):
    assert main(["aardvark", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_errors(saved, tmp_path, capsys):
    main(["aardvark", "export", str(saved), str(tmp_path / "official")])
    capsys.readouterr()
    official, out = tmp_path / "official", tmp_path / "out"
    assert failure(capsys, "import", official, saved) == (
        f"hftune aardvark: {saved} is there already: give a new folder, or remove it.\n"
    )
    assert failure(capsys, "export", official / "none", out).startswith(
        f"hftune aardvark: {official / 'none'} is neither a model folder here nor a repository"
    )
    assert f"{official} is no model folder: expected config.json" in failure(
        capsys, "export", official, out
    )
    assert failure(capsys, "import", official, out, "--epoch", 3) == (
        f"hftune aardvark: {official} has no epoch_3; there is epoch_0.\n"
    )
    assert "epoch_0 holds processor weights" in failure(
        capsys, "import", official, out, "--kind", "encoder"
    )
    (official / "config.pkl").unlink()
    assert failure(capsys, "import", official, out) == (
        f"hftune aardvark: {official / 'epoch_0'} does not hold the normalisation factors: give "
        "norm_factors, the folder with mean_4u_1.npy, std_4u_1.npy, mean_diff_4u_1.npy and "
        "std_diff_4u_1.npy.\n"
    )
    both = {"module.se_model.a": torch.zeros(1), "module.forecast_model.1.b": torch.zeros(1)}
    torch.save({"model_state_dict": both}, official / "epoch_0")
    assert failure(capsys, "import", official, out) == (
        f"hftune aardvark: {official / 'epoch_0'} is an end-to-end checkpoint: give --kind "
        "processor or --kind encoder.\n"
    )
    torch.save({"model_state_dict": {"module.film": torch.zeros(1)}}, official / "epoch_0")
    assert "holds no weights of Aardvark's processor or encoder" in failure(
        capsys, "import", official, out
    )
    assert not out.exists()


def test_hostile_folders_run_nothing(saved, tmp_path, capsys):
    class RunsCommand:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trace'}",)

    main(["aardvark", "export", str(saved), str(tmp_path / "official")])
    capsys.readouterr()
    name = f"{os.system.__module__}.system"
    torch.save({"model_state_dict": RunsCommand()}, tmp_path / "official" / "epoch_0")
    command = ("import", tmp_path / "official", tmp_path / "out")
    assert f"epoch_0 holds {name}: it could run code" in failure(capsys, *command)
    (tmp_path / "official" / "config.pkl").write_bytes(pickle.dumps({"lr": RunsCommand()}))
    assert f"config.pkl holds {name}: it would run code" in failure(capsys, *command)
    assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()
