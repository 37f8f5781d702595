"""`MultiTaskTrainer` over rows by task, for a model that one has."""

import datasets
import pandas as pd
import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train import MultiTaskTrainer
from polyhead.train.errors import UserError
from train_helpers import INTENTS, SEQUENCE, TOKENS, messages, pairs
from transformers import TrainingArguments

TASKS = {
    "intent": TaskConfig(head=SEQUENCE, labels=INTENTS),
    "slots": TaskConfig(head=TOKENS, labels=["O", "B-city", "I-city"]),
    "same": TaskConfig(head=SEQUENCE, labels=["no", "yes"], pair=True),
    "near": TaskConfig(head="embedding", loss="cosine_mse"),
    "words": TaskConfig(head="masked_lm"),
}
COLUMNS = {
    "intent": {"label": "intent"},
    "slots": {"label": "tags"},
    "same": {"text": "text1", "text_pair": "text2", "label": "same"},
    "near": {"text": "text1", "text_pair": "text2", "label": "score"},
}
TRAIN, DEV = messages(12), messages(4, 12)


@pytest.fixture
def make(make_model, tokenizer_of, tmp_path):
    """Options over those of a small training -> a plain trainer."""

    def trainer(tasks=TASKS, **options) -> MultiTaskTrainer:
        torch.manual_seed(0)
        usual = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "disable_tqdm": True}
        usual |= {"report_to": "none", "save_strategy": "no", "use_cpu": True}
        args = TrainingArguments(output_dir=str(tmp_path / "out"), **usual)
        model = make_model("bert", tasks)
        kept = {"model": model, "args": args, "processing_class": tokenizer_of("wordpiece")}
        return MultiTaskTrainer(**{**kept, **options})

    return trainer


def columns_of(*names: str) -> dict:
    return {name: COLUMNS[name] for name in names if name in COLUMNS}


def test_all_kinds_train_evaluate_and_predict(make):
    train = {"intent": TRAIN, "slots": TRAIN, "words": TRAIN, "same": pairs(12), "near": pairs(12)}
    dev = {"intent": DEV, "slots": DEV, "words": DEV, "same": pairs(4), "near": pairs(4)}
    trainer = make(train_dataset=train, eval_dataset=dev, columns=COLUMNS)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for name in TASKS:  # each head has moved, or what the head shares
        changed = [
            k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])
        ]
        assert any(k.startswith(f"heads.{name}.") for k in changed) or name == "near"
    metrics = trainer.evaluate()
    assert {"eval_intent_accuracy", "eval_slots_entity_f1", "eval_near_spearman"} <= set(metrics)
    found = trainer.predict(dev)
    assert found.metrics == {k.replace("eval_", "test_"): metrics[k] for k in found_keys(metrics)}
    assert sorted(found.predictions) == ["intent", "near", "same", "slots"]
    assert found.label_ids["intent"] == [row["intent"] for row in DEV]
    assert found.label_ids["words"] is None
    pairs_of = zip(found.predictions["intent"], found.label_ids["intent"], strict=True)
    right = [answer["label"] == label for answer, label in pairs_of]
    assert sum(right) / len(right) == metrics["eval_intent_accuracy"]


def found_keys(metrics: dict) -> list[str]:
    return [key for key in metrics if key not in ("epoch",)]


def test_predictions_are_those_of_the_pipeline(make):
    trainer = make(columns=columns_of("intent", "same"))
    found = trainer.predict({"intent": DEV, "same": pairs(4)}).predictions
    pipe = PolyheadPipeline(model=trainer.model, tokenizer=trainer.processing_class)
    texts = [(row["text1"], row["text2"]) for row in pairs(4)]
    assert found["intent"] == [a["intent"] for a in pipe([r["text"] for r in DEV], ["intent"])]
    assert found["same"] == [answer["same"] for answer in pipe(texts, ["same"])]


def test_predicting_leaves_how_the_model_computes(make):
    trainer = make(columns=columns_of("intent"))
    mode = trainer.model.compute.mode
    trainer.predict({"intent": DEV})
    assert trainer.model.compute.mode == mode


