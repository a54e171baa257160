"""A model that gives images scores, trained on pairs: backbone, projector, head.

Notation used for shapes: ``B`` images, ``P`` pairs, ``D`` numbers of an image's features.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ...utils.errors import CheckpointError, ConfigurationError
from ...utils.modules import evaluating, raise_on_mismatch, without_bars
from ...utils.terminal import say
from .backbones_ranking import (
    TIMM,
    backbone_config,
    channels_last,
    class_tokens,
    facts_of,
    load_backbone,
    make_trainable,
    new_backbone,
    patch_size_of,
    pool,
    prefix_tokens,
    quietly,
    require_hub,
    still_modules,
)
from .configuration_ranking import POOLINGS, PairwiseRankingConfig
from .image_processing_ranking import RankingImageProcessor
from .losses_ranking import all_pairs_loss, pair_losses, pair_measures, weighted_mean

__all__ = [
    "PairwiseRankingModel",
    "RankingHead",
    "RankingOutput",
    "make_processor",
    "ranking_config",
]

DEFAULT_BACKBONE = "facebook/dinov2-large"
DEFAULT_IMAGE_SIZE = 518


@dataclasses.dataclass
class RankingOutput(ModelOutput):
    """What a :class:`PairwiseRankingModel` returns for a batch of images.

    Args:
        loss (tensor, *optional*): Scalar; None without targets and votes.
        scores (tensor ``[B]``): Larger is better.
        measures (dict, *optional*): ``accuracy``, ``margin``, ``score_mean``, ``score_std`` of the
            batch: detached scalars by name.
    """

    loss: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    measures: dict[str, torch.Tensor] | None = None


class RankingHead(nn.Module):
    """What a ranking learns on top of a backbone: standardisation, projector, score.

    Features are standardised with the mean and deviation of the training images, which are part of
    the model (:meth:`set_statistics`; without a call they stay as they are), so that it learns
    equally fast whatever the backbone's scale.

    Args:
        config (PairwiseRankingConfig): Sizes.
    """

    def __init__(self, config: PairwiseRankingConfig) -> None:
        super().__init__()
        size, hidden = config.feature_size, config.projector_hidden_dim
        output, last = config.projector_output_dim, config.head_hidden_dim
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        dropout = config.projector_dropout
        self.projector = nn.Sequential(
            nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, output)
        )
        self.score = nn.Sequential(
            nn.GELU(), nn.Dropout(dropout), nn.Linear(output, last), nn.GELU(), nn.Linear(last, 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores images.

        Args:
            features (float tensor ``[B, D]``): Of the backbone.

        Returns:
            Float tensor ``[B, 1]``.
        """
        features = features.to(self.mean.dtype)  # kept ones are float32, a loaded head need not be
        return self.score(self.projector((features - self.mean) / self.std))

    @torch.no_grad()
    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Sets what features are standardised with.

        A feature that hardly varies, against the others, is left as large as it is: divided by its
        deviation it would be noise.

        Args:
            mean, std (float tensors ``[D]``): Of the features of the training images.
        """
        floor = 1e-3 * std.square().mean().sqrt().clamp(min=1e-12)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > floor, std, torch.ones_like(std)))


class PairwiseRankingModel(PreTrainedModel):
    """Scores images so that the better one of a pair has the larger score.

    Saved and loaded as any ``PreTrainedModel``, together with its image processor: a saved model
    takes files and gives scores without another setting.

    Args:
        config (PairwiseRankingConfig, *optional*): Everything at once. Without it the model is made
            from the arguments below, with pretrained weights in the backbone.
        backbone_name (str): A model on the Hub, the folder of a saved one, or ``timm:NAME``.
            Defaults to ``facebook/dinov2-large``.
        image_size (int): Side of the images in pixels. Defaults to 518, which DINOv2 was trained
            at.
        resize_mode (str): ``"letterbox"``, ``"squash"``, ``"crop"`` or ``"native"``; see
            :class:`~.image_processing_ranking.RankingImageProcessor`. Defaults to ``"letterbox"``.
        backbone (PreTrainedModel, *optional*): With a configuration: the backbone with its weights.
            Defaults to one with new weights.
        **settings: Of :class:`~.configuration_ranking.PairwiseRankingConfig`:
            ``projector_output_dim``, ``projector_dropout``, ``freeze_backbone``, ``pooling``,
            ``loss_function``, ``lora_rank``, ...

    Attributes:
        image_processor (RankingImageProcessor, *optional*): Makes pixels of files. None for a model
            that was made from a configuration alone.

    Example:
        >>> model = PairwiseRankingModel(
        ...     backbone_name="facebook/dinov2-large",
        ...     projector_output_dim=256,
        ...     freeze_backbone=True,
        ... )
        >>> score1, score2 = model(images_1, images_2)
        >>> model.score(["a.jpg", "b.jpg"])
        tensor([0.8, -0.3])
    """

    config_class = PairwiseRankingConfig
    main_input_name = "pixel_values"
    # The loss is a mean over pairs: the Trainer divides by the accumulation steps, and must.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True

    def __init__(
        self,
        config: PairwiseRankingConfig | None = None,
        *,
        backbone_name: str = DEFAULT_BACKBONE,
        image_size: int = DEFAULT_IMAGE_SIZE,
        resize_mode: str = "letterbox",
        backbone: PreTrainedModel | None = None,
        **settings: Any,
    ) -> None:
        processor = None
        if config is None:
            vision = backbone_config(backbone_name, image_size)
            backbone = load_backbone(backbone_name, vision)
            config = ranking_config(backbone, backbone_name=backbone_name, **settings)
            processor = make_processor(vision, image_size, resize_mode, backbone_name)
        elif settings:
            raise ConfigurationError(
                f"found a configuration and {', '.join(settings)}: change the configuration instead"
            )
        super().__init__(config)
        self.image_processor: RankingImageProcessor | None = processor
        self.backbone = new_backbone(config.backbone_config) if backbone is None else backbone
        make_trainable(self.backbone, config)
        self._prefix_tokens = prefix_tokens(self.backbone)
        self._patch_size = patch_size_of(config.backbone_config)
        self._lost_was_said = False
        self._still = still_modules(self.backbone)
        self._channels_last = channels_last(self.backbone)
        # Position embeddings of these are for one size unless they are told to stretch.
        arguments = inspect.signature(self.backbone.forward).parameters
        self._sizes = (
            {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in arguments else {}
        )
        self.head = RankingHead(config)
        self._frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves modules as their own code initialised them (transformers would redo it)."""

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        self.backbone._set_gradient_checkpointing(*args, **kwargs)  # timm's have a way of their own

    def get_input_embeddings(self) -> None:
        """None: there are no words. FSDP asks for them."""

    def get_output_embeddings(self) -> None:
        """None, as for :meth:`get_input_embeddings`."""

    def train(self, mode: bool = True) -> PairwiseRankingModel:
        """Sets the mode; parts of the backbone in which nothing trains stay in evaluation mode, so
        that their dropout and their batch statistics stay still.
        """
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    # Forward

    def encode(self, pixel_values: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Makes features of images: each passes the backbone once.

        Args:
            pixel_values (float tensor ``[B, 3, H, W]``, or ``B`` tensors ``[3, H, W]``): From the
                image processor. Those of a list that have one size pass together.

        Returns:
            Float tensor ``[B, D]``.
        """
        if isinstance(pixel_values, torch.Tensor):
            pixel_values = pixel_values.to(self.backbone.dtype)
            self._say_what_is_lost(*pixel_values.shape[-2:])
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trains_backbone):
                hidden = self.backbone(pixel_values=pixel_values, **self._sizes).last_hidden_state
            return pool(
                hidden,
                self.config.pooling,
                self._prefix_tokens,
                channels_last=self._channels_last,
            )
        by_size: dict[torch.Size, list[int]] = {}
        for row, image in enumerate(pixel_values):
            by_size.setdefault(image.shape, []).append(row)
        order = [row for rows in by_size.values() for row in rows]
        parts = [
            self.encode(torch.stack([pixel_values[r] for r in rows])) for rows in by_size.values()
        ]
        return torch.cat(parts)[torch.tensor(order).argsort().to(parts[0].device)]

    def _say_what_is_lost(self, height: int, width: int) -> None:
        """Patches have no padding: rows and columns behind the last whole one are not seen."""
        patch = self._patch_size
        if self._prefix_tokens and (height % patch or width % patch) and not self._lost_was_said:
            self._lost_was_said = True
            say(
                f"warning: {height} x {width} pixels are no multiple of the patch size {patch}: "
                f"the backbone silently ignores the last {height % patch} rows and "
                f"{width % patch} columns",
                style="yellow",
            )

    def forward(
        self,
        pixel_values: torch.Tensor | Sequence[torch.Tensor] | None = None,
        pixel_values_2: torch.Tensor | Sequence[torch.Tensor] | None = None,
        *,
        features: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        pair_weights: torch.Tensor | None = None,
        pairs: torch.Tensor | None = None,
        votes: torch.Tensor | None = None,
    ) -> RankingOutput | tuple[torch.Tensor, torch.Tensor]:
        """Scores images, and compares them with what people say.

        Args:
            pixel_values (float tensor ``[B, 3, H, W]``, or a list of ``[3, H, W]``): The images.
            pixel_values_2 (the same, *optional*): As many others: the call ``model(img1, img2)``.
            features (float tensor ``[B, D]``, *optional*): Of :meth:`encode`, in place of images.
            targets (float tensor ``[B]``, *optional*): Tiers counted from the worst, or people's
                scores: the loss is that of all pairs of the batch whose targets differ.
            pair_weights (float tensor ``[B, B]``, *optional*): Weights of these pairs, better image
                by row.
            pairs (int64 tensor ``[P, 2]``, *optional*): Pairs of images of the batch; the loss is
                then theirs.
            votes (float tensor ``[P, 2]``, *optional*): Votes for the first and the second image of
                each pair; a pair weighs as much as it has votes. Defaults to one for the first.

        Returns:
            RankingOutput: Loss and scores. For ``model(img1, img2)`` the two scores, ``[B, 1]``
            each.
        """
        if pixel_values_2 is not None:
            return self._scores(pixel_values), self._scores(pixel_values_2)
        if features is None:
            features = self.encode(pixel_values)
        scores = self.head(features)[:, 0].float()
        loss = measures = None
        settings = {"loss_function": self.config.loss_function, "margin": self.config.margin}
        if pairs is not None:
            loss, measures = self._pairs_loss(scores, targets, pairs, votes, settings)
        elif targets is not None:
            loss, measures = all_pairs_loss(scores, targets, pair_weights, **settings)
        return RankingOutput(loss=loss, scores=scores, measures=measures)

    def _scores(self, pixel_values: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        return self.head(self.encode(pixel_values)).float()

    @staticmethod
    def _pairs_loss(
        scores: torch.Tensor,
        targets: torch.Tensor | None,
        pairs: torch.Tensor,
        votes: torch.Tensor | None,
        settings: dict[str, Any],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        first, second = pairs.unbind(1)
        if votes is None:
            votes = scores.new_tensor([[1.0, 0.0]]).expand(len(pairs), 2)
        total = votes.sum(1)
        labels = (votes[:, 0] - votes[:, 1]) / total.clamp(min=torch.finfo(total.dtype).tiny)
        differences = scores[first] - scores[second]
        gaps = 1.0 if targets is None else (targets[first] - targets[second]).abs()
        losses = pair_losses(differences, labels, gaps, **settings)
        # A tie is neither right nor wrong.
        measures = pair_measures(labels.sign() * differences, labels.abs() * total, scores)
        return weighted_mean(losses, total), measures

    # The manual's calls

    def compute_loss(
        self,
        score1: torch.Tensor,
        score2: torch.Tensor,
        labels: torch.Tensor,
        gaps: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Returns the mean loss of pairs of scores.

        Args:
            score1, score2 (float tensors ``[P]`` or ``[P, 1]``): Of the two images of each pair.
            labels (tensor ``[P]`` or ``[P, 1]``): 1 where the first image is the better one, -1
                where the second is, 0 for a tie.
            gaps (tensor ``[P]`` or float): Tiers between the two, for the loss ``tier_margin``.
                Defaults to 1.
        """
        if isinstance(gaps, torch.Tensor):
            gaps = gaps.reshape(-1)
        losses = pair_losses(
            (score1 - score2).reshape(-1),
            labels.reshape(-1).to(score1.dtype),
            gaps,
            loss_function=self.config.loss_function,
            margin=self.config.margin,
        )
        return losses.mean()

    @torch.no_grad()
    def score(self, images: Any, batch_size: int = 32) -> torch.Tensor:
        """Scores images that are files, pictures or pixels; each passes the backbone once.

        Args:
            images: A path, a PIL image, an array ``[H, W, 3]`` of bytes or pixel values
                ``[3, H, W]`` as the image processor makes them; or many of one kind, as a list or a
                tensor ``[B, 3, H, W]``.
            batch_size (int): Images at a time. Defaults to 32.

        Returns:
            Float32 tensor ``[N]`` on the CPU, larger is better.

        Raises:
            ConfigurationError: If the model has no image processor.
            DataError: If a file is not an image.
        """
        if isinstance(images, torch.Tensor):
            images = images[None] if images.ndim == 3 else images
        elif isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            images = [images]
        are_pixels = len(images) > 0 and isinstance(images[0], torch.Tensor)
        if not are_pixels and self.image_processor is None:
            raise ConfigurationError(
                "the model has no image processor: set model.image_processor, or give pixel values"
            )
        scores = [torch.empty(0)]
        with evaluating(self):
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                if not are_pixels:
                    batch = self.image_processor(batch)["pixel_values"]
                if isinstance(batch, torch.Tensor):
                    batch = batch.to(self.device)
                else:
                    batch = [image.to(self.device) for image in batch]
                scores.append(self._scores(batch)[:, 0].cpu())
        return torch.cat(scores)

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the model and its image processor.

        Args:
            save_directory (path): A folder.
            **kwargs: As for any ``PreTrainedModel``.
        """
        with without_bars():
            super().save_pretrained(save_directory, **kwargs)
        if self.image_processor is not None and kwargs.get("is_main_process", True):
            self.image_processor.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> PairwiseRankingModel:
        """Loads a saved model with its image processor.

        Args:
            pretrained_model_name_or_path (str or path): A folder that ``save_pretrained`` wrote, or
                a Hub repository of one.
            *args: As for any ``PreTrainedModel``.
            **kwargs: As for any ``PreTrainedModel``. Parameters are float32 unless ``dtype`` says
                otherwise.

        Raises:
            CheckpointError: If the weights are of another backbone or other sizes, or damaged.
        """
        source = str(pretrained_model_name_or_path)
        if kwargs.get("config") is None:
            _require_ranking(source, kwargs)
        kwargs.setdefault("dtype", torch.float32)
        wants_information = kwargs.pop("output_loading_info", False)
        try:
            with quietly():
                model, information = super().from_pretrained(
                    source, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
                )
        except SafetensorError as error:
            raise CheckpointError(f"the weights in {source} are damaged: {error}.") from error
        missing = set(information["missing_keys"])
        of_backbone = {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
        only_head = missing >= of_backbone and not information["unexpected_keys"]
        raise_on_mismatch(
            source,
            missing=missing,
            unexpected=information["unexpected_keys"],
            reshaped=[str(key[0]) for key in information["mismatched_keys"]],
            advice="It is a checkpoint of a training on cached features, which holds the head "
            "alone: the whole models are in the run's model/ and last_model/."
            if only_head
            else "Use the configuration that they were saved with.",
        )
        for name, parameter in model.named_parameters():
            # transformers makes every parameter that it loads anew
            parameter.requires_grad_(name not in model._frozen)
        try:
            model.image_processor = RankingImageProcessor.from_pretrained(source)
        except OSError:
            model.image_processor = None
        return (model, information) if wants_information else model


def _require_ranking(source: str, options: dict[str, Any]) -> None:
    """Says what is wrong with a model that is to be loaded, before all else."""
    require_hub(source)
    try:
        values, _ = PairwiseRankingConfig.get_config_dict(source, **options)
    except OSError as error:
        raise CheckpointError(f"there is no ranking model in {source}: {error}") from error
    found = values.get("model_type", "nothing that says what it is")
    if found != PairwiseRankingConfig.model_type:
        raise CheckpointError(
            f"there is no ranking model in {source}: its config.json has {found}. A backbone is "
            "given as backbone_name, and trained first."
        )


def ranking_config(backbone: PreTrainedModel, **settings: Any) -> PairwiseRankingConfig:
    """Makes the configuration of a model on a backbone.

    Args:
        backbone (PreTrainedModel): A vision model.
        **settings: Of :class:`~.configuration_ranking.PairwiseRankingConfig`. ``pooling`` defaults
            to ``"cls_mean"`` where the backbone has a class token, else to ``"mean"``.

    Raises:
        ConfigurationError: With all that is wrong.
    """
    facts = facts_of(backbone.config)
    possible = ["mean"]
    if facts.tokens and class_tokens(backbone):
        only_class = facts.tokens == prefix_tokens(backbone)
        possible = ["cls"] if only_class else ["cls_mean", "cls", "mean"]
    pooling = settings.pop("pooling", None) or possible[0]
    if pooling in POOLINGS and pooling not in possible:
        missing = "patches" if possible == ["cls"] else "class token"
        raise ConfigurationError(
            f"pooling: found {pooling}, but a {type(backbone).__name__} makes no {missing}: use "
            f"{possible[0]}"
        )
    return PairwiseRankingConfig(
        backbone_config=backbone.config,
        feature_size=2 * facts.width if pooling == "cls_mean" else facts.width,
        pooling=pooling,
        **settings,
    )


def make_processor(
    vision: PreTrainedConfig, image_size: int, resize_mode: str, name: str = ""
) -> RankingImageProcessor:
    """Makes the image processor for a backbone.

    Args:
        vision (PreTrainedConfig): Of the backbone.
        image_size (int): Side in pixels.
        resize_mode (str): How images get it.
        name (str): Of pretrained weights, whose mean and deviation of pixels are then used where
            they say them. Defaults to none: those of ImageNet.

    Raises:
        ConfigurationError: If images cannot have their own size.
    """
    model_args = getattr(vision, "model_args", None) or {}
    if resize_mode == "native" and "img_size" in model_args and len(model_args) == 1:
        raise ConfigurationError(
            f"resize_mode native: timm's {vision.architecture} takes images of one size alone: use "
            "letterbox, squash or crop"
        )
    statistics: dict[str, Any] = {}
    if name.startswith(TIMM):
        import timm

        published = timm.get_pretrained_cfg(name.removeprefix(TIMM))
        statistics = {"image_mean": published.mean, "image_std": published.std}
    elif name:
        with contextlib.suppress(OSError):  # not published
            published, _ = RankingImageProcessor.get_image_processor_dict(name)
            statistics = {
                key: published[key] for key in ("image_mean", "image_std") if published.get(key)
            }
    return RankingImageProcessor(
        size=image_size, resize_mode=resize_mode, patch_size=patch_size_of(vision), **statistics
    )


AutoConfig.register(PairwiseRankingConfig.model_type, PairwiseRankingConfig)
AutoModel.register(PairwiseRankingConfig, PairwiseRankingModel)
