"""Tables are read strictly: bad input is said with its file and line, all of it at once."""

from __future__ import annotations

import json

import pytest
from small_texts import ROWS, TABLE, prepare

from hftune.tasks.classification.table_reading import Problems, TableFile
from hftune.utils.errors import DataError

ADVICE = "\nCorrect the rows, or leave them out with --on_bad_rows drop."


def read(name: str, encoding: str = "utf-8", drop: bool = False) -> list[tuple]:
    problems = Problems(drop)
    rows = list(TableFile(name, encoding).rows("text", "label", problems))
    problems.raise_if_any()
    return rows


def problem(name: str, encoding: str = "utf-8", drop: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        read(name, encoding, drop)
    return str(caught.value)


def test_csv_cells_have_commas_quotes_and_lines(table):
    name = table("a.csv", 'text,label\n"a, ""b""\nc",x\r\n\nplain 5" pipe,y')
    assert read(name) == [("a.csv:2", 'a, "b"\nc', "x"), ("a.csv:5", 'plain 5" pipe', "y")]


def test_tsv_is_unquoted_where_quotes_are_inside_of_cells(table):
    name = table("a.tsv", 'text\tlabel\n"starts\tx\nsay "so"\ty\n" both "\tz\n')
    assert [row[1] for row in read(name)] == ['"starts', 'say "so"', '" both "']


def test_tsv_is_quoted_where_all_quotes_are_those_of_quoting(table):
    name = table("a.tsv", 'text\tlabel\n"a\tb"\tx\n"say ""so""\nto me"\ty\nplain\tz\n')
    assert [row[1] for row in read(name)] == ["a\tb", 'say "so"\nto me', "plain"]


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_csv_has_the_separator_of_its_header(table, separator):
    name = table("a.csv", "text,label\na b,x\n".replace(",", separator))
    assert read(name) == [("a.csv:2", "a b", "x")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp949", "euc-kr"])
def test_encodings(table, encoding):
    name = table("a.csv", "text,label\n한국어,좋음\n", encoding)
    asked = "utf-8" if encoding == "utf-8-sig" else encoding
    assert read(name, asked) == [("a.csv:2", "한국어", "좋음")]


def test_json_lines(table):
    rows = [{"text": "한국어", "label": 1, "more": [1]}, {"label": True, "text": "b\nc"}]
    name = table("a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    assert read(name) == [("a.jsonl:1", "한국어", 1), ("a.jsonl:3", "b\nc", True)]


def test_mixed_encodings(table):
    name = table("a.csv", "text,label\n좋아요,x\n".encode() + "다른 문장,y\n".encode("cp949"))
    assert problem(name) == (
        "2 problems in the data:\n"
        "  a.csv mixes encodings; lines beyond ASCII in UTF-8: 1, in another one: 1. Convert "
        "those, so that the file has one encoding.\n"
        "  a.csv:3: byte 0xB4 at character 1 is not UTF-8; as cp949 the line reads '다른 문장,y': "
        "convert the file, or give --encoding cp949 if all of it is" + ADVICE
    )
    assert [row[0] for row in read(name, drop=True)] == ["a.csv:2"]


def test_another_encoding(table):
    name = table("a.csv", "text,label\nvery good,x\ndéjà vu,y\n", "latin-1")
    assert problem(name) == (
        "a.csv:3: byte 0xE9 at character 2 is not UTF-8; as cp1252 the line reads 'déjà vu,y': "
        "convert the file, or give --encoding cp1252 if all of it is" + ADVICE
    )
    name = table("b.csv", "text,label\na,x\n", "utf-16")
    assert problem(name) == "b.csv is in UTF-16: give --encoding utf-16."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            'text,label\na,x\n"open,y\nmore,z\nla',
            "a.csv:3: the quote that opens a cell here is not closed up to the end of the file, "
            "line 5: the file is cut in the middle of a row, or a quote inside a cell is not "
            'doubled ("").',
        ),
        (
            "a.csv",
            "text,label\na,x\nshor",
            "a.csv:3: the file is cut in the middle of its last row, which has 1 cell, expected 2.",
        ),
        (
            "a.tsv",
            "text\tlabel\tid\na\tx\t1\nb\ty",
            "a.tsv:3: the file is cut in the middle of its last row, which has 2 cells, expected "
            "3.",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b',
            "a.jsonl:2: the file is cut in the middle of its last row.",
        ),
        (
            "a.csv",
            'text,label\n"abc,x\nmore,y\nsay "so",z\nd,x\n',
            "a.csv:2 to 4: text after the quote that closes a cell; a quote inside is doubled "
            '("").',
        ),
    ],
)
def test_cut_files_are_errors_even_where_bad_rows_are_dropped(table, name, content, message):
    assert problem(table(name, content)) == message
    assert problem(name, drop=True) == message


