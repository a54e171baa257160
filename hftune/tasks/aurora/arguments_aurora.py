"""The ``model:`` section of the Aurora recipe's configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, ClassVar, Literal

__all__ = ["AuroraModelArguments"]


@dataclasses.dataclass
class AuroraModelArguments:
    """Which Aurora to fine-tune, or the size of one to train from scratch on the data at hand.

    Args:
        model_name_or_path (str, *optional*): ``microsoft/aurora``, a local official ``.ckpt`` or a
            folder that hftune saved. Defaults to a new model with the sizes below.
        variant (str, *optional*): Official variant of the checkpoint (``pretrained``, ``small``,
            ``12h``, ``high_res``, ``v1p5``). Needed with an official checkpoint only.
        embed_dim (int): Width of the first stage. Defaults to 64.
        num_heads (int): Attention heads of the level aggregation and of the first stage; a later
            stage has twice as many as the one before. Defaults to 4.
        depths (list of int): Blocks of each encoder stage of the backbone; the decoder mirrors
            them. Two stages or more. Defaults to ``2 2``.
        latent_levels (int): Latent pressure levels, the surface among them. Defaults to 4.
        patch_size (int, *optional*): Edge of a patch in grid points. Defaults to the largest up
            to 4 that divides the grid.
        mlp_ratio (float): Hidden width of the MLPs over their width. Defaults to 4.
        drop_path (float): Stochastic depth rate in [0, 1). Defaults to 0.
        drop_rate (float): Dropout rate in [0, 1). Defaults to 0.
        residual_prediction (bool): Predict the change from the last state instead of the state: an
            untrained model then starts at persistence. For new models. Defaults to True.
        stabilise_level_agg (bool): Extra layer normalisation in the level aggregation against
            exploding gradients; it perturbs trained weights. Defaults to False.
        loss_function (str): ``mae`` (Aurora's own) or ``mse``. Defaults to ``mae``.
        loss_weights (str, *optional*): Preset of variable weights; the table in use is printed.
            Defaults to ``tendency`` for a new model and ``aurora_pretraining`` for a published one.
        area_weights (bool): Weight the loss by the area of the grid cells. Defaults to False, as in
            Aurora's paper.
        autocast (str): Part that computes in bfloat16: ``none``, ``backbone`` (as Aurora's own
            ``autocast``) or ``full``. Defaults to ``none``.
    """

    _section: ClassVar[str] = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "microsoft/aurora, an official .ckpt or a folder saved by hftune. "
            "Default: a new model of the sizes below."
        },
    )
    variant: Literal["pretrained", "small", "12h", "high_res", "v1p5"] | None = field(
        default=None, metadata={"help": "Official variant of the checkpoint."}
    )
    embed_dim: int = field(default=64, metadata={"help": "Width of the first stage."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads of the first stage."})
    depths: list[int] = field(
        default_factory=lambda: [2, 2],
        metadata={"help": "Blocks of each encoder stage; the decoder mirrors them."},
    )
    latent_levels: int = field(
        default=4, metadata={"help": "Latent pressure levels, the surface among them."}
    )
    patch_size: int | None = field(
        default=None,
        metadata={"help": "Edge of a patch. Default: the largest up to 4 that divides the grid."},
    )
    mlp_ratio: float = field(default=4.0, metadata={"help": "Hidden width of MLPs over width."})
    drop_path: float = field(default=0.0, metadata={"help": "Stochastic depth rate."})
    drop_rate: float = field(default=0.0, metadata={"help": "Dropout rate."})
    residual_prediction: bool = field(
        default=True, metadata={"help": "New models: predict the change from the last state."}
    )
    stabilise_level_agg: bool = field(
        default=False,
        metadata={"help": "Extra layer norm against exploding gradients; perturbs the weights."},
    )
    loss_function: Literal["mae", "mse"] = field(
        default="mae", metadata={"help": "Loss on normalised variables."}
    )
    loss_weights: str | None = field(
        default=None,
        metadata={
            "help": "Preset of the variables' loss weights. Default: tendency for a new model, "
            "aurora_pretraining for a published one."
        },
    )
    area_weights: bool = field(
        default=False, metadata={"help": "Weight the loss by the area of the grid cells."}
    )
    autocast: Literal["none", "backbone", "full"] = field(
        default="none", metadata={"help": "Part of the model that computes in bfloat16."}
    )

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        if len(values["depths"]) < 2 or min(values["depths"]) < 1:
            problems.append(
                f"depths is {values['depths']}; Aurora's backbone needs two stages or more of one "
                "block or more, such as 2 2."
            )
        if values["embed_dim"] % (4 * values["num_heads"]):
            problems.append(
                f"embed_dim {values['embed_dim']} must be a multiple of 4 x num_heads "
                f"({4 * values['num_heads']})."
            )
        for name in ("drop_path", "drop_rate"):
            if not 0 <= values[name] < 1:
                problems.append(f"{name} is {values[name]}; it must lie in [0, 1).")
        return problems
