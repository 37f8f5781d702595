"""Vectors of the start that texts keep: which, and what the loss is; resumed, accumulated."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from polyhead.modeling.pooling import POOL, Pooling, mean_pooling
from polyhead.train.data.dataset import MultiTaskDataset
from polyhead.train.errors import UserError
from polyhead.train.recipe.retain import retained_sources
from polyhead.train.recipe.sections import (
    Balancing,
    Freeze,
    MultiTaskArguments,
    Retain,
    Sampling,
)
from polyhead.train.trainer.row_targets import RowNumbers, TextNumbers, rows_of_sources
from torch.testing import assert_close
from train_helpers import task
from trainer_fixtures import logged, weights


def retaining(weight=2.0, *, packing=True, freeze=None, method="none", **options):
    return MultiTaskArguments(
        sampling=Sampling(packing=packing),
        freeze=freeze or Freeze(),
        balancing=Balancing(method=method),
        retain=Retain(weight=weight, **options),
    )


def vectors_of(trainer) -> dict[tuple[str, int, int], torch.Tensor]:
    """(source, row, text) -> (D,) of each training text under the model of now, one at a time."""
    model, vectors = trainer.model.eval(), {}
    for name, part in trainer.train_dataset.parts.items():
        for row in part:
            for number, ids in enumerate(row["input_ids"]):
                ids = torch.tensor([ids])
                key = (name, row["row"], number)
                types = torch.tensor([row["token_type_ids"][number]])
                with torch.no_grad():
                    states = model(ids, token_type_ids=types, tasks=()).last_hidden_state
                vectors[key] = states[0].mean(0)
    return vectors


def distance(before, after) -> float:
    return float(
        torch.stack([1 - F.cosine_similarity(before[k], after[k], 0) for k in before]).mean()
    )


class TestLoss:
    @pytest.mark.parametrize("packing", [True, False])
    def test_the_targets_are_the_unit_vectors_of_the_start(self, build, packing):
        trainer = build(multitask=retaining(packing=packing))
        before = vectors_of(trainer)
        trainer.train()
        retention = trainer.optimizer_step.retention
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(36)])
        positions, numbers = retention.numbers.texts_in(batch)
        names = list(trainer.sources)
        keys, at = [], 0
        for source, row in zip(batch["sources"].tolist(), batch["rows"].tolist(), strict=True):
            texts = len(trainer.train_dataset.parts[names[source]][row]["input_ids"])
            keys += [(at + n, (names[source], row, n)) for n in range(texts)]
            at += texts
        expected = dict(keys)
        assert positions.tolist() == list(expected)
        targets = torch.stack([F.normalize(before[key], dim=0) for key in expected.values()])
        assert_close(retention.vectors[numbers].float(), targets, rtol=0, atol=5e-4)

    @pytest.mark.parametrize("packing", [True, False])
    def test_it_is_the_mean_over_the_texts_of_the_step(self, build, packing):
        """With a rate of 0 for the first step it is 0; then that of what has moved."""
        size = {"size": 200, "max_steps": 2, "learning_rate": 0.3}
        trainer = build(multitask=retaining(packing=packing), **size)
        before = vectors_of(trainer)
        assert trainer.sampler.draws(0)
        trainer.train()
        plain = build(multitask=retaining(packing=packing), **{**size, "max_steps": 1})
        plain.train()
        after = vectors_of(plain)
        first, second = logged(trainer, "loss_retain")
        assert first["loss_retain"] == pytest.approx(0, abs=1e-6)
        assert second["loss_retain"] == pytest.approx(distance(before, after), rel=1e-3)
        assert second["loss_retain"] > 1e-3

    def test_its_gradient_comes_on_top_of_the_tasks(self, build):
        """From weights that have moved, one step of SGD with and without it."""
        step = {"size": 200, "max_steps": 2, "learning_rate": 0.3, "max_grad_norm": 0.0}
        moved = {}
        for weight in (2.0, 6.0, 10.0):
            trainer = build(multitask=retaining(weight), **step)
            trainer.train()
            moved[weight] = weights(trainer)["encoder.encoder.layer.1.output.dense.weight"]
        assert_close(moved[6.0] - moved[2.0], moved[10.0] - moved[6.0], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(moved[6.0], moved[2.0], atol=1e-4)

    def test_methods_over_gradients_leave_it_as_it_is(self, build):
        """They set the gradients of the shared weights: it must not be lost."""
        step = {"size": 200, "max_steps": 2, "learning_rate": 0.3, "max_grad_norm": 0.0}
        difference = {}
        for method in ("none", "mgda"):
            ends = []
            for weight in (1e-6, 3.0):
                trainer = build(multitask=retaining(weight, method=method), **step)
                trainer.train()
                ends.append(weights(trainer)["encoder.encoder.layer.1.output.dense.weight"])
            difference[method] = ends[1] - ends[0]
        assert difference["none"].norm() > 1e-3
        assert difference["mgda"].norm() > 1e-4

    @pytest.mark.parametrize("accumulation", [2, 4])
    def test_accumulation_changes_nothing(self, build, accumulation):
        results = []
        for size, parts in ((24, 1), (24 // accumulation, accumulation)):
            trainer = build(size=size, accumulation=parts, multitask=retaining())
            trainer.train()
            results.append((weights(trainer), logged(trainer, "loss_retain")))
        assert_close(results[0][0], results[1][0], rtol=0, atol=2e-6)
        assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)

    def test_it_holds_the_encoder(self, build):
        ends = {}
        for weight in (1e-9, 20.0):
            trainer = build(size=24, max_steps=12, multitask=retaining(weight))
            before = vectors_of(trainer)
            trainer.train()
            ends[weight] = distance(before, vectors_of(trainer))
        assert ends[20.0] < ends[1e-9] / 2

    def test_a_resumed_run_ends_with_the_same_weights(self, build):
        options = {
            "multitask": retaining(),
            "dropout": 0.1,
            "size": 8,
            "max_steps": 6,
            "save_strategy": "steps",
            "save_steps": 3,
        }
        whole = build(output="whole", **options)
        whole.train()
        again = build(output="again", **options)
        again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
        assert_close(weights(again), weights(whole), rtol=0, atol=0)
        other = build(output="other", **{**options, "multitask": retaining(3.0)})
        with pytest.raises(UserError, match=re.escape("retain.weight was 2.0, is 3.0")):
            other.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")


class TestRows:
    def test_long_texts_have_a_vector_of_each_window(self, build, usual_tasks):
        """Windows of a long text are rows of their own, found again by row and window."""
        trainer = build({"slots": usual_tasks["slots"]}, multitask=retaining())
        part = trainer.train_dataset.parts["slots"]
        doubled = part.select([0, 0, 1, 2, 2]).remove_columns("window")
        doubled = doubled.add_column("window", [0, 1, 0, 0, 1])
        dataset = MultiTaskDataset({"slots": doubled})
        rows = RowNumbers(dataset, ["slots"])
        numbers = TextNumbers(rows, rows_of_sources(dataset, ["slots"]))
        batch = trainer.data_collator([dataset[n] for n in (4, 0, 2, 1)])
        assert sorted(rows.rows_of(batch).tolist()) == [0, 1, 2, 4]
        where = {4: (2, 1), 0: (0, 0), 2: (1, 0), 1: (0, 1)}
        found = zip(batch["rows"].tolist(), batch["windows"].tolist(), strict=True)
        assert [where[n] for n in numbers.texts_in(batch)[1].tolist()] == list(found)

    def test_masked_texts_and_those_behind_adapters_are_left_out(self, build, usual_tasks, data):
        words = task("masked_lm", data_files=data("messages"), text="text")
        tasks = {name: usual_tasks[name] for name in ("near", "same")}
        tasks["same"] = replace(tasks["same"], adapter={"r": 2})
        sources = {name: [name] for name in (*tasks, "words")}
        tasks["words"] = words
        assert retained_sources(sources, tasks) == ["near"]

    def test_batches_of_targets_hold_each_row_once_longest_first(self, build):
        trainer = build(multitask=retaining())
        numbers = trainer.optimizer_step.retention.numbers
        batches = numbers.batches(tokens=64)
        lengths = trainer.train_dataset.lengths
        rows = [row for batch in batches for row in batch]
        assert sorted(rows) == list(range(36))
        assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
        tokens = [sum(map(len, trainer.train_dataset[row]["input_ids"])) for row in batches[0]]
        assert sum(tokens) <= 64

    def test_layers_below_the_last_are_read_where_the_pooling_does(
        self, build, usual_tasks, monkeypatch
    ):
        monkeypatch.setitem(POOL, "mean_last_4", Pooling(function=mean_pooling, layers=2))
        deep = {**usual_tasks, "near": replace(usual_tasks["near"], pooling="mean_last_4")}
        trainer = build(deep, max_steps=1, multitask=retaining())
        trainer.train()
        assert trainer.optimizer_step.retention.vectors.shape == (48, 2 * 32)
        assert logged(trainer, "loss_retain")[0]["loss_retain"] == pytest.approx(0, abs=1e-6)


class TestFaults:
    def test_a_loss_that_is_not_finite_stops_or_is_left_out(self, build):
        for nan_loss in ("stop", "skip"):
            multitask = retaining()
            multitask.nan_loss = nan_loss
            trainer = build(multitask=multitask, max_steps=1)
            retention = trainer.optimizer_step.retention
            retention.loss = lambda outputs, batch: outputs.last_hidden_state.sum() * float("nan")
            if nan_loss == "stop":
                with pytest.raises(UserError, match="the loss of retain is nan"):
                    trainer.train()
            else:
                trainer.train()
                assert all(value.isfinite().all() for value in weights(trainer).values())

    def test_an_encoder_that_does_not_train_is_refused(self, build):
        with pytest.raises(ValueError, match="no weight of the encoder trains"):
            build(multitask=retaining(freeze=Freeze(encoder=True)))
