"""The model card: README.md of a saved model, made of its config and of what its training left.

Nothing in it is typed by hand: scores come from `scores.json`, data, recipe and time from
`training.json`, the proof from `proof.json`, pictures from `plots/`. `model_card.md` is the
template. The metadata is what the Hub reads (`model-index` holds every task's scores).
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.task_config import TaskConfig
from ..artifacts import PLOTS, RUNS, SCORES
from ..balancing.agreement import noise_of, summary
from ..escape import code, fenced, in_markdown, paragraph
from ..evaluation.decisions import HEADER, decision_row
from ..evaluation.metrics import HUB_TYPES
from ..kinds import kind_of
from ..records import MODEL_SCORES, TRAININGS, read_record
from ..reports.figures import SECTIONS
from .proof import read_proofs

TASKS_HEAD = "| task | kind | reads | adapter | scores |\n|---|---|---|---|---|\n"
EXAMPLES = {
    "text": '"some text"',
    "pair": '("some text", "another")',
    "choices": '("some text", ["one choice", "another"])',
}
READS = {"text": "a text", "pair": "two texts", "choices": "a text and others to choose from"}


def read_scores(folder: Path) -> dict[str, Any]:
    """Metrics by task, from a model's folder; none where it has no such file."""
    return read_record(folder / SCORES, MODEL_SCORES, {})


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The trainings that made a model, oldest first."""
    return read_record(folder / RUNS, TRAININGS, [])


def render_card(model: PolyheadModel, folder: str | Path) -> str:
    """README.md of a saved model, from the files that lie in its folder.

    Args:
        model: the model.
        folder: where it is saved; scores, runs, proofs and pictures may be missing.

    Raises:
        UserError: one of these files holds something else.
    """
    folder = Path(folder)
    scores, runs = read_scores(folder), read_runs(folder)
    every = {name: about for run in runs for name, about in run["tasks"].items()}
    data = {name: every[name] for name in model.task_names if name in every}
    template = resources.files("polyhead.train.hub").joinpath("model_card.md")
    first = model.task_names[0] if model.task_names else ""
    text = EXAMPLES[model.config.tasks[first].reads if first else "text"]
    return Template(template.read_text(encoding="utf-8")).substitute(
        metadata=_metadata(model, scores, runs, data).to_yaml(),
        encoder=model.encoder.config.model_type,
        count=len(model.task_names),
        first=first,
        text=text,
        tasks=TASKS_HEAD
        + "".join(_task_row(name, model.config.tasks[name], scores) for name in model.task_names),
        labels="".join(_labels(name, model.config.tasks[name]) for name in model.task_names),
        data=_data(data),
        results=_results(model, scores, data, folder),
        training="".join(map(_run, runs)) or "Nothing is known about the training.\n",
        relations=_relations(runs),
        limits=_limits(model, runs),
        proofs="".join(map(_proof, read_proofs(folder))),
    )


def summary_of(tasks: Mapping[str, TaskConfig], folder: str | Path) -> str:
    """Of the card the scores, each task beside itself alone, and how the tasks relate.

    Args:
        tasks: the model's.
        folder: where it is saved; scores and trainings may be missing.

    Returns:
        Markdown.

    Raises:
        UserError: one of these files holds something else.
    """
    scores, runs = read_scores(Path(folder)), read_runs(Path(folder))
    rows = "".join(_task_row(name, task, scores) for name, task in tasks.items())
    alone = "\n".join(line for run in runs for line in _compared(run.get("alone", {})))
    relations = _relations(runs) or "Whether the tasks pull apart was not measured.\n"
    return f"## Scores\n\n{TASKS_HEAD}{rows}\n{alone}\n{relations}"


def _metadata(
    model: PolyheadModel, scores: dict[str, Any], runs: list[dict], data: dict[str, Any]
) -> ModelCardData:
    """The block at the head of the card."""
    results = [
        EvalResult(
            task_type=kind_of(model.config.tasks[name]).pipeline_tag,
            task_name=name,
            dataset_type=data.get(name, {}).get("data") or name,
            dataset_name=data.get(name, {}).get("data") or f"{name} (local files)",
            dataset_split=data.get(name, {}).get("scored_on"),
            metric_type=str(HUB_TYPES.get(metric, metric)),
            metric_name=metric,
            metric_value=value,
        )
        for name in model.task_names
        for metric, value in scores.get(name, {}).items()
        if isinstance(value, float)
    ]
    cards = [run["card"] for run in runs]
    sets = sorted({about["data"] for about in data.values() if about["data"]})
    kinds = {kind_of(task).pipeline_tag for task in model.config.tasks.values()}
    return ModelCardData(
        language=sorted({tongue for card in cards for tongue in card["language"]}) or None,
        license=next((card["license"] for card in reversed(cards) if card["license"]), None),
        base_model=next((run["encoder"] for run in runs if run["encoder"]), None),
        datasets=sets or None,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["polyhead", "multi-task", *sorted(kinds)],
        model_name=f"Polyhead, {len(model.task_names)} tasks" if results else None,
        eval_results=results or None,
    )


def _task_row(name: str, task: TaskConfig, scores: dict[str, Any]) -> str:
    shown = ", ".join(
        f"{in_markdown(metric)} {value:.4f}"
        for metric, value in scores.get(name, {}).items()
        if isinstance(value, float)
    )
    adapter = f"`{task.adapter}`" if task.adapter else "-"
    kind = task.problem_type or task.head
    return f"| `{name}` | {kind} | {READS[task.reads]} | {adapter} | {shown or 'not measured'} |\n"


def _labels(name: str, task: TaskConfig) -> str:
    """The labels of a task, in the order of its logits."""
    shown = ", ".join(code(label) for label in task.labels or [])
    return f"- `{name}` ({len(task.labels or [])}): {shown}\n" if shown else ""


def _data(data: dict[str, Any]) -> str:
    if not data:
        return "Nothing is known about the data.\n"
    lines = ["| task | data | licence | rows |", "|---|---|---|---|"]
    for name, about in data.items():
        rows = ", ".join(f"{in_markdown(k)} {count:,}" for k, count in about["rows"].items())
        source = in_markdown(about["data"] or "local files")
        licence = in_markdown(about["license"] or "not stated")
        lines.append(f"| `{name}` | {source} | {licence} | {rows} |")
    return "\n".join(lines) + "\n"


def _results(
    model: PolyheadModel, scores: dict[str, Any], data: dict[str, Any], folder: Path
) -> str:
    """Scores by entity type, and the pictures of each task."""
    parts = []
    for name in model.task_names:
        split = data.get(name, {}).get("scored_on")
        types = scores.get(name, {}).get("per_type", {})
        pictures = pictures_of(name, folder)
        if not types and not pictures:
            continue
        parts.append(f"### {name}{f', on {in_markdown(split)} rows' if split else ''}\n")
        if types:
            parts.append("| type | precision | recall | F1 | entities |\n|---|---|---|---|---|")
        for kind, row in types.items():
            cells = " | ".join(f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
            parts.append(f"| {in_markdown(kind)} | {cells} | {row['support']} |")
        shown = [f"![{path.stem.replace('_', ' ')}]({PLOTS}/{path.name})" for path in pictures]
        parts.append("\n" + "\n".join(shown) + "\n" if shown else "")
    return "\n".join(parts)


def pictures_of(task: str, folder: Path) -> list[Path]:
    """The pictures of a task in a model's folder, `plots/<task>_<what>.png`."""
    return sorted(
        path
        for path in (folder / PLOTS).glob("*.png")
        if path.stem in {f"{task}_{section}" for section in SECTIONS}
    )


