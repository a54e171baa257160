"""Weights that transformers publishes under other names than the model has: ViT, DINOv2, CLIP."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification

from hftune import HFTuneArguments, HFTuneTrainer

torch.set_num_threads(1)


class Pictures(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> dict:
        draw = torch.Generator().manual_seed(row)
        return {"pixel_values": torch.rand(3, 16, 16, generator=draw), "labels": row % 2}


def trainer(folder, seed: int = 0, **settings) -> HFTuneTrainer:
    torch.manual_seed(seed)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=32,
        )
    )  # fmt: skip
    args = HFTuneArguments(
        output_dir=str(folder), per_device_train_batch_size=4, learning_rate=1e-2,
        save_strategy="epoch", use_cpu=True, disable_tqdm=True, report_to="none", **settings,
    )  # fmt: skip
    return HFTuneTrainer(model, args, train_dataset=Pictures(), eval_dataset=Pictures())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> HFTuneTrainer:
    whole = trainer(tmp_path_factory.mktemp("renamed"))
    whole.train()
    return whole


def test_a_checkpoint_has_the_names_of_the_model(trained):
    saved = load_file(f"{trained.args.output_dir}/checkpoint-6/model.safetensors")
    assert set(saved) == set(trained.model.state_dict())
    published = f"{trained.args.output_dir}/published"
    trained.save_model(published)
    assert set(load_file(f"{published}/model.safetensors")) != set(saved)
    for folder in (f"{trained.args.output_dir}/checkpoint-6", published):
        again = ViTForImageClassification.from_pretrained(folder).state_dict()
        assert all(torch.equal(again[name], value) for name, value in saved.items())


def test_a_resumed_run_has_all_weights(trained, tmp_path, capsys):
    again = trainer(trained.args.output_dir, seed=1)
    again.train()
    want = trained.model.state_dict()
    assert all(torch.equal(want[n], value) for n, value in again.model.state_dict().items())
    assert "missing keys" not in capsys.readouterr().err


def test_the_best_model_has_all_weights(tmp_path):
    run = trainer(tmp_path, eval_strategy="epoch", load_best_model_at_end=True, num_train_epochs=4)
    run.train()
    best = load_file(f"{run.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(best[n], value) for n, value in run.model.state_dict().items())
