"""Imports go down the floors of the house only, and nothing light pulls in something heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hftune

# From the ground up; a module imports from its own room and from the floors below.
FLOORS = [
    {"utils"},
    {"configuration"},
    {"hub", "tracking"},
    {"callbacks"},
    {"training"},
    {"tasks"},
    {"cli", "recipes"},
]
# Rooms inside the floor of the tasks, from the ground up.
TASK_FLOORS = [
    {"weather"},
    {"aurora", "aardvark", "ranking", "summarization", "classification"},
]
HEAVY = {"torch", "transformers", "accelerate", "datasets", "xarray", "matplotlib", "yaml", "rich"}


def modules(repository: Path) -> dict[str, Path]:
    """Every module of the project by dotted name, recipes as ``hftune.recipes``."""
    found = {}
    for folder, package in (
        (repository / "hftune", "hftune"),
        (repository / "recipes", "hftune.recipes"),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Modules of hftune that a module names in its imports, wherever in the file they stand."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {target for target in found if target.split(".")[0] == "hftune"}


def floor(parts: list[str]) -> tuple[float, float, str]:
    """Floor, floor inside the tasks, and room of a module below ``hftune``."""
    level = next(i for i, rooms in enumerate(FLOORS) if parts[0] in rooms)
    room = parts[0]
    inside = -1.0
    if room == "tasks" and len(parts) > 1:
        room = parts[1]
        inside = next(i for i, rooms in enumerate(TASK_FLOORS) if room in rooms)
    return level, inside, room


def breaks_the_rule(importer: str, imported: str) -> bool:
    above, below = importer.split(".")[1:], imported.split(".")[1:]
    if not above or not below or below[0] not in set().union(*FLOORS):
        return False  # the package itself, which is lazy
    level, inside, room = floor(above)
    target_level, target_inside, target_room = floor(below)
    if (level, inside) == (target_level, target_inside):
        return room != target_room
    return (target_level, target_inside) > (level, inside)


def test_imports_go_down_only(repository):
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(repository).items()
        for target in sorted(imports(name, path))
        if breaks_the_rule(name, target)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_through_the_lazy_package(repository):
    """``from hftune import X`` inside hftune would hide an import upwards from the test above."""
    exported = set(hftune.__all__)
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(repository).items()
        if not name.startswith("hftune.recipes")
        for target in imports(name, path)
        if target.removeprefix("hftune.") in exported
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "wrong"),
    [
        ("hftune.utils.files", "hftune.configuration.resolve", True),
        ("hftune.training.trainer", "hftune.tasks.aurora.modeling_aurora", True),
        ("hftune.training.trainer", "hftune.callbacks.progress", False),
        ("hftune.tracking.report", "hftune.hub.card", True),
        ("hftune.tasks.aurora.modeling_aurora", "hftune.tasks.weather.fields", False),
        ("hftune.tasks.weather.fields", "hftune.tasks.aurora.modeling_aurora", True),
        ("hftune.tasks.aurora.modeling_aurora", "hftune.tasks.ranking.data_ranking", True),
        ("hftune.cli.audit", "hftune.tasks.weather.audit", False),
        ("hftune.recipes.aurora", "hftune.cli.main", True),
    ],
)
def test_the_rule(importer, imported, wrong):
    assert breaks_the_rule(importer, imported) is wrong


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded after running ``code``."""
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import hftune",
        "import hftune.cli.main; hftune.cli.main.main(['--help'])",
        "import hftune.utils.versions; hftune.utils.versions.check_versions()",
    ],
)
def test_light_things_load_nothing_heavy(code):
    assert not loaded_after(code) & HEAVY


def test_tracking_imports_no_torch(repository):
    names = [name for name in modules(repository) if name.startswith("hftune.tracking")]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert not loaded & {"torch", "transformers"}


@pytest.mark.parametrize("name", hftune.__all__)
def test_lazy_exports_exist(name):
    value = getattr(hftune, name)
    assert value.__name__ == name
    assert name in dir(hftune)


def test_type_checkers_see_the_same_names(repository):
    tree = ast.parse((repository / "hftune" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {f"{node.module}.{alias.asname}" for node in block.body for alias in node.names}
    (table,) = [n for n in ast.walk(tree) if isinstance(n, ast.Dict)]
    assert seen == {f"{m}.{n}" for m, names in ast.literal_eval(table).items() for n in names}


def test_unknown_name_has_a_suggestion():
    with pytest.raises(
        AttributeError, match="no attribute 'AurraConfig'. Did you mean 'AuroraConfig'"
    ):
        hftune.AurraConfig  # noqa: B018
