"""Rows that mark some labels only, and corpora with other labels that train one head."""

from math import log
from pathlib import Path

import pytest
import torch
from conftest import ENCODERS
from polyhead.modeling import TaskConfig
from polyhead.modeling.problem_types import marginal_loss_sum
from polyhead.train.errors import UserError
from polyhead.train.evaluation.metrics import compute
from polyhead.train.evaluation.scoring import eval_splits
from polyhead.train.kinds import kind_of
from polyhead.train.recipe.data_config import DataConfig
from polyhead.train.recipe.reader import build_recipe
from polyhead.train.recipe.schema import Recipe
from train_helpers import (
    SEQUENCE,
    TOKENS,
    private_cache,  # noqa: F401
    set_key,
    sources_of,
    task,
    write_rows,
)

GENES = [
    {"words": ["BRCA1", "binds"], "tags": ["B-gene", "O"]},
    {"words": ["no", "p53", "kinase"], "tags": ["O", "B-gene", "I-gene"]},
]
DISEASES = [{"tokens": ["BRCA1", "in", "cancer"], "ner": ["O", "O", "B-disease"]}]


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, str]:
    return {
        "genes": str(write_rows(tmp_path / "genes.jsonl", GENES)),
        "diseases": str(write_rows(tmp_path / "diseases.jsonl", DISEASES)),
    }


def joined(files: dict[str, str], **changes: list[str] | None):
    genes = {"data_files": {"train": files["genes"]}, "tokens": "words", "label": "tags"}
    genes |= {"marks": changes.get("genes", ["gene"])}
    more = DataConfig(
        data_files={"train": files["diseases"], "validation": files["diseases"]},
        tokens="tokens",
        label="ner",
        marks=changes.get("diseases", ["disease"]),  # pyright: ignore
    )
    return task(TOKENS, **genes, more=[more])


# ---- the loss ----


def test_partial_loss_is_minus_log_of_the_summed_probability_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, -1.0], [0.5, 0.5, 0.0], [9.0, 9.0, 9.0]])
    labels = torch.tensor([3, 1, 4, -100])  # 0 or 2; 1; any; none
    p = logits.softmax(-1).tolist()
    expected = -log(p[0][0] + p[0][2]) - log(p[1][1]) - log(sum(p[2]))
    found = marginal_loss_sum(logits, labels, [[0, 2], [0, 1, 2]])
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_partial_loss_is_the_sum_over_all_labelings_that_fit():
    torch.manual_seed(0)
    logits, sets = torch.randn(4, 3), [{0, 1}, {2}, {0, 2}, {1}]
    total = 0.0
    for number in range(3**4):  # each labeling of the four tokens
        labeling = [number // 3**place % 3 for place in range(4)]
        if all(label in allowed for label, allowed in zip(labeling, sets, strict=True)):
            chosen = logits.log_softmax(-1)[range(4), labeling].sum()
            total += float(chosen.exp())
    ids = torch.tensor([[3, 2, 4, 1]])
    found = marginal_loss_sum(logits[None], ids, [[0, 1], [0, 2]])
    assert float(found) == pytest.approx(-log(total), abs=1e-5)


def test_partial_loss_without_sets_is_cross_entropy_with_its_gradient():
    logits = torch.randn(5, 3, requires_grad=True)
    labels = torch.tensor([0, 2, -100, 1, 1])
    marginal = torch.autograd.grad(marginal_loss_sum(logits, labels, []), logits)[0]
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert torch.allclose(marginal, torch.autograd.grad(plain, logits)[0], atol=1e-6)


def test_partial_sets_name_labels_of_the_task():
    with pytest.raises(ValueError, match="partial has \\['z'\\]"):
        TaskConfig(head=TOKENS, labels=["a", "b"], partial=[["z"]])
    with pytest.raises(ValueError, match="partial and grown and strict belong to"):
        TaskConfig(head=SEQUENCE, problem_type="regression", partial=[["z"]])


# ---- corpora ----


def test_rows_of_both_places_are_one_source_with_what_each_marks(corpora):
    source = sources_of(ner=joined(corpora))[0]
    assert source.splits["train"][:] == {
        "tokens": [GENES[0]["words"], GENES[1]["words"], DISEASES[0]["tokens"]],
        "label": [GENES[0]["tags"], GENES[1]["tags"], DISEASES[0]["ner"]],
        "marks": [["gene"], ["gene"], ["disease"]],
    }
    assert source.splits["validation"]["tokens"][:] == [DISEASES[0]["tokens"]]
    config = source.configs["ner"]
    assert config.labels == ["O", "B-disease", "B-gene", "I-gene"]
    assert config.partial == [["O", "B-disease"], ["O", "B-gene", "I-gene"]]


def test_o_of_a_corpus_may_be_what_it_does_not_mark(corpora, tokenizer_of):
    source = sources_of(ner=joined(corpora))[0]
    rows = eval_splits([source], "train", tokenizer_of(ENCODERS["bert"][0]), source.configs)[
        "ner"
    ].rows
    by_row = {
        row: set(ids) - {-100}
        for row, ids in zip(rows["row"][:], rows["labels_ner"][:], strict=True)
    }
    assert by_row == {0: {2, 4}, 1: {2, 3, 4}, 2: {1, 5}}


def test_a_corpus_without_marks_marks_all(corpora):
    config = sources_of(ner=joined(corpora, genes=None))[0].configs["ner"]
    assert config.partial == [["O", "B-gene", "I-gene"]]


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        (["protein"], "names 'protein'; those of train are: 'disease', 'gene'"),
        (["disease"], "row 0 has the label 'gene', but marks only 'disease'"),
    ],
)
def test_marks_that_do_not_fit_the_tags_are_told(corpora, marks, says):
    with pytest.raises(UserError, match=says):
        sources_of(ner=joined(corpora, genes=marks))


