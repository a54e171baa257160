"""Tables of images and comparisons are read as they are meant; bad rows are named, all at once."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pandas
import pytest

from hftune.tasks.ranking.tables_ranking import (
    Comparisons,
    ImageTable,
    check_duplicates,
    images_of_comparisons,
    read_comparisons,
    read_images,
    require_pairs,
)
from hftune.utils.errors import ConfigurationError, DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with files a.jpg to d.jpg in images/; files are not opened."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for name in "abcd":
        Path(f"images/{name}.jpg").touch()
    return tmp_path


def read(text: str | bytes, name: str = "metadata.csv", folder: str = "images", **options):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_images(name, folder, **options)


def problem(text: str | bytes, name: str = "metadata.csv", folder: str = "images", **options):
    with pytest.raises(DataError) as caught:
        read(text, name, folder, **options)
    return str(caught.value)


GOOD = "image_id,filename,tier\nw,a.jpg,S\nx,b.jpg,A\ny,c.jpg,B\nz,d.jpg,C\n"


# Images


def test_tiers_are_counted_from_the_worst(folder):
    table = read(GOOD)
    assert table.ids == ("w", "x", "y", "z")
    assert table.paths == tuple(Path(f"images/{name}.jpg") for name in "abcd")
    assert table.tiers == ("S", "A", "B", "C")
    assert table.targets.tolist() == [3, 2, 1, 0]
    assert table.targets.dtype == np.float64
    assert [table.tier_of(row) for row in range(4)] == ["S", "A", "B", "C"]
    assert table.scores is None and table.groups is None


def test_selected_rows_keep_what_they_have(folder):
    table = read("filename,tier,score,who\na.jpg,S,9,p\nb.jpg,A,8,q\nc.jpg,A,7.5,\n",
                 group_column="who")  # fmt: skip
    part = table.select([2, 0])
    assert (part.ids, part.groups) == (("c", "a"), ("", "p"))
    assert part.targets.tolist() == [0, 1] and part.scores.tolist() == [7.5, 9]
    assert part.counts() == {"S": 1, "A": 1}
    assert table.select([1]).counts() == {"S": 0, "A": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "\ufefffilename,tier\r\na.jpg,S\r\n\r\nb.jpg,A\r\n"),
        ("m.csv", "tier;filename\nS;a.jpg\nA; b.jpg \n"),
        ("m.tsv", "filename\ttier\na.jpg\tS\nb.jpg\tA"),
        ("m.jsonl", '{"filename": "a.jpg", "tier": "S"}\n{"tier": "A", "filename": "b.jpg"}\n'),
    ],
)
def test_kinds_of_files(folder, name, text):
    table = read(text, name)
    assert table.ids == ("a", "b")
    assert table.targets.tolist() == [1, 0]


def test_parquet_and_data_frames_are_read_alike(folder):
    frame = pandas.DataFrame(
        {"image_id": [7, 8], "image_path": ["a.jpg", "b.jpg"], "score": [1.5, 2]}
    )
    frame.to_parquet("m.parquet")
    for source in (frame, "m.parquet"):
        table = read_images(source, "images")
        assert table.ids == ("7", "8")
        assert table.tiers == () and table.targets.tolist() == [1.5, 2]


def test_ids_that_look_like_something_else(folder):
    table = read("image_id,filename,tier\nNA,a.jpg,S\n007,b.jpg,A\n1e3,c.jpg,A\nnull,d.jpg,S\n")
    assert table.ids == ("NA", "007", "1e3", "null")


def test_quoted_values_may_have_commas_quotes_and_line_breaks(folder):
    Path("images/e, f.jpg").touch()
    table = read('filename,tier,note\n"e, f.jpg",S,"say ""so"""\nb.jpg,A,"x\ny"\n')
    assert table.ids == ("e, f", "b")
    assert problem('filename,tier,note\nb.jpg,A,"x\ny"\na.jpg,S,\nc.jpg,,\n') == (
        "metadata.csv line 5: no tier"
    )


def test_decomposed_names_are_found(folder):
    decomposed = unicodedata.normalize("NFD", "꽃.jpg")
    Path("images", decomposed).touch()
    table = read(
        f"image_id,filename,tier\n{unicodedata.normalize('NFD', '꽃')},꽃.jpg,S\nb,b.jpg,A"
    )
    assert table.ids[0] == "꽃"
    assert table.paths[0].is_file()


def test_folder_above_images_will_do_and_absolute_names_too(folder):
    absolute = folder / "images" / "c.jpg"
    table = read(f"filename,tier\na.jpg,S\nimages/b.jpg,A\n{absolute},A\n", folder=".")
    assert table.paths == (Path("images/a.jpg"), Path("images/b.jpg"), absolute)


