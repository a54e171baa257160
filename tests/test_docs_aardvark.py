"""The commands and snippets of docs/aardvark.md and docs/aardvark_models.md, on small data."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shlex

import numpy as np
import pytest
from processes import run_alone

from hftune.cli.main import main
from hftune.tasks.aardvark.arguments_aardvark import (
    AardvarkDataArguments,
    ChainArguments,
    ChainModelArguments,
    ChainTrainingArguments,
    InitialConditionArguments,
)
from hftune.tasks.weather.arguments_weather import WeatherFieldsArguments
from hftune.utils.files import read_json

SIZES = {"embed_dim": 16, "num_heads": 2, "depth": 1}
TRAINING = {
    "num_train_epochs": 1,
    "max_steps": -1,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
}
ENCODER = {**SIZES, **TRAINING, "background_hours": 24, "simulated_stations": 6}
ENCODER |= {"mixer_hidden": 16, "mixer_layers": 0, "mixer_width": 16}
SMALL = {"aardvark_encoder": ENCODER, "aardvark_processor": {**SIZES, **TRAINING}}
CHAIN = ["--finetune_epochs", "1", "--batch_size", "32"]
CHAIN += ["--keep_epoch_weights", "false", "--tracking", "off", "--use_cpu"]
DATES = {
    "train_dates": "2000-01-02:2000-10-31",
    "validation_dates": "2000-11",
    "test_dates": "2000-12",
}


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "aardvark.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def models_page(repository):
    return (repository / "docs" / "aardvark_models.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(page, repository, tmp_path_factory):
    """Folder in which all commands of the page were given, and what ``hftune`` printed."""
    folder = tmp_path_factory.mktemp("aardvark")
    before, home = os.getcwd(), os.environ.get("HFTUNE_HOME")
    os.environ["HFTUNE_HOME"] = str(folder / "home")
    os.chdir(folder)
    try:
        prepare(folder, repository, page)
        shown = [
            give(shlex.split(command))
            for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
            for line in block.splitlines()
            for command in line.split(" && ")
        ]
    finally:
        os.chdir(before)
        if home is not None:
            os.environ["HFTUNE_HOME"] = home
    return folder, [text for text in shown if text]


def prepare(folder, repository, page):
    """The user's data, and the settings of the page with other dates."""
    from hftune.tasks.weather.simulated_stations import simulated_stations
    from hftune.tasks.weather.simulation import write_simulation
    from hftune.tasks.weather.stations import write_stations
    from hftune.tasks.weather.store import open_fields

    for name in ("recipes", "accelerate_configs"):
        (folder / name).symlink_to(repository / name)
    write_simulation(folder / "fields.nc", years=1.1, latitudes=6, longitudes=9, levels=(500,))
    write_stations(simulated_stations(open_fields(folder / "fields.nc"), count=6), "stations")
    (yaml,) = re.findall(r"```yaml\n(# region.yaml\n.*?)```", page, re.DOTALL)
    for name, dates in DATES.items():
        yaml, count = re.subn(rf"{name}: .*", f"{name}: {dates}", yaml)
        assert count == 1
    (folder / "region.yaml").write_text(yaml)
    for name, settings in SMALL.items():
        (folder / f"{name}.yaml").write_text(json.dumps(settings))


def give(words: list[str]) -> str:
    """One command of the page, with small networks on less data."""
    if words[0] == "hftune":
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            assert main(words[1:]) == 0
        return shown.getvalue()
    assert words[0] == "python" or words[:2] == ["accelerate", "launch"]
    if "--config_file" in words:
        assert os.path.isfile(words[words.index("--config_file") + 1])
    script = next(word for word in words if word.startswith("recipes/"))
    assert os.path.isfile(script)
    name, words = script[8:-3], words[words.index(script) + 1 :]
    for path in words:
        assert not path.endswith(".yaml") or os.path.isfile(path), path
    if "runs/aurora/model" in words and not make_aurora():
        return ""
    if "trained_model/encoder" in words:
        make_published()
        words += ["--frequency", "24"] + [w for n, d in DATES.items() for w in (f"--{n}", d)]
    if name in SMALL:
        words += ["--config", f"{name}.yaml", "--tracking", "off", "--use_cpu"]
    elif name == "aardvark":
        if "recipes/configs/aardvark_quickstart.yaml" in words:
            words += ["--simulation_years", "1"]
        days = 2 if "runs/finetuned" in words else 1
        words += [*CHAIN, "--lead_time", str(days), "--encoder_config", "aardvark_encoder.yaml"]
        words += ["--processor_config", "aardvark_processor.yaml"]
    recipe = importlib.import_module(f"hftune.recipes.{name}")
    assert run_alone(lambda: recipe.main(words)) == 0
    return ""


