"""Teachers that tag rows of other tasks for a token task."""

import json

import pytest
import torch
import torch.nn.functional as F
from polyhead.modeling.heads import IGNORE
from polyhead.train.batches.collator import TAUGHT, model_inputs
from polyhead.train.commands.fitting import fit, make_trainer
from polyhead.train.commands.setup import prepare
from polyhead.train.commands.teaching_elsewhere import beginnings
from polyhead.train.commands.training import train
from polyhead.train.errors import UserError
from polyhead.train.inference.load import load_model
from polyhead.train.recipe import load_recipe
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
from transformers import AutoTokenizer

SEQUENCE, TOKENS = "sequence_classification", "token_classification"
OTHERS = "distill.rows=others"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, encoder_folder):
    """Slots beside tasks over other rows: texts, pairs in one sequence, and pairs of vectors."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_splits(folder, "messages", messages)
    write_splits(folder, "others", lambda count, start=0: messages(count // 2, start + 100))
    write_splits(folder, "pairs", pairs)
    words = {"data_files": files_of("messages"), "tokens": "tokens", "label": "tags"}
    text = {"data_files": files_of("others"), "text": "text", "label": "intent"}
    pair = {"data_files": files_of("pairs"), "text": "text1", "text_pair": "text2"}
    content = {
        "encoder": str(encoder_folder("bert")),
        "tasks": {
            "slots": {"head": TOKENS, "data": words, "dropout": 0.0},
            "intent": {"head": SEQUENCE, "data": text, "dropout": 0.0},
            "same": {"head": SEQUENCE, "data": {**pair, "label": "same"}, "dropout": 0.0},
            "near": {"head": "embedding", "data": {**pair, "label": "score"}},
        },
        "training": {**QUIET, "num_train_epochs": 1},
        "output_dir": str(folder / "run"),
    }
    return write_recipe(folder / "recipe.yaml", content)


@pytest.fixture(scope="module")
def teacher(recipe):
    """Folder of a model of slots, far from its first weights."""
    output = recipe.parent / "teacher"
    train(recipe, [f"output_dir={output}", "training.learning_rate=1e-2"])
    return output / "model"


def trainer_of(recipe, teacher, *options):
    run = prepare(recipe, [f"distill.teachers.slots={teacher}", OTHERS, *options])
    return run, make_trainer(run)


def test_as_many_rows_as_the_task_has_get_the_tags_of_the_teacher(recipe, teacher):
    run, trainer = trainer_of(recipe, teacher)
    model, tokenizer = load_model(teacher)
    parts = trainer.train_dataset.parts
    own = next(name for name, tasks in trainer.sources.items() if "slots" in tasks)
    assert TAUGHT + "slots" not in parts[own].column_names
    taught = [
        row for name, part in parts.items() if name != own for row in part if row[TAUGHT + "slots"]
    ]
    others = sum(len(part) for name, part in parts.items() if name != own)
    assert len(taught) == min(len(parts[own]), others)
    assert {len(row["input_ids"]) for row in taught} == {1, 2}
    for row in taught:
        for number, text in enumerate(row["input_ids"]):
            inputs = {"input_ids": torch.tensor([text])}
            if row.get("token_type_ids"):
                inputs["token_type_ids"] = torch.tensor([row["token_type_ids"][number]])
            with torch.no_grad():
                logits = model.eval()(**inputs, tasks=["slots"]).logits["slots"][0]
            begins = [
                token not in tokenizer.all_special_ids and not written.startswith("##")
                for token, written in zip(text, tokenizer.convert_ids_to_tokens(text), strict=True)
            ]
            tags = logits.argmax(-1).tolist()
            expected = [t if b else IGNORE for t, b in zip(tags, begins, strict=True)]
            assert row[TAUGHT + "slots"][number] == expected
    again = make_trainer(run).train_dataset.parts
    assert {name: part[:] for name, part in again.items()} == {n: p[:] for n, p in parts.items()}


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_tag_stands_at_the_first_token_of_a_word(family, encoder_folder):
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder(family))
    encoding = tokenizer("unbelievable bookings of Zürich")
    ids, words = encoding["input_ids"], encoding.word_ids()
    marked = range(1 if family == "bert" else 2, len(ids))  # no space before RoBERTa's first word
    expected = {ids[n] for n in marked if words[n] not in (None, words[n - 1])}
    assert len(set(ids) - expected) > 3, "words of one token show nothing"
    assert set(beginnings(tokenizer, set(ids)).tolist()) == expected


@pytest.mark.parametrize("packing", ["true", "false"])
def test_their_tokens_count_as_labelled_ones(recipe, teacher, packing):
    _, trainer = trainer_of(recipe, teacher, f"sampling.packing={packing}")
    dataset, model = trainer.train_dataset, trainer.model.eval()
    rows = dataset.__getitems__(list(range(len(dataset))))
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        loss = model(**model_inputs(batch)).losses["slots"]
        total, units = torch.zeros(()), 0
        for row in rows:
            tags = row.get(TAUGHT + "slots") or [row.get("labels_slots")]
            for number, (text, of_text) in enumerate(zip(row["input_ids"], tags, strict=False)):
                if of_text is None:
                    continue
                inputs = {"input_ids": torch.tensor([text])}
                if row.get("token_type_ids"):
                    inputs["token_type_ids"] = torch.tensor([row["token_type_ids"][number]])
                logits = model(**inputs, tasks=["slots"]).logits["slots"][0]
                labels = torch.tensor(of_text)
                total += F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
                units += int((labels != IGNORE).sum())
    assert int(model.count_items(batch["labels"])["slots"]) == units
    assert_close(loss, total / units, rtol=1e-5, atol=1e-6)


def test_what_it_does_not_go_with_is_one_message(recipe, teacher):
    options = [f"distill.teachers.{name}={teacher}" for name in ("slots", "intent")]
    options += [OTHERS, "distill.anneal=false", "optimizer.by_task=moments"]
    with pytest.raises(UserError) as error:
        load_recipe(recipe, [*options, "tasks.slots.adapter={type: lora, r: 2}"])
    assert error.value.faults == [
        "distill.anneal: without effect beside rows: others, whose tags are labels; take it out",
        "distill.teachers.slots: rows: others would send other tasks' rows through its adapter "
        "too; take one of them out",
        "distill.teachers.intent: rows: others is for tasks over tokens, sequence_classification "
        "is none; retain keeps what others knew",
        "distill.rows: others does not go with optimizer.by_task; take one out",
    ]


def test_a_teacher_that_cuts_texts_otherwise_is_refused(recipe, encoder_folder):
    output = recipe.parent / "roberta"
    train(recipe, [f"encoder={encoder_folder('roberta')}", f"output_dir={output}"])
    run = prepare(recipe, [f"distill.teachers.slots={output}/model", OTHERS])
    with pytest.raises(UserError, match="another tokenizer; with rows: others give a teacher on"):
        make_trainer(run)


def test_alone_outside_of_a_training_is_refused(recipe):
    for options in ([OTHERS], []):
        run = prepare(recipe, ["distill.teachers.slots=alone", *options])
        with pytest.raises(UserError, match="alone is for `polyhead train`; give a folder"):
            fit(run)


@pytest.mark.slow
def test_a_teacher_is_trained_alone_first_and_stays(recipe):
    options = ["distill.teachers.slots=alone", OTHERS, f"output_dir={recipe.parent / 'alone'}"]
    scores = train(recipe, options)
    folder = recipe.parent / "alone/alone/slots/model"
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    assert sorted(scores["tasks"]) == ["intent", "near", "same", "slots"]
    again = train(recipe, options, overwrite=True)
    assert again == scores
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    about = json.loads((recipe.parent / "alone/model/training.json").read_text(encoding="utf-8"))
    assert "distill" in json.dumps(about)
