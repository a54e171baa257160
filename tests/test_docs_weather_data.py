"""The snippets of docs/weather_data.md run, one after the other."""

import re


def test_snippets(repository, tmp_path, monkeypatch):
    from hftune.cli.main import main

    monkeypatch.chdir(tmp_path)
    text = (repository / "docs" / "weather_data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["bash", *["python"] * 5]
    command = blocks[0][1].partition("#")[0].split()
    assert command[0] == "hftune" and main(command[1:]) == 0
    names: dict = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/weather_data.md", "exec"), names)
    assert names["fields"].layout.channels[0] == "2t"
    assert names["batch"]["fields"].shape[:2] == (8, 2)


def test_documented_messages_are_real(repository):
    text = (repository / "docs" / "weather_data.md").read_text(encoding="utf-8")
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in (repository / "hftune/tasks/weather").glob("*.py")
    )
    for part in ("It is a ZIP archive", "two grids: ", "has no level ", "merge ERA5 and ERA5T",
                 "(a curvilinear or projected grid)", "no time lies within "):  # fmt: skip
        assert part in text and part in source