def make_aurora() -> bool:
    """What ``recipes/aurora.py`` would have left; False without the package."""
    try:
        from hftune.tasks.aurora import AuroraForForecasting, build_config_from_fields
    except ImportError:
        return False
    if not os.path.isdir("runs/aurora/model"):
        fields, statistics = truth()
        sizes = {"embed_dim": 16, "num_heads": 2, "history": 2}
        for part in ("encoder", "decoder"):
            sizes |= {f"{part}_depths": (1, 1), f"{part}_num_heads": (2, 2)}
        model = AuroraForForecasting(build_config_from_fields(fields.layout, statistics, **sizes))
        model.set_static_fields(fields.static_fields)
        model.save_pretrained("runs/aurora/model")
    return True


def make_published() -> None:
    """Files as Aardvark's own scripts and repositories have them."""
    from hftune.tasks.weather.dates import select_rows
    from hftune.tasks.weather.yearly_memmaps import write_yearly_memmaps

    fields, statistics = truth("2000")
    write_yearly_memmaps("era5", fields, frequency=24)
    assert main(["aardvark", "export", "runs/processor/model", "trained_model/processor"]) == 0
    os.replace("trained_model/processor/elev_vars_1.npy", "elev_vars_1.npy")
    os.makedirs("aardvark-weather-public/norm_factors")
    for kind in ("mean", "std", "difference_mean", "difference_std"):
        file = (
            f"{kind.replace('difference_mean', 'mean_diff').replace('difference_std', 'std_diff')}"
        )
        values = getattr(statistics, kind).astype(np.float32)
        np.save(f"aardvark-weather-public/norm_factors/{file}_4u_1.npy", values)
    os.makedirs("trained_model/encoder")
    for split, dates in zip(("train", "val", "test"), DATES.values(), strict=True):
        states = fields.read(select_rows(fields.times, dates))[:, :, ::-1].transpose(0, 2, 3, 1)
        np.ascontiguousarray(states, "<f4").tofile(f"trained_model/encoder/ic_{split}.mmap")


def truth(times=None):
    from hftune.tasks.weather.statistics import compute_statistics
    from hftune.tasks.weather.store import open_fields

    fields = open_fields("fields.nc", times=times)
    return fields, compute_statistics(fields, "0%:80%", difference_hours=24)


def test_the_commands_leave_what_the_page_says(page, runs):
    folder, shown = runs
    assert "finished: all 1 stages are done" in shown[0]
    names = ["aardvark", "region", "finetuned", "published", "from_reanalysis"]
    if (folder / "runs" / "aurora").exists():
        names += ["from_forecasts", "aurora_chain"]
    for name in names:
        run = folder / "runs" / name
        results = read_json(run / "scores.json")
        days = 2 if name == "finetuned" else 1
        assert results["lead_hours"] == [24, 48][:days]
        for key in ("rmse_to_climatology", "rmse_to_untuned"):
            assert len(results["summary"][key]) == days and f"`{key}`" in page
    assert all((folder / "runs" / "region" / part / "model").is_dir() for part in NETWORKS)
    assert not (folder / "runs" / "finetuned" / "encoder").exists()
    for name in ("aardvark", "region"):
        source = read_json(folder / f"runs/{name}/encoder/model/ic_train.mmap.json")["source"]
        assert source["kind"] == "encoder"
    source = read_json(folder / "runs/from_reanalysis/initial_conditions/ic_val.mmap.json")
    assert source["source"]["kind"] == "fields"
    assert (folder / "forecast.nc").is_file()


NETWORKS = ("encoder", "processor")


