"""Old tasks with new labels: what stays to the bit, what changes, and that it is told."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ENCODERS, shake_heads
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.decoding import decode_entities, decode_strict, log_scores, rank_strict
from polyhead.train.commands import edit_tasks, extend_task
from polyhead.train.commands.extend_task import changes
from polyhead.train.export.plain import export_hf
from polyhead.train.hub import save_folder
from polyhead.train.hub.proof import fingerprint
from polyhead.train.inference.load import load_model
from polyhead.train.kinds.values import taught
from train_helpers import (
    QUIET,
    SEQUENCE,
    SPLITS,
    TOKENS,
    private_cache,  # noqa: F401
    run_cli,
    set_key,
    write_recipe,
    write_rows,
)

ROWS = [
    {"tokens": ["book", "the", "train", "to", "Paris"], "tags": ["O", "O", "B-car", "O", "O"]},
    {"tokens": ["cancel", "it"], "tags": ["O", "O"]},
    {"tokens": ["the", "train", "now"], "tags": ["O", "B-car", "O"]},
]
MAIL = [
    {"text": "book the train", "label": "else"},
    {"text": "thanks a lot", "label": "thank"},
    {"text": "cancel it", "label": "else"},
]
TRAINING = {
    **QUIET,
    "num_train_epochs": 3,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
}


@pytest.fixture(scope="module", autouse=True)
def _hashes_here() -> Iterator[None]:
    """Hashes without a process of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (edit_tasks, extend_task):
            patch.setattr(
                module, "fresh_fingerprint", lambda f: fingerprint(PolyheadModel.from_pretrained(f))
            )
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_model, tokenizer_of) -> SimpleNamespace:
    """A model of two tasks, and rows for new labels of them."""
    folder = tmp_path_factory.mktemp("finished")
    tasks = {
        "slots": TaskConfig(head=TOKENS, labels=["O", "B-city", "I-city"], scheme="iob2"),
        "intent": TaskConfig(head=SEQUENCE, labels=["book", "cancel"]),
    }
    model = make_model("bert", tasks)
    shake_heads(model)
    tokenizer = tokenizer_of(ENCODERS["bert"][0])
    save_folder(model, tokenizer, folder / "model")
    write_rows(folder / "rows.jsonl", ROWS)
    write_rows(folder / "mail.jsonl", MAIL)
    return SimpleNamespace(folder=folder, model=folder / "model", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def grown(finished) -> Callable[..., Path]:
    """(task, keep=) -> folder of the run that gave the task a label; each is made once."""
    runs = {}

    def run(task: str, keep: str = "weights") -> Path:
        if (task, keep) not in runs:
            runs[task, keep] = folder = finished.folder / f"{task}_{keep}"
            recipe = recipe_of(finished, task)
            options = (f"output_dir={folder}", "--keep", keep)
            assert run_cli("extend-task", finished.model, recipe, *options) == 0
        return runs[task, keep]

    return run


def recipe_of(finished: SimpleNamespace, task: str, **changed: object) -> Path:
    name = {"slots": "rows", "intent": "mail"}[task]
    files = {s: f"${{RECIPE_DIR}}/{name}.jsonl" for s in ("train", "validation", "test")}
    data = {"data_files": files}
    if task == "slots":
        options = {"head": TOKENS, "data": {**data, "tokens": "tokens", "label": "tags"}}
        options["data"]["marks"] = ["car"]
    else:
        options = {"head": SEQUENCE, "data": {**data, "text": "text", "label": "label"}}
        options["data"] |= {"marks": ["thank"], "unmarked": "else"}
    recipe = {"tasks": {task: options}, "training": TRAINING, "output_dir": "${RECIPE_DIR}/out"}
    for key, value in changed.items():
        set_key(recipe, f"tasks.{task}.{key.replace('__', '.')}", value)
    return write_recipe(finished.folder / "grow.yaml", recipe)


def logits_of(folder: Path, task: str) -> torch.Tensor:
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        logits = PolyheadModel.from_pretrained(folder)(input_ids=ids, tasks=[task]).logits
    return logits[task]


@pytest.mark.parametrize("task", ["slots", "intent"])
@pytest.mark.parametrize("keep", ["weights", "strict"])
def test_logits_of_old_labels_and_other_tasks_stay_to_the_bit(finished, grown, task, keep):
    run = grown(task, keep)
    old, new = logits_of(finished.model, task), logits_of(run / "model", task)
    assert torch.equal(old, new[..., : old.shape[-1]])
    other = {"slots": "intent", "intent": "slots"}[task]
    assert torch.equal(logits_of(finished.model, other), logits_of(run / "model", other))
    config = PolyheadModel.from_pretrained(run / "model").config.tasks[task]
    assert (
        config.labels
        == {
            "slots": ["O", "B-city", "I-city", "B-car", "I-car"],
            "intent": ["book", "cancel", "thank"],
        }[task]
    )
    assert (config.strict is None) == (keep == "weights")
    told = json.loads((run / "extension.json").read_text())[task]
    assert told["rows"] == 6
    assert told["changed"] == len(told["list"]) == told["where_put"] + told["elsewhere"]
    if keep == "strict":
        assert told["elsewhere"] == 0
    proof = json.loads((run / "model/proof.json").read_text())[-1]
    assert (proof["change"], proof["changed"], list(proof["tasks"])) == (
        "extended", [task], [other],
    )  # fmt: skip


def test_strict_answers_are_the_old_ones_with_their_scores_but_where_a_new_label_is(
    finished, grown
):
    texts = [" ".join(row["tokens"]) for row in ROWS] + ["Paris and Berlin, now!"]
    old, new = (
        PolyheadPipeline(model=load_model(folder)[0], tokenizer=finished.tokenizer)(texts)
        for folder in (finished.model, grown("slots", "strict") / "model")
    )
    for before, after in zip(old, new, strict=True):
        put = [e for e in after["slots"] if e["entity_group"] == "car"]
        kept = [
            e
            for e in before["slots"]
            if not any(p["start"] < e["end"] and e["start"] < p["end"] for p in put)
        ]
        assert [e for e in after["slots"] if e["entity_group"] != "car"] == kept  # scores too
        assert before["intent"] == after["intent"]


def test_an_adapter_trains_the_tasks_states_with_the_old_model_as_teacher(finished):
    recipe, run = recipe_of(finished, "slots", adapter={"r": 2}), finished.folder / "adapted"
    assert run_cli("extend-task", finished.model, recipe, f"output_dir={run}") == 0
    model = PolyheadModel.from_pretrained(run / "model")
    assert [model.config.tasks[name].adapter for name in ("slots", "intent")] == ["slots", None]
    before = PolyheadModel.from_pretrained(finished.model).heads["slots"].state_dict()
    after = model.heads["slots"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_grown_model_grows_again_and_exports_as_one_layer(finished, grown):
    first = grown("slots") / "model"
    rows = [{**row, "tags": [tag.replace("car", "bus") for tag in row["tags"]]} for row in ROWS]
    files = dict.fromkeys(SPLITS, str(write_rows(finished.folder / "buses.jsonl", rows)))
    again = recipe_of(finished, "slots", data__marks=["bus"], data__data_files=files)
    output = f"output_dir={finished.folder}/more"
    assert run_cli("extend-task", first, again, output, "--keep=strict") == 0
    more = finished.folder / "more/model"
    config = PolyheadModel.from_pretrained(more).config.tasks["slots"]
    assert config.grown == [2, 2]
    assert set(config.strict) == {"bus"}
    assert torch.equal(logits_of(first, "slots"), logits_of(more, "slots")[..., :5])
    model, tokenizer = load_model(first)
    plain = finished.folder / "plain"
    assert export_hf(model, tokenizer, task="slots", folder=plain) == "BertForTokenClassification"
    assert run_cli("export", more, "hf", "--task", "slots", "--output", plain, "--overwrite") == 2
    with pytest.raises(ValueError, match="thresholds of its own"):
        PolyheadModel.from_pretrained(more).view("slots")


def test_a_proof_of_a_grown_task_made_elsewhere_compares_its_weights_alone(finished, grown):
    less = finished.folder / "less"
    assert run_cli("remove-task", grown("slots") / "model", "intent", "--output", less) == 0
    assert edit_tasks.verify(less) == {"tasks": ["slots"], "logits_compared": True}
    proofs = json.loads((less / "proof.json").read_text())
    proofs[-1]["made_with"]["threads"] = 99
    proofs[-1]["tasks"]["slots"] |= {"logits": "other", "older_logits": "other"}
    (less / "proof.json").write_text(json.dumps(proofs))
    assert edit_tasks.verify(less) == {"tasks": ["slots"], "logits_compared": False}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data__marks": ["city"]}, "data.marks: the model has city already"),
        ({"data__marks": None}, "data.marks: missing; list the labels"),
        ({"scheme": "bioes"}, "scheme: it is the model's; take it out"),
        ({"labels": ["O"]}, "labels: data.marks names the new ones"),
        ({"head": SEQUENCE, "data__tokens": None, "data__text": "tokens"}, "the model's is token_"),
        ({"adapter": "slots"}, "adapter: give its options"),
    ],
)
def test_what_does_not_fit_the_task_is_told(finished, changed, says, capsys):
    assert run_cli("extend-task", finished.model, recipe_of(finished, "slots", **changed)) == 2
    assert says in capsys.readouterr().err
    assert not (finished.folder / "out").exists()


