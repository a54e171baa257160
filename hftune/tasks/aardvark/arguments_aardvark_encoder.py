"""The ``model:`` section of the configuration of Aardvark's encoder recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, ClassVar, Literal

__all__ = ["AardvarkEncoderArguments"]


@dataclasses.dataclass
class AardvarkEncoderArguments:
    """What the encoder observes, and its size.

    Args:
        stations (str, *optional*): Folder of station observations, as
            :func:`~hftune.tasks.weather.stations.read_stations` reads it. Defaults to simulated
            stations, which observe the fields.
        simulated_stations (int): How many of these. Defaults to 20.
        log_variables (list of str, *optional*): Variables of the stations whose log(1 + x) is used.
            Defaults to rain by its usual names (``precip``, ``rain``, ``tp``, ...).
        length_scale (float, *optional*): Length scale of the stations' set convolution in degrees.
            Defaults to the spacing of the grid.
        trainable_length_scale (bool): Learn one for each variable, from there on. Defaults to
            False.
        background_hours (float): Also observe the fields of so many hours before; 0 for stations
            alone. Defaults to 0.
        patch_size (int, *optional*): Edge of a patch in grid points. Defaults to the largest up to
            4 that divides the grid.
        embed_dim (int): Width of the transformer. Defaults to 64.
        depth (int): Its blocks. Defaults to 3.
        num_heads (int): Its attention heads. Defaults to 4.
        mlp_ratio (float): Hidden width of its MLPs over their width. Defaults to 4.
        head_depth (int): Hidden layers of its head. Defaults to 1.
        mixer_hidden (int): Hidden width of the MLP at each grid point. Defaults to 64.
        mixer_layers (int): Its layers between the first and the last. Defaults to 1.
        mixer_width (int): Width of its result. Defaults to 64.
        drop_path (float): Stochastic depth rate in [0, 1). Defaults to 0.
        loss_function (str): ``lw_rmse``, ``rmse`` or ``lw_rmse_pressure_weighted``. Defaults to
            ``lw_rmse``, as the published encoder was trained.
    """

    _section: ClassVar[str] = "model"

    stations: str | None = field(
        default=None,
        metadata={
            "help": "Folder with stations.csv and one CSV a variable. "
            "Default: simulated stations that observe the fields."
        },
    )
    simulated_stations: int = field(
        default=20, metadata={"help": "Number of simulated stations, where none are given."}
    )
    log_variables: list[str] | None = field(
        default=None,
        metadata={"help": "Station variables to take log(1 + x) of. Default: rain, by its names."},
    )
    length_scale: float | None = field(
        default=None,
        metadata={
            "help": "Reach of a station in degrees (standard deviation of a Gaussian). "
            "Default: the spacing of the grid."
        },
    )
    trainable_length_scale: bool = field(
        default=False, metadata={"help": "Learn a length scale for each variable."}
    )
    background_hours: float = field(
        default=0.0,
        metadata={"help": "Also observe the fields of so many hours before; 0: stations alone."},
    )
    patch_size: int | None = field(
        default=None,
        metadata={"help": "Edge of a patch. Default: the largest up to 4 that divides the grid."},
    )
    embed_dim: int = field(default=64, metadata={"help": "Width of the transformer."})
    depth: int = field(default=3, metadata={"help": "Blocks of the transformer."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads of the transformer."})
    mlp_ratio: float = field(default=4.0, metadata={"help": "Hidden width of MLPs over width."})
    head_depth: int = field(default=1, metadata={"help": "Hidden layers of the head."})
    mixer_hidden: int = field(
        default=64, metadata={"help": "Hidden width of the MLP at each grid point."}
    )
    mixer_layers: int = field(
        default=1, metadata={"help": "Layers of that MLP between its first and its last."}
    )
    mixer_width: int = field(default=64, metadata={"help": "Width of that MLP's result."})
    drop_path: float = field(default=0.0, metadata={"help": "Stochastic depth rate."})
    loss_function: Literal["lw_rmse", "rmse", "lw_rmse_pressure_weighted"] = field(
        default="lw_rmse", metadata={"help": "Loss on normalised fields."}
    )

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        if values["simulated_stations"] < 1:
            problems.append(
                f"simulated_stations is {values['simulated_stations']}; it must be 1 or more."
            )
        if values["background_hours"] < 0:
            problems.append(
                f"background_hours is {values['background_hours']:g}; give how many hours old the "
                "background is, 24 for yesterday's fields, or 0 for none."
            )
        return problems
