"""Tables of images to be ranked, and of comparisons between them.

A table of images has a row an image: its file and its tier or score. It is read strictly and as
text, so that an image called ``NA`` or ``007`` keeps its name; what cannot be meant is an error
that names the lines, all of them at once.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas

from ...utils.errors import SHOWN, ConfigurationError, DataError, did_you_mean, listed
from ...utils.terminal import say
from .image_files import IMAGE_SUFFIXES, FileFinder
from .table_rows_ranking import (
    Problems,
    Rows,
    clean_text,
    missing_column,
    read_rows,
)

__all__ = [
    "TIER_LETTERS",
    "Comparisons",
    "ImageTable",
    "TableError",
    "check_duplicates",
    "default_ids",
    "images_of_comparisons",
    "read_comparisons",
    "read_images",
    "require_pairs",
]

TIER_LETTERS = ("S", "A", "B", "C", "D", "E", "F")
"""Tiers whose order is known, best first."""

_SPELLINGS = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))


class TableError(DataError):
    """A table of images with problems.

    Args:
        text (str): All of them.
        paths (sequence of Path): Files of its images that are there.
    """

    def __init__(self, text: str, paths: Sequence[Path] = ()) -> None:
        super().__init__(text)
        self.paths = tuple(paths)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTable:
    """Images, each with its place in the ranking where that is known.

    Attributes:
        ids (tuple of str): Names, no two the same.
        paths (tuple of Path): Their files.
        targets (float64 array ``[images]`` or None): Larger is better: the tier counted from the
            worst, which is 0, or the numeric score. None where only comparisons are known.
        tiers (tuple of str): Names of the tiers, best first; empty where scores rank the images.
        scores (float64 array ``[images]`` or None): Numeric scores, if there are any.
        groups (tuple of str or None): What belongs together in a split, such as the artist; empty
            where an image is on its own.
    """

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: np.ndarray | None = None
    tiers: tuple[str, ...] = ()
    scores: np.ndarray | None = None
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int] | np.ndarray) -> ImageTable:
        """Returns the table of some rows, in their order.

        Args:
            rows (sequence of int): Numbers of the rows.
        """
        rows = np.asarray(rows, np.int64)
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            paths=tuple(self.paths[row] for row in rows),
            targets=None if self.targets is None else self.targets[rows],
            scores=None if self.scores is None else self.scores[rows],
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows),
        )

    def tier_of(self, row: int) -> str:
        """Returns the name of an image's tier; empty where the table has no tiers."""
        if not self.tiers or self.targets is None:
            return ""
        return self.tiers[len(self.tiers) - 1 - int(self.targets[row])]

    def counts(self) -> dict[str, int]:
        """Returns the number of images by tier, best first; tiers without an image count 0."""
        counted = Counter(self.tier_of(row) for row in range(len(self)))
        return {tier: counted[tier] for tier in self.tiers}


@dataclasses.dataclass(frozen=True, eq=False)
class Comparisons:
    """What people said when they were shown two images.

    Attributes:
        images (int64 array ``[comparisons, 2]``): Rows of a table of images.
        votes (float64 array ``[comparisons, 2]``): Votes for the one and for the other; a tie has
            as many for both.
    """

    images: np.ndarray
    votes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def within(self, rows: Sequence[int] | np.ndarray) -> Comparisons:
        """Returns the comparisons of which both images are among some rows.

        Args:
            rows (sequence of int): Numbers of rows of the table, none twice.

        Returns:
            Comparisons between the images of ``table.select(rows)``.
        """
        rows = np.asarray(rows, np.int64)
        size = 1 + max(self.images.max(initial=-1), rows.max(initial=-1))
        place = np.full(size, -1, np.int64)
        place[rows] = np.arange(len(rows))
        images = place[self.images]
        inside = (images >= 0).all(axis=1)
        return Comparisons(images[inside], self.votes[inside])


