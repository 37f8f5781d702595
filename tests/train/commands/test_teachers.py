"""Tasks that learn from teachers: what is asked of them, how the loss goes over to the labels."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from polyhead.modeling.heads import IGNORE
from polyhead.modeling.windows import split_words
from polyhead.train.commands.fitting import make_trainer
from polyhead.train.commands.setup import prepare
from polyhead.train.commands.teachers import distil, teacher_faults
from polyhead.train.commands.training import train
from polyhead.train.errors import UserError
from polyhead.train.inference.load import load_model
from polyhead.train.kinds import kind_of
from polyhead.train.recipe.schema import Recipe
from polyhead.train.recipe.sections import Distill
from torch.testing import assert_close
from train_helpers import (
    QUIET,
    files_of,
    messages,
    pairs,
    private_cache,  # noqa: F401
    write_recipe,
    write_splits,
)

SEQUENCE, TOKENS = "sequence_classification", "token_classification"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, encoder_folder):
    """Six tasks on a bert; their teacher is a roberta, which cuts texts otherwise."""
    folder = tmp_path_factory.mktemp("teachers")
    write_splits(folder, "messages", messages)
    write_splits(folder, "pairs", pairs)
    text = {"data_files": files_of("messages"), "text": "text"}
    pair = {"data_files": files_of("pairs"), "text": "text1", "text_pair": "text2"}
    multi = "multi_label_classification"
    tasks = {
        "intent": {"head": SEQUENCE, "data": {**text, "label": "intent"}},
        "slots": {"head": TOKENS, "data": {**text, "tokens": "tokens", "label": "tags"}},
        "topics": {"head": SEQUENCE, "data": {**text, "label": "topics"}, "problem_type": multi},
        "urgency": {
            "head": SEQUENCE,
            "data": {**text, "label": "urgency"},
            "problem_type": "regression",
        },
        "same": {"head": SEQUENCE, "data": {**pair, "label": "same"}},
        "near": {"head": "embedding", "data": {**pair, "label": "score"}},
    }
    for task in tasks.values():
        task["dropout"] = 0.0
    for name in ("near",):
        del tasks[name]["dropout"]
    training = {**QUIET, "max_steps": 2, "logging_steps": 1}
    content = {
        "encoder": str(encoder_folder("bert")),
        "tasks": tasks,
        "training": training,
        "output_dir": str(folder / "student"),
    }
    return write_recipe(folder / "recipe.yaml", content)


@pytest.fixture(scope="module")
def teacher(recipe, encoder_folder):
    """Folder of a model of all tasks; its weights are far from their first values."""
    output = recipe.parent / "teacher"
    train(recipe, [f"encoder={encoder_folder('roberta')}", f"output_dir={output}"])
    return output / "model"


@pytest.fixture(scope="module")
def asked(recipe, teacher):
    """(trainer, distillation) with a teacher for each task."""
    names = ["intent", "slots", "topics", "urgency", "same", "near"]
    options = [f"distill.teachers.{name}={teacher}" for name in names]
    run = prepare(recipe, options)
    trainer = make_trainer(run)
    distil(trainer, run.recipe, run.sources)
    return run, trainer, trainer.optimizer_step.losses.distillation


def encoded(tokenizer, *texts):
    return tokenizer(*texts, return_tensors="pt", return_offsets_mapping=True)


class TestTargets:
    @pytest.mark.parametrize("task", ["intent", "topics", "urgency", "same"])
    def test_of_a_text_they_are_the_logits_of_the_teacher(self, asked, teacher, task):
        run, _, distillation = asked
        model, tokenizer = load_model(teacher)
        source = next(source for source in run.sources if task in source.tasks)
        rows = source.splits["train"]
        for number, row in enumerate(rows):
            texts = [row[key] for key in ("text", "text1", "text2") if key in row]
            inputs = encoded(tokenizer, *texts)
            inputs.pop("offset_mapping")
            with torch.no_grad():
                logits = model.eval()(**inputs, tasks=[task]).logits[task][0]
            found = distillation.targets[task][number].float()
            assert_close(found, logits, rtol=1e-3, atol=2e-3)
        assert len(distillation.targets[task]) == len(rows)

    def test_of_a_group_they_are_the_vectors_of_its_texts(self, asked, teacher):
        run, _, distillation = asked
        model, tokenizer = load_model(teacher)
        rows = next(s for s in run.sources if "near" in s.tasks).splits["train"]
        for number, row in enumerate(rows):
            for part, key in enumerate(("text1", "text2")):
                inputs = encoded(tokenizer, row[key])
                inputs.pop("offset_mapping")
                with torch.no_grad():
                    vector = model.eval().embed(**inputs, task="near")[0]
                found = distillation.targets["near"][2 * number + part].float()
                assert_close(found, vector, rtol=1e-3, atol=2e-3)

    def test_of_a_word_they_are_the_logits_of_its_first_token(self, asked, teacher):
        run, _, distillation = asked
        model, tokenizer = load_model(teacher)
        rows = next(s for s in run.sources if "slots" in s.tasks).splits["train"]
        start = 0
        for row in rows:
            inputs = encoded(tokenizer, row["text"])
            offsets = inputs.pop("offset_mapping")[0].tolist()
            with torch.no_grad():
                logits = model.eval()(**inputs, tasks=["slots"]).logits["slots"][0]
            words = split_words(row["text"])
            for number, (begin, end) in enumerate(words):
                token = next(i for i, (a, b) in enumerate(offsets) if begin < b and a < end)
                found = distillation.targets["slots"][start + number].float()
                assert_close(found, logits[token], rtol=1e-3, atol=2e-3)
            start += len(words)
        assert start == len(distillation.targets["slots"])


class TestLoss:
    @pytest.mark.parametrize("packed", [True, False])
    def test_tags_are_compared_word_by_word(self, asked, packed):
        _, trainer, distillation = asked
        collator = trainer.data_collator
        collator.packed = packed
        first = trainer.train_dataset.ranges["intent+slots+topics+urgency"].start
        batch = collator([trainer.train_dataset[first + n] for n in (7, 3, 11)])
        collator.packed = True
        labels = batch["labels"]["slots"]
        torch.manual_seed(0)
        values = torch.randn(*labels.shape, len(trainer.model.config.tasks["slots"].labels))
        targets = distillation.targets["slots"][distillation.units["slots"].units_in(batch)].float()
        own = values[labels != IGNORE]
        assert len(own) == len(targets) > 10
        expected = sum(
            F.cross_entropy(one, other.softmax(-1)) for one, other in zip(own, targets, strict=True)
        )
        assert_close(distillation.loss("slots", values, labels, batch), expected)
        rows, part = batch["rows"].tolist(), trainer.train_dataset.parts
        part = part["intent+slots+topics+urgency"]
        starts = distillation.units["slots"].starts
        numbers = [
            starts[row] + word
            for row in rows
            for word, tag in zip(part[row]["words"], part[row]["labels_slots"], strict=True)
            if tag != IGNORE
        ]
        assert distillation.units["slots"].units_in(batch).tolist() == numbers

    def test_it_goes_over_from_teacher_to_labels(self, asked):
        distillation = asked[2]
        assert distillation.shares(0.0) == (0.0, 1.0)
        assert distillation.shares(0.75) == (0.75, 0.25)
        options, distillation.options = (
            distillation.options,
            Distill(teachers={"intent": "x"}, anneal=False, weight=2.0),
        )
        assert distillation.shares(0.75) == (1.0, 2.0)
        distillation.options = options

    def test_the_loss_of_a_step_is_that_of_both(self, asked):
        run, trainer, distillation = asked
        step, model = trainer.optimizer_step, trainer.model.eval()
        first = trainer.train_dataset.ranges["same"].start
        batch = trainer.data_collator([trainer.train_dataset[first + n] for n in range(8)])
        num_items = step.begin([batch], 0, 0.0, 0.25)
        inputs = {
            k: v for k, v in batch.items() if k not in ("rows", "windows", "sources", "counts")
        }
        outputs = model(**inputs, num_items=num_items)
        found = step.losses.of(outputs, batch)["same"]
        logits = outputs.logits["same"]
        targets = distillation.targets["same"][batch["rows"]].float().softmax(-1)
        expected = 0.25 * F.cross_entropy(logits, batch["labels"]["same"])
        expected = expected + 0.75 * F.cross_entropy(logits, targets)
        assert_close(found, expected)


NAN = float("nan")


class TestKinds:
    """Each kind's distance to a teacher, against plain formulas; rows without a label are out."""

    def loss(self, asked, task, values, targets, labels):
        kind = kind_of(asked[1].model.config.tasks[task])
        return kind.teacher_loss(*(torch.tensor(part) for part in (values, targets, labels)))

    def test_classes(self, asked):
        values, targets = [[1.0, 2.0, 0.0], [5.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [1.0, 1.0, 9.0]]
        found = self.loss(asked, "intent", values, targets, [2, IGNORE])
        expected = F.cross_entropy(torch.tensor(values[0]), torch.tensor(targets[0]).softmax(0))
        assert_close(found, expected)

    def test_several_labels(self, asked):
        values, targets = [[1.0, 2.0], [5.0, 0.0]], [[0.0, 1.0], [1.0, 1.0]]
        found = self.loss(asked, "topics", values, targets, [[1.0, NAN], [NAN, NAN]])
        wanted = torch.tensor(targets[0]).sigmoid()
        assert_close(found, F.binary_cross_entropy_with_logits(torch.tensor(values[0]), wanted))

    def test_numbers(self, asked):
        found = self.loss(
            asked, "urgency", [[1.0], [2.0], [3.0]], [[0.5], [0.0], [1.0]], [0, NAN, 1]
        )
        assert_close(found, torch.tensor(0.25 + 4.0))

    def test_vectors_of_the_same_width(self, asked):
        values, targets = [[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, 0.0]], [[0.0, 1.0]] * 4
        found = self.loss(asked, "near", values, targets, [0.5, NAN])
        assert_close(found, torch.tensor(1.0))

    def test_vectors_of_another_width(self, asked):
        values = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 0.0]]
        targets = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
        found = self.loss(asked, "near", values, targets, [0.5, 0.2])
        assert_close(found, torch.tensor(1.0 + 0.5))


