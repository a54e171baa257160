"""Aardvark's published processor and encoder, and models trained here, from one to the other."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedConfig

from hftune.utils.errors import CheckpointError, ConfigurationError, DataError
from hftune.utils.files import atomic_write
from hftune.utils.modules import raise_on_mismatch
from hftune.utils.terminal import console, is_main_process

from ..weather.weather_model import WeatherModel
from .configuration_aardvark import published_config
from .encoder_presets import published_encoder_config
from .modeling_aardvark import AardvarkProcessor
from .modeling_aardvark_encoder import AardvarkEncoder
from .norm_factors import read_norm_factors
from .official_files import OfficialCheckpoint, is_official_folder, read_official, write_official

__all__ = [
    "LICENSE",
    "kind_of_model",
    "kinds_of_checkpoint",
    "load_encoder",
    "load_official_encoder",
    "load_official_processor",
    "load_processor",
    "save_official",
]

LICENSE = "cc-by-nc-nd-4.0"
"""Licence of the published weights: no commercial use, no derivatives to be passed on."""

_MODELS = {"processor": AardvarkProcessor, "encoder": AardvarkEncoder}
_CONFIGS = {"processor": published_config, "encoder": published_encoder_config}
_ARTICLE = {"processor": "a processor", "encoder": "an encoder"}

_STATIC_FILE = "elev_vars_1.npy"

# Where save_official keeps the configuration of hftune inside config.pkl.
_CONFIG_KEY = "hftune_config"

# The layer that only the encoder's transformer has: the MLP at each grid point.
_MIXER = "decoder_lr.mlp.mlp."

# What PreTrainedConfig says of itself, not of the model.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "model_type", "transformers_version")


def kinds_of_checkpoint(checkpoint: OfficialCheckpoint) -> list[Literal["processor", "encoder"]]:
    """Tells from the names of weights which networks a checkpoint holds: one, or both."""
    names = checkpoint.weights
    kinds: list[Literal["processor", "encoder"]] = []
    if any(name.startswith("forecast_model.") for name in names):
        kinds.append("processor")
    if any(name.startswith("se_model.") for name in names):
        kinds.append("encoder")
    if not kinds and any(name.startswith("decoder_lr.") for name in names):
        kinds.append("encoder" if f"{_MIXER}0.weight" in names else "processor")
    return kinds


def kind_of_model(source: str | os.PathLike[str]) -> Literal["processor", "encoder"]:
    """Tells which network a model that hftune saved is.

    Args:
        source (path): Its folder, or a Hub repository.

    Raises:
        CheckpointError: If there is no model, or another one.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").exists():
        below = sorted(
            folder
            for folder in path.iterdir()
            if (folder / "config.json").exists() or is_official_folder(folder)
        )
        advice = f" Did you mean {below[0]}?" if below else ""
        raise CheckpointError(
            f"{source} is no model folder: expected config.json and model.safetensors, as hftune "
            f"saves them, or a file such as epoch_0, as Aardvark's scripts do.{advice}"
        )
    try:
        values, _ = PreTrainedConfig.get_config_dict(str(source))
    except OSError as error:
        raise CheckpointError(
            f"{source} is neither a model folder here nor a repository on the Hub that can be "
            f"reached ({str(error).splitlines()[0]})"
        ) from error
    for kind, model in _MODELS.items():
        if values.get("model_type") == model.config_class.model_type:
            return kind
    raise CheckpointError(
        f"{source} holds a model of the type {values.get('model_type')}; expected a processor or "
        "an encoder of Aardvark's."
    )


