"""Saved models, the Trainer, and checkpoints of other architectures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from hftune.tasks.aurora import AuroraConfig, AuroraForForecasting
from hftune.utils.errors import CheckpointError, ConfigurationError, DataError

NEW_PROCESS = """
import sys, torch
from transformers import AutoModel
import hftune.tasks.aurora
torch.set_num_threads(1)
batch = torch.load(sys.argv[2], weights_only=True)
model = AutoModel.from_pretrained(sys.argv[1]).eval()
torch.save(model(**batch).prediction.detach(), sys.argv[3])
"""


def test_saved_model_is_equal_to_the_bit_and_works_alone(tmp_path, make_model, make_batch):
    # `soil` and its statistics are unknown to the package.
    model = make_model(channels=["2t", "soil", "z_500"], residual_prediction=True).eval()
    batch = make_batch(model.config, steps=2)
    model.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]

    loaded, information = AuroraForForecasting.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not information["missing_keys"]
    own = model.state_dict()
    assert "static_fields" in own
    assert all(torch.equal(v, own[k]) for k, v in loaded.state_dict().items())
    assert loaded.state_dict().keys() == own.keys()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in loaded.named_parameters() if not p.requires_grad}
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    ours, theirs = model.config.to_dict(), loaded.config.to_dict()
    different = {key for key, value in ours.items() if theirs.get(key) != value}
    assert different <= {"architectures", "dtype", "_name_or_path"}
    expected = model(**batch)
    assert torch.equal(loaded(**batch).prediction, expected.prediction)
    assert torch.equal(loaded(**batch).loss, expected.loss)

    torch.save(batch, tmp_path / "batch.pt")
    paths = [tmp_path / "model", tmp_path / "batch.pt", tmp_path / "prediction.pt"]
    subprocess.run([sys.executable, "-c", NEW_PROCESS, *map(str, paths)], check=True, timeout=120)
    assert torch.equal(torch.load(paths[2], weights_only=True), expected.prediction)


def test_low_precision_file_trains_in_float32(tmp_path, make_model):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AuroraForForecasting.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_transformers_knows_the_model(tmp_path, make_model):
    make_model().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is AuroraConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is AuroraForForecasting


def test_other_architectures_are_refused(tmp_path, make_model):
    make_model().save_pretrained(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())

    def rewritten(**changes):
        (tmp_path / "model" / "config.json").write_text(json.dumps(settings | changes))
        return tmp_path / "model"

    with pytest.raises(CheckpointError, match=r"of another shape: .*\n.* were saved with"):
        AuroraForForecasting.from_pretrained(rewritten(embed_dim=32))
    with pytest.raises(CheckpointError, match=r"missing from it: aurora\.encoder\.level_agg"):
        AuroraForForecasting.from_pretrained(rewritten(stabilise_level_agg=True))
    with pytest.raises(CheckpointError, match=r"that the model does not have: aurora\.backbone"):
        AuroraForForecasting.from_pretrained(
            rewritten(encoder_depths=[1, 0], decoder_depths=[0, 1])
        )
    with pytest.raises(CheckpointError, match="holds a model of type 'bert'; expected 'hftune_aur"):
        AuroraForForecasting.from_pretrained(rewritten(model_type="bert"))
    with pytest.raises(ConfigurationError, match="embed_dim 33 must be a multiple of 4"):
        AuroraForForecasting.from_pretrained(rewritten(embed_dim=33))
    rewritten()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="are damaged"):
        AuroraForForecasting.from_pretrained(tmp_path / "model")


class Samples(torch.utils.data.Dataset):
    """The samples of a batch, one by one."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["times"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.batch.items()}


def train(model, batch, folder, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=1,
        optim="sgd",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["target_fields"],
        **settings,
    )
    trainer = Trainer(model, arguments, train_dataset=Samples(batch), eval_dataset=Samples(batch))
    trainer.train()
    return trainer


def test_accumulation_of_gradients_changes_nothing(tmp_path, make_model, make_batch):
    weights = []
    for size, accumulation in ((4, 1), (1, 4)):
        model = make_model()
        batch = make_batch(model.config, samples=4)
        train(
            model,
            batch,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in make_model().parameters()])
    moved = (weights[0] - start).norm()
    assert (weights[0] - weights[1]).norm() < 1e-4 * moved


def test_the_trainer_switches_checkpointing_and_evaluates(tmp_path, make_model, make_batch):
    model = make_model()
    names = {name for name, _ in model.named_parameters()}
    batch = make_batch(model.config, samples=4)
    trainer = train(
        model, batch, tmp_path, per_device_train_batch_size=4, activation_checkpointing=True
    )
    assert model.is_activation_checkpointing
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    grouped = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert grouped == len(trained) and {n for n, _ in model.named_parameters()} == names
    result = trainer.predict(Samples(batch))
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    assert result.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert result.predictions is None or len(result.predictions) == 0


def test_first_message_is_of_the_data_not_of_torch(make_model):
    with pytest.raises(DataError, match="fields have the shape"):
        make_model()(torch.zeros(3), torch.zeros(3, dtype=torch.int64))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no saved model at .*missing.*OUTPUT_DIR/model"):
        AuroraForForecasting.from_pretrained(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"no saved model at .*OUTPUT_DIR/model"):
        AuroraConfig.from_pretrained(tmp_path)


def test_weights_that_are_frozen_stay_frozen(make_config, tmp_path):
    """transformers loads every parameter as one that trains."""
    model = AuroraForForecasting(make_config(channels=["z_500", "z_850"]))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    model.save_pretrained(tmp_path)
    loaded = AuroraForForecasting.from_pretrained(tmp_path)
    assert {name for name, p in loaded.named_parameters() if not p.requires_grad} == frozen
