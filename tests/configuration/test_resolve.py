"""Settings from every source: precedence, conversion, problems, the saved table."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from hftune.configuration.resolve import parse
from hftune.utils.errors import ConfigurationError


class Schedule(enum.Enum):
    NO = "no"
    EPOCH = "epoch"


@dataclass
class Data:
    _section: ClassVar[str] = "data"
    data: list[str] = field(default_factory=list, metadata={"help": "Files to read."})
    lead_hours: list[int] = field(default_factory=lambda: [24], metadata={"help": "Hours ahead."})
    train_dates: str | None = field(default=None, metadata={"help": "Dates to train on."})
    levels: list[float] | None = None
    weights: dict[str, float] | None = None
    options: dict | str | None = None
    callbacks: list[Any] = field(default_factory=list)
    mode: Literal["fast", "slow"] = "fast"
    cache: Path | None = None

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        if values["mode"] == "slow" and values["learning_rate"] > 1:
            return ["--mode slow wants a --learning_rate of 1 or less"]
        return []


@dataclass
class Training:
    _section: ClassVar[str] = "training"
    learning_rate: float = field(
        default=1e-4, metadata={"env": ["LEARNING_RATE"], "aliases": ["lr"]}
    )
    batch: int = field(default=8, metadata={"env": "BATCH_SIZE"})
    bf16: bool = False
    shuffle: bool = True
    save: Schedule | str = Schedule.EPOCH
    report_to: None | str | list[str] = "none"
    fsdp: str | None = field(default=None, metadata={"const": True, "nargs": "?"})
    limit: float = math.inf
    hub_token: str | None = None


def resolve(*argv: str, environ: dict[str, str] | None = None, sweep: dict[str, Any] | None = None):
    return parse(Data, Training, argv=argv, environ=environ or {}, sweep=sweep)


def problems(*argv: str, **sources: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        resolve(*argv, **sources)
    return list(caught.value.problems)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def source(resolved, name: str) -> str:
    return next(row.source for row in resolved.table if row.name == name)


def test_defaults_are_constructed():
    data, training = resolve().values
    assert data == Data()
    assert training == Training()
    assert {row.source for row in resolve().table} == {"default"}


def test_a_list_option_that_stands_several_times_is_one_list():
    data = resolve(
        "--callbacks", "a:x=1,y=2", "--lead_hours", "24", "--callbacks", "b", "c", "--lead-hours=48"
    ).values[0]  # fmt: skip
    assert data.callbacks == ["a:x=1,y=2", "b", "c"] and data.lead_hours == [24, 48]
    environ = {"HFTUNE_CALLBACKS": "a:x=1,y=2", "HFTUNE_LEAD_HOURS": "24,48"}
    data = resolve(environ=environ).values[0]
    assert data.callbacks == ["a:x=1,y=2"] and data.lead_hours == [24, 48]
    assert resolve(environ={"HFTUNE_CALLBACKS": "a,b"}).values[0].callbacks == ["a", "b"]


def test_variables_with_a_meaning_of_their_own_are_no_settings():
    """HFTUNE_TEST_DATA is where the tests' data lie, and not --test_data."""

    @dataclasses.dataclass
    class Tables:
        test_data: str = ""

    environ = {"HFTUNE_TEST_DATA": "/data"}
    assert parse(Tables, argv=[], environ=environ).values[0].test_data == ""
    resolved = parse(Tables, argv=["--test_data", "x.csv"], environ=environ)
    assert resolved.values[0].test_data == "x.csv"


def test_each_source_wins_over_the_one_before(tmp_path):
    first = write(tmp_path / "first.yaml", "learning_rate: 1\nbatch: 1\nlevels: 1\nmode: slow\n")
    second = write(tmp_path / "second.yaml", "training:\n  learning-rate: 0.2\n  batch: 2\n")
    resolved = resolve(
        "--config", first, "--config", second, "--learning-rate", "0.5",
        environ={"BATCH_SIZE": "3", "LEARNING_RATE": "0.3", "HFTUNE_LEARNING_RATE": "0.35"},
        sweep={"learning_rate": 0.4},
    )  # fmt: skip
    data, training = resolved.values
    assert (training.learning_rate, source(resolved, "learning_rate")) == (0.5, "command line")
    assert (training.batch, source(resolved, "batch")) == (3, "environment BATCH_SIZE")
    assert (data.levels, source(resolved, "levels")) == ([1.0], f"{first}:3")
    assert (data.mode, source(resolved, "mode")) == ("slow", f"{first}:4")
    assert (data.train_dates, source(resolved, "train_dates")) == (None, "default")


