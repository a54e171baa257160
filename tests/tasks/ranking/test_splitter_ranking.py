"""Images are split by name and tier: always the same way, groups whole, the shares kept."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pandas
import pytest

from hftune.tasks.ranking.splitter_ranking import DataSplitter, split_rows
from hftune.tasks.ranking.tables_ranking import ImageTable, read_images
from hftune.utils.errors import ConfigurationError, DataError


def images(count: int, seed: int = 0, first: int = 0) -> pandas.DataFrame:
    draw = np.random.default_rng([seed, first])
    return pandas.DataFrame(
        {
            "image_id": [f"img_{i}" for i in range(first, first + count)],
            "filename": [f"{i}.jpg" for i in range(first, first + count)],
            "tier": draw.choice(list("SABC"), count, p=[0.1, 0.2, 0.3, 0.4]),
        },
        index=range(1000 + first, 1000 + first + count),
    )


def split_of(parts) -> dict[str, int]:
    return {name: number for number, part in enumerate(parts) for name in part["image_id"]}


@pytest.mark.parametrize("count", [100, 251, 1003])
@pytest.mark.parametrize("ratios", [(0.8, 0.1, 0.1), (0.6, 0.25, 0.15), (0.5, 0.5, 0)])
def test_shares_of_tiers_and_of_all_are_as_near_as_whole_numbers_allow(count, ratios):
    df = images(count)
    parts = DataSplitter(*ratios).split(df)
    assert sorted(split_of(parts)) == sorted(df.image_id)
    for part, ratio in zip(parts, ratios, strict=True):
        assert abs(len(part) - ratio * count) <= 1
        for tier, size in df.tier.value_counts().items():
            here = (part.tier == tier).sum()
            assert abs(here - ratio * size) <= 1 or here == 1
            assert here >= 1 or not ratio


def test_rows_keep_their_order_index_and_columns():
    df = images(50)
    parts = DataSplitter().split(df)
    for part in parts:
        assert list(part.columns) == list(df.columns)
        assert part.index.is_monotonic_increasing
        pandas.testing.assert_frame_equal(part, df.loc[part.index])


def test_order_of_rows_does_not_matter_but_the_seed_does():
    df = images(300)
    split = split_of(DataSplitter(seed=1).split(df))
    shuffled = df.sample(frac=1, random_state=0)
    assert split_of(DataSplitter(seed=1).split(shuffled)) == split
    other = split_of(DataSplitter(seed=2).split(df))
    assert sum(split[name] != other[name] for name in split) > 60


def test_the_split_is_the_same_in_each_version():
    train, validation, test = DataSplitter().split(images(40))
    assert validation.image_id.tolist() == ["img_1", "img_2", "img_17", "img_29", "img_30"]
    assert test.image_id.tolist() == ["img_3", "img_12", "img_15", "img_27", "img_39"]


@pytest.mark.parametrize("added", [1, 10, 500])
def test_added_images_move_few_others(added):
    df = images(1000)
    before = split_of(DataSplitter().split(df))
    after = split_of(DataSplitter().split(pandas.concat([images(added, 1, 1000), df])))
    assert sum(before[name] != after[name] for name in before) <= 5 + added // 20


def test_names_in_either_form_of_unicode_are_split_alike():
    composed = images(100).assign(image_id=[f"꽃 {i}" for i in range(100)])
    decomposed = composed.assign(
        image_id=[unicodedata.normalize("NFD", name) for name in composed.image_id]
    )
    for one, other in zip(
        DataSplitter().split(composed), DataSplitter().split(decomposed), strict=True
    ):
        assert one.index.tolist() == other.index.tolist()


def test_files_name_the_images_where_there_are_no_ids():
    df = images(100)
    by_file = DataSplitter().split(df.drop(columns="image_id"))
    as_path = df.drop(columns=["image_id", "filename"]).assign(image_path="x/" + df.filename)
    stems = DataSplitter().split(df.assign(image_id=[Path(name).stem for name in df.filename]))
    for one, other, third in zip(by_file, DataSplitter().split(as_path), stems, strict=True):
        assert one.index.tolist() == other.index.tolist() == third.index.tolist()


def test_rows_of_one_image_stay_together():
    df = images(60)
    twice = pandas.concat([df, df.iloc[::3]])
    parts = DataSplitter().split(twice)
    assert sum(len(part) for part in parts) == 80
    assert not set(parts[0].image_id) & set(parts[1].image_id)
    assert not set(parts[0].image_id) & set(parts[2].image_id)
    assert not set(parts[1].image_id) & set(parts[2].image_id)


def test_scores_are_spread_over_the_splits():
    df = images(400).assign(score=np.random.default_rng(0).lognormal(size=400))
    parts = DataSplitter(stratify_column="score").split(df)
    assert [len(part) for part in parts] == [320, 40, 40]
    tenths = pandas.qcut(df.score, 10, labels=False)
    for part in parts[1:]:
        assert tenths[part.index].value_counts().tolist() == [4] * 10


def test_without_stratification_only_the_sizes_count():
    parts = DataSplitter(stratify_column=None).split(images(100)[["image_id"]])
    assert [len(part) for part in parts] == [80, 10, 10]


def test_tiers_with_too_few_images_are_said(capsys):
    df = images(40).assign(tier=["S"] + ["A"] * 2 + ["B"] * 37)
    parts = DataSplitter().split(df)
    assert "S" in set(parts[0].tier) and "A" in set(parts[0].tier)
    said = " ".join(capsys.readouterr().err.split())
    assert "Too few images of a class for all splits: 'A' (2) has no image in the " in said
    assert "'S' (1) has no image in the validation split" in said
    assert "'S' (1) has no image in the test split" in said
    assert "'B'" not in said


# Groups


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "artists"), [(200, 40), (2000, 100), (2000, 1500)])
def test_groups_stay_together_and_shares_are_kept(seed, count, artists):
    draw = np.random.default_rng(seed)
    df = images(count, seed)
    sizes = draw.lognormal(sigma=1.0, size=artists)
    df["artist"] = [f"artist {i}" for i in draw.choice(artists, count, p=sizes / sizes.sum())]
    parts = DataSplitter(seed=seed, group_column="artist").split(df)
    assert split_of(parts).keys() == set(df.image_id)
    assert sum(part.artist.nunique() for part in parts) == df.artist.nunique()
    for part, ratio in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(part) / count - ratio) < 0.03
        for tier, size in df.tier.value_counts().items():
            assert abs((part.tier == tier).sum() - ratio * size) < max(3, 0.04 * size)
    shuffled = DataSplitter(seed=seed, group_column="artist").split(df[::-1])
    assert split_of(shuffled) == split_of(parts)


def test_a_large_group_goes_where_there_is_room():
    df = images(100).assign(artist=["many"] * 70 + [f"artist {i // 3}" for i in range(30)])
    df["tier"] = list("SABC") * 25
    for seed in range(10):
        parts = DataSplitter(seed=seed, group_column="artist").split(df)
        assert "many" in set(parts[0].artist)
        assert all(
            abs(len(part) - size) <= 2 for part, size in zip(parts, (80, 10, 10), strict=True)
        )


def test_images_without_a_group_are_on_their_own():
    df = images(100).assign(artist=["a", "b"] * 10 + [None] * 40 + [""] * 40)
    parts = DataSplitter(group_column="artist").split(df)
    assert all(abs(len(part) - size) <= 1 for part, size in zip(parts, (80, 10, 10), strict=True))


def test_images_that_join_a_group_follow_it():
    df = images(300).assign(artist=[f"artist {i % 60}" for i in range(300)])
    more = images(5, 3, 300).assign(artist="artist 7")
    before = split_of(DataSplitter(group_column="artist").split(df))
    after = split_of(DataSplitter(group_column="artist").split(pandas.concat([df, more])))
    assert sum(before[name] != after[name] for name in before) <= 30
    assert len({after[name] for name in more.image_id}) == 1


def test_too_few_groups():
    df = images(30).assign(artist=["a"] * 15 + ["b"] * 15)
    with pytest.raises(DataError) as caught:
        DataSplitter(group_column="artist").split(df)
    assert str(caught.value).endswith(
        " split would be empty: there are 2 groups of images. Expected more of them, or a ratio "
        "of 0."
    )


# Wrong settings and tables


def test_ratios_that_are_no_shares():
    with pytest.raises(ConfigurationError) as caught:
        DataSplitter(train_ratio=1.2, val_ratio=-0.1, test_ratio=float("nan"))
    assert caught.value.problems == (
        "train_ratio 1.2: expected a share from 0 to 1",
        "val_ratio -0.1: expected a share from 0 to 1",
        "test_ratio nan: expected a share from 0 to 1",
    )
    with pytest.raises(ConfigurationError) as caught:
        DataSplitter(train_ratio=0.8, val_ratio=0.2)
    assert str(caught.value) == (
        "train_ratio 0.8, val_ratio 0.2, test_ratio 0.1: their sum is 1.1, expected 1"
    )
    DataSplitter(0.7, 0.2, 0.1)  # whose sum is 0.9999999999999999


def test_missing_columns_are_named_together():
    df = pandas.DataFrame({"file_name": ["a.jpg"], "Tier": ["S"], "artists": ["x"]})
    with pytest.raises(DataError) as caught:
        DataSplitter(group_column="artist").split(df)
    found = "its columns are 'file_name', 'Tier', 'artists'. Did you mean"
    assert str(caught.value).split("\n") == [
        f"the table has no column 'image_id' or 'filename' or 'image_path'; {found} 'file_name'?",
        f"the table has no column 'tier'; {found} 'Tier'?",
        f"the table has no column 'artist'; {found} 'artists'?",
    ]


def test_tables_that_are_too_small():
    with pytest.raises(DataError, match="^the table has no rows to split.$"):
        DataSplitter().split(images(0))
    with pytest.raises(DataError, match="split would be empty: there are 2 images."):
        DataSplitter(stratify_column=None).split(images(2))


# Tables of images


def table(count: int, **more) -> ImageTable:
    df = images(count)
    targets = np.array(["CBAS".index(tier) for tier in df.tier], np.float64)
    paths = tuple(Path(name) for name in df.filename)
    return ImageTable(tuple(df.image_id), paths, targets, ("S", "A", "B", "C"), **more)


def test_rows_of_a_table_are_split_as_a_data_frame():
    parts = DataSplitter(seed=3).split(images(200))
    rows = split_rows(table(200), (0.8, 0.1, 0.1), 3)
    for part, numbers in zip(parts, rows, strict=True):
        assert numbers.dtype == np.int64
        assert (part.index - 1000).tolist() == numbers.tolist()


def test_the_same_picture_stays_together_across_groups():
    names = [f"artist {i // 2}" for i in range(200)]
    hashes = [f"{i}" for i in range(200)]
    for i in range(1, 30):  # the second picture of an artist is the first one of the next
        hashes[2 * i] = hashes[2 * i - 1]
    rows = split_rows(table(200, groups=tuple(names)), (0.8, 0.1, 0.1), 0, hashes)
    assert [len(part) for part in rows] == [160, 20, 20]
    assert len({int(row in rows[0]) for row in range(60)}) == 1
    for part in rows:
        for other in rows:
            if other is not part:
                assert not {names[row] for row in part} & {names[row] for row in other}
                assert not {hashes[row] for row in part} & {hashes[row] for row in other}


def test_tables_by_score_and_without_targets():
    by_tier = table(200)
    score = ImageTable(by_tier.ids, by_tier.paths, np.arange(200.0))
    rows = split_rows(score, (0.8, 0.1, 0.1), 0)
    assert [np.histogram(part, 10, (0, 200))[0].tolist() for part in rows] == [
        [16] * 10, [2] * 10, [2] * 10
    ]  # fmt: skip
    unknown = ImageTable(by_tier.ids, by_tier.paths)
    plain = split_rows(unknown, (0.8, 0.1, 0.1), 0)
    assert [len(part) for part in plain] == [160, 20, 20]
    unstratified = split_rows(by_tier, (0.8, 0.1, 0.1), 0, stratify=False)
    assert [part.tolist() for part in unstratified] == [part.tolist() for part in plain]


def test_websites(test_data):
    folder = test_data / "ranking" / "websites"
    websites = read_images(folder / "metadata.csv", folder)
    parts = [websites.select(rows) for rows in split_rows(websites, (0.6, 0.2, 0.2), 42)]
    assert [part.counts() for part in parts] == [
        dict.fromkeys("SABC", 15), dict.fromkeys("SABC", 5), dict.fromkeys("SABC", 5)
    ]  # fmt: skip
    frames = DataSplitter(0.6, 0.2, 0.2).split(pandas.read_csv(folder / "metadata.csv"))
    assert [tuple(frame.image_id) for frame in frames] == [part.ids for part in parts]
