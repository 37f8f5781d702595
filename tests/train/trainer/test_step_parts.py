"""The parts of an optimizer step, each alone: counts, losses, gradients on shared weights."""

import math

import pytest
import torch
from polyhead.train.balancing.task_gradients import shared_parameters, task_gradients
from polyhead.train.batches.collator import model_inputs
from polyhead.train.errors import UserError
from polyhead.train.recipe.sections import Balancing, MultiTaskArguments, Retain
from polyhead.train.trainer.meters import GroupSizes, TaskCounters
from polyhead.train.trainer.nan_losses import NanLosses
from polyhead.train.trainer.step_counts import StepCounts
from torch.testing import assert_close
from train_helpers import private_cache, task  # noqa: F401

NAMES = ["intent", "near", "same", "slots", "topics", "urgency"]


@pytest.fixture
def batches_of(build):
    """(trainer, batches of its first rows of each source)."""

    def make(size=4, **options):
        trainer = build(**options)
        rows = trainer.train_dataset
        firsts = [part.start for part in rows.ranges.values()]
        groups = [[rows[first + n] for n in range(size)] for first in firsts]
        return trainer, [trainer.data_collator(group) for group in groups]

    return make


class TestStepCounter:
    def test_units_rows_and_tokens_of_all_micro_batches(self, batches_of):
        trainer, batches = batches_of()
        counter = trainer.optimizer_step.counter
        counts = counter.count(batches)
        words = sum((batch["labels"]["slots"] != -100).sum() for batch in batches[:1])
        expected = {**dict.fromkeys(NAMES, 4.0), "slots": float(words)}
        assert {name: count.item() for name, count in counts.num_items.items()} == expected
        assert counts.present == NAMES
        assert (counts.idle, counts.retained) == ([], 0.0)
        assert counter.counters.seen[:, 0].tolist() == [4.0] * 6
        counter.count(batches[:1])
        assert counter.counters.seen[:, 0].tolist() == [8.0, 4.0, 4.0, 8.0, 8.0, 8.0]

    def test_tasks_without_rows_idle(self, batches_of):
        trainer, batches = batches_of()
        counts = trainer.optimizer_step.counter.count(batches[:1])
        assert counts.idle == ["near", "same"]
        assert counts.present == ["intent", "slots", "topics", "urgency"]

    def test_retained_texts(self, batches_of):
        multitask = MultiTaskArguments(balancing=Balancing(method="none"), retain=Retain())
        trainer, batches = batches_of(multitask=multitask)
        numbers = trainer.optimizer_step.retention.numbers
        counts = trainer.optimizer_step.counter.count(batches)
        assert counts.retained == sum(numbers.count_in(batch) for batch in batches) > 0

    def test_nothing_is_present_at_first(self):
        assert StepCounts().present == []


class TestTaskLosses:
    def test_they_are_the_models_over_the_units_of_the_step(self, batches_of):
        trainer, batches = batches_of()
        step, model = trainer.optimizer_step, trainer.model.train()
        num_items = step.begin(batches, 0, 0.0)
        expected = {}
        for batch in batches:
            outputs = model(**model_inputs(batch), num_items=num_items)
            losses = step.losses.take(outputs, batch)
            assert_close(losses, outputs.losses, rtol=0, atol=0)
            for name, loss in losses.items():
                expected[name] = expected.get(name, 0.0) + loss.item()
        assert sorted(expected) == NAMES
        assert step.losses.of_step(batches) == pytest.approx(expected, rel=1e-5)

    def test_losses_that_compare_texts_count_their_groups(self, build, data):
        alike = task(
            "embedding",
            loss="contrastive",
            data_files=data("pairs"),
            text="text1",
            text_pair="text2",
        )
        trainer = build({"alike": alike}, size=6, max_steps=2)
        losses = trainer.optimizer_step.losses
        assert losses.in_batch == {"alike"}
        assert losses.groups_compared("alike", torch.tensor(6)).item() == 6
        trainer.train()
        assert trainer.groups_compared() == {"alike": 6}


class TestNanLosses:
    BATCH = {"rows": torch.tensor([7, 3, 5]), "sources": torch.tensor([0, 1, 0])}
    LOSSES = {"one": torch.tensor(1.0), "two": torch.tensor(math.nan), "three": torch.tensor(2.0)}

    def make(self, policy):
        sources = {"one+two": ["one", "two"], "three": ["three"]}
        return NanLosses(policy, TaskCounters(["one", "three", "two"]), sources)

    def test_stop_names_task_step_and_rows(self):
        with pytest.raises(UserError) as error:
            self.make("stop").finite(self.LOSSES, self.BATCH, 4, 1.5)
        assert (
            "the loss of task two is nan in step 5 (epoch 1.50); its rows of train there: 7, 5. "
            "Look at these rows, lower training.learning_rate, or write nan_loss: skip"
        ) in str(error.value)

    def test_skip_leaves_it_out_and_counts_it(self):
        losses = self.make("skip")
        assert sorted(losses.finite(self.LOSSES, self.BATCH, 0, 0.0)) == ["one", "three"]
        assert losses.counters.skipped == {"one": 0, "three": 0, "two": 1}

    def test_many_rows_are_not_all_shown(self):
        batch = {"rows": torch.arange(23), "sources": torch.ones(23, dtype=torch.long)}
        losses = {"three": torch.tensor(math.inf)}
        with pytest.raises(UserError, match="17, 18, 19 and 3 more"):
            self.make("stop").finite(losses, batch, 0, 0.0)


class TestSharedGradients:
    def test_the_shared_weights_get_what_the_balancer_makes_of_them(self, batches_of):
        balancing = Balancing(method="pcgrad", gradient_steps=1)
        trainer, batches = batches_of(multitask=MultiTaskArguments(balancing=balancing))
        step, model = trainer.optimizer_step, trainer.model.train()
        num_items = step.begin(batches[:1], 0, 0.0)
        present = ["intent", "slots", "topics", "urgency"]
        outputs = model(**model_inputs(batches[0]), num_items=num_items)
        losses = {name: 2.0 * loss for name, loss in outputs.losses.items()}
        weights = shared_parameters(model)
        gradients = task_gradients([losses[name] for name in present], weights)
        step.shared.add(losses)
        step.shared.end(0, present)
        assert_close(step.shared.total, gradients)
        expected = step.balancer.combine(gradients, present, 0)
        assert_close(torch.cat([weight.grad.flatten() for weight in weights]), expected)
        step.shared.clear()
        assert step.shared.total is None

    def test_nothing_is_gathered_for_methods_over_losses(self, batches_of):
        trainer, batches = batches_of(
            multitask=MultiTaskArguments(balancing=Balancing(method="none", gradient_steps=0))
        )
        step, model = trainer.optimizer_step, trainer.model.train()
        num_items = step.begin(batches[:1], 0, 0.0)
        outputs = model(**model_inputs(batches[0]), num_items=num_items)
        step.shared.add(dict(outputs.losses))
        step.shared.end(0, ["intent"])
        assert step.shared.total is None
        assert all(weight.grad is None for weight in model.parameters())


def test_groups_are_counted_where_there_were_any():
    sizes = GroupSizes()
    for groups in (4, 0, 7):
        sizes.add("near", torch.tensor(groups))
    sizes.add("far", torch.tensor(0))
    assert sizes.means() == {"near": 6}  # of 5.5
