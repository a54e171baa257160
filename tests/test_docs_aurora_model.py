"""The snippets of docs/aurora_model.md run, one after the other."""

import re

import pytest


def test_snippets(repository, tmp_path, monkeypatch):
    pytest.importorskip("aurora", reason="microsoft-aurora is not installed")
    import torch

    from hftune.cli.main import main

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    text = (repository / "docs" / "aurora_model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["bash", *["python"] * 6]
    command = blocks[0][1].split()
    assert command[0] == "hftune" and main(command[1:]) == 0
    names: dict = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/aurora_model.md", "exec"), names)
    assert names["output"].prediction.shape[:3] == (2, 2, 6)
    assert names["config"].surf_vars == ["2t", "10u", "10v", "msl"]
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_every_variant_and_preset_is_in_the_page(repository):
    from hftune.tasks.aurora.variants_aurora import VARIANTS

    text = (repository / "docs" / "aurora_model.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in VARIANTS)
