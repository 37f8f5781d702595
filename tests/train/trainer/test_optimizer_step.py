"""An optimizer step over several tasks: balancing, comparing, losses that are not finite."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from polyhead.train.balancing.methods import METHODS
from polyhead.train.balancing.task_gradients import (
    GradientComparison,
    StepGradients,
    cosines,
    shared_parameters,
    task_gradients,
)
from polyhead.train.batches.collator import model_inputs
from polyhead.train.errors import UserError
from polyhead.train.recipe.sections import Balancing, MultiTaskArguments, Sampling, Stopping
from polyhead.train.trainer.callbacks import TaskStopping
from torch.testing import assert_close
from train_helpers import private_cache  # noqa: F401
from trainer_fixtures import history, logged, weights

NAMES = ["intent", "near", "same", "slots", "topics", "urgency"]


def some(names, *quick):
    """All of the names; those that are not quick, or alike, in the slow tests."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in names if name not in quick]
    return [*quick, *slow]


def balanced(method, **options):
    return MultiTaskArguments(balancing=Balancing(method=method, **options))


def gradients_of(trainer):
    """The tasks' gradients on the shared weights over the whole train set, dropout off."""
    rows = [trainer.train_dataset[number] for number in range(len(trainer.train_dataset))]
    losses = trainer.model.eval()(**model_inputs(trainer.evaluation.collator(rows))).losses
    tasks = trainer.model.config.tasks
    scaled = [tasks[name].loss_weight * losses[name] for name in NAMES]
    return task_gradients(scaled, shared_parameters(trainer.model))