class TestRuns:
    def test_a_run_is_resumed_to_the_bit(self, recipe, teacher, tmp_path):
        options = [f"distill.teachers.slots={teacher}", f"distill.teachers.near={teacher}"]
        options += ["training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2"]
        train(recipe, [*options, f"output_dir={tmp_path / 'whole'}", "training.save_total_limit=9"])
        resume = f"training.resume_from_checkpoint={tmp_path / 'whole/checkpoint-2'}"
        train(recipe, [*options, f"output_dir={tmp_path / 'again'}", resume])
        ends = [
            load_model(tmp_path / name / "model")[0].state_dict() for name in ("whole", "again")
        ]
        assert_close(ends[0], ends[1], rtol=0, atol=0)
        out = f"output_dir={tmp_path / 'other'}"
        with pytest.raises(UserError, match="distill.anneal was True, is False"):
            train(recipe, [*options, out, resume, "distill.anneal=false"])

    def test_a_student_comes_nearer_to_its_teacher(self, recipe, teacher, tmp_path):
        options = [
            f"distill.teachers.same={teacher}",
            "training.max_steps=30",
            "distill.anneal=false",
        ]
        options += [f"output_dir={tmp_path}", "training.learning_rate=1e-3"]
        train(recipe, options)
        lines = read_history(tmp_path)
        distances = [line["teacher_same"] for line in lines if "teacher_same" in line]
        assert min(distances[-5:]) < distances[0]


