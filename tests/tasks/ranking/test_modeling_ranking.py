"""The ranking model: scores, losses, modes, and that a saved one is the same one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_ranking import (
    BACKBONES,
    HEAD,
    SIZE,
    TIMM_BACKBONES,
    small_backbone,
    small_model,
    small_pixels,
)
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPProcessor,
    Dinov2Config,
    TimmWrapperConfig,
)

from hftune import HFTuneArguments, HFTuneTrainer
from hftune.tasks.ranking.backbones_ranking import blocks_of
from hftune.tasks.ranking.configuration_ranking import LOSS_FUNCTIONS, PairwiseRankingConfig
from hftune.tasks.ranking.losses_ranking import all_pairs_loss
from hftune.tasks.ranking.modeling_ranking import (
    PairwiseRankingModel,
    make_processor,
    ranking_config,
)
from hftune.utils.errors import CheckpointError, ConfigurationError

ALL = {**BACKBONES, **TIMM_BACKBONES}


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All of a model's, also the buffers that are not saved."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same(one: PairwiseRankingModel, other: PairwiseRankingModel) -> None:
    theirs = tensors(other)
    assert tensors(one).keys() == theirs.keys()
    for name, value in tensors(one).items():
        assert theirs[name].device.type == "cpu", name
        assert torch.equal(value, theirs[name]), name
        assert value.requires_grad == theirs[name].requires_grad, name


@pytest.fixture
def images(tmp_path):
    """Files of images of several sizes."""
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, size in zip(paths, [(32, 32), (40, 24), (20, 60), (32, 32), (9, 8)], strict=True):
        Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return paths


# Saving


@pytest.mark.parametrize("family", ALL)
def test_a_loaded_model_is_the_saved_one(family, tmp_path):
    model = small_model(family)
    model.save_pretrained(tmp_path)
    torch.manual_seed(5)
    loaded = PairwiseRankingModel.from_pretrained(tmp_path)
    assert_same(model, loaded)
    assert not loaded.training
    with torch.no_grad():
        wanted, scores = model(small_pixels()).scores, loaded(small_pixels()).scores
    torch.testing.assert_close(scores, wanted, rtol=1e-6, atol=0)  # memory is aligned otherwise
    if family != "timm_resnet":  # which has but one place left of so small an image
        assert wanted.unique().numel() == 4
    assert loaded.image_processor.settings() == model.image_processor.settings()


@pytest.mark.parametrize(
    "settings",
    [
        {"unfreeze_last_blocks": 1},
        {"freeze_backbone": False},
        {"lora_rank": 2, "lora_target_modules": ["q_proj", "fc1"]},
    ],
)
@pytest.mark.parametrize("family", ["dinov2", "siglip"])
def test_what_trains_is_the_same_after_loading(family, settings, tmp_path):
    model = small_model(family, **settings)
    model.save_pretrained(tmp_path)
    loaded = PairwiseRankingModel.from_pretrained(tmp_path)
    assert_same(model, loaded)
    with torch.no_grad():
        assert model(small_pixels()).scores.equal(loaded(small_pixels()).scores)


def test_transformers_finds_it_by_its_kind(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, PairwiseRankingModel)
    assert_same(model, loaded)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PairwiseRankingConfig)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.settings() == loaded.image_processor.settings()


def test_saving_twice_and_in_half_precision(tmp_path):
    model = small_model()
    model.config.score_temperature, model.config.tiers = 1.7, ["S", "A"]
    model.save_pretrained(tmp_path / "one")
    PairwiseRankingModel.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    half = PairwiseRankingModel.from_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.score(small_pixels()).dtype == torch.float32
    half.save_pretrained(tmp_path / "half")
    loaded = PairwiseRankingModel.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.config.score_temperature == 1.7 and loaded.config.tiers == ["S", "A"]


def test_a_model_without_a_processor_has_none_after_loading(tmp_path):
    model = small_model()
    model.image_processor = None
    model.save_pretrained(tmp_path)
    assert PairwiseRankingModel.from_pretrained(tmp_path).image_processor is None


def test_a_checkpoint_of_another_backbone(tmp_path):
    small_model("vit").save_pretrained(tmp_path / "vit")
    small_model("dinov2").save_pretrained(tmp_path / "dinov2")
    settings = (tmp_path / "dinov2" / "config.json").read_text()
    (tmp_path / "vit" / "config.json").write_text(settings)
    with pytest.raises(CheckpointError) as error:
        PairwiseRankingModel.from_pretrained(tmp_path / "vit")
    lines = str(error.value).splitlines()
    assert "are of another architecture than the configuration" in lines[0]
    assert lines[1].strip().startswith("31 missing from it: backbone.embeddings.mask_token")
    assert "26 that the model does not have: backbone." in lines[2]
    assert lines[-1] == "Use the configuration that they were saved with."


def test_a_checkpoint_of_another_size(tmp_path):
    small_model("vit").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "projector_output_dim": 9}))
    with pytest.raises(CheckpointError, match="3 of another shape: head.projector.3.bias"):
        PairwiseRankingModel.from_pretrained(tmp_path)


def test_a_checkpoint_of_the_head_alone(tmp_path):
    small_model("vit").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    head = {name: v for name, v in load_file(file).items() if name.startswith("head.")}
    save_file(head, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"a training on cached features, .* last_model/"):
        PairwiseRankingModel.from_pretrained(tmp_path)
    # Not so where only some weights of the backbone are missing.
    small_model("vit").save_pretrained(tmp_path)
    some = load_file(file)
    del some["backbone.layernorm.bias"]
    save_file(some, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing from it: .*layernorm.bias\nUse the conf"):
        PairwiseRankingModel.from_pretrained(tmp_path)


def test_damaged_and_foreign_files(tmp_path):
    model = small_model("vit")
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="the weights in .*model are damaged: "):
        PairwiseRankingModel.from_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="there is no ranking model in .*nothing: "):
        PairwiseRankingModel.from_pretrained(tmp_path / "nothing")
    small_backbone("vit").save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match="its config.json has vit. A backbone is given as"):
        PairwiseRankingModel.from_pretrained(tmp_path / "vit")


# The manual's construction


@pytest.fixture
def dinov2(tmp_path):
    """Folder of a pretrained backbone with its published image processor."""
    small_backbone("dinov2").save_pretrained(tmp_path / "dinov2")
    BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(
        tmp_path / "dinov2"
    )
    return tmp_path / "dinov2"


def test_a_model_from_the_name_of_a_backbone(dinov2):
    model = PairwiseRankingModel(
        backbone_name=str(dinov2),
        image_size=40,
        projector_output_dim=12,
        projector_dropout=0.3,
        freeze_backbone=True,
    )
    for name, value in small_backbone("dinov2").state_dict().items():
        assert value.equal(model.backbone.state_dict()[name])
    assert model.config.backbone_name == "dinov2"
    assert model.head.projector[-1].out_features == 12
    assert {m.p for m in model.head.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    processor = model.image_processor
    assert (processor.size, processor.patch_size, processor.resize_mode) == (40, 8, "letterbox")
    assert (processor.image_mean, processor.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    first, second = model(small_pixels(), small_pixels(seed=1))
    assert first.shape == second.shape == (4, 1)
    model.compute_loss(first, second, torch.tensor([1.0, -1, -1, 1])).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("head.")}


def test_colours_of_a_model_of_images_and_texts(tmp_path):
    """transformers 5 writes the settings of images into those of the whole processor."""
    CLIPImageProcessor(image_mean=[0.3, 0.2, 0.1]).save_pretrained(tmp_path / "alone")
    vision = BACKBONES["clip"]
    assert make_processor(vision, SIZE, "squash", str(tmp_path / "alone")).image_mean[0] == 0.3
    assert "image_processor" in CLIPProcessor.get_attributes()
    (tmp_path / "whole").mkdir()
    inner = json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text())
    (tmp_path / "whole" / "processor_config.json").write_text(
        json.dumps({"processor_class": "CLIPProcessor", "image_processor": inner})
    )
    assert make_processor(vision, SIZE, "squash", str(tmp_path / "whole")).image_mean[0] == 0.3


def test_backbones_of_one_size_take_no_images_of_their_own():
    levit = TimmWrapperConfig(architecture="levit_128s", model_args={"img_size": 224})
    with pytest.raises(
        ConfigurationError, match="timm's levit_128s takes images of one size alone"
    ):
        make_processor(levit, 224, "native")
    assert make_processor(levit, 224, "crop").size == 224
    assert make_processor(ALL["timm_vit"], 224, "native").patch_size == 8


def test_a_configuration_excludes_settings():
    config = ranking_config(small_backbone(), **HEAD)
    with pytest.raises(ConfigurationError, match="found a configuration and margin, pooling"):
        PairwiseRankingModel(config, margin=2, pooling="cls")


def test_wrong_settings_of_a_model_by_name(dinov2):
    with pytest.raises(ConfigurationError, match="projector_dropout: found 1.5"):
        PairwiseRankingModel(backbone_name=str(dinov2), image_size=32, projector_dropout=1.5)


def test_a_new_backbone_keeps_its_own_initialisation():
    config = ranking_config(small_backbone("timm_vit", seed=7), **HEAD)
    model = PairwiseRankingModel(config, backbone=small_backbone("timm_vit", seed=7))
    for name, value in small_backbone("timm_vit", seed=7).state_dict().items():
        assert value.equal(model.backbone.state_dict()[name])


# Scores


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
def test_features_are_of_the_class_token_and_the_patches(pooling):
    model = small_model("dinov2_registers", pooling=pooling)
    with torch.no_grad():
        hidden = model.backbone(small_pixels()).last_hidden_state
        features = model.encode(small_pixels())
    assert hidden.shape == (4, 1 + 3 + 16, 16)
    patches = torch.stack([image[4:].sum(0) / 16 for image in hidden])
    wanted = {"cls": [hidden[:, 0]], "mean": [patches], "cls_mean": [hidden[:, 0], patches]}
    torch.testing.assert_close(features, torch.cat(wanted[pooling], 1))
    assert features.shape == (4, model.config.feature_size)


@pytest.mark.parametrize("family", ["dinov2", "vit", "siglip", "timm_vit", "timm_rope", "resnet"])
def test_images_of_other_sizes_than_the_backbone_was_made_for(family):
    model = small_model(family)
    sizes = [(48, 40), (32, 32), (40, 48), (48, 40), (32, 32)]
    images = [small_pixels(1, *size, seed=i)[0] for i, size in enumerate(sizes)]
    with torch.no_grad():
        together = model.encode(images)
        alone = torch.cat([model.encode(image[None]) for image in images])
    torch.testing.assert_close(together, alone)
    passes = []
    model.backbone.register_forward_pre_hook(
        lambda *args: passes.append(len(args[2]["pixel_values"])), with_kwargs=True
    )
    model(images)
    assert sorted(passes) == [1, 2, 2]  # those of one size go together


def test_two_images_are_scored_as_one_each():
    model = small_model()
    first, second = small_pixels(3), small_pixels(3, seed=1)
    score1, score2 = model(first, second)
    assert score1.shape == score2.shape == (3, 1)
    output = model(torch.cat([first, second]))
    torch.testing.assert_close(torch.cat([score1, score2])[:, 0], output.scores)
    assert output.loss is None and output.measures is None
    features = model.encode(first)
    torch.testing.assert_close(model(features=features).scores, score1[:, 0])


@pytest.mark.parametrize("resize_mode", ["letterbox", "native"])
def test_scores_of_files_pictures_arrays_and_pixels(images, resize_mode):
    model = small_model(resize_mode=resize_mode)
    model.train()
    with torch.no_grad():
        model.eval()
        wanted = torch.stack(
            [model(model.image_processor([p])["pixel_values"]).scores[0] for p in images]
        )
        model.train()
    pictures = [Image.open(path).convert("RGB") for path in images]
    for given in (images, [str(p) for p in images], pictures, [np.array(p) for p in pictures]):
        scores = model.score(given, batch_size=2)
        assert scores.shape == (5,) and scores.dtype == torch.float32
        torch.testing.assert_close(scores, wanted)
        torch.testing.assert_close(model.score(tuple(given)), wanted)
        torch.testing.assert_close(model.score(given[1]), wanted[1:2])
    if resize_mode == "letterbox":
        pixels = model.image_processor(images)["pixel_values"]
        torch.testing.assert_close(model.score(pixels, batch_size=3), wanted)
        torch.testing.assert_close(model.score(list(pixels)), wanted)
        torch.testing.assert_close(model.score(pixels[1]), wanted[1:2])
    assert model.training and not wanted.requires_grad
    assert model.score([]).shape == (0,)


def test_files_need_a_processor(images):
    model = small_model()
    model.image_processor = None
    with pytest.raises(ConfigurationError, match="the model has no image processor"):
        model.score(images)
    assert model.score(small_pixels()).shape == (4,)


def test_features_are_standardised_unless_they_are_constant():
    model = small_model(projector_dropout=0.0)
    features = torch.randn(50, 32) * torch.linspace(0.5, 30, 32) + 7
    features[:, 3] = 2.0
    features[:, 4] = 2.0 + 1e-6 * torch.randn(50)
    mean, std = features.mean(0), features.std(0, correction=0)
    model.head.set_statistics(mean, std)
    seen = []
    model.head.projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    scores = model(features=features).scores
    assert scores.isfinite().all()
    constant = [3, 4]
    varying = [i for i in range(32) if i not in constant]
    torch.testing.assert_close(seen[0][:, varying].mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0][:, varying].std(0, correction=0), torch.ones(30))
    assert seen[0][:, constant].abs().max() < 1e-4
    # All of them constant, as of a backbone that sees nothing.
    model.head.set_statistics(torch.ones(32), torch.zeros(32))
    assert model(features=torch.ones(2, 32)).scores.isfinite().all()


# Losses


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_compute_loss_is_that_of_torch(shape):
    first, second = torch.randn(2, *shape).unbind()
    labels = torch.tensor([1, -1, -1, 1, 1, -1]).reshape(shape)
    loss = small_model(loss_function="margin", margin=0.7).compute_loss(first, second, labels)
    wanted = torch.nn.MarginRankingLoss(0.7)(first, second, labels)
    torch.testing.assert_close(loss, wanted)
    loss = small_model().compute_loss(first, second, labels)
    wanted = functional.binary_cross_entropy_with_logits(first - second, (labels + 1) / 2)
    torch.testing.assert_close(loss, wanted)
    gaps = torch.tensor([1.0, 2, 3, 1, 2, 3]).reshape(shape)
    model = small_model(loss_function="tier_margin", margin=0.7)
    wanted = (0.7 * gaps - labels * (first - second)).clamp(min=0).mean()
    torch.testing.assert_close(model.compute_loss(first, second, labels, gaps), wanted)


@pytest.mark.parametrize("loss_function", LOSS_FUNCTIONS)
def test_all_pairs_as_pairs_give_the_same_loss_and_measures(loss_function):
    model = small_model(loss_function=loss_function)
    targets = torch.tensor([3.0, 0.0, 1.0, 1.0])
    batch = model(small_pixels(), targets=targets)
    pairs = torch.tensor([[0, 1], [0, 2], [0, 3], [2, 1], [3, 1]])
    votes = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    listed = model(small_pixels(), targets=targets, pairs=pairs, votes=votes)
    torch.testing.assert_close(listed.loss, batch.loss)
    torch.testing.assert_close(listed.measures, batch.measures)
    # The worse image may come first.
    turned = model(small_pixels(), targets=targets, pairs=pairs.flip(1), votes=votes.flip(1))
    torch.testing.assert_close(turned.loss, batch.loss)
    torch.testing.assert_close(turned.measures, batch.measures)
    # Pairs whose better image comes first need no votes.
    torch.testing.assert_close(model(small_pixels(), targets=targets, pairs=pairs).loss, batch.loss)


def test_a_pair_weighs_as_much_as_it_has_votes():
    model = small_model()
    pairs = torch.tensor([[0, 1], [2, 3], [1, 3]])
    votes = torch.tensor([[3.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
    output = model(small_pixels(), pairs=pairs, votes=votes)
    differences = (output.scores[pairs[:, 0]] - output.scores[pairs[:, 1]]).tolist()
    total, count = 0.0, 0.0
    for difference, (first, second) in zip(differences, votes.tolist(), strict=True):
        total += first * np.log1p(np.exp(-difference)) + second * np.log1p(np.exp(difference))
        count += first + second
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)
    # The tie is neither right nor wrong; the others count by how clear they are: 2 votes each.
    right = [differences[0] > 0, differences[2] < 0]
    assert output.measures["accuracy"].item() == pytest.approx(sum(right) / 2)


@pytest.mark.parametrize("loss_function", LOSS_FUNCTIONS)
def test_ties_alone_and_no_pairs_train_to_numbers(loss_function):
    model = small_model(loss_function=loss_function)
    for inputs in (
        {"targets": torch.ones(4)},
        {"pairs": torch.tensor([[0, 1]]), "votes": torch.tensor([[0.5, 0.5]])},
        {"pairs": torch.tensor([[0, 1]]), "votes": torch.tensor([[0.0, 0.0]])},
    ):
        model.zero_grad()
        loss = model(small_pixels(), **inputs).loss
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.head.parameters())
        if "pairs" not in inputs:
            assert loss == 0 and not any(p.grad.any() for p in model.head.parameters())


def test_weights_of_pairs():
    model = small_model()
    targets, weights = torch.tensor([2.0, 0.0, 1.0, 1.0]), torch.rand(4, 4)
    output = model(small_pixels(), targets=targets, pair_weights=weights)
    wanted, _ = all_pairs_loss(output.scores, targets, weights)
    assert output.loss == wanted
    assert output.loss != model(small_pixels(), targets=targets).loss


# Modes and training


def test_a_frozen_backbone_stays_as_it_is_while_the_head_trains():
    model = small_model("resnet").train()
    assert model.training and model.head.training
    assert not any(module.training for module in model.backbone.modules())
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(small_pixels(), targets=torch.arange(4.0)).loss.backward()
    for name, value in model.backbone.state_dict().items():
        assert value.equal(before[name]), name


def test_a_backbone_that_trains_is_in_training_mode():
    model = small_model("resnet", freeze_backbone=False).train()
    assert all(module.training for module in model.modules())
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(small_pixels(), targets=torch.arange(4.0)).loss.backward()
    moved = {name for name, v in model.backbone.state_dict().items() if not v.equal(before[name])}
    assert moved == {name for name in before if name.endswith(("mean", "var", "tracked"))}
    model.eval()
    assert not any(module.training for module in model.modules())


def test_the_part_that_does_not_train_stays_as_it_is(tmp_path):
    model = small_model("resnet", unfreeze_last_blocks=1)
    model.save_pretrained(tmp_path)
    for trained in (model, PairwiseRankingModel.from_pretrained(tmp_path)):
        trained.train()
        before = {name: value.clone() for name, value in trained.backbone.state_dict().items()}
        trained(small_pixels(), targets=torch.arange(4.0)).loss.backward()
        state = trained.backbone.state_dict()
        moved = {name for name, value in state.items() if not value.equal(before[name])}
        assert moved and all(name.startswith("encoder.stages.2.") for name in moved)


@pytest.mark.parametrize(
    "settings", [{"freeze_backbone": False}, {"unfreeze_last_blocks": 2}, {"lora_rank": 2}]
)
@pytest.mark.parametrize("family", ["dinov2", "vit", "timm_vit"])
def test_activation_checkpointing_changes_no_gradient(family, settings):
    def gradients(model):
        model.train()
        model(small_pixels(), targets=torch.arange(4.0)).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    settings = {**settings, "projector_dropout": 0.0}
    wanted = gradients(small_model(family, **settings))
    model = small_model(family, **settings)
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients(model), wanted)
    passes = []
    _, last = blocks_of(model.backbone)[-1]
    layer = next(m for m in last.modules() if isinstance(m, torch.nn.Linear))
    layer.register_forward_pre_hook(lambda *_: passes.append(1))
    gradients(model)
    assert len(passes) == 2  # again on the way back


def test_scores_are_single_precision_under_autocast():
    for settings in ({}, {"freeze_backbone": False}):
        model = small_model(**settings).train()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(small_pixels(), targets=torch.arange(4.0))
            first, second = model(small_pixels(), small_pixels(seed=1))
        assert output.scores.dtype == output.loss.dtype == torch.float32
        assert first.dtype == second.dtype == torch.float32
        output.loss.backward()
        assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_blocks_that_fsdp_keeps_whole_are_those_of_the_backbone():
    assert "Dinov2Layer" in small_model()._no_split_modules
    assert "ViTLayer" in small_model("vit")._no_split_modules
    assert "CLIPEncoderLayer" in small_model("clip")._no_split_modules


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, row):
        return {"features": small_pixels(1, seed=row).flatten()[:32], "targets": float(row % 4)}


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulation_divides_the_loss(steps, tmp_path):
    """transformers multiplies the gradient by the steps where it thinks that a loss is a sum."""

    def gradient_norms(name, **settings):
        args = HFTuneArguments(
            output_dir=str(tmp_path / name), max_steps=1, logging_steps=1, save_strategy="no",
            use_cpu=True, max_grad_norm=1e9, learning_rate=0.0, dataloader_num_workers=0,
            disable_tqdm=True, **settings,
        )  # fmt: skip
        model = small_model(projector_dropout=0.0)
        trainer = HFTuneTrainer(model, args, train_dataset=Batches())
        trainer.train()
        (logged,) = [row for row in trainer.state.log_history if "grad_norm" in row]
        return logged["loss"], logged["grad_norm"]

    assert PairwiseRankingModel.accepts_loss_kwargs is False
    loss, norm = gradient_norms("one", per_device_train_batch_size=8)
    less, accumulated = gradient_norms(
        "many", per_device_train_batch_size=8, gradient_accumulation_steps=steps
    )
    assert less == pytest.approx(loss, rel=0.5)
    assert accumulated < 1.5 * norm  # the mean of gradients, not their sum


def test_a_model_learns(tmp_path):
    """Brightness, from all pairs of a batch, in the head alone."""
    torch.manual_seed(0)
    model = small_model(projector_dropout=0.0).train()
    bright = torch.linspace(-2, 2, 24)
    pixels = 0.3 * small_pixels(24) + bright[:, None, None, None]
    features = model.encode(pixels)
    model.head.set_statistics(features.mean(0), features.std(0))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        output = model(features=features, targets=bright)
        output.loss.backward()
        optimizer.step()
    assert output.measures["accuracy"] > 0.95


def test_the_default_is_the_manuals_backbone(monkeypatch):
    with pytest.raises(CheckpointError, match=r"^facebook/dinov2-large cannot be loaded"):
        PairwiseRankingModel()
    config = PairwiseRankingConfig(backbone_config=Dinov2Config(), feature_size=1536)
    assert config.projector_output_dim == 256


def test_rows_that_no_patch_sees_are_said_once(capsys):
    model = small_model("dinov2")
    model.encode(small_pixels(1, SIZE, SIZE))
    assert capsys.readouterr().err == ""
    pixels = small_pixels(1, SIZE + 3, SIZE + 1)
    seen = model.encode(pixels)
    assert " ".join(capsys.readouterr().err.split()) == (
        "warning: 35 x 33 pixels are no multiple of the patch size 8: the backbone silently "
        "ignores the last 3 rows and 1 columns"
    )
    pixels[..., SIZE:, :] = 99
    assert torch.equal(model.encode(pixels), seen)
    assert capsys.readouterr().err == ""