def test_what_lies_where(page, runs):
    run = runs[0] / "runs" / "finetuned"
    tree = page.split("## What lies where")[1].split("```")[1]
    left = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    for line in tree.strip().splitlines()[1:]:
        inside = "forecast_1/" if line.startswith("    ") else ""
        for name in re.findall(r"[\w./]+", line.strip().split("   ")[0]):
            name = name.rstrip("/").replace("_10.mmap", "_2.mmap")
            if name.strip(".") and name not in ("encoder", "processor", "checkpoints/epoch_1"):
                assert inside + name in left, name
    states = {path for path in left if re.fullmatch(r"ic_\w+\.mmap", path)}
    assert states == {f"ic_{s}.mmap" for s in ("val_1", "val_2", "test_1", "test_2", "train_2")}


def test_the_options(page):
    kinds = [AardvarkDataArguments, ChainModelArguments, InitialConditionArguments]
    kinds += [ChainArguments, ChainTrainingArguments]
    known = {}
    for kind in kinds:
        for field in dataclasses.fields(kind):
            known[field.name] = field
            for alias in field.metadata.get("aliases", ()):
                known[alias.lstrip("-").replace("-", "_")] = field
    rows = re.findall(r"^\| `--(\w+)` \| (.+?) \|", page, re.MULTILINE)
    told = {name: default.strip("`") for name, default in rows}
    for name, default in told.items():
        value = known[name].default
        if value is not None:
            assert default in (
                str(value).lower(),
                f"{value:g}" if isinstance(value, float) else "",
            ), name
    own = {field.name for kind in kinds[:4] for field in dataclasses.fields(kind)}
    own -= {field.name for field in dataclasses.fields(WeatherFieldsArguments)}
    guide = "output_dir assimilation_model_path encoder_model_path forecast_model_path lr"
    guide += " finetune_epochs lead_time era5_mode res frequency batch_size loss weight_decay"
    assert set(told) == own | set(guide.split()) | {"master_port"}


