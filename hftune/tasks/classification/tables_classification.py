"""The tokenised table of a run: written once, memory-mapped, used again by the next run.

A table is a folder in ``cache/classification`` of the hftune home, named by a fingerprint of all
that it depends on: ``train.arrow``, ``validation.arrow`` and ``test.arrow`` with the columns
``text``, ``labels``, ``input_ids`` and ``attention_mask``, ``tokenizer/`` and ``manifest.json``. It
is written beside its place and moved there when it is whole.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ...utils.errors import DataError, did_you_mean
from ...utils.files import read_json, sync_folder, write_json
from ...utils.home import hftune_home
from .arguments_classification import ClassificationDataArguments
from .data_classification import (
    SPLITS,
    DatasetSource,
    FileSource,
    check_column,
    clean_label,
    clean_text,
    resolve_columns,
)
from .table_reading import Problems

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TextTables",
    "load_tables",
    "order_labels",
    "split_rows",
    "tables_folder",
    "write_tables",
]

FORMAT = 1
_BATCH = 1000
_SHARE = 0.1  # of the validation and of the test samples, where they come from the training table
_SPLIT_SEED = 20240229  # of no setting: runs with different seeds are scored on the same samples
_NAMED = 5  # labels that a message names


@dataclasses.dataclass(frozen=True)
class TextTables:
    """What a folder of tables holds.

    Attributes:
        folder (Path): Where it is.
        tables (dict of str to datasets.Dataset): ``train``, ``validation`` and ``test``.
        manifest (dict): What is known of them.
    """

    folder: Path
    tables: dict[str, datasets.Dataset]
    manifest: dict[str, Any]


def tables_folder(fingerprint: str) -> Path:
    """Returns where the tables of a fingerprint are, or will be."""
    return hftune_home() / "cache" / "classification" / fingerprint


def load_tables(folder: Path) -> TextTables | None:
    """Opens the tables of a folder in place; None if there are none."""
    import datasets

    try:
        manifest = read_json(folder / "manifest.json")
        if any((folder / name).stat().st_size != size for name, size in manifest["sizes"].items()):
            return None
    except (OSError, ValueError):
        return None
    tables = {name: datasets.Dataset.from_file(str(folder / f"{name}.arrow")) for name in SPLITS}
    return TextTables(folder, tables, manifest)


def order_labels(names: Sequence[str], known: Sequence[str] | None = None) -> list[str]:
    """Puts labels in the order of their numbers.

    Args:
        names (sequence of str): Labels.
        known (sequence of str, *optional*): An order that is kept if it has all of them.

    Returns:
        ``known`` without labels that do not occur; else whole numbers by value, other names
        sorted.
    """
    if known is not None and set(names) <= set(known):
        return [name for name in known if name in set(names)]
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)


def split_rows(hashes: np.ndarray, labels: np.ndarray, parts: Sequence[str]) -> np.ndarray:
    """Takes samples out of a training table, class by class, whatever the order of its rows.

    Rows of one text stay together, so that no sample is trained on and scored.

    Args:
        hashes (uint64 array ``[rows]``): Of the texts.
        labels (integer array ``[rows]``): Their classes.
        parts (sequence of str): Which splits to take, of ``validation`` and ``test``.

    Returns:
        int8 array ``[rows]``: Number of the split in :data:`SPLITS`. A tenth of each class in each
        part, at least one text, of a class with too few texts none.
    """
    _, first, text_of_row = np.unique(hashes, return_index=True, return_inverse=True)
    keys, classes = hashes[first], labels[first]
    order = np.lexsort((keys, classes))
    sizes = np.bincount(classes)
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(keys)) - np.repeat(starts, sizes)
    quotas = np.maximum(1, np.floor(_SHARE * sizes + 0.5)).astype(np.int64)
    quotas[sizes <= len(parts)] = 0
    split = np.zeros(len(keys), np.int8)
    for number, name in enumerate(parts):
        taken = (rank >= number * np.repeat(quotas, sizes)) & (
            rank < (number + 1) * np.repeat(quotas, sizes)
        )
        split[order[taken]] = SPLITS.index(name)
    return split[text_of_row]


@dataclasses.dataclass
class _RawTable:
    """Rows of the sources of a split, cleaned and not yet tokenised.

    Attributes:
        path (Path): Arrow stream of place, text and label.
        hashes (uint64 array): Of the texts.
        codes (int32 array): Of the labels, by the number in ``labels``.
    """

    path: Path
    hashes: np.ndarray
    codes: np.ndarray


def _read(
    sources: Sequence[FileSource | DatasetSource],
    columns: tuple[str, str] | None,
    arguments: ClassificationDataArguments,
    labels: dict[str, int],
    problems: Problems,
    path: Path,
) -> tuple[_RawTable, tuple[str, str], list[str] | None]:
    import datasets

    features = datasets.Features(
        {name: datasets.Value("string") for name in ("place", "text", "label")}
    )
    hashes, codes = array.array("Q"), array.array("i")
    known: list[str] | None = None
    with _writer(path, features) as out:
        for source in sources:
            table = source.open()
            if columns is None:
                columns = resolve_columns(table, source.name, arguments)
            for name, setting in zip(columns, ("--text_column", "--label_column"), strict=True):
                check_column(table.columns, name, setting, source.name)
            if isinstance(table, DatasetSource) and known is None:
                known = table.class_names(columns[1])
            seen = empty = 0
            for place, value, answer in table.rows(*columns, problems):
                seen += 1
                if isinstance(value, (dict, list)) or isinstance(answer, (dict, list)):
                    problems.row(place, "a list or an object, expected a text and a label")
                    continue
                text, label = clean_text(value), clean_label(answer)
                if not text:
                    empty += 1
                    problems.row(place, f"no text in column {columns[0]!r}")
                    continue
                if not label:
                    problems.row(place, f"no label in column {columns[1]!r}")
                    continue
                try:
                    encoded = text.encode()
                    label.encode()
                except UnicodeEncodeError:
                    problems.row(place, "half of a surrogate pair, which is no character")
                    continue
                hashes.append(xxhash.xxh3_64_intdigest(encoded, _SPLIT_SEED))
                codes.append(labels.setdefault(label, len(labels)))
                out.write({"place": place, "text": text, "label": label})
            if seen and seen == empty:
                raise DataError(
                    f"{source.name}: all {seen:,} texts in column {columns[0]!r} are empty: is it "
                    "the right one? Give --text_column."
                )
    return (
        _RawTable(path, np.array(hashes, np.uint64), np.array(codes, np.int32)),
        columns,
        known,
    )


@contextlib.contextmanager
def _writer(path: Path, features: datasets.Features) -> Iterator[Any]:
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), features=features, writer_batch_size=_BATCH) as writer:
        yield writer
        writer.finalize()  # unlike closing, this raises what went wrong


def _read_batches(path: Path) -> Iterator[dict[str, list[str]]]:
    import datasets

    yield from datasets.Dataset.from_file(str(path)).iter(_BATCH)


def write_tables(
    folder: Path,
    sources: dict[str, list[FileSource | DatasetSource]],
    arguments: ClassificationDataArguments,
    make_tokenizer: Callable[[Iterator[list[str]]], PreTrainedTokenizerBase],
    max_length: int,
    label_order: Sequence[str] | None = None,
) -> None:
    """Reads, checks, splits and tokenises the data into a folder, which is then whole.

    Args:
        folder (Path): Where; its parent is made.
        sources (dict): Of :func:`~hftune.tasks.classification.data_classification.find_sources`.
        arguments (ClassificationDataArguments): The ``data:`` section.
        make_tokenizer (callable): Returns a tokenizer, which may be trained on the batches of
            training texts that it is given.
        max_length (int): Tokens of a text that are kept.
        label_order (sequence of str, *optional*): Labels of the model, whose order is kept if they
            are those of the data.

    Raises:
        DataError: With all problems of the data, or if the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for killed in folder.parent.glob(f".{folder.name}.*.tmp"):  # the caller holds the lock
        shutil.rmtree(killed, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        manifest = _write(partial, sources, arguments, make_tokenizer, max_length, label_order)
        write_json(partial / "manifest.json", manifest)
        for path in partial.rglob("*.*"):
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        partial.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # one that did not load
        os.replace(partial, folder)
        sync_folder(folder.parent)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"the disk of {folder.parent} is full: make room, or set HFTUNE_HOME to a larger one."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    folder: Path,
    sources: dict[str, list[FileSource | DatasetSource]],
    arguments: ClassificationDataArguments,
    make_tokenizer: Callable[[Iterator[list[str]]], PreTrainedTokenizerBase],
    max_length: int,
    label_order: Sequence[str] | None,
) -> dict[str, Any]:
    problems = Problems(drop=arguments.on_bad_rows == "drop")
    notes: list[str] = []
    labels: dict[str, int] = {}
    raw: dict[str, _RawTable] = {}
    columns, known = None, None
    for split in [name for name in SPLITS if name in sources]:
        if split != "train" and _is_unlabelled(sources[split], columns[1]):
            notes.append(f"{sources[split][0].name} has no labels and is left out.")
            continue
        table, columns, order = _read(
            sources[split], columns, arguments, labels, problems, folder / f"{split}.raw"
        )
        raw[split] = table
        if split == "train":
            known, trained = order, len(labels)  # labels beyond these are not trained
    _check_unseen(raw, list(labels), trained, problems)
    problems.raise_if_any()
    _check_labels(list(labels)[:trained], len(raw["train"].codes), columns)
    if problems.bad_rows:
        word = "row was" if problems.bad_rows == 1 else "rows were"
        notes.append(f"{problems.bad_rows:,} {word} left out, the first: {problems.shown()[0]}")

    taken = [split for split in ("validation", "test") if split not in raw]
    parts = {"train": split_rows(raw["train"].hashes, raw["train"].codes, taken)}
    for split in raw.keys() - {"train"}:
        parts[split] = np.where(raw[split].codes < trained, SPLITS.index(split), -1)
    notes += _notes(raw, parts, list(labels)[:trained])

    names = order_labels(list(labels)[:trained], label_order or known)
    if label_order is not None and set(label_order) == set(names):
        names = list(label_order)

    def training_texts() -> Iterator[list[str]]:
        start = 0
        for batch in _read_batches(raw["train"].path):
            part = parts["train"][start : start + len(batch["text"])]
            start += len(part)
            yield [text for text, number in zip(batch["text"], part, strict=True) if number == 0]

    tokenizer = make_tokenizer(training_texts())
    tokenizer.save_pretrained(folder / "tokenizer")
    counts, cut = _tokenize(folder, raw, parts, names, tokenizer, max_length)
    for split, table in counts.items():
        if sum(table) == 0:
            raise DataError(
                f"no {split} samples: give --{split}_data, or more rows of each label."
                if split != "train"
                else "no training samples are left."
            )
    for table in raw.values():
        table.path.unlink()
    return {
        "columns": columns,
        "guessed": [
            name
            for name in ("text_column", "label_column")
            if getattr(arguments, name) is None and arguments.data
        ],
        "split_from_train": taken,
        "labels": names,
        "samples": counts,
        "dropped_rows": problems.bad_rows,
        "cut_texts": cut,
        "max_length": max_length,
        "notes": notes,
        "sizes": {f"{split}.arrow": (folder / f"{split}.arrow").stat().st_size for split in SPLITS},
    }


