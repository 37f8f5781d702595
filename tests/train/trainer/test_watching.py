"""Gradients by layer, learning rates by part, losses that can be compared, scores of train rows."""

import re

import pytest
import torch
from polyhead.modeling.losses import cosent
from polyhead.train.batches.collator import model_inputs
from polyhead.train.commands.fitting import make_trainer
from polyhead.train.commands.setup import prepare
from polyhead.train.errors import UserError
from polyhead.train.recipe.sections import (
    Balancing,
    Freeze,
    MultiTaskArguments,
    OptimizerOptions,
    Unfreeze,
)
from train_helpers import (
    files_of,
    pairs,
    private_cache,  # noqa: F401
    task,
    write_recipe,
    write_splits,
)
from trainer_fixtures import history, logged


def pairs_task(data, **options):
    texts = {"text": "text1", "text_pair": "text2", "label": "score", "loss": "cosent"}
    return {"near": task("embedding", data_files=data("pairs"), **texts, **options)}


def test_the_norm_of_each_layer_is_that_of_its_gradient(build):
    multitask = MultiTaskArguments(balancing=Balancing(method="none", gradient_steps=2))
    trainer = build(size=64, max_steps=3, learning_rate=0.0, multitask=multitask)
    (batch,) = trainer.get_train_dataloader()
    step = trainer.optimizer_step
    outputs = trainer.model(**model_inputs(batch))
    weight = trainer.model.config.tasks
    sum(weight[n].loss_weight * loss for n, loss in outputs.losses.items()).backward()
    encoder = trainer.model.encoder
    parts = {
        "gradient_embeddings": encoder.embeddings,
        "gradient_layer_0": encoder.encoder.layer[0],
        "gradient_layer_1": encoder.encoder.layer[1],
    }
    wanted = {
        name: torch.cat([p.grad.flatten() for p in part.parameters()]).norm().item()
        for name, part in parts.items()
    }
    trainer.model.zero_grad()
    trainer.train()
    lines = logged(trainer, "gradient_")
    assert [set(line) for line in lines] == [set(wanted)] * 2  # steps 0 and 2
    assert lines[0] == pytest.approx(wanted, rel=1e-4)
    assert step.layers.values == {}


@pytest.mark.parametrize("options", [{"gradient_steps": 0}, {}])
def test_gradients_by_layer_may_be_left_out(build, options):
    optimizer = OptimizerOptions() if options else OptimizerOptions(by_task="moments")
    balancing = Balancing(method="none", **options)
    multitask = MultiTaskArguments(balancing=balancing, optimizer=optimizer)
    trainer = build(max_steps=1, optim="adamw_torch", multitask=multitask)
    trainer.train()
    assert logged(trainer, "gradient_") == []


def test_rates_are_logged_by_part_where_they_differ(build):
    trainer = build(max_steps=1)
    trainer.train()
    assert logged(trainer, "lr_") == []
    multitask = MultiTaskArguments(
        optimizer=OptimizerOptions(layer_decay=0.5, head_lr=0.2),
        freeze=Freeze(layers=[0], unfreeze=Unfreeze(every=100.0)),
    )
    trainer = build(max_steps=1, learning_rate=0.1, multitask=multitask)
    trainer.train()
    (rates,) = logged(trainer, "lr_")
    heads = {name: value for name, value in rates.items() if "head" in name}
    assert set(heads.values()) == {0.2}
    assert len(heads) == 5  # that of near has no weights
    rest = {name: value for name, value in rates.items() if "head" not in name}
    assert rest == pytest.approx(
        {"lr_layer_1": 0.1, "lr_layer_0": 0.0, "lr_embeddings": 0.025}  # layer 0 waits
    )


def test_a_loss_that_compares_a_batch_is_evaluated_on_as_many_groups_as_in_training(build, data):
    """12 pairs for training in batches of 6; 4 for validation, 32 in an evaluation batch."""
    sizes = {"per_device_eval_batch_size": 32, "eval_strategy": "no", "learning_rate": 0.0}
    trainer = build(pairs_task(data), size=2, max_steps=6, evaluates=True, **sizes)
    whole = trainer.evaluate()["eval_near_loss"]
    trainer.train()
    assert trainer.optimizer_step.compared() == {"near": 2}
    halves = trainer.evaluate()["eval_near_loss"]
    loop = trainer.evaluation
    vectors = torch.randn(4, 2, 8)
    rows = trainer.eval_dataset["near"].rows
    labels = torch.tensor(rows["labels_near"]).float()
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    by_hand = sum(cosent(vectors[p], labels[p]) for p in order.split(2)) / 4
    given = loop._loss_of_batches("near", vectors.numpy(), rows, 2)
    assert given["near"] == pytest.approx(by_hand.item(), rel=1e-5)
    assert halves < whole  # fewer pairs to put in order
    train_losses = [line["loss_near"] for line in history(trainer) if "loss_near" in line]
    assert len(train_losses) == 6


def test_the_same_rows_have_the_same_loss_in_training_and_evaluation(build, data):
    splits = {"train": data("pairs")["train"], "validation": data("pairs")["train"]}
    chosen = pairs_task(lambda _: splits)
    trainer = build(chosen, size=12, max_steps=1, learning_rate=0.0, evaluates=True)
    trainer.train()
    trained = next(line["loss_near"] for line in history(trainer) if "loss_near" in line)
    assert trainer.evaluate()["eval_near_loss"] == pytest.approx(trained, rel=1e-4)


@pytest.fixture
def recipe(tmp_path, encoder_folder):
    write_splits(tmp_path, "pairs", pairs)
    near = {
        "head": "embedding",
        "loss": "cosine_mse",
        "data": {
            "data_files": files_of("pairs"),
            "text": "text1",
            "text_pair": "text2",
            "label": "score",
        },
    }
    return {
        "encoder": str(encoder_folder("bert")),
        "tasks": {"near": near},
        "training": {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "use_cpu": True},
        "output_dir": str(tmp_path / "run"),
        "train_scores": 5,
    }


def test_training_rows_are_scored_beside_the_others_when_asked(recipe, tmp_path):
    run = prepare(write_recipe(tmp_path / "recipe.yaml", recipe))
    trainer = make_trainer(run)
    assert len(trainer.train_splits["near"].rows) == 5
    trainer.train()
    lines = logged(trainer, "on_train_")
    keys = {"on_train_near_spearman", "on_train_near_pearson", "on_train_near_loss"}
    assert [keys <= set(line) for line in lines] == [True, True]
    scores, losses = trainer.evaluate_tasks(trainer.train_splits, "again")
    assert lines[-1]["on_train_near_spearman"] == scores["near"]["spearman"]
    assert lines[-1]["on_train_near_loss"] == losses["near"]


def test_without_rows_to_evaluate_it_is_refused(recipe, tmp_path):
    del recipe["tasks"]["near"]["data"]["data_files"]["validation"]
    recipe["training"] = {"max_steps": 2, "use_cpu": True}
    run = prepare(write_recipe(tmp_path / "recipe.yaml", recipe))
    with pytest.raises(UserError, match=re.escape("train_scores: nothing is evaluated")):
        make_trainer(run)
