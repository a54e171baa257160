"""The tokenizer and the model of a run: pretrained ones, or small new ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import CheckpointError
from ...utils.files import write_json
from ...utils.seeds import derive_seed
from ...utils.terminal import console, is_main_process
from .arguments_classification import ClassificationModelArguments

__all__ = [
    "build_model",
    "load_pretrained_config",
    "load_pretrained_tokenizer",
    "model_labels",
    "train_tokenizer",
]

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def _load(kind: Any, name: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"--pretrained {name}: {what} cannot be loaded: {error}") from error


def load_pretrained_config(name: str) -> Any:
    """Loads the configuration of a model.

    Args:
        name (str): On the Hub, or a folder.

    Raises:
        CheckpointError: If there is none.
    """
    from transformers import AutoConfig

    return _load(AutoConfig, name, "its configuration")


def load_pretrained_tokenizer(name: str) -> Any:
    """Loads the tokenizer of a model; one that has no padding pads with its end of text.

    Args:
        name (str): On the Hub, or a folder.

    Raises:
        CheckpointError: If there is none, or it cannot pad.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, name, "its tokenizer")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(
                f"--pretrained {name}: its tokenizer has neither a padding nor an end token; give "
                "it a pad_token and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_labels(config: Any) -> list[str]:
    """Returns the labels of a saved classifier in their order; ``LABEL_3`` stands for ``3``.

    Args:
        config (PreTrainedConfig): Of the model.
    """
    names = [str(config.id2label[number]) for number in range(config.num_labels)]
    plain = [f"LABEL_{number}" for number in range(config.num_labels)]
    return [str(number) for number in range(config.num_labels)] if names == plain else names


def train_tokenizer(texts: Iterator[list[str]], vocab_size: int, max_length: int) -> Any:
    """Trains a byte-level BPE tokenizer: no text of any script has an unknown token.

    The same texts give the same ``tokenizer.json``, byte for byte.

    Args:
        texts (iterator of lists of str): Batches of training texts.
        vocab_size (int): Tokens at the most.
        max_length (int): Tokens of a text that the model sees.

    Returns:
        A ``PreTrainedTokenizerFast`` that writes ``[CLS] text [SEP]``.
    """
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        write_json(path, _untrained_tokenizer())
        untrained = PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            model_max_length=max_length,
            **{f"{name}_token": token for name, token in _SPECIAL.items()},
        )
    return untrained.train_new_from_iterator(
        texts, vocab_size, min_frequency=2, show_progress=False
    )


def _untrained_tokenizer() -> dict[str, Any]:
    """What ``tokenizer.json`` says before training."""
    special = list(_SPECIAL.values())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    second = [
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "special": True, **added}
            for number, token in enumerate(special)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single + second,
            "special_tokens": {
                token: {"id": token, "ids": [special.index(token)], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(special)},
            "merges": [],
        },
    }


def build_model(
    arguments: ClassificationModelArguments,
    *,
    label_names: Sequence[str],
    tokenizer: Any,
    max_length: int,
    seed: int,
) -> Any:
    """Makes the model of a run, in float32; the same seed gives the same weights.

    A pretrained classifier keeps its head if it has the same labels, else it gets a new one, which
    is said.

    Args:
        arguments (ClassificationModelArguments): The ``model:`` section.
        label_names (sequence of str): Labels by number.
        tokenizer (PreTrainedTokenizerBase): Of the data.
        max_length (int): Tokens of a text.
        seed (int): Of the run; new weights come from it. The global random numbers are left as
            they are.

    Returns:
        A ``PreTrainedModel`` for sequence classification.

    Raises:
        CheckpointError: If the pretrained model cannot be loaded.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model"))
        if arguments.pretrained is None:
            model = _new_model(arguments.sizes, label_names, tokenizer, max_length)
        else:
            model = _pretrained_model(arguments.pretrained, label_names, tokenizer)
    model.config.problem_type = "single_label_classification"
    return model


def _label_maps(label_names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
    }


def _new_model(
    sizes: dict[str, Any], label_names: Sequence[str], tokenizer: Any, max_length: int
) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig

    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max(512, max_length),
        "pad_token_id": tokenizer.pad_token_id,
        **_label_maps(label_names),
    }
    rate = sizes["dropout"]
    if sizes["model_type"] == "distilbert":
        config = DistilBertConfig(
            dim=sizes["hidden_size"],
            n_layers=sizes["num_hidden_layers"],
            n_heads=sizes["num_attention_heads"],
            hidden_dim=sizes["intermediate_size"],
            dropout=rate,
            attention_dropout=rate,
            seq_classif_dropout=rate,
            **common,
        )
    else:
        config = BertConfig(
            hidden_size=sizes["hidden_size"],
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=sizes["num_attention_heads"],
            intermediate_size=sizes["intermediate_size"],
            hidden_dropout_prob=rate,
            attention_probs_dropout_prob=rate,
            classifier_dropout=rate,
            **common,
        )
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def _pretrained_model(name: str, label_names: Sequence[str], tokenizer: Any) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    config = load_pretrained_config(name)
    saved = model_labels(config)
    config.update({"num_labels": len(label_names), **_label_maps(label_names)})
    model, loading = _load(
        AutoModelForSequenceClassification,
        name,
        "its weights",
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    head = [key for key in model.state_dict() if not key.startswith(model.base_model_prefix + ".")]
    new = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    if saved != list(label_names) and not new >= set(head):
        # As many labels as before, but others: weights of the old ones would fit and mean nothing.
        fresh = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        weights = fresh.state_dict()
        model.load_state_dict({key: weights[key] for key in head}, strict=False)
        new |= set(head)
    body = sorted(new - set(head))
    if body and is_main_process():
        console().print(
            f"warning: {name} has no weights for {', '.join(body[:5])}: they are new.",
            style="yellow",
        )
    if new & set(head) and is_main_process():
        console().print(
            f"The classifier of {name} is new: {len(label_names)} labels instead of "
            f"{len(saved)} ({', '.join(saved[:5])}{', ...' if len(saved) > 5 else ''})."
        )
    return model