def _run(run: dict[str, Any]) -> str:
    """One training: time, place, recipe."""
    minutes = f"{run['seconds'] / 60:.1f} minutes" + " since it was resumed" * run["resumed"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    machine = in_markdown(f"{run['machine']}; {versions}")
    recipe = yaml.safe_dump(run["recipe"], sort_keys=False, width=100, allow_unicode=True)
    lines = [
        f"{', '.join(f'`{name}`' for name in run['tasks'])}: {run['steps']:,} steps, "
        f"{run['epochs']:g} epochs, {minutes} in {run['processes']} process(es) of "
        f"{run['threads']} thread(s) on {in_markdown(run['device'])} ({machine}).",
        "The energy was not measured.\n",
        *_averaged(run.get("average")),
        *_decided(run),
        *_compared(run.get("alone", {})),
        f"{fenced(recipe, 'yaml')}\n",
    ]
    return "\n".join(lines)


def _averaged(average: dict[str, Any] | None) -> list[str]:
    """How much of the start's weights the encoder has, and what other shares gave."""
    if average is None:
        return []
    lines = [
        f"After it the encoder was averaged with its start: {average['share']:.0%} of the start's "
        "weights; heads and adapters are as trained.\n"
    ]
    if average["trials"]:
        names = sorted(average["trials"][0]["tasks"])
        lines += [
            f"| start | macro | {' | '.join(map(code, names))} |",
            f"|---|---|{'---|' * len(names)}",
        ]
        lines += [
            f"| {trial['share']:.0%} | {trial['macro']:.4f} | "
            + " | ".join(f"{trial['tasks'].get(name, float('nan')):.4f}" for name in names)
            + " |"
            for trial in average["trials"]
        ]
        lines.append("")
    return lines


def _decided(run: dict[str, Any]) -> list[str]:
    """What was decided on validation rows, and what it is worth on others."""
    decisions = run.get("decisions")
    if not decisions:
        return []
    lines = [
        "Decided on validation rows after it: a temperature for calibrated probabilities (ECE, the "
        "expected calibration error, in 15 bins), thresholds of labels, a score below which there "
        "is no answer. Measured on the rows named; intervals of 95 %.\n",
        f"| {' | '.join((*HEADER, 'rows'))} |",
        f"|{'---|' * (len(HEADER) + 1)}",
    ]
    for name, decision in decisions.items():
        _, *cells = map(in_markdown, decision_row(name, decision))
        split = run["tasks"].get(name, {}).get("scored_on") or "-"
        lines.append(f"| {' | '.join((code(name), *cells, in_markdown(split)))} |")
    return [*lines, ""]


def _compared(alone: dict[str, Any]) -> list[str]:
    """Each task trained alone with the same training, beside this one."""
    if not alone:
        return []
    lines = [
        "The tasks alone are models of one task each, trained on the same rows in the same way; ± "
        "counts the scored rows of one seed.\n",
        "| task | metric | alone | together | difference |",
        "|---|---|---|---|---|",
    ]
    for name, row in alone.items():
        values = ["-" if row[key] is None else f"{row[key]:.4f}" for key in ("single", "joint")]
        gain, error = row["gain"], row["standard_error"]
        difference = "-" if gain is None else f"{gain:+.4f}"
        difference += "" if error is None else f" ± {error:.4f}"
        cells = " | ".join([in_markdown(row["metric"]), *values, difference])
        lines.append(f"| {code(name)} | {cells} |")
    return [*lines, ""]


def _relations(runs: list[dict[str, Any]]) -> str:
    """How the tasks' gradients on the shared encoder agreed in training."""
    pairs = [pair for run in runs for pair in run["gradient_cosines"]]
    if not pairs:
        return ""
    rows = "".join(
        f"| {', '.join(map(code, pair['tasks']))} | {pair['mean']:+.3f} | {_noise(pair)} "
        f"| {pair['negative']:.0%} of {pair['compared']} |\n"
        for pair in pairs
    )
    said = in_markdown(summary(pairs))
    return f"""
## How the tasks relate

Cosine between the tasks' gradients on the shared weights, mean over the training. {said}

| tasks | mean | noise | below 0 |
|---|---|---|---|
{rows}"""


def _noise(pair: dict[str, Any]) -> str:
    noise = noise_of(pair)
    return "not known" if noise is None else f"± {noise:.3f}"


def _limits(model: PolyheadModel, runs: list[dict[str, Any]]) -> str:
    length = model.usable_length
    lines = []
    if length is not None:
        windows = [n for n in model.task_names if model.config.tasks[n].reads_windows]
        others = [n for n in model.task_names if n not in windows]
        said = [f"The encoder reads {length} tokens."]
        if others:
            said.append(f"Longer texts are cut for {', '.join(map(code, others))}.")
        if windows:
            said.append(f"Overlapping windows of them are read by {', '.join(map(code, windows))}.")
        lines.append(f"- {' '.join(said)}")
    lines.append("- Scores hold for rows like those of the data above; other texts may fare worse.")
    abstain = [n for n in model.task_names if model.config.tasks[n].abstain is not None]
    but = f", but for {', '.join(map(code, abstain))} below a score of its own" if abstain else ""
    lines.append(f"- A classifier always answers with one of its labels, whatever the text{but}.")
    limits = [paragraph(run["card"]["limits"] or "") for run in runs]
    lines += [f"- {words}" for words in limits if words]
    return "\n".join(lines)


def _proof(entry: dict[str, Any]) -> str:
    """What a change of tasks left as it was, with the hashes that say so."""
    made = in_markdown(", ".join(f"{what} {value}" for what, value in entry["made_with"].items()))
    rows = "".join(
        f"| `{name}` | {code(hashes['weights'][:16])} | {code(hashes['logits'][:16])} |\n"
        for name, hashes in entry["tasks"].items()
    )
    return f"""
## {in_markdown(entry["change"]).capitalize()}: {", ".join(map(code, entry["changed"]))}

The encoder ({code(entry["encoder"][:16])}) and the tasks below were the same to the bit before and
after, each side computed by a fresh process: SHA-256 of weights, and of logits on a fixed probe
({made}; logits can be compared under the same). `proof.json` holds the full hashes;
`polyhead inspect FOLDER --verify` computes them again.

| task | weights | logits |
|---|---|---|
{rows}"""
