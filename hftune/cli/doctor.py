"""``hftune doctor``: is this machine fit for a run, and if not, what to do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..utils.files import free_bytes, human_bytes
from ..utils.home import hftune_home
from ..utils.versions import MINIMUM_VERSIONS, installed_version

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Check", "main", "run_checks"]

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        group (str): What it is about.
        name (str): What was looked at.
        status (str): ``"ok"``, ``"info"``, ``"warning"`` or ``"failure"``.
        found (str): What is there.
        cure (str): What to do about it; empty where nothing need be done.
    """

    group: str
    name: str
    status: Literal["ok", "info", "warning", "failure"]
    found: str
    cure: str = ""


def check_packages() -> list[Check]:
    """Versions of what hftune needs, and which features are installed."""
    from packaging.version import Version

    checks = []
    for package, minimum in MINIMUM_VERSIONS.items():
        found = installed_version(package)
        good = found is not None and Version(found) >= Version(minimum)
        cure = "" if good else f'pip install -U "{package}>={minimum}"'
        if package == "python" and not good:
            cure = "install a newer Python, then: make PYTHON=python3.12"
        checks.append(
            Check(
                "versions",
                package,
                "ok" if good else "failure",
                f"{found or 'not installed'} (≥ {minimum})",
                cure,
            )
        )
    aurora = installed_version("microsoft-aurora")
    cure = "" if aurora else 'for the Aurora task: pip install "hftune[weather]"'
    checks.append(Check("versions", "microsoft-aurora", "info", aurora or "not installed", cure))
    return checks


def check_devices() -> list[Check]:
    """Accelerators, their memory and bfloat16."""
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError as well as ImportError
        return [Check("devices", "torch", "failure", f"import fails: {error}", "reinstall torch")]
    checks = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            busy = free < 0.5 * total
            checks.append(
                Check(
                    "devices",
                    f"cuda:{index}",
                    "warning" if busy else "ok",
                    f"{torch.cuda.get_device_name(index)}, {human_bytes(free)} of "
                    f"{human_bytes(total)} free",
                    "other processes use it: see nvidia-smi" if busy else "",
                )
            )
        if torch.cuda.device_count() > 1:
            nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
            checks.append(
                Check(
                    "devices",
                    "nccl",
                    "ok" if nccl else "failure",
                    "available" if nccl else "not in this torch",
                    "" if nccl else "install a CUDA build of torch",
                )
            )
        checks.append(_bf16("cuda", torch.cuda.is_bf16_supported(including_emulation=False)))
    elif torch.backends.mps.is_available():
        checks.append(Check("devices", "mps", "ok", "Apple GPU"))
        checks.append(_bf16("mps", torch.backends.mps.is_macos_or_newer(14, 0)))
    else:
        checks.append(_no_accelerator(torch.version.cuda))
        checks.append(_bf16("cpu", _cpu_has_bf16()))
    return checks


def _no_accelerator(cuda_build: str | None) -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check("devices", "accelerator", "info", "none: runs use the processor")
    cure = (
        f"the driver is older than CUDA {cuda_build}, or CUDA_VISIBLE_DEVICES hides the GPU: "
        "compare with nvidia-smi"
        if cuda_build
        else "this torch has no CUDA in it: reinstall torch from its default index"
    )
    return Check("devices", "accelerator", "warning", "nvidia-smi is here, torch sees none", cure)


def _cpu_has_bf16() -> bool:
    information = Path("/proc/cpuinfo")  # Linux only; elsewhere float32 is the safe answer
    flags = information.read_text().split() if information.is_file() else []
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags)


def _bf16(device: str, native: bool) -> Check:
    if native:
        return Check("devices", "bfloat16", "ok", f"native on {device}")
    return Check(
        "devices", "bfloat16", "info", f"not native on {device}", "train in float32: --bf16 false"
    )


def available_cores() -> int:
    """Returns how many cores this process may use: affinity and container limits counted."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.is_file():
        quota, period = limit.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def check_threads(threads: int, cores: int) -> Check:
    """Threads of one process against the cores there are."""
    found = f"{threads} of {cores} cores"
    if threads <= cores:
        return Check("machine", "threads", "ok", found)
    cure = f"too many threads slow each other down: export OMP_NUM_THREADS={cores}"
    return Check("machine", "threads", "warning", found, cure)


def check_memory(available: int) -> Check:
    """Main memory that is free, in bytes."""
    low = available < 4 * GIB
    cure = "close other programs, or lower --per_device_train_batch_size" if low else ""
    found = f"{human_bytes(available)} available"
    return Check("machine", "memory", "warning" if low else "ok", found, cure)


def check_shared_memory(size: int) -> Check:
    """Size of ``/dev/shm`` in bytes: data loader workers hand their batches over through it."""
    small = size < GIB
    cure = "docker run --shm-size=8g, or --dataloader_num_workers 0" if small else ""
    found = human_bytes(size)
    return Check("machine", "shared memory", "warning" if small else "ok", found, cure)


def _short(path: Path) -> str:
    """A path with ``~`` for the user's home."""
    try:
        return str(Path("~") / path.absolute().relative_to(Path.home()))
    except ValueError:
        return str(path)


