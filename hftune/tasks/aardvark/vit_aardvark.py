"""The transformer that Aardvark's encoder and processor share, with the published names of weights.

Notation used for shapes: ``B`` samples, ``D`` width (``embed_dim``), ``P`` edge of a patch, ``X``
longitudes and ``Y`` latitudes of the grid that is cut into patches, ``N`` tokens, lon-major:
``(X // P) * (Y // P)``. Points beyond the last whole patch are never read.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = [
    "LonLatTransformer",
    "TransformerBlock",
    "initialise",
    "initialise_by_width",
    "sincos_embedding",
]


def sincos_embedding(positions: np.ndarray, width: int) -> np.ndarray:
    """Returns float64 ``[n, width]``: sines, then cosines of the positions (Vaswani et al. 2017).

    Args:
        positions (array ``[n]``): Positions.
        width (int): Even.
    """
    frequencies = 10000.0 ** (-np.arange(width // 2) / (width // 2))
    angles = np.asarray(positions, dtype=np.float64)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class _Attention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))


class _Mlp(nn.Module):
    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(GradientCheckpointingLayer):
    """Attention and MLP, each behind a layer normalisation (eps 1e-5) and added to its input.

    Args:
        embed_dim (int): ``D``.
        num_heads (int): Attention heads.
        mlp_ratio (float): Hidden width of the MLP over ``D``.
        drop_path (float): Probability that a sample skips a branch in training. Defaults to 0.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attn = _Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = _Mlp(embed_dim, int(embed_dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._kept(self.attn(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep).div_(keep)


class LonLatTransformer(nn.Module):
    """From tokens to fields; what turns fields into tokens is for subclasses.

    Args:
        grid (tuple of int): ``(X, Y)``.
        patch_size (int): ``P``.
        embed_dim (int): ``D``, a multiple of 4 and of ``num_heads``.
        depth (int): Number of blocks.
        num_heads (int): Attention heads.
        mlp_ratio (float): Hidden width of the MLPs over ``D``.
        head_depth (int): Hidden layers of the head.
        out_channels (int): Channels of the result.
        drop_path (float): Stochastic depth rate of the last block; those before it have less.
            Defaults to 0.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        *,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        head_depth: int,
        out_channels: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size, self.out_channels = patch_size, out_channels
        self.patches = (grid[0] // patch_size, grid[1] // patch_size)
        columns, rows = np.indices(self.patches).reshape(2, -1)
        # The first half says where on the meridian, the second where on the parallel.
        places = [sincos_embedding(rows, embed_dim // 2), sincos_embedding(columns, embed_dim // 2)]
        start = torch.from_numpy(np.concatenate(places, axis=1)).float()
        self.pos_embed = nn.Parameter(start[None].contiguous())
        self.lead_time_embed = nn.Linear(1, embed_dim)
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(
            TransformerBlock(embed_dim, num_heads, mlp_ratio, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim)
        head: list[nn.Module] = []
        for _ in range(head_depth):
            head += [nn.Linear(embed_dim, embed_dim), nn.GELU()]
        self.head = nn.Sequential(*head, nn.Linear(embed_dim, out_channels * patch_size**2))

    def transform(self, tokens: torch.Tensor, lead_time: torch.Tensor) -> torch.Tensor:
        """Runs the blocks and the head.

        Args:
            tokens (tensor ``[B, N, D]``): Without the embedding of their place.
            lead_time (tensor ``[B or 1, 1]``): What the embedding of the lead time is given.

        Returns:
            tensor ``[B, out_channels, P * (X // P), P * (Y // P)]``.
        """
        x = tokens + self.pos_embed + self.lead_time_embed(lead_time)[:, None]
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x))
        (columns, rows), patch = self.patches, self.patch_size
        x = x.view(-1, columns, rows, patch, patch, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(
            -1, self.out_channels, columns * patch, rows * patch
        )


def initialise(module: nn.Module) -> None:
    """Gives one module the weights that training from scratch begins with, as published.

    Linear layers and patch embeddings are drawn from a truncated normal of 0.02 with Linear biases
    of zero; layer normalisations are the identity. For ``module.apply``.

    Args:
        module (torch.nn.Module): Of any kind; others are left as they are.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def initialise_by_width(network: nn.Module) -> None:
    """Draws linear layers and patch embeddings with a deviation of ``1 / sqrt(inputs)`` (LeCun et
    al. 1998, Efficient BackProp, equation 16).

    The published 0.02 is for a width of 512 and patches of 5 x 5: a processor of 64 that began so
    was seen to learn two to three times more slowly.

    Args:
        network (torch.nn.Module): Of any kind; other layers are left as they are.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
