"""Each kind of task answers what training, scoring and files ask of it."""

import datasets
import numpy as np
import pytest
import torch
from polyhead.modeling.heads import HEADS, IGNORE
from polyhead.modeling.task_config import TaskConfig
from polyhead.train.evaluation.metrics import METRICS
from polyhead.train.kinds import KINDS, BatchLayout, SplitRows, kind_of
from polyhead.train.recipe.data_config import DataConfig
from polyhead.train.recipe.schema import TaskRecipe

PLAIN, SCALED = DataConfig(label="y"), DataConfig(label="y", label_range=(1, 5))
LABELS = ["a", "b", "c"]
TASKS = {
    "single": TaskConfig(head="sequence_classification", labels=LABELS),
    "multi": TaskConfig(
        head="sequence_classification", labels=LABELS, problem_type="multi_label_classification"
    ),
    "ordered": TaskConfig(head="sequence_classification", labels=LABELS, problem_type="ordinal"),
    "tree": TaskConfig(head="sequence_classification", labels=["a/b", "a/c"], hierarchy=True),
    "number": TaskConfig(head="sequence_classification", problem_type="regression"),
    "tags": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"]),
    "words": TaskConfig(head="masked_lm"),
    "choice": TaskConfig(head="multiple_choice"),
    **{
        loss: TaskConfig(head="embedding", loss=loss)
        for loss in ("cosent", "cosine_mse", "angle", "contrastive", "triplet", "margin_mse", "mse")
    },
}
KIND = {name: kind_of(task) for name, task in TASKS.items()}
NAN = float("nan")


def test_each_head_has_a_kind():
    assert set(KINDS) == set(HEADS)


@pytest.mark.parametrize("kind", KIND.values(), ids=list(KIND))
class TestEach:
    def test_its_metrics_exist(self, kind):
        assert kind.metrics
        assert set(kind.default_metrics) <= set(kind.metrics)
        if not kind.scores_itself:
            assert set(kind.metrics) <= set(METRICS)

    def test_it_makes_a_column(self, kind):
        datasets.Features({"answer": kind.feature()})

    def test_a_label_column_goes_with_a_label_type(self, kind):
        assert ("label" in kind.needed) == (kind.label_type != "none")

    def test_a_recipe_has_the_same_kind(self, kind):
        task = kind.task
        same = {name: getattr(task, name) for name in ("head", "problem_type", "hierarchy", "loss")}
        recipe = TaskRecipe(**same, data=PLAIN)
        assert type(kind_of(recipe)) is type(kind)


