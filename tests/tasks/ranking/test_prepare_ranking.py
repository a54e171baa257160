"""Images and model of a run: tables, splits, what cannot be meant, presets, pairs, features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_ranking import write_images

from hftune.configuration.resolve import parse
from hftune.tasks.ranking.arguments_ranking import (
    RankingDataArguments,
    RankingModelArguments,
    RankingTrainingArguments,
)
from hftune.tasks.ranking.data_ranking import FeatureImages, PixelImages
from hftune.tasks.ranking.feature_cache import weights_digest
from hftune.tasks.ranking.pairs_ranking import PairIndex
from hftune.tasks.ranking.prepare_ranking import (
    apply_preset,
    build_model,
    make_images,
    pair_settings,
    prepare_ranking,
)
from hftune.utils.errors import ConfigurationError, HftuneError

THIRDS = {"train_ratio": 0.6, "val_ratio": 0.2, "test_ratio": 0.2}


@pytest.fixture
def folder(tmp_path) -> Path:
    """``images/`` and ``metadata.csv`` of 20 images to be changed."""
    write_images(tmp_path / "data")
    return tmp_path / "data"


def prepare(folder, **settings):
    return prepare_ranking(RankingDataArguments(data_dir=str(folder), **{**THIRDS, **settings}))


def write_table(path: Path, names, header="image_id,filename,tier") -> str:
    """Writes rows of ``S_0``, ``A_1``, ... with the tier that is their first letter."""
    rows = [header, *(f"{name},{name}.png,{name[0]}" for name in names)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def names(numbers, tiers="SABC"):
    return [f"{tier}_{number}" for tier in tiers for number in numbers]


def refusal(folder, **settings) -> str:
    with pytest.raises(HftuneError) as error:
        prepare(folder, **settings)
    return str(error.value)


# Splits


def test_a_table_is_split_by_shares(folder, capsys):
    data = prepare(folder)
    splits = (data.train, data.validation, data.test)
    assert [len(split.table) for split in splits] == [12, 4, 4]
    assert [split.name for split in splits] == ["train", "validation", "test"]
    ids = [name for split in splits for name in split.table.ids]
    assert sorted(ids) == sorted(names(range(5)))
    for split in splits:
        assert set(split.table.counts()) == set("SABC") and min(split.table.counts().values()) > 0
        assert all(len(digest) == 64 for digest in split.hashes)
    assert data.tiers == ("S", "A", "B", "C") and data.train_on == "tiers"
    assert capsys.readouterr().err == (
        "train: 12 images (S 3, A 3, B 3, C 3)\n"
        "validation: 4 images (S 1, A 1, B 1, C 1)\n"
        "test: 4 images (S 1, A 1, B 1, C 1)\n"
    )
    assert data.describe() == {
        "source": str(folder),
        "fingerprint": data.fingerprint,
        "train_on": "tiers",
        "tiers": ["S", "A", "B", "C"],
        "images": {"train": 12, "validation": 4, "test": 4},
        "comparisons": {},
    }
    again, other = prepare(folder), prepare(folder, split_seed=1)
    assert again.train.table.ids == data.train.table.ids
    assert again.fingerprint == data.fingerprint
    assert other.train.table.ids != data.train.table.ids
    assert other.fingerprint != data.fingerprint


def test_the_folder_of_the_images_does_as_well(folder):
    whole = prepare(folder)
    inside = prepare(folder / "images")  # metadata.csv is beside it
    named = prepare(folder / "images", metadata=str(folder / "metadata.csv"))
    assert whole.fingerprint == inside.fingerprint == named.fingerprint


def test_tables_that_are_split_already(folder):
    train = write_table(folder / "train.csv", names([0, 1, 2]))
    val = write_table(folder / "val.csv", names([3], "AC"))  # fewer tiers
    test = write_table(folder / "test.csv", names([4]))
    data = prepare(folder, metadata=train, val_metadata=val, test_metadata=test)
    assert data.train.table.ids == tuple(names([0, 1, 2]))
    assert data.validation.table.ids == ("A_3", "C_3")
    assert data.validation.table.targets.tolist() == [2.0, 0.0]  # as in the training table
    assert data.test.table.ids == tuple(names([4]))

    without = prepare(folder, metadata=train, val_metadata=val)
    assert without.test is None and without.train.table.ids == data.train.table.ids


def test_a_test_table_alone(folder):
    """The shares of training and validation stay as they are to each other."""
    train = write_table(folder / "train.csv", names([0, 1, 2, 3]))
    test = write_table(folder / "test.csv", names([4]))
    data = prepare(folder, metadata=train, test_metadata=test)
    assert (len(data.train.table), len(data.validation.table)) == (12, 4)
    assert data.test.table.ids == tuple(names([4]))
    found = {*data.train.table.ids, *data.validation.table.ids}
    assert found == set(names([0, 1, 2, 3]))


def test_no_test_share(folder):
    data = prepare(folder, train_ratio=0.8, val_ratio=0.2, test_ratio=0.0)
    assert data.test is None and len(data.validation.table) == 4


def test_groups_stay_together(folder):
    rows = ["image_id,filename,tier,artist"]
    rows += [f"{n},{n}.png,{n[0]},artist {n[-1]}" for n in names(range(5))]
    (folder / "metadata.csv").write_text("\n".join(rows))
    data = prepare(folder, group_column="artist")
    parts = [set(s.table.groups) for s in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [3, 1, 1]
    assert len(set.union(*parts)) == 5
    assert "no column 'artists'" in refusal(folder, group_column="artists")


def test_scores(folder):
    rows = ["filename,score", *(f"{n}.png,{i / 4}" for i, n in enumerate(names(range(5))))]
    (folder / "metadata.csv").write_text("\n".join(rows))
    data = prepare(folder)
    assert data.tiers == () and data.train_on == "tiers"
    assert data.train.table.targets.tolist() == [
        names(range(5)).index(name) / 4 for name in data.train.table.ids
    ]
    (folder / "val.csv").write_text("filename,tier\nS_0.png,S\nA_0.png,A\n")
    assert "val.csv has no column 'score'" in refusal(folder, val_metadata=str(folder / "val.csv"))


def test_names_in_korean(folder):
    for place, name in enumerate(["그림", "꽃", "산", "바다", "강", "집"]):
        shutil.copy(folder / "images" / f"{'SABC'[place % 3]}_0.png", folder / "images" / "x.png")
        with Image.open(folder / "images" / "x.png") as image:
            image.putpixel((0, 0), (place, 0, 0))
            image.save(folder / "images" / f"{name}.png")
    rows = ["filename,tier"]
    rows += [
        f"{n}.png,{'최고' if i % 2 else '보통'}"
        for i, n in enumerate(["그림", "꽃", "산", "바다", "강", "집"])
    ]
    (folder / "metadata.csv").write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    told = refusal(folder)
    assert "tiers whose order is not known: '보통', '최고'" in told
    data = prepare(folder, tiers=["최고", "보통"], train_ratio=0.4, val_ratio=0.3, test_ratio=0.3)
    assert data.tiers == ("최고", "보통")
    assert data.train.table.counts()["최고"] == 1


# The same picture


def test_the_same_picture_in_one_table_stays_together(folder, capsys):
    copies = [f"copy_{number}" for number in range(6)]
    for name in copies:
        shutil.copy(folder / "images" / "S_0.png", folder / "images" / f"{name}.png")
    with open(folder / "metadata.csv", "a") as table:
        table.writelines(
            f"{name},{name}.png,{'A' if name == 'copy_0' else 'S'}\n" for name in copies
        )
    data = prepare(folder)
    where = [
        split.name for split in (data.train, data.validation, data.test)
        for name in split.table.ids if name in ("S_0", *copies)
    ]  # fmt: skip
    assert len(where) == 7 and len(set(where)) == 1
    told = capsys.readouterr().err
    assert f"The same picture is in the {where[0]} split in different places" in told
    assert "copy_0.png (A)" in told


def test_the_same_picture_in_two_tables(folder, capsys):
    shutil.copy(folder / "images" / "B_0.png", folder / "images" / "B_9.png")
    train = write_table(folder / "train.csv", names([0, 1, 2]))
    val = write_table(folder / "val.csv", [*names([3]), "B_9"])
    tables = {"metadata": train, "val_metadata": val}
    told = refusal(folder, **tables)
    assert "1 image in more than one split" in told
    assert "B_0.png (train) is the same picture as B_9.png (validation)" in told
    data = prepare(folder, **tables, on_duplicates="drop")
    assert len(data.train.table) == 11 and "B_0" not in data.train.table.ids
    assert "B_9" in data.validation.table.ids
    assert "1 image left out of the train split" in capsys.readouterr().err


def test_a_row_that_is_in_two_tables(folder):
    """The commonest leak: the whole table beside a part of it."""
    val = write_table(folder / "val.csv", names([3, 4]))
    assert "8 images in more than one split" in refusal(folder, val_metadata=val)
    data = prepare(folder, val_metadata=val, on_duplicates="drop")
    assert data.train.table.ids == tuple(names([0, 1, 2]))
    assert data.validation.table.ids == tuple(names([3, 4]))


def test_an_id_of_two_images(folder):
    train = write_table(folder / "train.csv", names([0, 1, 2]))
    (folder / "val.csv").write_text(
        "image_id,filename,tier\nS_0,S_3.png,S\nA_0,A_3.png,A\nx,B_3.png,B\n"
    )
    told = refusal(folder, metadata=train, val_metadata=str(folder / "val.csv"))
    assert told == (
        "2 image_ids stand for different images:\n  'S_0' is in train and validation\n"
        "  'A_0' is in train and validation\nAn image_id belongs to one image."
    )


# Images


def test_all_images_that_cannot_be_read_are_told_at_once(folder):
    images = folder / "images"
    photo = Image.effect_noise((64, 64), 80)
    photo.save(images / "whole.jpg")
    (images / "S_0.png").write_bytes((images / "whole.jpg").read_bytes()[:900])
    (images / "A_1.png").write_bytes(b"")
    (images / "B_2.png").write_text("<html>not found</html>")
    (images / "C_3.png").write_bytes(b"P6 100000 100000 255\n" + bytes(100))
    train = write_table(folder / "train.csv", names([0, 1, 2]))
    val = write_table(folder / "val.csv", names([3, 4]))
    told = refusal(folder, metadata=train, val_metadata=val)
    assert told.startswith("4 of 20 images cannot be used:")
    for text in ("S_0.png is damaged or cut off", "A_1.png is empty", "B_2.png is no image",
                 "C_3.png is too large"):  # fmt: skip
        assert text in told, text


def test_all_that_is_wrong_with_tables_is_told_at_once(folder):
    train = write_table(folder / "train.csv", [*names([0, 1, 2]), "S_8", "A_8"])
    val = write_table(folder / "val.csv", [*names([3]), "D_4"])
    test = write_table(folder / "test.csv", names([4]), header="id,file,tier")
    told = refusal(folder, metadata=train, val_metadata=val, test_metadata=test)
    assert "'S_8.png' is not in" in told and "'A_8.png' is not in" in told
    assert "'D_4.png' is not in" in told
    assert "test.csv has no column 'filename' or 'image_path'" in told
    assert "Did you mean 'file'" in told


def test_missing_and_unreadable_images_are_told_at_once(folder):
    (folder / "images" / "S_0.png").write_bytes(b"")
    (folder / "images" / "C_3.png").write_text("<html>not found</html>")
    train = write_table(folder / "train.csv", [*names([0, 1, 2]), "S_8", "A_8"])
    val = write_table(folder / "val.csv", names([3, 4]))
    told = refusal(folder, metadata=train, val_metadata=val)
    assert "'S_8.png' is not in" in told and "'A_8.png' is not in" in told
    assert "2 of 20 images cannot be used:" in told
    assert "S_0.png is empty" in told and "C_3.png is no image" in told


def test_unusual_images_are_taken(folder, capsys):
    images = folder / "images"
    Image.new("CMYK", (40, 40), (10, 20, 30, 40)).save(images / "S_0.png", "JPEG")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(images / "A_0.png")
    Image.new("RGB", (40, 40)).save(
        images / "B_0.png", "GIF", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")]
    )
    Image.new("RGB", (1, 1), "blue").save(images / "C_0.png")
    data = prepare(folder)
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of 20 images have more than one frame or page, of which the first counts" in told
    assert "1 of 20 images have a side of less than 32 pixels" in told
    model = small_model()
    loaded = make_images(data.train, model, RankingDataArguments(feature_cache="off"), settings())
    assert all(torch.isfinite(loaded[row]["pixel_values"]).all() for row in range(len(loaded)))


# Tables that cannot be meant


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image_id,filename,teir\nS_0,S_0.png,S\n", "no column 'tier' or 'score'; its columns are "
         "'image_id', 'filename', 'teir'. Did you mean 'teir'?"),
        ("filename,tier\nS_0.png,S\nS_1.png,S\nS_2.png,S\nS_3.png,S\nS_4.png,S\n",
         "the train split has no pairs: all 3 images are of tier 'S'."),
        ("filename,tier\nS_0.png,S\nA_0.png,A\nB_0.png,b\nC_0.png,Z\n",
         "2 problems in metadata.csv:\n  metadata.csv line 4: tier 'b' is none of S, A. Did you "
         "mean 'B'?\n  metadata.csv line 5: tier 'Z' is none of S, A."),
        ("filename,tier\n", "metadata.csv has no rows."),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_meant(folder, table, message):
    (folder / "metadata.csv").write_text(table)
    assert message in refusal(folder)


def test_a_table_with_other_tiers(folder):
    train = write_table(folder / "train.csv", names([0, 1, 2], "ABC"))
    val = write_table(folder / "val.csv", names([3]))
    assert refusal(folder, metadata=train, val_metadata=val) == (
        "val.csv line 2: tier 'S' is none of A, B, C. Give all names, best first, as tiers."
    )
    data = prepare(folder, metadata=train, val_metadata=val, tiers=["S", "A", "B", "C"])
    assert data.validation.table.targets.tolist() == [3, 2, 1, 0]
    assert data.train.table.targets.max() == 2


def test_no_folder_and_no_table(folder):
    assert refusal(folder / "imgs") == (
        f"--data_dir {folder / 'imgs'} is no folder; expected the one with the images."
    )
    (folder / "metadata.csv").unlink()
    assert refusal(folder) == (
        f"--data_dir {folder}: no metadata.csv in it or beside it. Give --metadata (image_id, "
        "filename, tier), or --comparisons (image_1, image_2, votes_1, votes_2) and no other table."
    )
    assert "train.csv cannot be read" in refusal(folder, metadata=str(folder / "train.csv"))


# Comparisons


def all_comparisons(folder, images, votes=(3, 1)) -> str:
    rows = ["image_1,image_2,votes_1,votes_2"]
    rows += [
        f"{a},{b},{votes[0]},{votes[1]}" for i, a in enumerate(images) for b in images[i + 1 :]
    ]
    (folder / "comparisons.csv").write_text("\n".join(rows))
    return str(folder / "comparisons.csv")


def test_comparisons_beside_tiers(folder):
    data = prepare(folder, comparisons=all_comparisons(folder, names(range(5))))
    assert data.train_on == "tiers"
    assert len(data.all_comparisons) == 190 and data.all_images == 20
    assert data.describe()["comparisons"] == {"train": 66, "validation": 6, "test": 6}
    for split in (data.train, data.validation, data.test):
        first, second = split.comparisons.images.T
        assert (split.table.targets[first] >= split.table.targets[second]).all()
    other = prepare(folder, comparisons=all_comparisons(folder, names(range(5)), votes=(2, 1)))
    assert other.fingerprint != data.fingerprint


def test_comparisons_alone(folder):
    (folder / "metadata.csv").unlink()
    file = all_comparisons(folder, names(range(5)))
    data = prepare(folder, comparisons=file)
    assert data.train_on == "comparisons" and data.tiers == ()
    assert data.train.table.targets is None
    assert [len(s.comparisons) for s in (data.train, data.validation, data.test)] == [66, 6, 6]
    # The first of a comparison has 3 of 4 votes: what is learnt of images follows their names.
    values = data.train.known_targets()
    order = [names(range(5)).index(name) for name in data.train.table.ids]
    assert (np.argsort(-values) == np.argsort(order)).all()

    val = write_table(folder / "val.csv", names([3]))
    assert "and no other table" in refusal(folder, comparisons=file, val_metadata=val)


def test_comparisons_that_cannot_be_meant(folder):
    file = folder / "comparisons.csv"
    file.write_text("image_1,image_2,votes_1,votes_2\nS_0,A_O,1,0\nS_1,S_1,1,0\nX,A_1,1,0\n")
    told = refusal(folder, comparisons=str(file))
    assert told.startswith("3 problems in comparisons.csv:")
    assert "line 2: image_2 'A_O' is no image of the table. Did you mean" in told
    assert "line 3: 'S_1' is compared with itself" in told
    file.write_text("image_1,image_2,votes_1,votes_2\nS_0,S_1,1,0\n")
    assert "no comparison between two of its" in refusal(
        folder, comparisons=str(file), train_on="comparisons"
    )


# Settings that depend on the data


def resolved(*argv):
    argv = ["--output_dir", "out", *argv]
    return parse(RankingModelArguments, RankingTrainingArguments, argv=argv, environ={})


def settings(*argv) -> RankingTrainingArguments:
    return resolved(*argv).values[1]


def test_presets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    expected = {
        "small": (16, 5e-5, 200), "medium": (32, 1e-4, 100), "large": (64, 2e-4, 50),
        "huge": (128, 3e-4, 30),
    }  # fmt: skip
    for name, values in expected.items():
        found = resolved("--preset", name)
        args = found.values[1]
        changed = apply_preset(found, args, 12)
        got = (args.per_device_train_batch_size, args.learning_rate, args.num_train_epochs)
        assert got == values
        table = changed.as_dict()["training"]
        assert table["learning_rate"] == {"value": values[1], "source": f"preset {name}"}
        assert table["weight_decay"]["source"] == "default"
    capsys.readouterr()
    for images, name in ((12, "small"), (1_000, "medium"), (20_000, "large"), (10**6, "huge")):
        found = resolved("--preset", "auto")
        apply_preset(found, found.values[1], images)
        assert found.values[1].num_train_epochs == expected[name][2]
        assert f"Preset {name} for {images:,} training images" in capsys.readouterr().err


def test_what_is_given_wins_over_a_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("some.yaml").write_text("training:\n  learning_rate: 1.0e-3\n")
    found = resolved("--preset", "auto", "--config", "some.yaml", "--epochs", "100")
    args = found.values[1]
    changed = apply_preset(found, args, 12).as_dict()["training"]
    assert (args.per_device_train_batch_size, args.learning_rate, args.num_train_epochs) == (
        16, 1e-3, 100,
    )  # fmt: skip
    assert changed["learning_rate"]["source"] == "some.yaml:2"
    assert changed["num_train_epochs"]["source"] == "command line"
    assert changed["per_device_train_batch_size"]["source"] == "preset small"
    told = " ".join(capsys.readouterr().err.split())
    assert told == ("Preset small for 12 training images: --per_device_train_batch_size 16")
    unchanged = resolved()
    assert apply_preset(unchanged, unchanged.values[1], 12) is unchanged


def test_pair_settings(folder):
    data = prepare(folder)
    assert pair_settings(RankingDataArguments(), data) == {"pair_weights": None}
    pairs = pair_settings(RankingDataArguments(pairing="pairs", pairs_per_epoch=7), data)
    assert pairs["pairs_per_epoch"] == 7 and pairs["pair_weights"] is None
    assert len(pairs["pairs"]) == 6 * 3 * 3
    far = pair_settings(RankingDataArguments(pairing="pairs", min_tier_gap=2), data)
    assert len(far["pairs"]) == 3 * 3 * 3
    weights = pair_settings(
        RankingDataArguments(min_tier_gap=2, tier_pair_weights={"S>C": 0.5}), data
    )["pair_weights"]
    assert weights.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0.5, 1, 0, 0]]


def test_pair_settings_that_do_not_fit(folder):
    data = prepare(folder)
    with pytest.raises(ConfigurationError, match="found 'S>Z', expected BETTER>WORSE"):
        pair_settings(RankingDataArguments(tier_pair_weights={"S>Z": 2.0}), data)
    with pytest.raises(ConfigurationError, match="no two training images are as many tiers apart"):
        pair_settings(RankingDataArguments(min_tier_gap=4), data)
    file = all_comparisons(folder, names(range(5)))
    votes = prepare(folder, comparisons=file, train_on="comparisons")
    assert len(pair_settings(RankingDataArguments(), votes)["pairs"]) == 66
    with pytest.raises(ConfigurationError, match="are for tiers, and training follows comparisons"):
        pair_settings(RankingDataArguments(min_tier_gap=2), votes)
    with pytest.raises(ConfigurationError, match="an epoch has all comparisons"):
        pair_settings(RankingDataArguments(pairing="pairs", pairs_per_epoch=3), votes)
    rows = ["filename,score", *(f"{n}.png,{i}" for i, n in enumerate(names(range(5))))]
    (folder / "metadata.csv").write_text("\n".join(rows))
    scores = prepare(folder)
    assert isinstance(
        pair_settings(RankingDataArguments(pairing="pairs"), scores)["pairs"].source, PairIndex
    )
    with pytest.raises(ConfigurationError, match="are for tiers, and training follows scores"):
        pair_settings(RankingDataArguments(tier_pair_weights={"S>A": 2.0}), scores)


# Model and images


def small_model(**more):
    return build_model(
        RankingModelArguments(
            **{"backbone": "new", "hidden_size": 16, "num_hidden_layers": 2, "image_size": 32}
            | more
        ),
        tiers=("S", "A", "B", "C"),
        seed=3,
    )


def test_the_model_follows_from_settings_and_seed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = small_model()
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    again = small_model()
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].equal(value), name
    assert list(model.config.tiers) == ["S", "A", "B", "C"]
    assert not any(p.requires_grad for p in model.backbone.parameters())
    vision = small_model(
        backbone_type="dinov2", num_attention_heads=2, patch_size=8, loss_function="margin",
        margin=0.5, pooling="cls", freeze_backbone=False, projector_output_dim=12,
    )  # fmt: skip
    config = vision.config
    assert (config.loss_function, config.margin, config.pooling) == ("margin", 0.5, "cls")
    assert config.backbone_config.model_type == "dinov2" and config.feature_size == 16
    assert config.backbone_config.patch_size == 8 and config.projector_output_dim == 12
    assert all(p.requires_grad for p in vision.backbone.encoder.parameters())
    assert vision.image_processor.settings()["patch_size"] == 8


@pytest.mark.parametrize("layers", [1, 3, 4, 6])
def test_blocks_of_a_new_resnet(layers):
    config = small_model(num_hidden_layers=layers).config.backbone_config
    assert sum(config.depths) == layers and len(config.depths) == min(layers, 4)
    assert config.hidden_sizes[-1] == 16 and min(config.depths) > 0


def test_features_or_pixels(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, args, model = prepare(folder), settings(), small_model()
    before = weights_digest(model.state_dict())
    kept = make_images(data.train, model, RankingDataArguments(), args, training=True)
    assert isinstance(kept, FeatureImages)
    pixels = make_images(
        data.train, model, RankingDataArguments(feature_cache="off"), args, training=True
    )
    assert isinstance(pixels, PixelImages)
    batch = torch.stack([pixels[row]["pixel_values"] for row in range(12)])
    with torch.no_grad():
        expected = model.eval().encode(batch)
    found = torch.stack([kept[row]["features"] for row in range(12)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert [kept[row]["target"] for row in range(12)] == data.train.table.targets.tolist()
    assert weights_digest(model.state_dict()) == before

    trains = small_model(freeze_backbone=False)
    assert isinstance(make_images(data.train, trains, RankingDataArguments(), args), PixelImages)
    last = small_model(unfreeze_last_blocks=1)
    assert isinstance(make_images(data.train, last, RankingDataArguments(), args), PixelImages)


def test_views_are_of_training_images_alone(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, args, model = prepare(folder), settings(), small_model()
    views = RankingDataArguments(feature_views=3, horizontal_flip=0.5, brightness=0.2)
    train = make_images(data.train, model, views, args, training=True)
    assert train.features.views == 3
    drawn = []
    for epoch in range(6):
        train.set_epoch(epoch)
        drawn.append(train[0]["features"].tolist())
    assert 1 < len({json.dumps(values) for values in drawn}) <= 3
    validation = make_images(data.validation, model, views, args)
    assert validation.features.views == 1
    off = RankingDataArguments(feature_cache="off", brightness=0.2)
    changed = make_images(data.train, model, off, args, training=True)
    assert not changed[0]["pixel_values"].equal(
        make_images(data.train, model, off, args)[0]["pixel_values"]
    )
