"""Configuration of a pairwise ranking model: backbone, pooling, head, loss."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ...utils.errors import ConfigurationError, did_you_mean

__all__ = ["LOSS_FUNCTIONS", "POOLINGS", "PairwiseRankingConfig"]

LOSS_FUNCTIONS = ("bradley_terry", "margin", "tier_margin")
"""Losses of :mod:`~hftune.tasks.ranking.losses_ranking`."""

POOLINGS = ("cls", "mean", "cls_mean")
"""What is taken of a backbone's output: the class token, the mean over patches, or both."""


class PairwiseRankingConfig(PreTrainedConfig):
    """Everything that makes a :class:`~.modeling_ranking.PairwiseRankingModel`.

    Args:
        backbone_config (PreTrainedConfig or dict): Of the vision model that sees the images: any
            that ``AutoModel`` knows.
        backbone_name (str): Where its weights came from, for people. Of a folder it keeps the last
            part. Defaults to nothing.
        feature_size (int): Numbers ``D`` that pooling takes of an image.
        pooling (str): ``"cls"``, ``"mean"`` over patches, or ``"cls_mean"``, one after the other.
            Defaults to ``"cls_mean"``.
        projector_hidden_dim (int): Width of the projector's hidden layer. Defaults to 512.
        projector_output_dim (int): Width of its output. Defaults to 256.
        projector_dropout (float): Dropout rate in [0, 1). Defaults to 0.1.
        head_hidden_dim (int): Width of the hidden layer between projector and score. Defaults to
            64.
        freeze_backbone (bool): Whether the backbone's own weights stay as they are. Defaults to
            True.
        unfreeze_last_blocks (int): Of a frozen backbone, how many of the last blocks train all the
            same. Defaults to 0.
        lora_rank (int): Rank of low-rank adapters in the backbone's linear layers; 0 for none.
            Defaults to 0.
        lora_alpha (float): Their scale is ``lora_alpha / lora_rank``. Defaults to 16.
        lora_dropout (float): Dropout rate in front of them. Defaults to 0.
        lora_target_modules (list of str or str): Which linear layers have them: ends of names, or
            ``"all-linear"``. Defaults to that.
        loss_function (str): ``"bradley_terry"``, ``"margin"`` or ``"tier_margin"``. Defaults to
            the first.
        margin (float): Of the two margin losses, in scores. Defaults to 1.
        score_temperature (float, *optional*): Of probabilities, found on validation images:
            ``sigmoid((score_1 - score_2) / score_temperature)``. None where it was not found.
        tiers (list of str): Names of the tiers that it was trained on, best first. Defaults to
            none.
        **kwargs: Arguments of ``PreTrainedConfig``.

    Raises:
        ConfigurationError: All that is wrong with the values, together.
    """

    model_type = "hftune_ranking"
    keys_to_ignore_at_inference = ["measures"]
    has_no_defaults_at_init = True

    def __init__(
        self,
        *,
        backbone_config: PreTrainedConfig | Mapping[str, Any] | None = None,
        backbone_name: str = "",
        feature_size: int = 0,
        pooling: str = "cls_mean",
        projector_hidden_dim: int = 512,
        projector_output_dim: int = 256,
        projector_dropout: float = 0.1,
        head_hidden_dim: int = 64,
        freeze_backbone: bool = True,
        unfreeze_last_blocks: int = 0,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        lora_target_modules: Sequence[str] | str = "all-linear",
        loss_function: str = "bradley_terry",
        margin: float = 1.0,
        score_temperature: float | None = None,
        tiers: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, Mapping):
            kind = backbone_config.get("model_type")
            if kind not in CONFIG_MAPPING:
                raise ConfigurationError(
                    f"backbone_config: found the model_type {kind!r}, which transformers "
                    f"{transformers.__version__} does not know"
                )
            backbone_config = CONFIG_MAPPING[kind].from_dict(dict(backbone_config))
        self.backbone_config = backbone_config
        # The rest of a path says nothing on another machine.
        self.backbone_name = (
            Path(backbone_name).resolve().name if os.path.isdir(backbone_name) else backbone_name
        )
        self.feature_size, self.pooling = feature_size, pooling
        self.projector_hidden_dim = projector_hidden_dim
        self.projector_output_dim = projector_output_dim
        self.projector_dropout = projector_dropout
        self.head_hidden_dim = head_hidden_dim
        self.freeze_backbone = freeze_backbone
        self.unfreeze_last_blocks = unfreeze_last_blocks
        self.lora_rank, self.lora_alpha = lora_rank, lora_alpha
        self.lora_dropout = lora_dropout
        self.lora_target_modules = (
            lora_target_modules
            if isinstance(lora_target_modules, str)
            else list(lora_target_modules)
        )
        self.loss_function, self.margin = loss_function, margin
        self.score_temperature, self.tiers = score_temperature, list(tiers)
        if problems := _problems(self):
            raise ConfigurationError(problems)
        super().__init__(**kwargs)

    @property
    def trains_backbone(self) -> bool:
        """Whether any parameter of the backbone trains."""
        return not self.freeze_backbone or self.unfreeze_last_blocks > 0 or self.lora_rank > 0

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``config.json`` holds."""
        values = super().to_dict()
        if isinstance(self.backbone_config, PreTrainedConfig):
            values["backbone_config"] = self.backbone_config.to_dict()
            values["backbone_config"].pop("_name_or_path", None)  # a folder of this machine
        return values


def _problems(config: PairwiseRankingConfig) -> list[str]:
    problems = []
    if config.backbone_config is None:
        problems.append("backbone_config: found none, expected the configuration of a vision model")
    for name, least in (
        ("feature_size", 1),
        ("projector_hidden_dim", 1),
        ("projector_output_dim", 1),
        ("head_hidden_dim", 1),
        ("unfreeze_last_blocks", 0),
        ("lora_rank", 0),
    ):
        if getattr(config, name) < least:
            problems.append(f"{name}: found {getattr(config, name)}, expected {least} or more")
    for name in ("projector_dropout", "lora_dropout"):
        if not 0 <= getattr(config, name) < 1:
            problems.append(f"{name}: found {getattr(config, name)}, expected a number in [0, 1)")
    for name, known in (("pooling", POOLINGS), ("loss_function", LOSS_FUNCTIONS)):
        value = getattr(config, name)
        if value not in known:
            near = did_you_mean(value, known)
            problems.append(f"{name}: found {value!r}, expected one of {', '.join(known)}.{near}")
    if not config.margin > 0:
        problems.append(f"margin: found {config.margin}, expected more than 0")
    temperature = config.score_temperature
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        problems.append(f"score_temperature: found {temperature}, expected a number above 0")
    if not config.freeze_backbone and (config.unfreeze_last_blocks or config.lora_rank):
        given = "unfreeze_last_blocks" if config.unfreeze_last_blocks else "lora_rank"
        problems.append(
            f"{given} is for a frozen backbone: leave freeze_backbone true, or leave it out"
        )
    if config.unfreeze_last_blocks and config.lora_rank:
        problems.append("unfreeze_last_blocks and lora_rank exclude each other: give one of them")
    return problems
