"""Rows of CSV and JSON files are those of Python's `csv` and `json`, or the file is refused."""

import csv
import io
import json

import pytest
from fuzzing import TEXTS, TREES, examples, in_time
from hypothesis import given
from hypothesis import strategies as st
from polyhead.train.data.source import ENDINGS, open_files

pytestmark = pytest.mark.fuzz

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
CELLS |= st.sampled_from(
    ["", "NA", "null", "None", "nan", "001", "1E5", "1.0", "true", "2024-05-06"]
)
CELLS |= st.text(st.sampled_from('",\n\r\t; a1'), max_size=6)
RAW = st.text(st.sampled_from('",\n\r;ab1 \t\ufeff'), max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def rows_of(path):
    """The rows, or None where the file is refused by a message."""
    with in_time():
        try:
            return list(open_files([path], [ENDINGS[path.suffix]]))
        except ValueError as error:
            assert str(error)
            return None


@examples(1500)
@given(
    table=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=6
        )
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    ending=st.sampled_from([".csv", ".tsv"]),
)
def test_tables_that_csv_writes(folder, table, end, quoting, ending):
    text = io.StringIO(newline="")
    separator = "\t" if ending == ".tsv" else ","
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    names = [f"c{number}" for number in range(len(table[0]))]
    writer.writerows([names, *table])
    path = folder / f"rows{ending}"
    path.write_bytes(text.getvalue().encode())
    rows = rows_of(path)
    if rows is not None:
        read = list(csv.reader(io.StringIO(text.getvalue(), newline=""), delimiter=separator))[1:]
        expected = [row for row in read if row]
        assert rows == [{n: c or None for n, c in zip(names, r, strict=True)} for r in expected]


@examples(3000)
@given(text=RAW)
def test_any_text_as_csv(folder, text):
    path = folder / "raw.csv"
    path.write_bytes(text.encode())
    rows = rows_of(path)
    if rows is None:
        return
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    names, *table = [row for row in lines if row]
    width = len(rows[0]) if rows else len(names)
    for row, cells in zip(rows, table, strict=True):
        assert not any(cells[width:])  # commas too many
        assert list(row.values()) == [cell or None for cell in (cells + [""] * width)[:width]]
    if rows:
        assert [name for name in names[:width] if name] == [n for n in rows[0] if n in names and n]


JSON_ROWS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "text"]), TREES | TEXTS, min_size=1),
    min_size=1,
    max_size=5,
)


@examples(1500)
@given(rows=JSON_ROWS, as_list=st.booleans(), ascii_only=st.booleans())
def test_rows_that_json_writes(folder, rows, as_list, ascii_only):
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = f"[{', '.join(lines)}]" if as_list else "".join(f"{line}\n" for line in lines)
    path = folder / ("rows.json" if as_list else "rows.jsonl")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = rows_of(path)
    if found is not None:
        keys = dict.fromkeys(key for row in rows for key in row)
        expected = [{key: row.get(key) for key in keys} for row in map(json.loads, lines)]
        assert repr(found) == repr(expected)


@examples(300)
@given(data=st.binary(max_size=40), ending=st.sampled_from(sorted(ENDINGS)))
def test_any_bytes_as_any_file(folder, data, ending):
    path = folder / f"bytes{ending}"
    path.write_bytes(data)
    rows_of(path)
