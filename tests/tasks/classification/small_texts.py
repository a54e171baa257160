"""A small table of texts, a small model, and how the table is prepared."""

from __future__ import annotations

import torch

from hftune.tasks.classification.arguments_classification import (
    ClassificationDataArguments,
    ClassificationModelArguments,
)
from hftune.tasks.classification.prepare_classification import (
    ClassificationData,
    prepare_classification,
)

torch.set_num_threads(1)

SMALL = ClassificationModelArguments(
    vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
ROWS = [
    (f"영화 {i} 정말 좋았다", "pos") if i % 2 else (f"film {i} was bad", "neg") for i in range(60)
]
TABLE = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)


def prepare(*data: str, seed: int = 0, model=SMALL, **settings) -> ClassificationData:
    """Prepares the data of some files."""
    arguments = ClassificationDataArguments(data=list(data), **settings)
    return prepare_classification(arguments, model, seed=seed)
