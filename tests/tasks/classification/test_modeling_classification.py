"""Models: new ones from the seed, pretrained ones with their head or a new one."""

from __future__ import annotations

import pytest
import torch
from small_texts import SMALL, TABLE, prepare
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hftune import HFTuneArguments, HFTuneTrainer
from hftune.tasks.classification.arguments_classification import ClassificationModelArguments
from hftune.tasks.classification.modeling_classification import build_model
from hftune.utils.errors import CheckpointError

DISTILBERT = ClassificationModelArguments(
    **{**vars(SMALL), "model_type": "distilbert", "dropout": 0.0}
)


def build(data, arguments=SMALL, seed=0):
    return build_model(
        arguments,
        label_names=data.label_names,
        tokenizer=data.tokenizer,
        max_length=data.max_length,
        seed=seed,
    )


def same(one, other) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.fixture
def data(table):
    return prepare(table("a.csv", TABLE))


@pytest.fixture
def saved(data):
    """Folder of a model whose labels are in an order that is not theirs when sorted."""
    model = build(data, seed=3)
    model.config.id2label, model.config.label2id = {0: "pos", 1: "neg"}, {"pos": 0, "neg": 1}
    model.save_pretrained("saved")
    data.tokenizer.save_pretrained("saved")
    return ClassificationModelArguments(pretrained="saved")


def test_weights_come_from_the_seed_alone(data):
    torch.manual_seed(7)
    first = build(data)
    drawn = torch.rand(3)
    torch.manual_seed(8)
    assert same(first, build(data))
    assert not same(first, build(data, seed=1))
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("arguments", [SMALL, DISTILBERT])
def test_a_new_model_has_the_sizes_and_the_labels(data, arguments):
    config = build(data, arguments).config
    assert config.model_type == arguments.sizes["model_type"]
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 1, 2)
    assert config.vocab_size == len(data.tokenizer) <= 600
    assert config.id2label == {0: "neg", 1: "pos"}
    assert config.label2id == {"neg": 0, "pos": 1}
    assert config.pad_token_id == data.tokenizer.pad_token_id


@pytest.mark.parametrize("arguments", [SMALL, DISTILBERT])
def test_a_saved_model_gives_the_same_logits(data, arguments):
    model = build(data, arguments).eval()
    model.save_pretrained("model")
    data.tokenizer.save_pretrained("model")
    loaded = AutoModelForSequenceClassification.from_pretrained("model").eval()
    tokenizer = AutoTokenizer.from_pretrained("model")
    texts = list(data.texts("train"))[:8]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ours = data.collator([data.train.remove_columns("labels")[i] for i in range(8)])
    assert batch["input_ids"].equal(ours["input_ids"])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**ours).logits)
    answer = pipeline("text-classification", "model", device="cpu")(texts[0])[0]
    assert answer["label"] in data.label_names


def test_padding_changes_nothing(data):
    model = build(data).eval()
    samples = [data.train[i] for i in range(12)]
    alone = [model(**data.collator([sample])).logits for sample in samples]
    with torch.no_grad():
        together = model(**data.collator(samples)).logits
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "text", ["좋아요 ㅋㅋ 아주", "한국 영화", "emoji 🙂", "é", "\u1112\u1161\u11ab"]
)
def test_the_trained_tokenizer_knows_every_text(data, text):
    import unicodedata

    ids = data.tokenizer(text)["input_ids"]
    assert data.tokenizer.unk_token_id not in ids
    assert data.tokenizer.decode(ids, skip_special_tokens=True).strip() == (
        unicodedata.normalize("NFC", text)
    )


