"""Packages that declare callbacks, as pip leaves them on the path, without waiting for pip."""

from __future__ import annotations

from pathlib import Path


def declare(
    folder: Path, package: str, entries: dict[str, str], modules: dict[str, str], version="1.0"
) -> None:
    """Writes modules and the metadata of a package that declares callbacks under names."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = "\n".join(f"{name} = {target}" for name, target in entries.items())
    (info / "entry_points.txt").write_text(f"[hftune.callbacks]\n{lines}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def declare_probes(folder: Path) -> None:
    """Writes the package ``hftune-probes``: a callback for every case."""
    targets = {
        "probe": "Probe", "unresolved": "unresolved", "needs": "needs", "raises": "raises",
        "wrong_result": "wrong_result", "singleton": "singleton", "no_callback": "NoCallback",
        "fails": "Fails", "counter": "Counter",
    }  # fmt: skip
    entries = {name: f"hftune_test_probes:{target}" for name, target in targets.items()}
    declare(folder, "hftune-probes", entries, {"hftune_test_probes": PROBES})


PROBES = '''
from __future__ import annotations
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NewType
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from hftune.callbacks.state import StatefulCallback
if TYPE_CHECKING:
    from nowhere import Unknown

Name = NewType("Name", str)

class Probe(TrainerCallback):
    """Keeps what it is given."""
    def __init__(
        self,
        url: str = "",
        rate: float = 0.1,
        count: int | None = None,
        on: bool = False,
        mode: Literal["fast", "slow"] = "fast",
        names: Sequence[str] = (),
        levels: list[float] = (),
        table: Mapping[str, float] | None = None,
        path: Path | None = None,
        label: Name = "",
        open=None,
    ):
        self.given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}

def unresolved(count: Unknown = 1):
    probe = Probe()
    probe.count = count
    return probe

def needs(url, token_name, *, step: int = 3, **more):
    probe = Probe()
    probe.given = {"url": url, "token_name": token_name, "step": step, **more}
    return probe

def wrong_result():
    return 3

def raises(limit: int = 3):
    raise OSError(f"no limit {limit}")

_same = Probe()
def singleton():
    return _same

class NoCallback:
    pass

class Fails(TrainerCallback):
    """Counts steps, fails at one of them."""
    def __init__(self, step: int = 2, event: str = "on_step_end", process: int = 0):
        self.step, self.process, self.calls = step, process, 0
        setattr(type(self), event, lambda self, *a, **k: self.count(*a, **k))
    def count(self, args, state, control, **kwargs):
        self.calls += 1
        if state.global_step >= self.step and args.process_index == self.process:
            raise KeyError("rouge\\u00e9")

class Counter(StatefulCallback):
    """Counts steps over resumes."""
    state_name = "counter"
    def __init__(self, fail: str = ""):
        self.steps, self.fail = 0, fail
    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
    def state_dict(self):
        if self.fail:
            raise OSError(28, "No space left on device") if self.fail == "disk" else KeyError("bug")
        return {"steps": self.steps}
    def load_state_dict(self, state):
        self.steps = state["steps"]
'''
