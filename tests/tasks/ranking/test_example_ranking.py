"""The example has a known order that is seen in the pixels, and is written once, whole."""

from __future__ import annotations

import csv
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hftune.tasks.ranking import example_ranking
from hftune.tasks.ranking.example_ranking import draw_scene, write_example
from hftune.tasks.ranking.image_files import inspect_images
from hftune.tasks.ranking.tables_ranking import ImageTable, read_images
from hftune.utils.errors import ConfigurationError


@pytest.fixture(scope="module")
def metadata(tmp_path_factory) -> Path:
    return write_example(tmp_path_factory.mktemp("example"), 120, 64)


@pytest.fixture(scope="module")
def table(metadata) -> ImageTable:
    return read_images(metadata, metadata.parent)


def files(metadata: Path) -> dict[str, bytes]:
    paths = sorted(path for path in metadata.parent.rglob("*") if path.is_file())
    return {str(path.relative_to(metadata.parent)): path.read_bytes() for path in paths}


def accuracy(values: list[float], table: ImageTable) -> float:
    """Share of pairs whose better image has the larger value."""
    values = np.asarray(values)
    better = table.targets[:, None] > table.targets
    return float((values[:, None] > values)[better].mean())


def test_it_is_a_table_of_readable_images(metadata, table):
    with open(metadata, encoding="utf-8") as stream:
        assert list(csv.DictReader(stream))[7].keys() == {"image_id", "filename", "tier"}
    assert table.counts() == {"S": 30, "A": 30, "B": 30, "C": 30}
    facts = inspect_images(table.paths)
    assert {(fact.width, fact.height, fact.mode) for fact in facts} == {(64, 64, "RGB")}
    assert len({fact.sha256 for fact in facts}) == 120


def test_the_tier_is_in_the_detail_and_not_in_the_content(table):
    def detail(path: Path) -> float:
        grey = np.asarray(Image.open(path).convert("L"), np.float64)
        return float(np.abs(np.diff(grey)).mean() / grey.std())

    def colour(path: Path, channel: int) -> float:
        return float(np.asarray(Image.open(path), np.float64)[:, :, channel].mean())

    assert accuracy([detail(path) for path in table.paths], table) > 0.75
    for channel in range(3):
        told = accuracy([colour(path, channel) for path in table.paths], table)
        assert 0.38 < told < 0.62


def test_the_tier_is_not_in_the_size_of_the_file(table):
    assert {path.stat().st_size for path in table.paths} == {3 * 64 * 64}


def test_scenes_differ(table):
    small = np.stack([
        np.asarray(Image.open(path).resize((8, 8)), np.float64).ravel() for path in table.paths
    ])  # fmt: skip
    apart = np.linalg.norm(small[:, None] - small, axis=2) / np.sqrt(small.shape[1])
    assert apart[~np.eye(120, dtype=bool)].min() > 8
    assert np.median(apart) > 50


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    one = write_example(tmp_path / "one", 8, 40)
    other = write_example(tmp_path / "other", 8, 40)
    assert one.parent.name == other.parent.name
    assert files(one) == files(other)
    assert len(files(one)) == 9
    changed = write_example(tmp_path / "one", 8, 40, seed=1)
    assert changed.parent != one.parent
    assert not set(files(changed).values()) & set(files(one).values())


def test_an_example_that_is_there_is_left_alone(tmp_path, monkeypatch):
    first = write_example(tmp_path, 8, 40)
    before = {path: path.stat().st_mtime_ns for path in first.parent.rglob("*")}
    assert write_example(tmp_path, 8, 40) == first
    assert {path: path.stat().st_mtime_ns for path in first.parent.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == [first.parent.name]


def test_an_interrupted_example_is_not_taken_for_whole(tmp_path, monkeypatch):
    def draw_some(draw, size, left=[5]):  # noqa: B006
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return draw_scene(draw, size)

    monkeypatch.setattr(example_ranking, "draw_scene", draw_some)
    with pytest.raises(KeyboardInterrupt):
        write_example(tmp_path, 8, 40)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(files(write_example(tmp_path, 8, 40))) == 9


def test_two_processes_may_write_it_at_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        places = pool.starmap(write_example, [(tmp_path, 12, 40)] * 4)
    assert len(set(places)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [places[0].parent.name]
    assert len(files(places[0])) == 13


def test_examples_that_are_too_small(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        write_example(tmp_path, 3, 16)
    assert str(caught.value) == (
        "an example of 3 images of 16 pixels: expected at least 4 images of at least 32 pixels"
    )
