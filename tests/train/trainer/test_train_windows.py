"""Rows of several windows in training and evaluation: exact however they share steps and ranks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from long_texts import documents, long_tasks
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.train.batches.collator import MultiTaskCollator, model_inputs
from polyhead.train.data.tokenization import cut_notes, tokenize
from polyhead.train.recipe.sections import MultiTaskArguments, Retain, Sampling
from scipy.stats import spearmanr
from torch.testing import assert_close
from train_helpers import write_rows
from trainer_fixtures import logged, weights

NAMES = ["closest", "grade", "near", "same", "tags", "topic", "words"]


@pytest.fixture(scope="module")
def usual_tasks(tmp_path_factory):
    """Of every kind that reads windows, over documents of 1 to 5 windows of 64 tokens."""
    folder = tmp_path_factory.mktemp("documents")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    write_rows(folder / "train.jsonl", documents(12))
    write_rows(folder / "validation.jsonl", documents(5, 12))
    return long_tasks(files)


def test_rows_hold_the_windows_of_their_texts(rows_of):
    rows = rows_of(None)
    assert sorted(rows.train.parts) == ["closest", "grade+topic", "near", "same", "tags+words"]
    topics = rows.train.parts["grade+topic"]
    assert topics["window_counts"] == [[n % 5 + 1] for n in range(12)]
    assert [len(row) for row in topics["input_ids"]] == [n % 5 + 1 for n in range(12)]
    assert topics["window"] == [0] * 12
    pairs = rows.train.parts["near"]
    assert pairs["window_counts"] == [[n % 5 + 1, 1] for n in range(12)]
    assert "window_counts" not in rows.train.parts["tags+words"].column_names
    assert len(rows.train.parts["tags+words"]) == 12 + sum(n % 5 for n in range(12))


def test_the_sampler_counts_the_tokens_of_all_windows(rows_of):
    dataset = rows_of(None).train
    places = dataset.ranges["near"]
    rows = dataset.parts["near"]["input_ids"]
    counts = dataset.parts["near"]["window_counts"]
    firsts = [sum(map(len, row[: count[0]])) for row, count in zip(rows, counts, strict=True)]
    assert dataset.lengths[places.start : places.stop] == firsts
    assert len(dataset.texts[places.start]) == 2
    assert dataset.texts[dataset.ranges["grade+topic"].start] == frozenset()


@pytest.mark.parametrize("batches", ["mixed", "pure"])
def test_accumulation_changes_neither_losses_nor_weights(build, batches):
    runs = []
    for size, accumulation in ((12, 1), (3, 4)):
        trainer = build(size=size, accumulation=accumulation, batches=batches, max_steps=2)
        trainer.train()
        runs.append((logged(trainer, "loss_"), weights(trainer)))
    assert_close(runs[0], runs[1], atol=1e-5, rtol=1e-4)


def test_packed_rows_train_as_padded_ones(build):
    runs = []
    for packing in (True, False):
        trainer = build(packing=packing)
        trainer.train()
        runs.append((logged(trainer, "loss_"), weights(trainer)))
    assert_close(runs[0], runs[1], atol=1e-5, rtol=1e-4)


def test_batches_of_tokens_hold_long_rows_with_few_others(build):
    sampling = Sampling(batch_tokens=600)
    trainer = build(multitask=MultiTaskArguments(sampling=sampling))
    lengths = np.array(trainer.train_dataset.lengths)
    tokens = [lengths[batch].sum() for batch in trainer.sampler]
    assert max(tokens) < 600 + lengths.max()
    assert min(tokens) > 600 - lengths.max()


def test_a_resumed_run_is_the_uninterrupted_one(build):
    options = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 3, "dropout": 0.2}
    options |= {"save_strategy": "steps", "save_steps": 2, "size": 5}
    whole = build(**options)
    whole.train()
    resumed = build(**options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_the_loss_is_that_of_a_row_on_its_pooled_logits(build, rows_of, tokenizer_of):
    trainer = build(dropout=0.0)
    model, rows = trainer.model.train(), rows_of(None)
    sources = {"grade+topic": ["grade", "topic"]}
    collator = MultiTaskCollator(
        tokenizer_of("wordpiece"), rows.configs, model.task_names, sources, packed=False
    )
    part = rows.train.parts["grade+topic"]
    chosen = [{"source": "grade+topic", **part[n]} for n in (2, 0, 4)]
    batch = collator(chosen)
    assert batch["window_counts"].tolist() == [3, 1, 5]
    out = model(**model_inputs(batch))
    out.losses["topic"].backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = []
    for row in chosen:
        windows = [torch.tensor([ids]) for ids in row["input_ids"]]
        one = [model(input_ids=ids, tasks=["topic"]).logits["topic"][0] for ids in windows]
        logits.append(torch.stack(one).mean(0))
    labels = torch.tensor([row["labels_topic"] for row in chosen])
    loss = F.cross_entropy(torch.stack(logits), labels)
    assert_close(out.losses["topic"], loss)
    loss.backward()
    for name, gradient in found.items():
        expected = dict(model.named_parameters())[name].grad
        if expected is not None:
            assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_evaluation_scores_what_the_pipeline_answers(build, rows_of):
    trainer = build(evaluates=True, per_device_eval_batch_size=2)
    rows, model = rows_of(None), trainer.model.eval()
    scores, _ = trainer.evaluate_tasks(rows.validation)
    assert sorted(scores) == NAMES
    pipe = PolyheadPipeline(model=model, tokenizer=trainer.processing_class, device="cpu")
    raw = documents(5, 12)
    answers = pipe([row["text"] for row in raw], ["topic", "grade", "near"])
    right = [row["topic"] == a["topic"]["label"] for row, a in zip(raw, answers, strict=True)]
    assert scores["topic"]["accuracy"] == pytest.approx(np.mean(right))
    errors = [
        (a["grade"]["score"] - row["grade"]) ** 2 for row, a in zip(raw, answers, strict=True)
    ]
    assert scores["grade"]["mse"] == pytest.approx(np.mean(errors), rel=1e-4)
    pairs = pipe([(row["short"], row["text"]) for row in raw], ["same"])
    right = [row["same"] == a["same"]["label"] for row, a in zip(raw, pairs, strict=True)]
    assert scores["same"]["accuracy"] == pytest.approx(np.mean(right))
    others = pipe([row["short"] for row in raw], ["near"])
    unit = [(one["near"] * two["near"]).sum() for one, two in zip(answers, others, strict=True)]
    expected = spearmanr(unit, [row["score"] for row in raw]).statistic
    assert scores["near"]["spearman"] == pytest.approx(expected)


def test_retain_keeps_every_window(build):
    trainer = build(multitask=MultiTaskArguments(retain=Retain(weight=1.0)), max_steps=1)
    trainer.train()
    retention = trainer.optimizer_step.retention
    assert logged(trainer, "loss_retain")[0]["loss_retain"] == pytest.approx(0, abs=1e-5)
    part = trainer.train_dataset.parts["grade+topic"]
    assert retention.numbers.count >= sum(map(len, part["input_ids"]))


def test_what_is_cut_is_told_by_task(rows_of, tokenizer_of):
    rows = rows_of(None)
    configs = dict(rows.configs)
    assert cut_notes(rows.train.parts["tags+words"], "train", configs, 64) != []
    tokens = {"tags": configs["tags"], "words": configs["words"]}
    assert cut_notes(rows.train.parts["tags+words"], "train", tokens, 64) == []
    windows = {"topic": configs["topic"]}
    assert cut_notes(rows.train.parts["grade+topic"], "train", windows, 64) == []
    source = next(source for source in rows.sources if source.name == "grade+topic")
    first = {"topic": TaskConfig(head="sequence_classification", labels=["a", "b"])}
    features = tokenize(source, "train", tokenizer_of("wordpiece"), configs=first)
    assert cut_notes(features, "train", first, 64) == [
        "9 of 12 rows of train (75.0%) are longer than 64 tokens and are cut for topic; "
        "long_texts: windows reads all of a text"
    ]