def test_a_pretrained_classifier_of_the_same_labels_keeps_its_head_and_their_order(
    data, saved, capfd
):
    tuned = prepare("a.csv", model=saved)
    assert tuned.label_names == ("pos", "neg")
    assert tuned.train.features["labels"].names == ["pos", "neg"]
    assert list(tuned.texts("train")) == list(data.texts("train"))
    assert (tuned.labels("train") == 1 - data.labels("train")).all()
    model = build(tuned, saved)
    assert same(model, build(data, seed=3))
    assert model.config.id2label == {0: "pos", 1: "neg"}
    assert "classifier" not in capfd.readouterr().err


def test_other_labels_make_a_new_head(data, saved, table, capfd):
    table("b.csv", TABLE.replace("pos", "good").replace("neg", "bad"))  # as many as before
    table("c.csv", TABLE + "".join(f"unsure {i},neither\n" for i in range(10)))
    old = build(data, seed=3).state_dict()
    for name, labels in (("b.csv", ("bad", "good")), ("c.csv", ("neg", "neither", "pos"))):
        other = prepare(name, model=saved)
        assert other.label_names == labels
        model = build(other, saved)
        for key, value in model.state_dict().items():
            if key == "classifier.bias":
                assert (value == 0).all()
            else:
                assert torch.equal(value, old[key]) == (key != "classifier.weight"), key
        assert same(model, build(other, saved)) and not same(model, build(other, saved, seed=1))
        said = f"The classifier of saved is new: {len(labels)} labels instead of 2 (pos, neg)."
        assert said in " ".join(capfd.readouterr().err.split())


def test_a_model_without_a_head_gets_one(data, capfd):
    model = build(data)
    model.bert.save_pretrained("base")
    data.tokenizer.save_pretrained("base")
    arguments = ClassificationModelArguments(pretrained="base")
    tuned = build(prepare("a.csv", model=arguments), arguments)
    weights = {name: value for name, value in tuned.state_dict().items() if name[:4] == "bert"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())
    assert tuned.dtype == torch.float32
    assert "The classifier of base is new: 2 labels" in " ".join(capfd.readouterr().err.split())


def test_half_precision_weights_are_loaded_in_float32(data, saved):
    build(data, seed=3).to(torch.bfloat16).save_pretrained("saved")
    assert {p.dtype for p in build(prepare("a.csv", model=saved), saved).parameters()} == {
        torch.float32
    }


def test_plain_class_numbers_are_the_labels_of_a_plain_training(data, table):
    rows = "".join(f"text {i} {'good' if i % 2 else 'bad'},{i % 2}\n" for i in range(40))
    table("b.csv", "text,label\n" + rows)
    model = build(data, seed=3)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.save_pretrained("plain")
    data.tokenizer.save_pretrained("plain")
    arguments = ClassificationModelArguments(pretrained="plain")
    numbers = prepare("b.csv", model=arguments)
    assert numbers.label_names == ("0", "1")
    tuned = build(numbers, arguments)
    assert torch.equal(tuned.classifier.weight, model.classifier.weight)
    assert tuned.config.id2label == {0: "0", 1: "1"}


def test_a_model_that_is_not_there(data):
    arguments = ClassificationModelArguments(pretrained="nowhere")
    with pytest.raises(CheckpointError, match="--pretrained nowhere: its configuration cannot be"):
        prepare("a.csv", model=arguments)


def test_gradients_of_accumulated_batches_are_those_of_one(data, tmp_path):
    """Of 4 x 2 and 1 x 8 samples of one length, whose losses are means over as many samples."""

    def gradients(steps, size):
        model = build(data, DISTILBERT)
        args = HFTuneArguments(
            output_dir=str(tmp_path / f"run{steps}"),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=1.0,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        before = {name: value.clone() for name, value in model.named_parameters()}
        trainer = HFTuneTrainer(
            model, args, train_dataset=data.train.select(range(8)), data_collator=data.collator
        )
        trainer.train()
        return {name: before[name] - value for name, value in model.named_parameters()}

    one, four = gradients(1, 8), gradients(4, 2)
    assert max(value.abs().max() for value in one.values()) > 1e-4
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, atol=1e-8, rtol=1e-4)