def _is_unlabelled(sources: Sequence[FileSource | DatasetSource], column: str) -> bool:
    """Whether this is a test split as competitions publish it."""
    return all(
        isinstance(source, DatasetSource) and source.unlabelled(column) for source in sources
    )


def _check_labels(labels: list[str], rows: int, columns: tuple[str, str]) -> None:
    if len(labels) < 2:
        found = f"all {rows:,} rows have the label {labels[0]!r}" if labels else "there are no rows"
        raise DataError(f"Two labels or more are needed to learn to tell them apart, but {found}.")
    if rows >= 20 and len(labels) > rows / 2:
        raise DataError(
            f"column {columns[1]!r} has {len(labels):,} different values in {rows:,} rows: these "
            "are no classes. Give the column of the labels as --label_column."
        )


def _check_unseen(
    raw: dict[str, _RawTable], labels: list[str], trained: int, problems: Problems
) -> None:
    """Labels of the validation and test files that the training table does not have."""
    for split in raw.keys() - {"train"}:
        if not (raw[split].codes >= trained).any():
            continue
        known = set(labels[:trained])
        for batch in _read_batches(raw[split].path):
            for place, label in zip(batch["place"], batch["label"], strict=True):
                if label not in known:
                    near = did_you_mean(label, known)
                    problems.row(place, f"label {label!r} is not in the training data.{near}")


