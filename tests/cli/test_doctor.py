"""hftune doctor: what each check says, and that it never says too much."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hftune.cli import doctor
from hftune.cli.doctor import (
    GIB,
    Check,
    check_accelerate,
    check_disk,
    check_memory,
    check_packages,
    check_shared_memory,
    check_threads,
    check_tokens,
    verdict,
)

LOCAL = "compute_environment: LOCAL_MACHINE\nmixed_precision: 'no'\n"


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_this_machine_from_end_to_end(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    code = doctor.main(["--json"])
    text = capsys.readouterr().out
    checks = json.loads(text)
    assert "hf_abc" not in text and "0123456789abcdef" not in text
    assert code == int(any(check["status"] == "failure" for check in checks))
    found = {check["name"]: check for check in checks}
    assert found["Hugging Face"]["found"] == "present"
    assert found["torch"]["status"] == "ok"
    assert {"python", "bfloat16", "threads", "memory", "default config"} <= set(found)


def test_a_failure_is_exit_code_1_with_what_to_do(monkeypatch, capsys):
    failed = [
        Check("versions", "torch", "failure", "2.1.0 (≥ 2.6)", 'pip install -U "torch>=2.6"'),
        Check("machine", "threads", "warning", "9 of 2 cores", "export OMP_NUM_THREADS=2"),
        Check("machine", "memory", "ok", "8.0 GiB available"),
    ]
    monkeypatch.setattr(doctor, "run_checks", lambda: failed)
    monkeypatch.setenv("COLUMNS", "120")
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert 'pip install -U "torch>=2.6"' in text
    assert text.rstrip().endswith("1 failure and 1 warning")
    monkeypatch.setattr(doctor, "run_checks", lambda: failed[1:])
    assert doctor.main([]) == 0


def test_verdict():
    fine = Check("a", "b", "ok", "")
    assert verdict([fine, Check("a", "b", "info", "")]) == "everything is fine"
    assert verdict([fine, Check("a", "b", "warning", "")] * 2) == "2 warnings"


def test_old_and_missing_packages(monkeypatch):
    versions = {"torch": "2.5.0", "datasets": None, "microsoft-aurora": None}
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions.get(name, "99"))
    found = {check.name: check for check in check_packages()}
    assert found["torch"].status == found["datasets"].status == "failure"
    assert found["datasets"].found == "not installed (≥ 3.0)"
    assert found["microsoft-aurora"].status == "info"
    assert "hftune[weather]" in found["microsoft-aurora"].cure
    # Nothing else is looked at, because it would fail in ways that only distract.
    assert len(doctor.run_checks()) == len(found)


@pytest.mark.parametrize(("threads", "status"), [(1, "ok"), (2, "ok"), (3, "warning")])
def test_threads(threads, status):
    check = check_threads(threads, 2)
    assert check.status == status
    assert ("OMP_NUM_THREADS=2" in check.cure) is (status == "warning")


def test_memory():
    assert check_memory(16 * GIB).status == "ok"
    assert check_memory(3 * GIB).status == "warning"
    assert check_shared_memory(64 * 1024**2).status == "warning"
    assert "--shm-size" in check_shared_memory(64 * 1024**2).cure


@pytest.mark.parametrize(
    ("free", "status"), [(20 * GIB, "ok"), (5 * GIB, "warning"), (GIB // 2, "failure")]
)
def test_disk(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(doctor, "free_bytes", lambda folder: free)
    assert check_disk("home", tmp_path / "not" / "there", "free some").status == status


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert check_disk("home", tmp_path / "x", "free some").status == "failure"


def test_paths_are_shown_from_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_disk("home", tmp_path / "x", "").found.endswith(" at ~/x")


def test_token_file_that_others_can_read(monkeypatch, tmp_path):
    from huggingface_hub import constants

    token = tmp_path / "token"
    token.write_text("hf_secret")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(token))
    token.chmod(0o644)
    checks = check_tokens({})
    assert statuses(checks)["Hugging Face file"] == "warning"
    assert not any("hf_secret" in str(check) for check in checks)
    token.chmod(0o600)
    assert "Hugging Face file" not in statuses(check_tokens({}))


@pytest.mark.parametrize(
    ("text", "gpus", "status", "found"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n", 0, "failure",
         "starts one process only"),
        ("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n", 1, "failure",
         "leaves the GPU unused"),
        ("distributed_type: MULTI_GPU\nnum_processes: 8\nuse_cpu: false\n", 2, "failure",
         "there are 2 GPU(s)"),
        ("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n", 0, "warning",
         "used by every plain launch"),
        ("distributed_type: MULTI_GPU\nnum_processes: 8\nuse_cpu: false\n", 8, "warning",
         "used by every plain launch"),
        ("nonsense: 1\ndistributed_type: 'NO'\n", 0, "failure", "unknown keys"),
    ],
)  # fmt: skip
def test_default_accelerate_config(tmp_path, text, gpus, status, found):
    path = tmp_path / "default_config.yaml"
    path.write_text(LOCAL + text)
    (check,) = check_accelerate(path, {}, gpus)
    assert (check.status, found in check.found) == (status, True)
    assert "--config_file" in check.cure


def test_no_accelerate_config_and_ambient_variables():
    missing = Path("no-such-file.yaml")
    (check,) = check_accelerate(missing, {"ACCELERATE_LOG_LEVEL": "INFO", "PATH": "x"}, 0)
    assert check.status == "ok"
    _, ambient = check_accelerate(missing, {"ACCELERATE_USE_CPU": "1", "FSDP_VERSION": "2"}, 0)
    assert (ambient.status, ambient.found) == ("warning", "ACCELERATE_USE_CPU, FSDP_VERSION")
