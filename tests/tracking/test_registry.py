"""The model registry, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from safetensors.numpy import load_file, save_file

from hftune.tracking.metric_directions import known_direction
from hftune.tracking.registry import ModelRegistry, RegistryError
from hftune.tracking.store import Store, StoreError
from hftune.tracking.tables import metadata
from hftune.tracking.tracker import ExperimentTracker
from hftune.utils.errors import CheckpointError, ConfigurationError
from tests.processes import finish, start


@pytest.fixture
def registry(store_url, tmp_path):
    return ModelRegistry(Store(store_url), tmp_path / "models")


def save_model(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full(10, value, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return folder


@pytest.fixture
def register(registry, tmp_path):
    """Registers a model whose weights are a number, with other facts as given."""

    def call(value: float, name: str = "kobart", **facts):
        facts = {
            "architecture": "kobart",
            "checkpoint": "gogamza/kobart-base-v2",
            "config": {"training": {"learning_rate": 5e-5}},
            "performance": {},
            "training_info": {"epochs": 3},
            "file_path": save_model(tmp_path / f"out {value}", value),
            **facts,
        }
        return registry.register_model(name, **facts)

    return call


def damage(path: Path) -> None:
    path.chmod(0o644)
    with open(path, "r+b") as stream:
        data = bytearray(stream.read())
        data[-1] ^= 1
        stream.seek(0)
        stream.write(data)


def lose_the_database(registry: ModelRegistry) -> None:
    with registry.store.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())


def everything(registry: ModelRegistry) -> dict:
    """All that users can see, by model."""
    models = [registry.get_model_info(info["model_id"]) for info in registry.search_models()]
    names = {info["name"] for info in models}
    return {
        "models": {info["model_id"]: repr(info) for info in models},
        "history": {name: registry.history(name) for name in names},
    }


def test_the_manuals_calls(registry, tmp_path):
    config = {"training": {"learning_rate": 5e-5}}
    model_id = registry.register_model(
        name="kobart_base_v1",
        architecture="kobart",
        checkpoint="gogamza/kobart-base-v2",
        config=config,
        performance={"rouge1_f1": 0.45, "rouge_combined_f1": 0.39},
        training_info={"epochs": 3, "batch_size": 16},
        file_path=save_model(tmp_path / "first", 1.0),
        experiment_id="exp_20250128_001",
    )
    other = registry.register_model(
        name="kobart_base_v2",
        architecture="kobart",
        checkpoint="gogamza/kobart-base-v2",
        config=config,
        performance={"rouge1_f1": 0.47, "rouge_combined_f1": 0.31},
        training_info={"epochs": 5, "batch_size": 16},
        file_path=save_model(tmp_path / "second", 2.0),
        experiment_id="exp_20250128_002",
    )
    assert re.fullmatch(r"model_\d{8}_001", model_id) and other == model_id[:-1] + "2"
    best = registry.get_best_models(metric="rouge_combined_f1", limit=5)
    assert [info["model_id"] for info in best] == [model_id, other]
    found = registry.search_models(
        architecture="kobart", min_performance={"rouge_combined_f1": 0.35}
    )
    assert [info["model_id"] for info in found] == [model_id]
    info = registry.get_model_info(model_id)
    assert info["performance"] == {"rouge1_f1": 0.45, "rouge_combined_f1": 0.39}
    assert info["training_info"] == {"epochs": 3, "batch_size": 16}
    assert info["config"] == config and info["experiment_id"] == "exp_20250128_001"
    assert registry.compare_models([model_id, other]) == {
        "rouge1_f1": [0.45, 0.47],
        "rouge_combined_f1": [0.39, 0.31],
    }
    folder = registry.folder("kobart_base_v1")
    assert str(folder) == info["file_path"] and folder.is_absolute()
    assert load_file(folder / "model.safetensors")["weight"].tolist() == [1.0] * 10


def test_versions_and_references(registry, register):
    ids = [register(1), register(2), register(3), register(1, name="other model 한국")]
    infos = [registry.get_model_info(model_id) for model_id in ids]
    assert [(i["name"], i["version"]) for i in infos] == [
        ("kobart", 1), ("kobart", 2), ("kobart", 3), ("other model 한국", 1),
    ]  # fmt: skip
    registry.promote("kobart", 2, "production")
    for ref, version in {"kobart": 3, "kobart:1": 1, "kobart@production": 2, ids[1]: 2}.items():
        assert registry.get_model_info(ref)["version"] == version
    assert registry.get_model_info("kobart:2")["aliases"] == ["production"]
    assert infos[0]["digest"] == infos[3]["digest"] != infos[1]["digest"]


def test_the_same_content_is_the_same_version(registry, register):
    first = register(1, performance={"f1": 0.5})
    assert register(1, performance={"f1": 0.5}) == first
    assert [event["kind"] for event in registry.history("kobart")] == ["registered"]
    assert register(1, performance={"f1": 0.7}, step=9) == first
    info = registry.get_model_info(first)
    assert info["performance"] == {"f1": 0.5} and info["version"] == 1
    again = registry.history("kobart")[-1]
    assert again["kind"] == "registered again" and again["model_id"] == first
    assert again["performance"] == {"f1": 0.7} and again["step"] == 9
    assert "config" not in again


def test_unknown_models_and_what_is_near(registry, register):
    with pytest.raises(ConfigurationError, match="found no model 'kobart'. No model is registered"):
        registry.get_model_info("kobart")
    model_id = register(1)
    register(2)
    registry.promote("kobart", 1, "production")
    wrong = model_id[:-1] + "9"
    near = {
        "kobert": "found no model 'kobert'. Did you mean 'kobart'?",
        "kobart:7": "found no model 'kobart:7'. 'kobart' has the versions 2, 1 and the aliases: "
        "production.",
        "kobart@staging": "found no model 'kobart@staging'. 'kobart' has the versions 2, 1 and the "
        "aliases: production.",
        "kobart:x": "found no model 'kobart:x'. 'kobart' has",
        wrong: f"found no model '{wrong}'. Did you mean 'model_",
        "../../etc": "found no model '../../etc'.",
        "a\nb": "found no model 'a\nb'.",
    }
    for ref, message in near.items():
        with pytest.raises(ConfigurationError) as caught:
            registry.get_model_info(ref)
        assert str(caught.value).startswith(message)
    with pytest.raises(ConfigurationError) as caught:
        registry.compare_models(["kobart", "kobert", wrong])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigurationError, match=r"found no model named 'x'"):
        registry.history("x")


def test_compare_has_none_where_a_model_lacks_a_metric(registry, register):
    ids = [
        register(1, performance={"f1": 0.5, "loss": 2.0}),
        register(2, performance={"loss": 1.0, "bleu": 30}),
    ]
    assert registry.compare_models(ids) == {
        "f1": [0.5, None],
        "loss": [2.0, 1.0],
        "bleu": [None, 30.0],
    }
    assert list(registry.compare_models(ids)) == ["f1", "loss", "bleu"]


def test_best_in_each_direction_and_what_is_not_finite_comes_last(registry, register):
    values = [0.5, math.nan, math.inf, 0.7, -math.inf, 0.6, 0.7]
    ids = [register(i, performance={"f1": v, "loss": v}) for i, v in enumerate(values)]
    register(100, performance={"other": 1.0})
    best = registry.get_best_models("f1", limit=10)
    assert [info["model_id"] for info in best] == [ids[i] for i in (3, 6, 5, 0, 2, 4, 1)]
    assert math.isnan(best[-1]["performance"]["f1"]) and best[4]["performance"]["f1"] == math.inf
    best = registry.get_best_models("loss", limit=10)
    assert [info["model_id"] for info in best] == [ids[i] for i in (0, 5, 3, 6, 4, 2, 1)]
    assert len(registry.get_best_models("loss")) == 5
    [worst] = registry.get_best_models("f1", 1, greater_is_better=False)
    assert worst["model_id"] == ids[0]
    found = registry.search_models(min_performance={"f1": 0.6})
    assert [info["model_id"] for info in found] == [ids[6], ids[5], ids[3]]
    found = registry.search_models(min_performance={"loss": 0.6})
    assert [info["model_id"] for info in found] == [ids[5], ids[0]]
    with pytest.raises(ConfigurationError, match="limit: found 0, expected 1 or more"):
        registry.get_best_models("f1", 0)


def test_directions_are_known_or_declared(registry, register):
    register(1, performance={"smoothness": 1.0, "f1": 0.1})
    ids = [register(2, performance={"eval_smoothness": 1.0}), register(3)]
    with pytest.raises(ConfigurationError, match="'smoothness': it is not known whether a higher"):
        registry.get_best_models("smoothness")
    with pytest.raises(ConfigurationError, match=r"has the metric 'f2'\. Did you mean 'f1'\?"):
        registry.get_best_models("f2")
    with pytest.raises(ConfigurationError, match=r"has the metric 'f2'"):
        registry.search_models(min_performance={"f2": 1})
    assert registry.search_models(
        min_performance={"eval_smoothness": 0.5}, metric_directions={"eval_smoothness": True}
    )
    better = register(
        4, performance={"eval_smoothness": 0.5}, metric_directions={"smoothness": False}
    )
    best = registry.get_best_models("eval_smoothness")
    assert [info["model_id"] for info in best] == [better, ids[0]]


def test_a_run_cannot_turn_a_known_metric_around(registry, register):
    tracker = ExperimentTracker(registry.store)
    run = tracker.start_experiment("run", metric_directions={"wer": True})
    tracker.end_experiment(run)
    ids = [register(1, performance={"wer": 0.3}), register(2, performance={"wer": 0.2})]
    assert known_direction("wer") is False
    assert registry.get_best_models("wer", 1)[0]["model_id"] == ids[1]


def test_search(registry, register):
    first = register(1, experiment_id="exp_1", performance={"f1": 0.5, "loss": 1.0})
    second = register(2, performance={"f1": 0.6, "loss": 2.0}, parent_model=first)
    third = register(3, name="mt5", architecture="mt5", performance={"f1": 0.7})
    registry.promote("kobart", 1, "production")

    def found(**conditions):
        return [info["model_id"] for info in registry.search_models(**conditions)]

    assert found() == [third, second, first]
    assert found(limit=2) == [third, second]
    assert found(architecture="kobart") == [second, first]
    assert found(name="mt5") == [third] and found(name="mt6") == []
    assert found(experiment_id="exp_1") == [first]
    assert found(parent_model="kobart:1") == [second]
    assert found(alias="production") == [first]
    assert found(min_performance={"f1": 0.6}) == [third, second]
    assert found(min_performance={"f1": 0.5, "loss": 1.5}) == [first]
    assert found(architecture="kobart", min_performance={"f1": 0.6}) == [second]


def test_search_sorts(registry, register):
    facts = [  # name, metrics
        ("kobart", {"loss": 0.5}),
        ("t5", {"loss": math.nan}),
        ("kobart", {}),
        ("kobart", {"loss": math.inf}),
        ("bart", {"loss": 0.1, "speed": 1.0}),
        ("t5", {"loss": 0.7, "speed": 2.0}),
        ("bart", {"loss": -math.inf}),
        ("kobart", {"loss": 0.1}),
    ]
    ids = []
    for place, (name, performance) in enumerate(facts):
        ids.append(
            register(place, name=name, performance=performance, architecture=f"a{place % 2}")
        )

    def found(sort, **conditions):
        models = registry.search_models(sort=sort, **conditions)
        return [ids.index(info["model_id"]) for info in models]

    assert found("created") == found("-created") == list(range(7, -1, -1))
    assert found("name") == [6, 4, 7, 3, 2, 0, 5, 1]
    assert found("-name") == [5, 1, 7, 3, 2, 0, 6, 4]
    assert found("loss") == [4, 7, 0, 5, 6, 3, 1, 2]
    assert found("-loss") == [5, 0, 4, 7, 3, 6, 1, 2]
    assert found("-speed") == [5, 4, 0, 1, 2, 3, 6, 7]
    assert found("speed", metric_directions={"speed": False})[:2] == [4, 5]
    assert found("loss", limit=2) == [4, 7] and found("loss", architecture="a1") == [7, 5, 3, 1]
    assert found("loss", latest=True) == [7, 5, 6] and found("name", latest=True) == [6, 7, 5]
    assert found("created", latest=True, limit=2) == [7, 6]
    assert found("created", latest=True, architecture="a0") == [6, 2]
    assert found("loss", latest=True, min_performance={"loss": 0.5}) == [4, 7]
    best = registry.get_best_models("loss", limit=None)
    assert [ids.index(info["model_id"]) for info in best] == found("loss")[:-1]
    with pytest.raises(ConfigurationError, match="metric 'speed': it is not known whether"):
        found("speed")
    with pytest.raises(ConfigurationError) as caught:
        found("sise")
    assert str(caught.value) == "no registered model has the metric 'sise'. Did you mean 'size'?"
    with pytest.raises(ConfigurationError, match="limit: found 0, expected 1 or more"):
        found("created", limit=0)


def test_search_sorts_by_size(registry, register, tmp_path):
    sizes = [3, 1, 2]
    for size in sizes:
        path = tmp_path / f"size {size}.safetensors"
        save_file({"weight": np.zeros(size * 100, np.float32)}, path)
        register(0, file_path=path)
    found = [info["version"] for info in registry.search_models(sort="size")]
    assert found == [info["version"] for info in registry.search_models(sort="-size")] == [1, 3, 2]


WRONG = [
    ({"name": "../kobart"}, "model name '../kobart' cannot be a file name"),
    ({"name": "a\nb"}, "cannot be a file name"),
    ({"name": "a:1"}, "cannot be a file name"),
    ({"name": "a@b"}, "cannot be a file name"),
    ({"name": "x" * 300}, "at most 128"),
    ({"name": "model_20250128_001"}, "is how ids look: take another one"),
    ({"performance": {"f1": "0.5"}}, "performance: found '0.5' for 'f1', expected a number"),
    ({"performance": {"f1": None}}, "performance: found None for 'f1'"),
    ({"metric_directions": {"eval_loss": True}}, "'eval_loss' is declared as better when higher"),
    ({"architecture": None}, "architecture: found None, expected text such as 'kobart'"),
    ({"file_path": "nowhere"}, "nowhere: no such file or folder"),
    ({"parent_model": "nobody"}, "found no model 'nobody'"),
]


def test_wrong_arguments(registry, register):
    for facts, message in WRONG:
        with pytest.raises(ConfigurationError, match=message):
            register(1, **facts)
    assert registry.search_models() == []
    assert not (registry.contents.root / "partial").exists()


def test_wrong_arguments_are_reported_together(register):
    with pytest.raises(ConfigurationError) as caught:
        register(1, name="..", performance={"a": "x", "b": []}, metric_directions={"f1": False})
    assert len(caught.value.problems) == 4


def test_settings_of_any_kind_without_secrets(registry, register):
    loop = {}
    loop["self"] = loop
    config = {
        "path": Path("a"),
        "nan": math.nan,
        "array": np.arange(2),
        "hub_token": "hf_abc",
        "text": "각\x00\ud800",
        "object": object,
    }
    model_id = register(1, config=config, training_info=loop, performance={"f1": np.float32(0.5)})
    info = registry.get_model_info(model_id)
    assert info["config"]["path"] == "a" and info["config"]["array"] == [0, 1]
    assert info["config"]["nan"] == "nan" and info["config"]["hub_token"] is None
    assert info["config"]["text"].startswith("각")
    assert info["training_info"] == "dict that contains itself"
    assert info["performance"] == {"f1": 0.5}
    for path in registry.contents.root.rglob("*.json*"):
        assert "hf_abc" not in path.read_text(encoding="utf-8")


def test_lineage_from_the_data_to_the_models_parents(registry, register):
    tracker = ExperimentTracker(registry.store)
    run = tracker.start_experiment("run", dataset_info={"fingerprint": "data 1"})
    tracker.end_experiment(run)
    first = register(1, experiment_id=run, stage="warm-up", step=100)
    folder = registry.get_model_info(first)["file_path"]
    second = register(2, checkpoint=folder, data_fingerprint="data 2")
    third = register(3, config={"model": {"path": f"{registry.folder(second)}/"}})
    fourth = register(4, parent_model="kobart:1")
    assert registry.get_model_info(first)["lineage"] == {
        "data_fingerprint": "data 1",
        "experiment_id": run,
        "stage": "warm-up",
        "step": 100,
        "checkpoint": "gogamza/kobart-base-v2",
        "ancestors": [],
    }
    info = registry.get_model_info(third)
    assert info["parent_model"] == second and info["lineage"]["ancestors"] == [second, first]
    assert registry.get_model_info(second)["lineage"]["data_fingerprint"] == "data 2"
    assert registry.get_model_info(fourth)["parent_model"] == first


def test_promotion_compares_and_swaps(registry, register):
    for value in (1, 2, 3):
        register(value)
    info = registry.promote("kobart", 1, "production", expect=None)
    assert info["version"] == 1 and info["aliases"] == ["production"]
    registry.promote("kobart", 2, "production", expect=1)
    with pytest.raises(RegistryError) as caught:
        registry.promote("kobart", 3, "production", expect=1)
    assert str(caught.value) == (
        "kobart@production is version 2, expected version 1: somebody moved it; look at the "
        "model's history, then decide again"
    )
    with pytest.raises(RegistryError, match="is version 2, expected not set"):
        registry.promote("kobart", 3, "production", expect=None)
    with pytest.raises(RegistryError, match="kobart@staging is not set, expected version 1"):
        registry.promote("kobart", 3, "staging", expect=1)
    assert registry.get_model_info("kobart@production")["version"] == 2
    registry.promote("kobart", 2, "production")  # already there: nothing happens
    moves = [e for e in registry.history("kobart") if e["kind"] == "promoted"]
    assert [(e["version"], e["from"], e["alias"]) for e in moves] == [
        (1, None, "production"),
        (2, 1, "production"),
    ]
    assert all("@" in event["who"] and event["time"].endswith("+00:00") for event in moves)


def test_gates_of_a_promotion(registry, register):
    metrics = [
        {"rouge_combined_f1": 0.40, "loss": 1.0},
        {"rouge_combined_f1": 0.40, "loss": 0.5},
        {"rouge_combined_f1": math.nan, "loss": 0.5},
        {"loss": 0.5},
        {"rouge_combined_f1": 0.45, "loss": 2.0},
    ]
    for value, performance in enumerate(metrics):
        register(value, performance=performance)
    gate = {"must_beat": "production", "metric": "rouge_combined_f1"}
    registry.promote("kobart", 1, "production", **gate)  # nothing to beat yet

    def refusal(version, alias="production", **gates):
        with pytest.raises(RegistryError) as caught:
            registry.promote("kobart", version, alias, **gates)
        assert registry.get_model_info("kobart@production")["version"] == 1
        return str(caught.value)

    assert refusal(2, **gate) == (
        "kobart:2 does not become 'production': its rouge_combined_f1 is 0.4, expected higher than "
        "0.4 of kobart:1"
    )
    assert refusal(3, **gate).endswith(
        "its rouge_combined_f1 is not a number (NaN), expected higher than 0.4 of kobart:1"
    )
    assert refusal(3, min_metric={"rouge_combined_f1": 0.1}).endswith(
        "its rouge_combined_f1 is not a number (NaN), expected 0.1 or more"
    )
    assert "it has no rouge_combined_f1" in refusal(4, **gate)
    both = refusal(4, **gate, min_metric={"loss": 0.1})
    assert both.endswith("it has no rouge_combined_f1; its loss is 0.5, expected 0.1 or less")
    assert "its rouge_combined_f1 is 0.45, expected 0.5 or more" in refusal(
        5, **gate, min_metric={"rouge_combined_f1": 0.5}
    )
    assert "expected lower than 1 of kobart:1" in refusal(
        5, "staging", must_beat="production", metric="loss"
    )
    registry.promote("kobart", 2, "staging", must_beat="production", metric="loss")
    registry.promote("kobart", 5, "production", **gate, min_metric={"loss": 2.0})
    last = registry.history("kobart")[-1]
    assert (last["must_beat"], last["metric"], last["from"]) == (
        "production", "rouge_combined_f1", 1,
    )  # fmt: skip
    assert last["min_metric"] == {"loss": 2.0}
    registry.promote("kobart", 3, "broken")
    registry.promote("kobart", 1, "better", must_beat="broken", metric="rouge_combined_f1")
    with pytest.raises(
        ConfigurationError, match="the aliases: better, broken, production, staging"
    ):
        registry.promote("kobart", 1, "new", must_beat="prodction", metric="loss")
    with pytest.raises(ConfigurationError, match="given together"):
        registry.promote("kobart", 1, "new", must_beat="production")
    with pytest.raises(ConfigurationError, match="alias '../x' cannot be a file name"):
        registry.promote("kobart", 1, "../x")


def test_gates_of_metrics_that_nobody_declared(registry, register):
    for value in range(3):
        register(value, performance={"smoothness": float(value), "내점수": 1.0})
    gates = {"must_beat": "production", "metric": "smoothness", "min_metric": {"내점수": 1.0}}
    registry.promote("kobart", 2, "production")
    with pytest.raises(ConfigurationError, match="metric 'smoothness': it is not known"):
        registry.promote("kobart", 3, "production", **gates)
    with pytest.raises(ConfigurationError, match="metric '내점수': it is not known"):
        registry.promote("kobart", 3, "production", **gates, greater_is_better=True)
    lower = {"smoothness": False, "내점수": True}
    with pytest.raises(RegistryError, match="its smoothness is 2, expected lower than 1"):
        registry.promote("kobart", 3, "production", **gates, metric_directions=lower)
    registry.promote("kobart", 1, "production", **gates, metric_directions=lower)
    higher = {"smoothness": True, unicodedata.normalize("NFD", "내점수"): True}
    registry.promote("kobart", 3, "production", **gates, metric_directions=higher)


def test_deletion_refuses_what_is_in_use(registry, register):
    first, second = register(1), register(2)
    child = register(3, parent_model=first)
    registry.promote("kobart", 1, "production")
    with pytest.raises(RegistryError) as caught:
        registry.delete_model("kobart:1")
    assert str(caught.value) == (
        f"kobart:1 ({first}) is in use: the alias production points to it; {child} was trained "
        "from it. Move the alias or delete the other model first."
    )
    with pytest.raises(RegistryError, match="kobart@production is version 1, expected version 2"):
        registry.remove_alias("kobart", "production", expect=2)
    registry.remove_alias("kobart", "production")
    registry.delete_model(child)
    assert registry.delete_model("kobart:1") == first
    assert [info["model_id"] for info in registry.search_models()] == [second]
    with pytest.raises(ConfigurationError, match="found no model"):
        registry.get_model_info("kobart@production")
    kinds = [event["kind"] for event in registry.history("kobart")]
    assert kinds[-3:] == ["alias removed", "deleted", "deleted"]


def test_numbers_are_not_used_again(registry, register):
    register(1)
    second = register(2)
    registry.delete_model("kobart:2")
    third = register(3)
    again = register(2)
    assert len({second, third, again}) == 3
    assert registry.get_model_info(third)["version"] == 3
    assert registry.get_model_info(again)["version"] == 4


def test_gc_frees_deleted_models_only(registry, register):
    first, second = register(1), register(2)
    assert registry.gc(dry_run=True).bytes == 0
    registry.delete_model(first)
    garbage = registry.gc(dry_run=True)
    assert (garbage.contents, garbage.objects, garbage.partials) == (1, 1, 0)
    assert registry.gc() == garbage and registry.gc().objects == 0
    assert registry.verify() == {second: []}


def test_gc_keeps_what_another_database_knows(registry, register):
    model_id = register(1)
    lose_the_database(registry)
    assert registry.gc().contents == 0
    assert registry.verify() == {model_id: ["the database does not know it: hftune models reindex"]}
    registry.reindex()
    assert registry.verify() == {model_id: []}


def test_a_flipped_byte_is_found(registry, register):
    first, second = register(1), register(2)
    same = register(1, name="copy")
    damage(Path(registry.get_model_info(first)["file_path"]) / "model.safetensors")
    problem = "model.safetensors has changed since it was registered (other sha256)"
    assert registry.verify() == {first: [problem], second: [], same: [problem]}
    assert registry.verify("kobart:1") == {first: [problem]}
    with pytest.raises(CheckpointError) as caught:
        registry.folder("kobart:1")
    assert str(caught.value) == (
        f"kobart:1 ({first}) is damaged: {problem}. Registering the same files again under any "
        "name mends it."
    )
    with pytest.raises(CheckpointError, match="is damaged"):
        registry.promote("kobart", 1, "production")
    assert registry.folder("kobart:2").is_dir()
    register(1, name="third")
    assert registry.verify(first) == {first: []} and registry.folder("kobart:1").is_dir()


def test_verify_says_how_far_it_is(registry, register):
    ids = [register(1), register(2), register(3), register(1, name="copy")]
    sizes = [registry.get_model_info(model_id)["bytes"] for model_id in ids]
    damage(Path(registry.get_model_info(ids[1])["file_path"]) / "model.safetensors")
    said = []
    result = registry.verify(on_bytes=lambda done, total: said.append((done, total)))
    assert [key for key, problems in result.items() if problems] == [ids[1]]
    assert said == sorted(said) and said[-1] == (sum(sizes[:3]), sum(sizes[:3]))
    said.clear()
    result = registry.verify([ids[2], "copy"], on_bytes=lambda *sizes: said.append(sizes))
    assert list(result) == [ids[2], ids[3]] and said[-1] == (sizes[2] + sizes[0],) * 2
    with pytest.raises(ConfigurationError) as caught:
        registry.verify(["kobert", "t5"])
    assert len(caught.value.problems) == 2


def test_export(registry, register, tmp_path):
    register(1)
    target = registry.export("kobart", tmp_path / "exported")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert (target / "model.safetensors").read_bytes() == (
        tmp_path / "out 1" / "model.safetensors"
    ).read_bytes()


def test_the_state_of_the_run_is_left_out(registry, register, tmp_path):
    (save_model(tmp_path / "out 1", 1) / "optimizer.pt").write_bytes(b"x")
    info = registry.get_model_info(register(1))
    assert info["left_out"] == ["optimizer.pt"]
    assert info["bytes"] == sum(p.stat().st_size for p in Path(info["file_path"]).iterdir())


# A database that is lost


def test_the_registry_is_built_again_from_its_files(registry, register):
    first = register(1, performance={"f1": 0.5, "x": math.nan}, metric_directions={"x": True})
    second = register(2, performance={"f1": 0.6, "x": -math.inf}, parent_model=first)
    third = register(3, name="other", experiment_id="exp_1", stage="a", step=3)
    gone = register(4)
    registry.promote("kobart", 1, "production")
    registry.promote("kobart", 2, "production", expect=1)
    registry.promote("kobart", 1, "old")
    registry.promote("other", 1, "production")
    registry.remove_alias("other", "production")
    registry.delete_model(gone)
    before = everything(registry)
    assert set(before["models"]) == {first, second, third}
    lose_the_database(registry)
    assert registry.search_models() == []
    result = registry.reindex()
    assert result == {"models": [first, second, third], "events": 10, "problems": []}
    assert everything(registry) == before
    assert [i["model_id"] for i in registry.get_best_models("f1")] == [second, first]
    assert [i["model_id"] for i in registry.get_best_models("x")] == [second, first]
    assert registry.reindex() == {"models": [], "events": 0, "problems": []}
    new = register(5)
    assert new not in {first, second, third, gone}
    assert registry.get_model_info(new)["version"] == 4


def test_what_the_database_knows_is_right(registry, register):
    first = register(1)
    registry.promote("kobart", 1, "production")
    before = everything(registry)
    record = registry.contents.root / "records" / f"{first}.json"
    events = registry.contents.root / "events.jsonl"
    text = record.read_text(encoding="utf-8")
    record.unlink()
    events.write_text(events.read_text().splitlines(keepends=True)[0])
    assert registry.reindex() == {"models": [], "events": 0, "problems": []}
    assert everything(registry) == before
    assert json.loads(record.read_text(encoding="utf-8")) == json.loads(text)


def test_records_that_cannot_be_used_are_named(registry, register):
    first, second = register(1), register(2)
    lose_the_database(registry)
    folder = registry.contents.root / "records"
    (folder / f"{first}.json").write_text("{")
    (folder / "model_20250101_001.json").write_text((folder / f"{second}.json").read_text())
    result = registry.reindex()
    assert result["models"] == [second]
    assert [p.partition(" cannot be used: ")[0] for p in result["problems"]] == [
        str(folder / "model_20250101_001.json"),
        str(folder / f"{first}.json"),
    ]
    with pytest.raises(CheckpointError, match="cannot be used"):
        registry.gc()


def test_two_stores_that_had_one_folder(registry, register, tmp_path):
    other = ModelRegistry(Store(f"sqlite:///{tmp_path}/other.db"), registry.contents.root)
    facts = {
        "architecture": "kobart",
        "checkpoint": None,
        "config": {},
        "performance": {},
        "training_info": {},
    }
    ids = [register(1)]
    for value in (1, 2):
        folder = save_model(tmp_path / f"out {value}", value)
        ids.append(other.register_model("kobart", file_path=folder, **facts))
    assert len(set(ids)) == 3
    result = registry.reindex()
    assert result["models"] == [ids[2]]
    assert result["problems"] == [
        f"{ids[1]} is left out: its content is registered as kobart already"
    ]
    assert registry.get_model_info(ids[2])["version"] == 2


def test_a_commit_that_fails_leaves_no_file_behind(registry, register):
    first = register(1)
    registry.promote("kobart", 1, "production")
    before = everything(registry)

    def fail(connection):
        raise sa.exc.OperationalError("COMMIT", {}, Exception("disk is full"))

    engine = registry.store._engine
    for change in (
        lambda: register(2),
        lambda: registry.remove_alias("kobart", "production"),
        lambda: registry.promote("kobart", 1, "staging"),
    ):
        sa.event.listen(engine, "commit", fail)
        with pytest.raises(StoreError, match="disk is full"):
            change()
        sa.event.remove(engine, "commit", fail)
        assert everything(registry) == before
    records = registry.contents.root / "records"
    assert [path.stem for path in records.iterdir()] == [first]
    lose_the_database(registry)
    registry.reindex()
    assert everything(registry) == before


# Several processes, and one that is killed


def test_processes_that_register_one_name(registry, tmp_path):
    facts = {
        "architecture": "kobart",
        "checkpoint": None,
        "config": {},
        "performance": {},
        "training_info": {},
    }

    def work(rank):
        own = ModelRegistry(
            Store(registry.store._url.render_as_string(hide_password=False)),
            registry.contents.root,
        )
        for number in range(5):
            folder = save_model(tmp_path / f"{rank} {number}", rank * 100 + number)
            own.register_model("kobart", file_path=folder, **facts)
        own.register_model("kobart", file_path=save_model(tmp_path / f"s{rank}", -1), **facts)

    children = [start(lambda rank=rank: work(rank)) for rank in range(4)]
    assert [finish(child) for child in children] == [0] * 4
    models = registry.search_models(name="kobart")
    assert sorted(info["version"] for info in models) == list(range(1, 22))
    assert len({info["model_id"] for info in models}) == 21
    assert not any(registry.verify().values())
    lose_the_database(registry)
    assert len(registry.reindex()["models"]) == 21


def test_two_promotions_at_once(registry, register):
    for value in range(4):
        register(value)
    registry.promote("kobart", 1, "production")
    reading, writing = os.pipe()

    def promote(version):
        os.read(reading, 1)
        try:
            registry.promote("kobart", version, "production", expect=1)
        except RegistryError:
            os._exit(3)

    children = [start(lambda version=version: promote(version)) for version in (2, 3, 4)]
    os.write(writing, b"xxx")
    assert sorted(finish(child) for child in children) == [0, 3, 3]
    assert len([e for e in registry.history("kobart") if e["kind"] == "promoted"]) == 2


def kill_at(call: int, work) -> int:
    """Runs ``work`` in a process that is killed before its n-th write that lasts."""

    def counted_work():
        count = 0

        def counted(real):
            def write(*arguments, **keywords):
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **keywords)

            return write

        for name in ("fsync", "replace", "link", "write"):
            setattr(os, name, counted(getattr(os, name)))
        commit = sa.engine.default.DefaultDialect.do_commit
        sa.engine.default.DefaultDialect.do_commit = counted(commit)
        work()

    return finish(start(counted_work))


def test_killed_anywhere_a_registration_is_whole_or_not_there(registry, register):
    register(0)
    call, status = 0, -signal.SIGKILL
    while status != 0:
        call += 1
        status = kill_at(call, lambda call=call: register(call))
        assert status in (0, -signal.SIGKILL)
        models = registry.search_models()
        problems = {key: found for key, found in registry.verify().items() if found}
        # At the most there is a record of which the database knows nothing.
        assert not problems.keys() & {info["model_id"] for info in models}
        assert len(problems) <= 1
        assert status == 0 or len(models) == call
        assert registry.get_model_info(register(call))["version"] == call + 1
        registry.gc()
        for model_id in problems:
            (registry.contents.root / "records" / f"{model_id}.json").unlink()
    assert call > 10
    assert not any(registry.verify().values())
