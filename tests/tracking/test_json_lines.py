"""Append-only files: whole lines whatever happens to the writer or the disk."""

import json
import math
import os
import resource
import signal

import pytest
from processes import finish, run_alone, start

from hftune.tracking.json_lines import JsonLines, from_number, read_lines, to_number


def values(path, begin=0):
    return [value for _, _, value in read_lines(path, begin)]


def test_lines_and_where_they_begin(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    lines = JsonLines(path)
    for number in range(3):
        lines.append({"n": number, "text": "요약\n둘"})
    lines.close()
    lines.append({"n": 3})
    found = list(read_lines(path))
    assert [value["n"] for *_, value in found] == [0, 1, 2, 3]
    assert found[1][2]["text"] == "요약\n둘"
    raw = path.read_bytes()
    for begin, following, value in found:
        assert json.loads(raw[begin:following]) == value
    assert values(path, found[2][0]) == [value for *_, value in found[2:]]
    assert values(tmp_path / "missing.jsonl") == []


def test_a_torn_end_takes_no_other_line_with_it(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "te')
    assert [v["n"] for v in values(path)] == [1]  # the end may still be being written
    JsonLines(path).append({"n": 3})
    assert [v["n"] for v in values(path)] == [1, 3]
    path.write_bytes(path.read_bytes() + b"[1, 2]\n\xff\xfe\n")
    JsonLines(path).append({"n": 4})
    assert [v["n"] for v in values(path)] == [1, 3, 4]


def test_16_processes_write_1000_lines_each(tmp_path):
    path = tmp_path / "lines.jsonl"

    def work(writer):
        lines = JsonLines(path)
        for number in range(1000):
            lines.append({"writer": writer, "number": number, "filler": "x" * (number % 97)})

    children = [start(lambda w=w: work(w)) for w in range(16)]
    assert [finish(child) for child in children] == [0] * 16
    found = {(v["writer"], v["number"]) for v in values(path)}
    assert len(found) == 16_000 and len(path.read_bytes().splitlines()) == 16_000


def test_a_full_disk_delays_lines_and_loses_none(tmp_path):
    path = tmp_path / "lines.jsonl"

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        lines, failed = JsonLines(path), 0
        for number in range(40):
            try:
                lines.append({"number": number, "filler": "x" * 40})
            except OSError:
                failed += 1
        assert failed > 10 and path.stat().st_size == 1000  # the last line is cut
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        lines.append({"number": 40})

    assert run_alone(work) == 0
    assert [v["number"] for v in values(path)] == list(range(41))


@pytest.mark.parametrize("number", [0.1, -1e300, 5, math.inf, -math.inf, math.nan])
def test_numbers(tmp_path, number):
    path = tmp_path / "lines.jsonl"
    JsonLines(path).append({"value": from_number(number)})
    json.loads(path.read_text(), parse_constant=pytest.fail)  # JSON as others read it
    [line] = values(path)
    assert to_number(line["value"]) == number or math.isnan(number)
    assert math.isnan(to_number(line["value"])) == math.isnan(number)


def test_sync_reaches_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.sync()
    assert synced == []
    lines.append({})
    lines.sync()
    assert len(synced) == 1
