"""A training that ends well leaves its best model in the registry, whatever the Trainer."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from processes import run_alone, run_together
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from tracked_trainer import At, Model, make_trainer, send

from hftune.callbacks.model_info import is_sharded
from hftune.callbacks.registry import (
    ModelRegistryCallback,
    register_again,
    register_run_model,
)
from hftune.callbacks.tracking import ExperimentTrackingCallback
from hftune.configuration.arguments import HFTuneArguments
from hftune.tracking import index
from hftune.tracking.registry import ModelRegistry
from hftune.tracking.run_view import RunView
from hftune.tracking.store import Store
from hftune.tracking.tracker import ExperimentTracker
from hftune.training.trainer import HFTuneTrainer
from hftune.utils.errors import ConfigurationError
from hftune.utils.files import read_json

torch.set_num_threads(1)


def trained(folder, callback=None, before=True, **settings):
    """A tracked run that registers; the callbacks in either order."""
    registry = callback or ModelRegistryCallback()
    callbacks = [ExperimentTrackingCallback(), registry]
    trainer = make_trainer(folder, callbacks if before else callbacks[::-1], **settings)
    trainer.train()
    return trainer, registry.model_id


def weights(model_id) -> dict[str, torch.Tensor]:
    return load_file(ModelRegistry().folder(model_id) / "model.safetensors")


def is_equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("before", [True, False], ids=["tracking first", "registry first"])
def test_the_best_model_is_registered(tmp_path, before):
    settings = dict(load_best_model_at_end=True, learning_rate=3.0, warmup_steps=8)
    trainer, model_id = trained(tmp_path / "곱셈 run", before=before, **settings)
    best = trainer.state.best_global_step
    assert best < 12  # it diverges
    info = ModelRegistry().get_model_info(model_id)
    assert (info["name"], info["version"], info["architecture"]) == ("곱셈 run", 1, "Model")
    assert info["performance"] == {"loss": trainer.state.best_metric}
    assert info["lineage"]["step"] == best and info["lineage"]["ancestors"] == []
    assert info["config"]["training"]["learning_rate"] == 3.0
    facts = info["training_info"]
    assert facts.pop("seconds") > 0
    assert facts == {"epochs": 1.5, "steps": 12, "batch_size": 4, "learning_rate": 3.0}
    saved = load_file(tmp_path / "곱셈 run" / f"checkpoint-{best}" / "model.safetensors")
    assert is_equal(weights(model_id), saved)

    run = RunView.from_folder(tmp_path / "곱셈 run")
    assert info["experiment_id"] == run.record["experiment_id"] and run.status == "completed"
    assert run.record["model_info"] == {
        "class": "Model",
        "parameters": 33,
        "trainable_parameters": 33,
        "dtype": "float32",
        "model_id": model_id,
        "name": "곱셈 run",
        "version": 1,
        "checkpoint_path": str(ModelRegistry().folder(model_id)),
    }
    [event] = [event for event in run.events if event["kind"] == "model"]
    assert (event["model_id"], event["step"]) == (model_id, best)
    assert not list((tmp_path / "곱셈 run").glob("*registered*"))
    stored = RunView.from_store(Store(), run.record["experiment_id"])
    assert stored.record["model_info"]["model_id"] == model_id


def test_without_a_best_model_the_last_one_is_registered(tmp_path):
    trainer, model_id = trained(tmp_path)
    assert is_equal(weights(model_id), trainer.model.state_dict())
    performance = ModelRegistry().get_model_info(model_id)["performance"]
    assert performance == {"loss": trainer.state.log_history[-2]["eval_loss"]}

    trainer, model_id = trained(tmp_path / "unseen", eval_strategy="no")
    performance = ModelRegistry().get_model_info(model_id)["performance"]
    assert performance == {"train_loss": trainer.state.log_history[-1]["train_loss"]}


def test_the_same_content_is_the_same_version(tmp_path):
    _, first = trained(tmp_path / "a", ModelRegistryCallback(name="product"))
    _, again = trained(tmp_path / "b", ModelRegistryCallback(name="product"))
    _, other = trained(tmp_path / "c", ModelRegistryCallback(name="product"), seed=8)
    assert first == again != other
    versions = [ModelRegistry().get_model_info(m)["version"] for m in (first, other)]
    assert versions == [1, 2]
    for folder in ("a", "b"):
        assert read_json(tmp_path / folder / "run.json")["model_info"]["model_id"] == first


def test_without_a_tracked_run(tmp_path):
    callback = ModelRegistryCallback(name="product", architecture="mlp", checkpoint="nothing")
    make_trainer(tmp_path, [callback]).train()
    info = ModelRegistry().get_model_info(callback.model_id)
    assert (info["name"], info["architecture"], info["checkpoint"]) == ("product", "mlp", "nothing")
    assert info["experiment_id"] is None and info["config"]["training"]["max_steps"] == 12


def test_a_name_that_no_model_can_have(tmp_path):
    tracking = ExperimentTrackingCallback(name="../lr=1e-4: first\ntry")
    callback = ModelRegistryCallback()
    make_trainer(tmp_path, [tracking, callback]).train()
    assert ModelRegistry().get_model_info(callback.model_id)["name"] == "lr-1e-4- first-try"


@pytest.mark.parametrize(("step", "status", "count"), [(6, "preempted", 0), (12, "completed", 1)])
def test_a_training_that_was_stopped_registers_nothing(tmp_path, step, status, count):
    def work():
        callbacks = [ExperimentTrackingCallback(), ModelRegistryCallback()]
        kinds = dict(kind=HFTuneTrainer, arguments=HFTuneArguments)
        trainer = make_trainer(tmp_path, callbacks, **kinds)
        trainer.add_callback(At(step, send(signal.SIGTERM)))
        trainer.train()

    assert run_alone(work) == 75
    assert RunView.from_folder(tmp_path).status == status  # after its last step nothing is left
    assert len(ModelRegistry().search_models()) == count


# Failures


def test_a_failure_is_reported_and_can_be_repeated(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HFTUNE_MODELS_DIR", str(tmp_path / "file"))
    trainer, model_id = trained(tmp_path / "out", ModelRegistryCallback(name="product"))
    assert model_id is None and trainer.state.global_step == 12
    run = RunView.from_folder(tmp_path / "out")
    assert run.status == "completed"
    [warning] = [event for event in run.events if event["kind"] == "warning"]
    message = warning["message"]
    assert f"the model in {tmp_path / 'out' / 'unregistered_model'} is not registered" in message
    assert " ".join(message.split()) in " ".join(capsys.readouterr().err.split())

    command = message.partition("Once that is mended: ")[2]
    still = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert still.returncode == 1 and still.stderr.splitlines()[-1].startswith("error: ")
    monkeypatch.delenv("HFTUNE_MODELS_DIR")
    subprocess.run(command, shell=True, check=True)
    [info] = ModelRegistry().search_models(name="product")
    assert is_equal(weights(info["model_id"]), trainer.model.state_dict())
    assert info["performance"] == {"loss": trainer.state.log_history[-2]["eval_loss"]}
    index.refresh(Store())
    stored = RunView.from_store(Store(), info["experiment_id"])
    assert stored.record["model_info"]["model_id"] == info["model_id"]
    with pytest.raises(ConfigurationError, match="no registration failed there"):
        register_again(tmp_path / "out")


def test_a_wrong_name_does_not_fail_the_run(tmp_path, capsys):
    trainer, model_id = trained(tmp_path, ModelRegistryCallback(name="../product"))
    assert model_id is None and RunView.from_folder(tmp_path).status == "completed"
    assert "model name '../product' cannot be a file name" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_model_that_cannot_be_saved(tmp_path, capsys):
    class Unsavable(Model):
        def save_pretrained(self, folder):
            Path(folder, "half").write_text("")
            raise OSError(28, "No space left on device")

    _, model_id = trained(tmp_path, model=Unsavable())
    assert model_id is None and RunView.from_folder(tmp_path).status == "completed"
    assert "is not registered: [Errno 28] No space left" in capsys.readouterr().err
    assert not (tmp_path / "unregistered_model").exists()


def test_an_average_that_is_not_in_place_yet(tmp_path, capsys):
    kinds = dict(kind=HFTuneTrainer, arguments=HFTuneArguments, ema_decay=0.9)
    _, model_id = trained(tmp_path, **kinds)
    assert model_id is None
    assert "set load_best_model_at_end" in " ".join(capsys.readouterr().err.split())
    trainer, model_id = trained(tmp_path / "best", load_best_model_at_end=True, **kinds)
    assert is_equal(weights(model_id), trainer.model.state_dict())


def test_a_best_checkpoint_that_is_damaged_lends_its_scores_to_no_other_weights(tmp_path, capsys):
    class Damage(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == state.max_steps:
                path = Path(state.best_model_checkpoint, "model.safetensors")
                path.write_bytes(path.read_bytes()[:-1] + b"x")

    class Both(ModelRegistryCallback, Damage):
        pass

    settings = dict(load_best_model_at_end=True, learning_rate=3.0, warmup_steps=8)
    trainer, model_id = trained(
        tmp_path, Both(), kind=HFTuneTrainer, arguments=HFTuneArguments, **settings
    )
    assert "is damaged (model.safetensors has changed" in " ".join(capsys.readouterr().err.split())
    last = tmp_path / "checkpoint-12"
    assert is_equal(weights(model_id), load_file(last / "model.safetensors"))
    [evaluated] = [log for log in trainer.state.log_history[-3:] if "eval_loss" in log]
    assert evaluated["step"] == 12
    info = ModelRegistry().get_model_info(model_id)
    assert info["performance"] == {"loss": evaluated["eval_loss"]} and info["lineage"]["step"] == 12


# Recipes


def test_a_model_that_a_recipe_saved(tmp_path):
    given = {"value": 1e-4, "source": "command line"}
    table = {"training": {"learning_rate": given, "seed": {"value": 42, "source": "default"}}}
    with ExperimentTracker().start(tmp_path, task="test", configuration=table) as record:
        record.begin_stage("24 h")
        record.update(data={"fingerprint": "abc"}, metric_directions={"our_skill": True})
        record.finish()
        Path(tmp_path, "model").mkdir()
        transformers.BertConfig().save_pretrained(tmp_path / "model")
        model_id = register_run_model(
            record, None, tmp_path / "model", "recipe", {"our_skill": 0.7, "loss": float("nan")},
            architecture="mlp", step=6, training_info={"epochs": 2},
        )  # fmt: skip
    info = ModelRegistry().get_model_info(model_id)
    assert info["config"] == {"training": {"learning_rate": 1e-4}}
    lineage = info["lineage"]
    assert (lineage["data_fingerprint"], lineage["stage"], lineage["step"]) == ("abc", "24 h", 6)
    assert ModelRegistry().get_best_models("our_skill")[0]["model_id"] == model_id
    assert (tmp_path / "model" / "config.json").exists()  # a copy was registered


def test_a_model_that_began_with_a_registered_one(tmp_path):
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        vocab_size=20,
    )  # fmt: skip
    data = [{"input_ids": [1, 2, 3], "labels": i % 2} for i in range(8)]

    def train(model, folder):
        arguments = transformers.TrainingArguments(
            str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no"
        )
        callbacks = [ExperimentTrackingCallback(), ModelRegistryCallback()]
        transformers.Trainer(model, arguments, train_dataset=data, callbacks=callbacks).train()
        return callbacks[1].model_id

    kind = transformers.BertForSequenceClassification
    first = train(kind(config), tmp_path / "first")
    second = train(kind.from_pretrained(ModelRegistry().folder(first)), tmp_path / "second")
    assert ModelRegistry().get_model_info(first)["architecture"] == "bert"
    assert ModelRegistry().get_model_info(second)["parent_model"] == first


# Several processes


def together(work) -> list[int]:
    def in_group(rank):
        work(rank)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    return run_together(in_group)


def test_one_process_of_a_group_registers(tmp_path):
    def work(rank):
        _, model_id = trained(tmp_path, ModelRegistryCallback(name="product"))
        assert (model_id is None) == (rank == 1)

    assert together(work) == [0, 0]
    [info] = ModelRegistry().search_models()
    assert info["training_info"]["batch_size"] == 8
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert is_equal(weights(info["model_id"]), saved)


def shard_on_cpu(monkeypatch) -> None:
    """Has accelerate take FSDP on CPUs for what it is; it silently makes plain DDP of it."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    init = AcceleratorState.__init__

    def init_sharded(self, *args, **kwargs):
        init(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = plugin

    monkeypatch.setattr(AcceleratorState, "__init__", init_sharded)


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_sharded_model_is_registered_where_its_checkpoint_is_whole(tmp_path, monkeypatch, kind):
    shard_on_cpu(monkeypatch)

    def work(rank):
        config = transformers.GPT2Config(
            vocab_size=8, n_positions=8, n_embd=8, n_layer=2, n_head=2,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        blocks = {"version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"]}
        whole = kind == "FULL_STATE_DICT"
        arguments = transformers.TrainingArguments(
            **{**settings(tmp_path), "load_best_model_at_end": whole},
            fsdp=True,
            fsdp_config={**blocks, "state_dict_type": kind},
        )
        data = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 16
        callbacks = [ExperimentTrackingCallback(), ModelRegistryCallback(name="sharded")]
        trainer = transformers.Trainer(
            transformers.GPT2LMHeadModel(config),
            arguments,
            train_dataset=data,
            eval_dataset=data,
            callbacks=callbacks,
        )
        trainer.train()
        assert is_sharded(trainer.model) and not is_sharded(nn.Linear(2, 4))
        assert (callbacks[1].model_id is not None) == (whole and rank == 0)

    assert together(work) == [0, 0]
    run = RunView.from_folder(tmp_path)
    assert run.status == "completed" and run.record["model_info"]["class"] == "GPT2LMHeadModel"
    assert run.record["model_info"]["parameters"] == 1888
    models = ModelRegistry().search_models()
    if kind == "SHARDED_STATE_DICT":
        [message] = [e["message"] for e in run.events if "share its weights" in str(e)]
        assert f"{tmp_path / 'checkpoint-4'} does not have them whole" in message
        assert models == []
        return
    [info] = models
    checkpoint = tmp_path / f"checkpoint-{info['lineage']['step']}"
    assert is_equal(weights(info["model_id"]), load_file(checkpoint / "model.safetensors"))
    assert "pytorch_model_fsdp.bin" in info["left_out"]
    transformers.AutoModelForCausalLM.from_pretrained(ModelRegistry().folder("sharded"))


# Trainers of others


def words(*more: str):
    """A tokenizer that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "a", "b", *more])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def settings(folder, **more):
    return dict(
        output_dir=str(folder), max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2,
        save_steps=2, load_best_model_at_end=True, per_device_train_batch_size=2, use_cpu=True,
        disable_tqdm=True, **more,
    )  # fmt: skip


def check_run(folder, trainer, registry) -> RunView:
    run = RunView.from_folder(folder)
    assert run.status == "completed" and run.curve("loss")[0] == [2, 4]
    assert run.curve("eval_loss")[0] == [2, 4]
    own = [e for e in run.events if e["kind"] == "warning" and "source" not in e]
    assert not own  # libraries may warn of what they like
    assert run.record["model_info"]["model_id"] == registry.model_id
    logged = {name for logs in trainer.state.log_history for name in logs} - {"step"}
    assert logged <= set(run.metric_names())
    return run


def test_trl(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    config = transformers.GPT2Config(vocab_size=5, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    data = datasets.Dataset.from_dict({"text": ["a b a b"] * 8})
    callbacks = [ExperimentTrackingCallback(), ModelRegistryCallback(name="gpt")]
    trainer = trl.SFTTrainer(
        model=transformers.GPT2LMHeadModel(config),
        args=trl.SFTConfig(**settings(tmp_path), max_length=16, bf16=False),
        train_dataset=data,
        eval_dataset=data,
        processing_class=words(),
        callbacks=callbacks,
    )
    trainer.train()
    run = check_run(tmp_path, trainer, callbacks[1])
    assert len(run.curve("mean_token_accuracy")[0]) == 2
    assert run.record["model_type"] == "gpt2" and run.record["data"]["train_samples"] == 8
    assert len(run.record["data"]["fingerprint"]) == 16
    folder = ModelRegistry().folder(callbacks[1].model_id)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert is_equal(loaded.state_dict(), trainer.model.state_dict())
    assert transformers.AutoTokenizer.from_pretrained(folder).get_vocab() == words().get_vocab()


def test_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    datasets = pytest.importorskip("datasets")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        vocab_size=6, max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "base")
    words("c").save_pretrained(tmp_path / "base")
    parts = [modules.Transformer(str(tmp_path / "base")), modules.Pooling(8)]
    model = library.SentenceTransformer(modules=parts, device="cpu")
    data = datasets.Dataset.from_dict(
        {"one": ["a b", "b c"] * 4, "other": ["a", "a a"] * 4, "score": [0.1, 0.9] * 4}
    )
    callbacks = [ExperimentTrackingCallback(), ModelRegistryCallback(name="sentences")]
    trainer = library.SentenceTransformerTrainer(
        model=model,
        args=library.SentenceTransformerTrainingArguments(**settings(tmp_path / "out")),
        train_dataset=data,
        eval_dataset=data,
        callbacks=callbacks,
    )
    trainer.train()
    check_run(tmp_path / "out", trainer, callbacks[1])
    loaded = library.SentenceTransformer(
        str(ModelRegistry().folder(callbacks[1].model_id)), device="cpu"
    )
    assert (loaded.encode(["a b"]) == model.encode(["a b"])).all()


def test_a_distilbert_of_the_users_own(tmp_path):
    config = transformers.DistilBertConfig()
    model = transformers.DistilBertForSequenceClassification(config)
    data = [
        {"input_ids": [101, i, 102], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)
    ]
    callbacks = [ExperimentTrackingCallback(), ModelRegistryCallback()]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, logging_steps=1, save_strategy="no", use_cpu=True,
        per_device_train_batch_size=2, disable_tqdm=True, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks
    )
    trainer.train()
    run = RunView.from_folder(tmp_path)
    assert run.status == "completed" and run.curve("loss")[0] == [1, 2]
    assert run.record["model_info"]["parameters"] == 66_955_010
    assert run.record["model_type"] == "distilbert"
    folder = ModelRegistry().folder(callbacks[1].model_id)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert is_equal(loaded.state_dict(), model.state_dict())
