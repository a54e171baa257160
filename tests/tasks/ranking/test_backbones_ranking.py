"""Backbones: found by name, loaded whole, pooled, and what of them trains."""

from __future__ import annotations

import copy
import json
import socket
import sys
import threading

import huggingface_hub
import pytest
import timm
import torch
from small_ranking import BACKBONES, SIZE, TIMM_BACKBONES, small_backbone, small_model, small_pixels
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    MobileNetV2Config,
    MobileViTConfig,
    SiglipConfig,
    SiglipModel,
    TimmWrapperConfig,
    ViTForImageClassification,
    ViTMAEConfig,
)

from hftune.tasks.ranking.backbones_ranking import (
    backbone_config,
    blocks_of,
    class_tokens,
    facts_of,
    load_backbone,
    patch_size_of,
    pool,
    prefix_tokens,
)
from hftune.tasks.ranking.modeling_ranking import PairwiseRankingModel, ranking_config
from hftune.utils.errors import CheckpointError, ConfigurationError

TEXT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
ALL = {**BACKBONES, **TIMM_BACKBONES}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    mine = one.state_dict()
    return mine.keys() == theirs.keys() and all(v.equal(theirs[n]) for n, v in mine.items())


def on_meta(config):
    with torch.device("meta"):
        return AutoModel.from_config(config)


def meta_timm(architecture, **model_args):
    return on_meta(TimmWrapperConfig(architecture=architecture, model_args=model_args))


# What an image becomes


@pytest.mark.parametrize(
    ("family", "classes", "prefix", "patch"),
    [
        ("dinov2", 1, 1, 8),
        ("dinov2_registers", 1, 4, 8),
        ("vit", 1, 1, 8),
        ("clip", 1, 1, 8),
        ("siglip", 0, 0, 8),
        ("resnet", 0, 0, 1),
        ("swin", 0, 0, 4),
        ("timm_vit", 1, 1, 8),
        ("timm_registers", 1, 5, 8),
        ("timm_siglip", 0, 0, 8),
        ("timm_distilled", 1, 2, 8),
        ("timm_rope", 1, 5, 8),
        ("timm_swin", 0, 0, 4),
        ("timm_resnet", 0, 0, 1),
    ],
)
def test_tokens_that_are_no_patches(family, classes, prefix, patch):
    backbone = small_backbone(family)
    assert class_tokens(backbone) == classes
    assert prefix_tokens(backbone) == prefix
    assert patch_size_of(backbone.config) == patch
    if family.startswith("timm") and hasattr(backbone.timm_model, "num_prefix_tokens"):
        assert prefix == backbone.timm_model.num_prefix_tokens


@pytest.mark.parametrize("family", ALL)
def test_facts_are_those_of_a_real_pass(family):
    backbone = small_backbone(family).eval()
    hidden = backbone(pixel_values=small_pixels(2)).last_hidden_state
    facts = facts_of(backbone.config)
    assert facts.tokens == (hidden.shape[1] if hidden.ndim == 3 else 0)
    assert facts.width == hidden.shape[1 if hidden.ndim == 4 and "swin" not in family else -1]
    hidden.sum().backward()
    without = {name for name, value in backbone.named_parameters() if value.grad is None}
    assert facts.unused == without


def test_families_whose_configuration_does_not_tell_their_width():
    config = MobileNetV2Config(depth_multiplier=0.5)
    assert ranking_config(on_meta(config)).feature_size == facts_of(config).width == 1280
    config = MobileViTConfig(neck_hidden_sizes=[16, 32, 64, 96, 128, 160, 80])
    assert config.hidden_sizes[-1] == 240
    assert ranking_config(on_meta(config)).feature_size == 80


def test_pooling_that_a_backbone_cannot_have():
    with pytest.raises(
        ConfigurationError,
        match="pooling: found cls, but a ResNetModel makes no class token: use m",
    ):
        small_model("resnet", pooling="cls")
    pit = meta_timm("pit_ti_224")  # the class token alone comes out of it
    assert ranking_config(pit).pooling == "cls"
    with pytest.raises(ConfigurationError, match="a TimmWrapperModel makes no patches: use cls"):
        ranking_config(pit, pooling="mean")


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
def test_pooling_of_tokens(pooling):
    hidden = torch.randn(3, 9, 5)
    pooled = pool(hidden, pooling, prefix=4)
    for row, image in enumerate(hidden.tolist()):
        patches = image[4:]
        mean = [sum(patch[c] for patch in patches) / 5 for c in range(5)]
        wanted = {"cls": image[0], "mean": mean, "cls_mean": image[0] + mean}[pooling]
        assert pooled[row].tolist() == pytest.approx(wanted, abs=1e-6)