class TestLabels:
    @pytest.mark.parametrize(
        ("name", "data", "value", "encoded"),
        [
            ("single", PLAIN, "b", 1),
            ("single", PLAIN, "unseen", IGNORE),
            ("single", PLAIN, None, IGNORE),
            ("multi", PLAIN, ["a", "c", "unseen"], [1.0, 0.0, 1.0]),
            ("multi", PLAIN, [], [0.0, 0.0, 0.0]),
            ("multi", PLAIN, None, [NAN, NAN, NAN]),
            ("number", PLAIN, 3, 3.0),
            ("number", SCALED, 3, 0.5),
            ("number", SCALED, None, NAN),
            ("cosent", SCALED, 5.0, 1.0),
            ("margin_mse", PLAIN, -2.5, -2.5),
            ("contrastive", DataConfig(), None, 1.0),
            ("choice", PLAIN, 2, 2),
            ("choice", PLAIN, None, IGNORE),
            ("mse", PLAIN, [1, 2], [1.0, 2.0]),
        ],
    )
    def test_encoded(self, name, data, value, encoded):
        np.testing.assert_equal(KIND[name].encode(value, data), encoded)

    @pytest.mark.parametrize(
        ("name", "value", "word"),
        [
            ("single", ["a"], "multi_label_classification"),
            ("single", " ", "letters"),
            ("single", 1.5, "string or id"),
            ("multi", "a", "a list of labels"),
            ("multi", "[1]", "CSV has none"),
            ("multi", [True], "strings or ids"),
            ("multi", [1, 1], "each id once"),
            ("number", "x", "a number is wanted"),
            ("number", True, "a number is wanted"),
            ("number", 10**400, "a number is wanted"),
            ("cosine_mse", 1.5, "[-1, 1]"),
            ("mse", [1.0, "x"], "a list of 2 numbers"),
        ],
    )
    def test_faults_say_what_is_wanted_and_where(self, name, value, word):
        values = [value, value] if name != "mse" else [[0.0, 1.0], value]
        (fault,) = KIND[name].label_faults(PLAIN, "tasks.t.data", "train", values)
        assert fault.startswith("tasks.t.data.label: train")
        assert word in fault
        assert "row 0, 1" in fault or name == "mse"

    def test_strings_beside_ids_are_told(self):
        (fault,) = KIND["single"].label_faults(PLAIN, "tasks.t.data", "test", ["1", None, 1])
        assert "row 0 holds '1' and row 2 1" in fault

    def test_tags_are_padded_or_laid_end_to_end(self):
        tags = [[IGNORE, 1], [IGNORE, 1, 2, IGNORE]]
        padded = KIND["tags"].collate(tags, BatchLayout(width=4, packed=False))
        assert padded.tolist() == [[IGNORE, 1, IGNORE, IGNORE], [IGNORE, 1, 2, IGNORE]]
        packed = KIND["tags"].collate(tags, BatchLayout(width=6, packed=True))
        assert packed.tolist() == [[IGNORE, 1, IGNORE, 1, 2, IGNORE]]


class TestAnswers:
    def test_rows_without_a_label_and_later_windows_are_left_out(self):
        rows = SplitRows({"y": ["a", None, "unseen"]}, PLAIN, None)
        rows.tokenized = {"row": [2, 0, 0, 1], "window": [0, 0, 1, 0]}
        values = torch.tensor([[0.0, 1, 0], [2, 0, 0], [0, 0, 9], [0, 0, 9]])
        answers = KIND["single"].answers(rows, values)
        assert answers.predictions == ["b", "a"]
        assert answers.references == ["unseen", "a"]

    def test_a_model_is_scored_by_what_the_rows_hold(self):
        pairs = TaskRecipe(head="embedding", loss="cosent", data=PLAIN)
        groups = TaskRecipe(head="embedding", loss="contrastive", data=DataConfig())
        assert KIND["contrastive"].scored_as(pairs).metrics == ("spearman", "pearson")
        assert KIND["cosent"].scored_as(groups).metrics == ("accuracy",)
        assert KIND["single"].scored_as(pairs) is KIND["single"]

    def test_the_nearest_of_all_texts_is_the_own_positive(self):
        vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 3, 1]].reshape(3, 2, 4)
        rows = SplitRows({"t": ["x"] * 3}, DataConfig(text="t"), "t")
        rows.tokenized = {"row": [0, 1, 2], "window": [0, 0, 0]}
        assert KIND["contrastive"].score(vectors, rows) == {"accuracy": pytest.approx(1 / 3)}

    def test_hits_of_masks_are_counted(self):
        labels = torch.tensor([[IGNORE, 1, 0], [IGNORE, IGNORE, IGNORE]])
        logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1], [0, 0, 0]]), 2).float()
        counts = KIND["words"].gathered(logits, labels)
        loss = -logits[0, 1:].log_softmax(-1)[[0, 1], [1, 0]].sum()
        assert counts.tolist() == [[1, 2, pytest.approx(float(loss))], [0, 0, 0]]
        assert KIND["words"].score(counts.numpy(), SplitRows({}, PLAIN, None)) == {
            "token_accuracy": 0.5,
            "perplexity": pytest.approx(float(loss.div(2).exp())),
        }