def test_files_of_one_name_in_two_folders_have_ids(folder):
    Path("images/x").mkdir()
    Path("images/x/a.jpg").touch()
    assert read("filename,tier\na.jpg,S\nx/a.jpg,A\nb.jpg,A\n").ids == ("a.jpg", "x/a.jpg", "b")


def test_other_tiers_need_their_order(folder):
    text = "filename,tier\na.jpg,good\nb.jpg,bad\nc.jpg,fair\n"
    table = read(text, tiers=("good", "fair", "bad"))
    assert table.targets.tolist() == [2, 0, 1]
    assert problem(text) == (
        "metadata.csv has tiers whose order is not known: 'bad', 'fair', 'good'. Give their names, "
        "best first, as tiers; numbers to rank by belong in a column 'score'."
    )


def test_all_given_tiers_count_even_those_without_images(folder):
    table = read("filename,tier\na.jpg,S\nb.jpg,C\n", tiers=("S", "A", "B", "C"))
    assert table.targets.tolist() == [3, 0]
    assert table.counts() == {"S": 1, "A": 0, "B": 0, "C": 1}
    assert read("filename,tier\na.jpg,S\nb.jpg,C\n").targets.tolist() == [1, 0]


@pytest.mark.parametrize("tiers", ["SABC", ("S",), ("S", "A", "S"), ("S", "")])
def test_tiers_that_are_no_order(folder, tiers):
    with pytest.raises(ConfigurationError) as caught:
        read(GOOD, tiers=tiers)
    assert str(caught.value) == (
        f"tiers {tiers!r}: expected at least two different names, best first, such as "
        "('S', 'A', 'B', 'C')"
    )


def test_scores_rank_where_asked(folder):
    text = "filename,tier,score\na.jpg,S,-1\nb.jpg,A,2e1\n"
    assert read(text).targets.tolist() == [1, 0]
    assert read(text).scores.tolist() == [-1, 20]
    ranked = read(text, rank_by="score")
    assert ranked.tiers == () and ranked.targets.tolist() == [-1, 20]
    assert ranked.tier_of(0) == "" and ranked.counts() == {}
    with pytest.raises(ConfigurationError, match="rank_by 'votes': expected 'tier' or 'score'"):
        read(text, rank_by="votes")


def test_scores_that_are_not_needed_may_be_missing(folder, capsys):
    assert read("filename,tier,score\na.jpg,S,\nb.jpg,A,1\n").scores is None
    assert "1 of 2 images have no number as score; the scores are not used." in " ".join(
        capsys.readouterr().err.split()
    )


def test_problems_are_named_together(folder):
    text = (
        "image_id,filename,tier\n"
        "w,a.jpg,S\n"
        "x,b.jpeg,a\n"
        "w,c.jpg,AA\n"
        ",d.jpg,B\n"
        "y,,B\n"
        "z,a.jpg,A\n"
        "v,zebra.png,B\n"
    )
    assert problem(text) == (
        "8 problems in metadata.csv:\n"
        "  metadata.csv line 3: 'b.jpeg' is not in images. Did you mean 'b.jpg'?\n"
        "  metadata.csv line 3: tier 'a' is none of S, A, B. Did you mean 'A'?\n"
        "  metadata.csv line 4: image_id 'w' is that of line 2 too\n"
        "  metadata.csv line 4: tier 'AA' is none of S, A, B. Did you mean 'A'?\n"
        "  metadata.csv line 5: no image_id\n"
        "  metadata.csv line 6: no filename\n"
        "  metadata.csv line 7: file 'images/a.jpg' is that of line 2 too\n"
        "  metadata.csv line 8: 'zebra.png' is not in images."
    )


def test_of_many_problems_the_first_are_listed(folder):
    rows = "".join(f"gone_{i}.jpg,S\n" for i in range(30))
    message = problem("filename,tier\na.jpg,A\n" + rows)
    assert message.startswith("30 problems in metadata.csv:\n  metadata.csv line 3: 'gone_0.jpg'")
    assert message.count("\n") == 21
    assert message.endswith("\n  and 10 more")


def test_problems_of_a_data_frame_name_its_index(folder):
    frame = pandas.DataFrame({"filename": ["a.jpg", None], "tier": ["S", "A"]}, index=[3, 9])
    with pytest.raises(DataError) as caught:
        read_images(frame, "images")
    assert str(caught.value) == "metadata row 9: no filename"