def test_usual_names_of_columns_need_no_columns(make):
    rows = [{"text": row["text"], "label": row["intent"]} for row in TRAIN]
    tags = [{"tokens": row["tokens"], "label": row["tags"]} for row in TRAIN]
    trainer = make(train_dataset={"intent": rows, "slots": tags})
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("kind", [datasets.Dataset.from_list, pd.DataFrame, tuple])
def test_rows_of_any_kind_give_the_same_training(make, kind):
    losses = []
    for make_rows in (list, kind):
        rows = make_rows(TRAIN)
        trainer = make(train_dataset={"intent": rows}, columns=columns_of("intent"))
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]


def test_tasks_over_the_same_rows_are_encoded_once(make):
    trainer = make(
        train_dataset={"intent": TRAIN, "slots": TRAIN}, columns=columns_of("intent", "slots")
    )
    assert trainer.sources == {"intent+slots": ["intent", "slots"]}
    assert len(trainer.train_dataset) == 12


def test_the_arguments_given_are_not_changed(make, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    before = args.to_dict()
    trainer = make(args=args, train_dataset={"intent": TRAIN}, columns=columns_of("intent"))
    assert args.to_dict() == before
    assert not trainer.args.remove_unused_columns


def test_evaluation_alone(make):
    trainer = make(columns=columns_of("intent"))
    with pytest.raises(ValueError, match="there are no rows to evaluate; give eval_dataset"):
        trainer.evaluate()
    assert set(trainer.evaluate({"intent": DEV})) >= {"eval_intent_accuracy", "eval_macro"}


def test_labels_that_the_model_lacks_are_told_and_scored_as_wrong(make, caplog):
    trainer = make(columns=columns_of("intent"))
    rows = [{"text": "what?", "intent": "unheard"}, {"text": "who?", "intent": "unknown"}]
    assert trainer.evaluate({"intent": rows})["eval_intent_accuracy"] == 0
    assert "label 'unheard' is not in the model" in caplog.text


def test_callbacks_metrics_and_an_optimizer(make, make_model):
    model = make_model("bert", TASKS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = make(
        model=model,
        train_dataset={"intent": TRAIN},
        eval_dataset={"intent": DEV},
        columns=columns_of("intent"),
        optimizers=(optimizer, None),
        compute_metrics=lambda task, predictions, references: {"rows": len(references)},
    )
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert trainer.evaluate()["eval_intent_rows"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_dataset": {"intnt": TRAIN}}, "tasks.intnt: the model has no such task; it has: "),
        ({"train_dataset": {"intent": TRAIN}}, "tasks.intent.data.label: split train has no col"),
        ({"train_dataset": {"intent": []}}, "tasks.intent.data: cannot be loaded: train: there"),
        ({"train_dataset": TRAIN}, "train_dataset: a list; give rows by task, as {'intent': rows}"),
        ({"eval_dataset": {}}, "eval_dataset: a dict; give rows by task"),
        ({"train_dataset": {"intent": 7}}, "tasks.intent.data: cannot be loaded: train: a int is"),
        (
            {"train_dataset": {"intent": [{"text": "a", "label": "unheard"}] * 2}},
            "tasks.intent.labels: train has 'unheard'",
        ),
        (
            {"train_dataset": {"slots": [{"tokens": ["a"], "label": ["X"]}] * 2}},
            "tasks.slots",
        ),
        (
            {"train_dataset": {"intent": TRAIN}, "columns": {"intent": {"labl": "intent"}}},
            "columns.intent.labl: unknown key; allowed: text,",
        ),
        (
            {"train_dataset": {"intent": TRAIN}, "columns": {"slotz": {"label": "tags"}}},
            "columns.slotz: the model has no such task; it has: ",
        ),
        (
            {
                "train_dataset": {"intent": TRAIN},
                "eval_dataset": {"same": pairs(4)},
                "columns": columns_of("intent", "same"),
            },
            "tasks.same.data: has rows to evaluate, but none in train_dataset",
        ),
    ],
)
def test_faults_before_anything_is_made(make, tmp_path, options, said):
    with pytest.raises(UserError) as error:
        make(**options)
    assert str(error.value).startswith("MultiTaskTrainer: 1 fault\n")
    assert error.value.faults[0].startswith(said)
    assert not (tmp_path / "out").exists()


def test_the_saved_folder_is_the_one_that_users_load(make, tmp_path):
    trainer = make(train_dataset={"intent": TRAIN}, columns=columns_of("intent"))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    model = PolyheadModel.from_pretrained(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
