"""A model with a router from its recipe to the command line, with a task more and a task less."""

import json

import pytest
from train_helpers import files_of, messages, recipe_of, run_cli, write_recipe, write_splits

pytestmark = pytest.mark.slow


def films(count, start=0):
    numbers = range(start, start + count)
    return [{"text": f"great film {n}", "mood": ["good", "bad"][n % 2]} for n in numbers]


def test_it_is_trained_asked_and_kept_with_a_task_more_and_one_less(
    tmp_path, tokenizer_of, capsys, caplog
):
    write_splits(tmp_path, "messages", messages)
    write_splits(tmp_path, "films", films)
    tokenizer_of("wordpiece").save_pretrained(tmp_path / "tokenizer")
    recipe = recipe_of(tmp_path / "tokenizer") | {"router": True}
    data = {"data_files": files_of("films"), "text": "text", "label": "mood"}
    mood = {"head": "sequence_classification", "data": data}
    recipe["tasks"] = {name: recipe["tasks"][name] for name in ("intent", "slots")} | {"mood": mood}
    recipe["training"] |= {"num_train_epochs": 8, "report_to": "none"}
    assert run_cli("train", write_recipe(tmp_path / "recipe.yaml", recipe)) == 0
    model = tmp_path / "out/model"

    def asked(folder):
        lines = texts_of_both(tmp_path)
        out = tmp_path / "answers.jsonl"
        options = ("--input", lines, "--output", out, "--tasks", "auto", "--overwrite")
        assert run_cli("predict", folder, *options) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    message, film = asked(model)
    assert sorted(message["router"]["tasks"]) == ["intent", "slots"]
    assert message["mood"] is None
    assert film["router"]["tasks"] == ["mood"]
    assert film["intent"] is film["slots"] is None
    more = {"tasks": {"mood2": mood}, "training": recipe["training"]}
    path = write_recipe(tmp_path / "more.yaml", {**more, "output_dir": str(tmp_path / "more")})
    assert run_cli("add-task", model, path) == 0
    assert 'tasks="auto" never names mood2' in caplog.text
    assert asked(tmp_path / "more/model")[1]["router"]["tasks"] == ["mood"]
    capsys.readouterr()
    assert run_cli("remove-task", model, "mood", "--output", tmp_path / "less") == 0
    message, film = asked(tmp_path / "less")
    assert sorted(message["router"]["tasks"]) == ["intent", "slots"]
    assert film["router"]["tasks"] == []


def texts_of_both(folder):
    path = folder / "texts.jsonl"
    rows = [messages(1)[0]["text"], films(1)[0]["text"]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path