def read_images(
    metadata: str | Path | pandas.DataFrame,
    image_dir: str | Path,
    *,
    tiers: Sequence[str] | None = None,
    rank_by: str | None = None,
    group_column: str | None = None,
) -> ImageTable:
    """Reads a table of images.

    Args:
        metadata (path or DataFrame): With the columns ``filename`` or ``image_path``, ``tier``
            and/or ``score``, and ``image_id``, which may be left out: the name of the file without
            its suffix then. Files are ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        image_dir (path): Folder of the images, or the one with ``images/`` in it; absolute names
            are taken as they are.
        tiers (sequence of str, *optional*): All tiers, best first. Without, those of
            :data:`TIER_LETTERS` that the table has. Give the tiers of the training table to read
            other tables: their targets are the same then.
        rank_by (str, *optional*): ``"tier"`` or ``"score"``. Defaults to the tier if there is one.
        group_column (str, *optional*): Column with what belongs together, such as the artist.

    Raises:
        ConfigurationError: If ``tiers`` or ``rank_by`` cannot be meant.
        DataError: With all problems of the table, or of its columns if some are missing.

    Example:
        >>> table = read_images("data/metadata.csv", "data/images")
        >>> table.counts()
        {'S': 25, 'A': 25, 'B': 25, 'C': 25}
    """
    if rank_by not in (None, "tier", "score"):
        raise ConfigurationError(f"rank_by {rank_by!r}: expected 'tier' or 'score'")
    tiers = None if tiers is None else _checked_tiers(tiers)
    rows = read_rows(metadata, "metadata")
    missing = []
    if not (file_column := _first_of(("filename", "image_path"), rows)):
        missing.append(missing_column(rows.name, ("filename", "image_path"), rows.columns))
    ranked_by = _first_of((rank_by,) if rank_by else ("tier", "score"), rows)
    if not ranked_by:
        wanted = (rank_by,) if rank_by else ("tier", "score")
        missing.append(missing_column(rows.name, wanted, rows.columns))
    if group_column is not None and group_column not in rows.columns:
        missing.append(missing_column(rows.name, (group_column,), rows.columns))
    if missing:
        raise DataError("\n".join(missing))

    problems = Problems(rows)
    files = rows.columns[file_column]
    ids = rows.columns.get("image_id") or default_ids(files)
    problems.empty(file_column, files)
    if "image_id" in rows.columns:
        problems.empty("image_id", ids)
    problems.twice("image_id", ids)
    paths = _find_images(files, image_dir, problems)
    problems.twice("file", ["" if path is None else str(path) for path in paths])
    scores = None
    if "score" in rows.columns:
        needed = problems if ranked_by == "score" else None
        scores = _read_scores(rows, needed)
    if ranked_by == "tier":
        values = rows.columns["tier"]
        problems.empty("tier", values)
        tiers = tiers or _known_tiers(values, rows)
        targets = _tier_targets(values, tiers, problems)
    else:
        tiers, targets = (), scores
    try:
        problems.raise_if_any()
    except DataError as error:
        raise TableError(str(error), [path for path in paths if path is not None]) from None
    groups = None if group_column is None else tuple(rows.columns[group_column])
    return ImageTable(tuple(ids), tuple(paths), targets, tiers, scores, groups)


def read_comparisons(source: str | Path | pandas.DataFrame, table: ImageTable) -> Comparisons:
    """Reads comparisons between the images of a table.

    Args:
        source (path or DataFrame): With the columns ``image_1`` and ``image_2`` (ids or file names,
            with or without suffix) and either ``votes_1`` and ``votes_2`` or ``winner``
            (``image_1``, ``image_2``, ``tie``, or the winner's name).
        table (ImageTable): The images.

    Returns:
        All comparisons in their order; pairs that come again are kept.

    Raises:
        DataError: With all problems of the table, or of its columns if some are missing.
    """
    rows = _read_comparison_rows(source)
    problems = Problems(rows)
    known = _names_of_images(table)
    images = np.zeros((len(rows), 2), np.int64)
    for side in (0, 1):
        column = f"image_{side + 1}"
        names = rows.columns[column]
        problems.empty(column, names)
        for row, name in enumerate(names):
            found = known.get(name, ())
            images[row, side] = found[0] if len(found) == 1 else -1 - side
            if len(found) > 1:
                listed = ", ".join(repr(table.ids[image]) for image in found[:3])
                problems.row(row, f"{column} {name!r} is {len(found)} images; give an id: {listed}")
            elif name and not found:
                near = did_you_mean(name, known) if len(problems) < SHOWN else ""
                problems.row(row, f"{column} {name!r} is no image of the table.{near}")
    for row in np.flatnonzero(images[:, 0] == images[:, 1]):
        problems.row(row, f"{table.ids[images[row, 0]]!r} is compared with itself")
    votes = _read_votes(rows, problems)
    problems.raise_if_any()
    return Comparisons(images, votes)