def test_the_stations_of_the_page(page, tmp_path):
    from hftune.tasks.weather.stations import read_stations

    for name, text in re.findall(r"```csv (\S+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    stations = read_stations(tmp_path)
    assert stations.names == ("MADRID", "LISBOA") and stations.variables == ("tmax",)
    assert np.isnan(stations.values[1, 0, 0]) and stations.values[0, 0, 1] == np.float32(14.2)


def test_the_disk(page):
    """The sizes of the page, from the rows of the published dates."""
    from hftune.tasks.weather.fields import FieldLayout
    from hftune.tasks.weather.initial_conditions_write import initial_condition_bytes

    grid = (np.linspace(90, -90, 121), np.arange(240) * 1.5)
    layout = FieldLayout(tuple(map(str, range(24))), ("K",) * 24, (), *grid)

    def size(rows, days):
        return sum(initial_condition_bytes(rows - 4 * day, layout) for day in days) / 1e9

    train, year, ten, two = 16_065, 1_457, range(1, 11), range(1, 3)
    table = page.split("## Disk")[1].split("\n\n")[2]
    assert [float(found) for found in re.findall(r"([\d.]+) GB", table)] == [
        round(value, 1)
        for value in (
            *(size(train, [0]), size(year, [0]), size(train, two)),
            *(2 * size(year, ten), 2 * size(year, two), size(train, ten)),
        )
    ]
    assert f"{train:,} with these dates" in page


# The page on models and files


def test_the_snippets(models_page, tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    factors = tmp_path / "aardvark-weather-public" / "norm_factors"
    factors.mkdir(parents=True)
    for kind in ("mean", "std", "mean_diff", "std_diff"):
        np.save(factors / f"{kind}_4u_1.npy", np.full(24, 2, np.float32))
    names: dict = {}
    for language, block in re.findall(r"```(\w+)\n(.*?)```", models_page, re.DOTALL):
        if language == "bash":
            for line in block.splitlines():
                command = shlex.split(line)
                if command[1] == "simulate":
                    command += ["--latitudes", "6", "--longitudes", "8"]
                if "grid" in command:
                    make_grid(tmp_path / "grid", names["fields"].layout)
                assert command[0] == "hftune" and main(command[1:]) == 0, line
        elif language == "python":
            if "AuroraForForecasting" in block:
                pytest.importorskip("aurora", reason="microsoft-aurora is not installed")
            capsys.readouterr()
            exec(compile(block, "docs/aardvark_models.md", "exec"), names)
            told = capsys.readouterr().out
            for comment in re.findall(r"^print\(.*#.*?(\d+(?:, [\d,]+)?)$", block, re.MULTILINE):
                assert comment in told.replace(" ", ", "), comment
            check(block, names)


def make_grid(folder, layout):
    folder.mkdir()
    np.save(folder / "era5_x_1.npy", layout.longitude)
    np.save(folder / "era5_y_1.npy", layout.latitude[::-1])


def check(block, names):
    """What the comments of a snippet say."""
    if "week =" in block:
        assert names["output"].prediction.shape == (2, 1, 4, 6, 8)
        assert set(names["output"].losses) == {"2t", "msl", "z"}
        assert names["week"].shape == (2, 7, 4, 6, 8)
    elif "observed =" in block:
        assert names["output"].prediction.shape == (2, 1, 4, 6, 8)
    elif "published =" in block:
        state = names["processor"].network.state_dict()
        same = names["again"].network.state_dict()
        assert all((state[name] == same[name]).all() for name in state)
        assert names["published"].num_parameters() == 53_995_762
    elif "era5 =" in block:
        assert (names["era5"].read(7) == names["fields"].read(7)).all()
    elif "northernmost" in block:
        rows = np.searchsorted(names["fields"].times, names["states"].times)
        assert (names["northernmost"] == names["fields"].read(rows)[:, 0, 0]).all()
    elif "mine =" in block:
        assert (names["mine"].read(3) == names["fields"].read(3)).all()
    elif "chain_scores(" in block:
        assert len(names["results"]["summary"]["rmse_normalised"]["model"]) == 2
    elif "ChainForecaster" in block:
        assert names["forecast"].shape == (1, 2, 4, 6, 8)
    elif "two_fields" in block:
        assert names["chain"].samples("train", 1)[0]["fields"].shape == (2, 4, 6, 8)


def test_the_tables_of_the_models(models_page):
    import inspect

    from hftune.tasks.aardvark import AardvarkEncoderConfig, AardvarkProcessorConfig
    from hftune.tasks.aardvark.configuration_aardvark_encoder import KINDS
    from hftune.tasks.aardvark.losses_aardvark import LOSS_FUNCTIONS
    from hftune.tasks.weather.chain import WeatherChain
    from hftune.tasks.weather.initial_conditions import FORMAT

    def table(title):
        return re.findall(
            r"^\| (`.+?) \| (.*?) \|(?: (.*?) \|)?",
            models_page.split(f"| {title} |")[1].split("\n\n")[0],
            re.MULTILINE,
        )

    assert [name.strip("`") for name, *_ in table("loss")] == list(LOSS_FUNCTIONS)
    assert [name.strip("`") for name, *_ in table("`kind`")] == list(KINDS)
    for name, *sizes in table("setting"):
        for config, size in zip(
            (AardvarkProcessorConfig, AardvarkEncoderConfig), sizes, strict=True
        ):
            default = inspect.signature(config.__init__).parameters[name.strip("`")].default
            assert size == str(default)
    settings = inspect.signature(WeatherChain.__init__).parameters
    told = {name.strip("`"): default.strip("`") for name, default, _ in table("`WeatherChain`")}
    positional = {"self", "folder", "initial", "truth", "model_config"}
    assert set(told) == set(settings) - positional
    for name, default in told.items():
        if settings[name].default is not inspect.Parameter.empty:
            assert default == str(settings[name].default).lower(), name
    assert FORMAT in models_page


def test_the_manifest(models_page, runs):
    manifest = read_json(runs[0] / "runs" / "finetuned" / "ic_val_1.mmap.json")
    table = models_page.split("| in the manifest |")[1].split("\n\n")[0]
    named = [n for row in table.splitlines()[1:] for n in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert set(named) == set(manifest)


def test_the_messages_are_real(page, repository):
    table = page.split("## When it goes wrong")[1].split("##")[0]
    source = "".join(
        re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8"))
        for path in (repository / "hftune" / "tasks").rglob("*.py")
    )
    messages = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(messages) == 7
    for message in messages:
        for part in re.split(r"[\d,]+|\.\.\.|ic_train.mmap|h before", message):
            assert part.strip(" ,:") in source, part
