"""The ``data:`` and ``model:`` sections of the classification recipes' configuration."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

__all__ = ["ClassificationDataArguments", "ClassificationModelArguments"]


@dataclasses.dataclass
class ClassificationDataArguments:
    """Which texts to learn from, and how they are read.

    Args:
        data (list of str): The training table: CSV, TSV, JSONL or Parquet files or globs, or one
            folder saved by ``datasets.save_to_disk``, or the name of one data set on the Hub.
            Empty (the default): a small generated one, messages to a shop in English and Korean.
        validation_data (list of str): Files to choose the best model on. Defaults to the data set's
            own validation split, else to 10 % of the training table, taken class by class.
        test_data (list of str): Files to score the best model on. Defaults to the data set's own
            test split, else to another 10 %.
        text_column (str, *optional*): Column of the texts. Defaults to a guess from the names.
        label_column (str, *optional*): Column of the labels. Defaults to a guess from the names.
        data_config (str, *optional*): Configuration of the data set on the Hub.
        max_length (int, *optional*): Tokens of a text that the model sees, the rest is cut off.
            Defaults to 128, or less where the model takes less.
        encoding (str): Encoding of CSV, TSV and JSONL files. Defaults to UTF-8, with or without a
            byte order mark.
        on_bad_rows (str): ``stop`` ends the run on rows that cannot be used (wrong number of cells,
            no text, no or an unknown label, not decodable), ``drop`` leaves them out and says how
            many. Defaults to ``stop``.
    """

    _section: ClassVar[str] = "data"

    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "CSV, TSV, JSONL or Parquet files or globs, or a folder of save_to_disk, or a "
            "data set on the Hub. None: a small generated one."
        },
    )
    validation_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Files to choose the best model on. Default: 10 % of the training data."},
    )
    test_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Files to score the best model on. Default: 10 % of the training data."},
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the texts. Default: guessed from the names."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the labels. Default: guessed from the names."}
    )
    data_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set on the Hub."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a text that the model sees. Default: 128."}
    )
    encoding: str = field(
        default="utf-8", metadata={"help": "Encoding of text files, for example cp949."}
    )
    on_bad_rows: Literal["stop", "drop"] = field(
        default="stop",
        metadata={"help": "What rows that cannot be used do: stop the run, or drop them."},
    )

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        if values["max_length"] is not None and values["max_length"] < 4:
            problems.append(f"max_length is {values['max_length']}; it must be 4 or more.")
        text, label = values["text_column"], values["label_column"]
        if text is not None and text == label:
            problems.append(f"text_column and label_column are both {text!r}: give two columns.")
        try:
            codecs.lookup(values["encoding"])
        except LookupError:
            problems.append(
                f"encoding {values['encoding']!r} is not known: give a name such as utf-8, cp949, "
                "euc-kr, utf-16 or latin-1."
            )
        if not values["data"]:
            problems += [
                f"{name} given without data: give the training table as --data."
                for name in ("validation_data", "test_data", "data_config")
                if values[name]
            ]
        return problems


_SIZES = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vocab_size": 8000,
    "dropout": 0.1,
}


@dataclasses.dataclass
class ClassificationModelArguments:
    """Which model learns them: a pretrained one, or a new one of the sizes below.

    Args:
        pretrained (str, *optional*): Name on the Hub or folder of a model. Defaults to none: a new
            model, with a tokenizer trained on the training texts.
        model_type (str, *optional*): New models: ``bert`` or ``distilbert``. Defaults to ``bert``.
        hidden_size (int, *optional*): New models: width. Defaults to 128.
        num_hidden_layers (int, *optional*): New models: number of blocks. Defaults to 2.
        num_attention_heads (int, *optional*): New models: they divide the width. Defaults to 4.
        intermediate_size (int, *optional*): New models: hidden width of the MLPs. Defaults to 256.
        vocab_size (int, *optional*): New models: tokens at the most. Defaults to 8000.
        dropout (float, *optional*): New models: dropout rate in [0, 1). Defaults to 0.1.
    """

    _section: ClassVar[str] = "model"

    pretrained: str | None = field(
        default=None,
        metadata={"help": "Name on the Hub or folder of a model. Default: a new, small one."},
    )
    model_type: Literal["bert", "distilbert"] | None = field(
        default=None, metadata={"help": "New models: architecture. Default: bert."}
    )
    hidden_size: int | None = field(
        default=None, metadata={"help": "New models: width. Default: 128."}
    )
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "New models: number of blocks. Default: 2."}
    )
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "New models: attention heads. Default: 4."}
    )
    intermediate_size: int | None = field(
        default=None, metadata={"help": "New models: hidden width of the MLPs. Default: 256."}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "New models: tokens at the most. Default: 8000."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "New models: dropout rate. Default: 0.1."}
    )

    @classmethod
    def check(cls, values: dict[str, Any]) -> list[str]:
        """Returns what is wrong with the values, one text a problem."""
        problems = []
        given = [name for name in _SIZES if values[name] is not None]
        if values["pretrained"] and given:
            return [
                f"--pretrained {values['pretrained']} and {', '.join('--' + n for n in given)} "
                "exclude each other: a pretrained model has its sizes."
            ]
        sizes = _with_defaults(values)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if sizes[name] < 1:
                problems.append(f"{name} is {sizes[name]}; it must be 1 or more.")
        if not problems and sizes["hidden_size"] % sizes["num_attention_heads"]:
            problems.append(
                f"hidden_size {sizes['hidden_size']} must be a multiple of num_attention_heads, "
                f"{sizes['num_attention_heads']}."
            )
        if sizes["vocab_size"] < 512:
            problems.append(f"vocab_size is {sizes['vocab_size']}; it must be 512 or more.")
        if not 0 <= sizes["dropout"] < 1:
            problems.append(f"dropout is {sizes['dropout']}; it must lie in [0, 1).")
        return problems

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes of a new model, with defaults in place of None."""
        return _with_defaults(vars(self))


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: default if values[name] is None else values[name] for name, default in _SIZES.items()
    }
