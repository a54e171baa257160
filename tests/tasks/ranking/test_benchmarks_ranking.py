"""Time and memory of a model, measured."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from small_ranking import SIZE, small_model

from hftune.tasks.ranking.benchmarks_ranking import PerformanceBenchmarks, render, set_seed
from hftune.utils.errors import ConfigurationError, HftuneError
from hftune.utils.seeds import seed_everything

torch.set_num_threads(1)


def shown(report):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    return console.export_text()


@pytest.fixture(scope="module")
def report():
    return PerformanceBenchmarks(small_model(), device="cpu", batch_size=4).run_full_benchmark()


def test_a_report_has_the_keys_of_the_guide_and_what_they_come_from(report):
    assert list(report) == [
        "inference_time_ms",
        "memory_usage_gb",
        "memory_kind",
        "images_per_second",
        "backbone_ms_per_image",
        "training_step_ms",
        "training_hours_10k",
        "meets_inference_requirement",
        "meets_memory_requirement",
        "meets_training_requirement",
        "device",
        "device_name",
        "dtype",
        "image_size",
        "batch_size",
        "trains_backbone",
        "parameters",
    ]
    assert report["device"] == "cpu" and report["device_name"].endswith("1 thread")
    assert (report["image_size"], report["batch_size"], report["dtype"]) == (SIZE, 4, "float32")
    assert 0 < report["backbone_ms_per_image"] and 0 < report["inference_time_ms"] < 1000
    # A GB is 2**30 bytes; the weights are a part of it.
    assert report["memory_usage_gb"] * 2**30 >= 4 * report["parameters"]


def test_the_projection_is_made_of_what_was_measured(report):
    # 10,000 images pass the backbone once; 100 epochs are 250,000 batches of 4.
    milliseconds = 10_000 * report["backbone_ms_per_image"] + 250_000 * report["training_step_ms"]
    assert report["training_hours_10k"] == pytest.approx(milliseconds / 3_600_000)

    model = small_model(unfreeze_last_blocks=1)
    report = PerformanceBenchmarks(model, batch_size=3, image_size=16).run_full_benchmark()
    assert report["trains_backbone"] and report["image_size"] == 16
    # The last batch of an epoch has one image.
    hours = 100 * 3334 * report["training_step_ms"] / 3_600_000
    assert report["training_hours_10k"] == pytest.approx(hours)


def test_targets_are_compared_with_what_was_measured(report):
    for value, met in ((99.9, True), (100.0, False)):
        changed = {**report, "inference_time_ms": value, "meets_inference_requirement": met}
        line = shown(changed).split("\n")[1]
        assert line.split() == f"time of a pair {value:.2f} ms < 100 ms".split() + (
            ["✓"] if met else ["✗", "not", "met"]
        )
    assert "training, 10,000 images, 100 epochs (projected)" in shown(report)
    assert "The targets are meant for a GPU." in shown(report)
    assert "meant for" not in shown({**report, "device": "cuda"})


@pytest.mark.parametrize(("family", "frozen"), [("dinov2", True), ("resnet", False)])
def test_the_model_stays_as_it_is(family, frozen):
    model = small_model(family, freeze_backbone=frozen).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameter = model.head.score[-1].weight
    gradient = parameter.grad = torch.ones_like(parameter)
    PerformanceBenchmarks(model, batch_size=2).run_full_benchmark()
    assert model.training and parameter.grad is gradient and bool((gradient == 1).all())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_bfloat16_and_a_model_without_image_processor():
    model = small_model()
    model.image_processor = None
    dtypes = set()
    model.backbone.register_forward_hook(
        lambda module, inputs, output: dtypes.add(output.pooler_output.dtype)
    )
    layer = model.backbone.encoder.layer[0].mlp.fc1
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    options = {"image_size": 16, "batch_size": 2, "dtype": "bfloat16"}
    assert PerformanceBenchmarks(model, **options).run_full_benchmark()["dtype"] == "bfloat16"
    assert torch.bfloat16 in dtypes
    assert PerformanceBenchmarks(model).image_size == 518


def test_too_little_memory_is_said(monkeypatch):
    model = small_model()

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "encode", full)
    with pytest.raises(HftuneError) as caught:
        PerformanceBenchmarks(model, batch_size=2).run_full_benchmark()
    assert str(caught.value).endswith(
        "has too little memory for 2 images of 32 pixels in float32: try a smaller batch_size"
    )


def test_batches_have_two_images_at_least():
    with pytest.raises(ConfigurationError, match="^batch_size: found 1, expected 2 or more$"):
        PerformanceBenchmarks(small_model(), batch_size=1)


def test_set_seed_is_the_one_of_hftune():
    assert set_seed is seed_everything
