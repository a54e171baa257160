"""Aardvark's lead-time chain the reference's way: a plain PyTorch loop, for ``aardvark_chain.py``.

Written from a description of the published scripts, and as plain as they are: a loader for each
lead time that makes each sample from memory maps, one convolution for each channel, full keys and
values, explicit attention matrices, predictions with their graph. What they do wrong is left out
(several GPUs only, shuffled validation, the state of the best epoch by one process's loss).

A task is a dict of plain values: ``data`` and ``folder`` (where inputs are and results go),
``grid`` (latitudes, longitudes), ``frequency`` (hours between rows), ``rows`` (of training),
``lead_times``, ``epochs``, ``batch``, ``device`` and the sizes of the network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hftune.utils.seeds import derive_seed

SPLITS = ("train", "val", "test")
YEAR, SEED, RATE, DECAY, BETAS = 2018, 42, 5e-5, 1e-5, (0.9, 0.95)
PARTS = ("training", "evaluating", "predicting")


# Data


def split_rows(task: dict[str, Any]) -> dict[str, range]:
    """Rows of the splits in the year's file, one after the other."""
    train, rest = task["rows"], max(task["rows"] // 6, 24 // task["frequency"] * 5)
    ends = (0, train, train + rest, train + 2 * rest)
    return {split: range(*ends[i : i + 2]) for i, split in enumerate(SPLITS)}


def truth_file(task: dict[str, Any]) -> Path:
    """ERA5's file of the year, ``[time, C, W, H]``."""
    return Path(task["data"]) / "era5" / f"era5_4u_1_{task['frequency']}_{YEAR}.memmap"


def states_file(task: dict[str, Any], split: str, lead_time: int) -> Path:
    """The states of a lead time, ``[time, H, W, C]``."""
    folder, day = (task["folder"], f"_{lead_time}") if lead_time else (task["data"], "")
    return Path(folder) / f"ic_{split}{day}.mmap"


def read_config(task: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the model that both start from: channels, grid, statistics."""
    return json.loads((Path(task["data"]) / "model" / "config.json").read_text(encoding="utf-8"))


def read_weights(task: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Its weights, under the names of :class:`ReferenceNetwork`."""
    weights = load_file(Path(task["data"]) / "model" / "model.safetensors")
    prefix = "network.decoder_lr."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


class ReferenceSamples(Dataset):
    """Samples of a lead time, made one by one from memory maps."""

    def __init__(self, task: dict[str, Any], split: str, lead_time: int) -> None:
        config = read_config(task)
        self.frequency, self.device = task["frequency"], task["device"]
        (height, width), channels = task["grid"], len(config["channels"])
        rows = split_rows(task)[split]
        self.first, day = rows.start, 24 // self.frequency
        self.later = day * lead_time
        self.count = len(rows) - self.later
        stored = len(rows) - day * (lead_time - 1)
        self.states = np.memmap(
            states_file(task, split, lead_time - 1),
            "<f4",
            "r",
            shape=(stored, height, width, channels),
        )
        self.truth = np.memmap(
            truth_file(task), "<f4", "r", shape=(365 * day, channels, width, height)
        )
        self.static = np.load(Path(task["data"]) / "elev_vars_1.npy")
        for name in ("mean", "std", "difference_mean", "difference_std"):
            values = torch.tensor(config[name], device=self.device)
            setattr(self, name, values.view(-1, 1, 1))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.first + index
        day, hour = divmod(row * self.frequency, 24)
        truth = torch.from_numpy(np.array(self.truth[row + self.later]))
        context = torch.from_numpy(np.array(self.states[index])).permute(2, 1, 0)
        truth, context = truth.to(self.device), context.to(self.device)
        target = (truth - context - self.difference_mean) / self.difference_std
        static = torch.from_numpy(self.static).to(self.device)
        static = static - static.mean(dim=(1, 2), keepdim=True)
        static = static / static.std(dim=(1, 2), keepdim=True, correction=0)
        angles = np.array([hour * np.pi / 12, 2 * np.pi * day / 365])
        angles = np.stack([np.sin(angles), np.cos(angles)], axis=1).reshape(4, 1, 1)
        time_planes = torch.tensor(angles, dtype=torch.float32, device=self.device)
        planes = [(context - self.mean) / self.std, static]
        planes.append(time_planes.expand(4, *context.shape[1:]))
        return {"x": torch.cat(planes), "target": target.permute(2, 1, 0), "index": index}

    def unnormalised(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The state ``[B, H, W, C]`` that an output stands for."""
        context = x[:, : len(self.mean)] * self.std + self.mean
        change = output.permute(0, 3, 2, 1) * self.difference_std + self.difference_mean
        return (change + context).permute(0, 3, 2, 1)


# Network and loss


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((query @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(width, 4 * width), nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), _Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), _Mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ReferenceNetwork(nn.Module):
    """The published network, channel by channel; the same names of weights as ``decoder_lr``."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__()
        config = read_config(task)
        self.height, self.width = task["grid"]
        self.patch, self.out = task["patch_size"], len(config["channels"])
        width, heads = task["embed_dim"], task["num_heads"]
        self.columns, self.rows = self.width // self.patch, self.height // self.patch
        channels = self.out + len(config["static_channels"]) + 4
        self.token_embeds = nn.ModuleList(_PatchEmbed(self.patch, width) for _ in range(channels))
        self.var_embed = nn.Parameter(torch.zeros(1, channels, width))
        self.var_query = nn.Parameter(torch.zeros(1, 1, width))
        self.var_agg = nn.MultiheadAttention(width, heads, batch_first=True)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.columns * self.rows, width))
        self.lead_time_embed = nn.Linear(1, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(task["depth"]))
        self.norm = nn.LayerNorm(width)
        head: list[nn.Module] = []
        for _ in range(task["head_depth"]):
            head += [nn.Linear(width, width), nn.GELU()]
        self.head = nn.Sequential(*head, nn.Linear(width, self.out * self.patch**2))

    def forward(self, x: torch.Tensor, lead_time: torch.Tensor) -> torch.Tensor:
        """``[B, V, W, H]`` to the normalised change ``[B, H, W, C]``."""
        batch = len(x)
        tokens = [embed(x[:, i : i + 1]) for i, embed in enumerate(self.token_embeds)]
        x = torch.stack(tokens, dim=1) + self.var_embed.unsqueeze(2)  # [B, V, N, D]
        x = x.permute(0, 2, 1, 3).flatten(0, 1)
        x, _ = self.var_agg(self.var_query.repeat_interleave(len(x), dim=0), x, x)
        x = x.squeeze(1).unflatten(0, (batch, -1)) + self.pos_embed
        x = x + self.lead_time_embed(lead_time).unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x))
        x = x.reshape(batch, self.columns, self.rows, self.patch, self.patch, self.out)
        x = torch.einsum("nhwpqc->nchpwq", x)
        x = x.reshape(batch, self.out, self.columns * self.patch, self.rows * self.patch)
        x = nn.functional.interpolate(x, size=(self.width, self.height), mode="nearest")
        return x.permute(0, 3, 2, 1)


