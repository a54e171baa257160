"""The processor's network: planes of channels to tokens, one token a place, the transformer.

Notation used for shapes: ``B`` samples, ``V`` input channels, ``C`` output channels, ``X``
longitudes, ``Y`` latitudes from south to north, ``P`` edge of a patch, ``N`` places, lon-major,
``D`` width (``embed_dim``), ``h`` attention heads.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_aardvark import AardvarkProcessorConfig
from .vit_aardvark import LonLatTransformer, initialise, initialise_by_width, sincos_embedding

__all__ = ["PointwiseMlp", "ProcessorNetwork", "ProcessorTransformer", "reference_leftovers"]


class ProcessorTransformer(LonLatTransformer):
    """A transformer whose token at a place is gathered from the patches of all channels there.

    As published, each channel has a patch embedding and a vector ``var_embed`` of its own, and one
    learned query attends to the ``V`` tokens of each place. The query is the same everywhere, so
    neither tokens nor keys nor values are ever formed: scores and values are linear in the ``P *
    P`` points of a patch, with weights that are multiplied out once a call.

    Args:
        grid (tuple of int): ``(X, Y)``.
        in_channels (int): ``V``.
        embed_dim (int): ``D``.
        num_heads (int): ``h``, of the attention over channels too.
        **settings: The other arguments of
            :class:`~hftune.tasks.aardvark.vit_aardvark.LonLatTransformer`.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        in_channels: int,
        *,
        embed_dim: int,
        num_heads: int,
        **settings: int | float,
    ) -> None:
        super().__init__(grid, embed_dim=embed_dim, num_heads=num_heads, **settings)
        self.grid = grid
        start = sincos_embedding(range(in_channels), embed_dim)
        self.var_embed = nn.Parameter(torch.from_numpy(start).float()[None])
        self.var_query = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.token_embeds = nn.ModuleList(
            nn.ModuleDict({"proj": nn.Conv2d(1, embed_dim, self.patch_size, self.patch_size)})
            for _ in range(in_channels)
        )
        # Holds the weights; its forward is never called.
        self.var_agg = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.apply(initialise)

    def forward(self, x: torch.Tensor, lead_time: torch.Tensor) -> torch.Tensor:
        """Predicts fields from fields.

        Args:
            x (tensor ``[B, V, X, Y]``): Normalised input.
            lead_time (tensor ``[B or 1, 1]``): The number that the published weights know: 0 for
                24 hours.

        Returns:
            tensor ``[B, C, X, Y]``. Where the patches leave a rest, the result is stretched to the
            grid by its nearest neighbours, which moves it.
        """
        fields = self.transform(self._tokens(x), lead_time)
        if fields.shape[-2:] == self.grid:
            return fields
        return F.interpolate(fields, size=self.grid, mode="nearest")

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Embeds patches and aggregates channels: ``[B, V, X, Y]`` to ``[B, N, D]``."""
        batch, channels = x.shape[:2]
        (columns, rows), patch = self.patches, self.patch_size
        x = x[..., : columns * patch, : rows * patch]
        x = x.reshape(batch, channels, columns, patch, rows, patch).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(-1, channels, patch * patch)
        patches = torch.cat([x, x.new_ones(len(x), channels, 1)], dim=2)  # [B * N, V, K]

        with torch.autocast(x.device.type, enabled=False):
            score_weights, value_weights, bias = self._composed_weights()
            scores = torch.bmm(patches.transpose(0, 1), score_weights)  # [V, B * N, h]
            shares = scores.permute(2, 1, 0).softmax(dim=2)
        # A head at a time: all of them in one product are strided, and take twice as long.
        values = [
            (share[..., None] * patches).flatten(1) @ weights  # [B * N, V * K] @ [V * K, D / h]
            for share, weights in zip(shares, value_weights, strict=True)
        ]
        values = torch.cat(values, dim=1).view(batch, columns * rows, -1) + bias
        return self.var_agg.out_proj(values)

    def _composed_weights(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Multiplies out what acts on the points of a patch, and on a one that stands for biases.

        With ``K = P * P + 1``: weights ``[V, K, h]`` of the scores, ``[h, V * K, D / h]`` of the
        values, and the bias ``[D]`` of the values. The keys' bias is the same for all channels, so
        it does not change the softmax and is left out.
        """
        attention, heads = self.var_agg, self.var_agg.num_heads
        convolutions = [embed["proj"] for embed in self.token_embeds]
        embed = torch.stack([c.weight.flatten(1) for c in convolutions])  # [V, D, P * P]
        bias = torch.stack([c.bias for c in convolutions]) + self.var_embed[0]
        embed = torch.cat([embed, bias[..., None]], dim=2)  # [V, D, K]
        channels, width, points = embed.shape

        query_weight, key_weight, value_weight = attention.in_proj_weight.chunk(3)
        query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
        query = F.linear(self.var_query.view(-1), query_weight, query_bias).view(heads, 1, -1)
        query = query * (width // heads) ** -0.5
        asked = torch.bmm(query, key_weight.view(heads, -1, width)).squeeze(1)  # [h, D]
        score_weights = (asked @ embed).transpose(1, 2)  # [V, K, h]

        columns = embed.permute(1, 0, 2).reshape(width, channels * points)
        value_weights = (value_weight @ columns).view(heads, -1, channels * points)
        return score_weights, value_weights.transpose(1, 2), value_bias


class ProcessorNetwork(nn.Module):
    """The network with the published names of weights.

    With ``reference_tensors`` it begins as published, else with weights for its width.

    Args:
        config (AardvarkProcessorConfig): Architecture.
    """

    def __init__(self, config: AardvarkProcessorConfig) -> None:
        super().__init__()
        leftovers = {}
        if config.reference_tensors:
            leftovers = reference_leftovers(len(config.channels))
            self.ascat_setconvs = leftovers.pop("ascat_setconvs")
            self.sc_out = leftovers.pop("sc_out")
        self.decoder_lr = ProcessorTransformer(
            (len(config.longitude), len(config.latitude)),
            config.in_channels,
            out_channels=len(config.channels),
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            head_depth=config.head_depth,
            drop_path=config.drop_path,
        )
        for name, module in leftovers.items():  # in the order of the published file
            self.add_module(name, module)
        if not config.reference_tensors:
            initialise_by_width(self)
        if config.zero_head:
            nn.init.zeros_(self.decoder_lr.head[-1].weight)

    def forward(self, x: torch.Tensor, lead_time: torch.Tensor) -> torch.Tensor:
        """Predicts the normalised tendency ``[B, C, X, Y]`` from ``[B, V, X, Y]``."""
        return self.decoder_lr(x, lead_time)


class PointwiseMlp(nn.Module):
    """An MLP on the last axis with ReLU between its layers, under the published names of weights.

    Args:
        in_channels (int): Width of the input.
        hidden (int): Width between the layers.
        out_channels (int): Width of the result.
        layers (int): Layers from ``hidden`` to ``hidden``. Defaults to 4.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, layers: int = 4) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden),
            nn.ReLU(),
            *(nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(layers)),
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