def images_of_comparisons(
    source: str | Path | pandas.DataFrame, image_dir: str | Path
) -> ImageTable:
    """Returns the images that comparisons name, in the order in which they first appear.

    Args:
        source (path or DataFrame): As for :func:`read_comparisons`.
        image_dir (path): As for :func:`read_images`; names may lack the suffix of the file.

    Returns:
        A table without targets.

    Raises:
        DataError: If columns or images are missing.
    """
    rows = _read_comparison_rows(source)
    first_row: dict[str, int] = {}
    for row, names in enumerate(zip(rows.columns["image_1"], rows.columns["image_2"], strict=True)):
        for name in filter(None, names):
            first_row.setdefault(name, row)
    problems = Problems(dataclasses.replace(
        rows, places=[rows.places[row] for row in first_row.values()]
    ))  # fmt: skip
    paths = _find_images(list(first_row), image_dir, problems, suffixes=_SPELLINGS)
    problems.raise_if_any()
    unique = list(dict.fromkeys(paths))  # "a" and "a.jpg" are the same image
    return ImageTable(tuple(default_ids([str(path) for path in unique])), tuple(unique))


def require_pairs(table: ImageTable, what: str) -> None:
    """Checks that there are two images of which one is better.

    Args:
        table (ImageTable): With targets.
        what (str): What it is, for the message (``"the test split"``).

    Raises:
        DataError: If there is no pair.
    """
    if table.targets is None:
        raise DataError(f"{what} has neither tiers nor scores: no pair has a better image.")
    if len(np.unique(table.targets)) > 1:
        return
    if len(table) < 2:
        found = f"it has {_images(len(table))}"
    elif table.tiers:
        found = f"all {len(table):,} images are of tier {table.tier_of(0)!r}"
    else:
        found = f"all {len(table):,} images have the score {table.targets[0]:g}"
    raise DataError(
        f"{what} has no pairs: {found}. Expected images of at least two tiers or scores."
    )


def check_duplicates(
    tables: Mapping[str, ImageTable],
    hashes: Mapping[str, Sequence[str]],
    on_duplicates: str = "stop",
) -> dict[str, np.ndarray]:
    """Looks for the same picture in two splits, and says where one split has it in two tiers.

    Args:
        tables (mapping of str to ImageTable): The splits, in the order train, validation, test.
        hashes (mapping of str to sequence of str): Of the bytes of each image of each split.
        on_duplicates (str): ``"stop"``, or ``"drop"`` to leave such images out of the earlier
            split. Defaults to ``"stop"``.

    Returns:
        int64 array of the rows to keep, for each split.

    Raises:
        DataError: If ``on_duplicates`` is ``"stop"`` and two splits have a picture in common.
    """
    if on_duplicates not in ("stop", "drop"):
        raise ConfigurationError(f"on_duplicates {on_duplicates!r}: expected 'stop' or 'drop'")
    for split, table in tables.items():
        _warn_of_contradictions(split, table, hashes[split])
    keep: dict[str, np.ndarray] = {}
    later: dict[str, str] = {}  # hash: the image and its split
    leaks = []
    for split in reversed(tables):
        table = tables[split]
        leaked = [row for row, digest in enumerate(hashes[split]) if digest in later]
        leaks[:0] = [
            f"{table.paths[row].name} ({split}) is the same picture as {later[hashes[split][row]]}"
            for row in leaked
        ]
        for row, digest in enumerate(hashes[split]):
            later.setdefault(digest, f"{table.paths[row].name} ({split})")
        keep[split] = np.setdiff1d(np.arange(len(table)), np.array(leaked, np.int64))
    if leaks and on_duplicates == "stop":
        raise DataError(
            f"{_images(len(leaks))} in more than one split, so that the scores would be too "
            f"good:{listed(leaks)}\nTake them out of one split, or have them left out of the "
            "earlier one with on_duplicates 'drop'."
        )
    for split, table in tables.items():
        if dropped := len(table) - len(keep[split]):
            say(f"{_images(dropped)} left out of the {split} split: a later split has them too.")
    return {split: keep[split] for split in tables}


