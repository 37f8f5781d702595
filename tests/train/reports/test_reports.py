"""Reports equal counts by hand and scikit-learn; pictures open; the page stands alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from polyhead.train.data.tokenization import tokenize
from polyhead.train.errors import UserError
from polyhead.train.evaluation.scoring import EvalSplit, score
from polyhead.train.kinds.counting import (
    compare_numbers,
    confusion,
    multi_label_confusion,
    reliability,
)
from polyhead.train.records import TASK_REPORT
from polyhead.train.reports import curves, page
from polyhead.train.reports import figures as plots
from polyhead.train.reports.curves import training_curves, training_plots
from polyhead.train.reports.page import report
from polyhead.train.reports.task_report import task_report, write_reports
from sklearn import metrics as sklearn_metrics
from sklearn.preprocessing import MultiLabelBinarizer
from train_helpers import (
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_rows,
)

settings.register_profile("reports", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("reports")

pytestmark = pytest.mark.usefixtures("rendered")

SEQUENCE = {"head": "sequence_classification"}
MULTI = {**SEQUENCE, "problem_type": "multi_label_classification"}
LABELS = ["a", "b", "c"]
PAIRS = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "never seen"])), min_size=1
)


def row_of(precision, recall, f1, support):
    keys = ("precision", "recall", "f1", "support")
    return dict(zip(keys, (precision, recall, f1, support), strict=True))


class TestConfusion:
    def test_rows_are_true_and_columns_predicted(self):
        table = confusion(["a", "b"], ["a", "b", "b", "b"], ["a", "a", "a", "b"])
        assert table["matrix"] == [[1, 2], [0, 1]]
        assert table["per_label"] == {
            "a": row_of(1.0, pytest.approx(1 / 3), 0.5, 3),
            "b": row_of(pytest.approx(1 / 3), 1.0, 0.5, 1),
        }
        pair = {"true": "a", "predicted": "b", "count": 2, "share": pytest.approx(2 / 3)}
        assert table["confused"] == [pair]

    def test_a_label_unseen_in_training_has_its_own_row(self):
        table = confusion(["b", "a"], ["a", "a", "b"], ["new", "a", "b"])
        assert table["labels"] == ["b", "a", "new"]
        assert table["known"] == ["b", "a"]
        assert table["matrix"] == [[1, 0], [0, 1], [0, 1]]
        assert table["per_label"]["new"] == row_of(0.0, 0.0, 0.0, 1)
        assert table["confused"] == [{"true": "new", "predicted": "a", "count": 1, "share": 1.0}]

    @given(PAIRS)
    def test_it_equals_scikit_learn(self, pairs):
        answers, true = map(list, zip(*pairs, strict=True))
        table = confusion(LABELS, answers, true)
        names = table["labels"]
        expected = sklearn_metrics.confusion_matrix(true, answers, labels=names)
        assert table["matrix"] == expected[:, :3].tolist()
        rows = sklearn_metrics.classification_report(
            true, answers, labels=names, output_dict=True, zero_division=0
        )
        for name in names:
            *three, support = rows[name].values()
            assert table["per_label"][name] == pytest.approx(row_of(*three, support))

    def test_no_rows_are_no_counts(self):
        table = confusion(["a", "b"], [], [])
        assert table["matrix"] == [[0, 0], [0, 0]]
        assert table["per_label"] == dict.fromkeys("ab", row_of(0.0, 0.0, 0.0, 0))
        assert table["confused"] == []

    def test_one_class_only(self):
        table = confusion(["a", "b"], ["a", "a"], ["a", "a"])
        assert table["matrix"] == [[2, 0], [0, 0]]
        assert table["per_label"]["a"] == row_of(1.0, 1.0, 1.0, 2)
        assert table["confused"] == []

    def test_of_many_pairs_the_20_most_confused_are_listed(self):
        labels = [f"l{i}" for i in range(77)]
        true = [labels[i] for i in range(30) for _ in range(i + 1)]
        confused = confusion(labels, ["l76"] * len(true), true)["confused"]
        assert [(pair["true"], pair["count"]) for pair in confused] == [
            (f"l{i}", i + 1) for i in range(29, 9, -1)
        ]


class TestMultiLabel:
    def test_each_label_has_its_four_counts(self):
        table = multi_label_confusion(["a", "b"], [["a"], ["a", "b"], []], [["a"], ["b"], ["b"]])
        keys = ("true_positive", "false_positive", "false_negative", "true_negative")
        counts = {name: [row[key] for key in keys] for name, row in table["per_label"].items()}
        assert counts == {"a": [1, 1, 0, 1], "b": [1, 0, 1, 1]}
        assert {k: table["per_label"]["b"][k] for k in ("precision", "recall", "support")} == {
            "precision": 1.0,
            "recall": 0.5,
            "support": 2,
        }

    @given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abcd")))))
    def test_it_equals_scikit_learn_and_an_unseen_label_is_missed(self, pairs):
        answers, gold = ([sorted(pair[i]) for pair in pairs] for i in (0, 1))
        table = multi_label_confusion(LABELS, answers, gold)
        names = table["labels"]
        assert names == [*LABELS, *["d"] * any("d" in row for row in gold)]
        binary = MultiLabelBinarizer(classes=names)
        true, predicted = binary.fit_transform(gold), binary.fit_transform(answers)
        for i, name in enumerate(names):
            row, y, p = table["per_label"][name], true[:, i], predicted[:, i]
            assert row["true_positive"] == sum(y & p)
            assert row["false_negative"] == sum(y & ~p & 1)
            assert sum(row[key] for key in row if "_" in key) == len(pairs)
            if pairs:
                f1 = sklearn_metrics.f1_score(y, p, zero_division=0)
                assert row["f1"] == pytest.approx(f1)
        if "d" in names:
            assert table["per_label"]["d"]["recall"] == 0.0


class TestReliability:
    def test_five_rows_by_hand(self):
        # bin 9, (0.6, 0.667]: 0.62 right, 0.62 of an unknown label; bin 13: 0.9 right, 0.9 wrong
        probabilities = [[0.62, 0.38], [0.62, 0.38], [0.9, 0.1], [0.1, 0.9], [1.0, 0.0]]
        calibration = reliability(np.array(probabilities), [0, -1, 0, 0, 0])
        assert calibration["ece"] == pytest.approx((2 * 0.12 + 2 * 0.4 + 0) / 5)
        full = {i: part for i, part in enumerate(calibration["bins"]) if part["count"]}
        shown = {i: (p["count"], p["confidence"], p["accuracy"]) for i, p in full.items()}
        assert shown == {
            9: (2, pytest.approx(0.62), 0.5),
            13: (2, pytest.approx(0.9), 0.5),
            14: (1, 1.0, 1.0),
        }
        assert (calibration["count"], calibration["unit"], len(calibration["bins"])) == (
            5,
            "answers",
            15,
        )

    def test_a_bin_holds_its_upper_edge(self):
        calibration = reliability(np.array([[0.0, 0.2, 1.0]]), [[0, 0, 1]])
        assert [i for i, part in enumerate(calibration["bins"]) if part["count"]] == [0, 2, 14]

    def test_of_several_labels_a_row_each_counts(self):
        calibration = reliability(np.array([[0.9, 0.1], [0.9, 0.3]]), [[1, 0], [0, 1]])
        # 0.9 twice, half of them true; 0.1, not true; 0.3, true
        assert calibration["ece"] == pytest.approx((2 * 0.4 + 0.1 + 0.7) / 4)
        assert (calibration["count"], calibration["unit"]) == (4, "labels")

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
    def test_it_equals_the_sum_over_bins(self, rows):
        calibration = reliability(np.array([[p] for p, _ in rows]), [[int(hit)] for _, hit in rows])
        error = 0.0
        for low in range(15):
            inside = [(p, hit) for p, hit in rows if low / 15 < p <= (low + 1) / 15]
            inside += [(p, hit) for p, hit in rows if p == 0 == low]
            error += abs(sum(p - hit for p, hit in inside))
        assert calibration["ece"] == pytest.approx(error / len(rows))

    def test_without_rows_there_is_no_error(self):
        calibration = reliability(np.zeros((0, 3)), [])
        assert (calibration["ece"], calibration["count"]) == (None, 0)

    def test_rows_whose_probabilities_are_no_numbers_are_counted_apart(self):
        calibration = reliability(np.array([[np.nan, np.nan], [0.0, 1.0]]), [0, 0])
        assert (calibration["ece"], calibration["count"], calibration["not_finite"]) == (1.0, 1, 1)


class TestNumbers:
    def test_residuals_by_hand(self):
        numbers = compare_numbers([0.0, 1.0, 5.0], [1.0, 1.0, 2.0])
        residuals = numbers["residuals"]
        assert residuals["mean"] == pytest.approx(2 / 3)
        assert residuals["mean_absolute"] == pytest.approx(4 / 3)
        assert residuals["root_mean_square"] == pytest.approx((10 / 3) ** 0.5)
        assert residuals["percentiles"]["50"] == 0.0
        assert numbers["points"] == [[1.0, 0.0], [1.0, 1.0], [2.0, 5.0]]

    def test_where_only_the_order_is_learned_there_are_no_residuals(self):
        assert "residuals" not in compare_numbers([0.1], [5.0], same_scale=False)

    def test_a_thousand_points_from_first_to_last_are_kept(self):
        points = compare_numbers(list(range(5000)), list(range(5000)))["points"]
        assert (len(points), points[0], points[-1]) == (1000, [0.0, 0.0], [4999.0, 4999.0])

    def test_predictions_that_are_no_numbers_are_counted_apart(self):
        numbers = compare_numbers([float("nan"), 1.0], [1.0, 1.0])
        assert (numbers["points"], numbers["not_finite"]) == ([[1.0, 1.0]], 1)

    def test_no_rows(self):
        assert compare_numbers([], []) == {"points": [], "not_finite": 0}


@pytest.fixture
def report_of(tmp_path, tokenizer_of):
    """Rows of a test split and predictions in their order -> config, scores and report."""

    def make(lines, values, train=None, **options):
        files = {
            "train": str(write_rows(tmp_path / "train.jsonl", train or lines)),
            "test": str(write_rows(tmp_path / "test.jsonl", lines)),
        }
        options = {"text": "text", "label": "label", **options}
        (source,) = sources_of(one=task(data_files=files, **options))
        rows = tokenize(source, "test", tokenizer_of("wordpiece"), longest_first=True)
        part, config = EvalSplit(source, "test", rows), source.configs["one"]
        values = np.array([values[row] for row in rows["row"]], dtype=np.float32)
        scores = score("one", config, part, values)
        made = task_report("one", config, part, values, scores)
        assert json.loads(json.dumps(made, allow_nan=False)) == made
        return scores, made

    return make


class TestTaskReport:
    def test_an_unknown_class_is_wrong_and_a_missing_one_left_out(self, report_of):
        lines = [{"text": "a " * n, "label": x} for n, x in [(1, "a"), (3, "new"), (2, None)]]
        train = [{"text": "x", "label": x} for x in "ab"]
        values = [[9, -9], [9, -9], [-9, 9]]
        scores, made = report_of(lines, values, train, **SEQUENCE)
        assert (made["rows"], made["labelled"], made["unit"]) == (3, 2, "rows")
        assert made["confusion"]["matrix"] == [[1, 0], [0, 0], [1, 0]]
        assert made["scores"]["accuracy"] == scores["accuracy"] == 0.5
        assert made["reliability"]["ece"] == pytest.approx(0.5)  # sure twice, right once

    def test_several_labels_with_one_unknown(self, report_of):
        lines = [{"text": "a", "label": ["a", "new"]}, {"text": "b b", "label": []}]
        train = [{"text": "x", "label": ["a", "b"]}]
        scores, made = report_of(lines, [[99, -99], [99, -99]], train, **MULTI)
        assert made["labels"]["per_label"]["new"]["false_negative"] == 1
        hits = sum(row["true_positive"] for row in made["labels"]["per_label"].values())
        assert scores["f1_micro"] == pytest.approx(2 * hits / 4)
        # of 6 decisions two are wrong for certain: a of row 1, new of row 0
        assert made["reliability"]["ece"] == pytest.approx(2 / 6)
        assert made["reliability"]["count"] == 6

    def test_words_have_a_confusion_where_tags_stand_alone(self, report_of):
        rows = [(["now", "now"], ["N", "V"]), (["now"], ["V"])]
        lines = [{"tokens": words, "label": tags} for words, tags in rows]
        tokens = {"head": "token_classification", "text": None, "tokens": "tokens"}
        values = np.full((2, 12, 2), [9, -9])  # N everywhere
        scores, made = report_of(lines, values, **tokens)
        assert (made["labelled"], made["unit"]) == (3, "words")
        assert made["confusion"]["matrix"] == [[1, 0], [2, 0]]
        assert scores["token_accuracy"] == pytest.approx(1 / 3)
        assert made["reliability"]["ece"] == pytest.approx(2 / 3)
        assert "entities" not in made

    def test_entities_have_the_table_of_the_metric(self, report_of):
        lines = [{"tokens": ["now", "now"], "label": ["B-x", "O"]}]
        tokens = {"head": "token_classification", "text": None, "tokens": "tokens"}
        scores, made = report_of(lines, np.zeros((1, 12, 2)), **tokens)
        assert made["entities"] == scores["per_type"]
        assert made["reliability"]["count"] == 2
        assert "confusion" not in made
        assert "per_type" not in made["scores"]

    def test_numbers_are_compared_as_the_model_learns_them(self, report_of):
        numbers = [0, 4, None, float("nan"), 2]
        lines = [{"text": "a " * n, "label": x} for n, x in enumerate(numbers, start=1)]
        options = {"problem_type": "regression", "label_range": (0.0, 4.0)}
        values = [[0.0], [1.0], [9.0], [9.0], [1.0]]
        scores, made = report_of(lines, values, **SEQUENCE, **options)
        assert sorted(made["numbers"]["points"]) == [[0.0, 0.0], [0.5, 1.0], [1.0, 1.0]]
        square = made["numbers"]["residuals"]["root_mean_square"] ** 2
        assert square == pytest.approx(scores["mse"])

    @pytest.mark.parametrize(("loss", "exact"), [("cosent", False), ("cosine_mse", True)])
    def test_scored_pairs(self, report_of, loss, exact):
        lines = [{"text": "a", "more": "b", "label": x} for x in (0.0, 0.5, 1.0)]
        groups = [[[1, 0], [0, 1]], [[1, 0], [0, 2]], [[1, 1], [1, 1]]]
        _, made = report_of(lines, groups, head="embedding", text_pair="more", loss=loss)
        assert np.allclose(sorted(made["numbers"]["points"]), [[0, 0], [0.5, 0], [1, 1]])
        assert ("residuals" in made["numbers"]) == exact

    def test_groups_are_scored_each_for_itself(self, report_of):
        rows = [("a", "de", 9), ("b", "de", 9), ("a", "da", 9), (None, "nl", 9), ("b", None, -9)]
        lines = [
            {"text": "a " * n, "label": label, "language": language}
            for n, (label, language, _) in enumerate(rows, start=1)
        ]
        values = [[value, -value] for *_, value in rows]
        scores, made = report_of(lines, values, group_by="language", **SEQUENCE)
        assert {g: (v["rows"], v["scores"]["accuracy"]) for g, v in made["groups"].items()} == {
            "None": (1, 1.0),
            "da": (1, 1.0),
            "de": (2, 0.5),
        }
        assert scores["accuracy"] == 0.75
        assert TASK_REPORT.validate_python(made)["groups"] == made["groups"]
        shown = page._task_part(made, [])
        assert "Groups, the worst first" in shown
        assert shown.index(">de<") < shown.index(">da<")

    def test_groups_of_entities(self, report_of):
        tags = [["B-x", "O"], ["O", "B-x"], ["B-x", "B-x"]]
        lines = [
            {"tokens": ["now", "now"], "label": row, "language": "de" if n else "da"}
            for n, row in enumerate(tags)
        ]
        tokens = {"head": "token_classification", "text": None, "tokens": "tokens"}
        values = np.full((3, 12, 2), [-9, 9])  # B-x for each word
        made = report_of(lines, values, group_by="language", **tokens)[1]["groups"]
        assert made["da"]["scores"]["entity_f1"] == pytest.approx(2 / 3)
        assert made["de"]["scores"]["entity_f1"] == pytest.approx(2 * 3 / 7)

    def test_a_column_of_groups_that_is_not_there_is_named(self, report_of):
        lines = [{"text": "a", "label": "a"}]
        with pytest.raises(UserError, match="group_by: split test has no column 'language'"):
            report_of(lines, [[9.0]], group_by="language", **SEQUENCE)

    def test_tasks_without_labels_have_their_scores_alone(self, report_of):
        made = report_of([{"text": "a"}] * 2, [[1, 2, 0], [0, 2, 0]], head="masked_lm", label=None)[
            1
        ]
        assert made == {
            "task": "one",
            "kind": "masked_lm",
            "split": "test",
            "rows": 2,
            "scores": {"token_accuracy": 0.25, "perplexity": 1.0},
        }
        options = {"head": "embedding", "text_pair": "more", "loss": "contrastive", "label": None}
        made = report_of([{"text": "a", "more": "b"}], [[[1, 0], [1, 0]]], **options)[1]
        assert made["scores"] == {"accuracy": 1.0}
        assert "numbers" not in made


# ---- pictures ----


def classes(name, labels, true, answers, **options):
    """A report of single labels; all probability on the answer."""
    probabilities = [[float(label == answer) for label in labels] for answer in answers]
    ids = [labels.index(x) if x in labels else -1 for x in true]
    return {
        "task": name,
        "kind": "single_label_classification",
        "split": "test",
        "rows": len(true),
        "scores": {"accuracy": 0.5},
        "labelled": len(true),
        "unit": "rows",
        "confusion": confusion(labels, answers, true),
        "reliability": reliability(np.array(probabilities).reshape(-1, len(labels)), ids),
        **options,
    }


def chain(count):
    """As many labels, each right once and once taken for the next."""
    labels = [f"l{i}" for i in range(count)]
    return classes("many", labels, labels * 2, labels + labels[1:] + labels[:1])


HISTORY = [
    {"step": 1, "loss": 3.0, "loss_a": 2.0, "loss_a_b": 1.0, "rows_a": 8.0, "tokens_a": 80.0},
    {"step": 2, "loss": 2.0, "loss_a": float("nan"), "grad_norm": 5.0, "learning_rate": 0.1},
    {"step": 2, "grad_norm_a": 0.5, "grad_norm_a_b": 0.1, "grad_norm_c": 2.0, "cosine_a-c": -0.5},
    {"step": 2, "cosine_a-a_b": 0.5, "cosine_a_b-c": float("nan"), "halves_a": 0.5},
    {"step": 3, "halves_c": 1 / 3, "gradient_embeddings": 0.1},
    {"step": 3, "gradient_layer_0": 0.5, "gradient_layer_1": 2.0},
    {"step": 3, "cosine_a-a_b": -0.1, "cosine_a-c": -0.1, "weight_a": 1.5, "weight_a_b": 0.5},
    {"step": 3, "eval_a_accuracy": 0.5, "eval_a_loss": 1.5, "eval_a_b_entity_f1": 0.25},
    {"step": 3, "eval_a_b_precision": 0.2, "eval_macro": 0.375, "eval_loss": 4.0},
]
TASKS = ["c", "a_b", "a"]


class TestCurves:
    def test_the_log_by_task(self):
        by_task = training_curves(HISTORY, TASKS)
        cosines = by_task.pop("cosines")
        assert by_task == {
            "losses": {
                "a": {"train": [[1, 2.0], [2, None]], "evaluation": [[3, 1.5]]},
                "a_b": {"train": [[1, 1.0]]},
            },
            "scores": {
                "a": {"accuracy": [[3, 0.5]]},
                "a_b": {"entity_f1": [[3, 0.25]], "precision": [[3, 0.2]]},
                "macro": {"macro": [[3, 0.375]]},
            },
            "weights": {"a": [[3, 1.5]], "a_b": [[3, 0.5]]},
            "rows": {"a": [[1, 8.0]]},
            "tokens": {"a": [[1, 80.0]]},
            "skipped": {},
            "gradient_norms": {"a": [[2, 0.5]], "a_b": [[2, 0.1]], "c": [[2, 2.0]]},
            "layers": {"embeddings": [[3, 0.1]], "layer 0": [[3, 0.5]], "layer 1": [[3, 2.0]]},
            "rates": {"all parts": [[2, 0.1]]},
            "experts": {},
        }
        assert cosines == [  # those that pull apart first; one that is no number is none
            {
                "tasks": ["a", "c"],
                "mean": -0.3,
                "standard_error": pytest.approx(0.2),
                "negative": 1.0,
                "compared": 2,
                "own": pytest.approx((2 / 3 * 0.5) ** 0.5),  # 2 * 0.5 / 1.5, 2 * 1/3 / (4/3)
            },
            {
                "tasks": ["a", "a_b"],
                "mean": pytest.approx(0.2),
                "standard_error": pytest.approx(0.3),
                "negative": 0.5,
                "compared": 2,
                "own": None,
            },
        ]

    def test_a_task_may_be_called_macro(self):
        log = [{"step": 1, "eval_macro_accuracy": 0.5, "eval_macro": 0.7}]
        scores = training_curves(log, ["macro"])["scores"]
        assert scores == {"macro": {"accuracy": [[1, 0.5]], "macro": [[1, 0.7]]}}

    def test_scores_of_training_rows_stand_beside_the_others(self):
        log = [{"step": 1, "eval_a_mcc": 0.5, "on_train_a_mcc": 0.75, "on_train_a_loss": 0.1}]
        by_task = training_curves(
            [*log, {"step": 1, "eval_macro": 0.5, "on_train_macro": 1}], ["a"]
        )
        assert by_task["scores"] == {
            "a": {"mcc": [[1, 0.5]], "mcc, train rows": [[1, 0.75]]},
            "macro": {"macro": [[1, 0.5]], "macro, train rows": [[1, 1]]},
        }
        assert by_task["losses"] == {"a": {"train rows": [[1, 0.1]]}}
        lines = curves._scores(by_task).axes[0].get_lines()
        assert [line.get_linestyle() for line in lines] == ["-", "--", "--"]  # the last: legend
        assert lines[0].get_color() == lines[1].get_color()

    def test_parts_with_the_same_learning_rate_share_a_line(self):
        rates = {"lr_layer_1": 0.1, "lr_layer_0": 0.05, "lr_head_a": 0.1, "learning_rate": 0.1}
        log = [{"step": n, **rates} for n in (1, 2)]
        by_part = training_curves(log, ["a"])
        assert list(by_part["rates"]) == ["layer 1", "layer 0", "head a"]
        lines = curves._rates(by_part).axes[0].get_lines()
        assert [line.get_label() for line in lines] == ["layer 1, head a", "layer 0"]

    def test_only_what_was_logged_is_drawn(self, tmp_path):
        assert training_plots([{"step": 1, "loss": 1.0}], ["a"], tmp_path) == []
        scores = training_plots([{"step": 1, "eval_a_mcc": 0.5}], ["a"], tmp_path)
        assert [path.name for path in scores] == ["scores.png"]
        cosine = training_plots([{"step": 1, "cosine_a-b": -0.5}], ["a", "b"], tmp_path)
        assert [path.name for path in cosine] == ["cosines.png"]
        assert {path.name for path in (tmp_path / "reports").iterdir()} == {"cosines.png"}

    def test_a_long_noisy_loss_is_drawn_with_its_running_mean(self):
        log = [{"step": n, "loss_a": float(n % 2)} for n in range(1, 101)]
        thin, mean = curves._losses(training_curves(log, ["a"])).axes[0].get_lines()
        assert list(thin.get_ydata()) == [float(n % 2) for n in range(1, 101)]
        assert list(mean.get_ydata()) == [0.5] * 97  # over 4 steps


ODD = [
    "$x$ and $y^2$",
    "<b>bold</b>",
    "a label that is much too long to be read in a picture",
    "名",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of three tasks with every section of a report, and its log."""
    folder = tmp_path_factory.mktemp("runs") / "first & best"
    reports = {
        "a": classes("a", ODD, [*ODD, "unseen"], [ODD[1], *ODD[1:], ODD[3]]),
        "a_b": {
            **classes("a_b", ["x", "y"], ["x"], ["x"]),
            "entities": {"<i>": row_of(0.5, 0.25, 1 / 3, 1_200)},
            "labels": multi_label_confusion(["x", "y"], [["x"]], [["x", "y"]]),
        },
        "c": {
            "task": "c",
            "kind": "regression",
            "split": "validation",
            "rows": 3,
            "labelled": 3,
            "unit": "rows",
            "scores": {"mse": 0.5},
            "numbers": compare_numbers([0.0, 0.4, 1.0], [0.1, 0.5, 0.8]),
        },
    }
    del reports["a_b"]["confusion"]
    write_reports(folder, reports)
    scores = {task: of_task["scores"] for task, of_task in reports.items()}
    splits = {task: of_task["split"] for task, of_task in reports.items()}
    write_json(folder / "scores.json", {"tasks": scores, "macro": 0.5, "splits": splits})
    write_json(folder / "log_history.json", HISTORY)
    return folder


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class TestPictures:
    def test_every_section_has_a_picture_that_opens(self, run):
        training_plots(HISTORY, TASKS, run)
        pictures = {path.stem: Image.open(path) for path in (run / "reports").glob("*.png")}
        assert set(pictures) == {
            "a_confusion",
            "a_reliability",
            "a_b_reliability",
            "a_b_entities",
            "a_b_labels",
            "c_numbers",
            "losses",
            "scores",
            "gradients",
            "cosines",
            "layers",
            "rates",
        }
        for picture in pictures.values():
            picture.load()
            assert 300 < picture.width < 1600
            assert 150 < picture.height < 1600
            assert len(picture.convert("L").getcolors()) > 10  # not blank

    @pytest.mark.parametrize(("count", "numbers"), [(40, 80), (41, 0)])
    def test_a_matrix_of_more_than_40_labels_has_no_numbers(self, count, numbers):
        axes = plots._confusion(chain(count)).axes[0]
        assert len(axes.texts) == numbers
        assert len(axes.get_xticklabels()) == count
        assert axes.get_xticklabels()[0].get_fontsize() == (8 if numbers else 6)

    def test_of_too_many_labels_those_with_most_errors_are_drawn(self, monkeypatch):
        monkeypatch.setattr(plots, "DRAWN", 3)
        many = classes("one", list("abcde"), list("abcdefbb"), list("aadeeeaa"))
        axes = plots._confusion(many).axes[0]
        # errors as true or predicted: a 3, b 3, c 1, d 2, e 2, f (unseen) 1
        assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "d"]
        assert "the 3 labels with most errors" in axes.get_title()

    def test_names_are_drawn_as_they_are_and_long_ones_cut(self):
        axes = plots._confusion(classes("one", ODD, ODD, ODD)).axes[0]
        shown = [text.get_text() for text in axes.get_yticklabels()]
        assert shown[0] == r"\$x\$ and \$y^2\$"  # how matplotlib writes a dollar
        assert shown[2] == "a label that is much too long t…"
        unseen = plots._confusion(classes("one", ["a"], ["b"], ["a"])).axes[0]
        assert unseen.get_yticklabels()[1].get_text() == "b (not in train)"

    def test_conflicts_and_agreement_have_opposite_colours_around_0(self):
        image = curves._cosine_map(training_curves(HISTORY, TASKS)).axes[0].images[0]
        assert (image.norm.vmin, image.norm.vmax) == (-1, 1)  # whatever the cosines
        values = image.get_array().filled(np.nan)
        assert values[0, 2] == values[2, 0] == pytest.approx(-0.3)
        assert np.isnan([values[0, 0], values[1, 2]]).all()
        low, middle, high = image.cmap(image.norm([-0.3, 0.0, 0.3]))
        assert low[0] > low[2]  # red
        assert high[2] > high[0]  # blue
        assert min(middle[:3]) > 0.9  # white

    def test_sections_without_rows_are_not_drawn(self, tmp_path):
        (tmp_path / "one_confusion.png").write_bytes(b"of a run before")
        empty = classes("one", ["a", "b"], [], [], entities={}, numbers=compare_numbers([], []))
        assert plots.draw_report(empty, tmp_path) == []
        assert list(tmp_path.iterdir()) == []

    def test_a_model_whose_probabilities_are_no_numbers_has_no_calibration(self, tmp_path):
        broken = reliability(np.full((2, 2), np.nan), [0, 1])
        broken_report = classes("one", ["a", "b"], ["a"], ["a"], reliability=broken)
        assert [path.name for path in plots.draw_report(broken_report, tmp_path)] == [
            "one_confusion.png"
        ]

    def test_the_users_own_style_neither_matters_nor_changes(self, tmp_path):
        one = classes("one", ["a", "b"], ["a"], ["a"], reliability={})
        with matplotlib.rc_context({"font.size": 30, "text.usetex": True}):
            (path,) = plots.draw_report(one, tmp_path)
            assert matplotlib.rcParams["font.size"] == 30
        styled = path.read_bytes()
        plots.draw_report(one, tmp_path)
        assert path.read_bytes() == styled


