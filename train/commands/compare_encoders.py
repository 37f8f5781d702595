"""Which encoder? Candidates for a recipe: what its tasks score on each, and what each costs here.

Heads are trained on the frozen encoders (`probes.py`), which costs a pass over some rows instead of
a training. Time and memory are measured in a process for each candidate, which loads the encoder
alone and reads the recipe's own texts.
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from yaml import YAMLError

from ...modeling.encoder import usable_length
from ..data.loading import Source
from ..errors import UserError
from ..escape import drawn
from ..evaluation.metrics import LOWER_IS_BETTER, main_metric
from ..kinds import kind_of
from ..outputs import target_faults
from ..recipe.parts import only
from ..recipe.reader import load_recipe
from ..recipe.router import with_rows
from ..recipe.schema import Recipe
from ..recipe.sections import Balancing, Freeze, OptimizerOptions, Sampling
from ..reports import figures
from .encoder_costs import device_of, timed
from .encoders import resolve
from .probes import probe, rows_probed
from .setup import PreparedRun, prepare
from .trials import Scored, noise_of, unscored_faults

logger = logging.getLogger(__name__)
TEXTS = 256  # whose reading is timed in batches
NOT_STATED = "not stated"
KEPT = ("seed", "use_cpu")  # of the recipe's `training`
LEFT_OUT = ("retain", "average", "distill", "stopping", "compare", "train_scores")


@dataclass(frozen=True)
class Candidate(Scored):
    """An encoder: what it is, what the tasks score on it, what it costs.

    Args:
        encoder: folder, Hub id, or `package:NAME/FOLDER`.
        parameters: of the encoder.
        length: tokens that it takes; None where there is no limit.
        licence: as its card has it.
        scores: task to its metrics on validation.
        rows: task to how many rows were scored.
        latency_ms: median of one text.
        texts_per_second: in batches.
        memory_mb: peak of a process that reads texts with it; on a GPU, of the GPU's memory.
    """

    encoder: str
    parameters: int
    length: int | None
    licence: str
    scores: dict[str, dict[str, Any]]
    rows: dict[str, int]
    latency_ms: float
    texts_per_second: float
    memory_mb: float

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "encoder": self.encoder,
            **self.main_scores(),
            "standard_error": self.noise,
            "latency_ms": round(self.latency_ms, 2),
            "texts_per_second": round(self.texts_per_second, 1),
            "memory_mb": round(self.memory_mb),
            "parameters": self.parameters,
            "length": self.length,
            "licence": self.licence,
        }


def compare_encoders(
    path: str | Path,
    encoders: list[str],
    overrides: list[str] | None = None,
    *,
    output: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Probe and time encoders for the tasks of a recipe.

    Args:
        path: the recipe; its own encoder is not asked for.
        encoders: two or more: folders, Hub ids, or `package:NAME/FOLDER`.
        overrides: `key=value` with dotted keys.
        output: .png to draw scores against time in.
        overwrite: replace a picture that stands there.

    Returns:
        JSON-ready: `encoders`, a record for each (`encoder`, `tasks` with the main metric of each,
        `macro`, `standard_error`, `latency_ms`, `texts_per_second`, `memory_mb`, `parameters`,
        `length`, `licence`), the best macro first; `recommended`; `sentences`; `rows` of each task;
        `device`, `threads`; `picture`.

    Raises:
        UserError: faults of the recipe, its data, any of the encoders, or of the picture's name;
            nothing has been trained or written then.
    """
    if faults := _call_faults(encoders, output, overwrite=overwrite):
        raise UserError("compare-encoders", faults)
    recipe = _probed(load_recipe(path, overrides))
    rows, texts = _check(recipe, encoders)
    candidates = []
    for number, name in enumerate(encoders, 1):
        logger.info(f"{number} of {len(encoders)}: {name}")
        candidates.append(_measured(replace(recipe, encoder=name), name, texts))
    candidates.sort(key=lambda one: -one.macro)
    chosen = recommended(candidates)
    result = {
        "encoders": [one.record() for one in candidates],
        "recommended": None if chosen is None else chosen.encoder,
        "sentences": _sentences(candidates, chosen),
        "rows": rows,
        "device": device_of(recipe),
        "threads": torch.get_num_threads(),
        "picture": None if output is None else str(output),
    }
    if output is not None:
        makers = {output.stem: lambda _: scatter(candidates, chosen)}
        figures.draw(output.parent, makers, [output.stem], {})
    return result