def test_wrong_folder(folder):
    Path("other").mkdir()
    assert problem(GOOD, folder="other") == (
        "None of the 4 images of metadata.csv is in other, such as 'a.jpg'; expected the folder "
        "that the names of files begin in."
    )
    assert problem(GOOD, folder="none") == "none is no folder; expected the one with the images."


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("file_name,tier", "no column 'filename' or 'image_path'; its columns are 'file_name', "
         "'tier'. Did you mean 'file_name'?"),
        ("filename,Tier", "no column 'tier' or 'score'; its columns are 'filename', 'Tier'. "
         "Did you mean 'Tier'?"),
        ("filename,label", "no column 'tier' or 'score'; its columns are 'filename', 'label'. "
         "Did you mean 'label'?"),
        ("filename,xyz", "no column 'tier' or 'score'; its columns are 'filename', 'xyz'."),
    ],
)  # fmt: skip
def test_missing_columns(folder, header, expected):
    assert problem(f"{header}\na.jpg,S\n") == f"metadata.csv has {expected}"


def test_all_missing_columns_are_named(folder):
    message = problem("path,class\na.jpg,S\n", group_column="artist")
    assert message.split("\n") == [
        "metadata.csv has no column 'filename' or 'image_path'; its columns are 'path', 'class'. "
        "Did you mean 'path'?",
        "metadata.csv has no column 'tier' or 'score'; its columns are 'path', 'class'. "
        "Did you mean 'class'?",
        "metadata.csv has no column 'artist'; its columns are 'path', 'class'.",
    ]


def test_asked_for_scores_that_are_not_there(folder):
    assert problem(GOOD, rank_by="score") == (
        "metadata.csv has no column 'score'; its columns are 'image_id', 'filename', 'tier'."
    )


def test_scores_that_are_no_numbers(folder):
    assert problem("filename,score\na.jpg,1\nb.jpg,nan\nc.jpg,\"1,5\"\nd.jpg,\n").split("\n") == [
        "3 problems in metadata.csv:",
        "  metadata.csv line 3: score 'nan' is no finite number",
        "  metadata.csv line 4: score '1,5' is no finite number",
        "  metadata.csv line 5: score '' is no finite number",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "metadata.csv is empty."),
        ("filename,tier\n", "metadata.csv has no rows."),
        ("filename,tier,tier\na.jpg,S,S\n", "metadata.csv has several columns 'tier'."),
        ("filename,tier\na, b.jpg,S\nb.jpg,A\nc.jpg\n",
         "Rows of metadata.csv that do not have one value for each column (filename, tier); a "
         "value with ',' in it needs quotes around it:\n"
         "  metadata.csv line 2 has 3 values, expected 2\n"
         "  metadata.csv line 4 has 1 values, expected 2"),
        ('filename,tier\na.jpg,S\n"b.jpg,A\nc.jpg,B\n',
         "metadata.csv line 3: unexpected end of data; expected quotes around a whole value and "
         "doubled inside it."),
        ("filename,tier\na.jpg,S\n꽃.jpg,A\n".encode("cp949"),
         "metadata.csv is not UTF-8 (line 3); save it as UTF-8 (in Excel: 'CSV UTF-8')."),
        ("filename,tier\n".encode("utf-16"),
         "metadata.csv is not UTF-8 (line 1); save it as UTF-8 (in Excel: 'CSV UTF-8')."),
    ],
)  # fmt: skip
def test_files_that_are_no_tables(folder, text, expected):
    assert problem(text) == expected


def test_json_lines_that_are_no_objects(folder):
    assert problem('{"filename": "a.jpg"}\n\n["b.jpg"]\n', "m.jsonl") == (
        "m.jsonl line 3 is a JSON list, expected an object."
    )
    assert problem('{"filename": "a.jpg"\n', "m.jsonl").startswith("m.jsonl line 1 is no JSON: ")


