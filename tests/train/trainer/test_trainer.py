"""Training: exact losses under accumulation, evaluation by task, checkpoints, resuming.

Encoders are tiny, and dropout is off where two ways to train are compared.
"""

import shutil
from pathlib import Path

import pytest
import torch
from polyhead.modeling import PolyheadModel
from polyhead.train.batches.collator import model_inputs
from polyhead.train.commands.fitting import resume_from
from polyhead.train.data.dataset import MultiTaskDataset
from polyhead.train.recipe.sections import Balancing, MultiTaskArguments, Sampling
from polyhead.train.trainer import evaluation_loop as task_evaluation
from safetensors.torch import load_file
from torch.testing import assert_close
from train_helpers import (
    messages,
    private_cache,  # noqa: F401
    task,
    write_rows,
)
from trainer_fixtures import SEQUENCE, TOKENS, history, logged, weights
from transformers import AutoTokenizer, TrainingArguments

ROWS = 12 + 12 + 12  # of train: messages, pairs as one text, pairs as two
FOLDER = {
    "README.md",
    "config.json",
    "handler.py",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CODE = {path.name for path in (Path(task_evaluation.__file__).parents[2] / "modeling").glob("*.py")}
STATE = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}


class TestLosses:
    @pytest.mark.parametrize("batches", ["mixed", "pure"])
    def test_accumulation_changes_neither_losses_nor_weights(self, build, batches):
        results = []
        for size, accumulation in ((12, 1), (3, 4)):
            trainer = build(size=size, accumulation=accumulation, batches=batches)
            before = weights(trainer)
            trainer.train()
            results.append((weights(trainer), logged(trainer, "loss")))
        assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
        assert_close(results[1][1], results[0][1], rtol=0, atol=1e-4)
        moved = {name for name, value in results[0][0].items() if not value.equal(before[name])}
        assert moved >= {name for name in before if name.startswith("heads.") and "out" in name}

    @pytest.mark.parametrize("batches", ["mixed", "pure"])
    def test_batches_of_tokens_accumulate_to_the_same(self, build, batches):
        results = []
        for accumulation in (1, 4):
            sampling = Sampling(batches=batches, batch_tokens=240 // accumulation)
            multitask = MultiTaskArguments(sampling=sampling)
            trainer = build(accumulation=accumulation, multitask=multitask)
            trainer.train()
            results.append((weights(trainer), logged(trainer, "loss")))
        assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
        assert_close(results[1][1], results[0][1], rtol=0, atol=1e-4)

    def test_packing_changes_neither_losses_nor_weights(self, build):
        results = []
        for packing in (True, False):
            trainer = build(packing=packing)
            assert trainer.data_collator.packed == packing
            trainer.train()
            results.append((weights(trainer), logged(trainer, "loss")))
        assert_close(results[0], results[1], rtol=0, atol=1e-5)

    def test_the_loss_of_a_task_is_the_mean_over_its_units_in_the_step(self, build):
        trainer = build(size=9, accumulation=4, max_steps=1)
        rows = [trainer.train_dataset[number] for number in range(ROWS)]
        batch = trainer.evaluation.collator(rows)
        batch = model_inputs(batch)
        with torch.no_grad():
            expected = trainer.model(**batch)
        trainer.train()
        first = logged(trainer, "loss")[0]
        losses = {f"loss_{name}": float(loss) for name, loss in expected.losses.items()}
        assert first == pytest.approx({"loss": float(expected.loss), **losses}, abs=1e-3)

    def test_the_total_is_the_weighted_sum_of_the_tasks(self, build):
        trainer = build(multitask=MultiTaskArguments(balancing=Balancing(method="none")))
        trainer.train()
        for line in logged(trainer, "loss"):
            parts = {name.removeprefix("loss_"): v for name, v in line.items() if name != "loss"}
            total = sum(parts.values()) - 0.5 * parts.get("intent", 0.0)
            assert line["loss"] == pytest.approx(total, abs=1e-3)

    def test_each_log_starts_anew(self, build):
        logs = []
        for steps in (1, 3):
            trainer = build(logging_steps=steps, learning_rate=0.0)
            trainer.train()
            logs.append(logged(trainer, "loss_"))
        every, one = logs
        assert (len(every), len(one)) == (3, 1)
        intents = [line["loss_intent"] for line in every]
        assert min(intents) < one[0]["loss_intent"] < max(intents)

    def test_pure_batches_log_the_tasks_of_their_step(self, build):
        trainer = build(size=6, batches="pure", max_steps=6)
        trainer.train()
        tasks = [{n.removeprefix("loss_") for n in line} for line in logged(trainer, "loss_")]
        text = {"intent", "slots", "topics", "urgency"}
        assert sorted(tasks, key=sorted) == [text, text, {"near"}, {"near"}, {"same"}, {"same"}]

    def test_rows_without_labels_teach_nothing(self, build, tmp_path):
        known = [row | {"urgency": float(i % 2)} for i, row in enumerate(messages(8))]
        blank = [row | {"urgency": float("nan"), "intent": None} for row in messages(8, 8)]
        results = []
        for name, rows in (("some", known + blank), ("known", known)):
            path = str(write_rows(tmp_path / f"{name}.jsonl", rows))
            text = {"data_files": path, "text": "text", "dropout": 0.0}
            chosen = {
                "intent": task(SEQUENCE, label="intent", **text),
                "urgency": task(SEQUENCE, label="urgency", problem_type="regression", **text),
            }
            trainer = build(chosen, size=16, max_steps=1)
            trainer.train()
            results.append((weights(trainer), logged(trainer, "loss")))
        assert_close(results[0], results[1], rtol=0, atol=1e-5)

    def test_a_task_of_one_row_trains(self, build, usual_tasks, tmp_path):
        row = {"text": "play it", "score": 0.5}
        path = str(write_rows(tmp_path / "one.jsonl", [row]))
        options = {"data_files": path, "text": "text", "label": "score"}
        chosen = usual_tasks | {"lone": task(SEQUENCE, problem_type="regression", **options)}
        for batches in ("mixed", "pure"):
            trainer = build(chosen, batches=batches, max_steps=-1, num_train_epochs=1)
            trainer.train()
            assert sum("loss_lone" in line for line in history(trainer)) == 1

    def test_arguments_that_do_not_fit_several_tasks_are_refused(self, build):
        with pytest.raises(ValueError, match="label_smoothing_factor does not fit"):
            build(label_smoothing_factor=0.1)


class TestEvaluation:
    def test_every_task_has_its_loss_and_its_metrics(self, build):
        metrics = build(evaluates=True).evaluate()
        assert set(metrics) == {
            "eval_intent_accuracy",
            "eval_intent_f1_macro",
            "eval_intent_loss",
            "eval_slots_entity_f1",
            "eval_slots_precision",
            "eval_slots_recall",
            "eval_slots_loss",
            "eval_topics_f1_micro",
            "eval_topics_f1_macro",
            "eval_topics_loss",
            "eval_urgency_pearson",
            "eval_urgency_spearman",
            "eval_urgency_mse",
            "eval_urgency_loss",
            "eval_same_accuracy",
            "eval_same_f1_macro",
            "eval_same_loss",
            "eval_near_spearman",
            "eval_near_pearson",
            "eval_near_loss",
            "eval_loss",
            "eval_macro",
            "epoch",
        }
        main = ("intent_accuracy", "slots_entity_f1", "topics_f1_micro")
        main += ("urgency_pearson", "same_accuracy", "near_spearman")
        mean = sum(metrics[f"eval_{name}"] for name in main) / len(main)
        assert metrics["eval_macro"] == pytest.approx(mean)

    def test_losses_are_those_of_the_whole_split_at_once(self, build, tokenizer_of):
        trainer = build(evaluates=True)
        metrics = trainer.evaluate()
        for part in trainer.eval_dataset.values():
            rows = MultiTaskDataset({part.source.name: part.rows})
            batch = trainer.evaluation.collator([rows[number] for number in range(len(rows))])
            batch = model_inputs(batch)
            with torch.no_grad():
                losses = trainer.model.eval()(**batch).losses
            for name, loss in losses.items():
                assert metrics[f"eval_{name}_loss"] == pytest.approx(float(loss), abs=1e-5)

    def test_the_size_of_a_batch_changes_nothing(self, build):
        results = [
            build(evaluates=True, per_device_eval_batch_size=size).evaluate() for size in (1, 3, 64)
        ]
        assert results[0] == pytest.approx(results[1], abs=1e-5)
        assert results[0] == pytest.approx(results[2], abs=1e-5)

    @pytest.mark.parametrize("size", [1, 2, 64])
    def test_long_rows_are_read_in_windows(self, build, tmp_path, size):
        rows = messages(3)
        words, tags = rows[0]["tokens"] * 20, rows[0]["tags"] * 20
        rows[0] |= {"text": " ".join(words), "tokens": words, "tags": tags}
        path = str(write_rows(tmp_path / "rows.jsonl", rows))
        text = {"data_files": {"train": path, "validation": path}, "text": "text"}
        chosen = {
            "intent": task(SEQUENCE, label="intent", **text),
            "slots": task(TOKENS, tokens="tokens", label="tags", **text),
        }
        trainer = build(chosen, evaluates=True, per_device_eval_batch_size=size)
        assert len(trainer.eval_dataset["intent+slots"].rows) == 5
        scores, losses = trainer.evaluate_tasks(trainer.eval_dataset)
        cities = [tags.count("B-city") for tags in (row["tags"] for row in rows)]
        assert scores["slots"]["per_type"]["city"]["support"] == sum(cities) == 22
        assert set(losses) == {"intent", "slots"}

    def test_a_label_that_train_lacks_is_scored_as_wrong(self, build, tmp_path):
        rows = messages(6)
        unseen = [{**row, "intent": "unheard"} for row in rows]
        unseen[0] |= {"tags": ["B-moon", *rows[0]["tags"][1:]], "topics": ["unheard"]}
        files = {
            "train": str(write_rows(tmp_path / "train.jsonl", rows)),
            "validation": str(write_rows(tmp_path / "validation.jsonl", unseen)),
        }
        text = {"data_files": files, "text": "text"}
        multi = {"problem_type": "multi_label_classification", "label": "topics"}
        chosen = {
            "intent": task(SEQUENCE, label="intent", **text),
            "slots": task(TOKENS, tokens="tokens", label="tags", **text),
            "topics": task(SEQUENCE, **multi, **text),
        }
        trainer = build(chosen, evaluates=True)
        scores, losses = trainer.evaluate_tasks(trainer.eval_dataset)
        assert scores["intent"]["accuracy"] == 0.0
        assert scores["slots"]["per_type"]["moon"] == {
            "precision": 0.0,
            "recall": 0.0,
            "f1": 0.0,
            "support": 1,
        }
        assert set(losses) >= {"slots", "topics"}
        assert set(trainer.evaluate()) >= {"eval_intent_accuracy", "eval_macro", "eval_loss"}

    def test_masked_words_are_the_same_each_time(self, build, data):
        options = {"data_files": data("messages"), "text": "text"}
        trainer = build({"words": task("masked_lm", **options)}, evaluates=True)
        first, second = trainer.evaluate(), trainer.evaluate()
        assert first == second
        assert 0 < first["eval_words_loss"] < 20


class TestSaving:
    def test_the_best_checkpoint_by_macro_score_is_kept_as_the_model(self, build, monkeypatch):
        values = iter([0.5, 0.9, 0.1])
        monkeypatch.setattr(task_evaluation, "macro", lambda scores: next(values))
        trainer = build(
            evaluates=True,
            max_steps=3,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=1,
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="macro",
        )
        trainer.train()
        best = Path(trainer.args.output_dir) / "checkpoint-2"
        assert Path(trainer.state.best_model_checkpoint) == best
        assert trainer.state.best_metric == 0.9
        saved = load_file(best / "model.safetensors")
        after = weights(trainer)
        assert {name: after[name].equal(value) for name, value in saved.items()} == dict.fromkeys(
            saved, True
        )
        other = load_file(best.with_name("checkpoint-3") / "model.safetensors")
        assert any(not after[name].equal(value) for name, value in other.items())

    def test_every_checkpoint_is_a_folder_that_loads(self, build):
        trainer = build(save_strategy="steps", save_steps=1, max_steps=2)
        trainer.train()
        folders = sorted(Path(trainer.args.output_dir).glob("checkpoint-*"))
        assert [folder.name for folder in folders] == ["checkpoint-1", "checkpoint-2"]
        for folder in folders:
            files = {path.name for path in folder.iterdir()}
            assert files == FOLDER | (CODE - {"__init__.py"}) | STATE
            tokenizer = AutoTokenizer.from_pretrained(folder)
            assert tokenizer.model_max_length == 64
        model = PolyheadModel.from_pretrained(folders[-1])
        batch = tokenizer(["book the train", "play"], padding=True, return_tensors="pt")
        with torch.no_grad():
            actual, expected = model.eval()(**batch), trainer.model.eval()(**batch)
        assert_close(actual.logits, expected.logits, rtol=0, atol=0)
        assert_close(actual.embeddings, expected.embeddings, rtol=0, atol=0)


class TestResume:
    """A run that stopped goes on as if it had not; dropout is on."""

    STEPS = 5  # of two epochs of three
    PURE = {"batches": "pure", "size": 6, "accumulation": 2}

    @pytest.fixture
    def run(self, build):
        """(checkpoint or None, folder, ...) -> trainer after training."""

        def train(resume=None, chosen=None, output="out", **options):
            usual = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": self.STEPS}
            usual |= {"save_strategy": "steps", "save_steps": 1, "dropout": 0.3}
            trainer = build(chosen, output=output, **{**usual, **options})
            trainer.train(resume_from_checkpoint=resume)
            return trainer

        return train

    @pytest.mark.parametrize(
        ("options", "step"), [({}, 3), (PURE, 4), pytest.param({}, 2, marks=pytest.mark.slow)]
    )
    def test_final_weights_are_those_of_the_uninterrupted_run(self, run, options, step):
        whole = run(**options)
        checkpoint = Path(whole.args.output_dir) / f"checkpoint-{step}"
        resumed = run(str(checkpoint), output="other", save_strategy="no", **options)
        assert whole.state.epoch == resumed.state.epoch == pytest.approx(5 / 3)
        assert resumed.state.global_step == self.STEPS
        assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
        assert logged(resumed, "loss_") == logged(whole, "loss_")

    def test_masks_of_a_masked_lm_go_on_too(self, run, data):
        text = {"data_files": data("messages"), "text": "text"}
        chosen = {"words": task("masked_lm", **text)}
        whole = run(chosen=chosen, size=4)
        checkpoint = Path(whole.args.output_dir) / "checkpoint-2"
        resumed = run(str(checkpoint), chosen, output="other", size=4, save_strategy="no")
        assert_close(weights(resumed), weights(whole), rtol=0, atol=0)

    def test_true_takes_the_latest_intact_checkpoint(self, run):
        trainer = run(max_steps=3)
        folder = Path(trainer.args.output_dir)
        args = trainer.args
        args.resume_from_checkpoint = True
        assert resume_from(args) == str(folder / "checkpoint-3")
        shutil.copytree(folder / "checkpoint-3", folder / "checkpoint-10")
        assert resume_from(args) == str(folder / "checkpoint-10")

        weights_file = folder / "checkpoint-10" / "model.safetensors"
        weights_file.write_bytes(weights_file.read_bytes()[:-100])
        assert resume_from(args) == str(folder / "checkpoint-3")

        (folder / "checkpoint-3" / "trainer_state.json").unlink()
        assert resume_from(args) == str(folder / "checkpoint-2")

        (folder / "checkpoint-2" / "model.safetensors").unlink()
        assert resume_from(args) == str(folder / "checkpoint-1")

        (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"")
        assert resume_from(args) is None

    @pytest.mark.parametrize("option", [None, False])
    def test_nothing_asked_for_is_nothing_resumed(self, option, tmp_path):
        args = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint=option)
        assert resume_from(args) is None

    def test_a_checkpoint_named_is_taken(self, tmp_path):
        args = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="some/folder")
        assert resume_from(args) == "some/folder"

    def test_true_in_an_empty_folder_starts(self, tmp_path):
        args = TrainingArguments(output_dir=str(tmp_path / "new"), resume_from_checkpoint=True)
        assert resume_from(args) is None


def test_predict_says_what_to_call(build):
    with pytest.raises(TypeError, match="takes {task: rows}; .*call PolyheadPipeline"):
        build().predict([{"text": "a"}])
