"""Data of a run: columns, labels, splits, and tables that are tokenised once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from processes import run_together
from small_texts import ROWS, SMALL, TABLE, prepare

from hftune.tasks.classification.arguments_classification import (
    ClassificationDataArguments,
    ClassificationModelArguments,
)
from hftune.tasks.classification.data_classification import guess_column
from hftune.tasks.classification.example_classification import example_rows
from hftune.tasks.classification.modeling_classification import build_model
from hftune.tasks.classification.tables_classification import order_labels, split_rows
from hftune.utils.errors import ConfigurationError, DataError
from hftune.utils.home import hftune_home

SPLITS = ("train", "validation", "test")


def texts(data, *splits):
    return [text for split in splits or SPLITS for text in data.texts(split)]


def error(*names: str, **settings) -> str:
    with pytest.raises(DataError) as caught:
        prepare(*names, **settings)
    return str(caught.value)


def test_samples(table):
    data = prepare(table("a.csv", TABLE))
    assert data.label_names == ("neg", "pos")
    assert data.train.features["labels"].names == ["neg", "pos"]
    assert data.train.column_names == ["input_ids", "attention_mask", "labels"]
    labels = dict(ROWS)
    for split in SPLITS:
        dataset = getattr(data, split)
        for text, sample in zip(data.texts(split), dataset, strict=True):
            assert data.tokenizer(text)["input_ids"] == sample["input_ids"]
            assert data.label_names[sample["labels"]] == labels[text]
            assert sample["attention_mask"] == [1] * len(sample["input_ids"])
        assert data.labels(split).tolist() == dataset["labels"][:]
    assert sorted(texts(data)) == sorted(labels)
    batch = data.collator([data.train[i] for i in range(5)])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert (batch["input_ids"] == data.tokenizer.pad_token_id).equal(batch["attention_mask"] == 0)


def test_banking77(test_data):
    folder = test_data / "classification" / "banking77"
    data = prepare(str(folder / "train.csv"), test_data=[str(folder / "test.csv")])
    assert len(data.train) + len(data.validation) == 10_003
    assert len(data.test) == 3_080
    assert len(data.label_names) == 77
    assert data.describe()["columns"] == ["text", "category"]
    assert data.label_names == tuple(sorted(json.loads((folder / "categories.json").read_text())))
    assert data.describe()["notes"] == [
        "6 of 3,080 test texts are in the training data too: they are scored as if the model had "
        "not seen them."
    ]
    shares = np.bincount(data.labels("validation")) / (
        np.bincount(data.labels("train")) + np.bincount(data.labels("validation"))
    )
    assert 0.08 < shares.min() and shares.max() < 0.13  # of 35 texts, 3 or 4


def test_nsmc(test_data):
    folder = test_data / "classification" / "nsmc"
    data = prepare(str(folder / "train.tsv"), test_data=[str(folder / "test.tsv")])
    assert len(data.train) + len(data.validation) == 13_626
    assert len(data.test) == 3_304
    assert data.label_names == ("0", "1")
    assert data.describe()["columns"] == ["document", "label"]
    everything = texts(data)
    assert any('17x²-16|x|y+17y²=225" 을' in text for text in everything)
    assert any(text.startswith("너무 기대를 하고봐서 그런가   재미없음") for text in everything)


def test_the_generated_messages():
    data = prepare()
    assert len(data.label_names) == 8
    assert {split: len(getattr(data, split)) for split in SPLITS} == {
        "train": 3198, "validation": 401, "test": 401
    }  # fmt: skip
    assert len(set(texts(data))) == 4000
    assert any("안녕하세요" in text for text in texts(data, "test"))
    assert example_rows(50) == example_rows(50) != example_rows(50, seed=1)


@pytest.mark.parametrize(
    ("columns", "what", "found"),
    [
        (["id", "document", "label"], "text", "document"),
        (["Text", "Category"], "label", "Category"),
        (["문장", "감정"], "label", "감정"),
        (["문장", "감정"], "text", "문장"),
    ],
)
def test_guessed_columns(columns, what, found):
    assert guess_column(columns, what, "a.csv") == found


def test_columns_that_cannot_be_found(table):
    assert error(table("a.csv", "txt,lable\na,x\n")) == (
        "a.csv: no column is named like texts (text, sentence, document, content, review, ...); "
        "the columns are 'txt', 'lable'. Say which with --text_column. Did you mean 'txt'?\n"
        "a.csv: no column is named like labels (label, labels, category, intent, target, ...); the "
        "columns are 'txt', 'lable'. Say which with --label_column. Did you mean 'lable'?"
    )
    assert error(table("b.csv", "text,review,label\na,b,x\n")) == (
        "b.csv: both 'text' and 'review' could be the texts: say which with --text_column."
    )
    assert error(table("c.csv", TABLE), text_column="texts", label_column="kind") == (
        "c.csv: no column 'texts' (--text_column). Did you mean 'text'? "
        "The columns are 'text', 'label'.\n"
        "c.csv: no column 'kind' (--label_column). The columns are 'text', 'label'."
    )
    second = table("d.csv", TABLE.replace("text", "review"))
    assert error("c.csv", test_data=[second]) == (
        "d.csv: no column 'text' (--text_column). The columns are 'review', 'label'."
    )


def test_labels_unseen_in_training(table):
    train = table("a.csv", TABLE)
    other = table("b.csv", "text,label\nsomething,pos\nmore,posi\nthird,new\nfourth,neg\n")
    assert error(train, validation_data=[other]) == (
        "2 problems in the data:\n"
        "  b.csv:3: label 'posi' is not in the training data. Did you mean 'pos'?\n"
        "  b.csv:4: label 'new' is not in the training data. Did you mean 'neg'?\n"
        "Correct the rows, or leave them out with --on_bad_rows drop."
    )
    data = prepare(train, validation_data=[other], on_bad_rows="drop")
    assert data.label_names == ("neg", "pos")
    assert list(data.texts("validation")) == ["something", "fourth"]


def test_columns_that_hold_no_classes(table):
    rows = "".join(f"text {i},{i / 7}\n" for i in range(40))
    assert error(table("a.csv", "text,label\n" + rows)) == (
        "column 'label' has 40 different values in 40 rows: these are no classes. Give the column "
        "of the labels as --label_column."
    )
    assert error(table("b.csv", "text,label\na,x\nb,x\n")) == (
        "Two labels or more are needed to learn to tell them apart, but all 2 rows have the label "
        "'x'."
    )
    assert error(table("c.csv", "text,label\n")) == (
        "Two labels or more are needed to learn to tell them apart, but there are no rows."
    )
    assert error(table("d.csv", "text,label\na,x\nb,y\n")) == (
        "no validation samples: give --validation_data, or more rows of each label."
    )


def test_notes(table):
    train = table("a.csv", TABLE + "same,pos\nsame,neg\nsolitary,rare\n")
    test = table("b.csv", f"text,label\n{ROWS[0][0]},neg\n{ROWS[1][0]},pos\nunseen,pos\n")
    notes = prepare(train, validation_data=[test], test_data=[test]).describe()["notes"]
    assert notes == [
        "1 text has several labels in the training table.",
        "2 of 3 validation texts are in the training data too: they are scored as if the model had "
        "not seen them.",
        "2 of 3 test texts are in the training data too: they are scored as if the model had not "
        "seen them.",
        "label 'rare': one training sample, from which little is learned.",
        "label 'rare': no validation sample; no score says how good it is.",
        "label 'rare': no test sample; no score says how good it is.",
    ]


def test_what_is_said(table, capfd):
    table("a.csv", TABLE + "solitary,rare\n")
    prepare("a.csv", max_length=5)
    prepare("a.csv", max_length=5)
    said = capfd.readouterr().err
    for line in (
        "Data: 49 training, 6 validation and 6 test texts (column 'text') with 3 labels ('label')",
        "Guessed from the names: --text_column text --label_column label",
        "Taken from the training table, class by class: validation and test, 10 % each",
        "warning: 61 texts fill all 5 tokens that are kept; what is behind them is cut off.",
        "warning: label 'rare': no test sample (too few texts to take one)",
    ):
        assert line in " ".join(said.split())
    assert said.count("tokenised before") == 1


def test_label_types_and_order(table):
    rows = [{"text": f"text {i}", "label": i % 12} for i in range(120)]
    name = table("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert prepare(name).label_names == tuple(map(str, range(12)))
    rows = [{"text": f"text {i}", "label": i % 2 == 0} for i in range(40)]
    name = table("b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert prepare(name).label_names == ("False", "True")
    assert order_labels(["b", "10", "2"]) == ["10", "2", "b"]
    assert order_labels(["10", "2"]) == ["2", "10"]
    assert order_labels(["a", "b"], ["b", "c", "a"]) == ["b", "a"]
    assert order_labels(["a", "b"], ["b", "c"]) == ["a", "b"]


def test_texts_are_nfc_without_white_space_at_their_ends(table):
    decomposed = "한국 영화"  # as macOS writes it
    rows = "".join(f'" {decomposed} {i}\n",{i % 2}\n' for i in range(40))
    data = prepare(table("a.csv", "text,label\n" + rows))
    assert sorted(texts(data)) == sorted(f"한국 영화 {i}" for i in range(40))


def test_splits_depend_on_the_texts_alone():
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**63, 1000).astype(np.uint64)
    hashes[500:520] = hashes[:20]  # copies
    labels = draw.integers(0, 3, 1000)
    labels[500:520] = labels[:20]
    parts = split_rows(hashes, labels, ["validation", "test"])
    order = draw.permutation(1000)
    assert (split_rows(hashes[order], labels[order], ["validation", "test"]) == parts[order]).all()
    for number in range(3):
        inside = [set(hashes[parts == split]) for split in range(3)]
        assert not inside[number] & (inside[number - 1])
    for label in range(3):
        of_class = np.unique(hashes[labels == label])
        for split in (1, 2):
            found = len(np.unique(hashes[(labels == label) & (parts == split)]))
            assert found == int(0.1 * len(of_class) + 0.5)
    # More data leave nearly all in their place.
    fewer = split_rows(hashes[:900], labels[:900], ["validation", "test"])
    assert (fewer == parts[:900]).mean() > 0.98


def test_a_class_too_small_to_be_split_stays_in_the_training_samples():
    hashes = np.arange(14).astype(np.uint64) << np.uint64(50)
    labels = np.array([0] * 10 + [1, 1] + [2] * 2)
    parts = split_rows(hashes, labels, ["validation", "test"])
    assert parts[10:].tolist() == [0, 0, 0, 0]
    assert sorted(parts[:10]) == [0] * 8 + [1, 2]
    assert sorted(split_rows(hashes, labels, ["test"])[12:]) == [0, 2]


def test_only_what_is_missing_is_split_off(table):
    train, other = table("a.csv", TABLE), table("b.csv", "text,label\nnew,pos\nother,neg\n")
    data = prepare(train, test_data=[other])
    assert list(data.texts("test")) == ["new", "other"]
    assert len(data.validation) == 6 and len(data.train) == 54
    assert data.describe()["split_from_train"] == ["validation"]


def stamps() -> dict[str, tuple[int, int]]:
    cache = hftune_home() / "cache" / "classification"
    return {
        str(path.relative_to(cache)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in cache.rglob("*.*")
        if path.suffix != ".lock"
    }


def test_tokenised_once(table, capfd):
    train = table("a.csv", TABLE)
    first = prepare(train)
    before = stamps()
    assert len([name for name in before if name.endswith("manifest.json")]) == 1
    os.rename("a.csv", "b.csv")  # only the content counts
    second = prepare("b.csv", seed=1)
    assert stamps() == before
    assert second.fingerprint == first.fingerprint
    assert second.train[:] == first.train[:]
    assert second.describe()["sources"] == {"train": ["b.csv"]}
    assert "tokenised before" in capfd.readouterr().err
    for changed in (
        {"max_length": 100},
        {"text_column": "text"},
        {"on_bad_rows": "drop"},
        {"model": ClassificationModelArguments(vocab_size=601)},
    ):
        assert prepare("b.csv", **changed).fingerprint != first.fingerprint
    table("b.csv", TABLE + "one more,pos\n")
    assert prepare("b.csv").fingerprint != first.fingerprint


def test_a_damaged_table_is_made_anew(table):
    train = table("a.csv", TABLE)
    data = prepare(train)
    samples = data.train[:]
    path = hftune_home() / "cache" / "classification" / data.fingerprint / "train.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    assert prepare(train).train[:] == samples
    left = {path.name for path in path.parent.parent.iterdir()}
    assert left == {data.fingerprint, f"{data.fingerprint}.lock"}


def test_what_a_killed_run_left_is_removed(table):
    train = table("a.csv", TABLE)
    data = prepare(train)
    cache = hftune_home() / "cache" / "classification"
    os.rename(cache / data.fingerprint, cache / f".{data.fingerprint}.abc.tmp")
    (cache / ".other.abc.tmp").mkdir()
    assert prepare(train).train[:] == data.train[:]
    left = {path.name for path in cache.iterdir()}
    assert left == {data.fingerprint, f"{data.fingerprint}.lock", ".other.abc.tmp"}


def test_nothing_is_left_of_data_with_problems(table):
    error(table("a.csv", TABLE + ",pos\n"))
    cache = hftune_home() / "cache" / "classification"
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_tokenizers_of_the_same_texts_are_the_same_file_in_every_process(table):
    train = table("a.csv", TABLE)

    def work(rank):
        os.environ["HFTUNE_HOME"] = str(Path("homes") / str(rank))
        prepare(train)

    assert run_together(work) == [0, 0]
    one, other = (path.read_bytes() for path in Path("homes").rglob("tokenizer.json"))
    assert one == other
    assert json.loads(one)["normalizer"] == {"type": "NFC"}


def test_processes_share_one_table_or_fail_together(table, capfd):
    train, bad = table("a.csv", TABLE), table("b.csv", TABLE + ",pos\n")

    def work(rank):
        data = prepare(train)
        Path(f"rank{rank}").write_text(json.dumps(data.train[:]))

    def fail(rank):
        with pytest.raises(DataError, match="b.csv:62: no text in column 'text'"):
            prepare(bad)

    assert run_together(work) == [0, 0]
    assert Path("rank0").read_text() == Path("rank1").read_text()
    assert len([name for name in stamps() if name.endswith("manifest.json")]) == 1
    assert capfd.readouterr().err.count("Data: ") == 1
    assert run_together(fail) == [0, 0]


def test_keys_are_those_of_the_content(table):
    data = prepare(table("a.csv", TABLE))
    other = prepare(table("b.csv", TABLE + "one more,pos\n"))
    keys = dict(zip(data.texts("train"), data.keys.tolist(), strict=True))
    again = dict(zip(other.texts("train"), other.keys.tolist(), strict=True))
    assert len(set(keys.values())) == len(keys)
    both = keys.keys() & again.keys()
    assert len(both) > 45 and all(keys[text] == again[text] for text in both)
    assert set(prepare("a.csv", seed=1).keys.tolist()).isdisjoint(keys.values())


def test_saved_datasets_keep_their_splits_and_the_order_of_their_classes(table, tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    whole = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": whole.select(range(50)), "test": whole.select(range(50, 60))}
    ).save_to_disk("saved")  # fmt: skip
    data = prepare("saved")
    assert data.label_names == ("pos", "neg")
    assert list(data.texts("test")) == [text for text, _ in ROWS[50:]]
    assert [data.label_names[i] for i in data.labels("test")] == [label for _, label in ROWS[50:]]
    assert prepare("saved").fingerprint == data.fingerprint


def test_a_test_split_without_labels_is_left_out(table):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    train = datasets.Dataset.from_dict(rows, features)
    test = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}, features)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk("saved")
    data = prepare("saved")
    assert data.describe()["notes"] == ["saved (test) has no labels and is left out."]
    assert len(data.test) == 6


def test_parquet(table):
    rows = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    datasets.Dataset.from_dict(rows).to_parquet("a.parquet")
    table("b.csv", TABLE)
    assert prepare("a.parquet").train[:] == prepare("b.csv").train[:]
    Path("cut.parquet").write_bytes(Path("a.parquet").read_bytes()[:-100])
    assert error("cut.parquet") == ("cut.parquet does not end as a Parquet file does: it was cut.")
    assert error("a.parquet", label_column="labels").startswith(
        "a.parquet: no column 'labels' (--label_column). Did you mean 'label'?"
    )


def test_files_that_are_not_there(table):
    table("train.csv", TABLE)
    assert error("trian.csv", "x*.csv", ".", test_data=["train.doc"]) == (
        "trian.csv: no such file. Did you mean 'train.csv'?\n"
        "x*.csv: no such file.\n"
        ". is a folder: give its files, such as ./*.csv.\n"
        "train.doc: no such file. Did you mean 'train.csv'?"
    )
    table("train.doc", TABLE)
    assert error("train.doc", "train.csv") == (
        "train.doc: expected a name that ends in .csv, .tsv, .tab, .txt, .jsonl, .ndjson, .json, "
        ".parquet."
    )
    assert error("nobody/nothing").startswith(
        "nobody/nothing is no file here, and as a data set it could not be loaded: "
    )


def test_several_files_are_one_table(table):
    head, *lines = TABLE.splitlines(keepends=True)
    table("part1.csv", head + "".join(lines[:30]))
    table("part2.csv", head + "".join(lines[30:]))
    table("whole.csv", TABLE)
    assert prepare("part*.csv").train[:] == prepare("whole.csv").train[:]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("data", {"max_length": 3}, "max_length is 3; it must be 4 or more."),
        (
            "data",
            {"data": ["a"], "text_column": "a", "label_column": "a"},
            "text_column and label_column are both 'a': give two columns.",
        ),
        (
            "data",
            {"encoding": "utf-88"},
            "encoding 'utf-88' is not known: give a name such as utf-8, cp949, euc-kr, utf-16 or "
            "latin-1.",
        ),
        (
            "data",
            {"test_data": ["b.csv"]},
            "test_data given without data: give the training table as --data.",
        ),
        (
            "model",
            {"pretrained": "bert-base-uncased", "hidden_size": 8, "dropout": 0.0},
            "--pretrained bert-base-uncased and --hidden_size, --dropout exclude each other: a "
            "pretrained model has its sizes.",
        ),
        (
            "model",
            {"hidden_size": 100, "num_attention_heads": 3},
            "hidden_size 100 must be a multiple of num_attention_heads, 3.",
        ),
        ("model", {"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be 1 or more."),
        ("model", {"dropout": 1.0}, "dropout is 1.0; it must lie in [0, 1)."),
        ("model", {"vocab_size": 100}, "vocab_size is 100; it must be 512 or more."),
    ],
)
def test_settings_are_checked(kind, given, message):
    arguments = {
        "data": ClassificationDataArguments, "model": ClassificationModelArguments
    }[kind]  # fmt: skip
    assert arguments.check(vars(arguments(**given))) == [message]
    assert arguments.check(vars(arguments())) == []


def test_more_tokens_than_the_model_takes(table, tmp_path):
    data = prepare(table("a.csv", TABLE))
    options = {"label_names": data.label_names, "tokenizer": data.tokenizer, "max_length": 128}
    build_model(SMALL, **options, seed=0).save_pretrained("saved")
    data.tokenizer.save_pretrained("saved")
    model = ClassificationModelArguments(pretrained="saved")
    with pytest.raises(ConfigurationError) as caught:
        prepare("a.csv", model=model, max_length=200)
    assert str(caught.value) == "max_length is 200, but saved takes 128 tokens at the most."
    assert prepare("a.csv", model=model).train[:] == data.train[:]
