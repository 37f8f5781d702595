"""Labels that are paths: scores add up the tree, and the answer is found from the root down."""

import pytest
import torch
from conftest import ENCODERS
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.modeling.hierarchy import best_leaves, decode_tree, nodes_of
from polyhead.modeling.views import view_of
from polyhead.train.data.loading import unseen_labels
from polyhead.train.data.tokenization import tokenize
from polyhead.train.errors import UserError
from polyhead.train.evaluation.metrics import compute
from polyhead.train.evaluation.scoring import EvalSplit, score
from polyhead.train.export.plain import export_hf
from polyhead.train.kinds import kind_of
from torch.testing import assert_close
from train_helpers import (
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_rows,
)

SEQUENCE = "sequence_classification"
LABELS = ["shoe/boot/high", "shoe/boot/low", "shoe/flat", "shirt", "hat/cap"]
TASK = TaskConfig(head=SEQUENCE, labels=LABELS, hierarchy=True)
CHANCES = torch.tensor([0.15, 0.1, 0.2, 0.35, 0.2])


def test_the_scores_of_a_node_are_those_under_it():
    assert nodes_of("a/b/c") == ["a", "a/b", "a/b/c"]
    answer = decode_tree(CHANCES.log(), LABELS, 1)
    assert answer["label"] == "shoe/boot/high"  # the shirt is likelier than each kind of shoe
    assert answer["score"] == pytest.approx(0.15)
    assert answer["path"] == [
        {"label": "shoe", "score": pytest.approx(0.45)},
        {"label": "shoe/boot", "score": pytest.approx(0.25)},
    ]
    order = [answer["label"] for answer in decode_tree(CHANCES.log(), LABELS, None)]
    assert order == ["shoe/boot/high", "shoe/boot/low", "shoe/flat", "shirt", "hat/cap"]
    assert len(decode_tree(CHANCES.log(), LABELS, 2)) == 2


def test_many_rows_are_read_as_one_is():
    values = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    for row, leaf in zip(values, best_leaves(values, LABELS), strict=True):
        assert decode_tree(row, LABELS, 1)["label"] == LABELS[leaf]
        assert decode_tree(row, LABELS, None)[0]["label"] == LABELS[leaf]
        chances, nodes = row.softmax(-1), {}
        for label, chance in zip(LABELS, chances, strict=True):
            for node in nodes_of(label):
                nodes[node] = nodes.get(node, 0) + float(chance)
        best = ""
        while best not in LABELS:
            children = [n for n in nodes if n.rpartition("/")[0] == best]
            best = max(children, key=nodes.__getitem__)
        assert LABELS[leaf] == best


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": ["a", "a/b"]}, "'a' is no leaf, 'a/b' lies under it"),
        ({"labels": ["a", "b//c"]}, "has an empty part"),
        ({"labels": ["a", "b"], "problem_type": "multi_label_classification"}, "belong"),
        (
            {
                "labels": ["a", "b"],
                "problem_type": "single_label_classification",
                "grown": [1],
                "strict": {"b": 0.5},
            },
            "are in no tree",
        ),
    ],
)
def test_what_is_no_tree_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        TaskConfig(head=SEQUENCE, hierarchy=True, **options)


ROWS = [
    {"text": "high boots", "kind": "shoe/boot/high"},
    {"text": "low boots", "kind": "shoe/boot/low"},
    {"text": "flats", "kind": "shoe/flat"},
    {"text": "some shoes", "kind": "shoe"},
    {"text": "some boots", "kind": "shoe/boot"},
    {"text": "a shirt", "kind": "shirt"},
    {"text": "a cap", "kind": "hat/cap"},
    {"text": "a hat", "kind": "hat"},
]


@pytest.fixture
def source(tmp_path):
    files = {s: str(write_rows(tmp_path / f"{s}.jsonl", ROWS)) for s in ("train", "test")}
    data = {"data_files": files, "text": "text", "label": "kind"}
    (made,) = sources_of(kind=task(SEQUENCE, hierarchy=True, **data))
    return made


