"""Subsets of a data set that grow without changing: what is in a small one is in each larger one.

Samples are put in order by a keyed hash of their content, inside each class, and a subset takes the
first of them. Nothing depends on the order of the rows, and data that are added later push out few
of the samples that were in.

Example:
    >>> keys = sample_keys(texts, labels, seed=42)
    >>> tenth = nested_subset(keys, labels, 0.1)
    >>> fifth = nested_subset(keys, labels, 0.2)
    >>> set(tenth) <= set(fifth)
    True
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from ..utils.errors import ConfigurationError, DataError

__all__ = ["nested_subset", "sample_keys", "subset_digest"]

_SEEDS = 2**64


def sample_keys(*columns: Sequence[Any], seed: int) -> np.ndarray:
    """Returns a key for each sample, from its content alone.

    Args:
        columns (sequences): What makes a sample what it is, for example its text and its label: one
            value a sample, text or number. Text counts in its NFC form.
        seed (int): Another seed gives another order.

    Returns:
        uint64 array ``[samples]``. Copies of a sample have keys of their own, by their number among
        the copies.

    Raises:
        DataError: If the columns have different lengths.
    """
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise DataError(
            f"the columns that identify a sample have {', '.join(map(str, lengths))} values; "
            "expected one value a sample in each"
        )
    keys = np.empty(lengths[0], np.uint64)
    copies: dict[int, int] = {}
    for row, sample in enumerate(zip(*columns, strict=True)):
        values = [unicodedata.normalize("NFC", str(value)) for value in sample]
        # With the lengths, ("ab", "c") is not ("a", "bc").
        content = "".join(f"{len(value)}:{value}" for value in values)
        encoded = content.encode("utf-8", "surrogatepass")
        key = xxhash.xxh3_64_intdigest(encoded, seed % _SEEDS)
        copy = copies.get(key, 0)
        copies[key] = copy + 1
        if copy:
            key = xxhash.xxh3_64_intdigest(encoded + b"%d" % copy, seed % _SEEDS)
        keys[row] = key
    return keys


def nested_subset(
    keys: np.ndarray, labels: Sequence[Any] | np.ndarray | None, fraction: float
) -> np.ndarray:
    """Returns the samples of a fraction of the data, with the classes in their proportions.

    Args:
        keys (uint64 array ``[samples]``): From :func:`sample_keys`.
        labels (sequence ``[samples]``, *optional*): Class of each sample; without, all samples are
            of one class.
        fraction (float): Above 0, at most 1, of each class; half a sample is rounded up, and no
            class is left without a sample.

    Returns:
        int64 array ``[samples of the subset]``: indices in increasing order. Those of a smaller
        fraction are among those of a larger one.

    Raises:
        ConfigurationError: If the fraction is not above 0 and at most 1.
        DataError: If there are not as many labels as keys.
    """
    if not 0 < fraction <= 1:
        raise ConfigurationError(
            f"fraction {fraction}: expected a number above 0 and at most 1 (all data)"
        )
    if labels is None:
        classes = np.zeros(len(keys), np.int64)
    elif len(labels) != len(keys):
        raise DataError(f"{len(keys)} samples have {len(labels)} labels; expected one each")
    else:
        classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    order = np.lexsort((keys, classes))
    sizes = np.bincount(classes)
    # 0.1 + 0.2 and 0.285 * 100 must not fall below the half that they stand for.
    quotas = np.array([max(1, math.floor(fraction * size + 0.5 + 1e-9)) for size in sizes])
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(keys)) - np.repeat(starts, sizes)
    return np.sort(order[rank < np.repeat(quotas, sizes)])


def subset_digest(keys: np.ndarray, indices: np.ndarray) -> str:
    """Returns 16 hexadecimal digits that say which samples a subset has, in whatever order.

    Args:
        keys (uint64 array ``[samples]``): From :func:`sample_keys`.
        indices (integer array): Of the subset, from :func:`nested_subset`.
    """
    chosen = np.sort(np.asarray(keys, np.uint64)[indices]).astype("<u8")
    return xxhash.xxh3_64_hexdigest(chosen.tobytes())
