"""`polyhead convert`: rows of any format as JSON Lines of ours, which read back as the same."""

import json

import pytest
from pages import ROOT
from polyhead.train.commands.convert import convert
from polyhead.train.errors import UserError
from train_helpers import (
    SEQUENCE,
    TOKENS,
    message_of,
    private_cache,  # noqa: F401
    run_cli,
    write_recipe,
)

DATA = ROOT / "tests" / "data"


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_spans_as_words_and_tags_and_back(tmp_path):
    told = convert(DATA / "spans_objects.jsonl", tmp_path / "a.jsonl", format="spans")
    assert told["rows"] == 3
    assert told["columns"] == ["text", "tokens", "tags"]
    keys = ["text=text", "tokens=tokens", "label=tags"]
    convert(tmp_path / "a.jsonl", tmp_path / "b.jsonl", keys, to="spans")
    spans = [
        {key: row[key] for key in ("text", "spans")}
        for row in lines_of(DATA / "spans_objects.jsonl")
    ]
    assert lines_of(tmp_path / "b.jsonl") == spans


def test_spans_of_conll_are_those_of_its_words_joined_by_spaces(tmp_path):
    convert(DATA / "iob1.txt", tmp_path / "a.jsonl", format="conll", to="spans")
    assert lines_of(tmp_path / "a.jsonl") == [
        {
            "text": 'between SILICON VALLEY BANK (" Bank "),',
            "spans": [
                {"start": 8, "end": 27, "label": "ORG"},
                {"start": 31, "end": 35, "label": "ORG"},
            ],
        },
        {"text": "1999", "spans": []},
    ]


def test_classes_of_a_file(tmp_path):
    keys = [f"head={SEQUENCE}", "problem_type=multi_label_classification"]
    keys += ["text=comment_text", "label=toxic,insult,threat"]
    convert(DATA / "one_hot.csv", tmp_path / "a.jsonl", keys)
    assert lines_of(tmp_path / "a.jsonl") == [
        {"text": "Hello,\nyou", "label": []},
        {"text": "Fool", "label": ["toxic", "insult"]},
        {"text": "Not read", "label": None},
    ]


@pytest.fixture
def recipe(tmp_path):
    data = {"data_files": {"train": str(DATA / "argilla_v2.json")}, "format": "argilla"}
    tasks = {
        "entities": {"head": TOKENS, "data": data | {"label": "entities"}},
        "sentiment": {"head": SEQUENCE, "data": data | {"label": "sentiment"}},
    }
    content = {"encoder": "-", "tasks": tasks, "output_dir": str(tmp_path / "out")}
    return write_recipe(tmp_path / "recipe.yaml", content)


def test_a_task_of_a_recipe_on_the_command_line(recipe, tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    assert run_cli("convert", recipe, "--task", "sentiment", "--output", output) == 0
    err = capsys.readouterr().err
    assert "note: sentiment: 1 of 3 rows of train have no label" in err
    assert "3 rows of text, label" in err
    assert lines_of(output)[:2] == [
        {"text": "Anna sings", "label": "happy"},
        {"text": "It rains", "label": "sad"},
    ]
    assert run_cli("convert", recipe, "--task", "sentiment", "--output", output) == 2
    assert "exists" in capsys.readouterr().err
    arguments = ["--task", "entities", "--to", "spans", "--overwrite", "--json"]
    assert run_cli("convert", recipe, *arguments, "--output", output) == 0
    assert json.loads(capsys.readouterr().out)["columns"] == ["text", "spans"]
    assert lines_of(output)[0]["spans"] == [{"start": 0, "end": 4, "label": "PER"}]


def test_all_faults_of_a_call_come_in_one_message(recipe, tmp_path, capsys):
    arguments = ["--format", "conll", "--to", "rows", "--task", "x", "--output", tmp_path / "a.csv"]
    assert run_cli("convert", recipe, *arguments) == 2
    first, *faults = message_of(capsys.readouterr().err)
    assert first == "convert: 4 faults"
    for part in ("end in .jsonl", "allowed: tokens, spans", "data.format", "entities, sentiment"):
        assert sum(part in fault for fault in faults) == 1


def test_keys_that_a_file_does_not_take_are_told(tmp_path):
    with pytest.raises(UserError, match="key=value is wanted; allowed keys: head"):
        convert(DATA / "brat", tmp_path / "a.jsonl", ["tasks.x.head=y"], format="brat")
    with pytest.raises(UserError, match="the tags stand alone; write --to tokens"):
        convert(
            DATA / "conll2003.txt", tmp_path / "a.jsonl", ["label=1"], format="conll", to="spans"
        )
    assert list(tmp_path.iterdir()) == []


def test_inspect_shows_a_recipe_of_a_tool(recipe, encoder_folder, capsys):
    override = f"encoder={encoder_folder('bert')}"
    assert run_cli("inspect", recipe, override, "training.use_cpu=true", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tasks"]["entities"]["labels"] == {"O": 2, "B-PER": 1}  # rows
    assert shown["tasks"]["sentiment"]["labels"] == {"happy": 1, "sad": 1}
    assert shown["tasks"]["entities"]["source"] == "entities+sentiment"
