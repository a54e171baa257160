"""Where the texts of a run come from: files, saved data sets, the Hub, or the generated corpus."""

from __future__ import annotations

import dataclasses
import glob
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.errors import DataError, did_you_mean
from ...utils.files import file_hash
from .arguments_classification import ClassificationDataArguments
from .table_reading import SUFFIXES, Problems, TableFile

if TYPE_CHECKING:
    import datasets

__all__ = [
    "SPLITS",
    "DatasetSource",
    "FileSource",
    "check_column",
    "clean_label",
    "clean_text",
    "find_sources",
    "guess_column",
    "resolve_columns",
]

SPLITS = ("train", "validation", "test")
_FILES = (*SUFFIXES, ".parquet")

_TEXT_NAMES = (
    "text sentence document content review comment question utterance message body tweet headline "
    "문장 텍스트 본문 내용 리뷰 댓글 문서 질문 발화"
).split()
_LABEL_NAMES = (
    "label labels category intent target class sentiment topic emotion "
    "라벨 레이블 분류 카테고리 의도 감정 감성 주제"
).split()


def guess_column(columns: Sequence[str], what: str, where: str) -> str:
    """Returns the column whose name says that it holds the texts, or the labels.

    Args:
        columns (sequence of str): Names.
        what (str): ``"text"`` or ``"label"``.
        where (str): Which table they are of, for the message.

    Raises:
        DataError: If there is none, or more than one.
    """
    known = _TEXT_NAMES if what == "text" else _LABEL_NAMES
    found = [column for column in columns if column.strip().lower() in known]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(repr, columns))
    if found:
        which = " and ".join(map(repr, found))
        raise DataError(
            f"{where}: both {which} could be the {what}s: say which with --{what}_column."
        )
    near = did_you_mean(what, columns)
    raise DataError(
        f"{where}: no column is named like {what}s ({', '.join(known[:5])}, ...); the columns are "
        f"{listed}. Say which with --{what}_column.{near}"
    )


def clean_text(value: Any) -> str:
    """Returns a text in NFC without white space at its ends; nothing for None."""
    return "" if value is None else unicodedata.normalize("NFC", str(value)).strip()


def clean_label(value: Any) -> str:
    """Returns the name of a label: ``3``, ``3.0`` and ``"3"`` are one, None and NaN are none."""
    if isinstance(value, float):
        if value != value:
            return ""
        value = int(value) if value.is_integer() else value
    return clean_text(value)


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A file with a table.

    Attributes:
        path (Path): As it was given.
        encoding (str): Of text.
    """

    path: Path
    encoding: str

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Returns a hash of the file."""
        return file_hash(self.path)

    def open(self) -> TableFile | DatasetSource:
        """Returns the table; see :class:`~hftune.tasks.classification.table_reading.TableFile`.

        Raises:
            DataError: If it cannot be read.
        """
        if self.path.suffix.lower() != ".parquet":
            return TableFile(self.path, self.encoding)
        import datasets

        with open(self.path, "rb") as stream:
            stream.seek(max(0, self.path.stat().st_size - 4))
            if stream.read() != b"PAR1":
                raise DataError(f"{self.path} does not end as a Parquet file does: it was cut.")
        return DatasetSource(
            self.name, datasets.Dataset.from_parquet(str(self.path), streaming=True)
        )


@dataclasses.dataclass(frozen=True)
class DatasetSource:
    """A split of a data set of the ``datasets`` library, or texts in memory.

    Attributes:
        name (str): What it is called in messages.
        dataset (datasets.Dataset or datasets.IterableDataset): Its rows; class numbers stand for
            their names.
    """

    name: str
    dataset: datasets.Dataset | datasets.IterableDataset

    def fingerprint(self) -> str:
        """Returns a hash of the files it lies in, or the data set's own fingerprint."""
        files = [file_hash(entry["filename"]) for entry in self.dataset.cache_files]
        return "-".join(files) or self.dataset._fingerprint

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.dataset.column_names)

    def open(self) -> DatasetSource:
        """Returns itself: it is open."""
        return self

    def rows(self, text: str, label: str, problems: Problems) -> Iterator[tuple[str, Any, Any]]:
        """Goes through the rows, as ``TableFile.rows`` does; a class number of -1 is no label."""
        names = self.class_names(label)
        number = 0
        for batch in self.dataset.select_columns([text, label]).iter(1000):
            for value, answer in zip(batch[text], batch[label], strict=True):
                number += 1
                if names is not None and answer is not None:
                    answer = names[answer] if answer >= 0 else None
                yield f"{self.name}:row {number}", value, answer

    def class_names(self, label: str) -> list[str] | None:
        """Returns the names of the classes in their order, where the data set has them."""
        import datasets

        feature = self.dataset.features[label]
        return feature.names if isinstance(feature, datasets.ClassLabel) else None

    def unlabelled(self, label: str) -> bool:
        """Whether all its class numbers are -1, which stands for no label.

        Args:
            label (str): Name of the column.
        """
        if label not in self.columns or self.class_names(label) is None:
            return False
        return all(number == -1 for number in self.dataset[label])


