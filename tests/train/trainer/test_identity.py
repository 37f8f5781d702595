"""A run goes on from a checkpoint of its own, and from no other."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from polyhead.train.errors import UserError
from polyhead.train.recipe.sections import MultiTaskArguments, Sampling
from polyhead.train.trainer.identity import check_resume, content_of, weights_digest


@pytest.fixture(scope="module")
def identity() -> dict[str, Any]:
    topic = {"head": "sequence_classification", "labels": ["lager", "zahlung"]}
    data = {"topic train": {"rows": 4, "columns": ["input_ids"], "content": "aa"}}
    decides = {"tasks": {"topic": topic}, "encoder": {"hidden_size": 32}, "data": data}
    decides |= {"adapters": {}, "rows of a step": 8, "training.seed": 42}
    differs = {"training": {"learning_rate": 0.1, "num_train_epochs": 2.0}}
    differs |= {"tasks": {"topic": {"loss_weight": 1.0}}}
    return {"decides": decides, "differs": differs}


@pytest.fixture
def checkpoint(tmp_path, identity) -> Path:
    state = {"stateful_callbacks": {"RunIdentity": {"args": {}, "attributes": identity}}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    return tmp_path


class TestComparing:
    def test_the_same_goes_on_without_a_word(self, checkpoint, identity):
        assert check_resume(checkpoint, identity) == []

    @pytest.mark.parametrize(
        ("keys", "value", "said"),
        [
            (("tasks", "topic", "labels"), ["billing", "lager"],
             "tasks.topic.labels were lager, zahlung, are billing, lager"),
            (("tasks", "topic", "labels"), ["zahlung", "lager"],
             "tasks.topic.labels were lager, zahlung, are zahlung, lager"),
            (("tasks", "more"), {}, "tasks were topic, are more, topic"),
            (("tasks",), {}, "tasks were topic, are none"),
            (("encoder", "hidden_size"), 64, "encoder.hidden_size was 32, is 64"),
            (("adapters", "extra"), {}, "adapters were none, are extra"),
            (("data", "topic train", "rows"), 5, "data.topic train.rows was 4, is 5"),
            (("data", "topic train", "content"), "bb", "data.topic train: rows, or how they are"),
            (("rows of a step",), 16, "rows of a step was 8, is 16"),
            (("training.seed",), 1, "training.seed was 42, is 1"),
        ],
    )  # fmt: skip
    def test_what_decides_is_refused(self, checkpoint, identity, keys, value, said):
        other = copy.deepcopy(identity)
        *parents, last = keys
        group = other["decides"]
        for key in parents:
            group = group[key]
        group[last] = value
        with pytest.raises(UserError) as raised:
            check_resume(checkpoint, other)
        (fault,) = raised.value.faults
        assert fault.startswith(said)
        assert "begin anew, with --overwrite" in fault

    def test_every_difference_is_in_the_message(self, checkpoint, identity):
        other = copy.deepcopy(identity)
        other["decides"]["rows of a step"] = 4
        other["decides"]["tasks"]["topic"]["labels"] = ["x", "y"]
        other["decides"]["encoder"]["hidden_size"] = 16
        with pytest.raises(UserError) as raised:
            check_resume(checkpoint, other)
        assert len(raised.value.faults) == 3

    def test_what_may_differ_is_said(self, checkpoint, identity):
        other = copy.deepcopy(identity)
        other["differs"]["training"] = {"learning_rate": 0.2, "num_train_epochs": 3.0}
        other["differs"]["tasks"]["topic"]["loss_weight"] = 2.0
        assert check_resume(checkpoint, other) == [
            "resumed: training.learning_rate was 0.1, is 0.2",
            "resumed: training.num_train_epochs was 2.0, is 3.0",
            "resumed: tasks.topic.loss_weight was 1.0, is 2.0",
        ]

    def test_of_an_older_checkpoint_the_labels_are_known(self, tmp_path, identity):
        config = {"tasks": {"topic": {"labels": ["lager", "zahlung"]}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert check_resume(tmp_path, identity) == []
        config["tasks"]["topic"]["labels"] = ["a", "b"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"tasks.topic.labels were a, b, are lager, zahlung"):
            check_resume(tmp_path, identity)


class TestHashes:
    ROWS = {
        "ids": [[[1, 2], [3]], [[4]]],
        "label": [1, None],
        "score": [0.5, None],
        "t": ["a", "b"],
    }

    def test_equal_rows_are_equal_however_they_lie(self, tmp_path):
        rows = datasets.Dataset.from_dict(self.ROWS)
        turned = datasets.Dataset.from_dict({k: v[::-1] for k, v in self.ROWS.items()})
        rows.save_to_disk(tmp_path / "rows")
        for same in (datasets.load_from_disk(str(tmp_path / "rows")), turned.select([1, 0])):
            assert content_of(same) == content_of(rows)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("ids", [[[1], [2, 3]], [[4]]]),
            ("ids", [[[1, 2], [3]], [[5]]]),
            ("label", [1, 0]),
            ("label", [None, 1]),
            ("score", [0.5, 0.25]),
            ("t", ["ab", ""]),
        ],
    )
    def test_others_are_others(self, column, value):
        rows, other = (
            datasets.Dataset.from_dict(r) for r in (self.ROWS, {**self.ROWS, column: value})
        )
        assert content_of(rows) != content_of(other)

    def test_weights_are_the_same_wherever_they_lie(self, tmp_path):
        for name, content in (("a", b"x" * 9000), ("b", b"x" * 9000), ("c", b"x" * 8999 + b"y")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(content)
        one, same, other = (weights_digest(tmp_path / name) for name in "abc")
        assert (one == same, one == other) == (True, False)


class TestTraining:
    """Real trainings, and what one may go on from."""

    def test_other_labels_batches_and_orders_are_refused(self, build, usual_tasks):
        intent = {"intent": usual_tasks["intent"]}
        saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
        first = build(intent, **saved)
        first.train()
        folder = f"{first.args.output_dir}/checkpoint-1"
        assert check_resume(folder, build(intent, **saved).identity) == []
        again = build(intent, **{**saved, "learning_rate": 0.1, "max_steps": 2})
        assert check_resume(folder, again.identity) == [
            "resumed: training.learning_rate was 0.05, is 0.1",
            "resumed: training.max_steps was 1, is 2",
        ]
        turned = replace(usual_tasks["intent"], labels=["play", "cancel", "book"])
        uniform = MultiTaskArguments(sampling=Sampling(strategy="uniform"))
        for other, said in (
            (
                build({"intent": turned}, **saved),
                "tasks.intent.labels were book, cancel, play, are",
            ),
            (build(intent, size=6, **saved), "rows of a step was 12, is 6"),
            (build(intent, seed=7, **saved), "training.seed was 42, is 7"),
            (build(intent, optim="adamw_torch", **saved), "training.optim was sgd, is adamw_torch"),
            (build(intent, multitask=uniform, **saved), "sampling.strategy was proportional, is"),
            (build({"topics": usual_tasks["topics"]}, **saved), "tasks were intent, are topics"),
        ):
            with pytest.raises(UserError, match=said):
                other.train(resume_from_checkpoint=folder)

    def test_ranks_and_accumulation_may_change_where_the_step_does_not(self, build, usual_tasks):
        intent = {"intent": usual_tasks["intent"]}
        one, other = build(intent, size=12), build(intent, size=6, accumulation=2)
        assert one.identity["decides"] == other.identity["decides"]
