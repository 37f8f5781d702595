"""Columns that predict and embed only pass on come out as they went in."""

import csv
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import shake_heads
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.hub import save_folder
from polyhead.train.inference import files as prediction
from train_helpers import message_of, private_cache, run_cli  # noqa: F401

TASKS = {
    "mood": TaskConfig(head="sequence_classification", labels=["x", "y"]),
    "near": TaskConfig(head="embedding"),
}
ROWS = [
    ["00123", "0012345678905", "9007199254740993", "1E5", "NA", "first"],
    ["00456", "4006381333931", "", "2E3", "None", 'a "b", c\nd'],
    ["2024-05-06", "2024-05-06T10:11:12Z", "+05", " x ", "\u2028", "N/A"],
    ["null", "True", "1_000", "0.10", "a\rb", "None"],
]
NAMES = ["id", "ean", "big", "sku", "answer", "text"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, encoder_folder, tokenizer_of):
    made = PolyheadModel.from_encoder(str(encoder_folder("bert")), tasks=TASKS)
    shake_heads(made)
    folder = tmp_path_factory.mktemp("model")
    save_folder(made, tokenizer_of("wordpiece"), folder)
    return folder


def write(path, rows, names=NAMES):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([names, *rows])
    return path


def cells(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def predict(model, source, target, *more):
    return run_cli(
        "predict", model, "--input", source, "--output", target, "--tasks", "mood", *more
    )


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_cells_come_out_as_they_are(kind, model, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "SHARD", 3)
    source, target = write(tmp_path / f"in.{kind}", ROWS), tmp_path / f"out.{kind}"
    assert predict(model, source, target) == 0
    rows = cells(target)
    assert [row[:-1] for row in rows] == [NAMES, *ROWS]
    assert all(json.loads(row[-1])["label"] in ("x", "y") for row in rows[1:])


def test_embed_passes_cells_on_too(model, tmp_path):
    source, target = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    assert run_cli("embed", model, "--input", source, "--output", target) == 0
    assert [row[:-1] for row in cells(target)] == [NAMES, *ROWS]


def test_cells_are_strings_in_json_and_parquet(model, tmp_path):
    source = write(tmp_path / "in.csv", ROWS)
    expected = [{name: cell or None for name, cell in zip(NAMES, row, strict=True)} for row in ROWS]
    assert predict(model, source, tmp_path / "out.jsonl") == 0
    lines = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [{k: v for k, v in json.loads(x).items() if k != "mood"} for x in lines] == expected
    assert predict(model, source, tmp_path / "out.parquet") == 0
    assert pq.read_table(tmp_path / "out.parquet").drop(["mood"]).to_pylist() == expected


VALUES = [
    {"day": "2024-05-06", "at": "2024-05-06T10:11:12Z", "big": 2**70, "n": 1, "deep": {"a": [1]}},
    {"day": "x", "at": "2024-05-07", "big": 1, "n": 1.5, "deep": {"b": [{"c": None}, 0.1]}},
    {"day": None, "at": "", "big": -(2**64), "n": "1", "deep": ["\ud800", True]},
]


def test_json_values_come_out_as_they_are(model, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "SHARD", 2)
    rows = [{**row, "text": f"text {number}"} for number, row in enumerate(VALUES)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert predict(model, source, target) == 0
    written = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert repr([{k: v for k, v in row.items() if k != "mood"} for row in written]) == repr(rows)


def test_mixed_json_values_in_csv_and_parquet(model, tmp_path):
    source = tmp_path / "in.jsonl"
    rows = [{"v": value, "text": "a"} for value in ("x", 2**70, 1.5, None, {"k": [1, "é"]})]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert predict(model, source, tmp_path / "out.csv") == 0
    column = [row[0] for row in cells(tmp_path / "out.csv")[1:]]
    assert column == ["x", str(2**70), "1.5", "", '{"k": [1, "é"]}']
    assert predict(model, source, tmp_path / "out.parquet") == 0
    texts = pq.read_table(tmp_path / "out.parquet")["v"].to_pylist()
    assert texts == ['"x"', str(2**70), "1.5", None, '{"k": [1, "é"]}']


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_file_replaced_with_the_same_time_is_predicted_anew(name, model, tmp_path):
    source = tmp_path / name

    def ids(rows):
        if source.suffix == ".csv":
            write(source, rows, ["id", "text"])
        else:
            lines = (json.dumps({"id": one, "text": text}) for one, text in rows)
            source.write_text("".join(f"{line}\n" for line in lines))
        os.utime(source, (10**9, 10**9))
        target = tmp_path / f"out{rows[0][0]}.jsonl"
        assert predict(model, source, target) == 0
        return [json.loads(line)["id"] for line in target.read_text().splitlines()]

    assert ids([["1", "aa"], ["2", "bb"]]) == ["1", "2"]
    assert ids([["7", "cc"], ["8", "dd"]]) == ["7", "8"]


@pytest.mark.parametrize("name", ["a[1].csv", "b*.csv", "c d.tsv", "ü.csv"])
def test_names_with_signs(name, model, tmp_path):
    target = tmp_path / f"out {name}"
    assert predict(model, write(tmp_path / name, ROWS), target) == 0
    assert [row[:-1] for row in cells(target)] == [NAMES, *ROWS]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("in.csv", "text,b\noh, no,1\n", "in.csv, line 2: 3 fields, but the header has 2"),
        ("in.csv", 'text,b\n"a,1\nb,2\n', "in.csv, line 2: a double quote"),
        ("in.csv", "text,b\n,1\na,2\n", "no text in row 0 (1 rows)"),
        ("in.jsonl", '{"text": "a"}\n{"text": 1}\n{}\n', "no text in row 1 (2 rows)"),
        ("in.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "no text in row 1 (1 rows)"),
        ("in.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n', "key 'text' stands twice"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(name, content, says, model, tmp_path, capsys):
    source, target = tmp_path / name, tmp_path / "out.csv"
    source.write_text(content)
    assert predict(model, source, target) == 2
    assert says in " ".join(message_of(capsys.readouterr().err))
    assert not target.exists()


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("nested", [False, True])
def test_bytes_have_no_text(ending, nested, model, tmp_path, capsys):
    value = {"bytes": b"\xff"} if nested else b"\xff"
    table = pa.table({"text": ["a"], "image": [value]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert predict(model, tmp_path / "in.parquet", tmp_path / f"out.{ending}") == 2
    assert "column 'image' holds bytes" in " ".join(message_of(capsys.readouterr().err))
    assert not (tmp_path / f"out.{ending}").exists()
    assert predict(model, tmp_path / "in.parquet", tmp_path / "out.parquet") == 0
    assert pq.read_table(tmp_path / "out.parquet")["image"].to_pylist() == [value]