def load_official_processor(
    source: str | os.PathLike[str],
    *,
    norm_factors: str | os.PathLike[str] | Mapping[str, list[float]] | None = None,
    static: str | os.PathLike[str] | np.ndarray | None = None,
    epoch: int | None = None,
    forecast_model: int | None = None,
    reference_tensors: bool = True,
    **settings: Any,
) -> AardvarkProcessor:
    """Loads a processor that Aardvark's scripts, or :func:`save_official`, wrote.

    Sizes come from the shapes of the weights. The grid and the number of attention heads cannot be
    seen in them: they are the published ones unless ``settings`` say otherwise.

    Args:
        source (path): Folder with ``config.pkl``, ``losses_0.npy`` and ``epoch_N``, of which the
            best is taken, or one file ``epoch_N``; of a processor or end-to-end.
        norm_factors (path or dict, *optional*): Folder of the normalisation factors, or what
            :func:`~.norm_factors.read_norm_factors` returned. Needed for files of Aardvark's own.
        static (path or array, *optional*): Static fields as the reference has them in
            ``elev_vars_1.npy``: ``[S, W, H]``, latitude from south to north; each is standardised
            with its own mean and standard deviation. Defaults to that file in ``source``. Without
            one, give ``model.set_static_fields`` fields that are standardised already.
        epoch (int, *optional*): Epoch to take. Defaults to the best one.
        forecast_model (int, *optional*): Which processor of an end-to-end checkpoint.
        reference_tensors (bool): Keep the tensors that nothing uses, so that the weights are those
            of the file, all of them. Defaults to True.
        **settings: Arguments of :class:`~.configuration_aardvark.AardvarkProcessorConfig`.

    Returns:
        AardvarkProcessor: With float32 parameters.

    Raises:
        CheckpointError: If files are missing or damaged, hold objects that could run code (they are
            named), or the weights are of another architecture (what differs is listed).
        DataError: If the normalisation factors or the static fields do not fit.
        ConfigurationError: If something is to be said that the files do not say.

    Example:
        >>> model = load_official_processor(
        ...     "trained_model/processor/forecast_1", norm_factors="norm_factors"
        ... )
    """
    settings["reference_tensors"] = reference_tensors
    return _load("processor", source, norm_factors, static, epoch, forecast_model, settings)


def load_official_encoder(
    source: str | os.PathLike[str],
    *,
    norm_factors: str | os.PathLike[str] | Mapping[str, list[float]] | None = None,
    static: str | os.PathLike[str] | np.ndarray | None = None,
    epoch: int | None = None,
    reference_tensors: bool = True,
    **settings: Any,
) -> AardvarkEncoder:
    """Loads an encoder that Aardvark's scripts, or :func:`save_official`, wrote.

    Sizes come from the shapes of the weights; grids, observations and the number of attention heads
    are the published ones unless ``settings`` say otherwise.

    Args:
        source (path): Folder with ``config.pkl``, ``losses_0.npy`` and ``epoch_N``, of which the
            best is taken, or one file ``epoch_N``; of an encoder or end-to-end.
        norm_factors (path or dict, *optional*): As for :func:`load_official_processor`.
        static (path or array, *optional*): As for :func:`load_official_processor`; the encoder uses
            them as they are.
        epoch (int, *optional*): Epoch to take. Defaults to the best one.
        reference_tensors (bool): Keep the tensors that nothing uses. Defaults to True.
        **settings: Arguments of :class:`~.configuration_aardvark_encoder.AardvarkEncoderConfig`.

    Returns:
        AardvarkEncoder: With float32 parameters.

    Raises:
        CheckpointError: As for :func:`load_official_processor`.
        DataError: As for :func:`load_official_processor`.
        ConfigurationError: As for :func:`load_official_processor`.
    """
    settings["reference_tensors"] = reference_tensors
    return _load("encoder", source, norm_factors, static, epoch, None, settings)


def load_processor(
    source: str | os.PathLike[str],
    norm_factors: str | os.PathLike[str] | None = None,
    static: str | os.PathLike[str] | None = None,
) -> AardvarkProcessor:
    """Loads a processor from a folder of either kind: one that hftune saved, or Aardvark's own.

    Args:
        source (path): The folder, a Hub repository of a saved model, or a file ``epoch_N``.
        norm_factors (path, *optional*): For a folder of Aardvark's own; see
            :func:`load_official_processor`.
        static (path, *optional*): The same.

    Returns:
        AardvarkProcessor: The model.

    Raises:
        CheckpointError: If it cannot be read, or does not hold a processor.
    """
    if is_official_folder(source):
        return load_official_processor(
            source, norm_factors=norm_factors, static=static, reference_tensors=False
        )
    _check_saved("processor", source)
    return AardvarkProcessor.from_pretrained(source)


