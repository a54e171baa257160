"""The ranking model that a command was told to use, or the one that it finds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..utils.errors import ConfigurationError
from ..utils.terminal import say
from .tables import age

if TYPE_CHECKING:
    from ..tasks.ranking.inference_ranking import RankingPipeline
    from ..tracking.registry import ModelRegistry

__all__ = ["RankModel", "find_model", "make_pipeline"]

_ARCHITECTURE = "hftune_ranking"


class RankModel(NamedTuple):
    """Where a model is.

    Attributes:
        source (str): A folder, or a repository on the Hub.
        name (str): For people.
    """

    source: str
    name: str


def find_model(given: str | None) -> RankModel:
    """Finds a model.

    Args:
        given (str, *optional*): A folder, a registered model (``art``, ``art:3``,
            ``art@production``) or a repository on the Hub. Without it the newest registered ranking
            model is taken, one with the alias ``production`` first; this is said.

    Raises:
        ConfigurationError: If there is none.
        CheckpointError: If a registered one is damaged.
    """
    from ..tracking.registry import ModelRegistry

    if given is None:
        return _newest(ModelRegistry())
    # A folder, the guide's best_model.pt, or a repository on the Hub: the loader knows more.
    path = Path(given)
    if path.exists() or path.with_suffix("").is_dir() or "/" in given:
        return RankModel(given, given)
    registry = ModelRegistry()
    try:
        model = registry.get_model_info(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{given} is no folder, and the registry {error}") from error
    return _registered(registry, model)


def _newest(registry: ModelRegistry) -> RankModel:
    found = registry.search_models(_ARCHITECTURE, alias="production", limit=1)
    found = found or registry.search_models(_ARCHITECTURE, limit=1)
    if not found:
        raise ConfigurationError(
            "no --model was given, and no ranking model is registered: give the folder of one, "
            "such as --model runs/art/model. recipes/ranking.py trains one, and registers it."
        )
    [model] = found
    chosen = _registered(registry, model)
    say(
        f"Model: {chosen.name}, registered {age(model['created'])} ago; --model takes another one",
        markup=False,
        soft_wrap=True,
    )
    return chosen


def _registered(registry: ModelRegistry, model: dict) -> RankModel:
    folder = registry.folder(model["model_id"])
    return RankModel(str(folder), f"{model['name']}:{model['version']} ({model['model_id']})")


def make_pipeline(model: RankModel, arguments: argparse.Namespace) -> RankingPipeline:
    """Loads a model as a command's options say.

    Args:
        model (RankModel): The model.
        arguments (argparse.Namespace): With ``device``, ``dtype``, ``batch_size``, ``num_workers``
            and ``feature_cache``.
    """
    from ..tasks.ranking.inference_ranking import RankingPipeline

    pipeline = RankingPipeline(
        model.source,
        arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    # What a backbone that was trained along makes is of no use to another model.
    trained = pipeline.model.config.trains_backbone
    pipeline.cache = arguments.feature_cache == "auto" and not trained
    return pipeline
