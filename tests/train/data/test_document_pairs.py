"""Pairs of sentences made of documents: neighbours, sentences of other documents, swapped ones."""

import json

import pytest
from polyhead.train.data.document_pairs import sentences_of
from polyhead.train.errors import UserError
from train_helpers import run_cli, sources_of, task, write_recipe, write_rows

DOCUMENTS = [
    " ".join(f"Sentence {n} of document {number}." for n in range(30)) for number in range(20)
]


def pairs(tmp_path, kind, documents=DOCUMENTS, **more):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in documents])
    one = task(
        "sequence_classification", data_files={"train": str(path)}, text="text", pairs=kind, **more
    )
    [source] = sources_of(one=one)
    rows = source.splits["train"]
    return source, [tuple(row.values()) for row in rows]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two, e.g. this, too! 3 are not.", 3),
        ('"Go." She went. “Why?” he asked.', 3),
        ("No end", 1),
        (" ", 0),
    ],
)
def test_texts_are_cut_into_sentences(text, sentences):
    found = sentences_of(text)
    assert len(found) == sentences
    assert "".join(" ".join(found).split()) == "".join(text.split())


def test_half_of_the_next_sentences_are_of_another_document(tmp_path):
    source, rows = pairs(tmp_path, "next_sentence")
    assert source.configs["one"].labels == ["next", "random"]
    assert source.configs["one"].pair
    assert len(rows) == 20 * 29
    for first, second, relation in rows:
        (n, document), (m, other) = (
            (int(text.split()[1]), text.split()[-1]) for text in (first, second)
        )
        assert (relation == "next") == (document == other)
        assert relation == "random" or m == n + 1
    share = sum(relation == "random" for *_, relation in rows) / len(rows)
    assert 0.42 < share < 0.58


def test_half_of_the_neighbours_are_swapped(tmp_path):
    _, rows = pairs(tmp_path, "sentence_order")
    for first, second, relation in rows:
        n, m = (int(text.split()[1]) for text in (first, second))
        assert m - n == (1 if relation == "in_order" else -1)
        assert first.split()[-1] == second.split()[-1]
    share = sum(relation == "swapped" for *_, relation in rows) / len(rows)
    assert 0.42 < share < 0.58


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
def test_they_are_the_same_each_time(kind, tmp_path):
    assert pairs(tmp_path, kind)[1] == pairs(tmp_path, kind)[1]


def test_documents_without_pairs_are_refused(tmp_path):
    with pytest.raises(UserError, match="pairs: train has no document of two sentences"):
        pairs(tmp_path, "sentence_order", ["One.", "Two."])
    with pytest.raises(UserError, match="pairs: train has one document; a random sentence"):
        pairs(tmp_path, "next_sentence", [DOCUMENTS[0]])


def test_a_recipe_trains_and_scores_them_beside_masks(tmp_path, encoder_folder, capsys):
    for split, documents in (("train", DOCUMENTS[:6]), ("test", DOCUMENTS[6:9])):
        write_rows(tmp_path / f"{split}.jsonl", [{"text": text} for text in documents])
    files = {split: f"${{RECIPE_DIR}}/{split}.jsonl" for split in ("train", "test")}
    data = {"data_files": files, "text": "text"}
    tasks = {
        "order": {"head": "sequence_classification", "data": {**data, "pairs": "sentence_order"}},
        "words": {"head": "masked_lm", "data": data},
    }
    training = {"max_steps": 2, "use_cpu": True, "report_to": "none"}
    recipe = {"encoder": str(encoder_folder("bert")), "tasks": tasks, "training": training}
    path = write_recipe(tmp_path / "r.yaml", {**recipe, "output_dir": str(tmp_path / "run")})
    assert run_cli("train", path) == 0
    scores = json.loads((tmp_path / "run/scores.json").read_text())["tasks"]
    assert set(scores["order"]) == {"accuracy", "f1_macro"}
    capsys.readouterr()
    assert run_cli("evaluate", tmp_path / "run/model", path, "--json") == 0
    again = json.loads(capsys.readouterr().out)["tasks"]
    assert again["order"] == pytest.approx(scores["order"])


def test_keys_that_pairs_make_are_refused(tmp_path, capsys):
    data = {"path": "p", "pairs": "next_sentence", "label": "l", "missing_label": "?"}
    tags = {"path": "p", "text": "t", "pairs": "next_sentence", "tokens": "w", "label": "l"}
    tasks = {
        "one": {"head": "sequence_classification", "data": data},
        "two": {"head": "token_classification", "data": tags},
    }
    recipe = {"encoder": "e", "output_dir": "o", "tasks": tasks}
    assert run_cli("train", write_recipe(tmp_path / "r.yaml", recipe)) == 2
    shown = " ".join(capsys.readouterr().err.split())
    for fault in (
        "tasks.one.data.label: pairs makes the rows",
        "tasks.one.data.missing_label: pairs makes the rows",
        "tasks.one.data.text: missing; name the column with the documents",
        "tasks.two.data.pairs: only for classification with one label",
    ):
        assert fault in shown