def default_ids(files: Sequence[str]) -> list[str]:
    """Returns ids for images that have none.

    An id is the name of the file without folder and suffix, or all of it where two share that.

    Args:
        files (sequence of str): Names of files as they are listed.
    """
    stems = [Path(name).stem for name in files]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else name for stem, name in zip(stems, files, strict=True)]


def _first_of(names: Sequence[str], rows: Rows) -> str | None:
    return next((name for name in names if name in rows.columns), None)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _find_images(
    files: Sequence[str],
    image_dir: str | Path,
    problems: Problems,
    suffixes: Sequence[str] = (),
) -> list[Path | None]:
    """Paths of images by name; those that are not there are problems of their rows."""
    folder = Path(image_dir)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; expected the one with the images.")
    finders = [FileFinder(folder)]
    if (folder / "images").is_dir():
        finders.append(FileFinder(folder / "images"))
    paths: list[Path | None] = []
    missing = []
    for row, name in enumerate(files):
        spellings = [name, *(name + suffix for suffix in suffixes)] if name else []
        found = (finder.find(spelling) for spelling in spellings for finder in finders)
        paths.append(next(filter(None, found), None))
        if name and paths[-1] is None:
            missing.append(row)
    if len(missing) == len(files) > 1:
        raise DataError(
            f"None of the {len(files):,} images of {problems.rows.name} is in {folder}, such as "
            f"{files[0]!r}; expected the folder that the names of files begin in."
        )
    for row in missing:
        near = finders[-1].near(files[row]) if len(problems) < SHOWN else []
        advice = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        problems.row(row, f"{files[row]!r} is not in {folder}.{advice}")
    return paths


def _checked_tiers(tiers: Sequence[str]) -> tuple[str, ...]:
    cleaned = tuple(clean_text(tier) for tier in tiers)
    if isinstance(tiers, str) or len(set(cleaned)) < max(2, len(cleaned)) or "" in cleaned:
        raise ConfigurationError(
            f"tiers {tiers!r}: expected at least two different names, best first, such as "
            "('S', 'A', 'B', 'C')"
        )
    return cleaned


def _known_tiers(values: Sequence[str], rows: Rows) -> tuple[str, ...]:
    """Tiers of which the order is known without being told; others must be a few mistakes."""
    counts = Counter(filter(None, values))
    known = tuple(tier for tier in TIER_LETTERS if tier in counts)
    if 2 * sum(counts[tier] for tier in known) >= counts.total():
        return known
    shown = ", ".join(map(repr, sorted(counts)[:10])) + (", ..." if len(counts) > 10 else "")
    raise DataError(
        f"{rows.name} has tiers whose order is not known: {shown}. Give their names, best first, "
        "as tiers; numbers to rank by belong in a column 'score'."
    )


