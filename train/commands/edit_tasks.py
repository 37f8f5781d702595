"""Tasks in and out of a finished model, with proof that the other tasks stay as they are.

The model is read from one folder and written to another, beside it and renamed once the proof
holds: neither a mistake nor a failed proof leaves anything at the place asked for.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...modeling.adapters import changed_adapters
from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel
from ..artifacts import REPORTS, SCORES, UNFINISHED, write_aside, write_json
from ..errors import UserError
from ..hub.card import pictures_of, read_runs, read_scores
from ..hub.folder import save_folder, write_card
from ..hub.history import Made, line_of, relocated, write_history
from ..hub.proof import FILE, compare, fresh_fingerprint, read_proofs
from ..inference.load import load_model
from ..outputs import CHECKPOINT, MODEL, source_fault, target_faults
from ..recipe.schema import Recipe
from .fitting import fit
from .setup import prepare
from .training import output_faults, run_metadata, write_run_reports

logger = logging.getLogger(__name__)

RUN_FOLDERS = (MODEL, REPORTS, UNFINISHED)  # of `output_dir`; all in them may be replaced


def add_task(
    model_path: str | Path,
    recipe_path: str | Path,
    overrides: list[str] | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train the tasks of a recipe on top of a model in which all else is frozen.

    Saves `output_dir/model` and `output_dir/scores.json`; the given model is not touched. The proof
    is written to `proof.json` and to the card.

    Args:
        model_path: folder of the finished model.
        recipe_path: a recipe without `encoder`, with new tasks only.
        overrides: `key=value` with dotted keys.
        overwrite: replace the run that stands in `output_dir`, and nothing else that lies there.

    Returns:
        scores of the new tasks, as `run.train` gives them.

    Raises:
        UserError: faults of model, recipe or data; nothing has been written then.
        RuntimeError: another task changed; no model has been written.
    """
    check_folder(model_path)
    source = Path(model_path)

    def check(recipe: Recipe) -> list[str]:
        fault = touching_fault(source, Path(recipe.output_dir))
        return [fault] if fault else output_faults(recipe, overwrite=overwrite)

    run = prepare(recipe_path, overrides, onto=model_path, check=check)
    folder = Path(run.recipe.output_dir)
    metrics, runs, _ = read_scores(source), read_runs(source), read_proofs(source)
    line = line_of(source)
    before = fresh_fingerprint(model_path)
    trainer, scores, reports = fit(run, overwrite=overwrite)
    if run.model.config.router is not None:
        names = ", ".join(run.recipe.tasks)
        logger.warning(
            'tasks="auto" never names %s: the router has not learnt from such texts', names
        )
    if trainer.is_world_process_zero():
        save_proven(
            trainer.model_for_tasks,
            run.tokenizer,
            folder / MODEL,
            source=source,
            line=line,
            before=before,
            made=Made("added", sorted(run.recipe.tasks)),
            metrics={**metrics, **scores.get("tasks", {})},
            runs=[*runs, run_metadata(trainer, run, scores)],
        )
        write_json(folder / SCORES, scores)
        pictures = write_run_reports(trainer, reports, folder)
        write_card(trainer.model_for_tasks, folder / MODEL, pictures)
    return scores


def remove_task(
    model_path: str | Path, tasks: list[str], output: str | Path, *, overwrite: bool = False
) -> None:
    """Save a model without some of its tasks, their heads and the adapters that only they read.

    Args:
        model_path: folder of the model; it is not touched.
        tasks: what to remove.
        output: folder to write.
        overwrite: replace a model that stands there.

    Raises:
        UserError: a task is unknown, none would be left, or `output` is taken.
        RuntimeError: another task changed; no model has been written.
    """
    check_folder(model_path)
    fault = source_fault(model_path, Path(output))
    target = [fault] if fault else target_faults(Path(output), overwrite=overwrite)
    model, tokenizer = load_model(model_path)
    tasks = list(dict.fromkeys(tasks))
    faults = [
        f"there is no task {name!r}; the model has: {', '.join(model.task_names)}"
        for name in tasks
        if name not in model.task_names
    ]
    if not set(model.task_names) - set(tasks):
        faults.append("no task would be left")
    if faults := faults + target:
        raise UserError("remove-task", faults)
    try:
        for name in tasks:
            model.remove_task(name)
    except ValueError as error:  # experts that all tasks read together
        raise UserError("remove-task", [str(error)]) from error
    source = Path(model_path)
    metrics, runs, _ = read_scores(source), read_runs(source), read_proofs(source)
    line = line_of(source)
    before = fresh_fingerprint(model_path)
    save_proven(
        model,
        tokenizer,
        Path(output),
        source=source,
        line=line,
        before=before,
        made=Made("removed", sorted(tasks)),
        metrics={k: v for k, v in metrics.items() if k not in tasks},
        runs=runs,
    )