def test_files_that_cannot_be_opened(folder):
    with pytest.raises(DataError, match="^gone.csv cannot be read: .*No such file"):
        read_images("gone.csv", "images")
    with pytest.raises(DataError) as caught:
        read_images("m.xlsx", "images")
    assert str(caught.value) == "m.xlsx is no table; expected .csv, .tsv, .jsonl, .parquet."
    Path("m.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="^m.parquet cannot be read: "):
        read_images("m.parquet", "images")


def test_pairs_are_required(folder):
    require_pairs(read(GOOD), "the test split")
    for text, expected in [
        ("filename,tier\na.jpg,S\nb.jpg,S\n", "all 2 images are of tier 'S'"),
        ("filename,score\na.jpg,1.5\nb.jpg,1.5\n", "all 2 images have the score 1.5"),
        ("filename,tier\na.jpg,S\n", "it has 1 image"),
    ]:
        with pytest.raises(DataError) as caught:
            require_pairs(read(text), "the test split")
        assert str(caught.value) == (
            f"the test split has no pairs: {expected}. Expected images of at least two tiers or "
            "scores."
        )


# Comparisons


def compare(text: str, table: ImageTable) -> Comparisons:
    Path("comparisons.csv").write_text(text, encoding="utf-8")
    return read_comparisons("comparisons.csv", table)


def test_comparisons_name_images_by_id_file_or_stem(folder):
    found = compare(
        "image_1,image_2,votes_1,votes_2\nw,x,2,1\nc.jpg,d,0.5,0.5\nimages/a.jpg,x,1,1\nx,w,0,3\n",
        read(GOOD),
    )
    assert found.images.tolist() == [[0, 1], [2, 3], [0, 1], [1, 0]]
    assert found.votes.tolist() == [[2, 1], [0.5, 0.5], [1, 1], [0, 3]]
    assert found.images.dtype == np.int64 and found.votes.dtype == np.float64


def test_ids_come_before_names_of_files(folder):
    table = read("image_id,filename,tier\nb,a.jpg,S\na,b.jpg,A\n")
    found = compare("image_1,image_2,votes_1,votes_2\na,b,1,0\n", table)
    assert found.images.tolist() == [[1, 0]]
    with pytest.raises(DataError, match="'a' is compared with itself"):
        compare("image_1,image_2,votes_1,votes_2\na,b.jpg,1,0\n", table)


def test_winners_are_votes(folder):
    found = compare(
        "image_1,image_2,winner\nw,x,image_1\nw,x,image_2\nw,x,tie\nw,x,x\n", read(GOOD)
    )
    assert found.votes.tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0, 1]]
    with pytest.raises(DataError) as caught:
        compare("image_1,image_2,winner\nw,x,y\n", read(GOOD))
    assert str(caught.value) == (
        "comparisons.csv line 2: winner 'y': expected image_1, image_2, tie or one of their names"
    )


def test_problems_of_comparisons_are_named_together(folder):
    Path("images/sub").mkdir()
    Path("images/sub/a.jpg").touch()
    table = read("filename,tier\na.jpg,S\nsub/a.jpg,A\nflower.jpg,A\n".replace("flower", "b"))
    with pytest.raises(DataError) as caught:
        compare(
            "image_1,image_2,votes_1,votes_2\n"
            "a.jpg,b.jpeg,1,0\n"
            "a.jpg,b,0,0\n"
            "a.jpg,b,-1,x\n"
            "b,b.jpg,1,0\n"
            "a,b,1,0\n"
            ",b,1,inf\n",
            table,
        )
    assert str(caught.value).split("\n") == [
        "7 problems in comparisons.csv:",
        "  comparisons.csv line 2: image_2 'b.jpeg' is no image of the table. "
        "Did you mean 'b.jpg'?",
        "  comparisons.csv line 3: votes 0 and 0: expected at least one for an image",
        "  comparisons.csv line 4: votes '-1' and 'x': expected numbers from 0",
        "  comparisons.csv line 5: 'b' is compared with itself",
        "  comparisons.csv line 6: image_1 'a' is 2 images; give an id: 'a.jpg', 'sub/a.jpg'",
        "  comparisons.csv line 7: no image_1",
        "  comparisons.csv line 7: votes 'inf': expected numbers from 0",
    ]


def test_comparisons_without_columns(folder):
    with pytest.raises(DataError) as caught:
        compare("image1,image_2,votes_1\nw,x,1\n", read(GOOD))
    found = "its columns are 'image1', 'image_2', 'votes_1'. Did you mean"
    assert str(caught.value) == (
        f"comparisons.csv has no column 'image_1'; {found} 'image1' or 'image_2'?\n"
        f"comparisons.csv has no column 'votes_2'; {found} 'votes_1'?"
    )


def test_comparisons_within_rows_are_renumbered():
    draw = np.random.default_rng(0)
    images = np.array([draw.choice(20, 2, replace=False) for _ in range(200)])
    votes = draw.random((200, 2))
    rows = draw.permutation(20)[:9]
    found = Comparisons(images, votes).within(rows)
    names = [f"image {i}" for i in range(20)]
    expected = [
        (names[a], names[b], *vote)
        for (a, b), vote in zip(images, votes.tolist(), strict=True)
        if a in rows and b in rows
    ]
    selected = [names[row] for row in rows]
    assert [
        (selected[a], selected[b], *vote)
        for (a, b), vote in zip(found.images, found.votes.tolist(), strict=True)
    ] == expected
    assert len(found) == len(expected) > 10
    assert len(Comparisons(images, votes).within([])) == 0
    assert len(Comparisons(images[:0], votes[:0]).within([5])) == 0


