"""Every shipped accelerate config is one that accelerate takes, and says what it is called."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "accelerate_configs").glob("*.yaml"))

# What the file's name promises: distributed type, precision, on the processor, FSDP version.
PROMISES = {
    "cpu": ("NO", "no", True, None),
    "cpu_ddp": ("MULTI_GPU", "no", True, None),
    "fsdp2_bf16": ("FSDP", "bf16", False, 2),
    "multi_gpu_ddp": ("MULTI_GPU", "no", False, None),
    "single_gpu_bf16": ("NO", "bf16", False, None),
}


def test_all_are_tested():
    assert {path.stem for path in CONFIGS} == set(PROMISES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_loads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    found = (
        config.distributed_type.value,
        config.mixed_precision,
        config.use_cpu,
        config.fsdp_config.get("fsdp_version"),
    )
    assert found == PROMISES[path.stem]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_line_is_explained(path):
    """The header shows the command; every setting that people change has its comment."""
    text = path.read_text(encoding="utf-8")
    assert f"accelerate launch --config_file accelerate_configs/{path.name}" in text
    for line in text.splitlines():
        if line.startswith(("distributed_type", "num_processes: 8", "num_processes: 2", "fsdp_")):
            assert "#" in line or line == "fsdp_config:", line


def test_fsdp_options_are_accelerates():
    """A misspelt ``fsdp_`` option would be ignored in silence."""
    import yaml
    from accelerate.commands.launch import launch_command_parser

    options = {action.dest for action in launch_command_parser()._actions}
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name in config.get("fsdp_config", {}):
            assert name in options, name
