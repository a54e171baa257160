"""``hftune aardvark``: Aardvark's published files, into the forms that hftune uses, and back."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError, ConfigurationError
from ..utils.files import human_bytes, sync_folder
from .aardvark_era5 import add_commands
from .tables import Column, console, number, table

__all__ = ["main"]

_DESCRIPTION = """\
Aardvark's published files, into the forms that hftune uses, and back.

Aardvark's scripts leave a folder for each network: config.pkl, losses_0.npy and
one file epoch_N an epoch. hftune keeps a model as config.json and
model.safetensors, which run no code when they are loaded. The recipes take
either: converting is for looking at weights, and for handing trained ones on to
Aardvark's own notebooks.

ERA5 goes both ways too: Aardvark's scripts read one raw file a year.

Nothing that a pickle holds is run: a file with anything but tensors and plain
values is refused, and what it holds is named."""

_EXAMPLES = """\
examples:
  hftune aardvark import trained_model/processor/forecast_1 models/processor \\
      --norm_factors aardvark-weather-public/norm_factors --static elev_vars_1.npy
  hftune aardvark import trained_model/encoder models/encoder \\
      --norm_factors aardvark-weather-public/norm_factors
  hftune aardvark export runs/aardvark/model handed_on
  hftune aardvark era5-to-netcdf era5 era5_1.5deg.nc
  hftune aardvark netcdf-to-era5 era5_*.nc era5 --dates 2007:2018

The published weights are under CC BY-NC-ND 4.0: not for commercial use, and what
is trained from them is not to be passed on."""

_IMPORT = """\
Reads a folder of Aardvark's scripts and writes a model folder of hftune.

The epoch with the lowest loss in losses_0.npy is taken; one whose loss is NaN
never is. Sizes come from the weights, statistics from four files that are not
among them: mean_4u_1.npy, std_4u_1.npy, mean_diff_4u_1.npy and
std_diff_4u_1.npy, in norm_factors of Aardvark's repository."""

_EXPORT = """\
Writes a model as Aardvark's scripts leave one: epoch_0 with their names of
weights, losses_0.npy, config.pkl, and elev_vars_1.npy if the model has static
fields. Their notebooks and finetune.py can read it, and so can 'import', which
needs no further files then."""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hftune aardvark", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    into = commands.add_parser(
        "import", help="a folder of Aardvark's scripts to a model folder",
        description=_IMPORT, formatter_class=raw,
    )  # fmt: skip
    into.add_argument("folder", metavar="FOLDER", help="folder with epoch_N, or one such file")
    into.add_argument("out", metavar="OUT", type=Path, help="model folder to write")
    into.add_argument(
        "--norm_factors",
        "--norm-factors",
        metavar="DIR",
        help="folder of the normalisation factors",
    )
    into.add_argument(
        "--static", metavar="FILE",
        help="static fields, elev_vars_1.npy: [fields, 240, 121]. They become part of the model. "
        "The processor cannot forecast without those that it was trained with",
    )  # fmt: skip
    into.add_argument(
        "--kind", choices=("processor", "encoder"),
        help="which network of an end-to-end checkpoint (default: told from the names of weights)",
    )  # fmt: skip
    into.add_argument(
        "--forecast_model", "--forecast-model", type=int, metavar="K",
        help="which processor of an end-to-end checkpoint with several",
    )  # fmt: skip
    into.add_argument(
        "--epoch", type=int, metavar="N", help="epoch to take (default: the best one)"
    )
    into.set_defaults(run=_import)

    out_of = commands.add_parser(
        "export", help="a model folder to a folder as Aardvark's scripts leave one",
        description=_EXPORT, formatter_class=raw,
    )  # fmt: skip
    out_of.add_argument(
        "model", metavar="MODEL", help="model folder of hftune, or a Hub repository"
    )
    out_of.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    out_of.set_defaults(run=_export)
    add_commands(commands)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv (list of str): Arguments after ``hftune aardvark``.

    Returns:
        0.

    Raises:
        HftuneError: If a file cannot be read, or is not what it should be.
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _import(arguments: argparse.Namespace) -> int:
    out = _new_folder(arguments.out)

    from ..tasks.aardvark import convert_aardvark as convert
    from ..tasks.aardvark.official_files import read_official

    checkpoint = read_official(arguments.folder, epoch=arguments.epoch)
    kinds = convert.kinds_of_checkpoint(checkpoint)
    if arguments.kind is None and len(kinds) != 1:
        raise CheckpointError(
            f"{checkpoint.path} is an end-to-end checkpoint: give --kind processor or --kind "
            "encoder."
            if kinds
            else f"{checkpoint.path} holds no weights of Aardvark's processor or encoder."
        )
    settings = {"norm_factors": arguments.norm_factors, "static": arguments.static}
    if (arguments.kind or kinds[0]) == "processor":
        model = convert.load_official_processor(
            checkpoint.path, forecast_model=arguments.forecast_model, **settings
        )
    else:
        model = convert.load_official_encoder(checkpoint.path, **settings)
    # Whole or absent: written beside its place, then renamed.
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        model.save_pretrained(beside / "model")
        os.replace(beside / "model", out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(beside)
    loss = [("loss", number(checkpoint.loss))] if checkpoint.loss is not None else []
    epoch = "" if checkpoint.epoch is None else str(checkpoint.epoch)
    _show([("read", str(checkpoint.path)), ("epoch", epoch), *loss, *_describe(model)], out)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    out = _new_folder(arguments.out)

    from ..tasks.aardvark import convert_aardvark as convert

    source = arguments.model
    kind = convert.kind_of_model(source)
    model = {"processor": convert.load_processor, "encoder": convert.load_encoder}[kind](source)
    convert.save_official(model, out)
    _show([("read", source), *_describe(model)], out)
    return 0


def _new_folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} is there already: give a new folder, or remove it.")
    return out


def _describe(model: Any) -> list[tuple[str, str]]:
    config = model.config
    weights = model.network.state_dict()
    kind = "processor" if config.model_type.endswith("_processor") else "encoder"
    rows = [
        ("network", f"{kind}: {config.depth} blocks of width {config.embed_dim}"),
        (
            "weights",
            f"{len(weights)} tensors, {sum(w.numel() for w in weights.values()):,} numbers",
        ),
        ("channels", f"{len(config.channels)}: {', '.join(config.channels)}"),
        (
            "grid",
            f"{len(config.latitude)} latitudes {config.latitude[0]:g} ... {config.latitude[-1]:g}, "
            f"{len(config.longitude)} longitudes {config.longitude[0]:g} ... "
            f"{config.longitude[-1]:g}",
        ),
    ]
    if config.static_channels:
        known = bool(model.static_fields.isfinite().all())
        note = "" if known else "; not given: import again with --static before it is used"
        rows.append(("static fields", f"{len(config.static_channels)}{note}"))
    if "license" in config.to_dict():
        rows.append(("licence", str(config.license)))
    return rows


def _show(rows: list[tuple[str, str]], out: Path) -> None:
    files = sorted(path for path in out.iterdir() if path.is_file())
    written = ", ".join(f"{path.name} ({human_bytes(path.stat().st_size)})" for path in files)
    rows = [*rows, ("written", f"{out}: {written}")]
    names, values = zip(*((name, value) for name, value in rows if value), strict=True)
    console().print(table([Column("", names), Column("", values)]))