def load_encoder(
    source: str | os.PathLike[str],
    norm_factors: str | os.PathLike[str] | None = None,
    static: str | os.PathLike[str] | None = None,
) -> AardvarkEncoder:
    """Loads an encoder from a folder of either kind: one that hftune saved, or Aardvark's own.

    Args:
        source (path): The folder, a Hub repository of a saved model, or a file ``epoch_N``.
        norm_factors (path, *optional*): For a folder of Aardvark's own; see
            :func:`load_official_encoder`.
        static (path, *optional*): The same.

    Returns:
        AardvarkEncoder: The model.

    Raises:
        CheckpointError: If it cannot be read, or does not hold an encoder.
    """
    if is_official_folder(source):
        return load_official_encoder(
            source, norm_factors=norm_factors, static=static, reference_tensors=False
        )
    _check_saved("encoder", source)
    return AardvarkEncoder.from_pretrained(source)


def save_official(
    model: AardvarkProcessor | AardvarkEncoder,
    folder: str | os.PathLike[str],
    *,
    epoch: int = 0,
    loss: float = 0.0,
) -> Path:
    """Writes a model as Aardvark's scripts do, for their notebooks and their ``finetune.py``.

    ``epoch_N`` has the published names of weights with ``module.`` before them, and the tensors
    that nothing uses: as the model has them, or newly made with a fixed seed. ``losses_0.npy`` says
    that this epoch is the best, ``config.pkl`` has the scripts' settings and hftune's
    configuration, and ``elev_vars_1.npy`` the static fields, so that the folder loads here without
    further words.

    Args:
        model (AardvarkProcessor or AardvarkEncoder): The model.
        folder (path): Made if missing; files of these names in it are replaced.
        epoch (int): ``N``. Defaults to 0.
        loss (float): Validation loss. Defaults to 0.

    Returns:
        Path: The file ``epoch_N``.

    Raises:
        ConfigurationError: If the model has weights that the published files have no place for.
    """
    config = model.config
    extra = [name for name, _ in model.named_parameters() if not name.startswith("network.")]
    if extra:
        raise ConfigurationError(
            f"the model has {', '.join(extra[:5])}, which Aardvark's files have no place for: "
            "only models without trained length scales can be exported."
        )
    weights = model.network.state_dict()
    if not config.reference_tensors:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights = _reference_model(model).network.state_dict() | weights
    if model.static_fields is not None and torch.isfinite(model.static_fields).all():
        fields = model.static_fields.cpu().float().numpy()[:, ::-1].transpose(0, 2, 1)
        with atomic_write(Path(folder) / _STATIC_FILE, "wb") as stream:
            np.save(stream, np.ascontiguousarray(fields), allow_pickle=False)
    settings = _script_settings(model) | {_CONFIG_KEY: _plain(config)}
    return write_official(folder, weights, settings=settings, epoch=epoch, loss=loss)