def check_disk(name: str, folder: Path, cure: str) -> Check:
    """Free space where a folder is or will be, and whether it can be written."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    shown = _short(folder)
    if not os.access(existing, os.W_OK):
        return Check("disk", name, "failure", f"{shown} cannot be written", cure)
    free = free_bytes(folder)
    found = f"{human_bytes(free)} free at {shown}"
    if free >= 10 * GIB:
        return Check("disk", name, "ok", found)
    return Check("disk", name, "failure" if free < GIB else "warning", found, cure)


def check_tokens(environ: Mapping[str, str]) -> list[Check]:
    """Which accounts are set up; never what the tokens are."""
    from huggingface_hub import constants, get_token

    stored = Path(constants.HF_TOKEN_PATH)
    checks = [
        Check(
            "tokens",
            "Hugging Face",
            "info",
            "present" if get_token() else "none",
            "" if get_token() else "only for private models and pushing: hf auth login",
        )
    ]
    if stored.is_file() and stored.stat().st_mode & 0o077 and os.name == "posix":
        checks.append(
            Check(
                "tokens",
                "Hugging Face file",
                "warning",
                "other users can read it",
                f"chmod 600 {_short(stored)}",
            )
        )
    if installed_version("wandb"):
        netrc = Path(environ.get("NETRC", "~/.netrc")).expanduser()
        known = bool(environ.get("WANDB_API_KEY")) or (
            netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace")
        )
        cure = "" if known else "only for --wandb online: wandb login"
        checks.append(Check("tokens", "W&B", "info", "present" if known else "none", cure))
    return checks


def check_accelerate(config_file: Path, environ: Mapping[str, str], gpus: int) -> list[Check]:
    """The default accelerate config, which every ``accelerate launch`` without one takes."""
    checks = [_default_config(config_file, gpus)]
    ambient = sorted(
        name for name in environ if re.match(r"ACCELERATE_(?!LOG_LEVEL)|FSDP_|DEEPSPEED_", name)
    )
    if ambient:
        cure = f"they change every run of this shell: unset {' '.join(ambient)}"
        checks.append(Check("accelerate", "environment", "warning", ", ".join(ambient), cure))
    return checks


def _default_config(path: Path, gpus: int) -> Check:
    name = "default config"
    shown = _short(path)
    cure = f"launch with --config_file accelerate_configs/..., or remove {shown}"
    if not path.is_file():
        return Check("accelerate", name, "ok", "none, so nothing interferes")
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        config = load_config_from_file(str(path))
    except Exception as error:  # yaml errors, wrong keys, wrong values: all make a launch fail
        first_line = str(error).strip().splitlines()[0]
        return Check("accelerate", name, "failure", f"{shown}: {first_line}", cure)
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    found = (
        f"{shown}: {kind}, {config.num_processes} process(es), precision {config.mixed_precision}"
    )
    if kind == "MULTI_CPU" and not config.mpirun_config:
        return Check("accelerate", name, "failure", f"{found}: starts one process only", cure)
    if config.use_cpu and gpus:
        return Check("accelerate", name, "failure", f"{found}: leaves the GPU unused", cure)
    if kind in ("MULTI_GPU", "FSDP") and not config.use_cpu and config.num_processes > gpus:
        return Check("accelerate", name, "failure", f"{found}: there are {gpus} GPU(s)", cure)
    return Check("accelerate", name, "warning", f"{found}: used by every plain launch", cure)


def run_checks() -> list[Check]:
    """Runs every check on this machine."""
    checks = check_packages()
    if any(check.status == "failure" for check in checks):
        return checks  # what follows needs these packages
    devices = check_devices()
    if any(check.name == "torch" for check in devices):
        return checks + devices
    import psutil
    import torch
    from accelerate.commands.config.config_args import default_config_file
    from huggingface_hub import constants

    checks += devices
    checks.append(check_threads(torch.get_num_threads(), available_cores()))
    checks.append(check_memory(psutil.virtual_memory().available))
    if os.path.isdir("/dev/shm"):
        checks.append(check_shared_memory(shutil.disk_usage("/dev/shm").total))
    checks += [
        check_disk("this folder", Path.cwd(), "free some, or choose another --output_dir"),
        check_disk("hftune's home", hftune_home(), "free some, or export HFTUNE_HOME=..."),
        check_disk("model cache", Path(constants.HF_HOME), "free some, or export HF_HOME=..."),
    ]
    checks += check_tokens(os.environ)
    gpus = sum(check.name.startswith("cuda:") for check in devices)
    return checks + check_accelerate(Path(default_config_file), os.environ, gpus)


def verdict(checks: Sequence[Check]) -> str:
    """Sums the checks up in one line."""
    counts = {s: sum(check.status == s for check in checks) for s in ("failure", "warning")}
    texts = [f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts.items() if n]
    return " and ".join(texts) if texts else "everything is fine"


_LOOK = {
    "ok": ("✓", "green"),
    "info": ("·", "dim"),
    "warning": ("!", "yellow"),
    "failure": ("✗", "bold red"),
}


def _table(checks: Sequence[Check]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "check", "found", "what to do"):
        table.add_column(title, overflow="fold")
    group = None
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row("", Text(group, style="bold"), "", "")
        mark, style = _LOOK[check.status]
        name = Text(f"  {check.name}")
        found = Text(check.found, style="dim" if check.status == "info" else "")
        table.add_row(Text(mark, style=style), name, found, Text(check.cure, style=style))
    return table


def main(argv: Sequence[str]) -> int:
    """Checks this machine; returns 1 when a check fails."""
    parser = argparse.ArgumentParser(
        prog="hftune doctor",
        description="Check this machine: versions, devices, bfloat16, threads, disk, tokens and "
        "accelerate's default config. Exits with 1 when something would break a run.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    checks = run_checks()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        console.print(_table(checks))
        console.print(verdict(checks))
    return int(any(check.status == "failure" for check in checks))