def test_pooling_of_maps():
    maps = torch.randn(2, 5, 3, 4)
    wanted = maps.flatten(2).mean(2)
    torch.testing.assert_close(pool(maps, "mean", 0), wanted)
    torch.testing.assert_close(
        pool(maps.permute(0, 2, 3, 1), "mean", 0, channels_last=True), wanted
    )


@pytest.mark.parametrize("family", [f for f in TIMM_BACKBONES if f not in ("timm_siglip",)])
def test_means_are_those_of_timms_own_pooling(family):
    backbone = small_backbone(family).eval()
    model = PairwiseRankingModel(ranking_config(backbone, pooling="mean"), backbone=backbone).eval()
    timm_model = copy.deepcopy(backbone.timm_model)
    with torch.no_grad():
        features = timm_model.forward_features(small_pixels())
        if features.ndim == 3:
            wanted = (
                timm.layers.pool.global_pool_nlc(
                    features, "avg", num_prefix_tokens=timm_model.num_prefix_tokens
                )
                if hasattr(timm.layers, "pool")
                else features[:, timm_model.num_prefix_tokens :].mean(1)
            )
        else:
            form = getattr(timm_model, "output_fmt", "NCHW")
            wanted = timm.layers.SelectAdaptivePool2d(
                pool_type="avg", flatten=True, input_fmt=str(form)
            )(features)
        torch.testing.assert_close(model.encode(small_pixels()), wanted)


# Blocks


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("dinov2", [f"encoder.layer.{i}" for i in range(3)]),
        ("vit", [f"layers.{i}" for i in range(3)]),
        ("clip", [f"encoder.layers.{i}" for i in range(3)]),
        ("siglip", [f"encoder.layers.{i}" for i in range(3)]),
        ("resnet", [f"encoder.stages.{i}" for i in range(3)]),
        ("convnext", [f"encoder.stages.{i}" for i in range(3)]),
        ("swin", [f"encoder.layers.{i}" for i in range(2)]),
        ("timm_vit", [f"timm_model.blocks.{i}" for i in range(3)]),
        ("timm_rope", [f"timm_model.blocks.{i}" for i in range(3)]),
        ("timm_swin", [f"timm_model.layers.{i}" for i in range(2)]),
        ("timm_convnext", [f"timm_model.stages.{i}" for i in range(4)]),
        ("timm_resnet", [f"timm_model.layer{i}" for i in range(1, 5)]),
    ],
)
def test_blocks_are_layers_or_stages_in_their_order(family, names):
    backbone = small_backbone(family)
    blocks = blocks_of(backbone)
    assert [name for name, _ in blocks] == names
    assert all(backbone.get_submodule(name) is block for name, block in blocks)
    # They run in this order.
    order = []
    for name, block in blocks:
        block.register_forward_hook(lambda *_, name=name: order.append(name))
    backbone.eval()(pixel_values=small_pixels(1))
    assert order == names


def test_blocks_of_other_models():
    regnet = blocks_of(meta_timm("regnetx_002"))
    assert [name for name, _ in regnet] == [f"timm_model.s{i}" for i in range(1, 5)]
    efficientnet = blocks_of(meta_timm("efficientnet_lite0"))
    assert [name for name, _ in efficientnet] == [f"timm_model.blocks.{i}" for i in range(7)]
    config = copy.deepcopy(BACKBONES["dinov2"])
    config.num_hidden_layers = 1
    assert [name for name, _ in blocks_of(on_meta(config))] == ["encoder.layer.0"]


LAST = {
    "dinov2": ("encoder.layer.2.", "layernorm."),
    "dinov2_registers": ("encoder.layer.2.", "layernorm."),
    "vit": ("layers.2.", "layernorm."),
    "clip": ("encoder.layers.2.",),  # what lies behind it is for its own pooling
    "siglip": ("encoder.layers.2.", "post_layernorm."),
    "resnet": ("encoder.stages.2.",),
    "convnext": ("encoder.stages.2.",),
    "swin": ("encoder.layers.1.", "layernorm."),
    "timm_vit": ("timm_model.blocks.2.", "timm_model.norm."),
    "timm_registers": ("timm_model.blocks.2.", "timm_model.norm."),
    "timm_siglip": ("timm_model.blocks.2.", "timm_model.norm."),
    "timm_distilled": ("timm_model.blocks.2.", "timm_model.norm."),
    "timm_rope": ("timm_model.blocks.2.", "timm_model.norm."),
    "timm_eva": ("timm_model.blocks.2.",),
    "timm_swin": ("timm_model.layers.1.", "timm_model.norm."),
    "timm_swinv2": ("timm_model.layers.1.", "timm_model.norm."),
    "timm_convnext": ("timm_model.stages.3.",),
    "timm_resnet": ("timm_model.layer4.",),
}


