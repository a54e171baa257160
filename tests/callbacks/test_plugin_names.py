"""Callbacks that are named: found, imported, made with their arguments, or what is wrong."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest
import transformers
from plugin_probes import declare, declare_probes
from transformers import TrainerCallback

from hftune.callbacks.plugins import load_callbacks
from hftune.configuration.arguments import HFTuneArguments
from hftune.configuration.plugins import GROUP, installed_plugins
from hftune.configuration.resolve import parse
from hftune.utils.errors import ConfigurationError


@pytest.fixture
def probes(tmp_path, monkeypatch):
    """A package with a callback for every case, on the path."""
    declare_probes(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    sys.modules.pop("hftune_test_probes", None)


def problems(*specs) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_callbacks(specs)
    return list(caught.value.problems)


# What is installed


def test_nothing_is_imported_or_active_unless_it_is_named(probes, tmp_path):
    found = {plugin.name: plugin for plugin in installed_plugins()}
    assert (found["probe"].package, found["probe"].version) == ("hftune-probes", "1.0")
    assert found["probe"].target == "hftune_test_probes:Probe"
    assert load_callbacks(HFTuneArguments(output_dir=str(tmp_path)).callbacks) == []
    assert "hftune_test_probes" not in sys.modules


def test_hftunes_own_are_declared_and_load(repository):
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    lines = parser["options.entry_points"][GROUP].strip().splitlines()
    declared = dict(re.split(r"\s*=\s*", line) for line in lines)
    assert declared["gradient_health"] == "hftune.callbacks.gradient_health:GradientHealthCallback"
    for name, target in declared.items():
        kind = importlib.metadata.EntryPoint(name, target, GROUP).load()
        assert issubclass(kind, TrainerCallback)
        assert kind.__doc__


# How they are named


@pytest.mark.parametrize(
    ("spec", "given"),
    [
        ("probe", {}),
        ("probe:", {}),
        ("probe:rate=1e-4,count=1e3", {"rate": 1e-4, "count": 1000}),
        ("probe:url=https://a.b/c?d=e,on=yes", {"url": "https://a.b/c?d=e", "on": True}),
        ("probe:url=1.10,open=1e-4,label=x", {"url": "1.10", "open": 1e-4, "label": "x"}),
        ("probe:open=true", {"open": True}),
        ("probe:open=null,count=null", {}),
        ("probe:names=a,b,levels=1,2.5,mode=slow",
         {"names": ["a", "b"], "levels": [1.0, 2.5], "mode": "slow"}),
        ("probe:names=a", {"names": ["a"]}),
        ('probe:names=["a,b"],table={"x": 1}', {"names": ["a,b"], "table": {"x": 1.0}}),
        ('probe:{"rate": 1, "url": "a:b,c=d", "open": [1, "2"]}',
         {"rate": 1.0, "url": "a:b,c=d", "open": [1, "2"]}),
        ({"name": "probe", "rate": 2}, {"rate": 2.0}),
        ({"probe": {"rate": 2, "path": "a/b"}}, {"rate": 2.0, "path": Path("a/b")}),
        ({"probe": None}, {}),
        ("hftune_test_probes.Probe:count=2", {"count": 2}),
        ("hftune_test_probes:Probe", {}),
        ('hftune_test_probes:Probe:{"url": "é"}', {"url": "é"}),
    ],
)  # fmt: skip
def test_forms(probes, spec, given):
    (callback,) = load_callbacks([spec])
    import hftune_test_probes

    assert callback.given == {**hftune_test_probes.Probe().given, **given}
    assert type(callback.given["rate"]) is float


def test_a_function_may_take_what_it_does_not_name(probes):
    (callback,) = load_callbacks(["needs:url=a,token_name=b,depth=2,step=4"])
    assert callback.given == {"url": "a", "token_name": "b", "step": 4, "depth": 2}


def test_annotations_that_cannot_be_resolved_are_none(probes):
    (callback,) = load_callbacks(["unresolved:count=1e2"])
    assert callback.count == 100.0


def test_callbacks_of_transformers_by_path():
    (callback,) = load_callbacks(["transformers.EarlyStoppingCallback:early_stopping_patience=3"])
    assert isinstance(callback, transformers.EarlyStoppingCallback)
    assert callback.early_stopping_patience == 3


# What is wrong with them


TAKES = (
    "It takes url='', rate=0.1, count=None, on=False, mode='fast', names=(), levels=(), "
    "table=None, path=None, label='', open=None."
)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("hftune_test_probes:Proble",
         "'hftune_test_probes:Proble' cannot be imported: AttributeError: module "
         "'hftune_test_probes' has no attribute 'Proble'. Did you mean 'Probe'?"),
        ("nowhere_at_all.Callback",
         "'nowhere_at_all.Callback' cannot be imported: ModuleNotFoundError: No module named "
         "'nowhere_at_all'; is it installed here, or its folder on PYTHONPATH?"),
        ("probe:rates=3",
         f"'probe' of hftune-probes 1.0: no argument 'rates'. Did you mean 'rate'? {TAKES}"),
        ("probe:rate=fast",
         "'probe' of hftune-probes 1.0: rate: found 'fast', expected number"),
        ("probe:mode=slwo",
         "'probe' of hftune-probes 1.0: mode: found 'slwo', expected one of fast, slow. "
         "Did you mean 'slow'?"),
        ("needs:step=2",
         "'needs' of hftune-probes 1.0: needs url, token_name. It takes url (required), "
         "token_name (required), step=3."),
        ("no_callback",
         "'no_callback' of hftune-probes 1.0 (hftune_test_probes:NoCallback) is a class, expected "
         "a class derived from transformers.TrainerCallback or a function that returns such a "
         "callback"),
        ("hftune_test_probes:_same",
         "'hftune_test_probes:_same' is a Probe, expected a class derived from "
         "transformers.TrainerCallback or a function that returns such a callback"),
        ("wrong_result",
         "'wrong_result' of hftune-probes 1.0 (hftune_test_probes:wrong_result) returned a int, "
         "expected a transformers.TrainerCallback"),
        ("raises:limit=5",
         "'raises' of hftune-probes 1.0 could not be made: OSError: no limit 5"),
        ("probe:3", "'probe': found '3', expected KEY=VALUE,... or JSON"),
        ("probe:rate", "'probe': found 'rate', expected KEY=VALUE,... or JSON"),
        ("probe:rate=1,rate=2", "'probe': the argument 'rate' stands twice"),
        ('probe:{"rate": 1', "'probe': its arguments are not JSON: Expecting ',' delimiter: line 1 "
         "column 11 (char 10)"),
        ({"probe": {}, "fails": {}}, "found a dict, expected NAME, {name: NAME, KEY: VALUE} or "
         "NAME: {KEY: VALUE}"),
        (None, "found a NoneType, expected NAME, {name: NAME, KEY: VALUE} or NAME: {KEY: VALUE}"),
    ],
)  # fmt: skip
def test_one_problem(probes, spec, text):
    assert problems(spec) == [f"callbacks: {text}"]


def test_all_problems_at_once(probes):
    found = problems("prob", "probe:rates=1,count=x", "raises", "probe", "nowhere.Callback")
    assert [problem.split(":")[1][:28] for problem in found] == [
        " no installed package declar",
        " 'probe' of hftune-probes 1.",
        " 'probe' of hftune-probes 1.",
        " 'probe' of hftune-probes 1.",
        " 'nowhere.Callback' cannot b",
    ]
    assert "declares 'prob'. Did you mean 'probe'? Installed: " in found[0]
    assert "counter, fails, " in found[0] and "A class of your own is named by its path" in found[0]
    assert found[3] == (
        "callbacks: 'probe' of hftune-probes 1.0 stands twice; a callback is named once"
    )


def test_the_same_callback_by_name_and_by_path_stands_twice(probes):
    (problem,) = problems("probe:rate=1", "hftune_test_probes:Probe:rate=2")
    assert problem == "callbacks: 'hftune_test_probes:Probe' stands twice; a callback is named once"


def test_commas_in_the_environment(probes, tmp_path):
    def resolve(text):
        argv = ["--output_dir", str(tmp_path)]
        return parse(HFTuneArguments, argv=argv, environ={"HFTUNE_CALLBACKS": text}).values[0]

    assert resolve("probe,counter").callbacks == ["probe", "counter"]
    assert resolve('["probe:rate=1,on=yes"]').callbacks == ["probe:rate=1,on=yes"]
    assert resolve("probe:rate=1,on=yes").callbacks == ["probe:rate=1,on=yes"]
    with pytest.raises(ConfigurationError) as caught:
        resolve("probe,rate=very-secret")
    assert str(caught.value) == (
        "callbacks: found 'rate', expected NAME, NAME:KEY=VALUE,... or NAME:JSON. Several are "
        "given as separate values (--callbacks a b), in the environment as a JSON list "
        '(["a:KEY=VALUE", "b"])'
    )


@pytest.mark.parametrize("spec", ["needs:url=a,api_key=hush", {"needs": {"api_key": "hush"}}])
def test_secrets_do_not_become_settings(probes, spec):
    (problem, missing) = problems(spec)
    assert problem == (
        "callbacks: 'needs' of hftune-probes 1.0: 'api_key' would be saved with the settings of "
        "the run; have the callback read it from an environment variable"
    )
    assert "hush" not in problem + missing


def test_one_name_of_two_packages(probes, tmp_path, monkeypatch):
    modules = {"hftune_test_other": "from hftune_test_probes import Probe as Other"}
    declare(tmp_path / "b", "other-probes", {"probe": "hftune_test_other:Other"}, modules, "2.1")
    monkeypatch.syspath_prepend(tmp_path / "b")
    (problem,) = problems("probe")
    assert problem == (
        "callbacks: 'probe' is declared by hftune-probes 1.0 (hftune_test_probes:Probe) and "
        "other-probes 2.1 (hftune_test_other:Other): uninstall one of them, or name the one you "
        "mean by its path, hftune_test_probes:Probe or hftune_test_other:Other"
    )
    assert load_callbacks(["hftune_test_other:Other"])


def test_a_plugin_that_cannot_be_imported(tmp_path, monkeypatch):
    modules = {"hftune_test_broken": "import a_package_that_is_not_there"}
    declare(tmp_path, "broken-probes", {"broken": "hftune_test_broken:Broken"}, modules)
    monkeypatch.syspath_prepend(tmp_path)
    assert problems("broken") == [
        "callbacks: 'broken' of broken-probes 1.0 (hftune_test_broken:Broken) cannot be imported: "
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'; is it installed here, "
        "or its folder on PYTHONPATH?"
    ]


# The settings


def test_command_line_and_yaml(probes, tmp_path):
    output = ["--output_dir", str(tmp_path / "out")]
    table = '{"x": 1, "y": 2}'
    line = ["--callbacks", "probe:names=a,b,rate=1", f'needs:{{"url": {table}, "token_name": 1}}']
    (args,) = parse(HFTuneArguments, argv=output + line, environ={}).values
    assert args.callbacks == line[1:]
    # One value holds commas, and is one value.
    (args,) = parse(HFTuneArguments, argv=output + line[:2], environ={}).values
    assert args.callbacks == line[1:2]
    config = tmp_path / "callbacks.yaml"
    config.write_text(
        "callbacks:\n  - counter\n  - probe: {rate: 1e-4, names: [a, b]}\n"
        "  - name: needs\n    url: x\n    token_name: '1'\n"
    )
    resolved = parse(HFTuneArguments, argv=[*output, "--config", str(config)], environ={})
    counter, probe, needs = load_callbacks(resolved.values[0].callbacks)
    assert (counter.steps, probe.given["rate"], probe.given["names"]) == (0, 1e-4, ["a", "b"])
    assert needs.given == {"url": "x", "token_name": "1", "step": 3}
    # As run.json has them, for the same run again.
    saved = tmp_path / "run.json"
    saved.write_text(json.dumps({"configuration": resolved.as_dict()}))
    (again,) = parse(HFTuneArguments, argv=["--config", str(saved)], environ={}).values
    assert again.callbacks == resolved.values[0].callbacks
    # And none of them.
    argv = [*output, "--config", str(config), "--callbacks"]
    assert parse(HFTuneArguments, argv=argv, environ={}).values[0].callbacks == []


@pytest.mark.parametrize("more", [[], ["--show_config"]])
def test_problems_come_with_those_of_other_settings(probes, tmp_path, more):
    argv = ["--output_dir", str(tmp_path), "--learning_rate", "-1", "--callbacks", "probee", *more]
    with pytest.raises(ConfigurationError) as caught:
        parse(HFTuneArguments, argv=argv, environ={})
    first, second = caught.value.problems
    assert first == "learning_rate: found -1.0, expected 0 or more"
    assert "no installed package declares 'probee'. Did you mean 'probe'?" in second


def test_settings_in_python(probes, tmp_path):
    with pytest.raises(ConfigurationError, match="callbacks: found 'probe', expected a list"):
        HFTuneArguments(output_dir=str(tmp_path), callbacks="probe")
    with pytest.raises(ConfigurationError, match="callback_errors: found 'ignore', expected one"):
        HFTuneArguments(output_dir=str(tmp_path), callback_errors="ignore")
