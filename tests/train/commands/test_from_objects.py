"""`polyhead.train.train`: what a recipe does, with objects that one has."""

import json
from pathlib import Path

import datasets
import pandas as pd
import polyhead.train
import pytest
import torch
from polyhead.modeling import PolyheadModel
from polyhead.train import Task, train
from polyhead.train.commands import training as run
from polyhead.train.commands.from_objects import _task_faults
from polyhead.train.errors import UserError
from polyhead.train.recipe.arguments import training_of
from polyhead.train.recipe.sections import Average, Sampling
from safetensors.torch import load_file
from train_helpers import SEQUENCE, TOKENS, messages, pairs, write_recipe, write_rows
from transformers import TrainerCallback, TrainingArguments

QUICK = {
    "num_train_epochs": 1,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "disable_tqdm": True,
    "use_cpu": True,
    "report_to": "none",
}
ROWS = {"train": messages(12), "validation": messages(4, 12), "test": messages(5, 16)}
PAIRS = {"train": pairs(12), "validation": pairs(4, 12)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tokenizer_of) -> dict:
    folder = tmp_path_factory.mktemp("objects")
    tokenizer_of("wordpiece").save_pretrained(folder)
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
    return {"config": config, "tokenizer": str(folder)}


@pytest.fixture
def start(encoder, tmp_path):
    """Options over those of a small training of one task -> its result."""

    def begin(**options):
        usual = {"tasks": {"intent": intent()}, "output_dir": tmp_path / "run", "training": QUICK}
        return train(encoder=encoder, **{**usual, **options})

    return begin


def intent(data=ROWS, **options) -> Task:
    columns = {"text": "text", "label": "intent"}
    return Task(head=SEQUENCE, data=data, **{**columns, **options})


def faults_of(start, **options) -> list[str]:
    """Of a call that writes nothing."""
    with pytest.raises(UserError) as error:
        start(**options)
    assert str(error.value).startswith("polyhead.train.train: ")
    return error.value.faults


@pytest.fixture(scope="module")
def both(encoder, tmp_path_factory):
    """Folder and scores of a recipe over files; the result over objects of the same rows."""
    folder = tmp_path_factory.mktemp("both")
    files = {}
    for name, splits in {"messages": ROWS, "pairs": PAIRS}.items():
        files[name] = {
            split: str(write_rows(folder / f"{name}_{split}.jsonl", rows))
            for split, rows in splits.items()
        }
    text, pair = {"text": "text"}, {"text": "text1", "text_pair": "text2"}
    slots = {"tokens": "tokens", "label": "tags"}
    keys = {
        "intent": {"head": SEQUENCE, "metrics": ["mcc", "accuracy"]},
        "slots": {"head": TOKENS, "adapter": {"r": 2}},
        "words": {"head": "masked_lm"},
        "near": {"head": "embedding", "loss_weight": 0.5},
    }
    data = {
        "intent": {**text, "label": "intent"},
        "slots": {**text, **slots},
        "words": text,
        "near": {**pair, "label": "score"},
    }
    where = {"intent": "messages", "slots": "messages", "words": "messages", "near": "pairs"}
    sections = {"sampling": {"strategy": "uniform"}, "freeze": {"embeddings": True}}
    recipe = {
        "encoder": encoder,
        "tasks": {
            name: {**keys[name], "data": {**data[name], "data_files": files[where[name]]}}
            for name in keys
        },
        "output_dir": str(folder / "files"),
        "training": QUICK,
        **sections,
    }
    scores = run.train(write_recipe(folder / "recipe.yaml", recipe))
    rows = {"messages": ROWS, "pairs": PAIRS}
    made = train(
        tasks={n: Task(data=rows[where[n]], **keys[n], **data[n]) for n in keys},
        encoder=encoder,
        output_dir=folder / "objects",
        training=QUICK,
        **sections,
    )
    return folder / "files" / "model", scores, made


