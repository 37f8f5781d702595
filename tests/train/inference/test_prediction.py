"""Files of any size: rows in shards, resumed after a kill, shared by processes, joined in order."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import shake_heads
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train.hub import save_folder
from polyhead.train.inference import files as prediction
from polyhead.train.inference import shards as output_parts
from train_helpers import message_of, messages, private_cache, run_cli  # noqa: F401

LABELS = ["book", "cancel", "play"]
TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=LABELS),
    "topics": TaskConfig(
        head="sequence_classification", labels=LABELS, problem_type="multi_label_classification"
    ),
    "urgency": TaskConfig(head="sequence_classification", problem_type="regression"),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-city", "I-city"]),
    "near": TaskConfig(head="embedding"),
    "words": TaskConfig(head="masked_lm"),
    "same": TaskConfig(head="sequence_classification", labels=["no", "yes"], pair=True),
}
SINGLE = [name for name in TASKS if name != "same"]
ROWS = 23
SHARD = 5
SHARDS = 5
SMALL_SHARDS = """
from polyhead.train import cli
from polyhead.train.inference import files
files.SHARD = 5
cli.main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory, encoder_folder, tokenizer_of) -> Path:
    """A folder with a model of every kind of head."""
    made = PolyheadModel.from_encoder(str(encoder_folder("bert")), tasks=TASKS)
    shake_heads(made)
    folder = tmp_path_factory.mktemp("model")
    save_folder(made, tokenizer_of("wordpiece"), folder)
    return folder


@pytest.fixture(scope="module")
def pipe(model, tokenizer_of) -> PolyheadPipeline:
    loaded = PolyheadModel.from_pretrained(model)
    return PolyheadPipeline(model=loaded, tokenizer=tokenizer_of("wordpiece"), device="cpu")


@pytest.fixture
def shards(monkeypatch) -> SimpleNamespace:
    """Shards of a few rows; counts the pipeline's calls, and lets one of them fail."""
    state = SimpleNamespace(calls=0, fails_at=None)
    usual = PolyheadPipeline.__call__

    def call(self, *arguments, **options):
        state.calls += 1
        if state.calls == state.fails_at:
            raise KeyboardInterrupt
        return usual(self, *arguments, **options)

    monkeypatch.setattr(prediction, "SHARD", SHARD)
    monkeypatch.setattr(PolyheadPipeline, "__call__", call)
    return state


def rows_of(count: int) -> list[dict]:
    return [
        {"text": f"[MASK] {row['text']} {number}", "more": row["intent"], "id": number}
        for number, row in enumerate(messages(count))
    ]


@pytest.fixture
def table() -> pa.Table:
    return pa.Table.from_pylist(rows_of(ROWS))


def write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    return path


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {key: json.loads(value) if key in TASKS else value for key, value in row.items()}
        for row in pyarrow.csv.read_csv(path).to_pylist()
    ]


def predict(model: Path, source: Path, target: Path, *more: str) -> int:
    return run_cli("predict", model, "--input", source, "--output", target, *more)


def parts_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.parts")


