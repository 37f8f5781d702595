"""What a recipe decides after training, from validation rows to each place that answers."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline
from polyhead.modeling.heads import DECISIONS
from polyhead.train import Task, train
from polyhead.train.commands import training as run
from polyhead.train.commands.scoring import evaluate
from polyhead.train.errors import UserError
from polyhead.train.evaluation.decisions import (
    best_threshold,
    precise_threshold,
    share_of,
    temperature_of,
)
from polyhead.train.recipe.decide import decisions_of
from polyhead.train.recipe.reader import load_recipe, parse_recipe
from train_helpers import (
    INTENTS,
    files_of,
    message_of,
    messages,
    private_cache,  # noqa: F401
    recipe_of,
    run_cli,
    set_key,
    write_recipe,
    write_rows,
)
from transformers import AutoTokenizer

TASKS = ("intent", "topics", "slots", "urgency", "best")
DECIDE = {"calibrate": True, "threshold": "macro_f1", "abstain": {"precision": 0.8}}
ROWS = {"train": 48, "validation": 40, "test": 40}


def noisy(count: int, start: int) -> list[dict]:
    """Messages, a third of them with labels by chance."""
    chance = random.Random(start)
    rows = messages(count, start)
    for row in rows:
        if chance.random() < 0.35:
            row["intent"] = chance.choice(INTENTS)
            row["topics"] = [t for t in ("travel", "music") if chance.random() < 0.5]
            row["tags"] = [tag if chance.random() < 0.8 else "O" for tag in row["tags"]]
            row["tags"] = [
                "B-city" if tag == "I-city" and before == "O" else tag
                for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False)
            ]
        row["choices"] = ["to Paris", "in Berlin", "music"]
        row["best"] = chance.randrange(3)
    return rows


def small_recipe(folder: Path, tokenizer) -> dict:
    """Four tasks over noisy messages, beside their files."""
    start = 0
    for split, count in ROWS.items():
        write_rows(folder / f"messages_{split}.jsonl", noisy(count, start))
        start += count
    tokenizer.save_pretrained(folder / "tokenizer")
    recipe = recipe_of(folder / "tokenizer")
    recipe["tasks"]["best"] = {
        "head": "multiple_choice",
        "data": {
            "data_files": files_of("messages"),
            "text": "text",
            "text_pair": "choices",
            "label": "best",
        },
    }
    recipe["tasks"] = {name: recipe["tasks"][name] for name in TASKS}
    recipe["decide"] = DECIDE
    recipe["training"] |= {"num_train_epochs": 4, "learning_rate": 3e-2}
    return recipe


@pytest.fixture(scope="module")
def decided(tmp_path_factory, tokenizer_of) -> SimpleNamespace:
    """A run with decisions for all tasks that have some."""
    folder = tmp_path_factory.mktemp("decided")
    recipe = write_recipe(folder / "recipe.yaml", small_recipe(folder, tokenizer_of("wordpiece")))
    scores = run.train(recipe)
    return SimpleNamespace(
        folder=folder, recipe=recipe, scores=scores, model=folder / "out" / "model"
    )


def pipe_of(folder: Path, **changes) -> PolyheadPipeline:
    """The saved model's pipeline, with options of its tasks changed where they have them."""
    model = PolyheadModel.from_pretrained(folder)
    for task in model.config.tasks.values():
        for name, value in changes.items():
            setattr(task, name, value)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu", compute="exact")


