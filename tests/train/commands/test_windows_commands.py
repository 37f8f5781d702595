"""Long texts from a recipe to answers: what the commands say, and that they agree."""

import json

import numpy as np
import pytest
import yaml
from long_texts import documents
from polyhead.modeling import PolyheadPipeline
from polyhead.train.commands.inspection import inspect_recipe
from polyhead.train.commands.setup import prepare
from polyhead.train.inference.load import load_model
from train_helpers import SEQUENCE, run_cli, write_recipe, write_rows

CUT = "9 of 12 rows of train (75.0%) are longer than 64 tokens and are cut for first"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, encoder_folder):
    folder = tmp_path_factory.mktemp("recipe")
    write_rows(folder / "train.jsonl", documents(12))
    write_rows(folder / "test.jsonl", documents(6, 12))
    files = {split: f"${{RECIPE_DIR}}/{split}.jsonl" for split in ("train", "test")}
    text, windows = {"data_files": files, "text": "text"}, {"long_texts": "windows"}
    pair = {"data_files": files, "text": "short", "text_pair": "text", "label": "same"}
    near = {**text, "text_pair": "short", "label": "score"}
    tasks = {
        "first": {"head": SEQUENCE, "data": {**text, "label": "topic"}},
        "near": {"head": "embedding", "data": near, **windows},
        "same": {"head": SEQUENCE, "data": pair, **windows},
        "topic": {"head": SEQUENCE, "data": {**text, "label": "topic"}, **windows},
    }
    training = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    content = {"encoder": str(encoder_folder("bert")), "tasks": tasks, "training": training}
    return write_recipe(folder / "recipe.yaml", {**content, "output_dir": "${RECIPE_DIR}/out"})


@pytest.fixture(scope="module")
def trained(recipe):
    assert run_cli("train", recipe) == 0
    return recipe.parent / "out/model"


@pytest.fixture
def pipe(trained):
    model, tokenizer = load_model(trained)
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu", compute="exact")


@pytest.mark.slow
def test_training_says_what_is_cut(recipe, caplog):
    assert run_cli("train", recipe, "--overwrite", f"output_dir={recipe.parent / 'other'}") == 0
    told = [line for line in caplog.messages if "are cut for" in line]
    assert told == [f"{CUT}; long_texts: windows reads all of a text"]


def test_evaluation_reads_texts_as_the_model_does(recipe, trained, pipe, capsys, caplog):
    capsys.readouterr()
    plain = ["tasks.topic.long_texts=first", "tasks.first.long_texts=windows"]
    scores = []
    for overrides in ([], plain):
        caplog.clear()
        assert run_cli("evaluate", trained, recipe, *overrides, "--json") == 0
        scores.append(json.loads(capsys.readouterr().out))
        (told,) = [line for line in caplog.messages if "are cut for" in line]
        assert told.startswith("5 of 6 rows of test (83.3%) are longer than 64 tokens")
        assert " are cut for first; " in told
    assert scores[0] == scores[1]
    rows = documents(6, 12)
    answers = pipe([row["text"] for row in rows], ["topic"])
    right = [row["topic"] == a["topic"]["label"] for row, a in zip(rows, answers, strict=True)]
    assert scores[0]["tasks"]["topic"]["accuracy"] == pytest.approx(np.mean(right))