def resolve_columns(
    source: TableFile | DatasetSource, name: str, arguments: ClassificationDataArguments
) -> tuple[str, str]:
    """Returns the columns of text and label: those of the settings, else guessed.

    Args:
        source (TableFile or DatasetSource): An open table.
        name (str): What it is called.
        arguments (ClassificationDataArguments): The ``data:`` section.

    Raises:
        DataError: If a column does not exist, with names near it, or cannot be guessed.
    """
    problems, columns = [], []
    for what in ("text", "label"):
        given = getattr(arguments, f"{what}_column")
        try:
            if given is None:
                columns.append(guess_column(source.columns, what, name))
            else:
                check_column(source.columns, given, f"--{what}_column", name)
                columns.append(given)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return columns[0], columns[1]


def check_column(columns: Sequence[str], column: str, setting: str, name: str) -> None:
    """Raises a DataError with names near ``column`` if it is not among the columns of a table."""
    if column not in columns:
        raise DataError(
            f"{name}: no column {column!r} ({setting}).{did_you_mean(column, columns)} "
            f"The columns are {', '.join(map(repr, columns))}."
        )


def find_sources(
    arguments: ClassificationDataArguments,
) -> dict[str, list[FileSource | DatasetSource]]:
    """Finds the tables of the settings, without reading them.

    Args:
        arguments (ClassificationDataArguments): The ``data:`` section.

    Returns:
        Sources by split: ``train``, and ``validation`` and ``test`` where they are given or the
        data set has them.

    Raises:
        DataError: With all files that are not there.
    """
    if not arguments.data:
        from .example_classification import example_dataset

        return {"train": [DatasetSource("the generated messages", example_dataset())]}
    problems: list[str] = []
    sources: dict[str, list[FileSource | DatasetSource]] = {}
    if _is_dataset(arguments.data):
        sources = _dataset_sources(arguments.data[0], arguments.data_config)
    else:
        if arguments.data_config is not None:
            problems.append("data_config is for a data set on the Hub, but data are files.")
        sources["train"] = _file_sources(arguments.data, arguments.encoding, problems)
    for split in ("validation", "test"):
        if given := getattr(arguments, f"{split}_data"):
            sources[split] = _file_sources(given, arguments.encoding, problems)
    if problems:
        raise DataError("\n".join(problems))
    return sources


def _file_sources(
    patterns: Sequence[str], encoding: str, problems: list[str]
) -> list[FileSource | DatasetSource]:
    found: list[FileSource | DatasetSource] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not paths:
            near = ""
            if path.parent.is_dir() and not glob.has_magic(pattern):
                near = did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
            problems.append(f"{pattern}: no such file.{near}")
        for one in paths:
            if one.is_dir():
                problems.append(f"{one} is a folder: give its files, such as {one}/*.csv.")
            elif one.suffix.lower() not in _FILES:
                problems.append(f"{one}: expected a name that ends in {', '.join(_FILES)}.")
            else:
                found.append(FileSource(one, encoding))
    return found


def _is_dataset(data: Sequence[str]) -> bool:
    """Whether this names a saved data set or one on the Hub, and no files."""
    if len(data) > 1 or glob.has_magic(data[0]):
        return False
    path = Path(data[0]).expanduser()
    if path.is_dir():
        return any((path / name).exists() for name in ("dataset_dict.json", "dataset_info.json"))
    # "owner/name" on the Hub has no suffix of a table.
    return not path.exists() and path.suffix.lower() not in _FILES and data[0].count("/") <= 1


def _dataset_sources(name: str, config: str | None) -> dict[str, list[FileSource | DatasetSource]]:
    import datasets

    path = Path(name).expanduser()
    try:
        if path.is_dir():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(name, config)
    except Exception as error:  # of the network, the Hub, the files: each library has its own
        raise DataError(
            f"{name} is no file here, and as a data set it could not be loaded: {error}"
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return {"train": [DatasetSource(name, loaded)]}
    if "train" not in loaded:
        raise DataError(f"{name} has no split 'train'; it has {', '.join(map(repr, loaded))}.")
    return {
        split: [DatasetSource(f"{name} ({split})", loaded[split])]
        for split in SPLITS
        if split in loaded
    }