def read_history(folder):
    return json.loads((folder / "log_history.json").read_text(encoding="utf-8"))


class TestFaults:
    def test_all_faults_of_the_recipe_are_told(self, recipe):
        options = [
            "distill.teachers.nothing=x",
            "distill.teachers.words=x",
            "tasks.words={head: masked_lm, data: {path: some/data, text: text}}",
        ]
        with pytest.raises(UserError) as error:
            prepare(recipe, options)
        assert [fault.split(";")[0] for fault in error.value.faults] == [
            "distill.teachers.nothing: no task of this name",
            "distill.teachers.words: masked_lm has no teachers",
        ]

    def test_all_faults_of_the_teachers_are_told(self, recipe, teacher, encoder_folder, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(teacher, other)
        config = json.loads((other / "config.json").read_text(encoding="utf-8"))
        config["tasks"]["same"]["labels"] = ["maybe", "yes"]
        config["tasks"]["topics"]["problem_type"] = "single_label_classification"
        del config["tasks"]["urgency"]
        config["task_names"].remove("urgency")
        (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
        teachers = {
            "intent": tmp_path / "nowhere",
            "near": encoder_folder("bert"),
            **dict.fromkeys(("same", "topics", "urgency"), other),
        }
        with pytest.raises(UserError) as error:
            prepare(recipe, [f"distill.teachers.{name}={path}" for name, path in teachers.items()])
        assert [fault.replace(str(other), "OTHER") for fault in error.value.faults[1:]] == [
            f"distill.teachers.near: {teachers['near']} is no Polyhead; give the folder of a "
            "finished model",
            "distill.teachers.same: OTHER: its labels are 2 (maybe, yes), those here 2 (no, yes)",
            "distill.teachers.topics: OTHER: its problem_type is single_label_classification, "
            "that of the task here multi_label_classification",
            "distill.teachers.urgency: OTHER has no task urgency; it has: intent, near, same, "
            "slots, topics",
        ]
        assert "distill.teachers.intent" in error.value.faults[0]

    def test_single_texts_need_vectors_of_one_width(self, recipe, teacher, tmp_path):
        config = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
        config["tasks"]["near"]["projection"] = 8
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        run = prepare(recipe, [f"distill.teachers.near={tmp_path}"])  # of pairs: it does no harm
        run.recipe.tasks["near"].data.text_pair = None
        (fault,) = teacher_faults(run.recipe, run.model)
        assert fault.endswith(
            "its vectors have 8 numbers, those here 32; write tasks.near.projection, or give "
            "pairs of texts"
        )

    def test_a_recipe_keeps_its_teachers(self):
        distill = Distill(teachers={"intent": "runs/1e3"}, weight=0.5)
        text = "encoder: x\noutput_dir: y\ntasks:\n  intent:\n    head: sequence_classification\n"
        text += "    data: {path: a/b, text: t, label: l}\n"
        recipe = Recipe.from_yaml(text)
        recipe.distill = distill
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
