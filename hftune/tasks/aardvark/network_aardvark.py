"""The processor's network: planes of channels to tokens, one token a place, the transformer.

Notation used for shapes: ``B`` samples, ``V`` input channels, ``C`` output channels, ``X``
longitudes, ``Y`` latitudes from south to north, ``P`` edge of a patch, ``N`` places, lon-major,
``D`` width (``embed_dim``), ``h`` attention heads.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["PointwiseMlp", "reference_leftovers"]


class PointwiseMlp(nn.Module):
    """Six linear layers with ReLU between, under the published names of weights.

    Args:
        in_channels (int): Width of the input.
        hidden (int): Width between the layers.
        out_channels (int): Width of the result.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden),
            nn.ReLU(),
            *(nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(4)),
            nn.Linear(hidden, out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``[..., in_channels]`` to ``[..., out_channels]``."""
        return self.mlp(x)


class _LengthScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.init_ls = nn.Parameter(torch.tensor([0.001]))


def reference_leftovers(out_channels: int, hidden: int = 128) -> dict[str, nn.Module]:
    """Makes the modules that published files of both networks hold and no forward uses.

    With them a published file loads strictly, and a saved one is read by the reference code.

    Args:
        out_channels (int): State channels ``C``.
        hidden (int): Hidden width of the unused MLP. Defaults to 128.

    Returns:
        dict: Frozen modules by the name that they have in the network: ``ascat_setconvs``,
        ``sc_out`` and ``mlp``.
    """
    leftovers = {
        "ascat_setconvs": _LengthScale(),
        "sc_out": _LengthScale(),
        "mlp": PointwiseMlp(out_channels, hidden, out_channels),
    }
    return {name: module.requires_grad_(False) for name, module in leftovers.items()}