def _call_faults(encoders: list[str], output: Path | None, *, overwrite: bool) -> list[str]:
    faults = []
    if len(encoders) < 2:
        faults.append(f"{', '.join(encoders) or 'no encoder'} alone; name two or more")
    faults += [f"{name}: named twice" for name in {n for n in encoders if encoders.count(n) > 1}]
    if output is not None and output.suffix != ".png":
        return [*faults, f"--output: {output.name}; its ending is .png"]
    return faults + (
        [] if output is None else target_faults(output, overwrite=overwrite, is_file=True)
    )


def _probed(recipe: Recipe) -> Recipe:
    """The recipe as it is probed: tasks and texts alone.

    Raises:
        UserError: no task can be compared.
    """
    language = [name for name, task in recipe.tasks.items() if kind_of(task).labels_from_tokens]
    if len(language) == len(recipe.tasks):
        fault = f"tasks: {', '.join(language)} alone; scores over tokens of different tokenizers"
        raise UserError(recipe.path, [f"{fault} cannot be compared"])
    if language:
        logger.warning(
            f"{', '.join(language)}: left out; scores over tokens of different tokenizers cannot "
            "be compared"
        )
    recipe = only(recipe, [name for name in with_rows(recipe) if name not in language])
    tasks = {
        name: replace(task, adapter=None, cached=False, learning_rate=None, epochs=None)
        for name, task in recipe.tasks.items()
    }
    return replace(
        recipe,
        **dict.fromkeys(LEFT_OUT),
        tasks=tasks,
        sampling=Sampling(),
        balancing=Balancing(),
        freeze=Freeze(),
        optimizer=OptimizerOptions(),
        compute="exact",
        training={key: value for key, value in recipe.training.items() if key in KEPT},
    )