def test_bad_rows_are_said_together_or_dropped(table):
    name = table("a.csv", 'text,label\na,x,1\nshort\n"b" c,x\ngood,y\nbi\0nary,x\n' + "d,e,f\n" * 8)
    assert problem(name) == (
        "12 problems in the data:\n"
        "  a.csv:2: 3 cells, expected 2 (text, label)\n"
        "  a.csv:3: 1 cell, expected 2 (text, label)\n"
        '  a.csv:4: text after the quote that closes a cell; a quote inside is doubled ("")\n'
        "  a.csv:6: a NUL byte: the file is binary, or UTF-16 text\n"
        + "".join(f"  a.csv:{line}: 3 cells, expected 2 (text, label)\n" for line in range(7, 13))
        + "  and 2 more"
        + ADVICE
    )
    assert read(name, drop=True) == [("a.csv:5", "good", "y")]


def test_bad_json_lines(table):
    name = table(
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": }\n{"text": "b"}\n[1]\n{"text": "c", "label": 2}\n',
    )
    assert problem(name) == (
        "3 problems in the data:\n"
        "  a.jsonl:2: no JSON: Expecting value: line 1 column 10 (char 9)\n"
        "  a.jsonl:3: no 'label'\n"
        "  a.jsonl:4: a JSON list, expected an object" + ADVICE
    )
    assert [row[2] for row in read(name, drop=True)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty."),
        ("a.csv", " \n\n", "a.csv is empty."),
        ("a.csv", "text,label,text\na,x,b\n", "a.csv:1: several columns are named 'text'."),
        (
            "a.csv",
            "text,label\ra,x\rb,y\r",
            "a.csv: its lines end with a carriage return alone; convert them to line feeds.",
        ),
        (
            "a.jsonl",
            "text,label\n",
            'a.jsonl:1: no JSON object; expected one on each line, such as {"text": "...", '
            '"label": "..."}.',
        ),
    ],
)
def test_files_that_are_no_table(table, name, content, message):
    assert problem(table(name, content)) == message


def test_empty_texts(table):
    name = table("a.csv", TABLE + ",pos\n ,neg\nfine,\n")
    with pytest.raises(DataError) as caught:
        prepare(name)
    assert str(caught.value) == (
        "3 problems in the data:\n"
        "  a.csv:62: no text in column 'text'\n"
        "  a.csv:63: no text in column 'text'\n"
        "  a.csv:64: no label in column 'label'" + ADVICE
    )
    data = prepare(name, on_bad_rows="drop")
    assert sum(data.describe()["samples"].values()) == len(ROWS)
    assert data.describe()["dropped_rows"] == 3
    assert data.describe()["notes"] == [
        "3 rows were left out, the first: a.csv:62: no text in column 'text'"
    ]


@pytest.mark.parametrize("drop", ["stop", "drop"])
def test_an_empty_text_column(table, drop):
    name = table("a.csv", "text,label,body\n" + "".join(f" ,{i % 2},b\n" for i in range(30)))
    with pytest.raises(DataError) as caught:
        prepare(name, on_bad_rows=drop, text_column="text")
    assert str(caught.value) == (
        "a.csv: all 30 texts in column 'text' are empty: is it the right one? Give --text_column."
    )