def test_answers_of_a_type_that_a_row_does_not_mark_are_not_scored(corpora, tokenizer_of):
    source = sources_of(ner=joined(corpora))[0]
    part = eval_splits([source], "train", tokenizer_of(ENCODERS["bert"][0]), source.configs)["ner"]
    config = source.configs["ner"]
    kind, rows = part.of_task("ner", config)
    width = max(map(len, part.rows["labels_ner"]))
    logits = torch.zeros(3, width, 4)
    logits[:, :, 2] = 9.0  # a gene at every word
    answers = kind.answers(rows, logits)
    by_row = {tuple(r): p for r, p in zip(answers.references, answers.predictions, strict=True)}
    assert by_row[tuple(DISEASES[0]["ner"])] == ["O", "O", "O"]  # which marks no genes
    assert by_row[tuple(GENES[0]["tags"])] == ["B-gene", "B-gene"]
    assert compute(["entity_f1"], config, [], [], answers.entities)["precision"] < 0.5


def recipe_keys(files: dict[str, str]) -> dict:
    places = [
        {"data_files": {"train": files["genes"]}, "tokens": "words", "label": "tags"},
        {"data_files": {"train": files["diseases"]}, "tokens": "tokens", "label": "ner"},
    ]
    places = [{**p, "marks": [m]} for p, m in zip(places, ("gene", "disease"), strict=True)]
    return {
        "encoder": "-",
        "tasks": {"ner": {"head": TOKENS, "data": places}},
        "output_dir": "runs/x",
    }


def test_a_list_of_places_is_written_as_it_was_read(corpora):
    recipe = build_recipe(recipe_keys(corpora), "recipe")
    data = recipe.tasks["ner"].data
    assert [data.marks, data.more[0].marks] == [["gene"], ["disease"]]  # pyright: ignore
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("tasks.ner.data.1.text_pair", "x", "data.1.text_pair: token_classification does not"),
        ("tasks.ner.data.1.tokns", "x", "data.1.tokns: unknown key; did you mean tokens"),
        ("tasks.ner.data.1.unmarked", "x", "data.1.unmarked: of words it is O"),
        ("tasks.ner.data.0.separator", " ", "separator: not in a list of places"),
    ],
)
def test_faults_of_a_place_name_its_number(corpora, key, value, says):
    raw = recipe_keys(corpora)
    *parents, last = key.removeprefix("tasks.ner.data.").split(".")
    raw["tasks"]["ner"]["data"][int(parents[0])][last] = value
    with pytest.raises(UserError, match=says):
        build_recipe(raw, "recipe")


# ---- classes ----

MAIL = [
    {"text": "where is my card", "label": "card"},
    {"text": "thank you", "label": "else"},
    {"text": "I was charged twice", "label": "charge"},
    {"text": "no label", "label": None},
]


def test_classes_that_rows_do_not_mark_stay_open(tmp_path):
    rows = str(write_rows(tmp_path / "mail.jsonl", MAIL))
    options = {"data_files": {"train": rows}, "text": "text", "label": "label"}
    mail = task(
        SEQUENCE, **options, labels=["card", "charge", "thanks", "bye"],
        marks=["card", "charge"], unmarked="else",
    )  # fmt: skip
    source = sources_of(mail=mail)[0]
    config = source.configs["mail"]
    assert config.partial == [["thanks", "bye"]]
    kind, data = kind_of(config), source.tasks["mail"].data
    assert [kind.encode(row["label"], data) for row in MAIL] == [0, 4, 1, -100]


def test_marks_of_classes_need_the_value_that_says_none(tmp_path):
    raw = {
        "encoder": "-",
        "output_dir": "x",
        "tasks": {"mail": {"head": SEQUENCE, "data": {"path": "json", "text": "t", "label": "l"}}},
    }
    set_key(raw, "tasks.mail.data.marks", ["card"])
    with pytest.raises(UserError, match="data.unmarked: missing; name the value of label"):
        build_recipe(raw, "recipe")
    set_key(raw, "tasks.mail.data.marks", None)
    set_key(raw, "tasks.mail.data.unmarked", "else")
    with pytest.raises(UserError, match="data.unmarked: only beside marks"):
        build_recipe(raw, "recipe")
