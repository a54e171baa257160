"""Sections of Aardvark's recipes: data, processor, initial conditions, chain."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, ClassVar, Literal

from ...configuration.arguments import redeclare
from ...configuration.staged_training_arguments import StagedTrainingArguments
from ..weather.arguments_weather import WeatherFieldsArguments

__all__ = [
    "AardvarkDataArguments",
    "ChainArguments",
    "ChainModelArguments",
    "ChainTrainingArguments",
    "InitialConditionArguments",
    "ProcessorArguments",
]

_LOSSES = Literal["lw_rmse_pressure_weighted", "lw_rmse", "rmse"]


@dataclasses.dataclass
class AardvarkDataArguments(WeatherFieldsArguments):
    """The fields that are the truth, and what else the published files need.

    ``data`` may also be a folder of the reference's yearly memory maps
    (``era5_4u_1_6_2018.memmap``); the dates then default to those of the publication.

    Args:
        stations (str, *optional*): Folder of station observations, which an encoder reads.
        norm_factors (str, *optional*): Folder of ``mean_4u_1.npy`` and its like, for published
            checkpoints.
        static_file (str, *optional*): Static fields as the reference has them, ``elev_vars_1.npy``
            (channel, longitude, latitude from south to north), in any number.
        era5_mode (str): Set of variables, in the names of these files. Defaults to ``"4u"``.
        res (int): Resolution, in the names of these files. Defaults to 1.
        frequency (int, *optional*): Hours between two initial times. Defaults to those between two
            times of the data, for yearly memory maps to 6.
    """

    stations: str | None = field(
        default=None, metadata={"help": "Folder with stations.csv and one CSV a variable."}
    )
    norm_factors: str | None = field(
        default=None, metadata={"help": "Folder of mean_4u_1.npy, std_4u_1.npy, ..."}
    )
    static_file: str | None = field(
        default=None, metadata={"help": "Static fields of the reference, elev_vars_1.npy."}
    )
    era5_mode: str = field(
        default="4u", metadata={"help": "Set of variables in the names of the reference's files."}
    )
    res: int = field(
        default=1, metadata={"help": "Resolution in the names of the reference's files."}
    )
    frequency: int | None = field(
        default=None,
        metadata={"help": "Hours between two initial times. Default: as the data have them."},
    )


@dataclasses.dataclass
class ProcessorArguments:
    """Which processor to train, or the size of a new one.

    Args:
        model_name_or_path (str, *optional*): A folder that hftune saved, or a published one.
            Defaults to a new model with the sizes below.
        patch_size (int, *optional*): Edge of a patch in grid points. Defaults to the largest up to
            5 that divides the grid.
        embed_dim (int): Width. Defaults to 64.
        depth (int): Transformer blocks. Defaults to 3.
        num_heads (int): Attention heads. Defaults to 8.
        mlp_ratio (float): Hidden width of the MLPs over the width. Defaults to 4.
        head_depth (int): Hidden layers of the head. Defaults to 1.
        drop_path (float): Stochastic depth rate in [0, 1). Defaults to 0.
        loss (str): ``lw_rmse_pressure_weighted`` (as published), ``lw_rmse`` or ``rmse``. Defaults
            to the first.
        time_channels (str): The time that the network is told in a rollout: ``initial``, as
            published, or ``valid``. Defaults to ``initial``.
    """

    _section: ClassVar[str] = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A saved or published processor. Default: a new one of the sizes below."},
    )
    patch_size: int | None = field(
        default=None,
        metadata={"help": "Edge of a patch. Default: the largest up to 5 that divides the grid."},
    )
    embed_dim: int = field(default=64, metadata={"help": "Width."})
    depth: int = field(default=3, metadata={"help": "Transformer blocks."})
    num_heads: int = field(default=8, metadata={"help": "Attention heads."})
    mlp_ratio: float = field(default=4.0, metadata={"help": "Hidden width of MLPs over width."})
    head_depth: int = field(default=1, metadata={"help": "Hidden layers of the head."})
    drop_path: float = field(default=0.0, metadata={"help": "Stochastic depth rate."})
    loss: _LOSSES = field(
        default="lw_rmse_pressure_weighted", metadata={"help": "Loss on the normalised change."}
    )
    time_channels: Literal["initial", "valid"] = field(
        default="initial", metadata={"help": "The time that the network is told in a rollout."}
    )


@dataclasses.dataclass
class InitialConditionArguments:
    """How initial conditions are made.

    Args:
        assimilation_model_path (str, *optional*): The trained encoder: a folder that hftune saved,
            or a published one. Files ``ic_train.mmap``, ``ic_val.mmap``, ``ic_test.mmap`` that are
            in it are used as they are, others are written there. ``--encoder_model_path`` is the
            same. Defaults to none: the data themselves are the initial conditions.
        initial_conditions_dir (str, *optional*): Where these files are, or are written; without an
            encoder, all three that are there are used, whatever made them. Defaults to
            the encoder's folder, without an encoder to ``initial_conditions`` in the output folder.
        ic_dtype (str): ``float32``, as the reference, or ``float16``, which halves them. Defaults
            to ``float32``.
        ic_batch_size (int): States that are computed at a time. Defaults to 64.
    """

    _section: ClassVar[str] = "initial_conditions"

    assimilation_model_path: str | None = field(
        default=None,
        metadata={
            "aliases": ["encoder_model_path"],
            "help": "Folder of the trained encoder, and of the ic_*.mmap files that it makes. "
            "Default: start from the data.",
        },
    )
    initial_conditions_dir: str | None = field(
        default=None, metadata={"help": "Where the ic_*.mmap files are. Default: with the encoder."}
    )
    ic_dtype: Literal["float32", "float16"] = field(
        default="float32", metadata={"help": "Type of states on the disk; float16 halves them."}
    )
    ic_batch_size: int = field(default=64, metadata={"help": "States computed at a time."})


@dataclasses.dataclass
class ChainModelArguments:
    """The model that is carried from lead time to lead time.

    Args:
        task (str): ``aardvark`` or ``aurora``. Defaults to ``aardvark``.
        forecast_model_path (str, *optional*): The pretrained processor: a folder that hftune saved,
            or a published one; with ``task`` ``aurora`` what ``recipes/aurora.py`` saved, or an
            official checkpoint. Defaults to one that is trained first, with ``processor_config``.
        loss (str, *optional*): ``lw_rmse_pressure_weighted``, ``lw_rmse`` or ``rmse``. Defaults to
            that of the model, for published ones the first.
        time_channels (str, *optional*): The time that Aardvark's network is told: that of the
            initial state at all lead times (``initial``), or of the state it starts from
            (``valid``). Defaults to that of the model, for published ones ``initial``.
        encoder_config (str, *optional*): Configuration file of ``recipes/aardvark_encoder.py``: an
            encoder is trained with it first, on ``stations``, where ``assimilation_model_path`` is
            not given.
        processor_config (str, *optional*): Configuration file of ``recipes/aardvark_processor.py``,
            for the processor that is trained first where ``forecast_model_path`` is not given.
    """

    _section: ClassVar[str] = "model"

    task: Literal["aardvark", "aurora"] = field(
        default="aardvark", metadata={"help": "Which kind of model forecast_model_path is."}
    )
    forecast_model_path: str | None = field(
        default=None,
        metadata={"help": "The pretrained processor. Default: one is trained first."},
    )
    loss: _LOSSES | None = field(
        default=None, metadata={"help": "Loss of Aardvark's processor. Default: the model's own."}
    )
    time_channels: Literal["initial", "valid"] | None = field(
        default=None,
        metadata={"help": "The time that Aardvark's network is told. Default: the model's own."},
    )
    encoder_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of the encoder that is trained first, on --stations."},
    )
    processor_config: str | None = field(
        default=None, metadata={"help": "Configuration of the processor that is trained first."}
    )

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        if values["task"] == "aurora" and values["forecast_model_path"] is None:
            return [
                "forecast_model_path: an Aurora has to be given; train a small one with "
                "recipes/aurora.py, or name an official checkpoint"
            ]
        return []


@dataclasses.dataclass
class ChainArguments:
    """How far the chain goes, and what of it stays on the disk.

    Args:
        lead_time (int): The last lead time in days: the chain goes through 1, 2, ... up to it.
            Defaults to 10.
        keep_train_ics (int): How many lead times' ``ic_train_{k}.mmap`` stay; -1 keeps all.
            Defaults to 1, the newest.
        keep_predictions (bool): Whether ``ic_val_{k}.mmap`` and ``ic_test_{k}.mmap`` of all lead
            times stay. Defaults to True.
        write_targets (bool): Whether the truth is written beside them, ``ic_test_target_{k}.mmap``.
            Defaults to False.
        cross_fit (int): Into how many parts the training dates are cut, each predicted by a model
            that was not trained on it: states to train on that are as good as those to use the
            model on, for so many trainings more. Defaults to 0: none.
    """

    _section: ClassVar[str] = "chain"

    lead_time: int = field(default=10, metadata={"help": "The last lead time, in days."})
    keep_train_ics: int = field(
        default=1, metadata={"help": "How many lead times' training states stay; -1 keeps all."}
    )
    keep_predictions: bool = field(
        default=True, metadata={"help": "Keep the states of validation and test of each day."}
    )
    write_targets: bool = field(
        default=False, metadata={"help": "Write the truth beside the test states."}
    )
    cross_fit: int = field(
        default=0,
        metadata={"help": "Parts of the training dates that other models predict; 0: none."},
    )

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        if values["lead_time"] < 1:
            problems.append(f"lead_time: found {values['lead_time']}, expected 1 day or more")
        if values["keep_train_ics"] < -1:
            problems.append(
                f"keep_train_ics: found {values['keep_train_ics']}, expected -1 or more"
            )
        if values["cross_fit"] < 0 or values["cross_fit"] == 1:
            problems.append(
                f"cross_fit: found {values['cross_fit']}, expected 0, or 2 parts or more"
            )
        return problems


@dataclasses.dataclass
class ChainTrainingArguments(StagedTrainingArguments):
    """The settings of :class:`~hftune.configuration.staged_training_arguments
    .StagedTrainingArguments` with the names and defaults of Aardvark's fine-tuning.

    Args:
        output_dir (str): Folder of the run. Defaults to ``"runs/aardvark"``.
        learning_rate (float): ``--lr`` is the same. Defaults to 1e-4.
        num_train_epochs (float): Epochs of each lead time; ``--finetune_epochs`` is the same.
            Defaults to 5.
        per_device_train_batch_size (int): ``--batch_size`` is the same. Defaults to 12.
        weight_decay (float): Defaults to 1e-5.
        adam_beta2 (float): Defaults to 0.95.
        lr_scheduler_type (str): Defaults to ``"constant"``.
        master_port (int, *optional*): Port at which the processes meet, where no launcher sets it.
    """

    output_dir: str | None = redeclare("output_dir", "runs/aardvark")
    learning_rate: float = redeclare("learning_rate", 1e-4, env=["LEARNING_RATE"], aliases=["lr"])
    num_train_epochs: float = redeclare("num_train_epochs", 5.0, aliases=["finetune_epochs"])
    per_device_train_batch_size: int = redeclare(
        "per_device_train_batch_size", 12, aliases=["batch_size"]
    )
    weight_decay: float = redeclare("weight_decay", 1e-5)
    adam_beta2: float = redeclare("adam_beta2", 0.95)
    lr_scheduler_type: str = redeclare("lr_scheduler_type", "constant")
    master_port: int | None = field(
        default=None,
        metadata={"help": "Port at which the processes meet, where no launcher sets it."},
    )

    @staticmethod
    def check(values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        import os

        problems = StagedTrainingArguments.check(values)
        port, told = values["master_port"], os.environ.get("MASTER_PORT")
        if port is not None and told not in (None, str(port)):
            problems.append(
                f"master_port: found {port}, but the launcher has chosen {told}; give the port to "
                f"the launcher: accelerate launch --main_process_port {port}"
            )
        return problems

    def __post_init__(self) -> None:
        import os

        if self.master_port is not None:
            os.environ["MASTER_PORT"] = str(self.master_port)
        super().__post_init__()