def _notes(raw: dict[str, _RawTable], parts: dict[str, np.ndarray], labels: list[str]) -> list[str]:
    """What is allowed and worth knowing: conflicts, leaks, classes that are too small."""
    notes = []
    train = raw["train"]
    pairs = np.unique(np.stack([train.hashes, train.codes.astype(np.uint64)], 1), axis=0)
    conflicts = int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())
    if conflicts:
        texts = "1 text has" if conflicts == 1 else f"{conflicts:,} texts have"
        notes.append(f"{texts} several labels in the training table.")
    trained = np.unique(train.hashes[parts["train"] == 0])
    for split in ("validation", "test"):
        if split not in raw:
            continue
        leaked = int(np.isin(raw[split].hashes, trained).sum())
        if leaked:
            notes.append(
                f"{leaked:,} of {len(raw[split].hashes):,} {split} texts are in the training data "
                "too: they are scored as if the model had not seen them."
            )
    sizes = np.bincount(train.codes[parts["train"] == 0], minlength=len(labels))
    if few := [labels[i] for i in np.flatnonzero(sizes == 1)]:
        notes.append(f"{_named(few)}: one training sample, from which little is learned.")
    for split in ("validation", "test"):
        codes, part = (raw[split].codes, parts[split]) if split in raw else (
            train.codes, parts["train"]
        )  # fmt: skip
        chosen = codes[part == SPLITS.index(split)]
        absent = [
            labels[i] for i in np.flatnonzero(np.bincount(chosen, minlength=len(labels)) == 0)
        ]
        if absent and len(chosen):
            why = "" if split in raw else " (too few texts to take one)"
            notes.append(f"{_named(absent)}: no {split} sample{why}; no score says how good it is.")
    return notes


