"""The model card: metadata as the Hub reads it, what the run says, snippets that work."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from polyhead.modeling import TaskConfig
from polyhead.train.commands import training as run
from polyhead.train.errors import UserError
from polyhead.train.hub import save_folder
from polyhead.train.hub.card import read_runs, render_card
from train_helpers import files_of, write_recipe, write_seven

SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
LIMITS = "The messages are made up; nobody was asked."


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_of):
    """The model of a recipe that says what the card is to say."""
    root = tmp_path_factory.mktemp("card")
    recipe = write_seven(root, tokenizer_of)
    recipe["card"] = {"language": ["en"], "license": "apache-2.0", "limits": LIMITS}
    recipe["tasks"]["intent"]["data"] |= {"license": "cc0-1.0", "data_files": files_of("messages")}
    recipe["tasks"]["intent"]["examples"] = ["Book a table", "1e5"]
    recipe["balancing"] = {"gradient_steps": 1}
    run.train(write_recipe(root / "recipe.yaml", recipe))
    return root / "out" / "model"


@pytest.fixture(scope="module")
def card(folder):
    return ModelCard.load(folder / "README.md")


def test_metadata_is_what_the_run_says(card, folder):
    data = card.data.to_dict()
    assert data["language"] == ["en"]
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "feature-extraction"
    assert {"polyhead", "token-classification", "sentence-similarity"} <= set(data["tags"])
    assert "base_model" not in data  # random weights
    scores = json.loads((folder / "scores.json").read_text())
    expected = {
        (task, metric): value
        for task, values in scores.items()
        for metric, value in values.items()
        if isinstance(value, float)
    }
    results = {(r.task_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert results == expected
    types = {r.metric_name: r.metric_type for r in card.data.eval_results}
    assert types["entity_f1"] == types["f1_macro"] == "f1"
    assert types["spearman"] == "spearmanr"
    assert types["accuracy"] == "accuracy"
    assert {r.dataset_split for r in card.data.eval_results} == {"test"}


def test_examples_travel_with_the_recipe(folder):
    (run,) = read_runs(folder)
    assert run["recipe"]["tasks"]["intent"]["examples"] == ["Book a table", "1e5"]


def test_text_names_tasks_scores_labels_data_and_limits(card, folder):
    scores = json.loads((folder / "scores.json").read_text())
    for name, values in scores.items():
        lines = [line for line in card.text.splitlines() if line.startswith(f"| `{name}`")]
        for metric, value in values.items():
            assert isinstance(value, dict) or f"{metric} {value:.4f}" in lines[0]
        assert "train 12, validation 4, test 5" in lines[1]
    assert "- `intent` (3): `book`, `cancel`, `play`" in card.text
    assert "| `intent` | local files | cc0-1.0 |" in card.text
    assert f"- {LIMITS}" in card.text
    assert "- The encoder reads 64 tokens." in card.text
    assert "## How the tasks relate" in card.text
    assert "$" not in card.text


def test_pictures_are_in_the_folder(card, folder):
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", card.text)
    assert "plots/intent_confusion.png" in pictures
    assert sorted(pictures) == sorted(f"plots/{path.name}" for path in (folder / "plots").iterdir())


def test_recipe_holds_what_was_set_and_no_place_of_this_machine(card, folder):
    (text,) = re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    recipe = yaml.safe_load(text)
    assert recipe["training"]["learning_rate"] == 0.01
    assert recipe["tasks"]["intent"] == {
        "head": "sequence_classification",
        "data": {"text": "text", "label": "intent", "license": "cc0-1.0"},
        "metrics": ["mcc", "accuracy"],
        "examples": ["Book a table", "1e5"],
    }
    for name in ("README.md", "training.json", "config.json"):
        assert str(folder.parents[1]) not in (folder / name).read_text()


def test_snippets_run(card, folder):
    (snippet,) = SNIPPET.findall(card.text)
    assert "path/to/this/folder" in snippet
    known: dict = {}
    exec(snippet.replace("path/to/this/folder", str(folder)), known)
    first = next(iter(json.loads((folder / "scores.json").read_text())))
    last_line = snippet.strip().splitlines()[-1]
    assert list(eval(last_line, known)) == [first]


def test_without_a_run_it_says_what_is_not_known(make_model, tokenizer_of, tmp_path):
    tasks = {"same": TaskConfig(head="sequence_classification", labels=["no", "yes"], pair=True)}
    model = make_model("bert", tasks)
    save_folder(model, tokenizer_of("wordpiece"), tmp_path)
    text = render_card(model, tmp_path)
    assert "| `same` | single_label_classification | two texts | - | not measured |" in text
    assert 'predict(("some text", "another"), tasks=["same"])' in text
    assert text.count("Nothing is known about the") == 2
    assert "model-index" not in text
    exec(SNIPPET.findall(text)[0].replace("path/to/this/folder", str(tmp_path)), {})


NASTY = ["[/x]", "a\n# Heading", "<script>a</script>", "a|b", "`c`", "$x^{", "\u202eabc", "\x1b[2J"]
NASTY += ["\ud83d", "😀", "../../x", "", " ", "![x](http://y)", "---\n", "x" * 3000, "``\n```\n"]


def outline(text):
    """Tags of headings, lists, tables and blocks of code, without what they hold."""
    body = ModelCard(text, ignore_metadata_errors=False).text
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    return [(t.type, t.tag, t.level) for t in tokens]


def nasty_card(make_model, folder, texts, words):
    """The card of a model with these labels, entity types, splits and licences."""
    labels = ["O", *[f"B-{text}" for text in texts if text]]
    tasks = {
        "one": TaskConfig(head="sequence_classification", labels=texts),
        "ner": TaskConfig(head="token_classification", labels=labels),
    }
    model = make_model("bert", tasks)
    row = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 3}
    folder.mkdir()
    write_json(folder / "scores.json", {"ner": {"f1": 0.5, "per_type": dict.fromkeys(texts, row)}})
    data = {"data": words, "license": words, "rows": dict.fromkeys(texts, 3), "scored_on": words}
    training = {
        "encoder": words,
        "tasks": {"one": data, "ner": data},
        "card": {"language": ["en", words], "license": words, "limits": words},
        "recipe": {"tasks": {"one": {"labels": texts, words: words}}},
        "steps": 1,
        "epochs": 1.0,
        "seconds": 60,
        "resumed": False,
        "processes": 1,
        "device": words,
        "threads": 1,
        "machine": words,
        "versions": {"torch": words},
        "gradient_cosines": [
            {
                "tasks": ["one", words],
                "mean": -0.5,
                "standard_error": 0.01,
                "negative": 0.5,
                "compared": 9,
                "own": None,
            }
        ],
        "average": {
            "share": 0.1,
            "trials": [{"share": 0.1, "macro": 0.5, "tasks": {"one": 0.5, "ner": 0.5}}],
        },
    }
    hashes = {"weights": words, "logits": words}
    proof = {"change": words, "changed": [words], "encoder": words, "made_with": {"torch": words}}
    write_json(folder / "training.json", [training])
    write_json(folder / "proof.json", [{**proof, "tasks": {"one": hashes}}])
    return render_card(model, folder)


def write_json(path, value):
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("words", NASTY, ids=ascii)
def test_nasty_texts_change_nothing_of_the_card(make_model, tmp_path, words):
    plain = nasty_card(make_model, tmp_path / "plain", [f"l{i}" for i in range(17)], "words")
    text = nasty_card(make_model, tmp_path / "nasty", NASTY, words)
    text.encode()
    if words.strip():  # else a limit or a licence less
        assert outline(text) == outline(plain)
    data = ModelCard(text).data.to_dict()
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    if words and words.isprintable() and not words.isspace():
        assert data["base_model"] == words
        assert data["model-index"][0]["results"][0]["dataset"]["name"] == words


@pytest.mark.parametrize("name", ["scores.json", "training.json", "proof.json"])
@pytest.mark.parametrize("text", ["null", "3", '{"one": null}', "[null]", "{", '[{"tasks": 3}]'])
def test_a_damaged_file_is_one_message(make_model, tmp_path, name, text):
    model = make_model("bert", {"one": TaskConfig(head="embedding")})
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: "):
        render_card(model, tmp_path)