def test_a_row_may_say_an_inner_node(source, tokenizer_of):
    config = source.configs["kind"]
    assert config.labels == sorted(LABELS)
    boots = ["shoe/boot/high", "shoe/boot/low"]
    assert config.partial == [[*boots, "shoe/flat"], boots]
    assert unseen_labels([source]) == []
    encoded = tokenize(source, "train", tokenizer_of("wordpiece"))
    hat, shirt, high, low, flat = range(5)
    assert encoded["labels_kind"][:] == [high, low, flat, 5, 6, shirt, hat, hat]


def test_its_loss_is_that_of_the_sum(source, make_model):
    model = make_model("bert", {"kind": source.configs["kind"]})
    ids = torch.arange(5, 25).view(2, 10)
    chances = model(input_ids=ids).logits["kind"].softmax(-1)
    loss = model(input_ids=ids, labels={"kind": torch.tensor([5, 2])}).loss
    expected = -(chances[0, 2:].sum().log() + chances[1, 2].log()) / 2
    assert_close(loss, expected)


def test_an_answer_is_judged_as_deep_as_its_row_says(source, tokenizer_of):
    rows = tokenize(source, "test", tokenizer_of("wordpiece"))
    labels = source.configs["kind"].labels
    said = ["shoe/boot/high", "shoe/flat", "shirt", "shoe/flat", "shoe/flat", "shirt"]
    said += ["hat/cap", "hat/cap"]
    values = torch.eye(5)[[labels.index(label) for label in said]] * 20
    part = EvalSplit(source, "test", rows)
    scores = score("kind", source.configs["kind"], part, values.numpy())
    # shared nodes 3, 1, 0, 1, 1, 1, 2, 1; nodes of answers, cut, and of rows
    expected = 2 * 10 / ((3 + 2 + 1 + 1 + 2 + 1 + 2 + 1) + (3 + 3 + 2 + 1 + 2 + 1 + 2 + 1))
    assert scores["hierarchical_f1"] == pytest.approx(expected)
    assert scores["accuracy"] == 5 / 8
    kind, read = part.of_task("kind", source.configs["kind"])
    report = kind.report(kind.answers(read, values), scores)
    assert sum(map(sum, report["confusion"]["matrix"])) == 5


def test_marks_are_refused(tmp_path):
    file = str(write_rows(tmp_path / "rows.jsonl", ROWS))
    data = {"data_files": file, "text": "text", "label": "kind", "marks": ["shirt"]}
    with pytest.raises(UserError, match="by an inner node; take it out"):
        sources_of(kind=task(SEQUENCE, hierarchy=True, **data, unmarked="hat/cap"))


def test_f1_counts_nodes_of_paths():
    pairs = [("a/b/c", "a/b/d"), ("a", "b"), ("a/b", "a/b/d")]
    said, true = zip(*pairs, strict=True)
    scores = compute(["hierarchical_f1"], TASK, list(said), list(true))
    assert scores == {"hierarchical_f1": pytest.approx(2 * 4 / (6 + 7))}


def test_the_pipeline_answers_what_evaluation_scores(make_model, tokenizer_of, tmp_path):
    model, tokenizer = make_model("bert", {"kind": TASK}), tokenizer_of(ENCODERS["bert"][0])
    model.heads["kind"].out.weight.data *= 0.05
    model.heads["kind"].out.bias.data = CHANCES.log()
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, compute="exact")
    texts = [f"{word} it {n}" for word in ("book", "cancel") for n in range(5)]
    with torch.no_grad():
        inputs = [tokenizer(text, return_tensors="pt") for text in texts]
        logits = torch.stack([model(**one).logits["kind"][0] for one in inputs])
    answers = [answer["kind"] for answer in pipe(texts)]
    assert [answer["label"] for answer in answers] == kind_of(TASK).read(logits)
    assert {answer["label"] for answer in answers} == {"shoe/boot/high"}
    with pytest.raises(ValueError, match="from the root of a tree down"):
        view_of(model, "kind")
    with pytest.raises(UserError, match="from the root of a tree down"):
        export_hf(model, tokenizer, task="kind", folder=tmp_path / "plain")
