"""The network of Aardvark's encoder, with the published names of its weights.

Notation used for shapes: ``B`` samples, ``F`` features, ``C`` channels of the state, ``X``
longitudes and ``Y`` latitudes (from south to north, as everywhere inside the encoder).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from .network_aardvark import PointwiseMlp, reference_leftovers
from .vit_aardvark import LonLatTransformer, initialise, initialise_by_width

if TYPE_CHECKING:
    from .configuration_aardvark_encoder import AardvarkEncoderConfig

__all__ = ["AardvarkEncoderNetwork", "EncoderTransformer"]


class EncoderTransformer(LonLatTransformer):
    """From features to a state: mixes the features of each grid point, then transforms patches.

    Args:
        features (int): ``F``.
        grid (tuple of int): ``(X, Y)`` of the transformer's grid.
        mixer_hidden (int): Width of the hidden layers of the MLP at each grid point.
        mixer_layers (int): Its layers between the first and the last.
        mixer_width (int): Width of its result.
        embed_dim (int): Width of a token.
        reference_tensors (bool): Whether it has the published tensors that nothing reads. Defaults
            to False.
        **sizes: Further arguments of :class:`~.vit_aardvark.LonLatTransformer`.
    """

    def __init__(
        self,
        features: int,
        grid: tuple[int, int],
        *,
        mixer_hidden: int,
        mixer_layers: int,
        mixer_width: int,
        embed_dim: int,
        reference_tensors: bool = False,
        **sizes: int | float,
    ) -> None:
        super().__init__(grid, embed_dim=embed_dim, **sizes)
        self.grid = grid
        patch = self.patch_size
        convolution = nn.Conv2d(mixer_width, embed_dim, kernel_size=patch, stride=patch)
        self.token_embeds = nn.ModuleList([nn.ModuleDict({"proj": convolution})])
        if reference_tensors:
            self.var_embed = nn.Parameter(torch.zeros(1, mixer_width, embed_dim))
            self.var_query = nn.Parameter(torch.zeros(1, 1, embed_dim))
            self.var_agg = nn.MultiheadAttention(
                embed_dim, self.blocks[0].attn.num_heads, batch_first=True
            )
            self.var_embed.requires_grad_(False)
            self.var_query.requires_grad_(False)
            self.var_agg.requires_grad_(False)
        self.apply(initialise)
        if not reference_tensors:
            initialise_by_width(self)
        # As published, it begins with the weights that torch gives linear layers.
        self.mlp = PointwiseMlp(features, mixer_hidden, mixer_width, mixer_layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Transforms ``[B, F, X', Y']``, of any grid, to ``[B, C, P * (X // P), P * (Y // P)]``."""
        x = nearest_resize(features, self.grid)
        x = self.mlp(x.movedim(1, -1)).movedim(-1, 1)
        tokens = self.token_embeds[0]["proj"](x).flatten(2).transpose(1, 2)
        # The published encoder tells its transformer a lead time of one, whatever it is.
        return self.transform(tokens, features.new_ones(1, 1))


class AardvarkEncoderNetwork(nn.Module):
    """Features of observations to a normalised state.

    Args:
        config (AardvarkEncoderConfig): Sizes.
    """

    def __init__(self, config: AardvarkEncoderConfig) -> None:
        super().__init__()
        self.grid = (len(config.longitude), len(config.latitude))
        self.decoder_lr = EncoderTransformer(
            config.feature_count,
            tuple(config.vit_grid),
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            head_depth=config.head_depth,
            out_channels=len(config.channels),
            drop_path=config.drop_path,
            mixer_hidden=config.mixer_hidden,
            mixer_layers=config.mixer_layers,
            mixer_width=config.mixer_width,
            reference_tensors=config.reference_tensors,
        )
        if config.reference_tensors:
            for name, module in reference_leftovers(len(config.channels)).items():
                self.add_module(name, module)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Gives the normalised state ``[B, C, W, H]`` for features ``[B, F, X, Y]``."""
        return nearest_resize(self.decoder_lr(features), self.grid)


def nearest_resize(fields: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Takes point ``floor(i * n / m)`` of ``n`` for point ``i`` of ``m`` on the last two axes."""
    return fields if fields.shape[-2:] == grid else F.interpolate(fields, size=grid)
