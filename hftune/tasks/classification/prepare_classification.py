"""From a run's settings to tokenised samples, keys and a tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ...training.subsets import sample_keys
from ...utils.errors import ConfigurationError
from ...utils.files import file_hash
from ...utils.terminal import console, is_main_process
from .arguments_classification import ClassificationDataArguments, ClassificationModelArguments
from .data_classification import SPLITS, find_sources
from .modeling_classification import (
    load_pretrained_config,
    load_pretrained_tokenizer,
    model_labels,
    train_tokenizer,
)
from .tables_classification import FORMAT, TextTables, load_tables, tables_folder, write_tables

if TYPE_CHECKING:
    import datasets
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

__all__ = ["ClassificationData", "prepare_classification"]

_MAX_LENGTH = 128


@dataclasses.dataclass(frozen=True, eq=False)
class ClassificationData:
    """Everything that a classification run reads.

    Attributes:
        train, validation, test (datasets.Dataset): Samples with ``input_ids``, ``attention_mask``
            and ``labels``, memory-mapped.
        label_names (tuple of str): Labels by number.
        tokenizer (PreTrainedTokenizerBase): To be saved with the model.
        max_length (int): Tokens of a text at the most.
        fingerprint (str): Of everything the samples depend on.
        seed (int): Of the run.
        sources (dict of str to list of str): What each split was read from.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    label_names: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    fingerprint: str
    seed: int
    sources: dict[str, list[str]]
    _tables: TextTables = dataclasses.field(repr=False)

    def texts(self, split: str) -> datasets.Column:
        """Returns the texts of ``train``, ``validation`` or ``test``, read when they are looked at.

        Args:
            split (str): Name of the split.
        """
        return self._tables.tables[split]["text"]

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int64 ``[samples]``.

        Args:
            split (str): Name of the split.
        """
        return self._tables.tables[split].data["labels"].to_numpy()

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """uint64 ``[training samples]``: their order in nested subsets, by content and seed."""
        names = [self.label_names[number] for number in self.labels("train")]
        return sample_keys(list(self.texts("train")), names, seed=self.seed)

    @functools.cached_property
    def collator(self) -> DataCollatorWithPadding:
        """Makes batches, padded to their longest text."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self.tokenizer)

    def describe(self) -> dict[str, Any]:
        """Returns what ``run.json`` says of the data."""
        manifest = self._tables.manifest
        kept = ("columns", "split_from_train", "dropped_rows", "cut_texts", "max_length")
        return {
            "fingerprint": self.fingerprint,
            "sources": self.sources,
            **{name: manifest[name] for name in kept},
            "labels": list(self.label_names),
            "samples": {split: sum(counts) for split, counts in manifest["samples"].items()},
            "vocabulary": len(self.tokenizer),
            "notes": manifest["notes"],
        }


def prepare_classification(
    data_args: ClassificationDataArguments,
    model_args: ClassificationModelArguments,
    *,
    seed: int,
) -> ClassificationData:
    """Reads, checks, splits and tokenises the data of a run; every process of it calls this.

    One process of a machine writes the tables, the others wait for it. What an earlier run wrote
    for the same data is used again.

    Args:
        data_args (ClassificationDataArguments): The ``data:`` section.
        model_args (ClassificationModelArguments): The ``model:`` section.
        seed (int): Of the run: for the order of nested subsets. The split does not depend on it.

    Raises:
        ConfigurationError: If ``max_length`` is more than the model takes.
        DataError: With all problems of the data.
        CheckpointError: If the pretrained model or its tokenizer cannot be loaded.
    """
    import filelock

    name = model_args.pretrained
    if name is None:
        tokenizer, order = None, None
        max_length = data_args.max_length or _MAX_LENGTH
        tokenized_by: Any = {"trained": model_args.sizes["vocab_size"]}
    else:
        config, tokenizer = load_pretrained_config(name), load_pretrained_tokenizer(name)
        order = model_labels(config)
        max_length = _max_length(data_args.max_length, name, config, tokenizer)
        tokenized_by = _tokenizer_hashes(tokenizer)
    sources = find_sources(data_args)
    content = {
        "format": FORMAT,
        "sources": {split: [s.fingerprint() for s in group] for split, group in sources.items()},
        "columns": [data_args.text_column, data_args.label_column],
        "encoding": data_args.encoding,
        "on_bad_rows": data_args.on_bad_rows,
        "tokenizer": tokenized_by,
        "labels": order,
        "max_length": max_length,
    }
    fingerprint = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    folder = tables_folder(fingerprint)
    tables = load_tables(folder)
    reused = tables is not None
    if tables is None:

        def make_tokenizer(texts):
            return tokenizer or train_tokenizer(texts, tokenized_by["trained"], max_length)

        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(folder.name + ".lock")):
            tables = load_tables(folder)  # of a process that was faster
            if tables is None:
                write_tables(folder, sources, data_args, make_tokenizer, max_length, order)
                tables = load_tables(folder)
    # Workers of a data loader are forked from here; the library warns of that in each of them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    columns = ["input_ids", "attention_mask", "labels"]
    data = ClassificationData(
        **{split: tables.tables[split].select_columns(columns) for split in SPLITS},
        label_names=tuple(tables.manifest["labels"]),
        tokenizer=load_pretrained_tokenizer(str(folder / "tokenizer")),
        max_length=max_length,
        fingerprint=fingerprint,
        seed=seed,
        sources={split: [source.name for source in group] for split, group in sources.items()},
        _tables=tables,
    )
    if is_main_process():
        _say(tables, reused)
    return data


def _max_length(given: int | None, name: str, config: Any, tokenizer: Any) -> int:
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    most = min(limit for limit in limits if limit is not None)
    if given is not None and given > most:
        raise ConfigurationError(
            f"max_length is {given}, but {name} takes {most} tokens at the most."
        )
    return given or min(_MAX_LENGTH, most)


def _tokenizer_hashes(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {
            path.name: file_hash(path)
            for path in sorted(Path(folder).iterdir())
            if path.name != "tokenizer_config.json"  # says where it came from
        }


def _say(tables: TextTables, reused: bool) -> None:
    manifest = tables.manifest
    say = functools.partial(console().print, markup=False)
    counts = {split: sum(numbers) for split, numbers in manifest["samples"].items()}
    text, label = manifest["columns"]
    say(
        f"Data: {counts['train']:,} training, {counts['validation']:,} validation and "
        f"{counts['test']:,} test texts (column {text!r}) with {len(manifest['labels'])} labels "
        f"({label!r}){', tokenised before' if reused else ''}"
    )
    if manifest["guessed"]:
        say(f"Guessed from the names: --text_column {text} --label_column {label}")
    if taken := manifest["split_from_train"]:
        say(f"Taken from the training table, class by class: {' and '.join(taken)}, 10 % each")
    if 10 * manifest["cut_texts"] > sum(counts.values()):
        say(
            f"warning: {manifest['cut_texts']:,} texts fill all {manifest['max_length']} tokens "
            "that are kept; what is behind them is cut off. Give --max_length.",
            style="yellow",
        )
    for note in manifest["notes"]:
        say(f"warning: {note}", style="yellow")