def verify(model_path: str | Path) -> dict[str, Any]:
    """Compute the hashes of a model's latest proof again, in a fresh process.

    Returns:
        `{"tasks": [...], "logits_compared": whether versions and machine are those of the proof}`.

    Raises:
        UserError: there is no proof, or the model is not what it says.
    """
    proofs = read_proofs(model_path)
    if not proofs:
        raise UserError(str(model_path), [f"has no {FILE}; add-task and remove-task write one"])
    _check_adapters(model_path)
    proof, now = proofs[-1], fresh_fingerprint(model_path)
    same_machine = proof["made_with"] == now["made_with"]
    if not same_machine:  # weights alone are the same anywhere
        for hashes in (*proof["tasks"].values(), *now["tasks"].values()):
            for part in ("logits", "older_logits"):
                hashes.pop(part, None)
    faults = compare(proof, now, proof["tasks"])
    if faults:
        raise UserError(str(model_path), faults)
    return {"tasks": list(proof["tasks"]), "logits_compared": same_machine}


def _check_adapters(model_path: str | Path) -> None:
    """Name the tasks whose adapter is not the one that was saved; such a folder does not load."""
    try:
        config = PolyheadConfig.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise UserError(str(model_path), [f"no model can be loaded: {error}"]) from error
    changed = changed_adapters(str(model_path), config.adapter_hashes or {})
    readers = {name: task.adapter for name, task in config.tasks.items() if task.adapter in changed}
    if readers:
        raise UserError(
            str(model_path),
            [f"task {name}: its weights changed (adapter {a})" for name, a in readers.items()],
        )


def check_folder(model_path: str | Path) -> None:
    """Raise UserError unless the model is a folder."""
    if not Path(model_path).is_dir():
        raise UserError(str(model_path), ["is no folder; download a Hub model first"])


def touching_fault(model: Path, run: Path) -> str | None:
    """What writing a run would do to the model that it starts from."""
    if fault := source_fault(model, run / MODEL, "output_dir"):
        return fault
    run, model = run.resolve(), model.resolve()
    inside = model.relative_to(run).parts[:1] if model.is_relative_to(run) else ()
    written = [name for name in inside if name in RUN_FOLDERS or CHECKPOINT.fullmatch(name)]
    if run.is_relative_to(model) or written:
        return "output_dir: the model lies there; name another"
    return None


def save_proven(
    model: PolyheadModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    source: Path,
    line: Sequence[dict[str, Any]],
    before: dict[str, Any],
    made: Made,
    metrics: dict[str, Any],
    runs: list[dict[str, Any]],
    older: Sequence[str] = (),
) -> None:
    """Write the folder aside, prove it in a fresh process, then give it its name.

    Args:
        model: the changed model.
        tokenizer: its tokenizer.
        folder: to write.
        source: the model that it was made of.
        line: that one's versions.
        before: fingerprint of that one.
        made: what was done, and the tasks; they may differ where they were extended.
        metrics: metrics by task, for the card.
        runs: the trainings that made it.
        older: extended tasks whose old labels must have the logits that they had.

    Raises:
        RuntimeError: something else changed; nothing has been written.
    """
    with write_aside(folder) as aside:
        save_folder(model, tokenizer, aside, metrics=metrics, runs=runs)
        after = fresh_fingerprint(aside)
        extended = made.tasks if made.change == "extended" else []
        others = [n for n in before["tasks"] if n in after["tasks"] and n not in extended]
        faults = compare(before, after, others)
        faults += [
            f"task {name}: logits of its old labels changed"
            for name in older
            if before["tasks"][name]["logits"] != after["tasks"][name]["older_logits"]
        ]
        if faults:
            raise RuntimeError(f"{'; '.join(faults)}; no model has been written")
        proof = {
            "change": made.change,
            "changed": list(made.tasks),
            "encoder": after["encoder"],
            "tasks": {name: after["tasks"][name] for name in others},
            "made_with": after["made_with"],
        }
        write_json(aside / FILE, [*read_proofs(source), proof])
        write_history(aside, made, relocated(line, source, folder))
        pictures = [p for name in model.task_names for p in pictures_of(name, source)]
        write_card(model, aside, pictures)