def reference_loss(task: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """The pressure-weighted loss of output and target; with ``expand``, errors by channel."""
    config = read_config(task)
    area = np.cos(np.deg2rad(np.array(config["latitude"][::-1])))
    area = torch.tensor(area / area.mean(), dtype=torch.float32, device=task["device"])
    levels = [float(name.partition("_")[2] or 1000) for name in config["channels"]]
    pressure = torch.tensor(levels, device=task["device"]) / 1000

    def loss(output: torch.Tensor, target: torch.Tensor, expand: bool = False) -> torch.Tensor:
        squares = (output - target) ** 2 * area[:, None, None]
        if expand:
            return squares.nanmean(dim=(1, 2)).sqrt().mean(dim=0)
        return (squares * pressure).nanmean(dim=(1, 2, 3)).sqrt().mean()

    return loss


# The chain


class ReferenceChain:
    """All lead times, one after the other.

    Args:
        task (dict): See above.

    Attributes:
        spent (dict): Seconds of :data:`PARTS`.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.task, self.loss = task, reference_loss(task)
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.lead = torch.zeros(1, 1, device=task["device"])  # 0 stands for a day

    def run(self) -> None:
        """Trains and predicts."""
        weights = read_weights(self.task)
        for lead_time in range(1, self.task["lead_times"] + 1):
            samples = {split: ReferenceSamples(self.task, split, lead_time) for split in SPLITS}
            network = ReferenceNetwork(self.task).to(self.task["device"])
            network.load_state_dict(weights)
            weights = self.fine_tune(network, samples, lead_time)
            network.load_state_dict(weights)
            network.eval()
            with timed(self.spent, "predicting"):
                for split in ("test", "val", "train"):
                    self.predict(network, samples[split], split, lead_time)
                if lead_time > 1:
                    states_file(self.task, "train", lead_time - 1).unlink()

    def loader(self, samples: ReferenceSamples, order: list[int] | None = None) -> DataLoader:
        return DataLoader(samples, self.task["batch"], sampler=order, num_workers=0)

    def fine_tune(
        self, network: ReferenceNetwork, samples: dict[str, ReferenceSamples], lead_time: int
    ) -> dict[str, torch.Tensor]:
        """Returns the weights of the epoch with the lowest validation loss."""
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY
        )
        self.evaluate(network, samples["val"])
        best, path = float("inf"), Path(self.task["folder"]) / f"forecast_{lead_time}.pt"
        for epoch in range(self.task["epochs"]):
            with timed(self.spent, "training"):
                network.train()
                order = sample_order(len(samples["train"]), lead_time, epoch)
                for batch in self.loader(samples["train"], order):
                    optimizer.zero_grad()
                    loss = self.loss(network(batch["x"], self.lead), batch["target"])
                    loss.backward()
                    optimizer.step()
                    loss.item()
            value = self.evaluate(network, samples["val"])
            if value < best:
                best = value
                kept = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**kept, "epoch": epoch, "loss": value}, path)
        return torch.load(path, map_location=self.task["device"], weights_only=True)["model"]

    @torch.no_grad()
    def evaluate(self, network: ReferenceNetwork, samples: ReferenceSamples) -> float:
        """Returns the mean loss."""
        with timed(self.spent, "evaluating"):
            network.eval()
            total, errors = 0.0, []
            for batch in self.loader(samples):
                output = network(batch["x"], self.lead)
                total += self.loss(output, batch["target"]).item() * len(output)
                errors.append(self.loss(output, batch["target"], expand=True).cpu())
            torch.stack(errors).mean(dim=0).numpy()
            return total / len(samples)

    def predict(
        self, network: ReferenceNetwork, samples: ReferenceSamples, split: str, lead_time: int
    ) -> None:
        """Writes the states of a split, and for the test split what happened."""
        shape = (len(samples), *samples.states.shape[1:])
        states = np.memmap(states_file(self.task, split, lead_time), "<f4", "w+", shape=shape)
        targets = None
        if split == "test":
            path = states_file(self.task, "test_target", lead_time)
            targets = np.memmap(path, "<f4", "w+", shape=shape)
        for batch in self.loader(samples):
            rows = batch["index"].numpy()
            output = network(batch["x"], self.lead)  # keeps its graph
            states[rows] = samples.unnormalised(output, batch["x"]).detach().cpu().numpy()
            if targets is not None:
                targets[rows] = samples.unnormalised(batch["target"], batch["x"]).cpu().numpy()
        states.flush()


def sample_order(count: int, lead_time: int, epoch: int) -> list[int]:
    """The order in which a stage of hftune goes through its samples."""
    seed = SEED if lead_time == 1 else derive_seed(SEED, "stage", lead_time) % 2**31
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(count, generator=generator).tolist()


@contextmanager
def timed(spent: dict[str, float], part: str) -> Iterator[None]:
    """Adds what it takes to the seconds of a part."""
    begin = time.perf_counter()
    yield
    spent[part] += time.perf_counter() - begin