def _load(
    kind: Literal["processor", "encoder"],
    source: str | os.PathLike[str],
    norm_factors: str | os.PathLike[str] | Mapping[str, list[float]] | None,
    static: str | os.PathLike[str] | np.ndarray | None,
    epoch: int | None,
    forecast_model: int | None,
    settings: dict[str, Any],
) -> Any:
    checkpoint = read_official(source, epoch=epoch)
    path = checkpoint.path
    kinds = kinds_of_checkpoint(checkpoint)
    if kind not in kinds:
        found = f"{' and '.join(kinds)} weights" if kinds else "no weights of Aardvark's networks"
        raise CheckpointError(
            f"{path} holds {found} ({', '.join(list(checkpoint.weights)[:2])}, ...); expected "
            f"those of {_ARTICLE[kind]}, such as decoder_lr.pos_embed."
        )
    weights = checkpoint.part(kind, forecast_model)
    saved = checkpoint.settings.get(_CONFIG_KEY, {})
    sizes, inputs, channels = _sizes(path, kind, weights)
    statistics = _statistics(checkpoint, norm_factors, channels, known=saved | settings)
    if kind == "encoder":
        statistics = {name: v for name, v in statistics.items() if name in ("mean", "std")}
    known = saved | sizes | statistics | settings
    if "static_channels" not in known:
        known["static_channels"] = _static_names(path, kind, known, inputs)
    fields = _static_fields(path, static, len(known["static_channels"]))
    if kind == "processor" and fields is not None and (static is not None or not saved):
        # As the scripts do: each field with its own mean and standard deviation.
        spread = fields.std(axis=(1, 2), dtype=np.float64)
        known["static_mean"] = fields.mean(axis=(1, 2), dtype=np.float64).tolist()
        known["static_std"] = np.where(spread > 0, spread, 1.0).tolist()
    config = _CONFIGS[kind](**known)
    if not saved:
        config.license = LICENSE
        if is_main_process():
            _say_license()
            _warn_of_settings(kind, kinds, checkpoint)
    model = _filled(_MODELS[kind](config), weights, path)
    if fields is not None:
        model.set_static_fields(fields)
    return model


def _filled(model: WeatherModel, weights: Mapping[str, torch.Tensor], path: Path) -> WeatherModel:
    """The model with these weights, which are all that it has, and no others."""
    config, own = model.config, model.network.state_dict()
    allowed = own
    if not config.reference_tensors:  # then they are left out
        allowed = _reference_model(model, "meta").network.state_dict()
    raise_on_mismatch(
        str(path),
        missing=own.keys() - weights.keys(),
        unexpected=weights.keys() - allowed.keys(),
        reshaped=[n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape],
        advice=f"The configuration has {len(config.channels)} channels on {len(config.longitude)} "
        f"x {len(config.latitude)} points: give the grid and the sizes that the weights were "
        "trained with.",
    )
    model.network.load_state_dict({name: weights[name] for name in own})
    return model


def _static_names(path: Path, kind: str, known: Mapping[str, Any], inputs: int) -> list[str]:
    """Names for as many static fields as the network has inputs for."""
    empty = _CONFIGS[kind](**known, static_channels=[])
    others = empty.in_channels if kind == "processor" else empty.feature_count
    if inputs < others:
        raise CheckpointError(
            f"the network in {path} takes {inputs} channels; without static fields the "
            f"configuration gives it {others} already: it is of another architecture."
        )
    return [f"static{i + 1}" for i in range(inputs - others)]


def _sizes(
    path: Path, kind: str, weights: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], int, int]:
    """Sizes that the shapes tell, the number of inputs, and the number of state channels."""
    head = _highest(weights, r"decoder_lr\.head\.(\d+)\.weight")
    mixer = _highest(weights, r"decoder_lr\.mlp\.mlp\.(\d+)\.")
    needed = [
        "decoder_lr.token_embeds.0.proj.weight",
        "decoder_lr.blocks.0.mlp.fc1.weight",
        f"decoder_lr.head.{head}.weight",
    ]
    if kind == "encoder":
        needed += [f"{_MIXER}0.weight", f"{_MIXER}{mixer}.weight"]
    raise_on_mismatch(
        str(path),
        missing=[name for name in needed if name not in weights],
        unexpected=[],
        reshaped=[name for name in needed if name in weights and weights[name].ndim not in (2, 4)],
        advice=f"They are not those of {_ARTICLE[kind]}.",
    )
    embed, block, last = (weights[name].shape for name in needed[:3])
    sizes = {
        "patch_size": embed[-1],
        "embed_dim": embed[0],
        "depth": _highest(weights, r"decoder_lr\.blocks\.(\d+)\.") + 1,
        "mlp_ratio": block[0] / embed[0],
        "head_depth": head // 2,
    }
    inputs = _highest(weights, r"decoder_lr\.token_embeds\.(\d+)\.") + 1
    if kind == "encoder":
        first = weights[f"{_MIXER}0.weight"].shape
        inputs = first[1]
        sizes |= {"mixer_hidden": first[0], "mixer_layers": mixer - 2, "mixer_width": embed[1]}
    return sizes, inputs, last[0] // embed[-1] ** 2