def trained(model: PairwiseRankingModel) -> set[str]:
    """Names of the backbone's parameters that train; each has a gradient after a step."""
    model.train()
    model(small_pixels(), targets=torch.arange(4.0)).loss.backward()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {name for name, p in model.named_parameters() if p.grad is not None}
    prefix = "backbone."
    assert any(name.startswith("head.") for name in names)
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


@pytest.mark.parametrize("family", ALL)
def test_the_last_block_trains_with_what_lies_behind_it(family):
    model = small_model(family, unfreeze_last_blocks=1)
    names = trained(model)
    assert names == {
        name for name, _ in model.backbone.named_parameters() if name.startswith(LAST[family])
    }
    assert all(any(name.startswith(start) for name in names) for start in LAST[family])


def test_two_blocks_and_too_many():
    names = trained(small_model("vit", unfreeze_last_blocks=2))
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"1", "2"}
    with pytest.raises(
        ConfigurationError, match="unfreeze_last_blocks: found 4, but the backbone has 3 blocks"
    ):
        small_model("vit", unfreeze_last_blocks=4)


@pytest.mark.parametrize(
    "family", ["dinov2", "vit", "clip", "siglip", "convnext", "timm_siglip", "timm_eva"]
)
def test_all_that_features_depend_on_trains_where_nothing_is_frozen(family):
    model = small_model(family, freeze_backbone=False)
    every = {name for name, _ in model.backbone.named_parameters()}
    assert trained(model) == every - facts_of(model.backbone.config).unused


@pytest.mark.parametrize("family", ["dinov2", "resnet", "timm_swin"])
def test_a_frozen_backbone_does_not_train(family):
    assert trained(small_model(family)) == set()


# Adapters


@pytest.mark.parametrize(
    "family", ["dinov2", "siglip", "swin", "timm_vit", "timm_eva", "timm_swinv2"]
)
def test_adapters_alone_train_and_start_as_nothing(family):
    torch.manual_seed(0)
    model = small_model(family, lora_rank=2)
    plain = small_model(family)
    names = trained(model)
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    fresh = PairwiseRankingModel(model.config, backbone=small_backbone(family)).eval()
    bare = PairwiseRankingModel(plain.config, backbone=small_backbone(family)).eval()
    torch.testing.assert_close(fresh.encode(small_pixels()), bare.encode(small_pixels()))


def test_adapters_of_some_layers():
    names = trained(small_model("vit", lora_rank=2, lora_target_modules=["q_proj", "v_proj"]))
    assert len(names) == 2 * 2 * 3
    assert {name.split(".")[3] for name in names} == {"q_proj", "v_proj"}
    # As many of them as one name has.
    assert len(trained(small_model("vit", lora_rank=2, lora_target_modules="q_proj"))) == 2 * 3


def test_no_layer_for_adapters():
    with pytest.raises(
        ConfigurationError,
        match="found query, but the backbone's linear layers .* fc1, fc2, k_proj",
    ):
        small_model("vit", lora_rank=2, lora_target_modules=["query"])
    with pytest.raises(ConfigurationError, match="that can have adapters are none"):
        small_model("resnet", lora_rank=2)


def test_layers_whose_weights_alone_are_used_cannot_have_adapters():
    """An adapter of them would train nothing, and say nothing."""
    with pytest.raises(ConfigurationError, match="found qkv, but .* are fc1, fc2, proj"):
        small_model("timm_eva", lora_rank=2, lora_target_modules=["qkv"])


@pytest.mark.parametrize(
    ("library", "make", "message"),
    [
        ("peft", lambda: small_model("vit", lora_rank=2), r"pip install 'hftune\[peft\]'"),
        ("timm", lambda: backbone_config("timm:resnet18", 64), r"pip install 'hftune\[vision\]'"),
    ],
)
def test_a_library_that_is_not_installed(library, make, message, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=message):
        make()


# By name


@pytest.mark.parametrize("family", ["dinov2_registers", "vit", "resnet", "swin", "timm_registers"])
def test_a_saved_backbone_is_loaded_bit_by_bit(family, tmp_path):
    saved = small_backbone(family)
    saved.save_pretrained(tmp_path)
    config = backbone_config(str(tmp_path), SIZE)
    torch.manual_seed(1)
    loaded = load_backbone(tmp_path, config)
    assert same(saved, loaded)
    model = PairwiseRankingModel(ranking_config(loaded), backbone=loaded)
    assert same(saved, model.backbone)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("make_config", "make", "vision"),
    [(CLIPConfig, CLIPModel, "clip"), (SiglipConfig, SiglipModel, "siglip")],
)
def test_the_images_part_of_a_model_of_images_and_texts(make_config, make, vision, tmp_path, capfd):
    whole = make(make_config(text_config=TEXT, vision_config=BACKBONES[vision].to_dict()))
    whole.save_pretrained(tmp_path)
    capfd.readouterr()
    model = PairwiseRankingModel(backbone_name=str(tmp_path), image_size=SIZE)
    assert same(whole.vision_model, model.backbone)
    # The part that reads texts is left out without a table of its weights.
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    with torch.no_grad():
        hidden = whole.vision_model(pixel_values=small_pixels()).last_hidden_state
    prefix = 1 if vision == "clip" else 0
    wanted = hidden[:, prefix:].mean(1)
    wanted = torch.cat([hidden[:, 0], wanted], 1) if prefix else wanted
    torch.testing.assert_close(model.eval().encode(small_pixels()), wanted)