def _tier_targets(values: Sequence[str], tiers: tuple[str, ...], problems: Problems) -> np.ndarray:
    target = {tier: len(tiers) - 1 - i for i, tier in enumerate(tiers)}
    for row, value in enumerate(values):
        if value and value not in target:
            same = [tier for tier in (*tiers, *TIER_LETTERS) if tier.upper() == value.upper()]
            near = f" Did you mean {same[0]!r}?" if same else did_you_mean(value, tiers)
            if value in TIER_LETTERS:
                near = " Give all names, best first, as tiers."
            problems.row(row, f"tier {value!r} is none of {', '.join(tiers)}.{near}")
    return np.array([target.get(value, np.nan) for value in values], np.float64)


def _read_scores(rows: Rows, problems: Problems | None) -> np.ndarray | None:
    """The scores; without ``problems`` they are not needed, and None if one is no number."""
    texts = rows.columns["score"]
    scores = np.array([_number(text) for text in texts])
    bad = np.flatnonzero(~np.isfinite(scores))
    if problems is not None:
        for row in bad:
            problems.row(row, f"score {texts[row]!r} is no finite number")
    elif len(bad):
        say(
            f"{rows.name}: {len(bad):,} of {len(texts):,} images have no number as score; the "
            "scores are not used."
        )
        return None
    return scores


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# Comparisons


def _read_comparison_rows(source: str | Path | pandas.DataFrame) -> Rows:
    rows = read_rows(source, "comparisons")
    missing = [name for name in ("image_1", "image_2") if name not in rows.columns]
    if "winner" not in rows.columns:
        missing += [name for name in ("votes_1", "votes_2") if name not in rows.columns]
    if missing:
        raise DataError(
            "\n".join(missing_column(rows.name, (name,), rows.columns) for name in missing)
        )
    return rows


def _names_of_images(table: ImageTable) -> dict[str, list[int]]:
    """Rows by what people may call an image: its id, or else its file, its path's end, its stem."""
    known: dict[str, list[int]] = {}
    for row, path in enumerate(table.paths):
        parts = unicodedata.normalize("NFC", path.as_posix()).split("/")
        ends = {"/".join(parts[i:]) for i in range(len(parts))}
        for name in {*ends, Path(parts[-1]).stem}:
            known.setdefault(name, []).append(row)
    return known | {name: [row] for row, name in enumerate(table.ids)}


def _read_votes(rows: Rows, problems: Problems) -> np.ndarray:
    votes = np.zeros((len(rows), 2))
    if "votes_1" not in rows.columns or "votes_2" not in rows.columns:
        for row, winner in enumerate(rows.columns["winner"]):
            names = rows.columns["image_1"][row], rows.columns["image_2"][row]
            if winner == "tie":
                votes[row] = 0.5
            elif winner in ("image_1", names[0]):
                votes[row, 0] = 1
            elif winner in ("image_2", names[1]):
                votes[row, 1] = 1
            else:
                problems.row(
                    row, f"winner {winner!r}: expected image_1, image_2, tie or one of their names"
                )
        return votes
    texts = rows.columns["votes_1"], rows.columns["votes_2"]
    for row in range(len(rows)):
        pair = texts[0][row], texts[1][row]
        votes[row] = [_number(text) for text in pair]
        wrong = [
            text for text, vote in zip(pair, votes[row], strict=True) if not 0 <= vote < np.inf
        ]
        if wrong:
            problems.row(row, f"votes {' and '.join(map(repr, wrong))}: expected numbers from 0")
        elif not votes[row].any():
            problems.row(row, "votes 0 and 0: expected at least one for an image")
    return votes


def _warn_of_contradictions(split: str, table: ImageTable, hashes: Sequence[str]) -> None:
    """Says where the same picture is in a split more than once, with different targets."""
    if table.targets is None:
        return
    rows_of: dict[str, list[int]] = {}
    for row, digest in enumerate(hashes):
        rows_of.setdefault(digest, []).append(row)
    found = []
    for rows in rows_of.values():
        if len(np.unique(table.targets[rows])) > 1:
            found.append(", ".join(
                f"{table.paths[row].name} ({table.tier_of(row) or format(table.targets[row], 'g')})"
                for row in rows
            ))  # fmt: skip
    if found:
        say(f"The same picture is in the {split} split in different places:{listed(found)}")
