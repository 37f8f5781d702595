"""Values come out of a file as they went in; what cannot be read for certain names its line."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polyhead.train.data.source import ENDINGS, ending, find_files, open_files
from train_helpers import private_cache  # noqa: F401


def write(folder, content, name="rows.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_in(*paths):
    """The values of the rows, JSON texts decoded."""
    rows = open_files(paths, [ENDINGS[ending(path)] for path in paths])
    columns = rows[:]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def fault_of(*paths):
    with pytest.raises(ValueError, match=r"\S") as caught:
        rows_in(*paths)
    return str(caught.value)


class LooksLikeRows(Exception):
    pass


def rows_or_doubt(path):
    try:
        return rows_in(path)
    except ValueError as error:
        if "over lines that look like rows" in str(error):
            raise LooksLikeRows from error
        raise


# ---- CSV ----

WORDS = ["None", "NA", "N/A", "n/a", "null", "NULL", "nan", "NaN", "<NA>", "#N/A", "-", "inf"]
NUMBERS = ["001", "1E5", "1e-7", "9007199254740993", "0012345678905", "1.10", "+5", "1_000"]
TIMES = ["2024-05-06", "2024-05-06T10:11:12Z", "2024-05-06 10:11:12+02:00", "10:11", "5.6.2024"]
OTHERS = [
    "True",
    "yes",
    " padded ",
    "a\tb",
    "\u00a0",
    "\u2028x",
    "\x0c",
    "Zürich 🎉",
    "'",
    "\\",
    "½²",
]


@pytest.mark.parametrize("cell", [*WORDS, *NUMBERS, *TIMES, *OTHERS])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_cell_is_the_text_that_it_is(cell, quoted, tmp_path):
    text = f'"{cell}"' if quoted else cell
    path = write(tmp_path, f"text,other\n{text},1\nx,{text}\n")
    assert rows_in(path) == [{"text": cell, "other": "1"}, {"text": "x", "other": cell}]


def test_an_empty_cell_is_missing(tmp_path):
    path = write(tmp_path, 'a,b,c\n1,,3\n,"",\n')
    assert rows_in(path) == [{"a": "1", "b": None, "c": "3"}, {"a": None, "b": None, "c": None}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_inside_and_between_rows(end, tmp_path):
    content = end.join(["a,b", f'1,"x{end}y"', "", "2,z"])
    path = write(tmp_path, content)
    assert rows_in(path) == [{"a": "1", "b": f"x{end}y"}, {"a": "2", "b": "z"}]


def test_mixed_line_ends(tmp_path):
    path = write(tmp_path, "a,b\r\n1,2\n3,4\r5,6")
    assert [row["a"] for row in rows_in(path)] == ["1", "3", "5"]


def test_commas_too_many_at_the_end_of_every_row_shift_nothing(tmp_path):
    path = write(tmp_path, "id,text,label,note\n1,hello,a,first,\n2,bye,b,second,\n")
    assert rows_in(path) == [
        {"id": "1", "text": "hello", "label": "a", "note": "first"},
        {"id": "2", "text": "bye", "label": "b", "note": "second"},
    ]


def test_commas_too_many_in_the_header_too(tmp_path):
    path = write(tmp_path, "id,text,,\n1,hello,,\n2,bye,,\n")
    assert rows_in(path) == [{"id": "1", "text": "hello"}, {"id": "2", "text": "bye"}]


def test_the_index_that_pandas_writes_is_a_column_without_a_name(tmp_path):
    path = write(tmp_path, ",text\n0,hello\n1,bye\n")
    assert rows_in(path) == [{"": "0", "text": "hello"}, {"": "1", "text": "bye"}]


REFUSED = {  # CSV: what the message says
    "comma-in-the-first-row": ("text,label\nplease help, it broke,x\na,y\n", "line 2: 3 fields"),
    "comma-in-a-later-row": ("text,label\na,x\nb,y\noh, no,x\n", "line 4: 3 fields"),
    "comma-in-all-rows": ("text,label\na, b,x\nc, d,y\n", "line 2, 3: 3 fields"),
    "more-than-three-rows": ("text,label\n" + "a,b,x\n" * 9, "line 2, 3, 4 and 6 more: 3 fields"),
    "empty-surplus-in-one-row": ("a,b\n1,2\n3,4,\n", "line 3: 3 fields"),
    "surplus-that-differs": ("a,b\n1,2,\n3,4,,\n", "line 2, 3: 3 fields"),
    "surplus-with-a-value": ("a,b\n1,2,\n3,4,x\n", "line 2, 3: 3 fields"),
    "surplus-beside-a-value-under-no-name": ("a,b,\n1,2,\n3,4,x\n", "line 2, 3: 3 fields"),
    "too-few-fields": ("a,b,c\n1,2,3\n4,5\n", "line 3: 2 fields, but the header has 3"),
    "line-after-a-field-of-lines": ('a,b\n1,"x\ny"\n2\n', "line 4: 1 fields"),
    "name-twice": ("text,label,text\na,b,c\n", "line 1: column 'text' stands twice"),
    "no-name": ("text,,label\na,b,c\n", "line 1: column 2 has no name"),
    "semicolons": ("text;label\na;b\n", "line 1: one column, 'text;label'"),
    "tabs": ("text\tlabel\na\tb\n", "end in .tsv"),
    "quote-to-the-end": ('id,text\n1,a\n2,"b\n3,c\n4,d\n', "line 3: a double quote"),
    "quote-at-the-very-end": ('id,text\n1,a\n2,"', "line 3: a double quote"),
    "text-after-a-quote": ('id,text\n1,"Great" stuff\n', "line 2: text follows"),
    "quote-to-the-next-quote": (
        'id,text\n1,"b\n2,c\n3,"d"\n4,e\n',
        "line 2: a double quote that opens here closes in line 4",
    ),
    "quote-to-the-end-of-a-cell": (
        'id,text,label\n1,"broken,x\n2,a pipe of 5",y\n3,ok,x\n4,ok,y\n',
        "line 2: a double quote that opens here closes in line 3, over lines that look like rows",
    ),
    "swallowed-with-labels-only": (
        'text,label\na,x\nb,y\nc,x\nd,y\n"e,x\nf,x\ng of 5",y\n',
        "line 6: a double quote that opens here closes in line 8",
    ),
    "nul": ("text\na\nb\0c\n", "line 3: holds a NUL"),
    "latin-1": ("text\nab\nü\n".encode("latin-1"), "line 3: byte 0xFC is not UTF-8"),
    "utf-16-without-a-mark": ("text\nab\n".encode("utf-16-le"), "UTF-16"),
    "half-of-utf-16": ("text\nab\n".encode("utf-16")[:-1], "is not utf-16"),
    "zip": (b"PK\x03\x04rest", "zip archive or a spreadsheet"),
    "parquet": (b"PAR1rest", "is a parquet file"),
    "damaged-gzip": (gzip.compress(b"text\na\n")[:-9], "packed, but damaged"),
    "empty": (b"", "a file is empty"),
    "blank": (b"\n\n", "a file is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(case, tmp_path):
    content, message = REFUSED[case]
    path = write(tmp_path, content)
    said = fault_of(path)
    assert message in said
    assert "rows.csv" in said or "empty" in message


READ_RIGHT = {
    "comma-and-line-break-in-a-text": 'text,label\n"one, x\ntwo",pos\na,neg\nb,pos\nc,neg\n',
    "numbers-in-a-text-of-lines": 'text,label\n"1, apples\n2, pears",food\na,b\nc,b\nd,food\n',
    "quote-inside-a-cell": 'text,label\na 5" pipe,x\nb 6",y\n',
    "single-quote": "text,label\n'a,x\nb',y\n",
    "one-column": 'text\n"a, b"\nc\n""\n',
    "backslash": 'text,label\n"a\\",x\nb\\,y\n',
    "header-only": "text,label\n",
    "quoted-header": '"text, all","la""bel"\na,b\n',
}


@pytest.mark.parametrize("case", READ_RIGHT)
def test_rows_are_those_of_the_csv_module(case, tmp_path):
    content = READ_RIGHT[case]
    expected = [
        {name: cell or None for name, cell in row.items()}
        for row in csv.DictReader(io.StringIO(content, newline=""))
    ]
    assert rows_in(write(tmp_path, content)) == expected


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TRICKY = st.text(st.sampled_from(['"', ",", "\n", "\r", "\t", ";", " ", "1", "a", "é"]), max_size=6)
TABLES = st.integers(2, 4).flatmap(
    lambda width: st.lists(
        st.lists(CELLS | TRICKY, min_size=width, max_size=width), min_size=1, max_size=5
    )
)
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(rows=TABLES, end=st.sampled_from(["\n", "\r\n"]), name=st.sampled_from(["csv", "tsv"]))
def test_any_table_that_csv_writes_comes_back(rows, end, name, tmp_path):
    names = [f"c{number}" for number in range(len(rows[0]))]
    text = io.StringIO(newline="")
    separator = "\t" if name == "tsv" else ","
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *rows])
    path = write(tmp_path, text.getvalue(), f"rows.{name}")
    with contextlib.suppress(LooksLikeRows):  # refused is right, another table is not
        assert rows_or_doubt(path) == [
            {n: cell or None for n, cell in zip(names, row, strict=True)} for row in rows
        ]


# ---- JSON ----


@pytest.mark.parametrize(
    "values",
    [
        [*WORDS, *NUMBERS, *TIMES],
        [1, None, -5],
        [2**63, 1, -(2**70)],
        [1, 2.5, 3.0],
        [0.1, 1e-320, 5e300],
        [True, None, 1],
        ["1", 1, 1.0, True, None, [1], {"a": 1}],
        [["a"], [], None, ["b", None]],
        [[1, 2.5], [3]],
        [[0.5, 0.25], [1.0]],
        [{"a": 1}, {"b": "2"}],
        [{"a": 1, "b": [{"c": None}]}, {"a": 2, "b": [{"c": "x"}]}],
        [{}, {"a": 1}],
        [[[1]], [["a"]]],
        ["\ud800", "a"],
        [{"start": 0, "end": 3, "label": "x"}, None],
    ],
    ids=repr,
)
@pytest.mark.parametrize("form", ["lines", "list"])
def test_json_values_are_those_of_the_json_module(values, form, tmp_path):
    rows = [{"v": value, "n": number} for number, value in enumerate(values)]
    lines = "\n".join(json.dumps(row) for row in rows)
    content = lines if form == "lines" else json.dumps(rows, indent=1)
    found = rows_in(write(tmp_path, content, f"rows.json{'l' * (form == 'lines')}"))
    assert found == rows
    kinds = [type(row["v"]) for row in found]
    assert kinds == [type(value) for value in values]  # 1, 1.0 and True are equal


def test_a_later_row_may_change_the_type_of_a_column(tmp_path):
    values = [*range(5000), None, "x", 1.5]
    lines = "".join(f"{json.dumps({'v': value})}\n" for value in values) + '{"w": 1}\n'
    found = rows_in(write(tmp_path, lines, "rows.jsonl"))
    assert [row["v"] for row in found] == [*values, None]
    assert [row["w"] for row in found] == [None] * len(values) + [1]


def test_files_of_other_types_are_one_column(tmp_path):
    one = write(tmp_path, '{"v": 1}\n', "a.jsonl")
    two = write(tmp_path, '{"v": "2a"}\n', "b.jsonl")
    assert [row["v"] for row in rows_in(one, two)] == [1, "2a"]


REFUSED_JSON = {
    "no-json": ('{"a": 1}\nthis\n', "line 2 (row 1): JSON parse error"),
    "cut": ('{"a": 1}\n{"a":', "line 2 (row 1): JSON parse error"),
    "two-in-a-line": ('{"a": 1} {"a": 2}\n', "line 1 (row 0): JSON parse error: Extra data"),
    "key-twice": ('{"a": 1}\n\n{"a": 1, "b": 2, "a": 3}\n', "line 3 (row 1): key 'a' stands twice"),
    "inner-key-twice": ('{"a": {"b": 1, "b": 2}}\n', "line 1 (row 0): key 'b' stands twice"),
    "too-large": ('{"a": 1}\n{"a": 1e400}\n', "line 2 (row 1): 1e400 is larger"),
    "too-large-in-a-list": ('{"a": [0.5, -1e999]}\n', "line 1 (row 0): -1e999 is larger"),
    "too-many-digits": ('{"a": ' + "9" * 5000 + "}\n", "line 1 (row 0)"),
    "no-object": ('{"a": 1}\n["a"]\n', "no object"),
    "word": ('"a"\n', "line 1 (row 0): 'a' is no object"),
    "list-of-words": ('["a"]', "item 0: 'a' is no object"),
    "too-deep": ('{"a": ' + "[" * 100_000, "nested too deep"),
    "latin-1": ('{"a": "é"}\n'.encode("latin-1"), "line 1: byte 0xE9"),
    "empty": ("\n", "a file is empty"),
    "empty-list": ("[]", "a file is empty"),
}


@pytest.mark.parametrize("case", REFUSED_JSON)
def test_what_json_cannot_keep_is_refused(case, tmp_path):
    content, message = REFUSED_JSON[case]
    assert message in fault_of(write(tmp_path, content, "rows.jsonl"))


def test_infinity_and_nan_are_what_they_say(tmp_path):
    found = rows_in(write(tmp_path, '{"a": Infinity}\n{"a": NaN}\n{"a": "1e400"}\n', "r.jsonl"))
    assert [str(row["a"]) for row in found] == ["inf", "nan", "1e400"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@SETTINGS
@given(pairs=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5))
def test_any_rows_that_json_writes_come_back(pairs, tmp_path):
    rows = [{"a": one, "b": other} for one, other in pairs]
    path = write(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), "rows.jsonl")
    assert repr(rows_in(path)) == repr(rows)


# ---- names, packing, parquet, replaced files ----


@pytest.mark.parametrize("name", ["a[1].csv", "a*.csv", "a?.csv", "a b.csv", "ü–.csv", "a{1}.csv"])
def test_a_name_with_signs_is_the_file_of_that_name(name, tmp_path):
    path = write(tmp_path, "text\nright\n", name)
    write(tmp_path, "text\nwrong\n", "a1.csv")
    assert find_files(str(path)) == [path]


def test_a_pattern_names_files_in_order(tmp_path):
    for name in ("b1.csv", "b0.csv", "c.csv", "b2.txt"):
        write(tmp_path, "text\na\n", name)
    assert [path.name for path in find_files(str(tmp_path / "b*.csv"))] == ["b0.csv", "b1.csv"]
    with pytest.raises(ValueError, match="there is no file .*d"):
        find_files(str(tmp_path / "d*.csv"))
    with pytest.raises(ValueError, match="is a folder"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("encoding", "pack", "name"),
    [
        ("utf-8", gzip.compress, "rows.csv.gz"),
        ("utf-8", bz2.compress, "rows.csv.bz2"),
        ("utf-16", lzma.compress, "rows.csv.xz"),
        ("utf-8-sig", bytes, "rows.csv"),
        ("utf-16", bytes, "rows.csv"),
        ("utf-32", bytes, "rows.csv"),
    ],
)
def test_packed_files_and_byte_order_marks(encoding, pack, name, tmp_path):
    path = write(tmp_path, pack("text,b\nZürich 🎉,1\n".encode(encoding)), name)
    assert rows_in(path) == [{"text": "Zürich 🎉", "b": "1"}]


def test_json_with_a_byte_order_mark(tmp_path):
    path = write(tmp_path, '{"a": "ü"}\n'.encode("utf-8-sig"), "rows.jsonl.gz")
    assert rows_in(path) == [{"a": "ü"}]


def test_tabs_part_the_cells_of_tsv(tmp_path):
    path = write(tmp_path, 'text\tlabel\na, b\tx\n"c\td"\ty\n', "rows.tsv")
    assert rows_in(path) == [{"text": "a, b", "label": "x"}, {"text": "c\td", "label": "y"}]


def test_a_text_longer_than_csv_reads_by_itself(tmp_path):
    text = "word, " * 50_000
    assert rows_in(write(tmp_path, f'text,b\n"{text}",1\n')) == [{"text": text, "b": "1"}]


def test_csv_files_with_columns_in_another_order(tmp_path):
    one = write(tmp_path, "a,b\n1,2\n", "1.csv")
    assert rows_in(one, write(tmp_path, "b,a\n3,4\n", "2.csv"))[1] == {"a": "4", "b": "3"}
    said = fault_of(one, write(tmp_path, "a,c\n3,4\n", "2.csv"))
    assert said == "2.csv has the columns a, c, but 1.csv has a, b"


def test_parquet_keeps_its_types(tmp_path):
    kind = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"label": kind, "n": datasets.Value("int32")})
    rows = datasets.Dataset.from_dict({"label": [1, -1], "n": [1, None]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    found = open_files([tmp_path / "rows.parquet"], ["parquet"])
    assert found.features == features
    assert found.to_list() == rows.to_list()


def test_dictionary_columns_of_parquet_are_their_values(tmp_path):
    pq.write_table(
        pa.table({"c": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "r.parquet"
    )
    assert [row["c"] for row in rows_in(tmp_path / "r.parquet")] == ["a", "b", "a"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_a_file_replaced_with_the_same_size_and_time_is_read_anew(name, tmp_path):
    def put(text):
        path = tmp_path / name
        if name.endswith("parquet"):
            pq.write_table(pa.table({"a": [text]}), path)
        else:
            path.write_text(f"a,b\n{text},1\n" if name.endswith("csv") else f'{{"a": "{text}"}}\n')
        os.utime(path, (10**9, 10**9))
        return path

    assert rows_in(put("aa"))[0]["a"] == "aa"
    assert rows_in(put("bb"))[0]["a"] == "bb"


def test_nothing_is_left_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = rows_in(write(tmp_path, "a,b\n1,2\n"))
    fault_of(write(tmp_path, "a,b\n1,2,3\n", "bad.csv"))
    assert rows == [{"a": "1", "b": "2"}]
    assert list((tmp_path / "cache").iterdir()) == []


# ---- parquet in several files ----


def two_files(folder, *columns):
    """Two parquet files of a column `c`: an Arrow array, or a dataset of `datasets`."""
    paths = [folder / "a.parquet", folder / "b.parquet"]
    for path, column in zip(paths, columns, strict=True):
        if isinstance(column, datasets.Dataset):
            column.to_parquet(path)
        else:
            pq.write_table(pa.table({"c": column}), path)
    return open_files(paths, ["parquet"] * 2)


def classes(*names):
    features = datasets.Features({"c": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"c": [0, 1]}, features=features)


def numbers(kind):
    features = datasets.Features({"c": datasets.Value(kind)})
    return datasets.Dataset.from_dict({"c": [0, 1]}, features=features)


@pytest.mark.parametrize("second", [classes("pos", "neg"), classes("neg", "pos", "x"), [0, 1]])
def test_class_ids_that_mean_others_in_a_second_file_are_refused(second, tmp_path):
    with pytest.raises(ValueError, match=r"b\.parquet: column 'c' is .* in a\.parquet ClassLabel"):
        two_files(tmp_path, classes("neg", "pos"), second)


def test_class_ids_of_the_same_names_are_read(tmp_path):
    assert two_files(tmp_path, classes("neg", "pos"), classes("neg", "pos"))["c"][:] == [0, 1] * 2


@pytest.mark.parametrize("other", [[0.5], ["x"], [True], [[1]]])
def test_columns_of_other_types_in_a_second_file_are_refused(other, tmp_path):
    with pytest.raises(ValueError, match=r"b\.parquet: column 'c' is of type .* int64; write both"):
        two_files(tmp_path, [1], other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([0, 1], pa.int32()), pa.array([0, 1], pa.int64())),
        (pa.array([0, 1], pa.int64()), numbers("int32")),
        (numbers("int32"), numbers("int64")),
    ],
)
def test_integers_of_two_widths_are_read(one, other, tmp_path):
    assert two_files(tmp_path, one, other)["c"][:] == [0, 1, 0, 1]


def test_strings_of_two_types_and_nulls_are_read(tmp_path):
    large = pa.array(["y"], pa.large_string())
    assert two_files(tmp_path, pa.array(["x"]), large)["c"][:] == ["x", "y"]
    assert two_files(tmp_path, pa.nulls(1), large)["c"][:] == [None, "y"]


def test_a_column_of_parquet_that_stands_twice_is_refused(tmp_path):
    arrays = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["k", "k"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: column 'k' stands twice"):
        open_files([tmp_path / "a.parquet"], ["parquet"])