def _check(recipe: Recipe, encoders: list[str]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Rows by task and split, and texts to time; every candidate has been prepared once.

    Raises:
        UserError: with the faults of all.
    """
    faults: dict[str, list[str]] = {}  # to the encoders that have it
    run = None
    for name in encoders:
        try:
            run = prepare(replace(recipe, encoder=name))
            found = unscored_faults(run.sources, "encoders are compared")
            if run.args.world_size > 1:
                found.append(
                    f"compare-encoders runs in one process, not {run.args.world_size}; start it "
                    "without them"
                )
        except UserError as error:
            found = error.faults
        for fault in found:
            faults.setdefault(fault, []).append(name)
    if faults:
        lines = [
            fault if len(names) == len(encoders) or names[0] in fault else f"{names[0]}: {fault}"
            for fault, names in faults.items()
        ]
        raise UserError(recipe.path, lines)
    assert run is not None
    rows = {task: rows_probed(run, task) for task in recipe.tasks}
    return rows, _texts(run.sources, run.args.seed)


def _texts(sources: list[Source], seed: int) -> list[str]:
    """Validation texts, of each source as many; those of a row as one."""
    texts: list[str] = []
    for source in sources:
        rows = source.splits["validation"].shuffle(seed=seed)
        chosen = rows.select(range(min(len(rows), math.ceil(TEXTS / len(sources)))))
        columns = source.texts_of(chosen[:])
        for parts in zip(*columns, strict=True):
            flat = (part if isinstance(part, list) else [part] for part in parts)
            texts.append(" ".join(text for part in flat for text in part))
    return texts[:TEXTS]


def _measured(recipe: Recipe, name: str, texts: list[str]) -> Candidate:
    run = prepare(recipe)
    facts = _facts(run, name)
    rows = {task: rows_probed(run, task)["validation"] for task in recipe.tasks}
    costs: Any = timed(recipe, name, int(run.tokenizer.model_max_length), texts)
    return Candidate(name, **facts, scores=probe(run), rows=rows, **costs)


def _facts(run: PreparedRun, name: str) -> dict[str, Any]:
    encoder = run.model.encoder
    return {
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "length": usable_length(encoder),
        "licence": licence_of(name),
    }


def licence_of(name: str) -> str:
    """The licence that the card of an encoder states: of a folder its README.md."""
    folder = Path(resolve(name))
    try:
        if folder.is_dir() and not (folder / "README.md").is_file():
            return NOT_STATED
        data = ModelCard.load(folder / "README.md" if folder.is_dir() else name).data
    except (OSError, ValueError, YAMLError):  # not there, not to be reached, not to be read
        return NOT_STATED
    licence = data.get("license")
    if licence == "other":
        licence = data.get("license_name")
    return ", ".join(licence) if isinstance(licence, list) else str(licence or NOT_STATED)


# ---- what to take ----


def recommended(candidates: list[Candidate]) -> Candidate | None:
    """The fastest whose macro lies within the best one's standard error of it.

    Args:
        candidates: the best macro first.
    """
    best = candidates[0]
    if not math.isfinite(best.macro):
        return None
    near = [one for one in candidates if one.macro >= best.macro - best.noise]
    return min(near, key=lambda one: one.latency_ms)


def _sentences(candidates: list[Candidate], chosen: Candidate | None) -> list[str]:
    """The recommendation with its numbers, and what they leave open."""
    if chosen is None:
        return ["no encoder is recommended: a score of each is not defined"]
    best = candidates[0]
    if chosen is best:
        line = f"take {chosen.encoder}: the best macro, {_numbers(chosen)}"
        near = [one for one in candidates[1:] if one.macro >= best.macro - best.noise]
        if near:
            line += "; as near as the rows can tell, but slower: "
            line += ", ".join(f"{one.encoder} ({_numbers(one)})" for one in near)
    else:
        line = (
            f"take {chosen.encoder}: {_numbers(chosen)}, the fastest within the standard error of "
            f"the best, {best.encoder} ({_numbers(best)})"
        )
    lines = [line]
    for task in chosen.scores:
        lines += _better_at(task, candidates, chosen)
    if chosen.licence == NOT_STATED:
        lines.append(f"{chosen.encoder} states no licence; ask its makers before you use it")
    lines.append("heads alone were trained, on frozen encoders: training them whole may change it")
    return lines


def _numbers(one: Candidate) -> str:
    return f"{one.macro:.4f} ± {one.noise:.4f}, {one.latency_ms:.1f} ms a text"


def _better_at(task: str, candidates: list[Candidate], chosen: Candidate) -> list[str]:
    """A line where another is better at a task, by more than two standard errors."""
    metric = main_metric(list(chosen.scores[task]))
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(candidates, key=lambda one: sign * one.scores[task][metric])
    values = [one.scores[task][metric] for one in (best, chosen)]
    errors = [noise_of({task: one.scores[task]}, one.rows) for one in (best, chosen)]
    if not sign * (values[0] - values[1]) > 2 * math.hypot(*errors) or not all(errors):
        return []
    return [f"{task}: {best.encoder} is better, {metric} {values[0]:.4f} against {values[1]:.4f}"]


def scatter(candidates: list[Candidate], chosen: Candidate | None) -> Figure:
    """Scores against time: the upper left is best; bars are standard errors."""
    shown = [one for one in candidates if math.isfinite(one.macro)]
    figure = Figure(figsize=(6.5, 4.2 + 0.2 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for one in shown:
        label = drawn(_short(one.encoder), 56) + (" (recommended)" if one is chosen else "")
        style: dict[str, Any] = {"markersize": 11 if one is chosen else 7, "capsize": 3}
        style |= {"fmt": "*" if one is chosen else "o", "label": label}
        axes.errorbar(one.latency_ms, one.macro, yerr=one.noise, **style)
    axes.set(xlabel="milliseconds for one text (median)", ylabel="macro score, frozen encoder")
    axes.set_xlim(left=0)
    axes.margins(x=0.1, y=0.15)
    axes.set_title("Encoders: score against time (upper left is best)")
    figure.legend(loc="outside lower center")
    return figure


def _short(name: str) -> str:
    """The last parts of a long path."""
    return name if len(name) <= 56 else "…" + name[-55:]