# ---- the page ----


class Page(HTMLParser):
    """Tags, what they point at, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def contents(run):
    return report(run)


class TestReport:
    def test_it_gives_all_tables(self, run, contents):
        assert list(contents) == ["scores", "tasks", "training", "page"]
        assert contents["scores"] == json.loads((run / "scores.json").read_text())
        for name in ("a", "a_b", "c"):
            assert contents["tasks"][name] == json.loads((run / f"reports/{name}.json").read_text())
        assert contents["training"] == training_curves(HISTORY, TASKS)
        assert json.loads(json.dumps(contents, allow_nan=False)) == contents

    def test_the_page_holds_every_picture_and_needs_nothing_else(self, run, contents):
        page = Page(Path(contents["page"]))
        pictures = [link for link in page.links if link.startswith("data:image/png;base64,iVBOR")]
        assert len(pictures) == len(list((run / "reports").glob("*.png"))) == 12
        assert [link for link in page.links if link not in pictures] == ["#a", "#a_b", "#c"]
        assert "script" not in page.tags
        assert "link" not in page.tags

    def test_labels_and_names_are_text(self, contents):
        page = Page(Path(contents["page"]))
        assert "b" not in page.tags
        assert "i" not in page.tags
        assert {"<b>bold</b>", "<i>", "$x$ and $y^2$", "first & best"} <= set(page.text)

    def test_it_tells_what_a_person_wants_to_know(self, contents):
        text = " ".join(Page(Path(contents["page"])).text)
        assert "Fewer than 3 comparisons: whether tasks pull apart cannot be told." in text
        assert re.search(r"a\s+c\s+-0.3000\s+-\s+2", text)
        assert "expected calibration error 0.4000" in text  # sure of five, right thrice
        assert re.search(r"unseen\s+名\s+1\s+100%", text)
        assert re.search(r"<i>\s+0.5000\s+0.2500\s+0.3333\s+1,200", text)
        assert re.search(r"c\s+0.5000\s+mse\s+regression, validation", text)

    def test_the_latest_checkpoint_stands_in_for_the_log(self, tmp_path):
        write_json(tmp_path / "scores.json", {})
        for name, step in (("90", 90), ("100", 100), ("90-copy", 1)):
            log = [{"step": step, "loss_a": 1.0}]
            state = tmp_path / f"checkpoint-{name}/trainer_state.json"
            write_json(state, {"log_history": log})
        losses = report(tmp_path)["training"]["losses"]
        assert losses == {"a": {"train": [[100, 1.0]]}}
        assert (tmp_path / "reports/losses.png").is_file()

    def test_without_a_log_the_pictures_drawn_after_training_stay(self, tmp_path):
        (drawn,) = training_plots([{"step": 1, "loss_a": 1.0}], ["a"], tmp_path)
        write_json(tmp_path / "scores.json", {})
        page = Page(Path(report(tmp_path)["page"]))
        assert drawn.is_file()
        assert page.tags.count("img") == 1
        assert "No task has rows to score." in page.text

    def test_reports_of_tasks_that_the_run_no_longer_has_are_left_out(self, tmp_path):
        write_reports(tmp_path, {"old": {"task": "old"}})
        write_json(tmp_path / "scores.json", {"tasks": {}, "macro": 0.0, "splits": {}})
        assert report(tmp_path)["tasks"] == {}

    @pytest.mark.parametrize(
        ("files", "folder", "message"),
        [
            ({}, "none", "there is no such folder; type: polyhead report RUN"),
            ({}, "", "has no scores.json, which a finished run leaves; type: polyhead report RUN"),
            (
                {"checkpoint-5/config.json": {}},
                "",
                "its training has not ended; type: polyhead train RECIPE "
                "training.resume_from_checkpoint=true",
            ),
            (
                {"scores.json": {}, "model/scores.json": {"a": {"mcc": 0.5}}},
                "model",
                "is the folder of a model; type: polyhead report ",
            ),
            (
                {"model/scores.json": {"a": {"mcc": 0.5}}},
                "model",
                "is the folder of a model, not of a run; type: polyhead report RUN",
            ),
        ],
    )
    def test_a_folder_of_no_run_is_refused(self, tmp_path, files, folder, message):
        for name, value in files.items():
            write_json(tmp_path / name, value)
        with pytest.raises(UserError, match=re.escape(message)):
            report(tmp_path / folder)
        assert not list(tmp_path.rglob("reports"))

    def test_a_file_that_is_no_json_is_named(self, tmp_path):
        write_json(tmp_path / "scores.json", {"tasks": {"a": {}}, "macro": 0.0, "splits": {}})
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports/a.json").write_text("{")
        with pytest.raises(UserError, match=r"reports/a.json: 1 fault\n.*cannot be read as JSON"):
            report(tmp_path)


NASTY = ["[/x]", "a\n# Heading", "<script>alert(1)</script>", "a|b`c`", "$x^{", "$5_x^", "\\$y$"]
NASTY += ["\u202eabc", "\x1b[2J", "\ud83d", "😀", "名", "../../x", "{b} {0}", "", "x" * 5000]


def nasty_report(name):
    wrong = NASTY[1:] + NASTY[:1]
    table = {text: row_of(0.5, 0.25, 1 / 3, 7) for text in NASTY}
    nasty = classes(name, NASTY, NASTY, wrong, entities=table)
    return {**nasty, "labels": multi_label_confusion(NASTY, [[x] for x in wrong], [[]] * 16)}


def renamed(value, names):
    """JSON with some strings exchanged."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