class TestSameAsARecipe:
    """Files and objects of the same rows give the same model."""

    def test_the_scores(self, both):
        assert both[2].scores == both[1]

    def test_the_weights(self, both):
        folder, _, made = both
        weights = load_file(folder / "model.safetensors")
        others = load_file(made.folder / "model.safetensors")
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)

    def test_the_folder(self, both):
        folder, _, made = both
        names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        assert {p.relative_to(made.folder) for p in made.folder.rglob("*") if p.is_file()} == names
        recipes = [json.loads((f / "training.json").read_text()) for f in (folder, made.folder)]
        assert recipes[0][0]["recipe"] == recipes[1][0]["recipe"]

    def test_the_result_is_the_saved_model(self, both):
        made = both[2]
        saved = PolyheadModel.from_pretrained(made.folder)
        assert made.model.task_names == saved.task_names
        assert made.tokenizer.model_max_length == 64
        assert made.trainer.state.global_step > 0
        for name, value in saved.state_dict().items():
            assert torch.equal(value, made.model.state_dict()[name]), name


class Counting(TrainerCallback):
    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args, state, control, **_):
        self.steps += 1


class TestHooks:
    def test_callbacks_are_called(self, start):
        counting = Counting()
        result = start(callbacks=[counting])
        assert counting.steps == result.trainer.state.global_step == 2

    def test_metrics_of_the_callers_own(self, start):
        seen = []

        def compute_metrics(task, predictions, references):
            seen.append((task, len(predictions), sorted(references)))
            return {"length": len(predictions)}

        result = start(compute_metrics=compute_metrics)
        assert result.scores["tasks"]["intent"]["length"] == 5.0
        assert seen[-1] == ("intent", 5, sorted(row["intent"] for row in ROWS["test"]))
        logged = [line for line in result.trainer.state.log_history if "eval_intent_length" in line]
        assert [line["eval_intent_length"] for line in logged] == [4.0]

    def test_the_best_model_by_a_metric_of_the_callers_own(self, start):
        best = {**QUICK, "metric_for_best_model": "intent_size"}
        result = start(training=best, compute_metrics=lambda task, *_: {"size": 1.0})
        assert result.trainer.state.best_metric == 1.0
        assert "unknown" in faults_of(start, training=best, overwrite=True)[0]

    @pytest.mark.parametrize(
        ("metrics", "said"),
        [
            ({"accuracy": 1.0}, "task intent: 'accuracy' is there already"),
            ({"mine": "high"}, "task intent: 'mine' is 'high', not a number"),
            (0.5, "task intent: a float was returned; return a dict"),
        ],
    )
    def test_metrics_that_are_none(self, start, metrics, said):
        with pytest.raises(UserError, match=said):
            start(compute_metrics=lambda *_: metrics)

    def test_an_optimizer_of_the_callers_own(self, start):
        def optimizers(model):
            return torch.optim.SGD(model.parameters(), lr=0.25), None

        training = {k: v for k, v in QUICK.items() if k != "learning_rate"}
        result = start(optimizers=optimizers, training=training)
        optimizer = result.trainer.optimizer.optimizer
        assert type(optimizer) is torch.optim.SGD
        assert optimizer.param_groups[0]["initial_lr"] == 0.25
        assert result.trainer.identity["decides"]["training.optim"] == "SGD"

    def test_weights_of_another_model_are_refused(self, start):
        other = torch.nn.Linear(1, 1)
        optimizers = lambda _: (torch.optim.SGD(other.parameters()), None)  # noqa: E731
        training = {k: v for k, v in QUICK.items() if k != "learning_rate"}
        (fault,) = faults_of(start, optimizers=optimizers, training=training)
        assert "weights that are not those of the model" in fault