def test_images_of_comparisons(folder):
    Path("images/e.JPG").touch()
    Path("comparisons.csv").write_text("image_1,image_2,winner\nc,a.jpg,tie\na,e,tie\n")
    table = images_of_comparisons("comparisons.csv", "images")
    assert table.ids == ("c", "a", "e")
    assert [path.name for path in table.paths] == ["c.jpg", "a.jpg", "e.JPG"]
    assert table.targets is None and table.tier_of(0) == "" and table.select([1]).ids == ("a",)
    assert read_comparisons("comparisons.csv", table).images.tolist() == [[0, 1], [1, 2]]
    with pytest.raises(DataError, match="^the data has neither tiers nor scores"):
        require_pairs(table, "the data")


def test_images_of_comparisons_that_are_missing(folder):
    Path("comparisons.csv").write_text("image_1,image_2,winner\nc,a,tie\na,f,tie\n")
    with pytest.raises(DataError) as caught:
        images_of_comparisons("comparisons.csv", "images")
    assert str(caught.value) == "comparisons.csv line 3: 'f' is not in images."


# The same picture twice


def splits() -> tuple[dict[str, ImageTable], dict[str, list[str]]]:
    tables = {}
    for split, names in (("train", "abcd"), ("validation", "ef"), ("test", "gh")):
        tables[split] = ImageTable(
            tuple(names), tuple(Path(f"{n}.jpg") for n in names),
            np.arange(len(names), dtype=np.float64), ("S", "A", "B", "C")[-len(names):],
        )  # fmt: skip
    return tables, {"train": list("1234"), "validation": list("56"), "test": list("78")}


def test_splits_without_duplicates_are_kept_whole(capsys):
    keep = check_duplicates(*splits())
    assert {split: rows.tolist() for split, rows in keep.items()} == {
        "train": [0, 1, 2, 3], "validation": [0, 1], "test": [0, 1]
    }  # fmt: skip
    assert capsys.readouterr().err == ""


def test_the_same_picture_in_two_splits_stops():
    tables, hashes = splits()
    hashes["train"][1:3] = "58"
    hashes["validation"][1] = "8"
    with pytest.raises(DataError) as caught:
        check_duplicates(tables, hashes)
    assert str(caught.value) == (
        "3 images in more than one split, so that the scores would be too good:\n"
        "  b.jpg (train) is the same picture as e.jpg (validation)\n"
        "  c.jpg (train) is the same picture as h.jpg (test)\n"
        "  f.jpg (validation) is the same picture as h.jpg (test)\n"
        "Take them out of one split, or have them left out of the earlier one with on_duplicates "
        "'drop'."
    )


def test_duplicates_are_dropped_from_the_earlier_split(capsys):
    tables, hashes = splits()
    hashes["train"][1:3] = "58"
    hashes["validation"][1] = "8"
    keep = check_duplicates(tables, hashes, "drop")
    assert {split: rows.tolist() for split, rows in keep.items()} == {
        "train": [0, 3], "validation": [0], "test": [0, 1]
    }  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert "2 images left out of the train split: a later split has them too." in said
    assert "1 image left out of the validation split: a later split has them too." in said


def test_the_same_picture_in_two_tiers_is_said(capsys):
    tables, hashes = splits()
    hashes["train"] = list("1121")
    check_duplicates(tables, hashes)
    said = capsys.readouterr().err
    assert "a.jpg (C), b.jpg (B), d.jpg (S)" in said and "c.jpg" not in said


# What people judged


def test_websites(test_data):
    folder = test_data / "ranking" / "websites"
    table = read_images(folder / "metadata.csv", folder)
    assert len(table) == 100 and all(path.is_file() for path in table.paths)
    assert table.tiers == ("S", "A", "B", "C")
    assert table.counts() == {"S": 25, "A": 25, "B": 25, "C": 25}
    better = table.targets[:, None] > table.targets
    assert (table.scores[:, None] > table.scores)[better].all()
    comparisons = read_comparisons(folder / "comparisons.csv", table)
    assert len(comparisons) == 4950 == len({tuple(sorted(pair)) for pair in comparisons.images})
    first = comparisons.images[0].tolist()
    assert [table.ids[row] for row in first] == ["site_038", "site_020"]
    assert len(comparisons.within(range(50))) == 50 * 49 // 2
    named = images_of_comparisons(folder / "comparisons.csv", folder / "images")
    assert sorted(named.ids) == sorted(table.ids)