class TestNastyNames:
    """What labels and entity types may hold changes nothing but their own cells."""

    def test_the_page_has_its_own_tags_only(self, tmp_path, monkeypatch):
        monkeypatch.setattr(page, "draw_report", lambda *_: [])
        monkeypatch.setattr(page, "draw_training", lambda *_: [])
        pages = []
        for folder, names in (
            (tmp_path / "plain", {text: f"l{i}" for i, text in enumerate(NASTY)}),
            (tmp_path / "<i> & [/x]", {}),
        ):
            nasty = renamed(nasty_report("one"), names)
            scores = {"tasks": {"one": nasty["scores"]}, "macro": 0.5, "splits": {"one": "<b>"}}
            write_json(folder / "reports/one.json", nasty)
            write_json(folder / "scores.json", scores)
            write_json(folder / "log_history.json", HISTORY)
            report(folder)
            pages.append(Page(folder / "reports/report.html"))
        assert pages[0].tags == pages[1].tags
        text = " ".join(pages[1].text)
        for shown in (r"a\n# Heading", "<script>alert(1)</script>", r"\u202eabc", r"\ud83d"):
            assert shown in text

    def test_every_picture_opens(self, tmp_path):
        write_reports(tmp_path, {"one": nasty_report("one")})
        names = {"one_confusion", "one_labels", "one_reliability", "one_entities"}
        pictures = {path.stem: Image.open(path) for path in (tmp_path / "reports").glob("*.png")}
        assert set(pictures) == names
        for picture in pictures.values():
            picture.load()
            assert picture.width < 2000

    def test_labels_are_told_apart_in_the_picture(self):
        axes = plots._confusion(nasty_report("one")).axes[0]
        shown = [text.get_text() for text in axes.get_yticklabels()]
        assert shown[:2] == ["[/x]", "a # Heading"]
        assert shown[4:7] == [r"\$x^{", r"\$5_x^", r"\\$y\$"]
        assert shown[7:10] == [r"\u202eabc", r"\x1b[2J", r"\ud83d"]


