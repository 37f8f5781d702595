"""What `polyhead inspect` shows: a recipe's rows as the model will see them, or a saved model."""

from collections import Counter
from typing import Any

import numpy as np

from ...modeling.causal import is_causal
from ...modeling.modeling_polyhead import PolyheadModel
from ..batches.sampler import epochs_of, make_sampler
from ..data.loading import Source, unseen_labels
from ..data.tokenization import cut_rows, tokenize
from ..kinds import kind_of
from ..kinds.values import labels_in
from ..optimization.parameter_groups import parameter_table
from .encoders import length_notes
from .setup import PreparedRun

SAMPLES = 3


def inspect_recipe(run: PreparedRun) -> dict[str, Any]:
    """Rows, label counts, lengths and three decoded rows of each task; what is drawn and trained.

    Returns:
        `{"tasks": {task: {...}}, "draws": [...], "parameters": [...], "notes": [...]}`, ready for
        JSON; see `parameter_table`.
    """
    tasks, sizes = {}, {}
    for source in run.sources:
        rows = tokenize(source, "train", run.tokenizer)
        sizes[source.name] = len(rows)
        lengths = [len(text) for texts in rows["input_ids"] for text in texts]
        windows = len(lengths) if "window_counts" in rows.column_names else len(rows)
        for name in source.tasks:
            cut = cut_rows(rows, run.configs[name])
            tasks[name] = {
                "head": run.configs[name].head,
                "source": source.name,
                "rows": {split: len(part) for split, part in source.splits.items()},
                "windows": windows,
                "tokens": _summary(lengths),
                "max_length": run.tokenizer.model_max_length,
                "cut": cut,
                "cut_share": round(cut / max(1, len(source.splits["train"])), 4),
                "labels": _label_counts(source, name),
                "samples": [_decoded(run, source, name, rows[i]) for i in _spread(len(rows))],
            }
    ranges = {name: range(size) for name, size in sizes.items()}
    sampler = make_sampler(ranges, run.tasks_by_source, run.multitask, run.args)
    recipe = run.recipe
    return {
        "tasks": dict(sorted(tasks.items())),
        "draws": sampler.summary(epochs_of(run.args, sampler)),
        "parameters": parameter_table(
            run.model, recipe.freeze, recipe.optimizer, run.args, run.multitask.rates
        ),
        "notes": [
            *length_notes(run.recipe, run.model, run.tokenizer),
            *unseen_labels(run.sources),
        ],
    }


def _spread(rows: int) -> list[int]:
    """A few row numbers from all over the split: files are often sorted by label."""
    return sorted({int(i) for i in np.linspace(0, rows - 1, SAMPLES)})


def _summary(lengths: list[int]) -> dict[str, float]:
    return {
        "mean": round(float(np.mean(lengths)), 1),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "max": max(lengths),
        "total": sum(lengths),
    }


def _label_counts(source: Source, name: str) -> dict[str, Any]:
    """Class counts of train, or the spread of its numbers."""
    data, config = source.tasks[name].data, source.configs[name]
    if data.label is None:
        return {}
    values = source.splits["train"][:][data.label]
    counts = Counter(label for value in values for label in labels_in(value))
    if config.labels:
        return {label: counts[label] for label in config.labels}
    if kind_of(config).label_type == "index":
        return {label: counts[label] for label in sorted(counts, key=int)}
    numbers = np.array([np.nan if v is None else v for v in values], dtype=float)
    return {
        "mean": round(float(np.nanmean(numbers)), 3),
        "min": float(np.nanmin(numbers)),
        "max": float(np.nanmax(numbers)),
        "missing": int(np.isnan(numbers).sum()),
    }


def _decoded(run: PreparedRun, source: Source, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A tokenized row back to text, with the label that the head is trained on."""
    tokenizer, config = run.tokenizer, run.configs[name]
    texts = [tokenizer.decode(ids) for ids in row["input_ids"]]
    kind, label = kind_of(config), row.get(f"labels_{name}")
    if source.tasks[name].data.soft_label is not None:
        label = dict(zip(kind.labels, label or [], strict=True))
    elif not kind.labels_from_tokens:
        tokens: Any = tokenizer.convert_ids_to_tokens(row["input_ids"][0])
        label = kind.decode(label, tokens)
    return {"row": row["row"], "text": texts[0] if len(texts) == 1 else texts, "label": label}


def _mask_name(*, causal: bool) -> str:
    return "causal" if causal else "bidirectional"


def inspect_model(model: PolyheadModel) -> dict[str, Any]:
    """Tasks, labels, decisions, parameters and masks of a saved model.

    `trained_with` is the mask that the encoder had been trained with before heads were put on it,
    `mask` the one that it runs with.

    Returns:
        `{"encoder": {...}, "tasks": {task: {...}}, "parameters": total}`, ready for JSON.
    """
    config = model.encoder.config
    tasks = {}
    for name in model.task_names:
        task = model.config.tasks[name]
        tasks[name] = {
            "head": task.head,
            "problem_type": task.problem_type,
            "pooling": task.pooling or model.config.pooling,
            "pair": task.pair,
            "reads": task.reads,
            "scheme": task.scheme,
            "labels": task.labels or [],
            "decisions": task.decisions,
            "parameters": sum(p.numel() for p in model.heads[name].parameters()),
        }
    return {
        "encoder": {
            "model_type": config.model_type,
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "parameters": model.encoder.num_parameters(),
            "mask": _mask_name(causal=is_causal(config)),
            "trained_with": _mask_name(causal=model.config.trained_causal),
        },
        "tasks": tasks,
        "parameters": model.num_parameters(),
    }
