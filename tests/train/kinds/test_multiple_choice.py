"""Multiple choice, from rows to answers: alone, beside other tasks and in every form of a model."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.heads import IGNORE
from polyhead.train.batches.collator import model_inputs
from polyhead.train.commands import scoring
from polyhead.train.commands import training as run
from polyhead.train.errors import UserError
from polyhead.train.export.graph import export_graph
from polyhead.train.export.plain import export_hf
from polyhead.train.inference.exported import ExportedModel
from polyhead.train.recipe.reader import load_recipe
from torch.testing import assert_close
from train_helpers import (
    CITIES,
    SEQUENCE,
    files_of,
    message_of,
    messages,
    private_cache,  # noqa: F401
    recipe_of,
    run_cli,
    sources_of,
    task,
    write_recipe,
    write_rows,
    write_splits,
)
from trainer_fixtures import logged, weights
from transformers import AutoModelForMultipleChoice, AutoTokenizer

HEAD = "multiple_choice"


def questions(count: int, start: int = 0) -> list[dict]:
    """Questions with three choices of several lengths; the second of each split has no answer."""
    rows = []
    for number in range(start, start + count):
        answer = None if number == start + 1 else number % 3
        choices = [f"to {city}{' now' * (number % 4)}" for city in CITIES]
        question = f"where does train {number} go" + " please" * (number % 2)
        rows.append({"question": question, "choices": choices, "answer": answer})
    return rows


def choice_task(path: Path, **options):
    """The task over one file of rows."""
    columns = {"text": "question", "text_pair": "choices", "label": "answer"}
    return task(HEAD, data_files={"train": str(path)}, **columns, **options)


# ---- rows and labels ----


def faults_of(folder: Path, rows: list[dict], **options) -> list[str]:
    path = write_rows(folder / "rows.jsonl", rows)
    with pytest.raises(UserError) as caught:
        sources_of(which=choice_task(path, **options))
    return caught.value.faults


FAULTS = {  # column, its values in rows 2 and 3: what the message says
    "no-list": ("choices", ["a", "b"], "no list of choices (CSV has none; use JSON Lines"),
    "missing": ("choices", [None, ["a", "b", "c"]], "no list of texts in row 2, but None"),
    "one-choice": ("choices", [["a"], ["b"]], "no two choices in row 2, 3, but ['a']"),
    "empty": ("choices", [[], ["a", "b", "c"]], "no two choices in row 2, but []"),
    "no-texts": ("choices", [[1, 2, 3], ["a", "b", "c"]], "no list of texts in row 2, but [1, 2"),
    "a-null": ("choices", [["a", None, "c"], ["a", "b", "c"]], "no list of texts in row 2"),
    "no-question": ("question", [None, "who"], "column 'question': no text in row 2"),
    "another-number": (
        "choices",
        [["a", "b"], ["c", "d"]],
        "row 0 has 3 choices, but row 2, 3 has 2; all rows of a task have as many: leave",
    ),
    "too-large": (
        "answer",
        [3, 1],
        "column 'answer': choices count from 0 to 2, but row 2 holds 3; where they count from 1",
    ),
    "negative": ("answer", [-1, 1], "counted from 0 (name a mark of a missing one in data.missing"),
    "a-letter": ("answer", ["A", "B"], "the number of the right choice is wanted"),
    "a-fraction": ("answer", [0.5, 1.0], "the number of the right choice is wanted"),
    "true": ("answer", [True, False], "the number of the right choice is wanted"),
}


@pytest.mark.parametrize(("column", "values", "says"), FAULTS.values(), ids=list(FAULTS))
def test_rows_that_do_not_fit_are_told(tmp_path, column, values, says):
    rows = questions(6)
    for row, value in zip(rows[2:4], values, strict=True):
        row[column] = value
    if column == "answer" and not isinstance(values[0], int):  # one type in the column
        rows = [{**row, "answer": values[0]} for row in rows]
    (fault,) = faults_of(tmp_path, rows)
    key = {"question": "text", "choices": "text_pair", "answer": "label"}[column]
    assert fault.startswith(f"tasks.which.data.{key}: train, column {column!r}")
    assert says in fault


def test_numbers_as_texts_are_told(tmp_path):
    (fault,) = faults_of(tmp_path, [{**row, "answer": "1"} for row in questions(4)])
    assert "the number of the right choice is wanted" in fault
    assert "holds '1'" in fault


def test_rows_without_any_answer_are_told(tmp_path):
    rows = [{**row, "answer": None} for row in questions(4)]
    assert "no row of train has a label in 'answer'" in faults_of(tmp_path, rows)[0]
    files = {"train": str(write_rows(tmp_path / "a.jsonl", questions(4)))}
    files["test"] = str(write_rows(tmp_path / "b.jsonl", rows))
    with pytest.raises(UserError, match="no row of test has a label in 'answer'; leave that split"):
        sources_of(
            which=task(HEAD, data_files=files, text="question", text_pair="choices", label="answer")
        )


@pytest.mark.parametrize(
    ("options", "data", "says"),
    [
        ({"labels": ["a", "b"]}, {}, "labels"),
        ({"threshold": 0.9}, {}, "threshold"),
        ({"metrics": ["f1_macro"]}, {}, "f1_macro does not fit; allowed: accuracy"),
        ({}, {"text_pair": None}, "text_pair: missing; multiple_choice needs"),
        ({}, {"label": None}, "label: missing; multiple_choice needs"),
        ({}, {"label_range": [0, 3]}, "label_range: only for tasks with numbers"),
        ({}, {"negative": "choices"}, "negative: multiple_choice does not read it"),
    ],
)
def test_options_and_columns_that_it_does_not_read_are_refused(tmp_path, options, data, says):
    write_rows(tmp_path / "rows.jsonl", questions(4))
    columns = {"text": "question", "text_pair": "choices", "label": "answer", **data}
    columns = {key: value for key, value in columns.items() if value is not None}
    source = {"data_files": "${RECIPE_DIR}/rows.jsonl", **columns}
    recipe = {"encoder": "-", "output_dir": "out"}
    recipe["tasks"] = {"which": {"head": HEAD, "data": source, **options}}
    with pytest.raises(UserError) as caught:
        load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
    assert any(says in fault for fault in caught.value.faults), caught.value.faults


@pytest.mark.parametrize(
    ("feature", "answers"),
    [
        (datasets.Value("int64"), [2, 0, None, 1]),
        (datasets.ClassLabel(names=["A", "B", "C"]), [2, 0, None, 1]),
        (datasets.Value("float64"), [2.0, 0.0, None, 1.0]),  # as pandas writes them
    ],
    ids=["int", "class_label", "float"],
)
def test_labels_are_numbers_of_choices_in_any_type(tmp_path, rows_of, feature, answers):
    table = datasets.Dataset.from_list(questions(4)).remove_columns("answer")
    table = table.add_column("answer", answers, feature=feature)
    table.to_parquet(tmp_path / "rows.parquet")
    rows = rows_of({"which": choice_task(tmp_path / "rows.parquet")})
    assert rows.train.parts["which"]["labels_which"][:] == [2, 0, IGNORE, 1]


def test_each_choice_shares_a_sequence_with_the_question(tmp_path, rows_of, tokenizer_of):
    path = write_rows(tmp_path / "rows.jsonl", questions(4))
    rows, tokenizer = rows_of({"which": choice_task(path)}), tokenizer_of("wordpiece")
    row = questions(4)[3]
    pairs = tokenizer([row["question"]] * 3, row["choices"])
    found = rows.train[3]
    assert found["input_ids"] == pairs["input_ids"]
    assert found["token_type_ids"] == pairs["token_type_ids"]


# ---- training ----


@pytest.fixture
def joint(tmp_path, data) -> dict:
    """Multiple choice beside a task over other rows."""
    path = write_rows(tmp_path / "questions.jsonl", questions(12))
    return {
        "intent": task(
            SEQUENCE, data_files=data("messages"), text="text", label="intent", dropout=0.0
        ),
        "which": choice_task(path, dropout=0.0),
    }


def test_packed_and_padded_batches_have_the_same_logits_and_losses(build, joint):
    outputs = []
    for packing in (True, False):
        trainer = build(joint, packing=packing)
        collator = trainer.data_collator
        assert collator.packed == packing
        rows = [trainer.train_dataset[number] for number in range(24)]
        batch = collator(sorted(rows, key=lambda row: len(row["input_ids"][0])))
        assert batch["labels"]["which"].shape == (12,)
        with torch.no_grad():
            outputs.append(trainer.model.eval()(**model_inputs(batch)))
    assert outputs[0].logits["which"].shape == (36, 1)
    assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-5)
    assert_close(outputs[0].losses, outputs[1].losses)


def test_accumulation_changes_nothing(build, joint):
    results = []
    for size, accumulation in ((24, 1), (6, 4)):
        trainer = build(joint, size=size, accumulation=accumulation)
        trainer.train()
        results.append((weights(trainer), logged(trainer, "loss_")))
    assert_close(results[1][0], results[0][0], rtol=0, atol=2e-5)
    assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-4)


def test_a_resumed_run_goes_on_as_it_was(build, joint):
    options = {"size": 8, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = build(joint, output="whole", **options)
    whole.train()
    again = build(joint, output="again", **options)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert all(value.equal(weights(whole)[name]) for name, value in weights(again).items())


# ---- a trained folder ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer_of) -> SimpleNamespace:
    """A run of multiple choice with an adapter of its own, beside pairs and single texts."""
    folder = tmp_path_factory.mktemp("choice")
    write_splits(folder, "messages", messages)
    write_splits(folder, "questions", questions)
    tokenizer_of("wordpiece").save_pretrained(folder / "tokenizer")
    recipe = recipe_of(folder / "tokenizer")
    columns = {"text": "question", "text_pair": "choices", "label": "answer"}
    recipe["tasks"] = {
        "intent": recipe["tasks"]["intent"],
        "which": {
            "head": HEAD,
            "data": {"data_files": files_of("questions"), **columns},
            "pooling": "cls",
            "activation": "tanh",
            "adapter": {"r": 2},
        },
    }
    path = write_recipe(folder / "recipe.yaml", recipe)
    scores = run.train(path)
    model = folder / "out" / "model"
    pipe = PolyheadPipeline(
        model=PolyheadModel.from_pretrained(model),
        tokenizer=AutoTokenizer.from_pretrained(model),
        device="cpu",
    )
    return SimpleNamespace(folder=folder, recipe=path, scores=scores, model=model, pipe=pipe)


def of_split(split: str) -> list[dict]:
    start = {"validation": 12, "test": 16}[split]
    return questions({"validation": 4, "test": 5}[split], start)


def test_the_score_is_the_share_of_right_answers_of_the_pipeline(trained):
    rows = of_split("test")
    answers = trained.pipe([(row["question"], row["choices"]) for row in rows], ["which"])
    hits = [
        answer["which"]["choice"] == row["answer"]
        for row, answer in zip(rows, answers, strict=True)
        if row["answer"] is not None
    ]
    assert len(hits) == 4
    assert trained.scores["tasks"]["which"] == {"accuracy": np.mean(hits)}
    assert scoring.evaluate(trained.model, trained.recipe)["tasks"] == trained.scores["tasks"]


def test_the_pipeline_gives_the_softmax_over_the_choices(trained):
    row, model = of_split("test")[3], trained.pipe.model
    tokens = trained.pipe.tokenizer(
        [row["question"]] * 3, row["choices"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        scores = model(**tokens, tasks=["which"]).logits["which"][:, 0].softmax(0)
    best = int(scores.argmax())
    for given in (
        (row["question"], row["choices"]),
        {"text": row["question"], "text_pair": row["choices"]},
    ):
        answer = trained.pipe(given)["which"]
        assert (answer["label"], answer["choice"]) == (row["choices"][best], best)
        assert answer["score"] == pytest.approx(float(scores[best]), abs=1e-5)


def test_the_report_has_the_calibration_of_the_choices(trained):
    report = json.loads((trained.folder / "out" / "reports" / "which.json").read_text())
    assert (report["rows"], report["labelled"]) == (5, 4)
    assert report["reliability"]["count"] == 4
    assert report["kind"] == HEAD


def test_inspect_counts_the_answers_and_shows_the_sequences(trained, capsys):
    assert run_cli("inspect", trained.recipe, "--json") == 0
    about = json.loads(capsys.readouterr().out)["tasks"]["which"]
    assert about["labels"] == {"0": 4, "1": 3, "2": 4}
    assert [len(sample["text"]) for sample in about["samples"]] == [3, 3, 3]
    assert [sample["label"] for sample in about["samples"]] == [0, 2, 2]
    assert run_cli("inspect", trained.model) == 0
    assert "choices" in capsys.readouterr().out


def test_the_card_shows_how_to_ask(trained):
    card = (trained.model / "README.md").read_text()
    assert "| `which` | multiple_choice | a text and others to choose from | `which` |" in card
    assert "multiple-choice" in card.partition("---\n\n")[0]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_file_with_a_column_of_lists_is_answered(trained, tmp_path, ending):
    rows = of_split("test")
    table = datasets.Dataset.from_list(rows)
    source, target = tmp_path / f"in.{ending}", tmp_path / "out.parquet"
    table.to_parquet(source) if ending == "parquet" else write_rows(source, rows)
    columns = ("--text", "question", "--text-pair", "choices")
    assert run_cli("predict", trained.model, "--input", source, "--output", target, *columns) == 0
    found = datasets.Dataset.from_parquet(str(target), cache_dir=str(tmp_path))
    assert found.column_names == ["question", "choices", "answer", "which"]
    expected = trained.pipe([(row["question"], row["choices"]) for row in rows])
    for one, other in zip(found["which"], expected, strict=True):
        assert one == {**other["which"], "score": pytest.approx(other["which"]["score"], abs=1e-5)}


@pytest.mark.parametrize(
    ("name", "text", "options", "says"),
    [
        (
            "in.csv",
            "question,choices\nwho,\"['a', 'b']\"\n",
            (),
            "column 'choices' has no lists of texts to choose from (CSV has none",
        ),
        ("in.jsonl", '{"question": "who", "choices": []}\n', (), "no list of texts in row 0"),
        (
            "in.jsonl",
            '{"question": "who", "choices": ["a"]}\n{"question": "who", "choices": [null]}\n',
            (),
            "no list of texts in row 1 (1 rows)",
        ),
        (
            "in.jsonl",
            '{"question": "who", "choices": ["a"]}\n',
            ("--tasks", "intent"),
            "task 'intent' reads single texts",
        ),
    ],
)
def test_files_without_lists_are_refused(trained, tmp_path, capsys, name, text, options, says):
    (tmp_path / name).write_text(text)
    files = ("--input", tmp_path / name, "--output", tmp_path / "out.jsonl")
    columns = ("--text", "question", "--text-pair", "choices")
    assert run_cli("predict", trained.model, *files, *columns, *options) == 2
    assert says in " ".join(message_of(capsys.readouterr().err))
    assert not (tmp_path / "out.jsonl").exists()


FRESH = """
import json, sys
from transformers import pipeline
assert not any(name.startswith("polyhead") for name in sys.modules)
pipe = pipeline(model=sys.argv[1], trust_remote_code=True, device="cpu")
print(json.dumps(pipe(json.loads(sys.argv[2]), tasks=["which"])["which"]))
"""


def test_the_folder_answers_where_polyhead_is_not_installed(trained, tmp_path):
    row = of_split("test")[0]
    given = {"text": row["question"], "text_pair": row["choices"]}
    (tmp_path / "polyhead").mkdir()
    (tmp_path / "polyhead" / "__init__.py").write_text("raise ImportError('not installed')")
    environment = {"PYTHONPATH": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(trained.model), json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment, "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    expected = trained.pipe(given, ["which"])["which"]
    found = json.loads(done.stdout)
    assert found == {**expected, "score": pytest.approx(expected["score"], abs=1e-5)}


@pytest.mark.parametrize(
    ("kind", "activation", "name"),
    [
        ("bert", "tanh", "BertForMultipleChoice"),
        ("distilbert", "relu", "DistilBertForMultipleChoice"),
        ("roberta", "tanh", "RobertaForMultipleChoice"),
    ],
)
def test_hf_holds_the_head(kind, activation, name, make_model, tokenizer_of, batch_of, tmp_path):
    options = {"pooling": "cls", "activation": activation}
    model = make_model(kind, {"which": TaskConfig(head=HEAD, **options)})
    tokenizer = tokenizer_of("bpe" if kind == "roberta" else "wordpiece")
    assert export_hf(model, tokenizer, task="which", folder=tmp_path / "plain") == name
    plain = AutoModelForMultipleChoice.from_pretrained(tmp_path / "plain").eval()
    batch = batch_of(model, [9, 5, 12, 7, 3, 6])
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        found = model.eval()(**batch, labels={"which": labels})
        grouped = {key: values.view(2, 3, -1) for key, values in batch.items()}
        expected = plain(**grouped, labels=labels)
    assert_close(found.logits["which"].view(2, 3), expected.logits, rtol=0, atol=1e-5)
    assert_close(found.loss, expected.loss, rtol=0, atol=1e-5)


def test_hf_is_refused_what_it_cannot_hold(make_model, tokenizer_of, tmp_path):
    model = make_model("bert", {"which": TaskConfig(head=HEAD, pooling="mean")})
    with pytest.raises(UserError, match="cannot hold this head"):
        export_hf(model, tokenizer_of("wordpiece"), task="which", folder=tmp_path / "plain")


def test_a_graph_gives_the_same_answers(trained, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install polyhead[onnx]")
    tokenizer = trained.pipe.tokenizer
    export_graph(
        trained.pipe.model, tokenizer, "onnx", tasks=["which"], folder=tmp_path / "exported"
    )
    graph = ExportedModel(tmp_path / "exported")
    given = [(row["question"], row["choices"]) for row in of_split("test")]
    found = PolyheadPipeline(model=graph, tokenizer=tokenizer, device=-1)(given, ["which"])
    for one, other in zip(found, trained.pipe(given, ["which"]), strict=True):
        expected = other["which"]
        score = pytest.approx(expected["score"], abs=1e-4)
        assert one["which"] == {**expected, "score": score}


def test_there_is_no_view(trained):
    with pytest.raises(ValueError, match="task 'which' is multiple_choice; there are views of"):
        trained.pipe.model.view("which")
