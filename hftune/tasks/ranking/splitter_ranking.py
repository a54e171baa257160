"""Splits images into a training, a validation and a test set: by image, never by pair.

The split of an image follows from a keyed hash of its name; images are moved only where the shares
of the tiers ask for it. So the order of the rows does not matter, and images that are added later
move few of the others.

Example:
    >>> splitter = DataSplitter(train_ratio=0.8, val_ratio=0.1, test_ratio=0.1, seed=42)
    >>> train_df, val_df, test_df = splitter.split(pandas.read_csv("data/metadata.csv", dtype=str))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas

from ...training.subsets import sample_keys
from ...utils.errors import ConfigurationError, DataError
from ...utils.terminal import say
from .table_rows_ranking import clean_text, missing_column
from .tables_ranking import ImageTable, default_ids

__all__ = ["SPLITS", "DataSplitter", "split_rows"]

SPLITS = ("train", "validation", "test")

_BINS = 10  # classes of equal size that numeric scores are cut into, at the most
_IN_BIN = 20  # images in such a class, at the least
_LARGE = 0.2  # of the smallest split: a group above it is placed by its size, not by its key
_TOTAL_WEIGHT = 0.5  # of the sizes of whole splits beside those of the classes in them
_LINE = np.array([2, 1, 0])  # keys of train are the largest, those of test the smallest


class DataSplitter:
    """Splits a table of images, the same way each time.

    Args:
        train_ratio, val_ratio, test_ratio (float): Shares of the images, from 0 and 1 in sum.
            Default to 0.8, 0.1 and 0.1.
        seed (int): Another seed gives another split. Defaults to 42.
        stratify_column (str or None): Column of which each value has these shares; numbers are cut
            into ten classes of equal size. None looks at nothing. Defaults to ``"tier"``.
        group_column (str or None): Column with what stays together in a split, such as the artist;
            an image without a value is on its own. Defaults to None.

    Raises:
        ConfigurationError: If the ratios are no shares.
    """

    def __init__(
        self,
        train_ratio: float = 0.8,
        val_ratio: float = 0.1,
        test_ratio: float = 0.1,
        seed: int = 42,
        stratify_column: str | None = "tier",
        group_column: str | None = None,
    ) -> None:
        self.train_ratio, self.val_ratio, self.test_ratio = train_ratio, val_ratio, test_ratio
        self.seed = seed
        self.stratify_column, self.group_column = stratify_column, group_column
        _check_ratios((train_ratio, val_ratio, test_ratio))

    def split(
        self, df: pandas.DataFrame
    ) -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
        """Splits a table.

        Args:
            df (DataFrame): With a column ``image_id``, ``filename`` or ``image_path``, and those of
                the splitter. Rows of one image stay together.

        Returns:
            The rows of the training, the validation and the test set, in the order and with the
            index and the columns that they have in ``df``.

        Raises:
            DataError: If columns are missing, or a split would be empty.
        """
        columns = [str(column) for column in df.columns]
        named = [name for name in ("image_id", "filename", "image_path") if name in columns]
        missing = [] if named else [("image_id", "filename", "image_path")]
        asked = (self.stratify_column, self.group_column)
        missing += [(name,) for name in asked if name is not None and name not in columns]
        if missing:
            raise DataError(
                "\n".join(missing_column("the table", wanted, columns) for wanted in missing)
            )
        ids = _texts(df, named[0])
        parts = _assign(
            ids if named[0] == "image_id" else default_ids(ids),
            [] if self.group_column is None else [_texts(df, self.group_column)],
            *_classes(
                None if self.stratify_column is None else _texts(df, self.stratify_column), len(df)
            ),
            (self.train_ratio, self.val_ratio, self.test_ratio),
            self.seed,
        )
        train, validation, test = (df.iloc[np.flatnonzero(parts == part)] for part in range(3))
        return train, validation, test


def split_rows(
    table: ImageTable,
    ratios: Sequence[float],
    seed: int,
    hashes: Sequence[str] | None = None,
    stratify: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits the rows of a table of images, as :class:`DataSplitter` does.

    Args:
        table (ImageTable): Its groups stay together.
        ratios (sequence of float): Shares of the training, the validation and the test set.
        seed (int): Another seed gives another split.
        hashes (sequence of str, *optional*): Of the bytes of each image; the same picture under two
            names stays together.
        stratify (bool): Whether each tier, or class of similar scores, has these shares. Defaults
            to True.

    Returns:
        Rows of the training, the validation and the test set: int64 arrays in increasing order.

    Raises:
        ConfigurationError: If the ratios are no shares.
        DataError: If a split would be empty.
    """
    _check_ratios(ratios)
    if not stratify or table.targets is None:
        values = None
    elif table.tiers:
        values = [table.tier_of(row) for row in range(len(table))]
    else:
        values = [repr(target) for target in table.targets.tolist()]
    together = [labels for labels in (table.groups, hashes) if labels is not None]
    parts = _assign(table.ids, together, *_classes(values, len(table)), ratios, seed)
    train, validation, test = (np.flatnonzero(parts == part) for part in range(3))
    return train, validation, test


