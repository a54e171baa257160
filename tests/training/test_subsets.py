"""Nested subsets: what is in a small one, and what changes when the data do."""

from __future__ import annotations

import csv
import unicodedata

import numpy as np
import pytest

from hftune.training.subsets import nested_subset, sample_keys, subset_digest
from hftune.utils.errors import ConfigurationError, DataError

FRACTIONS = [step / 10 for step in range(1, 11)]


@pytest.fixture(scope="module")
def banking77(test_data):
    path = test_data / "classification" / "banking77" / "train.csv"
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row["text"] for row in rows], np.array([row["category"] for row in rows])


@pytest.fixture(scope="module")
def nsmc(test_data):
    path = test_data / "classification" / "nsmc" / "train.tsv"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
    rows = [row for row in rows if len(row) == 3]
    return [row[1] for row in rows], np.array([row[2] for row in rows])


@pytest.fixture(scope="module", params=["banking77", "nsmc"])
def real_data(request):
    return request.getfixturevalue(request.param)


def kept_of_old(texts, labels, seed: int, fraction: float = 0.1) -> float:
    """Part of an old subset that is in the new one once there is 10 % more data."""
    rows = np.random.default_rng(seed).permutation(len(texts))
    old_rows = np.sort(rows[: round(len(texts) / 1.1)])
    old_keys = sample_keys([texts[i] for i in old_rows], labels[old_rows], seed=seed)
    keys = sample_keys(texts, labels, seed=seed)
    old = set(old_keys[nested_subset(old_keys, labels[old_rows], fraction)].tolist())
    new = set(keys[nested_subset(keys, labels, fraction)].tolist())
    return len(old & new) / len(old)


def test_a_subset_holds_every_smaller_one(real_data):
    texts, labels = real_data
    keys = sample_keys(texts, labels, seed=42)
    subsets = [nested_subset(keys, labels, fraction) for fraction in FRACTIONS]
    for smaller, larger in zip(subsets[:-1], subsets[1:], strict=True):
        assert set(smaller.tolist()) < set(larger.tolist())
    for subset in subsets:
        assert subset.dtype == np.int64
        assert (np.diff(subset) > 0).all()
    assert subsets[-1].tolist() == list(range(len(texts)))


def test_classes_keep_their_proportions(real_data):
    texts, labels = real_data
    keys = sample_keys(texts, labels, seed=1)
    for fraction in FRACTIONS:
        chosen = labels[nested_subset(keys, labels, fraction)]
        for name in np.unique(labels):
            exact = fraction * (labels == name).sum()
            assert abs((chosen == name).sum() - exact) <= 0.5 + 1e-6


def test_new_data_push_out_few_of_the_old(nsmc, banking77):
    for seed in range(3):
        assert kept_of_old(*nsmc, seed=seed) >= 0.98
        # 77 classes of which a tenth is 13 samples: 1.3 more of them is 1 or 2.
        assert kept_of_old(*banking77, seed=seed) >= 0.95


def test_rows_in_another_order_give_the_same_samples(banking77):
    texts, labels = banking77
    order = np.random.default_rng(0).permutation(len(texts))
    keys = sample_keys(texts, labels, seed=7)
    shuffled = sample_keys([texts[i] for i in order], labels[order], seed=7)
    assert (shuffled == keys[order]).all()
    chosen = nested_subset(keys, labels, 0.3)
    chosen_shuffled = nested_subset(shuffled, labels[order], 0.3)
    assert set(order[chosen_shuffled].tolist()) == set(chosen.tolist())
    assert subset_digest(shuffled, chosen_shuffled) == subset_digest(keys, chosen)


def test_copies_have_keys_of_their_own():
    texts = ["a", "b", "a", "c", "a"]
    keys = sample_keys(texts, seed=0)
    assert len(set(keys.tolist())) == 5
    # The second copy has the same key wherever it stands.
    moved = sample_keys(["c", "a", "a", "b", "a"], seed=0)
    assert sorted(moved.tolist()) == sorted(keys.tolist())
    assert moved[[1, 2, 4]].tolist() == keys[[0, 2, 4]].tolist()
    assert sample_keys(["a", "b"], seed=0).tolist() == keys[:2].tolist()


def test_a_key_is_of_the_whole_content_and_the_seed():
    one = sample_keys(["ab"], ["c"], seed=0)
    assert one != sample_keys(["a"], ["bc"], seed=0)
    assert one != sample_keys(["ab"], ["d"], seed=0)
    assert one != sample_keys(["ab"], ["c"], seed=1)
    assert one == sample_keys(np.array(["ab"]), np.array(["c"]), seed=0)
    assert sample_keys([3], seed=-1) == sample_keys(np.array([3], np.int8), seed=-1)


def test_a_korean_text_has_one_key_in_both_its_forms():
    text = "아름답고 평화로운 마을"
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert sample_keys([decomposed], seed=5) == sample_keys([text], seed=5)


def test_keys_do_not_change_between_versions():
    # A plan that was written once must find its subsets again.
    assert sample_keys(["the card", "카드"], [0, 1], seed=42).tolist() == [
        16608359447512892323,
        123654541771041960,
    ]


def test_seeds_give_different_subsets(banking77):
    texts, labels = banking77
    one, other = (nested_subset(sample_keys(texts, seed=s), None, 0.1) for s in (0, 1))
    assert len(one) == len(other) == 1000
    assert len(set(one.tolist()) & set(other.tolist())) < 150


@pytest.mark.parametrize(
    ("size", "fraction", "expected"),
    [
        (5, 0.1, 1),  # 0.5
        (25, 0.1, 3),  # 2.5: Python's round gives 2
        (35, 0.1, 4),
        (100, 0.285, 29),  # 28.499999999999996 as floats multiply
        (3, 0.1, 1),  # never none
        (1000, 0.1 + 0.2, 300),
        (7, 1.0, 7),
    ],
)
def test_half_a_sample_is_rounded_up_and_no_class_is_lost(size, fraction, expected):
    keys = sample_keys(range(size + 40), seed=3)
    labels = ["small"] * size + ["other"] * 40
    assert (nested_subset(keys, labels, fraction) < size).sum() == expected
    assert len(nested_subset(keys[:size], None, fraction)) == expected


def test_the_digest_is_of_the_samples():
    keys = sample_keys(["a", "b", "c"], seed=0)
    assert subset_digest(keys, np.array([0, 2])) == subset_digest(keys, np.array([2, 0]))
    assert subset_digest(keys, np.array([0, 2])) != subset_digest(keys, np.array([0, 1]))
    assert len(subset_digest(keys, np.array([0, 2]))) == 16


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_fractions_that_are_none(fraction):
    keys = sample_keys(["a", "b"], seed=0)
    with pytest.raises(ConfigurationError, match=r"expected a number above 0 and at most 1"):
        nested_subset(keys, None, fraction)


def test_columns_of_other_lengths():
    with pytest.raises(DataError, match="a sample have 2, 3 values; expected one value a sample"):
        sample_keys(["a", "b"], [0, 1, 2], seed=0)
    with pytest.raises(DataError, match="2 samples have 3 labels; expected one each"):
        nested_subset(sample_keys(["a", "b"], seed=0), [0, 1, 2], 0.5)