def test_order_of_environment_and_sweep():
    both = {"LEARNING_RATE": "0.3", "HFTUNE_LEARNING_RATE": "0.35"}
    assert resolve(environ=both).values[1].learning_rate == 0.35
    resolved = resolve(environ=both, sweep={"learning_rate": 0.4})
    assert source(resolved, "learning_rate") == "sweep"
    assert resolve(environ={"HFTUNE_LR": "0.6"}).values[1].learning_rate == 0.6
    assert resolve(environ={"LEARNING_RATE": ""}).values[1].learning_rate == 1e-4


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "0.000001", ".1e-5"])
def test_numbers_are_numbers_in_every_source(tmp_path, text):
    config = write(tmp_path / "c.yaml", f"learning_rate: {text}\nweights: {{z: {text}}}\n")
    for argv, environ in (
        (["--config", config], {}),
        (["--learning_rate", text], {}),
        ([f"--lr={text}"], {}),
        ([], {"HFTUNE_LEARNING_RATE": text}),
    ):
        assert resolve(*argv, environ=environ).values[1].learning_rate == 1e-6
    assert resolve("--config", config).values[0].weights == {"z": 1e-6}


def test_yaml_words_are_not_guessed(tmp_path):
    text = "save: no\nreport_to: none\ntrain_dates: 1995-06-01\ncache:\n"
    text += "options: {a: no, b: 1e-3, c: '1'}\n"
    data, training = resolve("--config", write(tmp_path / "c.yaml", text)).values
    assert training.save is Schedule.NO
    assert training.report_to == "none"
    assert data.train_dates == "1995-06-01"
    assert data.cache is None
    assert data.options == {"a": "no", "b": 1e-3, "c": "1"}


@pytest.mark.parametrize(
    ("argv", "name", "expected"),
    [
        (["--data", "a.nc", "b,c.nc"], "data", ["a.nc", "b,c.nc"]),
        (["--data", "b,c.nc"], "data", ["b,c.nc"]),
        (["--data"], "data", []),
        (["--lead_hours", "24", "48"], "lead_hours", [24, 48]),
        (["--lead_hours", "24,48"], "lead_hours", [24, 48]),
        (["--lead_hours=[24, 48]"], "lead_hours", [24, 48]),
        (["--levels", "-1", "-1e-4"], "levels", [-1.0, -1e-4]),
        (["--levels", "null"], "levels", None),
        (["--levels", "none"], "levels", None),
        (["--train_dates", "none"], "train_dates", "none"),
        (["--train_dates", "null"], "train_dates", None),
        (["--weights", '{"z": 2}'], "weights", {"z": 2.0}),
        (["--options", "file.json"], "options", "file.json"),
        (["--options", '{"a": 1}'], "options", {"a": 1}),
        (["--cache", "x/y"], "cache", Path("x/y")),
        (["--batch", "1e3"], "batch", 1000),
        (["--bf16"], "bf16", True),
        (["--bf16", "yes"], "bf16", True),
        (["--no-shuffle"], "shuffle", False),
        (["--shuffle", "false"], "shuffle", False),
        (["--report_to", "wandb"], "report_to", "wandb"),
        (["--report_to", "wandb", "tensorboard"], "report_to", ["wandb", "tensorboard"]),
        (["--fsdp"], "fsdp", True),
        (["--fsdp", "false"], "fsdp", False),
        (["--save", "no"], "save", Schedule.NO),
        (["--batch", "2", "--batch", "3"], "batch", 3),
    ],
)
def test_command_line(argv, name, expected):
    values = {row.name: row.value for row in resolve(*argv).table}
    assert values[name] == expected
    assert type(values[name]) is type(expected)


