"""New labels for old tasks of a finished model, from rows that mark the new ones only.

The old layer of the head stays, to the bit, and so do the encoder and all other tasks; the new
labels get a layer of their own. What the old model says of a text is part of the loss: a word that
has no new label may have any old one. With `adapter:` the task's states change too; then the old
model is the teacher of the old labels, and what it says may change elsewhere. Both is counted, on
the rows that do not train.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...modeling.decoding import gold_entities
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.pipeline_polyhead import PolyheadPipeline
from ..artifacts import SCORES, write_json
from ..data.loading import Source
from ..evaluation.decisions import UNSURE, best_threshold
from ..hub.card import read_runs, read_scores
from ..hub.folder import write_card
from ..hub.history import Made, line_of
from ..hub.proof import fresh_fingerprint
from ..inference.load import load_model
from ..kinds.tokens import row_words, tags_in
from ..outputs import MODEL
from ..recipe.schema import Recipe
from ..recipe.sections import Distill
from .edit_tasks import check_folder, save_proven, touching_fault
from .encoders import Keep
from .fitting import final_scores, fit
from .setup import PreparedRun, prepare
from .training import output_faults, run_metadata, write_run_reports

logger = logging.getLogger(__name__)
EXTENSION = "extension.json"  # of a run: which old answers changed


def extend_task(
    model_path: str | Path,
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    *,
    keep: Keep = "weights",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Give tasks of a finished model new labels, those that `data.marks` of a recipe names.

    Saves `output_dir/model`, `scores.json` and `extension.json`; the given model is not touched.

    Args:
        model_path: folder of the finished model.
        recipe_path: a recipe without `encoder`, with tasks of the model.
        overrides: `key=value` with dotted keys.
        keep: weights keeps those of the old labels, and one softmax chooses among all labels;
            strict keeps the old answers with their scores, to the bit, but where a new label
            reaches a threshold of its own, chosen on validation rows by F1.
        overwrite: replace the run that stands in `output_dir`.

    Returns:
        scores of the new labels, as `training.train` gives them, with `extended`: by task what
        changed, see `changes`.

    Raises:
        UserError: faults of model, recipe or data; nothing has been written then.
        RuntimeError: another task changed, or logits of old labels; no model has been written.
    """
    check_folder(model_path)
    source = Path(model_path)
    check = partial(_recipe_faults, source=source, keep=keep, overwrite=overwrite)
    run = prepare(recipe_path, overrides, onto=model_path, keep=keep, check=check)
    moved = _taught_by(source, run.recipe)
    folder = Path(run.recipe.output_dir)
    metrics, runs, line = read_scores(source), read_runs(source), line_of(source)
    before = fresh_fingerprint(model_path)
    trainer, scores, reports = fit(run, overwrite=overwrite)
    if trainer.is_world_process_zero():
        model = trainer.model_for_tasks
        if keep == "strict":
            _set_thresholds(model, run)
            scores, reports = final_scores(trainer, run)
        scores["extended"] = _compare(load_model(source)[0], model, run)
        save_proven(
            model,
            run.tokenizer,
            folder / MODEL,
            source=source,
            line=line,
            before=before,
            made=Made("extended", sorted(run.recipe.tasks)),
            metrics={**metrics, **scores.get("tasks", {})},
            runs=[*runs, run_metadata(trainer, run, scores)],
            older=[name for name in run.recipe.tasks if name not in moved],
        )
        write_json(folder / EXTENSION, scores["extended"])
        write_json(folder / SCORES, {k: v for k, v in scores.items() if k != "extended"})
        write_card(model, folder / MODEL, write_run_reports(trainer, reports, folder))
    return scores


def _recipe_faults(recipe: Recipe, *, source: Path, keep: Keep, overwrite: bool) -> list[str]:
    """What keeps a recipe from extending the model in `source`, or its run from being written."""
    fault = touching_fault(source, Path(recipe.output_dir))
    faults = [fault] if fault else output_faults(recipe, overwrite=overwrite)
    if keep == "strict":
        why = "would change what the old labels read; take it out, or --keep weights"
        faults += [f"tasks.{name}.adapter: {why}" for name in _with_adapter(recipe)]
    return faults


def _with_adapter(recipe: Recipe) -> list[str]:
    """The tasks that get an adapter, which changes what their old labels read."""
    return [name for name, task in recipe.tasks.items() if task.adapter is not None]


def _taught_by(source: Path, recipe: Recipe) -> list[str]:
    """The tasks with an adapter, whose teacher the old model becomes."""
    tasks = _with_adapter(recipe)
    if tasks:
        recipe.distill = Distill(teachers=dict.fromkeys(tasks, str(source)), anneal=False)
    return tasks


# ---- thresholds ----


