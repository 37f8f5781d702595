"""Metrics equal those of seqeval, scikit-learn and scipy, also for labels unseen in training."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from polyhead.modeling import TaskConfig
from polyhead.train.data.tokenization import tokenize
from polyhead.train.evaluation.metrics import (
    METRICS,
    EntityF1,
    compute,
    main_metric,
)
from polyhead.train.evaluation.scoring import EvalSplit, macro, score
from polyhead.train.kinds import kind_of
from scipy import stats
from seqeval import scheme as seqeval_schemes
from seqeval.metrics import classification_report
from sklearn import metrics as sklearn_metrics
from sklearn.preprocessing import MultiLabelBinarizer
from train_helpers import (
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_rows,
)

settings.register_profile("metrics", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("metrics")

SEQUENCE = {"head": "sequence_classification"}
SINGLE = TaskConfig(**SEQUENCE, labels=["a", "b", "c"])
MULTI = TaskConfig(**SEQUENCE, labels=["a", "b", "c"], problem_type="multi_label_classification")
ORDERED = TaskConfig(**SEQUENCE, labels=["a", "b", "c", "d"], problem_type="ordinal")
NUMBER = TaskConfig(**SEQUENCE, problem_type="regression")
TAGGED = TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"])
PLAIN = TaskConfig(head="token_classification", labels=["NOUN", "VERB"])
NEAR = TaskConfig(head="embedding")
GROUPS = TaskConfig(head="embedding", loss="contrastive")
WORDS = TaskConfig(head="masked_lm")
PREFIXES = {"iob1": ("IOB1", "BI"), "iob2": ("IOB2", "BI"), "bioes": ("IOBES", "BIES")}


def seqeval_loses_an_entity(row):
    """IOB1 in seqeval drops an entity B-x when the next tag is (wrongly) B- of another kind."""
    return any(a[0] == b[0] == "B" and a != b for a, b in itertools.pairwise(row))


def rows_of_tags(scheme):
    """Rows of any tags, legal or not; predictions and references of the same lengths."""
    tags = ["O", *(f"{p}-{kind}" for p in PREFIXES[scheme][1] for kind in "xy")]
    pair = st.tuples(st.sampled_from(tags), st.sampled_from(tags))
    row = st.lists(pair, min_size=1, max_size=8)
    return st.lists(row, min_size=1, max_size=4)


class TestEntityF1:
    @pytest.mark.parametrize("scheme", PREFIXES)
    @given(data=st.data())
    def test_it_equals_seqeval_in_strict_mode(self, scheme, data):
        rows = data.draw(rows_of_tags(scheme))
        predictions = [[p for p, _ in row] for row in rows]
        references = [[r for _, r in row] for row in rows]
        lost = map(seqeval_loses_an_entity, [*predictions, *references])
        assume(scheme != "iob1" or not any(lost))
        found = EntityF1(scheme).compute(predictions=predictions, references=references)
        with warnings.catch_warnings():  # seqeval warns where a type was never predicted
            warnings.simplefilter("ignore")
            report = classification_report(
                references,
                predictions,
                mode="strict",
                scheme=getattr(seqeval_schemes, PREFIXES[scheme][0]),
                output_dict=True,
                zero_division=0,
            )
        total = report.pop("micro avg")
        assert found["entity_f1"] == pytest.approx(total["f1-score"])
        assert found["precision"] == pytest.approx(total["precision"])
        assert found["recall"] == pytest.approx(total["recall"])
        types = {kind: row for kind, row in report.items() if not kind.endswith(" avg")}
        assert sorted(found["per_type"]) == sorted(types)
        for kind, row in types.items():
            expected = {
                "precision": row["precision"],
                "recall": row["recall"],
                "f1": row["f1-score"],
                "support": row["support"],
            }
            assert found["per_type"][kind] == pytest.approx(expected)

    def test_each_kind_of_entity_has_its_row(self):
        references = [["B-x", "I-x", "O", "B-y"], ["B-x", "O"]]
        predictions = [["B-x", "I-x", "O", "B-x"], ["B-x", "I-x"]]
        found = compute(["entity_f1"], TAGGED, predictions, references)
        assert found == {
            "entity_f1": pytest.approx(1 / 3),
            "precision": pytest.approx(1 / 3),
            "recall": pytest.approx(1 / 3),
            "per_type": {
                "x": {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": 0.4, "support": 2},
                "y": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
            },
        }

    def test_a_kind_never_seen_in_training_counts_as_missed(self):
        found = compute(["entity_f1"], TAGGED, [["B-x", "O"]], [["B-x", "B-new"]])
        assert (found["precision"], found["recall"]) == (1.0, 0.5)
        assert found["per_type"]["new"]["support"] == 1

    def test_rows_without_entities_score_nothing(self):
        found = compute(["entity_f1"], TAGGED, [["O"], []], [["O"], []])
        assert found == {"entity_f1": 0.0, "precision": 0.0, "recall": 0.0, "per_type": {}}


LABELS = st.sampled_from(["a", "b", "c", "never seen"])
PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=12)


class TestClassification:
    @pytest.mark.filterwarnings("ignore:A single label was found")
    @given(PAIRS)
    def test_single_labels_equal_scikit_learn(self, pairs):
        predictions, references = map(list, zip(*pairs, strict=True))
        names = ["accuracy", "f1_macro", "f1_micro", "mcc"]
        found = compute(names, SINGLE, predictions, references)
        with warnings.catch_warnings():  # one class only
            warnings.simplefilter("ignore")
            expected = {
                "accuracy": sklearn_metrics.accuracy_score(references, predictions),
                "mcc": sklearn_metrics.matthews_corrcoef(references, predictions),
            }
            for average in ("macro", "micro"):
                expected[f"f1_{average}"] = sklearn_metrics.f1_score(
                    references, predictions, average=average
                )
        assert found == pytest.approx(expected)

    @given(st.lists(st.tuples(st.sets(LABELS), st.sets(LABELS)), min_size=1, max_size=8))
    def test_several_labels_equal_scikit_learn(self, pairs):
        predictions, references = (list(map(sorted, side)) for side in zip(*pairs, strict=True))
        found = compute(["f1_micro", "f1_macro"], MULTI, predictions, references)
        labels = sorted(set().union(*(one | other for one, other in pairs)))
        if not labels:
            assert found == {"f1_micro": 1.0, "f1_macro": 1.0}
            return
        binary = MultiLabelBinarizer(classes=labels)
        wanted, given = binary.fit_transform(references), binary.fit_transform(predictions)
        for average in ("micro", "macro"):
            value = sklearn_metrics.f1_score(wanted, given, average=average, zero_division=0)
            assert found[f"f1_{average}"] == pytest.approx(value)

    def test_a_label_never_seen_in_training_is_wrong_and_nothing_more(self):
        found = compute(["accuracy", "f1_micro"], SINGLE, ["a", "b"], ["a", "new"])
        assert found == {"accuracy": 0.5, "f1_micro": 0.5}

    @given(st.lists(st.tuples(*[st.sampled_from("abcd")] * 2), min_size=1, max_size=12))
    def test_of_labels_in_order_equal_scikit_learn(self, pairs):
        predictions, references = map(list, zip(*pairs, strict=True))
        ranks, true = (["abcd".index(x) for x in side] for side in (predictions, references))
        scores = compute(["mae", "quadratic_kappa"], ORDERED, predictions, references)
        assert scores["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(true, ranks))
        kappa: float = 0.0
        if len({*ranks, *true}) > 1:
            options = {"labels": [0, 1, 2, 3], "weights": "quadratic"}
            kappa = sklearn_metrics.cohen_kappa_score(true, ranks, **options)
        assert scores["quadratic_kappa"] == pytest.approx(kappa)

    def test_a_label_in_order_that_is_not_known_is_as_far_as_can_be(self):
        assert compute(["mae"], ORDERED, ["a", "d", "c"], ["a", "new", "new"]) == {"mae": 5 / 3}

    def test_token_accuracy_counts_words_of_all_rows(self):
        found = compute(["token_accuracy"], PLAIN, [["N", "V", "V"], ["N"]], [["N"] * 3, ["N"]])
        assert found == {"token_accuracy": 0.5}


NUMBERS = st.floats(-100, 100, width=32)


class TestNumbers:
    @given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
    def test_correlations_equal_scipy_and_errors_scikit_learn(self, pairs):
        predictions, references = map(list, zip(*pairs, strict=True))
        found = compute(["pearson", "spearman", "mse"], NUMBER, predictions, references)
        assert found["mse"] == pytest.approx(
            sklearn_metrics.mean_squared_error(references, predictions)
        )
        if len(set(predictions)) < 2 or len(set(references)) < 2:
            assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
            return
        with warnings.catch_warnings():  # nearly constant
            warnings.simplefilter("ignore")
            expected = {
                "pearson": stats.pearsonr(predictions, references).statistic,
                "spearman": stats.spearmanr(predictions, references).statistic,
            }
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, nan_ok=True)

    def test_a_constant_has_no_correlation(self):
        found = compute(["pearson", "spearman"], NUMBER, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
        assert found == {"pearson": 0.0, "spearman": 0.0}

    def test_one_row_has_no_correlation(self):
        assert compute(["pearson", "mse"], NUMBER, [1.0], [3.0]) == {"pearson": 0.0, "mse": 4.0}


class TestChoice:
    @pytest.mark.parametrize(
        ("config", "fitting", "usual"),
        [
            (SINGLE, "accuracy f1_macro f1_micro mcc", "accuracy f1_macro"),
            (MULTI, "f1_micro f1_macro", "f1_micro f1_macro"),
            (
                ORDERED,
                "quadratic_kappa mae accuracy f1_macro f1_micro mcc",
                "quadratic_kappa mae accuracy",
            ),
            (NUMBER, "pearson spearman mse", "pearson spearman mse"),
            (TAGGED, "entity_f1 token_accuracy", "entity_f1"),
            (PLAIN, "token_accuracy", "token_accuracy"),
            (NEAR, "spearman pearson", "spearman pearson"),
            (GROUPS, "accuracy", "accuracy"),
            (WORDS, "token_accuracy perplexity", "token_accuracy perplexity"),
        ],
    )
    def test_a_task_has_its_metrics(self, config, fitting, usual):
        kind = kind_of(config)
        assert kind.metrics == tuple(fitting.split())
        assert kind.default_metrics == tuple(usual.split())

    @pytest.mark.parametrize("name", METRICS)
    def test_a_metric_stands_under_its_name_and_tells_what_it_is(self, name):
        metric = METRICS[name]()
        numbers = ["pearson", "spearman", "mse"]
        words = ["accuracy", "mcc", "mae", "quadratic_kappa", "hierarchical_f1"]
        values = [1.0, 2.0] if name in numbers else ["1", "2"] if name in words else [["a"], ["b"]]
        assert name in metric.compute(predictions=values, references=values)
        assert metric.description

    @pytest.mark.parametrize(
        ("names", "main"),
        [
            (["accuracy", "f1_macro"], "accuracy"),
            (["mse", "spearman"], "spearman"),
            (["mse"], "mse"),
        ],
    )
    def test_the_first_for_which_more_is_better_stands_for_the_task(self, names, main):
        assert main_metric(names) == main

    def test_the_macro_score_is_the_mean_of_the_tasks(self):
        scores = {
            "a": {"accuracy": 0.5, "f1_macro": 0.0},
            "b": {"mse": 7.0, "pearson": 0.25},
            "c": {"entity_f1": 0.75, "precision": 0.0, "per_type": {}},
        }
        assert macro(scores) == 0.5


class TestScore:
    """Predictions of a split to metrics, against the raw rows."""

    @pytest.fixture
    def split(self, tmp_path, tokenizer_of):
        def make(lines, train=None, **options):
            files = {
                "train": str(write_rows(tmp_path / "train.jsonl", train or lines)),
                "test": str(write_rows(tmp_path / "test.jsonl", lines)),
            }
            options = {"text": "text", "label": "label", **options}
            (source,) = sources_of(one=task(data_files=files, **options))
            rows = tokenize(source, "test", tokenizer_of("wordpiece"), longest_first=True)
            return EvalSplit(source, "test", rows)

        return make

    def score(self, part, values):
        """Scores of values given in the order of the raw rows."""
        values = np.array([values[row] for row in part.rows["row"]], dtype=np.float32)
        return score("one", part.source.configs["one"], part, values)

    def test_an_unknown_class_is_wrong_and_a_missing_one_left_out(self, split):
        lines = [{"text": "a " * n, "label": x} for n, x in [(1, "a"), (3, "new"), (2, None)]]
        train = [{"text": "x", "label": x} for x in "ab"]
        part = split(lines, train, **SEQUENCE, metrics=["accuracy"])
        assert self.score(part, [[1, 0], [0, 1], [0, 1]]) == {"accuracy": 0.5}

    def test_a_missing_number_is_left_out_and_the_others_are_scaled(self, split):
        numbers = [0, 4, None, float("nan"), 2]
        lines = [{"text": "a " * n, "label": x} for n, x in enumerate(numbers, start=1)]
        options = {"problem_type": "regression", "label_range": (0.0, 4.0), "metrics": ["mse"]}
        part = split(lines, **SEQUENCE, **options)
        found = self.score(part, [[0.0], [1.0], [9.0], [9.0], [1.0]])
        assert found == {"mse": pytest.approx(0.25 / 3)}

    def test_labels_above_the_threshold_are_set(self, split):
        lines = [{"text": "a", "label": ["a", "b"]}, {"text": "b b", "label": []}]
        options = {"problem_type": "multi_label_classification", "threshold": 0.9}
        part = split(lines, **SEQUENCE, **options, metrics=["f1_micro"])
        assert self.score(part, [[3, 2], [1, -1]]) == {"f1_micro": pytest.approx(2 / 3)}

    def test_scored_pairs_are_compared_by_cosine(self, split):
        lines = [{"text": "a", "more": "b", "label": x} for x in (0.0, 0.5, 1.0)]
        part = split(lines, head="embedding", text_pair="more")
        groups = [[[1, 0], [-1, 0]], [[1, 0], [0, 2]], [[1, 1], [1, 1]]]
        assert self.score(part, groups) == {
            "spearman": pytest.approx(1),
            "pearson": pytest.approx(1),
        }

    def test_pairs_without_scores_are_found_among_all_texts(self, split):
        lines = [{"text": "a", "more": "b"}] * 3
        part = split(lines, head="embedding", text_pair="more", loss="contrastive", label=None)
        groups = [[[1, 0], [1, 0]], [[0, 1], [0, 1]], [[0.9, 0.1], [0, 1]]]
        assert self.score(part, groups) == {"accuracy": pytest.approx(2 / 3)}

    def test_masked_tokens_are_counted_over_all_rows(self, split):
        part = split([{"text": "a"}] * 3, head="masked_lm", label=None)
        scores = self.score(part, [[1, 2, 3], [0, 0, 0], [2, 4, 1.5]])
        assert scores == {"token_accuracy": 0.5, "perplexity": pytest.approx(math.exp(0.75))}

    def test_words_of_several_windows_are_put_together(self, split, tokenizer_of):
        words = ["Paris" if i % 7 == 0 else "now" for i in range(90)]
        tags = ["B-city" if word == "Paris" else "O" for word in words]
        lines = [
            {"tokens": ["Paris"], "label": ["B-city"]},
            {"tokens": words, "label": tags},
            {"tokens": [], "label": []},
        ]
        part = split(lines, head="token_classification", text=None, tokens="tokens")
        assert len(part.rows) > 3
        width = max(len(texts[0]) for texts in part.rows["input_ids"])
        values = torch.zeros(len(part.rows), width, 3)
        labels = part.source.configs["one"].labels
        assert labels == ["O", "B-city"]
        values = values[..., :2]
        paris = tokenizer_of("wordpiece")("Paris", add_special_tokens=False)["input_ids"][0]
        for number, texts in enumerate(part.rows["input_ids"]):
            for place, token in enumerate(texts[0]):
                values[number, place, int(token == paris)] = 5
        found = score("one", part.source.configs["one"], part, values.numpy())
        assert found["entity_f1"] == 1.0
        assert found["per_type"]["city"]["support"] == tags.count("B-city") + 1

    def test_scores_can_be_written_as_json(self, split):
        lines = [{"tokens": ["a", "b"], "label": ["B-x", "O"]}]
        part = split(lines, head="token_classification", text=None, tokens="tokens")
        found = self.score(part, np.zeros((1, 4, 2)))
        assert json.loads(json.dumps(found)) == found
