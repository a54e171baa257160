"""Configurations of ranking models: what is checked, and what config.json keeps."""

from __future__ import annotations

import copy
import json

import pytest
from small_ranking import BACKBONES, TIMM_BACKBONES
from transformers import AutoConfig, Dinov2Config

from hftune.tasks.ranking.configuration_ranking import PairwiseRankingConfig
from hftune.utils.errors import ConfigurationError

SETTINGS = {
    "backbone_name": "facebook/dinov2-small",
    "feature_size": 32,
    "pooling": "mean",
    "projector_hidden_dim": 24,
    "projector_output_dim": 12,
    "projector_dropout": 0.25,
    "head_hidden_dim": 6,
    "unfreeze_last_blocks": 2,
    "loss_function": "tier_margin",
    "margin": 0.75,
    "score_temperature": 0.123456789012345,
    "tiers": ["최고", "좋음", "보통"],
}


@pytest.mark.parametrize("family", [*BACKBONES, "timm_registers", "timm_swin"])
def test_saving_keeps_everything(family, tmp_path):
    backbone = {**BACKBONES, **TIMM_BACKBONES}[family]
    config = PairwiseRankingConfig(backbone_config=backbone, **SETTINGS)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == "hftune_ranking"
    assert saved["backbone_config"]["model_type"] == backbone.model_type
    for loaded in (
        PairwiseRankingConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
    ):
        assert isinstance(loaded, PairwiseRankingConfig)
        assert {name: getattr(loaded, name) for name in SETTINGS} == SETTINGS
        assert type(loaded.backbone_config) is type(backbone)
        assert loaded.backbone_config.to_dict() == backbone.to_dict()
        assert loaded.to_diff_dict() == config.to_diff_dict()


def test_no_folder_of_this_machine_is_written(tmp_path):
    backbone = copy.deepcopy(BACKBONES["vit"])
    backbone.save_pretrained(tmp_path / "my_vit")
    backbone = AutoConfig.from_pretrained(tmp_path / "my_vit")
    config = PairwiseRankingConfig(
        backbone_config=backbone, backbone_name=str(tmp_path / "my_vit"), feature_size=32
    )
    assert config.backbone_name == "my_vit"
    config.save_pretrained(tmp_path)
    assert str(tmp_path) not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_values_that_are_set_later_are_kept(tmp_path):
    config = PairwiseRankingConfig(backbone_config=BACKBONES["vit"], feature_size=32)
    assert config.score_temperature is None and config.tiers == []
    config.score_temperature, config.tiers = 2.5, ["S", "A"]
    config.save_pretrained(tmp_path)
    loaded = PairwiseRankingConfig.from_pretrained(tmp_path)
    assert (loaded.score_temperature, loaded.tiers) == (2.5, ["S", "A"])


def test_lora_settings_are_kept(tmp_path):
    config = PairwiseRankingConfig(
        backbone_config=BACKBONES["vit"],
        feature_size=32,
        lora_rank=4,
        lora_alpha=8,
        lora_dropout=0.1,
        lora_target_modules=("q_proj", "v_proj"),
    )
    config.save_pretrained(tmp_path)
    loaded = PairwiseRankingConfig.from_pretrained(tmp_path)
    assert (loaded.lora_rank, loaded.lora_alpha, loaded.lora_dropout) == (4, 8, 0.1)
    assert loaded.lora_target_modules == ["q_proj", "v_proj"]


def test_defaults_are_the_manuals():
    config = PairwiseRankingConfig(backbone_config=Dinov2Config(), feature_size=1536)
    assert (config.projector_output_dim, config.projector_dropout) == (256, 0.1)
    assert config.freeze_backbone and not config.trains_backbone
    assert (config.loss_function, config.margin) == ("bradley_terry", 1.0)


@pytest.mark.parametrize(
    ("settings", "trains"),
    [
        ({}, False),
        ({"freeze_backbone": False}, True),
        ({"unfreeze_last_blocks": 1}, True),
        ({"lora_rank": 2}, True),
    ],
)
def test_when_the_backbone_trains(settings, trains):
    config = PairwiseRankingConfig(backbone_config=BACKBONES["vit"], feature_size=32, **settings)
    assert config.trains_backbone == trains


def test_all_problems_are_told_together():
    with pytest.raises(ConfigurationError) as error:
        PairwiseRankingConfig(
            feature_size=0,
            pooling="cls_maen",
            projector_dropout=1.0,
            lora_dropout=-0.1,
            loss_function="bradley-terry",
            margin=0,
            score_temperature=float("nan"),
            unfreeze_last_blocks=-1,
        )
    assert error.value.problems == (
        "backbone_config: found none, expected the configuration of a vision model",
        "feature_size: found 0, expected 1 or more",
        "unfreeze_last_blocks: found -1, expected 0 or more",
        "projector_dropout: found 1.0, expected a number in [0, 1)",
        "lora_dropout: found -0.1, expected a number in [0, 1)",
        "pooling: found 'cls_maen', expected one of cls, mean, cls_mean. Did you mean 'cls_mean'?",
        "loss_function: found 'bradley-terry', expected one of bradley_terry, margin, tier_margin. "
        "Did you mean 'bradley_terry'?",
        "margin: found 0, expected more than 0",
        "score_temperature: found nan, expected a number above 0",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"freeze_backbone": False, "unfreeze_last_blocks": 1},
            "unfreeze_last_blocks is for a frozen backbone",
        ),
        ({"freeze_backbone": False, "lora_rank": 1}, "lora_rank is for a frozen backbone"),
        ({"unfreeze_last_blocks": 1, "lora_rank": 1}, "exclude each other"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PairwiseRankingConfig(backbone_config=BACKBONES["vit"], feature_size=32, **settings)


@pytest.mark.parametrize("values", [{"model_type": "vision9000"}, {"hidden_size": 8}])
def test_a_backbone_that_this_transformers_does_not_know(values):
    with pytest.raises(ConfigurationError, match=r"which transformers 5\S+ does not"):
        PairwiseRankingConfig(backbone_config=values, feature_size=32)
