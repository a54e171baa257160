"""Samples a second of hftune's loader against an xarray ``isel`` loop, and memory as samples go by.

    python benchmarks/weather_loader.py [--data FILE] [--batch_size 32]

Without ``--data`` a NetCDF file of about 390 MB (24 channels on 32 x 64 points, 2,000 times) is
made in a temporary folder. A sample is two inputs and one target. Every measurement runs in a
process of its own, on one thread, in processor time, so that a busy machine does not matter; each
loop is warmed up with one batch, and the file is in the page cache for all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SECONDS = 5.0


def write_file(path: Path) -> None:
    """Writes random fields in the layout of the Copernicus store."""
    import xarray

    rng = np.random.default_rng(0)
    times = np.datetime64("2000-01-01", "ns") + np.arange(2000) * np.timedelta64(6, "h")
    shape = (len(times), 32, 64)
    dims = ("time", "latitude", "longitude")
    data = {name: (dims, rng.standard_normal(shape, "f4")) for name in ("t2m", "u10", "v10", "msl")}
    for name in "ztuv":
        values = rng.standard_normal((len(times), 5, 32, 64), "f4")
        data[name] = (("time", "level", "latitude", "longitude"), values)
    coordinates = {
        "time": times,
        "level": ("level", [300, 500, 700, 850, 1000], {"units": "hPa"}),
        "latitude": np.linspace(87, -87, 32),
        "longitude": np.arange(64) * 5.625,
    }
    xarray.Dataset(data, coordinates).to_netcdf(path)


def resident_mebibytes() -> float:
    """Memory that this process keeps resident."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def hftune_loader(data: str, batch_size: int, samples: int | None) -> dict[str, float]:
    """Goes through shuffled samples with a DataLoader, for SECONDS or for so many samples."""
    import torch

    from hftune.tasks.weather.samples import collate, make_samples
    from hftune.tasks.weather.store import open_fields

    torch.set_num_threads(1)
    fields = open_fields(data)
    table = make_samples(fields, lead_hours=[float(np.diff(fields.times).min() / 3600)])
    loader = torch.utils.data.DataLoader(
        table, batch_size=batch_size, shuffle=True, drop_last=True, collate_fn=collate
    )
    marks, count, started = {}, -batch_size, 0.0
    while True:
        for batch in loader:
            float(batch["fields"][0, 0, 0, 0, 0])
            if count < 0:
                started = time.process_time()
            count += batch_size
            for mark in (100, 1000, 10000):
                if count >= mark and mark not in marks:
                    marks[mark] = resident_mebibytes()
            if (count >= samples) if samples else (time.process_time() - started > SECONDS):
                rate = count / (time.process_time() - started)
                return {"rate": rate} | {f"rss_{mark}": rss for mark, rss in marks.items()}


def xarray_loop(data: str, batch_size: int, in_memory: bool) -> dict[str, float]:
    """The loop that people write: ``isel`` for each sample, variables stacked, batches stacked."""
    import torch
    import xarray

    torch.set_num_threads(1)
    dataset = xarray.open_dataset(data)
    if in_memory:
        dataset.load()
    order = np.random.default_rng(0).permutation(np.arange(1, dataset.sizes["time"] - 1))

    def read(row: int) -> np.ndarray:
        here = dataset.isel(time=row)
        parts = [here[name].values for name in dataset.data_vars]
        return np.concatenate([p.reshape(-1, *p.shape[-2:]) for p in parts])

    count, started, batch = -batch_size, 0.0, []
    while True:
        for row in order:
            inputs = np.stack([read(row - 1), read(row)])
            batch.append((torch.from_numpy(inputs), torch.from_numpy(read(row + 1))))
            if len(batch) == batch_size or (count < 0 and len(batch) == 1):
                torch.stack([inputs for inputs, _ in batch])
                torch.stack([target for _, target in batch])
                if count < 0:
                    count, started = 0, time.process_time()
                else:
                    count += len(batch)
                batch = []
                if time.process_time() - started > SECONDS and count:
                    return {"rate": count / (time.process_time() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="A NetCDF file; default: one is made.")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measures = {
            "hftune": lambda: hftune_loader(arguments.data, arguments.batch_size, None),
            "memory": lambda: hftune_loader(arguments.data, arguments.batch_size, 10_000),
            "isel": lambda: xarray_loop(arguments.data, arguments.batch_size, False),
            "isel in memory": lambda: xarray_loop(arguments.data, arguments.batch_size, True),
        }
        print(json.dumps(measures[arguments.measure]()))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or os.path.join(folder, "fields.nc")
        if not arguments.data:
            write_file(Path(data))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HFTUNE_HOME": folder}

        def measure(what: str) -> dict[str, float]:
            command = [sys.executable, __file__, "--data", data, "--measure", what]
            command += ["--batch_size", str(arguments.batch_size)]
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            return json.loads(output.stdout.splitlines()[-1])

        ours = measure("hftune")["rate"]
        print(f"hftune loader            {ours:10,.0f} samples/s")
        for what, name in (("isel", "xarray isel"), ("isel in memory", "xarray isel, loaded")):
            rate = measure(what)["rate"]
            print(f"{name:24} {rate:10,.0f} samples/s   hftune is {ours / rate:,.1f} times as fast")
        for mark, rss in measure("memory").items():
            if mark.startswith("rss_"):
                print(f"resident after {int(mark[4:]):6,} samples: {rss:,.0f} MiB")


if __name__ == "__main__":
    main()
