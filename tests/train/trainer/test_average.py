"""The encoder averaged with its start: which weights, by how much, chosen by what."""

import pytest
import torch
from polyhead.train.adapters import attach_adapters
from polyhead.train.recipe.sections import Average, Freeze, MultiTaskArguments
from polyhead.train.trainer.average import SHARES, StartAverage
from torch.testing import assert_close
from trainer_fixtures import logged, weights


def averaging(start="auto", **options):
    return MultiTaskArguments(average=Average(start=start), **options)


def scores_of(values):
    """Scores of one task after the other, for each share that is tried."""
    return iter([{"a": {"accuracy": value}, "b": {"entity_f1": 0.5}} for value in values])


class TestWeights:
    def test_the_encoder_is_averaged_and_heads_stay(self, build):
        multitask = averaging(0.25, freeze=Freeze(layers=[0]))
        trainer = build(multitask=multitask)
        start = weights(trainer)
        trainer.train()
        plain = build(multitask=MultiTaskArguments(freeze=Freeze(layers=[0])))
        plain.train()
        trained, averaged = weights(plain), weights(trainer)
        expected = {
            name: torch.lerp(value, start[name], 0.25) if name.startswith("encoder.") else value
            for name, value in trained.items()
        }
        assert_close(averaged, expected, rtol=0, atol=1e-6)
        frozen = [name for name in start if "layer.0." in name]
        assert frozen
        assert all(averaged[name].equal(start[name]) for name in frozen)
        heads = [name for name in start if name.startswith("heads.") and "weight" in name]
        assert heads
        assert not any(averaged[name].equal(start[name]) for name in heads)
        assert logged(trainer, "average_") == [{"average_share": 0.25}]

    def test_adapters_stay_as_trained(self, build):
        trainer = build(multitask=averaging(1.0))
        average, model = trainer.average, trainer.model
        attach_adapters(model, {"near": {"r": 2}})
        start = weights(trainer)
        average.keep_start()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1.0)
        average.keep_start()  # changes nothing
        average.apply(lambda: {})
        after = weights(trainer)
        for name, value in start.items():
            own = name.startswith("encoder.") and "lora" not in name
            assert_close(after[name], value if own else value + 1)
        assert any("lora" in name for name in start)

    def test_the_share_with_the_best_macro_is_taken_the_first_of_equal_ones(self, build):
        trainer = build(multitask=averaging(), evaluates=True)
        scores = scores_of([0.1, 0.3, 0.2, 0.3, 0.0, 0.1])
        trainer.average.keep_start()
        before = weights(trainer)
        with torch.no_grad():
            for weight in trainer.model.encoder.parameters():
                weight.add_(1.0)
        seen = []

        def evaluate():
            seen.append(float(next(iter(weights(trainer).values())).flatten()[0]))
            return next(scores)

        trainer.average.apply(evaluate)
        first = float(next(iter(before.values())).flatten()[0])
        assert seen == pytest.approx([first + 1 - share for share in SHARES], abs=1e-5)
        assert trainer.average.share == 0.1
        assert [trial.macro for trial in trainer.average.trials] == pytest.approx(
            [0.3, 0.4, 0.35, 0.4, 0.25, 0.3]
        )
        now = float(next(iter(weights(trainer).values())).flatten()[0])
        assert now == pytest.approx(first + 0.9, abs=1e-5)
        line = "average: 0.1 of the start: macro 0.4000, a 0.3000, b 0.5000"
        assert trainer.average.lines()[1] == line
        assert trainer.average.record()["trials"][1] == {
            "share": 0.1,
            "macro": pytest.approx(0.4),
            "tasks": {"a": 0.3, "b": 0.5},
        }

    def test_a_training_ends_with_the_scores_of_its_trial(self, build):
        trainer = build(multitask=averaging(), evaluates=True, learning_rate=0.2)
        trainer.train()
        lines = logged(trainer, "average_")
        assert [line["average_share"] for line in lines] == list(SHARES)
        best = max(lines, key=lambda line: line["average_macro"])
        assert trainer.average.share == best["average_share"]
        assert trainer.evaluate()["eval_macro"] == pytest.approx(best["average_macro"])

    def test_a_resumed_run_averages_with_the_same_start(self, build):
        saving = {"save_strategy": "steps", "save_steps": 2, "multitask": averaging(0.5)}
        whole = build(output="whole", **saving)
        whole.train()
        again = build(output="again", **saving)
        again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
        assert_close(weights(again), weights(whole), rtol=0, atol=0)


class TestFaults:
    def test_an_encoder_that_does_not_train_is_refused(self, build):
        with pytest.raises(ValueError, match="average: without effect"):
            build(multitask=averaging(0.2, freeze=Freeze(encoder=True)))

    def test_without_rows_to_evaluate_the_share_has_to_be_given(self, build):
        with pytest.raises(ValueError, match="write a number, as 0.2"):
            build(multitask=averaging())
        assert isinstance(build(multitask=averaging(0.2)).average, StartAverage)