def assert_alike(actual, expected) -> None:
    """The same but for rounding: other texts shared the batches."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_alike(actual[key], value)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, (float, np.ndarray)):
        assert actual == pytest.approx(expected, abs=1e-5)
    else:
        assert actual == expected


# ---- what is written ----


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_rows_of_all_shards_come_in_order_with_the_pipelines_answers(
    ending, model, pipe, shards, table, tmp_path
):
    source, target = write(table, tmp_path / f"in.{ending}"), tmp_path / f"out.{ending}"
    assert predict(model, source, target) == 0
    assert shards.calls == SHARDS
    answers = pipe(table["text"].to_pylist())
    expected = [{**row, **one} for row, one in zip(table.to_pylist(), answers, strict=True)]
    assert_alike(read(target), expected)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


def test_pairs_come_from_two_columns(model, pipe, shards, table, tmp_path):
    source, target = write(table, tmp_path / "in.parquet"), tmp_path / "out.parquet"
    assert predict(model, source, target, "--text-pair", "more") == 0
    texts = list(zip(table["text"].to_pylist(), table["more"].to_pylist(), strict=True))
    assert_alike([row["same"] for row in read(target)], [one["same"] for one in pipe(texts)])


def test_the_files_of_a_folder_are_read_in_name_order(model, shards, table, tmp_path):
    folder = tmp_path / "in[1]"
    folder.mkdir()
    write(table.slice(14), folder / "c.parquet")
    write(table.slice(0, 7), folder / "a.parquet")
    write(table.slice(7, 0), folder / "b0.parquet")
    write(table.slice(7, 7), folder / "b1.parquet")
    (folder / ".hidden.parquet").write_text("none of them")
    (folder / "notes.txt").write_text("none of them")
    one, several = tmp_path / "one.parquet", tmp_path / "several.parquet"
    assert predict(model, write(table, tmp_path / "in.parquet"), one) == 0
    assert predict(model, folder, several) == 0
    assert several.read_bytes() == one.read_bytes()


def test_embeddings_are_32_bit_columns(model, pipe, shards, table, tmp_path):
    source, target = write(table, tmp_path / "in.parquet"), tmp_path / "out.parquet"
    assert run_cli("embed", model, "--input", source, "--output", target) == 0
    written = pq.read_table(target)
    assert written.column_names == ["text", "more", "id", "near"]
    assert written.schema.field("near").type == pa.list_(pa.float32())
    expected = [one["near"] for one in pipe(table["text"].to_pylist(), ["near"])]
    np.testing.assert_allclose(np.stack(written["near"].to_numpy()), np.stack(expected), atol=1e-5)


def test_a_shard_without_entities_has_the_schema_of_others(model, shards, table, tmp_path):
    texts = table["text"].to_pylist()
    texts[SHARD : 2 * SHARD] = [""] * SHARD
    source = write(table.set_column(0, "text", [texts]), tmp_path / "in.parquet")
    target, shards.fails_at = tmp_path / "out.parquet", SHARDS
    assert predict(model, source, target) != 0
    schemas = [pq.read_schema(path) for path in sorted(parts_of(target).glob("*.parquet"))]
    assert len(schemas) == SHARDS - 1
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    assert predict(model, source, target) == 0
    written = datasets.Dataset.from_parquet(str(target), cache_dir=str(tmp_path / "cache"))
    position, score = datasets.Value("int64"), datasets.Value("float64")
    entity = {"entity_group": datasets.Value("string"), "score": score}
    entity |= {"word": datasets.Value("string"), "start": position, "end": position}
    assert written.features["slots"] == datasets.List(entity)
    assert [written[i]["slots"] for i in range(SHARD, 2 * SHARD)] == [[]] * SHARD


def test_csv_keeps_line_ends_quotes_missing_values_and_dates(model, shards, tmp_path):
    columns = {
        "text": ['a\rb "c", d', "e\r\nf", "g\nh"],
        "note": [None, "x", ""],
        "number": [1, None, 3],
        "day": pa.array([0, None, 1], pa.date32()),
    }
    source, target = tmp_path / "in.parquet", tmp_path / "out.csv"
    write(pa.table(columns), source)
    assert predict(model, source, target, "--tasks", "urgency") == 0
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    written = pyarrow.csv.read_csv(target, parse_options=parsing, convert_options=options)
    assert written.drop(["urgency"]).to_pydict() == pa.table(columns).to_pydict()


# ---- an interrupted call ----


def test_an_interrupted_call_goes_on_after_the_finished_shards(
    model, shards, table, tmp_path, capsys
):
    source, whole, target = (tmp_path / f"{name}.parquet" for name in ("in", "whole", "out"))
    assert predict(model, write(table, source), whole) == 0
    shards.calls, shards.fails_at = 0, 3
    assert predict(model, source, target) != 0
    assert not target.exists()
    capsys.readouterr()
    shards.calls, shards.fails_at = 0, None
    assert predict(model, source, target) == 0
    assert shards.calls == SHARDS - 2
    assert f"2 of {SHARDS} shards were there" in capsys.readouterr().err
    assert target.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {source.name, whole.name, target.name}


@pytest.mark.parametrize("moment", ["writing", "renaming", "removing"])
def test_a_call_interrupted_while_it_joins_predicts_nothing_again(
    moment, model, shards, table, tmp_path, monkeypatch
):
    source, target = write(table, tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    target.write_text("old\n")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "writing":
            patch.setitem(output_parts.WRITERS, ".jsonl", stop)
        elif moment == "renaming":
            patch.setattr(Path, "rename", stop_at(target, stop))
        else:
            patch.setattr(output_parts.shutil, "rmtree", stop_at(None, stop))
        assert predict(model, source, target, "--overwrite") != 0
    assert (target.read_text() == "old\n") == (moment != "removing")
    assert shards.calls == SHARDS
    assert predict(model, source, target, "--overwrite") == 0
    assert shards.calls == (SHARDS if moment != "removing" else 2 * SHARDS)  # it was finished
    assert [row["id"] for row in read(target)] == list(range(ROWS))
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


def stop_at(target: Path | None, stop):
    """In the place of a method that moves a path: fails for this target, or at its second call."""
    rename, calls = Path.rename, []

    def act(path, to=None, **_):
        calls.append(path)
        if target is None:
            return stop() if len(calls) > 1 else None
        return stop() if to == target else rename(path, to)

    return act


CHANGES = {  # what another call asks for: the key that the message names
    "compute": ["--compute", "exact"],
    "tasks": ["--tasks", "intent"],
    "text": ["--text", "more"],
    "input": [],
    "model": [],
    "shard": [],
}


@pytest.mark.parametrize("key", CHANGES)
def test_shards_of_another_call_are_refused_with_what_differs(
    key, model, shards, table, tmp_path, monkeypatch, capsys
):
    source, target = write(table, tmp_path / "in.parquet"), tmp_path / "out.parquet"
    shards.fails_at = 3
    assert predict(model, source, target) != 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in parts_of(target).iterdir()}
    with monkeypatch.context() as patch:
        stat = source.stat()
        if key == "input":
            os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        if key == "model":
            patch.setattr(prediction, "WEIGHTS", (".safetensors",))
        if key == "shard":
            patch.setattr(prediction, "SHARD", 7)
        assert predict(model, source, target, *CHANGES[key]) == 2
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    message = " ".join(message_of(capsys.readouterr().err))
    assert f"{parts_of(target)}: 1 fault" in message
    assert f"of another call; {key} " in message
    assert "; " not in message.partition(f"of another call; {key} ")[2]
    assert before == {path: path.stat().st_mtime_ns for path in parts_of(target).iterdir()}
    assert predict(model, source, target) == 0  # the old call


# ---- what is refused ----


def test_a_missing_text_is_named_by_its_row_and_counted(model, table, tmp_path, capsys):
    texts = ["a"] * 5000
    texts[4100] = texts[4999] = None
    source = write(pa.table({"text": texts, "id": range(5000)}), tmp_path / "in.parquet")
    assert predict(model, source, tmp_path / "out.parquet") == 2
    assert "--text: column 'text': no text in row 4100 (2 rows)" in capsys.readouterr().err
    assert predict(model, source, tmp_path / "out.parquet", "--text", "id") == 2
    assert "--text: column 'id': no text in row 0 (5000 rows)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_an_output_must_not_change_the_input(model, table, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    source = write(table, folder / "a.parquet")
    for inputs, target in ((source, source), (folder, folder / "b.parquet")):
        assert predict(model, inputs, target) == 2
        assert f"--output: {target} would change" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("kind", ["empty-folder", "folder-as-output"])
def test_folders_without_files_and_folders_as_output_are_refused(
    kind, model, table, tmp_path, capsys
):
    (tmp_path / "folder.parquet").mkdir()
    paths = [tmp_path / "folder.parquet", write(table, tmp_path / "a.parquet")]
    source, target = paths if kind == "empty-folder" else reversed(paths)
    target = target if kind != "empty-folder" else tmp_path / "b.parquet"
    assert predict(model, source, target) == 2
    text = "no .parquet file in folder" if kind == "empty-folder" else "is a folder"
    assert text in capsys.readouterr().err


# ---- processes ----


def environment(folder: Path, **variables: str) -> dict[str, str]:
    variables |= {"HF_DATASETS_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}


@pytest.fixture
def many(model, tmp_path):
    """A file of many shards, and the answers of one undisturbed call."""
    source, whole = tmp_path / "in.parquet", tmp_path / "whole.parquet"
    write(pa.Table.from_pylist(rows_of(4500)), source)
    assert predict(model, source, whole) == 0
    return SimpleNamespace(source=source, whole=whole, target=tmp_path / "out.parquet")


@pytest.mark.slow
def test_a_killed_process_is_resumed_to_the_same_file(model, table, tmp_path, shards):
    source, whole, target = (tmp_path / f"{name}.parquet" for name in ("in", "whole", "out"))
    write(pa.Table.from_pylist(rows_of(200)), source)
    assert predict(model, source, whole) == 0
    files = ["--input", str(source), "--output", str(target)]
    command = [sys.executable, "-c", SMALL_SHARDS, "predict", str(model), *files]
    finished = 0
    for count in (3, 20):
        process = subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while len(list(parts_of(target).glob("*.parquet"))) < count:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        now = len(list(parts_of(target).glob("*.parquet")))
        assert finished < now < 40
        assert not target.exists()
        finished = now
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{finished} of 40 shards were there" in done.stderr
    assert target.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_of_torchrun_write_the_file_of_one(model, many, tmp_path):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    files = ["--input", str(many.source), "--output", str(many.target)]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "polyhead.train.cli", "predict", model, *files],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.replace("\n", "").count(f"4500 rows written to {many.target}") == 1
    assert many.target.read_bytes() == many.whole.read_bytes()
    assert not parts_of(many.target).exists()


def start_rank(rank: int, port: int, arguments: list[str], folder: Path) -> subprocess.Popen:
    """One of two processes, started without torchrun, which keeps exit codes to itself."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    variables = {key: str(value) for key, value in numbers.items()}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", SMALL_SHARDS, "predict", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment(folder, **variables), stdout=pipe, stderr=pipe, text=True
    )


FAULTS = {  # of a call of two processes: what its one message says
    "column": (["--text", "txt"], "--text: no column 'txt'"),
    "task": (["--tasks", "mood"], "unknown task 'mood'"),
    "plan": (["--compute", "exact"], 'compute was "auto", is "exact"'),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_ends_all_processes_with_one_message(case, model, table, shards, tmp_path):
    source, target = write(table, tmp_path / "in.parquet"), tmp_path / "out.parquet"
    more, expected = FAULTS[case]
    if case == "plan":
        shards.fails_at = 3
        assert predict(model, source, target) != 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = [str(model), "--input", str(source), "--output", str(target), *more]
    both = [start_rank(rank, port, arguments, tmp_path) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [2, 2]
    assert expected in said[0][1]
    assert ["fault" in stderr for _, stderr in said] == [True, False]
    assert not target.exists()
