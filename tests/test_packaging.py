"""What is installed is what is in the repository, and says the same versions everywhere."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hftune.utils.versions import MINIMUM_VERSIONS


@pytest.fixture(scope="module")
def setup_cfg(repository) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_every_package_is_listed(repository, setup_cfg):
    folders = {
        ".".join(path.parent.relative_to(repository).parts)
        for path in (repository / "hftune").rglob("__init__.py")
    }
    listed = set(lines(setup_cfg["options"]["packages"]))
    assert listed == folders | {"hftune.recipes", "hftune.accelerate_configs"}


def test_minimum_versions_agree(repository, setup_cfg):
    required = lines(setup_cfg["options"]["install_requires"])
    minimums = dict(requirement.split(">=") for requirement in required)
    minimums["python"] = setup_cfg["options"]["python_requires"].removeprefix(">=")
    assert {name: minimums[name] for name in MINIMUM_VERSIONS} == MINIMUM_VERSIONS


def test_constraints_are_pins_for_python_3_11_and_newer(repository):
    pins = [line for line in lines((repository / "constraints.txt").read_text()) if line[0] != "#"]
    for pin in pins:
        assert re.fullmatch(r'[\w-]+==[\w.]+ ; python_version >= "3\.11"', pin), pin


def test_every_requirement_of_the_tested_features_is_pinned(repository, setup_cfg):
    pinned = {
        line.split("==")[0].lower()
        for line in lines((repository / "constraints.txt").read_text())
        if line[0] != "#"
    }
    extras = setup_cfg["options.extras_require"]
    required = [
        *lines(setup_cfg["options"]["install_requires"]),
        *lines(extras["weather"]),
        *lines(extras["dev"]),
    ]
    names = {re.split(r"[><=\[;]", line)[0].lower() for line in required if line[0] != "#"}
    assert names - pinned == set()


def test_every_import_is_a_requirement(repository, setup_cfg):
    """What the code imports is what setup.cfg asks for, in the base or in a feature."""
    distributions = {"aurora": "microsoft-aurora", "pil": "pillow", "yaml": "pyyaml"}
    imported = set()
    for folder in ("hftune", "recipes"):
        for path in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add(node.module.split(".")[0])
    imported = {
        distributions.get(name.lower(), name.lower())
        for name in imported - set(sys.stdlib_module_names) - {"hftune"}
    }
    extras = setup_cfg["options.extras_require"].values()
    required = lines("\n".join([setup_cfg["options"]["install_requires"], *extras]))
    assert imported - {re.split(r"[><=\[;]", line)[0].lower() for line in required} == set()


def test_all_holds_every_feature(setup_cfg):
    extras = setup_cfg["options.extras_require"]
    (everything,) = lines(extras["all"])
    features = everything.removeprefix("hftune[").removesuffix("]").split(",")
    assert set(features) == set(extras) - {"all", "dev"}


def test_the_wheel_is_whole(repository, tmp_path):
    """The wheel holds every module, the recipes with their configs, and the accelerate configs."""
    # From a copy, so that build/ and *.egg-info of the working tree are not touched.
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("not a git checkout")
    source = tmp_path / "source"
    for name in tracked.stdout.splitlines():
        if not name.startswith("tests/") and (repository / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((repository / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    run = subprocess.run(
        [*command, "-w", str(tmp_path), str(source)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("hftune-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "hftune = hftune.cli.main:main" in archive.read(entry_points).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())

    def inside(folder: str, package: str, *patterns: str) -> set[str]:
        return {
            f"{package}/{path.relative_to(source / folder).as_posix()}"
            for pattern in patterns
            for path in (source / folder).rglob(pattern)
        }

    expected = inside("hftune", "hftune", "*.py", "py.typed", "templates/*")
    expected |= inside("recipes", "hftune/recipes", "*.py", "configs/*.yaml")
    expected |= inside("accelerate_configs", "hftune/accelerate_configs", "*.yaml")
    assert expected == names


def test_makefile_refuses_an_old_python(repository, tmp_path):
    """A python3 that is too old is named before anything is installed."""
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    run = subprocess.run(
        ["make", "test", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert "is Python 3.8.1, hftune needs Python 3.10 or newer: make PYTHON=" in run.stdout
    assert not (tmp_path / "venv").exists()


def test_no_machine_paths_in_the_repository(repository):
    tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True)
    here = [str(folder) + "/" for folder in (repository, Path.home())]
    for name in tracked.stdout.splitlines():
        path = repository / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(folder in text for folder in here), name
