"""Defaults that are changed, and settings that cannot be right."""

from __future__ import annotations

import dataclasses
import re

import pytest
import transformers

from hftune.configuration import arguments
from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.resolve import parse
from hftune.utils.errors import ConfigurationError


def test_the_note_lists_every_changed_default():
    base = {f.name: f.default for f in dataclasses.fields(transformers.TrainingArguments)}
    changed = {
        f.name: f.default
        for f in dataclasses.fields(HFTuneArguments)
        if f.name in base and f.default != base[f.name]
    }
    note = dict(re.findall(r"^``(\w+)``\s+``(\w+)``", arguments.__doc__, re.MULTILINE))
    assert note.pop("data_seed") == "seed"
    assert note == {name: str(default) for name, default in changed.items()}


def test_every_field_says_what_it_is():
    own = {f.name for f in dataclasses.fields(HFTuneArguments)} - {
        f.name for f in dataclasses.fields(transformers.TrainingArguments)
    }
    for name in own:
        assert f"        {name} (" in HFTuneArguments.__doc__
        assert HFTuneArguments.__dataclass_fields__[name].metadata["help"]


def test_derived_defaults(tmp_path):
    args = HFTuneArguments(output_dir=str(tmp_path), seed=7)
    assert args.data_seed == 7
    assert HFTuneArguments(output_dir=str(tmp_path), data_seed=1).data_seed == 1
    given = HFTuneArguments(output_dir=str(tmp_path), resume_from_checkpoint="somewhere")
    assert given.resume == "somewhere"


def test_sources(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--learning_rate_patterns", '{"head": 1e-3}']
    environ = {"LEARNING_RATE": "1e-4", "BATCH_SIZE": "3", "NUM_EPOCHS": "2"}
    (args,) = parse(HFTuneArguments, argv=argv, environ=environ).values
    assert (args.learning_rate, args.per_device_train_batch_size, args.num_train_epochs) == (
        1e-4,
        3,
        2.0,
    )
    assert args.learning_rate_patterns == {"head": 1e-3}


def test_all_problems_at_once(tmp_path):
    settings = [
        *("--output_dir", str(tmp_path)),
        *("--learning_rate", "-1"),
        *("--per_device_train_batch_size", "0"),
        *("--ema_decay", "1.5"),
        *("--num_train_epochs", "0"),
        *("--gradient_spike_factor", "0.5"),
        *("--learning_rate_patterns", '{"(": 1e-3, "head": -1}'),
        *("--resume", "never", "--resume_from_checkpoint", "x"),
        *("--load_best_model_at_end", "--save_strategy", "steps"),
        *("--gradient_health", "ignore"),
    ]
    with pytest.raises(ConfigurationError) as caught:
        parse(HFTuneArguments, argv=settings, environ={})
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "gradient_health (command line)",
        "learning_rate",
        "per_device_train_batch_size",
        "ema_decay",
        "num_train_epochs",
        "gradient_spike_factor",
        "learning_rate_patterns",
        "learning_rate_patterns",
        "resume",
        "load_best_model_at_end",
    ]


def test_the_class_checks_what_is_given_to_it(tmp_path):
    with pytest.raises(ConfigurationError, match="gradient_health: found 'ignore', expected one"):
        HFTuneArguments(output_dir=str(tmp_path), gradient_health="ignore")
    with pytest.raises(ConfigurationError, match="ema_decay: found 1.0"):
        HFTuneArguments(output_dir=str(tmp_path), ema_decay=1.0)


def test_processes_that_would_train_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(arguments.torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", lambda self: None)
    monkeypatch.setattr(HFTuneArguments, "world_size", property(lambda self: 1))
    with pytest.raises(ConfigurationError, match="2 processes but each of them would train alone"):
        HFTuneArguments(output_dir=str(tmp_path))