def _highest(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    return max((int(found[1]) for n in weights if (found := re.match(pattern, n))), default=-1)


def _statistics(
    checkpoint: OfficialCheckpoint,
    norm_factors: str | os.PathLike[str] | Mapping[str, list[float]] | None,
    channels: int,
    known: Mapping[str, Any],
) -> dict[str, list[float]]:
    if norm_factors is None:
        if "mean" in known:
            return {}
        raise ConfigurationError(
            f"{checkpoint.path} does not hold the normalisation factors: give norm_factors, the "
            "folder with mean_4u_1.npy, std_4u_1.npy, mean_diff_4u_1.npy and std_diff_4u_1.npy."
        )
    if isinstance(norm_factors, Mapping):
        return dict(norm_factors)
    said = {k: v for k, v in checkpoint.settings.items() if k in ("era5_mode", "res")}
    return read_norm_factors(norm_factors, channels=channels, **said)


def _static_fields(
    path: Path, static: str | os.PathLike[str] | np.ndarray | None, count: int
) -> np.ndarray | None:
    """Static fields ``[S, H, W]`` from north to south, of what the scripts' file has."""
    if static is None:
        beside = path.parent / _STATIC_FILE
        if not beside.is_file():
            return None
        static = beside
    label = "the array of static fields" if isinstance(static, np.ndarray) else str(static)
    if not isinstance(static, np.ndarray):
        try:
            static = np.load(static, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(
                f"{label} cannot be read as a plain array of numbers ({error})."
            ) from error
    if static.ndim != 3 or len(static) != count:
        raise DataError(
            f"{label} has the shape {list(static.shape)}; the weights are for {count} static "
            f"fields, [{count}, longitudes, latitudes from south to north]."
        )
    return np.ascontiguousarray(static.astype(np.float32).transpose(0, 2, 1)[:, ::-1])


def _reference_model(model: WeatherModel, device: str = "cpu") -> WeatherModel:
    """A new model of the same architecture, with the tensors that nothing uses."""
    config = copy.deepcopy(model.config)
    config.reference_tensors = True
    with torch.device(device):
        return type(model)(config)


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    values = json.loads(json.dumps(config.to_dict()))
    return {name: value for name, value in values.items() if name not in _BOOKKEEPING}


def _script_settings(model: WeatherModel) -> dict[str, Any]:
    """What the scripts look up in ``config.pkl``."""
    config = model.config
    processor = isinstance(model, AardvarkProcessor)
    return {
        "mode": "forecast" if processor else "assimilation",
        "decoder": "vit" if processor else "vit_assimilation",
        "in_channels": config.in_channels if processor else config.feature_count,
        "out_channels": len(config.channels),
        "int_channels": len(config.channels),
        "era5_mode": "4u",
        "res": 1,
        "frequency": 6,
        "film": 0,
        "diff": int(processor),
        "two_frames": 0,
    }


def _warn_of_settings(kind: str, kinds: list[str], checkpoint: OfficialCheckpoint) -> None:
    """Says what the scripts' settings mean that the weights do not show."""
    difference = checkpoint.settings.get("diff")
    if len(kinds) == 1 and difference is not None and bool(difference) != (kind == "processor"):
        console().print(
            f"Note: config.pkl has diff {difference}. hftune's processor predicts changes and its "
            "encoder states: weights that were trained otherwise will give wrong fields.",
            markup=False,
        )


@functools.cache  # once a process
def _say_license() -> None:
    console().print(
        "Aardvark's published weights are under CC BY-NC-ND 4.0: not for commercial use, and what "
        "is trained from them is not to be passed on. The model's configuration says so (license: "
        f"{LICENSE}); remove that line from config.json if the weights are your own.",
        markup=False,
    )


def _check_saved(kind: str, source: str | os.PathLike[str]) -> None:
    found = kind_of_model(source)
    if found != kind:
        raise CheckpointError(f"{source} holds {_ARTICLE[found]}; expected {_ARTICLE[kind]}.")