def rows_of(folder: Path, split: str) -> list[dict]:
    lines = (folder / f"messages_{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_config(decided) -> dict:
    return json.loads((decided.model / "config.json").read_text())["tasks"]


@pytest.mark.slow
class TestFound:
    """What is in config.json is what the raw model's answers to the validation rows say."""

    def logits(self, decided, task: str) -> torch.Tensor:
        rows = rows_of(decided.folder, "validation")
        pipe = pipe_of(decided.model, calibration=None)
        labels = pipe.model.config.tasks[task].labels
        answers = pipe([row["text"] for row in rows], [task], top_k=None)
        found = []
        for answer in answers:
            chances = {entry["label"]: entry["score"] for entry in answer[task]}
            found.append([chances[label] for label in labels])
        chances = torch.tensor(found, dtype=torch.float64)
        return chances.logit() if task == "topics" else chances.log()

    def test_a_temperature_and_a_score_of_one_label(self, decided):
        rows, task = rows_of(decided.folder, "validation"), read_config(decided)["intent"]
        logits = self.logits(decided, "intent")
        truth = torch.tensor([task["labels"].index(row["intent"]) for row in rows])
        temperature = temperature_of(logits, truth)
        assert task["calibration"] == pytest.approx(temperature, rel=1e-4)
        scores = (logits / temperature).softmax(-1)
        right = scores.argmax(-1) == truth
        scored = list(zip(scores.amax(-1).tolist(), right.tolist(), strict=True))
        assert task["abstain"] == pytest.approx(precise_threshold(scored, 0.8), abs=1e-5)
        assert task["abstain"] > scores.amax(-1).min()  # some are held back

    def test_a_temperature_and_thresholds_of_several(self, decided):
        rows, task = rows_of(decided.folder, "validation"), read_config(decided)["topics"]
        logits = self.logits(decided, "topics")
        truth = torch.tensor([[int(x in row["topics"]) for x in task["labels"]] for row in rows])
        temperature = temperature_of(logits, truth)
        assert task["calibration"] == pytest.approx(temperature, rel=1e-3)
        chances = (logits / temperature).sigmoid()
        for number, label in enumerate(task["labels"]):
            hits = truth[:, number].bool().tolist()
            scored = list(zip(chances[:, number].tolist(), hits, strict=True))
            threshold = best_threshold(scored, sum(hits))
            assert task["thresholds"][label] == pytest.approx(threshold, abs=1e-4)

    def test_a_score_of_entities(self, decided):
        rows, task = rows_of(decided.folder, "validation"), read_config(decided)["slots"]
        answers = pipe_of(decided.model, abstain=None)([row["text"] for row in rows], ["slots"])
        scored = []
        for row, answer in zip(rows, answers, strict=True):
            true = spans(row)
            scored += [(e["score"], (e["start"], e["end"]) in true) for e in answer["slots"]]
        assert len(scored) > 5
        assert task["abstain"] == pytest.approx(precise_threshold(scored, 0.8), abs=1e-5)
        assert task["calibration"] > 0

    def test_what_a_task_cannot_decide_it_has_not(self, decided):
        tasks = read_config(decided)
        options = {
            name: {"calibration", "thresholds", "abstain"} & set(t) for name, t in tasks.items()
        }
        both = {"calibration", "abstain"}
        assert options["topics"] == {"calibration", "thresholds"}
        assert options["intent"] == options["slots"] == both
        assert options["urgency"] == set()
        assert "abstain" in options["best"]


def spans(row: dict) -> set[tuple[int, int]]:
    """First and last character of each entity."""
    found, position = [], 0
    for token, tag in zip(row["tokens"], row["tags"], strict=True):
        start = row["text"].index(token, position)
        position = start + len(token)
        if tag == "B-city":
            found.append([start, position])
        elif tag == "I-city":
            found[-1][1] = position
    return set(map(tuple, found))


@pytest.mark.slow
class TestTold:
    def test_inspect_has_what_config_has(self, decided, capsys):
        assert run_cli("inspect", decided.model, "--json") == 0
        report, config = json.loads(capsys.readouterr().out)["tasks"], read_config(decided)
        found = {name: report[name]["decisions"] for name in report}
        assert found == {
            name: {key: task[key] for key in DECISIONS if key in task}
            for name, task in config.items()
        }
        assert found["intent"]
        assert found["urgency"] == {}
        assert run_cli("inspect", decided.model) == 0
        lines = capsys.readouterr().out.splitlines()
        told = [line.strip() for line in lines[lines.index("Decisions") + 1 : -1]]
        intent, topics = config["intent"], config["topics"]
        low, high = (function(topics["thresholds"].values()) for function in (min, max))
        assert [line.partition(":")[0] for line in told] == [n for n in found if found[n]]
        assert (
            f"intent: temperature {intent['calibration']:.4g}, "
            f"no answer below {intent['abstain']:.4g}"
        ) in told
        assert (
            f"topics: temperature {topics['calibration']:.4g}, thresholds {low:.3g} to {high:.3g}"
        ) in told

    def test_scores_have_what_the_answers_to_the_test_rows_say(self, decided):
        rows = rows_of(decided.folder, "test")
        answers = pipe_of(decided.model)([row["text"] for row in rows])
        decisions = decided.scores["decisions"]
        given = [
            (answer["intent"]["label"], row["intent"])
            for answer, row in zip(answers, rows, strict=True)
            if answer["intent"]["label"] is not None
        ]
        assert decisions["intent"]["kept"] == share_of(len(given), len(rows))
        assert decisions["intent"]["precision"] == share_of(
            sum(a == b for a, b in given), len(given)
        )
        set_ = [
            (entry["label"] in row["topics"])
            for answer, row in zip(answers, rows, strict=True)
            for entry in answer["topics"]
        ]
        with_one = sum(bool(answer["topics"]) for answer in answers)
        assert decisions["topics"]["kept"] == share_of(with_one, len(rows))
        assert decisions["topics"]["precision"] == share_of(sum(set_), len(set_))
        entities = [
            (e["start"], e["end"]) in spans(row)
            for answer, row in zip(answers, rows, strict=True)
            for e in answer["slots"]
        ]
        assert decisions["slots"]["precision"] == share_of(sum(entities), len(entities))

    def test_reports_runs_and_evaluate_say_the_same(self, decided, capsys):
        decisions = decided.scores["decisions"]
        assert list(decisions) == ["best", "intent", "slots", "topics"]
        report = json.loads((decided.folder / "out/reports/intent.json").read_text())
        assert report["decision"] == decisions["intent"]
        assert report["decision"]["ece"] == report["reliability"]["ece"]
        runs = json.loads((decided.model / "training.json").read_text())
        assert runs[-1]["decisions"] == decisions
        again = evaluate(decided.model, decided.recipe)
        assert list(again) == ["tasks", "macro", "decisions"]
        for name, decision in decisions.items():
            other = again["decisions"][name]
            assert other["kept"] == decision["kept"]
            assert other.get("ece") == pytest.approx(decision.get("ece"), abs=1e-5)
        assert run_cli("evaluate", decided.model, decided.recipe) == 0
        assert "no answer below" in capsys.readouterr().out
        assert run_cli("report", decided.folder / "out") == 0
        page = (decided.folder / "out/reports/report.html").read_text()
        assert "ECE before" in page

    def test_the_card_has_a_table(self, decided):
        card = (decided.model / "README.md").read_text()
        assert "| task | decided | ECE before | ECE | kept | precision | rows |" in card
        row = next(line for line in card.splitlines() if line.startswith("| `intent` | temp"))
        assert row.endswith("| test |")
        assert "whatever the text, but for `best`, `intent`, `slots` below a score" in card

    def test_the_metrics_count_every_answer(self, decided):
        rows = rows_of(decided.folder, "test")
        answers = pipe_of(decided.model, abstain=None)([row["text"] for row in rows], ["intent"])
        right = [a["intent"]["label"] == r["intent"] for a, r in zip(answers, rows, strict=True)]
        accuracy = decided.scores["tasks"]["intent"]["accuracy"]
        assert accuracy == pytest.approx(sum(right) / len(rows))

    def test_the_metrics_of_several_labels_are_those_of_their_thresholds(self, decided):
        rows = rows_of(decided.folder, "test")
        answers = pipe_of(decided.model)([row["text"] for row in rows], ["topics"])
        hits = found = true = 0
        for answer, row in zip(answers, rows, strict=True):
            labels = {entry["label"] for entry in answer["topics"]}
            hits, found = hits + len(labels & {*row["topics"]}), found + len(labels)
            true += len(row["topics"])
        f1 = decided.scores["tasks"]["topics"]["f1_micro"]
        assert f1 == pytest.approx(2 * hits / (found + true))


@pytest.mark.slow
@pytest.mark.slow
def test_weights_are_those_of_the_run_without(decided, tokenizer_of, tmp_path):
    recipe = small_recipe(tmp_path, tokenizer_of("wordpiece"))
    del recipe["decide"]
    scores = run.train(write_recipe(tmp_path / "recipe.yaml", recipe))
    assert "decisions" not in scores
    weights = [(folder / "model.safetensors").read_bytes() for folder in
               (decided.model, tmp_path / "out/model")]  # fmt: skip
    assert weights[0] == weights[1]
    one = scores["tasks"]["intent"]
    assert one == decided.scores["tasks"]["intent"]  # a temperature changes no label


@pytest.mark.slow
@pytest.mark.slow
def test_tasks_on_top_leave_the_decisions_of_others(decided, tmp_path):
    data = {"data_files": files_of("messages"), "text": "text", "label": "best"}
    recipe = {
        "tasks": {"more": {"head": "sequence_classification", "data": data}},
        "decide": {"calibrate": True},
        "training": {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True},
        "output_dir": str(tmp_path / "out"),
    }
    path = write_recipe(decided.folder / "more.yaml", recipe)
    assert run_cli("add-task", decided.model, path) == 0
    tasks = json.loads((tmp_path / "out/model/config.json").read_text())["tasks"]
    before = read_config(decided)
    assert {name: tasks[name] for name in before} == before
    runs = json.loads((tmp_path / "out/model/training.json").read_text())
    assert "intent" in runs[0]["decisions"]


@pytest.mark.slow
@pytest.mark.slow
def test_a_task_that_trains_on_begins_without_them(decided, tmp_path, caplog):
    recipe = load_recipe(decided.recipe)
    data = {"data_files": files_of("messages"), "text": "text", "label": "intent"}
    path = write_recipe(decided.folder / "on.yaml", {
        "encoder": {"model": str(decided.model), "keep_tasks": ["intent"]},
        "tasks": {"intent": {"head": "sequence_classification", "data": data}},
        "training": {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True},
        "output_dir": str(tmp_path / "out"),
    })  # fmt: skip
    with caplog.at_level("INFO"):
        run.train(path)
    task = json.loads((tmp_path / "out/model/config.json").read_text())["tasks"]["intent"]
    assert not {"calibration", "abstain"} & set(task)
    assert "intent: it trains on, so its calibration, abstain are dropped" in caplog.text
    assert recipe.decide is not None


class TestRecipe:
    def faults(self, tmp_path, tokenizer_of, **keys) -> str:
        recipe = small_recipe(tmp_path, tokenizer_of("wordpiece"))
        del recipe["decide"]
        for key, value in keys.items():
            set_key(recipe, key.replace("__", "."), value)
        with pytest.raises(UserError) as fault:
            load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
        return str(fault.value)

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            ({"decide": {}}, "decide: asks for nothing; write calibrate, threshold, abstain"),
            ({"tasks__intent__decide": {}}, "tasks.intent.decide: asks for nothing"),
            ({"tasks__intent__decide": {"threshold": "macro_f1"}},
             "tasks.intent.decide.threshold: only for tasks with several labels a row"),
            ({"tasks__urgency__decide": {"calibrate": True}},
             "tasks.urgency.decide.calibrate: only for tasks with probabilities"),
            ({"tasks__topics__decide": {"abstain": {"precision": 0.9}}},
             "tasks.topics.decide.abstain: only for tasks with one label a row"),
            ({"tasks__topics__decide": {"threshold": "macro_f1"}, "tasks__topics__threshold": 0.3},
             "tasks.topics.threshold: decide finds one for each label; take one of them out"),
            ({"decide": {"abstain": 0.9}}, "decide.abstain: "),
            ({"decide": {"abstain": {"precision": 1.5}}}, "decide.abstain.precision: "),
            ({"decide": {"abstain": {"recall": 0.5}}}, "decide.abstain.recall: unknown key"),
            ({"decide": {"threshold": "f1"}}, "decide.threshold: "),
            ({"decide": {"calibrate": True, "temperature": 2}}, "decide.temperature: unknown key"),
        ],
    )  # fmt: skip
    def test_what_does_not_go_together_is_told(self, keys, says, tmp_path, tokenizer_of):
        assert says in self.faults(tmp_path, tokenizer_of, **keys)

    def test_a_part_that_no_task_reads(self, tmp_path, tokenizer_of):
        recipe = small_recipe(tmp_path, tokenizer_of("wordpiece"))
        del recipe["tasks"]["topics"]
        with pytest.raises(
            UserError, match=r"decide.threshold: only for tasks with several labels"
        ):
            load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))

    def test_rows_to_decide_by_are_needed(self, tmp_path, tokenizer_of):
        recipe = small_recipe(tmp_path, tokenizer_of("wordpiece"))
        set_key(recipe, "tasks.best.data.data_files", files_of("messages", "train", "test"))
        with pytest.raises(UserError, match=r"tasks.best.data: no validation rows with a label"):
            run.train(write_recipe(tmp_path / "recipe.yaml", recipe))
        assert not (tmp_path / "out").exists()
        set_key(recipe, "tasks.best.decide", {})  # as the message says
        kept = decisions_of(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)))
        assert list(kept) == ["intent", "slots", "topics"]

    def test_a_task_has_its_own_before_the_recipes(self, tmp_path, tokenizer_of):
        recipe = small_recipe(tmp_path, tokenizer_of("wordpiece"))
        recipe["decide"] = {"calibrate": True}
        set_key(recipe, "tasks.topics.decide", {"threshold": {"precision": 0.9}})
        read = load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
        decisions = decisions_of(read)
        assert (decisions["topics"].calibrate, decisions["topics"].threshold.precision) == (
            False,
            0.9,
        )
        assert (decisions["intent"].calibrate, decisions["intent"].threshold) == (True, None)
        assert decisions_of(parse_recipe(read.to_yaml())) == decisions

    @pytest.mark.slow
    def test_rows_that_mark_new_labels_only_decide_nothing(self, decided, tmp_path, capsys):
        data = {"data_files": files_of("messages"), "text": "text", "label": "intent"}
        data |= {"marks": ["new"], "unmarked": "old"}
        path = write_recipe(decided.folder / "extend.yaml", {
            "tasks": {"intent": {"head": "sequence_classification", "data": data}},
            "decide": {"calibrate": True},
            "output_dir": str(tmp_path / "out"),
        })  # fmt: skip
        assert run_cli("extend-task", decided.model, path) == 2
        told = "\n".join(message_of(capsys.readouterr().err))
        assert "decide: the rows mark new labels only" in told


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("place", ["task", "recipe"])
def test_from_python(place, tmp_path, encoder_folder):
    decide = {"abstain": {"precision": 0.4}}
    of_task, of_recipe = (decide, None) if place == "task" else (None, decide)
    result = train(
        tasks={
            "intent": Task(
                head="sequence_classification",
                data={"train": noisy(30, 0), "validation": noisy(40, 30)},
                text="text",
                label="intent",
                decide=of_task,
            )
        },
        encoder=encoder_folder("bert"),
        output_dir=tmp_path / "run",
        training={"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True},
        decide=of_recipe,
    )
    assert result.model.config.tasks["intent"].abstain is not None
    assert result.scores["decisions"]["intent"]["kept"]["of"] == 40