def test_a_classifiers_head_is_left_out(tmp_path):
    classifier = ViTForImageClassification(BACKBONES["vit"])
    classifier.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, backbone_config(str(tmp_path), SIZE))
    for name, value in classifier.vit.state_dict().items():
        assert value.equal(loaded.state_dict()[name])


def test_weights_in_half_precision_are_loaded_in_single(tmp_path):
    small_backbone("vit").to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, backbone_config(str(tmp_path), SIZE))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_timm_models_by_name_without_network():
    config = backbone_config("timm:vit_tiny_patch16_224", 100)
    assert config.model_args == {"img_size": 96, "dynamic_img_size": True}
    assert not config.do_pooling
    assert backbone_config("timm:resnet18", 100).model_args == {}
    config = backbone_config("timm:xcit_nano_12_p16_224", 224)
    assert config.model_args == {"img_size": 224}
    assert (facts_of(config).width, facts_of(config).tokens) == (128, 197)
    with pytest.raises(ConfigurationError, match="for images of 518 pixels .*another image_size"):
        backbone_config("timm:xcit_nano_12_p16_224", 518)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt50", r"^timm: Unknown model \(resnt50\) Did you mean 'resnet50'"),
        ("timm:resnet50.a9", r"^timm: Invalid pretrained tag \(a9\) for resnet50"),
        ("no such//name", "^no such//name cannot be loaded: Repo id must be in the form"),
    ],
)
def test_names_that_are_wrong(name, message):
    with pytest.raises(CheckpointError, match=message):
        backbone_config(name, SIZE)


@pytest.fixture
def deaf_hub(monkeypatch, tmp_path):
    """A Hub that takes connections and says nothing; the list of those that it took."""
    server = socket.create_server(("127.0.0.1", 0))
    taken: list[int] = []

    def take() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            taken.append(1)
            connection.close()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield taken
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(timeout=30)


@pytest.mark.parametrize("name", ["nobody/nothing", "timm:resnet18.a1_in1k"])
def test_without_a_network_the_hub_is_asked_once(name, deaf_hub):
    """Its own client asks five times for each of some files, with pauses between."""
    with pytest.raises(CheckpointError, match="the Hub does not answer.*\nGive the folder of a"):
        PairwiseRankingModel(backbone_name=name)
    assert len(deaf_hub) == 1


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be loaded: Unrecognized model"):
        backbone_config(str(tmp_path), SIZE)


def test_a_model_of_texts(tmp_path):
    BertModel(BertConfig(**{k: v for k, v in TEXT.items() if "token" not in k})).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        ConfigurationError, match="a BertModel makes no tokens and no map of an image of 224 x 224"
    ):
        PairwiseRankingModel(backbone_name=str(tmp_path))


def test_a_ranking_model_is_no_backbone(tmp_path):
    small_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a ranking model, not a backbone"):
        backbone_config(str(tmp_path), SIZE)


def test_weights_that_do_not_fit_or_are_damaged(tmp_path):
    small_backbone("dinov2").save_pretrained(tmp_path)
    file, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"18 missing from it: encoder\.layer\.3\..*\nThey"):
        load_backbone(tmp_path, AutoConfig.from_pretrained(tmp_path))
    settings.write_text(json.dumps({**values, "hidden_size": 24}))
    with pytest.raises(CheckpointError, match="61 of another shape: embeddings.cls_token"):
        load_backbone(tmp_path, AutoConfig.from_pretrained(tmp_path))
    settings.write_text(json.dumps(values))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="the weights in .* are damaged: "):
        load_backbone(tmp_path, AutoConfig.from_pretrained(tmp_path))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no file named model\.safetensors"):
        load_backbone(tmp_path, AutoConfig.from_pretrained(tmp_path))


def test_a_backbone_that_masks_patches_at_random_is_refused(tmp_path):
    ViTMAEConfig(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="a ViT-MAE sees a random part of each image"):
        backbone_config(str(tmp_path), 32)