def test_predict_and_embed_read_all_windows(trained, pipe, capsys):
    text = documents(5)[4]["text"]
    assert (
        run_cli("predict", trained, text, "--tasks", "topic", "--compute", "exact", "--json") == 0
    )
    (answer,) = json.loads(capsys.readouterr().out)
    expected = pipe(text, ["topic"])["topic"]
    assert answer["topic"]["label"] == expected["label"]
    assert answer["topic"]["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert run_cli("embed", trained, text, "--compute", "exact") == 0
    (vector,) = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(vector, pipe(text, ["near"])["near"], atol=1e-6)
    short = " ".join(text.split()[:50])
    assert abs(pipe(short, ["near"])["near"] - np.array(vector)).max() > 1e-3


def test_inspect_shows_windows_and_what_is_cut(recipe):
    tasks = inspect_recipe(prepare(recipe))["tasks"]
    keys = ("windows", "max_length", "cut", "cut_share")
    found = {name: tuple(task[key] for key in keys) for name, task in tasks.items()}
    windows = sum(n % 5 + 1 for n in range(12))
    assert found["first"] == (12, 64, 9, 0.75)
    assert found["topic"] == (windows, 64, 0, 0.0)
    assert found["near"] == (windows + 12, 64, 0, 0.0)
    assert found["same"][2:] == (0, 0.0)


@pytest.mark.slow
def test_a_student_in_windows_learns_from_a_teacher_in_windows(recipe, trained):
    options = [f"distill.teachers.{name}={trained}" for name in ("near", "same", "topic")]
    folder = recipe.parent / "student"
    assert run_cli("train", recipe, f"output_dir={folder}", *options) == 0
    state = json.loads((folder / "log_history.json").read_text(encoding="utf-8"))
    taught = {k: v for line in state for k, v in line.items() if k.startswith("teacher_")}
    assert sorted(taught) == ["teacher_near", "teacher_same", "teacher_topic"]
    assert np.isfinite(list(taught.values())).all()


def test_options_without_effect_are_refused(recipe, capsys):
    overrides = ["tasks.first.window_pooling=max", "tasks.near.window_pooling=max"]
    assert run_cli("inspect", recipe, *overrides) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "tasks.first: window_pooling belongs to long_texts: windows" in message
    assert "tasks.near: window_pooling belongs to long_texts: windows, not to embedding" in message


# ---- the length of a sentence-transformers encoder ----


@pytest.fixture
def sentence_transformer(encoder_folder, tmp_path):
    """A tiny one that reads 24 tokens of the 64 that fit, and its folder."""
    reason = "pip install polyhead[sentence-transformers]"
    package = pytest.importorskip("sentence_transformers", reason=reason)
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    modules = [parts.Transformer(str(encoder_folder("bert"))), parts.Pooling(32, "mean")]
    folder = tmp_path / "encoder"
    package.SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    path = folder / "sentence_bert_config.json"  # as versions before 6 write it
    path.write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}), encoding="utf-8")
    return package.SentenceTransformer(str(folder), device="cpu")


def run_of(recipe, tmp_path, names, *overrides):
    """A recipe of these tasks over the encoder of `sentence_transformer`, prepared."""
    content = yaml.safe_load(recipe.read_text(encoding="utf-8").replace("${RECIPE_DIR}", "."))
    files = {split: str(recipe.parent / f"{split}.jsonl") for split in ("train", "test")}
    content["tasks"] = {name: content["tasks"][name] for name in names}
    for task in content["tasks"].values():
        task.pop("long_texts", None)
        task["data"]["data_files"] = files
    content |= {"encoder": str(tmp_path / "encoder"), "output_dir": str(tmp_path / "out")}
    return prepare(write_recipe(tmp_path / "recipe.yaml", content), list(overrides))


def test_vectors_of_long_texts_are_those_of_sentence_transformers(
    recipe, sentence_transformer, tmp_path
):
    assert sentence_transformer.max_seq_length == 24
    run = run_of(recipe, tmp_path, ["near", "topic"])
    assert run.tokenizer.model_max_length == 24
    pipe = PolyheadPipeline(model=run.model, tokenizer=run.tokenizer, device="cpu")
    texts = [row["text"] for row in documents(5)]
    expected = sentence_transformer.encode(texts, normalize_embeddings=True)
    found = np.stack([answer["near"] for answer in pipe(texts, ["near"])])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert inspect_recipe(run)["notes"] == [
        "texts are read to 24 tokens, max_seq_length of the sentence-transformers encoder, which "
        "would take 64; max_length sets another"
    ]


def test_another_length_or_no_embedding_task_takes_what_fits(
    recipe, sentence_transformer, tmp_path
):
    for names, overrides, length in (
        (["near"], ["max_length=40"], 40),
        (["near"], ["max_length=64"], 64),
        (["topic"], [], 64),
    ):
        run = run_of(recipe, tmp_path, names, *overrides)
        assert run.tokenizer.model_max_length == length
        assert inspect_recipe(run)["notes"] == []