class TestArguments:
    def test_they_are_used_as_they_are_and_not_changed(self, start, tmp_path):
        args = TrainingArguments(
            output_dir=str(tmp_path / "args"),
            max_steps=3,
            seed=5,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            per_device_train_batch_size=4,
        )
        before = args.to_dict()
        result = start(args=args, output_dir=None, training=None)
        assert args.to_dict() == before
        assert result.trainer.state.global_step == 3
        assert result.folder == tmp_path / "args" / "model"
        said = json.loads((result.folder / "training.json").read_text())[0]["recipe"]["training"]
        assert {"max_steps", "seed", "per_device_train_batch_size"} <= set(said)

    def test_what_differs_from_the_defaults_is_what_a_recipe_would_say(self, tmp_path):
        options = {"learning_rate": 0.5, "optim": "sgd", "eval_strategy": "epoch", "seed": 3}
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
        assert {k: v for k, v in training_of(args).items() if k in options} == options

    def test_those_that_do_not_fit_are_refused(self, start, tmp_path):
        args = TrainingArguments(
            output_dir=str(tmp_path / "args"), label_smoothing_factor=0.1, use_cpu=True
        )
        (fault,) = faults_of(start, args=args, output_dir=None, training=None)
        assert fault.startswith("training.label_smoothing_factor: not with labels")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"args": True}, "training: args are given too"),
            ({"args": True, "training": None}, "output_dir: "),
            ({"output_dir": None}, "output_dir: missing"),
            ({"optimizers": (None, None)}, "optimizers: the model is made here; give a function"),
            ({"optimizers": 7}, "optimizers: 7; give a function"),
            ({"optimizers": len}, "training.learning_rate: optimizers are given"),
            ({"optimizers": len, "optimizer": {"head_lr": 1}}, "optimizer: optimizers are given"),
            ({"training": None, "args": {"seed": 1}}, "args: a dict; give TrainingArguments"),
        ],
    )
    def test_conflicts(self, start, tmp_path, options, said):
        if options.get("args") is True:
            options = {**options, "args": TrainingArguments(str(tmp_path / "x"), use_cpu=True)}
        assert any(fault.startswith(said) for fault in faults_of(start, **options))
        assert not (tmp_path / "run").exists()

    def test_an_optimizer_of_the_callers_sets_the_rates_of_tasks(self, start):
        tasks = {"one": intent(messages(9), learning_rate=1e-3)}
        said = "tasks.one.learning_rate: optimizers are given, which set it; take it out"
        assert said in faults_of(start, tasks=tasks, optimizers=len)

    def test_tasks_with_moments_and_rates_of_their_own(self, start):
        tasks = {"one": intent(messages(9), learning_rate=1e-3), "two": intent(messages(9, 9))}
        trainer = start(tasks=tasks, optimizer={"by_task": "moments"}).trainer
        assert trainer.optimizer.param_groups[0]["rates"] == pytest.approx(
            [1e-3 / trainer.args.learning_rate, 1.0]
        )