class TestDamagedFiles:
    """A file of a run that holds something else is one message, and writes nothing."""

    @pytest.fixture
    def run_of(self, tmp_path):
        def make(**files):
            whole = classes("one", ["x", "y"], ["x"], ["y"])
            scores = {"tasks": {"one": {"f1": 0.5}}, "macro": 0.5, "splits": {"one": "test"}}
            usual = {"scores": scores, "reports/one": whole, "log_history": []}
            for name, value in (usual | files).items():
                write_json(tmp_path / "run" / f"{name}.json", value)
            return tmp_path / "run"

        return make

    def test_a_whole_run_is_shown(self, run_of):
        assert report(run_of())["tasks"]["one"]["rows"] == 1

    @pytest.mark.parametrize("value", [None, [], 3, "a", [[]], True])
    @pytest.mark.parametrize("name", ["scores", "reports/one", "log_history"])
    def test_of_another_type(self, run_of, name, value):
        if (name, value) == ("log_history", []):
            return
        with pytest.raises(UserError, match=f"{name}.json: 1 fault"):
            report(run_of(**{name: value}))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("task", "../../x"),
            ("task", "two"),
            ("task", None),
            ("rows", None),
            ("rows", -1),
            ("split", 3),
            ("labelled", None),
            ("scores", {"f1": "high"}),
            ("confusion", None),
            ("confusion", {}),
            ("confusion.matrix", None),
            ("confusion.matrix", [[1]]),
            ("confusion.matrix", [[1, None], [0, 1]]),
            ("confusion.labels", ["x"]),
            ("confusion.known", ["z", "x", "y"]),
            ("confusion.per_label", {}),
            ("confusion.per_label", {"x": None, "y": None}),
            ("confusion.confused", [{"true": "x"}]),
            ("reliability.ece", None),
            ("reliability.bins", []),
            ("entities", {"x": {"f1": 1.0}}),
            ("numbers", {"points": [[1.0]]}),
            ("numbers", {"points": [["a", "b"]]}),
        ],
    )
    def test_a_report_with_one_value_exchanged(self, run_of, key, value):
        damaged = classes("one", ["x", "y"], ["x"], ["y"])
        *parents, last = key.split(".")
        part = damaged
        for parent in parents:
            part = part[parent]
        part[last] = value
        run = run_of(**{"reports/one": damaged})
        before = {path for path in run.parents[1].rglob("*") if "current" not in path.name}
        with pytest.raises(UserError, match=r"reports/one.json: \d fault"):
            report(run)
        after = {path for path in run.parents[1].rglob("*") if "current" not in path.name}
        assert after == before

    @pytest.mark.parametrize("key", ["task", "kind", "split", "rows", "labelled", "unit"])
    def test_a_report_without_a_key(self, run_of, key):
        damaged = classes("one", ["x", "y"], ["x"], ["y"])
        del damaged[key]
        with pytest.raises(UserError, match=r"reports/one.json: 1 fault"):
            report(run_of(**{"reports/one": damaged}))

    @pytest.mark.parametrize(
        "scores",
        [
            {"tasks": {"one": None}, "macro": 0.5, "splits": {}},
            {"tasks": {"one": {"f1": [1]}}, "macro": 0.5, "splits": {"one": "test"}},
            {"tasks": {"one": {"f1": 0.5}}, "macro": "high", "splits": {"one": "test"}},
            {"tasks": {"one": {"f1": 0.5}}, "macro": 0.5, "splits": {}},
            {"tasks": {"one": {"f1": 0.5}}, "macro": 0.5},
            {"tasks": {"../one": {"f1": 0.5}}, "macro": 0.5, "splits": {"../one": "test"}},
            {"tasks": [], "macro": 0.5, "splits": {}},
        ],
    )
    def test_scores_with_one_value_exchanged(self, run_of, scores):
        with pytest.raises(UserError, match=r"scores.json: \d fault"):
            report(run_of(scores=scores))

    @pytest.mark.parametrize(
        "line", [{"loss_one": 1.0}, {"step": None}, {"step": 1, "loss_one": None}, None]
    )
    def test_a_log_with_one_value_exchanged(self, run_of, line):
        with pytest.raises(UserError, match=r"log_history.json: 1 fault"):
            report(run_of(log_history=[{"step": 0, "loss_one": 1.0}, line]))

    def test_what_is_too_deep(self, run_of):
        run = run_of()
        (run / "scores.json").write_text("[" * 100_000)
        with pytest.raises(UserError, match="cannot be read as JSON"):
            report(run)

    @pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "", "a\x00", "A", "."])
    def test_a_report_of_no_task_is_not_written(self, tmp_path, name):
        folder = tmp_path / "deep" / "run"
        whole = classes("one", ["x", "y"], ["x"], ["y"])
        for reports in ({name: whole}, {"one": {**whole, "task": name}}):
            with pytest.raises(ValueError, match="a task is named by"):
                write_reports(folder, reports)
        with pytest.raises(ValueError, match="a task is named by"):
            plots.draw_report({**whole, "task": name}, tmp_path)
        assert list(tmp_path.iterdir()) == []