def _check_ratios(ratios: Sequence[float]) -> None:
    named = dict(zip(("train_ratio", "val_ratio", "test_ratio"), ratios, strict=True))
    problems = [
        f"{name} {ratio}: expected a share from 0 to 1"
        for name, ratio in named.items()
        if not 0 <= ratio <= 1
    ]
    if not problems and not math.isclose(sum(ratios), 1, abs_tol=1e-6):
        problems = [
            f"{', '.join(f'{name} {ratio}' for name, ratio in named.items())}: their sum is "
            f"{sum(ratios):g}, expected 1"
        ]
    if problems:
        raise ConfigurationError(problems)


def _texts(df: pandas.DataFrame, column: str) -> list[str]:
    return [clean_text(value) for value in df[column].tolist()]


def _classes(values: Sequence[str] | None, rows: int) -> tuple[np.ndarray, list[str]]:
    """Number of each row's class, and what to call the classes; scores have no name."""
    if values is None:
        return np.zeros(rows, np.int64), []
    names, classes = np.unique(np.array(values, object), return_inverse=True)
    if len(names) <= _BINS:
        return classes, list(names)
    try:
        numbers = np.array(values, np.float64)
    except ValueError:
        return classes, list(names)
    bins = np.clip(rows // _IN_BIN, 1, _BINS)
    edges = np.quantile(numbers, np.arange(1, bins) / bins)
    return np.searchsorted(edges, numbers, side="right"), []


def _assign(
    ids: Sequence[str],
    together: Sequence[Sequence[str]],
    classes: np.ndarray,
    names: Sequence[str],
    ratios: Sequence[float],
    seed: int,
) -> np.ndarray:
    """Number of the split of each row.

    Args:
        ids (sequence of str): Names of the images.
        together (sequence of sequences of str): Rows with the same value in one of these stay
            together; an empty one says nothing.
        classes (int64 array ``[rows]``): Their shares are to be the ratios.
        names (sequence of str): Of the classes; empty if nobody knows them.
        ratios (sequence of float): Shares of the splits.
        seed (int): Of the hash.
    """
    if not len(ids):
        raise DataError("the table has no rows to split.")
    unit_of_row = _units([ids, *together])
    sizes = np.zeros((unit_of_row.max() + 1, classes.max() + 1), np.int64)
    np.add.at(sizes, (unit_of_row, classes), 1)
    # A unit keeps its key when images join it: it is that of the group, not of the images.
    groups = together[0] if together else [""] * len(ids)
    unique = {group or name: None for group, name in zip(groups, ids, strict=True)}
    key_of = dict(zip(unique, sample_keys(list(unique), seed=seed), strict=True))
    keys = np.full(len(sizes), np.iinfo(np.uint64).max)
    row_keys = np.array([key_of[g or n] for g, n in zip(groups, ids, strict=True)], np.uint64)
    np.minimum.at(keys, unit_of_row, row_keys)

    parts = _balanced(keys, sizes, np.asarray(ratios, np.float64))
    counts = np.array([sizes[parts == part].sum(axis=0) for part in range(3)])
    empty = [SPLITS[part] for part in range(3) if ratios[part] and not counts[part].any()]
    if empty:
        what = "images" if len(sizes) == len(ids) else "groups of images"
        raise DataError(
            f"the {' and the '.join(empty)} split would be empty: there are {len(sizes)} {what}. "
            "Expected more of them, or a ratio of 0."
        )
    absent = [
        f"{name!r} ({counts[:, i].sum()}) has no image in the {SPLITS[part]} split"
        for i, name in enumerate(names)
        for part in range(3)
        if ratios[part] and not counts[part, i]
    ]
    if absent:
        say(f"Too few images of a class for all splits: {'; '.join(absent)}.")
    return parts[unit_of_row]


def _units(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """Number of each row's unit: rows are in one if a value of theirs connects them."""
    unit = list(range(len(columns[0])))

    def root(row: int) -> int:
        while unit[row] != row:
            unit[row] = row = unit[unit[row]]
        return row

    for column in columns:
        first: dict[str, int] = {}
        for row, value in enumerate(column):
            if value:
                unit[root(row)] = root(first.setdefault(value, row))
    return np.unique([root(row) for row in range(len(unit))], return_inverse=True)[1]


def _balanced(keys: np.ndarray, sizes: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Split of each unit: by its key, then moved as long as that makes the shares better.

    Shares are better where the squares of what is missing, of each class and of all images, have a
    smaller sum. Large units have their place first, because to bring one of them elsewhere would
    take many moves at once.

    Args:
        keys (uint64 array ``[units]``): Hashes.
        sizes (int64 array ``[units, classes]``): Images of each class in a unit.
        ratios (float64 array ``[3]``): Shares of the splits.
    """
    wanted = ratios[:, None] * sizes.sum(axis=0)

    def distance(counts: np.ndarray) -> np.ndarray:
        total = (counts.sum(axis=-1) - wanted.sum(axis=-1)) ** 2
        return ((counts - wanted) ** 2).sum(axis=-1) + _TOTAL_WEIGHT * total

    def cost(counts: np.ndarray) -> np.ndarray:
        # An image of each class in each split counts more than a share, and less than the sizes.
        empty = ((counts == 0) & (wanted > 0)).sum(axis=-1)
        return distance(counts) + (10 + sizes.sum()) * empty

    place = keys / 2.0**64
    parts = np.where(place < ratios[2], 2, np.where(place < ratios[2] + ratios[1], 1, 0))
    images = sizes.sum(axis=1)
    limit = max(1, _LARGE * images.sum() * ratios[ratios > 0].min())
    large = np.flatnonzero(images > limit)
    counts = np.zeros(wanted.shape, np.int64)
    for unit in large[np.lexsort((keys[large], -images[large]))]:
        change = distance(counts + sizes[unit]) - distance(counts)
        parts[unit] = np.where(ratios > 0, change, np.inf).argmin()
        counts[parts[unit]] += sizes[unit]

    # Units of the same sizes are worth the same: a move is looked at once for all of them.
    kinds, kind = np.unique(sizes, axis=0, return_inverse=True)
    kind = kind.ravel()  # NumPy 2.0 gives it a second axis
    counts = np.array([sizes[parts == part].sum(axis=0) for part in range(3)])
    there = np.array([np.bincount(kind[parts == part], minlength=len(kinds)) for part in range(3)])
    small = kinds.sum(axis=1) <= limit
    all_kinds = np.ones(len(kinds), bool)
    # Large units move late, because small ones mend more exactly; holes are filled at the end.
    for measure, movable in ((distance, small), (distance, all_kinds), (cost, all_kinds)):
        while True:
            leave = measure(counts - kinds[:, None]) - measure(counts)  # [kinds, from]
            arrive = measure(counts + kinds[:, None]) - measure(counts)  # [kinds, to]
            change = leave[:, :, None] + arrive[:, None, :]
            can_leave = movable[:, None] & (there.T > 0)
            change[~can_leave[:, :, None] | np.eye(3, dtype=bool) | (ratios == 0)] = np.inf
            best, origin, target = np.unravel_index(change.argmin(), change.shape)
            if not change[best, origin, target] < -1e-6:
                break
            # Of the units that could move, the one whose key is nearest to the other split's.
            able = np.flatnonzero((kind == best) & (parts == origin))
            nearest = np.argmin if _LINE[target] < _LINE[origin] else np.argmax
            parts[able[nearest(keys[able])]] = target
            counts[origin] -= kinds[best]
            counts[target] += kinds[best]
            there[origin, best] -= 1
            there[target, best] += 1
    return parts
