"""`equal_norms`: the lengths that it reads are those of autograd; its weights make them equal."""

import math

import pytest
import torch
from polyhead.modeling.task_config import TaskConfig
from polyhead.train.balancing.by_loss import EqualNorms
from polyhead.train.balancing.methods import make_balancer, method_of
from polyhead.train.batches.collator import model_inputs
from polyhead.train.recipe.sections import Balancing, MultiTaskArguments, Sampling
from torch.testing import assert_close
from trainer_fixtures import weights


def balancer_of(**loss_weights):
    tasks = {
        name: TaskConfig(head="sequence_classification", labels=["a", "b"], loss_weight=weight)
        for name, weight in loss_weights.items()
    }
    balancer = make_balancer(Balancing(), tasks, dict.fromkeys(tasks, 8), 0)
    assert isinstance(balancer, EqualNorms)
    return balancer


def learn(balancer, step=0, **lengths):
    """Hand over a step in which the gradients of loss_weight x loss have these lengths."""
    rows = torch.tensor(list(lengths.values()), dtype=torch.float64).unsqueeze(1)
    balancer.after_step(step, dict.fromkeys(lengths, 1.0), gradients=rows)


class TestWeights:
    def test_they_make_the_lengths_equal(self):
        balancer = balancer_of(a=1.0, b=1.0, c=1.0)
        assert balancer.weights(0) == {"a": 1.0, "b": 1.0, "c": 1.0}
        learn(balancer, a=1.0, b=2.0, c=6.0)
        assert balancer.weights(1) == pytest.approx({"a": 3.0, "b": 1.5, "c": 0.5})

    def test_loss_weight_comes_on_top(self):
        """Of a task whose loss counts half, the gradient handed in has half its length already."""
        balancer = balancer_of(a=1.0, b=0.5)
        learn(balancer, a=4.0, b=2.0)
        assert balancer.weights(1) == pytest.approx({"a": 1.0, "b": 1.0})

    def test_lengths_are_running_means_and_absent_tasks_keep_theirs(self):
        balancer = balancer_of(a=1.0, b=1.0)
        learn(balancer, a=1.0, b=1.0)
        learn(balancer, 1, a=11.0)
        assert balancer.state["lengths"] == pytest.approx({"a": 2.0, "b": 1.0})
        assert balancer.weights(2) == pytest.approx({"a": 0.75, "b": 1.5})

    def test_what_has_no_length_changes_nothing(self):
        balancer = balancer_of(a=1.0, b=1.0, c=1.0)
        learn(balancer, a=2.0, b=0.0, c=math.inf)
        assert balancer.state["lengths"] == {"a": 2.0}
        assert set(balancer.weights(1).values()) == {1.0}

    def test_weights_are_bounded(self):
        balancer = balancer_of(a=1.0, b=1.0)
        learn(balancer, a=1.0, b=1e-9)
        assert balancer.weights(1) == pytest.approx({"a": 0.5, "b": 100.0})

    def test_the_state_goes_on(self):
        balancer, other = balancer_of(a=1.0, b=1.0), balancer_of(a=1.0, b=1.0)
        learn(balancer, a=1.0, b=3.0)
        other.load_state_dict(balancer.state_dict())
        learn(other, 1, a=2.0, b=2.0)
        learn(balancer, 1, a=2.0, b=2.0)
        assert other.weights(2) == balancer.weights(2)


class TestDefault:
    def test_of_several_tasks(self):
        def method(*loss_weights, plain=False, **options):
            tasks = {
                str(n): TaskConfig(head="embedding", loss_weight=w)
                for n, w in enumerate(loss_weights)
            }
            return method_of(Balancing(**options), tasks, plain=plain)

        assert method(1.0, 1.0) == "equal_norms"
        assert method(1.0) == method(1.0, 0.0) == method(1.0, 1.0, plain=True) == "none"
        assert method(1.0, 1.0, method="none") == "none"


def arguments(**options):
    return MultiTaskArguments(sampling=Sampling(packing=False), **options)


def lengths_by_autograd(trainer, batch):
    """Of each task's loss the length of the gradient on what its head reads."""
    model, found = trainer.model.train(), {}
    for name in model.task_names:
        kept = []
        head = model.heads[name]
        handle = head.register_forward_pre_hook(
            lambda head, inputs, kept=kept: kept.append(inputs[0].view_as(inputs[0])) or (kept[0],)
        )
        losses = model(**model_inputs(batch)).losses
        handle.remove()
        if name in losses:
            found[name] = torch.autograd.grad(losses[name], kept[0])[0].norm().item()
    return found


class TestTraining:
    def test_the_lengths_are_those_of_autograd(self, build):
        trainer = build(size=36, max_steps=1, multitask=arguments(), learning_rate=0.0)
        batch = next(iter(trainer.get_train_dataloader()))
        expected = lengths_by_autograd(trainer, batch)
        trainer.train()
        assert trainer.optimizer_step.balancer.state["lengths"] == pytest.approx(expected, rel=1e-4)

    def test_comparing_gradients_does_not_count(self, build):
        lengths = []
        for gradient_steps in (0, 1):
            multitask = arguments(balancing=Balancing(gradient_steps=gradient_steps))
            trainer = build(size=36, max_steps=2, multitask=multitask)
            trainer.train()
            lengths.append(trainer.optimizer_step.balancer.state["lengths"])
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)

    @pytest.mark.parametrize("accumulation", [2, 4])
    def test_accumulation_changes_nothing(self, build, usual_tasks, accumulation):
        tasks = {name: t for name, t in usual_tasks.items() if name != "near"}
        ends = []
        for size, parts in ((24, 1), (24 // accumulation, accumulation)):
            trainer = build(tasks, size=size, accumulation=parts, multitask=arguments())
            trainer.train()
            ends.append((weights(trainer), trainer.optimizer_step.balancer.state["lengths"]))
        assert_close(ends[0][0], ends[1][0], rtol=0, atol=5e-6)
        assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-3)

    def test_a_resumed_run_ends_with_the_same_weights(self, build):
        options = {"multitask": arguments(), "dropout": 0.1, "size": 8, "max_steps": 6}
        options |= {"save_strategy": "steps", "save_steps": 3}
        whole = build(output="whole", **options)
        whole.train()
        again = build(output="again", **options)
        again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
        assert_close(weights(again), weights(whole), rtol=0, atol=0)

    def test_the_weights_are_logged_and_no_hook_stays(self, build):
        trainer = build(size=12, max_steps=2, multitask=arguments())
        trainer.train()
        line = next(line for line in trainer.state.log_history if "weight_near" in line)
        assert {f"weight_{name}" for name in trainer.optimizer_step.balancer.names} <= set(line)
        assert not any(head._forward_pre_hooks for head in trainer.model.heads.values())

    def test_one_task_is_not_balanced(self, build, usual_tasks):
        trainer = build({"near": usual_tasks["near"]}, multitask=arguments())
        assert trainer.optimizer_step.balancer.options.method == "none"