class TestBalancing:
    @pytest.mark.parametrize("method", some(METHODS, "gradnorm", "pcgrad", "uncertainty"))
    def test_accumulation_changes_neither_weights_nor_what_is_logged(self, build, method):
        results = []
        for size, accumulation in ((12, 1), (3, 4)):
            trainer = build(size=size, accumulation=accumulation, multitask=balanced(method))
            trainer.train()
            assert all(value.isfinite().all() for value in weights(trainer).values())
            results.append((weights(trainer), logged(trainer, "weight_")))
        assert_close(results[1][0], results[0][0], rtol=0, atol=2e-5)
        assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-4)

    def test_the_gradients_of_the_step_are_combined_and_heads_keep_their_own(self, build):
        step = {"size": 64, "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 0.0}
        trainer = build(multitask=balanced("mgda"), **step)
        plain = build(**step)
        gradients = gradients_of(trainer)
        before = [p.detach().clone() for p in shared_parameters(trainer.model)]
        expected = trainer.optimizer_step.balancer.combine(gradients, NAMES, 0)
        trainer.train()
        plain.train()
        moved = [b - p for b, p in zip(before, shared_parameters(trainer.model), strict=True)]
        assert_close(torch.cat([m.flatten() for m in moved]), expected, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(expected, gradients.sum(0), rtol=0.1)
        heads = [{k: v for k, v in weights(t).items() if "heads." in k} for t in (trainer, plain)]
        assert_close(heads[0], heads[1], rtol=0, atol=1e-5)

    def test_geometric_weights_are_of_the_losses_of_the_step(self, build):
        trainer = build(size=9, accumulation=4, max_steps=1, multitask=balanced("geometric"))
        trainer.train()
        (losses,), (logged_weights,) = logged(trainer, "loss_"), logged(trainer, "weight_")
        values = {name: losses[f"loss_{name}"] for name in NAMES}
        mean = torch.tensor(list(values.values())).log().mean().exp().item()
        expected = {f"weight_{name}": mean / value for name, value in values.items()}
        assert logged_weights == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize("method", some(["dwa", "famo", "gradnorm", "uncertainty"], "gradnorm"))
    def test_what_has_been_learned_is_resumed(self, build, method):
        options = {
            "multitask": balanced(method),
            "dropout": 0.1,
            "size": 8,
            "max_steps": 9,
            "save_strategy": "steps",
            "save_steps": 4,
        }
        whole = build(output="whole", **options)
        whole.train()
        again = build(output="again", **options)
        again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
        assert weights(again).keys() == weights(whole).keys()
        assert all(v.equal(weights(whole)[n]) for n, v in weights(again).items())
        assert logged(again, "weight_") == logged(whole, "weight_")
        counts = [t.optimizer_step.counters.state_dict() for t in (again, whole)]
        assert counts[0] == counts[1]
        learned = [t.optimizer_step.balancer.state_dict() for t in (again, whole)]
        assert learned[0] == learned[1]


class TestComparison:
    def test_norms_and_cosines_are_those_of_the_tasks_gradients(self, build):
        multitask = balanced("none", gradient_steps=2)
        trainer = build(size=64, max_steps=3, learning_rate=0.0, multitask=multitask)
        gradients = gradients_of(trainer)
        trainer.train()
        norms, angles = logged(trainer, "grad_norm_"), logged(trainer, "cosine_")
        expected = dict(zip(NAMES, gradients.norm(dim=1).tolist(), strict=True))
        assert len(norms) == len(angles) == 2
        assert norms[0] == pytest.approx({f"grad_norm_{n}": v for n, v in expected.items()}, 1e-3)
        assert len(angles[0]) == 15
        matrix = cosines(gradients)
        for i, one in enumerate(NAMES):
            for j in range(i + 1, len(NAMES)):
                cosine = angles[1][f"cosine_{one}-{NAMES[j]}"]
                assert cosine == pytest.approx(float(matrix[i, j]), abs=1e-3)

    def test_halves_are_those_of_a_tasks_own_rows(self, build):
        multitask = balanced("none", gradient_steps=1)
        trainer = build(size=64, max_steps=6, learning_rate=0.0, multitask=multitask)
        parameters, wanted = shared_parameters(trainer.model), {}
        for epoch, name in enumerate(NAMES):
            if name == "slots":  # half of the tokens, which need not be half of the texts
                continue
            trainer.sampler.set_epoch(epoch)
            (rows,) = trainer.sampler
            batch = trainer.data_collator(trainer.train_dataset.__getitems__(rows))
            labels, halves = batch["labels"][name], []
            rows = (labels != -100).view(len(labels), -1).all(1).nonzero().flatten()
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                part = torch.full_like(labels, float("nan") if labels.is_floating_point() else -100)
                part[half] = labels[half]
                inputs = {**model_inputs(batch), "labels": {name: part}}
                loss = trainer.model(**inputs).losses[name]
                halves.append(task_gradients([loss], parameters)[0])
            wanted[f"halves_{name}"] = float(cosines(halves)[0, 1])
        trainer.sampler.set_epoch(0)
        trainer.train()
        seen = {key: value for line in logged(trainer, "halves_") for key, value in line.items()}
        assert set(seen) == {f"halves_{name}" for name in NAMES}
        assert {n: seen[n] for n in wanted} == pytest.approx(wanted, abs=2e-3)

    def test_a_sketch_keeps_norms_and_cosines(self):
        torch.manual_seed(0)
        sizes = [(300, 70), (1,), (70, 300), (999,)]  # 43,000 weights
        weights_ = [torch.zeros(size, requires_grad=True) for size in sizes]
        ways = [[torch.randn(size) for size in sizes] for _ in range(2)]
        middle = [one + another for one, another in zip(*ways, strict=True)]
        middle[1] = middle[2] = None  # that loss does not depend on two of the weights
        losses = {
            name: sum((w * g).sum() for w, g in zip(weights_, way, strict=True) if g is not None)
            for name, way in {"a": ways[0], "b": ways[1], "c": middle}.items()
        }
        names, width = [*losses, "absent"], 9973
        whole, sketch = StepGradients(names, weights_), StepGradients(names, weights_, width)
        unfolded = StepGradients(names, weights_, 43_000)
        for gradients in (whole, sketch, unfolded):
            gradients.add(losses)
            gradients.add({"a": losses["a"]})
        assert sketch.total.shape == (4, width)
        assert unfolded.total.equal(whole.total)
        assert whole.total[0].equal(torch.cat([2 * part.flatten() for part in ways[0]]))
        assert whole.total[1].equal(torch.cat([part.flatten() for part in ways[1]]))
        assert not whole.total[3].any()
        assert whole.total[:3].equal(
            task_gradients([2 * losses["a"], losses["b"], losses["c"]], weights_)
        )
        assert_close(sketch.total.norm(dim=1), whole.total.norm(dim=1), rtol=0.04, atol=0)
        sketched, expected = cosines(sketch.total[:3]), cosines(whole.total[:3])
        assert_close(sketched, expected, rtol=0, atol=0.04)  # 4 / sqrt(width)
        assert abs(expected[0, 1]) < 0.04 < 0.4 < expected[0, 2]

    def test_a_sketch_adds_up_over_micro_batches(self):
        torch.manual_seed(0)
        weight = torch.zeros(1000, requires_grad=True)
        one, another = torch.randn(1000), torch.randn(1000)
        apart, together = (StepGradients(["a"], [weight], 101) for _ in range(2))
        apart.add({"a": (weight * one).sum()})
        apart.add({"a": (weight * another).sum()})
        together.add({"a": (weight * (one + another)).sum()})
        assert_close(apart.total, together.total)

    def test_comparing_changes_no_weight(self, build):
        results = []
        for every in (0, 1):
            multitask = balanced("none", gradient_steps=every)
            trainer = build(size=4, accumulation=3, dropout=0.1, multitask=multitask)
            trainer.train()
            results.append(weights(trainer))
        assert all(value.equal(results[0][name]) for name, value in results[1].items())

    def test_pure_batches_are_compared_over_the_steps_of_an_epoch(self, build):
        multitask = MultiTaskArguments(
            sampling=Sampling(batches="pure"), balancing=Balancing(gradient_steps=6)
        )
        trainer = build(size=6, max_steps=6, learning_rate=0.0, multitask=multitask)
        gradients = gradients_of(trainer)
        trainer.train()
        lines = logged(trainer, "cosine_")
        assert [len(line) for line in lines] == [15]
        assert lines[0].keys() == {f"cosine_{a}-{b}" for a in NAMES for b in NAMES if a < b}
        assert gradients.isfinite().all()

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
    def test_a_compiled_model_trains_as_another_and_is_not_compared(self, build):
        results = []
        for compiled in (False, True):
            options = {"max_steps": 2, "torch_compile": compiled, "learning_rate": 0.01}
            trainer = build(output=str(compiled), multitask=balanced("none"), **options)
            trainer.train()
            results.append(weights(trainer))
        assert_close(results[1], results[0], rtol=0, atol=2e-5)
        assert trainer.optimizer_step.shared.comparison.every == 0

    @pytest.mark.parametrize(("method", "steps"), [("none", 8), ("gradnorm", None), ("mgda", 0)])
    def test_gradients_by_task_are_refused_for_a_compiled_model(self, build, method, steps):
        with pytest.raises(ValueError, match="torch_compile does not go with gradients by task"):
            build(multitask=balanced(method, gradient_steps=steps), torch_compile=True)

    def test_gradients_of_other_weights_are_not_compared(self):
        comparison = GradientComparison(8, ["a", "b"])
        one, more = (
            [torch.zeros(n, requires_grad=True) for n in sizes] for sizes in ((3,), (3, 4))
        )
        assert comparison.is_due(0, ["a"])
        for name, weights_ in (("a", one), ("b", more), ("a", more)):
            assert comparison.log() == {}
            assert comparison.is_due(1, [name])
            gradients = StepGradients([name], weights_)
            gradients.add({name: torch.cat(weights_).sum()})
            comparison.take(gradients)
        assert comparison.log()["cosine_a-b"] == pytest.approx(1.0)
        assert not comparison.is_due(2, ["a", "b"])

    def test_the_usual_distance_is_48_steps_for_each_task(self, build):
        assert build().optimizer_step.shared.comparison.every == 48 * len(NAMES)


class TestAccounts:
    def test_rows_and_tokens_seen_are_those_drawn(self, build):
        trainer = build(size=6, accumulation=2, max_steps=-1, num_train_epochs=2)
        trainer.train()
        last = logged(trainer, "rows_")[-1]
        assert last == {f"rows_{name}": 24.0 for name in NAMES}
        tokens = logged(trainer, "tokens_")[-1]
        dataset = trainer.train_dataset
        for source, tasks_ in trainer.sources.items():
            part = dataset.parts[source][:]["input_ids"]
            expected = 2 * sum(len(text) for row in part for text in row)
            assert {tokens[f"tokens_{name}"] for name in tasks_} == {expected}


class TestNotFinite:
    def poisoned(self, build, nan_loss, **options):
        """A trainer whose `urgency` head gives NaN."""
        multitask = MultiTaskArguments(nan_loss=nan_loss)
        trainer = build(multitask=multitask, size=8, **options)
        with torch.no_grad():
            trainer.model.heads["urgency"].out.bias.fill_(float("nan"))
        return trainer

    def test_training_stops_and_names_task_step_and_rows(self, build):
        trainer = self.poisoned(build, "stop")
        before = weights(trainer)
        with pytest.raises(UserError) as error:
            trainer.train()
        (text,) = error.value.faults
        assert text.startswith("the loss of task urgency is nan in step 1 (epoch 0.00); its rows")
        rows = text.split("there: ")[1].split(". Look")[0].split(", ")
        step = next(iter(trainer.sampler))
        numbers = trainer.sampler.ranges["intent+slots+topics+urgency"]
        assert sorted(map(int, rows)) == sorted(r - numbers.start for r in step if r in numbers)
        after = weights(trainer)
        assert all(v.equal(before[n]) for n, v in after.items() if "urgency" not in n)

    def test_skipping_counts_and_the_other_tasks_train_on(self, build):
        trainer = self.poisoned(build, "skip")
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        assert logged(trainer, "skipped_")[-1] == {"skipped_urgency": 3}
        assert all(value.isfinite().all() for n, value in after.items() if "urgency" not in n)
        moved = {n for n, v in after.items() if not v.equal(before[n]) and "urgency" not in n}
        assert {"heads.intent.out.weight", "heads.near.projection.weight"} & moved
        assert any(n.startswith("encoder.") for n in moved)
        assert not any("loss_urgency" in line for line in history(trainer))

    def test_a_step_with_nothing_left_changes_nothing(self, build):
        trainer = self.poisoned(build, "skip", max_steps=2)
        with torch.no_grad():
            for weight in trainer.model.encoder.get_input_embeddings().parameters():
                weight.fill_(float("nan"))
        heads = {n: v for n, v in weights(trainer).items() if "heads." in n}
        trainer.train()
        after = weights(trainer)
        assert all(torch.equal(after[n].nan_to_num(), v.nan_to_num()) for n, v in heads.items())


class TestStopping:
    def test_a_task_that_stopped_is_neither_drawn_nor_trained(self, build, monkeypatch):
        multitask = MultiTaskArguments(stopping=Stopping(by="task", patience=1))
        options = {"max_steps": -1, "num_train_epochs": 4, "eval_strategy": "epoch", "size": 9}
        trainer = build(multitask=multitask, evaluates=True, **options)
        scores = iter([{"near": 0.5}, {"near": 0.5}, {"near": 0.9}, {"near": 0.9}])
        rising = iter(range(100))
        stopping = next(
            c for c in trainer.callback_handler.callbacks if isinstance(c, TaskStopping)
        )
        usual = stopping.on_evaluate
        heads = []

        def evaluated(args, state, control, metrics=None, **rest):
            values = {f"eval_{n}_{m}": next(rising) for n, m in stopping.metrics.items()}
            near = next(scores)["near"]
            usual(args, state, control, values | {"eval_near_spearman": near}, **rest)
            heads.append({n: v for n, v in weights(trainer).items()})

        monkeypatch.setattr(stopping, "on_evaluate", evaluated)
        trainer.train()
        assert stopping.stopped == {"near": 2}
        assert [trainer.sampler.draws(epoch)["near"] for epoch in (0, 1)] == [12, 12]
        assert [trainer.sampler.draws(e) for e in (2, 3)] == [
            {"intent+slots+topics+urgency": 12, "same": 12}
        ] * 2
        assert trainer.state.global_step == 16
        rows = [line["rows_near"] for line in history(trainer) if "rows_near" in line]
        assert rows[-1] == 24.0
        weights_of_near = [n for n in heads[0] if n.startswith("heads.near.")]
        assert all(heads[3][name].equal(heads[1][name]) for name in weights_of_near)

    def test_the_run_ends_when_all_tasks_have_stopped(self, build):
        multitask = MultiTaskArguments(stopping=Stopping(by="task", patience=1))
        options = {"max_steps": -1, "num_train_epochs": 9, "eval_strategy": "epoch"}
        trainer = build(multitask=multitask, evaluates=True, learning_rate=0.0, **options)
        trainer.train()
        assert trainer.state.epoch == 2.0

    def test_a_step_shorter_than_the_others_is_refused(self, build):
        multitask = MultiTaskArguments(stopping=Stopping(by="task", patience=1))
        with pytest.raises(ValueError, match="stopping by task: some optimizer step has fewer"):
            build(multitask=multitask, evaluates=True, size=1, accumulation=7)

    def test_where_each_task_stands_is_kept_in_a_checkpoint(self, build, tmp_path):
        multitask = MultiTaskArguments(stopping=Stopping(by="task", patience=2))
        options = {
            "multitask": multitask,
            "evaluates": True,
            "dropout": 0.1,
            "max_steps": -1,
            "num_train_epochs": 5,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "size": 9,
        }
        whole = build(output="whole", **options)
        whole.train()
        folder = f"{whole.args.output_dir}/checkpoint-12"
        with open(f"{folder}/trainer_state.json") as file:
            saved = json.load(file)["stateful_callbacks"]["TaskStopping"]["attributes"]
        assert sorted(saved["waited"]) == NAMES
        again = build(output="again", **options)
        again.train(resume_from_checkpoint=folder)
        assert all(v.equal(weights(whole)[n]) for n, v in weights(again).items())


def test_the_order_of_tasks_changes_no_weight(build, usual_tasks):
    results = []
    for names in (sorted(usual_tasks), sorted(usual_tasks, reverse=True)):
        chosen = {name: replace(usual_tasks[name]) for name in names}
        trainer = build(chosen, multitask=balanced("pcgrad"))
        trainer.train()
        results.append(weights(trainer))
    assert_close(results[0], results[1], rtol=0, atol=1e-6)