class TestFaults:
    """Each is one message, before anything is made."""

    @pytest.mark.parametrize(
        ("task", "said"),
        [
            (intent(messages(9), label="x"), "tasks.intent.data.label: split train has no column"),
            (intent([]), "tasks.intent.data: cannot be loaded: train: there are no rows"),
            (intent(object()), "tasks.intent.data: cannot be loaded: train: a object is given"),
            (intent({"train": 7}), "tasks.intent.data: cannot be loaded: train: a int is given"),
            (intent(messages(1)), "tasks.intent: "),
            (intent(label=None), "tasks.intent.data.label: missing"),
            (intent(threshold=2), "tasks.intent.threshold: "),
            (intent("nowhere.csv"), "tasks.intent.data.data_files: there is no file nowhere.csv"),
            ({"head": SEQUENCE}, "tasks.intent: a dict; give a Task"),
        ],
    )
    def test_of_a_task(self, start, tmp_path, task, said):
        (fault,) = faults_of(start, tasks={"intent": task})
        assert fault.startswith(said)
        assert list(tmp_path.iterdir()) == []

    def test_all_of_them_at_once(self, start):
        tasks = {"one": intent(messages(9), label="x"), "two": intent([])}
        assert len(faults_of(start, tasks=tasks)) == 2
        faults = faults_of(start, sampling={"strateg": 1}, stopping={"by": "x"}, pooling="sum")
        assert len(faults) == 4

    @pytest.mark.parametrize("tasks", [{}, None, [intent()]])
    def test_no_tasks(self, tasks):
        assert _task_faults(tasks)[0].startswith("tasks: ")

    def test_what_the_encoder_keeps_and_learns_from_others(self, start, tmp_path):
        teacher = start(output_dir=tmp_path / "teacher").folder
        result = start(
            retain={"weight": 2.0},
            average=Average(start=0.5),
            distill={"teachers": {"intent": str(teacher)}},
        )
        (run,) = json.loads((result.folder / "training.json").read_text(encoding="utf-8"))
        assert run["average"] == {"share": 0.5, "trials": []}
        assert run["recipe"]["distill"]["teachers"] == {"intent": "a model on disk"}
        logged = {key for line in result.trainer.state.log_history for key in line}
        assert {"loss_retain", "teacher_intent", "average_share"} <= logged

    def test_a_label_that_train_lacks_is_told_and_scored_as_wrong(self, start, caplog):
        rows = {**ROWS, "test": [{"text": "what?", "intent": "unheard"}]}
        result = start(tasks={"intent": intent(rows)})
        assert result.scores["tasks"]["intent"]["accuracy"] == 0
        assert "intent: label 'unheard' is not in train; test has it in 1 rows" in caplog.text

    def test_a_finished_run_stays(self, start):
        start()
        (fault,) = faults_of(start)
        assert "holds a finished run (model, scores.json); write overwrite=True" in fault
        start(overwrite=True)


def test_rows_of_many_kinds_and_files_and_sections_as_objects(start, tmp_path):
    files = {s: write_rows(tmp_path / f"{s}.jsonl", part) for s, part in ROWS.items()}
    rows = datasets.Dataset.from_list(ROWS["train"])
    result = start(
        tasks={
            "files": intent(files),
            "frame": intent(pd.DataFrame(ROWS["train"])),
            "dict": intent(datasets.DatasetDict({"train": rows})),
            "stream": intent(rows.to_iterable_dataset()),
        },
        sampling=Sampling(strategy="uniform", batches="pure"),
    )
    assert result.model.task_names == ["dict", "files", "frame", "stream"]
    assert result.scores["splits"] == {"files": "test"}
    assert not result.trainer.args.remove_unused_columns


def test_a_run_on_rows_in_memory_is_resumed_where_the_rows_are_the_same(start, caplog):
    steps = {**QUICK, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    steps |= {"eval_strategy": "no", "save_total_limit": 9}
    whole = start(training=steps)
    folder = Path(whole.trainer.args.output_dir) / "checkpoint-2"
    again = {**steps, "resume_from_checkpoint": str(folder)}
    resumed = start(training=again, overwrite=False)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    other = {**ROWS, "train": messages(12, 1)}
    with pytest.raises(UserError, match="rows, or how they are tokenized, have changed"):
        start(tasks={"intent": intent(other)}, training=again)


def test_what_stands_in_the_package():
    assert sorted(polyhead.train.__all__) == [
        "MultiTaskTrainer", "Recipe", "Task", "TrainResult", "train"
    ]  # fmt: skip
    for name in polyhead.train.__all__:
        assert getattr(polyhead.train, name).__name__ == name


def test_an_unknown_keyword_is_told_with_those_that_are_allowed(tmp_path):
    with pytest.raises(UserError) as error:
        train(tasks={}, encoder="bert", output_dir=tmp_path / "out", samplng={})
    assert "samplng: unknown keyword; allowed: tasks, encoder, output_dir, " in str(error.value)
    assert "overwrite, pooling, experts, max_length, sampling, balancing, " in str(error.value)