def test_lists_in_the_environment_are_split_at_commas():
    data, _ = resolve(environ={"HFTUNE_DATA": "a.nc, b.nc", "HFTUNE_LEAD_HOURS": "24,48"}).values
    assert data.data == ["a.nc", "b.nc"]
    assert data.lead_hours == [24, 48]


def test_base_files_come_first(tmp_path):
    write(tmp_path / "base.yaml", "batch: 1\nmode: slow\n")
    (tmp_path / "sub").mkdir()
    config = write(tmp_path / "sub" / "c.yaml", "base: ../base.yaml\ntraining: {batch: 2}\n")
    data, training = resolve("--config", config).values
    assert (data.mode, training.batch) == ("slow", 2)


def test_base_in_a_circle_is_a_problem(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    (problem,) = problems("--config", str(tmp_path / "a.yaml"))
    assert "includes itself" in problem


def test_all_problems_are_reported_together(tmp_path):
    config = write(
        tmp_path / "c.yaml", "lerning_rate: 1\ndata:\n  batch: 2\n  mode: quick\nbatch: x\n"
    )
    found = problems(
        "stray", "--config", config, "--levls", "3", "--mode", "a", "b", "--bf16", "maybe",
        "--batch", "1.5", "--lr",
        environ={"HFTUNE_BATHC": "1", "HFTUNE_HOME": "x"},
        sweep={"lr2": 1},
    )  # fmt: skip
    assert found == [
        "unexpected argument 'stray': settings are given as --name value",
        "no setting --levls. Did you mean '--levels'? --help lists all of them.",
        "--mode takes one value, found 2: a b. Quote a value that holds spaces.",
        "--lr needs a value",
        f"{config}:1: no setting 'lerning_rate'. Did you mean 'learning_rate'?",
        f"{config}:3: 'batch' belongs in section 'training', not 'data'",
        "environment variable HFTUNE_BATHC is no setting. Did you mean 'HFTUNE_BATCH'?",
        "sweep: no setting 'lr2'. Did you mean 'lr'?",
        f"mode ({config}:4): found 'quick', expected one of fast, slow.",
        f"batch ({config}:5): found 'x', expected whole number",
        "bf16 (command line): found 'maybe', expected true or false",
        "batch (command line): found '1.5', expected whole number",
    ]


def test_combinations_are_checked_together_with_values():
    found = problems("--mode", "slow", "--lr", "2", "--batch", "x")
    assert found == [
        "batch (command line): found 'x', expected whole number",
        "--mode slow wants a --learning_rate of 1 or less",
    ]


def test_required_settings_and_the_error_of_a_constructor():
    @dataclass
    class Model:
        path: str
        depth: int = 1

        def __post_init__(self):
            if self.depth < 1:
                raise ValueError("depth must be 1 or more")

    with pytest.raises(ConfigurationError, match="path is required: give --path"):
        parse(Model, argv=[], environ={})
    with pytest.raises(ConfigurationError, match="section 'run': depth must be 1 or more"):
        parse(Model, argv=["--path", "x", "--depth", "0"], environ={})


def test_files_that_cannot_be_read(tmp_path):
    write(tmp_path / "aurora.yaml", "batch: 1\n")
    (missing,) = problems("--config", str(tmp_path / "aurra.yaml"))
    assert missing.endswith("aurra.yaml: no such file. Did you mean 'aurora.yaml'?")
    (broken,) = problems("--config", write(tmp_path / "b.yaml", "a: [1\nb: 2\n"))
    assert "b.yaml:2: not valid YAML" in broken
    (listing,) = problems("--config", write(tmp_path / "l.yaml", "- a\n"))
    assert "expected 'name: value' lines, found a sequence" in listing
    (twice,) = problems("--config", write(tmp_path / "t.yaml", "batch: 1\nbatch: 2\n"))
    assert twice == f"{tmp_path / 't.yaml'}:2: 'batch' stands twice in this file"
    (both,) = problems("--config", write(tmp_path / "u.yaml", "batch: 1\ntraining:\n  batch: 2\n"))
    assert "'batch' was set before, at" in both
    assert resolve("--config", write(tmp_path / "empty.yaml", "")).values[0] == Data()
    assert resolve("--config", write(tmp_path / "bare.yaml", "data:\n")).values[0] == Data()


def test_the_saved_table_reproduces_the_run(tmp_path):
    argv = [
        "--data", "a.nc", "--lead_hours", "6", "12", "--weights", '{"z": 0.1}', "--save", "no",
        "--cache", "x", "--hub_token", "hf_secret", "--no_shuffle",
    ]  # fmt: skip
    first = resolve(*argv, environ={"LEARNING_RATE": "3e-5"})
    saved = first.as_dict()
    assert saved["training"]["learning_rate"] == {
        "value": 3e-5,
        "source": "environment LEARNING_RATE",
    }
    assert saved["training"]["save"] == {"value": "no", "source": "command line"}
    assert "hf_secret" not in json.dumps(saved)
    run = write(tmp_path / "run.json", json.dumps({"status": "completed", "configuration": saved}))
    again = resolve("--config", run)
    assert again.values[0] == first.values[0]
    assert again.values[1] == dataclasses.replace(first.values[1], hub_token=None)
    assert resolve("--config", run, "--batch", "5").values[1].batch == 5


def test_a_saved_table_of_another_recipe_is_refused(tmp_path):
    run = write(tmp_path / "run.json", '{"configuration": {"data": {"other": {"value": 1}}}}')
    assert problems("--config", run) == [
        f"{run}: 'other' is no setting of this recipe in this version"
    ]


def test_show_config_prints_sources_and_hides_tokens(tmp_path, capsys):
    config = write(tmp_path / "c.yaml", "batch: 4\n")
    with pytest.raises(SystemExit) as stopped:
        resolve("--config", config, "--show_config", "--hub_token", "hf_secret")
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.strip()]
    assert ["batch", "4", "c.yaml:1"] in rows
    assert ["learning_rate", "0.0001", "default"] in rows
    assert "hf_secret" not in "\n".join(lines)