def _set_thresholds(model: PolyheadModel, run: PreparedRun) -> None:
    """The thresholds of all new labels."""
    for source in run.sources:
        for name in source.tasks:
            _set_thresholds_of(model, run.tokenizer, source, name)


def _set_thresholds_of(
    model: PolyheadModel, tokenizer: PreTrainedTokenizerBase, source: Source, name: str
) -> None:
    """The thresholds of a task's new labels, by its validation rows."""
    task = model.config.tasks[name]
    if "validation" not in source.splits:
        logger.warning(f"{name}: no validation rows; its new labels are put from {UNSURE} on")
        return
    assert task.strict is not None
    thresholds = dict(task.strict)
    task.strict = dict.fromkeys(thresholds, 0.0)  # all answers, with their scores
    rows = source.splits["validation"][:]
    answered = answers(model, tokenizer, source, name, "validation", top_k=None)
    if task.scheme is None and not source.tasks[name].data.tokens:
        labels = source.split_rows(name, rows).labels
        known = [number for number, label in enumerate(labels) if label is not None]
        for new in thresholds:
            scored = [
                (answer["score"], labels[number] == new)
                for number in known
                for answer in answered[number]
                if answer["label"] == new
            ]
            thresholds[new] = best_threshold(scored, sum(labels[n] == new for n in known))
    else:
        true = _true_entities(source, name, rows)
        for new in thresholds:
            scored = [
                (e["score"], (new, e["start"], e["end"]) in expected)
                for entities, expected in zip(answered, true, strict=True)
                if expected is not None
                for e in entities
                if e["entity_group"] == new
            ]
            total = sum(kind == new for row in true for kind, _, _ in row or ())
            thresholds[new] = best_threshold(scored, total)
    task.strict = thresholds


def _true_entities(source: Source, name: str, rows: dict[str, list]) -> list[set | None]:
    """By row the entities (kind, start, end); None for a row without tags."""
    split = source.split_rows(name, rows)
    texts = zip(row_words(split.data, split.text, rows), split.labels, strict=True)
    true = []
    for (text, words), row in texts:
        tags = tags_in(row)
        if tags is None:
            true.append(None)
        elif split.scheme is None:
            true.append({(tag, *word) for tag, word in zip(tags, words, strict=True)})
        else:
            true.append(set(gold_entities(text, words, tags, split.scheme)))
    return true


# ---- what changed ----


def answers(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    task: str,
    split: str,
    **asked: Any,
) -> list[Any]:
    """What the pipeline answers to the rows of a split."""
    columns = source.texts_of(source.splits[split][:])
    texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, compute="exact")
    answered: Any = pipe(texts, tasks=[task], **asked)
    return [answer[task] for answer in answered]


def _compare(old: PolyheadModel, new: PolyheadModel, run: PreparedRun) -> dict[str, Any]:
    """By task what changed on the rows that did not train."""
    return {
        name: changes(
            [
                (text, before, after)
                for split in source.splits
                if split != "train"
                for text, before, after in zip(
                    source.texts_of(source.splits[split][:])[0],
                    answers(old, run.tokenizer, source, name, split),
                    answers(new, run.tokenizer, source, name, split),
                    strict=True,
                )
            ],
            set(new.config.tasks[name].labels or []) - set(old.config.tasks[name].labels or []),
        )
        for source in run.sources
        for name in source.tasks
    }


def changes(rows: list[tuple[str, Any, Any]], labels: set[str]) -> dict[str, Any]:
    """Which answers changed.

    Args:
        rows: text, the old model's answer, and the new one's.
        labels: the new ones.

    Returns:
        `rows`; `changed`, those with another answer; of these `where_put`, whose old answers differ
        only where a new label is, and `elsewhere`; `list`, each with text, before and after.
    """
    types = labels | {label[2:] for label in labels if label[1:2] == "-"}
    told, elsewhere = [], 0
    for text, before, after in rows:
        one, other = _named(before), _named(after)
        if one == other:
            continue
        put = [span for label, *span in other if label in types]
        lost = [span for label, *span in one if (label, *span) not in other]
        came = [label for label, *span in other if (label, *span) not in one]
        beside = any(label not in types for label in came) or any(
            not any(a[0] < b[1] and b[0] < a[1] for b in put) for a in lost
        )
        elsewhere += beside
        told.append({"text": text, "before": one, "after": other, "elsewhere": beside})
    counts = {"rows": len(rows), "changed": len(told)}
    return {
        **counts,
        "where_put": len(told) - elsewhere,
        "elsewhere": elsewhere,
        "list": told,
    }


def _named(answer: Any) -> list[tuple[str, int, int]]:
    """An answer as (label, start, end); of a class the whole text."""
    if isinstance(answer, dict):
        return [(answer["label"], 0, 1)]
    return [(entity["entity_group"], entity["start"], entity["end"]) for entity in answer]