def test_strict_takes_no_adapter(finished, capsys):
    recipe = recipe_of(finished, "slots", adapter={"r": 2})
    assert run_cli("extend-task", finished.model, recipe, "--keep=strict") == 2
    assert "would change what the old labels read" in capsys.readouterr().err


# ---- parts ----


def test_scores_of_old_labels_are_those_without_the_new_ones():
    logits = torch.randn(7, 5)
    scores = log_scores(logits, 2)
    assert torch.equal(scores[:, :3], logits[:, :3].log_softmax(-1))
    assert torch.equal(scores[:, 3:], logits.log_softmax(-1)[:, 3:])


def test_a_new_class_wins_from_its_threshold_on_only():
    logits = torch.tensor([1.0, 0.0, 2.0])
    p = logits.softmax(-1)[2].item()
    older = logits[:2].softmax(-1)[0].item()
    ranked = rank_strict(logits, ["a", "b", "new"], {"new": p})
    assert [(e["label"], e["score"]) for e in ranked[:2]] == [("new", p), ("a", older)]
    ranked = rank_strict(logits, ["a", "b", "new"], {"new": p + 1e-4})
    assert [e["label"] for e in ranked] == ["a", "b", "new"]
    assert ranked[0]["score"] == older


def test_a_new_entity_takes_the_place_of_the_old_ones_that_it_meets():
    labels = ["O", "B-city", "I-city", "B-car", "I-car"]
    logits = torch.zeros(3, 5)
    logits[0, 1] = logits[1, 2] = logits[2, 1] = 5.0  # Rio Grande is a city, Rome another
    logits[1, 3] = 8.0
    units = [[(0, 3)], [(4, 10)], [(11, 15)]]
    text, scores = "Rio Grande Rome", log_scores(logits, 2)
    old = decode_entities(text, units, logits[:, :3].log_softmax(-1), labels[:3], "iob2")
    assert [e["word"] for e in old] == ["Rio Grande", "Rome"]
    new = decode_strict(text, units, scores, labels, "iob2", None, {"car": 0.5})
    assert [(e["entity_group"], e["word"]) for e in new] == [("car", "Grande"), ("city", "Rome")]
    assert new[1] == old[1]
    assert decode_strict(text, units, scores, labels, "iob2", None, {"car": 0.99}) == old


def test_changes_tell_those_beside_a_new_label_apart():
    def entity(label, start, end):
        return {"entity_group": label, "start": start, "end": end}

    rows = [
        ("same", [entity("city", 0, 4)], [entity("city", 0, 4)]),
        ("put", [entity("city", 0, 4)], [entity("car", 2, 6)]),
        ("gone", [entity("city", 0, 4)], []),
        ("class", {"label": "a"}, {"label": "car"}),
        ("other", {"label": "a"}, {"label": "b"}),
    ]
    told = changes(rows, {"B-car", "I-car", "car"})
    counts = {key: value for key, value in told.items() if key != "list"}
    assert counts == {"rows": 5, "changed": 4, "where_put": 2, "elsewhere": 2}
    assert [row["text"] for row in told["list"] if row["elsewhere"]] == ["gone", "other"]


def test_a_teacher_of_the_old_labels_says_nothing_of_units_with_a_new_one():
    values, targets = torch.randn(4, 3), torch.randn(4, 2)
    labels = torch.tensor([0, 2, 3, 1])  # old, new, either of the old ones, old
    student, teacher = taught(values, targets, labels)
    assert torch.equal(student, values[[0, 2, 3], :2])
    assert torch.equal(teacher, targets[[0, 2, 3]])