def _named(labels: list[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    word = "label" if len(labels) == 1 else "labels"
    return f"{word} {', '.join(map(repr, labels[:_NAMED]))}{more}"


def _tokenize(
    folder: Path,
    raw: dict[str, _RawTable],
    parts: dict[str, np.ndarray],
    names: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> tuple[dict[str, list[int]], int]:
    """Writes the tables; returns the samples by split and label, and how many texts are cut."""
    import datasets

    from ...utils.terminal import progress

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "labels": datasets.ClassLabel(names=names),
            "input_ids": datasets.List(datasets.Value("int32")),
            "attention_mask": datasets.List(datasets.Value("int8")),
        }
    )
    number_of = {name: number for number, name in enumerate(names)}
    counts = {split: [0] * len(names) for split in SPLITS}
    cut = 0
    total = sum(len(table.codes) for table in raw.values())
    with contextlib.ExitStack() as stack:
        out = [
            stack.enter_context(_writer(folder / f"{split}.arrow", features)) for split in SPLITS
        ]
        bar = stack.enter_context(progress(total, "Tokenising", "texts"))
        for split, table in raw.items():
            start = 0
            for batch in _read_batches(table.path):
                texts = batch["text"]
                encoded = tokenizer(texts, truncation=True, max_length=max_length)
                for i, text in enumerate(texts):
                    part = parts[split][start + i]
                    if part < 0:
                        continue
                    label = number_of[batch["label"][i]]
                    ids = encoded["input_ids"][i]
                    counts[SPLITS[part]][label] += 1
                    cut += len(ids) == max_length
                    out[part].write(
                        {
                            "text": text,
                            "labels": label,
                            "input_ids": ids,
                            "attention_mask": encoded["attention_mask"][i],
                        }
                    )
                start += len(texts)
                bar.update(len(texts))
    return counts, cut