def test_show_config_reports_problems_first():
    assert problems("--show_config", "--batch", "x") == [
        "batch (command line): found 'x', expected whole number"
    ]


def test_help_is_grouped_by_section(capsys):
    with pytest.raises(SystemExit) as stopped:
        resolve("--help", "--nonsense")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.index("\ndata:\n") < text.index("--lead_hours <list of whole numbers>")
    assert text.index("\ntraining:\n") < text.index("--learning_rate, --lr <number>")
    assert "(default: 0.0001; environment: LEARNING_RATE)" in text
    assert "Files to read. (default: [])" in text


def test_only_the_first_process_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        resolve("--help")
    assert capsys.readouterr().out == ""


def test_one_name_in_two_dataclasses_is_a_mistake_of_the_recipe():
    with pytest.raises(TypeError, match="Data.data is also a field of section 'data'"):
        parse(Data, Data, argv=[], environ={})


def test_training_arguments_of_transformers(tmp_path):
    from transformers import TrainingArguments

    text = "eval_strategy: no\nlr_scheduler_kwargs: {num_cycles: 2}\nadam_epsilon: 1e-6\n"
    config = write(tmp_path / "c.yaml", text)
    resolved = parse(
        TrainingArguments,
        argv=[
            "--config",
            config,
            "--output_dir",
            str(tmp_path / "out"),
            "--use-cpu",
            "--optim",
            "sgd",
        ],
        environ={},
    )
    (arguments,) = resolved.values
    assert arguments.adam_epsilon == 1e-6
    assert arguments.eval_strategy == "no"
    assert arguments.lr_scheduler_kwargs == {"num_cycles": 2}
    assert arguments.optim == "sgd"
    assert not arguments.fsdp
    with pytest.raises(ConfigurationError, match="expected one of no, steps, epoch"):
        parse(TrainingArguments, argv=["--eval_strategy", "steeps"], environ={})
    saved = tmp_path / "run.json"
    saved.write_text(json.dumps({"configuration": resolved.as_dict()}))
    (again,) = parse(TrainingArguments, argv=["--config", str(saved)], environ={}).values
    assert again == arguments
