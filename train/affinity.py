"""Should these tasks share a model? A short joint run that compares them, or training both ways.

The short run trains all tasks jointly on mixed batches and stops every few steps to compare them on
the batch at hand, dropout off:
- cosines of their gradients on the shared weights: below 0, two tasks pull these weights apart;
- their affinity by lookahead (TAG, arXiv:2109.04617): Z[i -> j] = 1 - L_j(shared weights moved
  along task i's gradient) / L_j, the share of task j's loss that a step of task i takes away.

The lookahead step has the same length for every task, whatever the size of its loss. A plain SGD
step at Adam's learning rate changes no loss visibly. The length of Adam's own step if every shared
weight moves by its rate, learning_rate * sqrt(P), is too long for a gradient's direction, where few
weights make most of the way: on a MiniLM it raises even the task's own loss, and at a tenth of it
nearly every other task's, by curvature alone. A hundredth (`LENGTH`) shows what the directions do.

Cost: K backward and K + 1 forward passes for each measurement, (K + 2) * P floats of memory. `full`
costs a training of each task alone and one of all.

Left out, because they would compare something else than the tasks: `sampling`, `balancing`,
`gradient_accumulation_steps`, mixed precision. Layers that join later train from the start.
Shapes: `K` tasks, `P` shared weights, `M` measurements.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate.utils import send_to_device
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainingArguments, get_constant_schedule_with_warmup

from ..modeling.modeling_polyhead import PolyheadModel
from . import plots
from .adapters import adapter_name
from .collator import MultiTaskCollator, model_inputs
from .errors import RecipeError
from .features import MultiTaskDataset, tokenize
from .gradients import cosines, shared_parameters, task_gradients
from .hub import write_json
from .metrics import LOWER_IS_BETTER, main_metric
from .optimization import apply_freeze, optimizer_groups
from .recipe import training_arguments
from .run import Prepared, prepare, train
from .sampler import MultiTaskBatchSampler
from .schema import Balancing, Recipe, Sampling

STEPS = 120
MEASUREMENTS = 30  # spread over the steps
FEWEST = 8  # measurements; from fewer, nothing is concluded
ROWS = 4  # of each source in a batch, at least
LENGTH = 0.01  # of the lookahead step, in learning_rate * sqrt(P); see above
JOINT = "all-tasks"  # folder of the joint run; no task can have this name
BEST_MODEL = ("metric_for_best_model", "greater_is_better")
CORRELATIONS = ("pearson", "spearman", "mcc")


def affinity(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    steps: int = STEPS,
    full: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compare the tasks of a recipe; write `output_dir/affinity.json` and `affinity.png`.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        steps: optimizer steps of the short run.
        full: train each task alone and all jointly, too, in `output_dir/affinity/<task>` and
            `output_dir/affinity/all-tasks`; a run that is finished there is not repeated, unless
            the recipe has changed.
        notify: called with each line worth knowing before a training starts.

    Returns:
        JSON-ready: what `measure` gives, `scores` and `wall_seconds` with `full` (`None` without),
        and what `conclude` gives.

    Raises:
        RecipeError: faults of the recipe, its data or its encoder, one task only, no shared weights
            that train; nothing has been written then. A loss that is not finite.
    """
    if steps < 1:
        raise RecipeError("affinity", [f"--steps: {steps}; it must be 1 or more"])
    found = prepare(path, overrides)
    args = training_arguments(found.recipe, evaluates=False, source=str(path))
    faults = _faults(found, args, full=full)
    if faults:
        raise RecipeError(str(path), faults)
    folder = Path(found.recipe.output_dir)
    result = measure(found, args, steps=steps)
    result |= {"scores": None, "wall_seconds": None}
    _write(folder, result)
    if full:
        result |= _both_ways(found, folder / "affinity", notify)
        _write(folder, result)
    return result


def _write(folder: Path, result: dict[str, Any]) -> None:
    result |= conclude(result)
    write_json(folder / "affinity.json", result)
    plots.draw(folder, {"affinity": draw}, ["affinity"], result)


def _faults(found: Prepared, args: TrainingArguments, *, full: bool) -> list[str]:
    """What keeps the tasks from being compared; what the recipe freezes is frozen."""
    if len(found.recipe.tasks) < 2:
        return [f"tasks: {', '.join(found.recipe.tasks)} alone; affinity compares two or more"]
    faults = []
    if args.world_size > 1:
        faults.append(f"affinity runs in one process, not {args.world_size}; start it without them")
    try:
        apply_freeze(found.model, found.recipe.freeze)
    except ValueError as error:
        faults += str(error).splitlines()
    if not shared_parameters(found.model):
        faults.append("freeze: no two tasks share weights that train; there is nothing to compare")
    if full and args.max_steps > 0:
        faults.append(
            "training.max_steps: a task alone would see more of its rows than jointly; write "
            "num_train_epochs for --full"
        )
    for source in found.sources if full else ():
        if not {"test", "validation"} & set(source.splits):
            faults.append(f"tasks.{source.name}.data: no test or validation rows to score; --full")
    return faults


# ---- the short run ----


def compare_tasks(
    losses_of: Callable[[], Sequence[Tensor]], parameters: Sequence[nn.Parameter], length: float
) -> tuple[Tensor, Tensor]:
    """Cosines and affinities of tasks on one batch; the weights end as they were, bit for bit.

    Args:
        losses_of: a forward pass, the same each time: K losses, scalars.
        parameters: the shared weights.
        length: of the lookahead step.

    Returns:
        (K, K) cosines and (K, K) affinities, those of row i to a step of task i. NaN where there
        are none: a gradient or a loss is zero.
    """
    losses = losses_of()
    before = torch.stack([loss.detach().double() for loss in losses])
    gradients = task_gradients(losses, parameters)
    del losses  # the graph with them
    kept = [parameter.detach().clone() for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]
    rows = []
    for gradient in gradients:
        step = gradient * (length / gradient.double().norm())
        with torch.no_grad():
            for parameter, part in zip(parameters, step.split(sizes), strict=True):
                parameter -= part.view_as(parameter)
            after = torch.stack([loss.double() for loss in losses_of()])
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        rows.append((1 - after / before).where(before > 0, torch.nan))
    return cosines(gradients), torch.stack(rows)


@dataclass
class _Measured:
    """Cosines and affinities (K, K) of each measurement; NaN where a task was missing."""

    names: list[str]
    cosines: list[np.ndarray] = field(default_factory=list)
    affinities: list[np.ndarray] = field(default_factory=list)

    def add(self, present: list[str], found: tuple[Tensor, Tensor]) -> None:
        own = [self.names.index(name) for name in present]
        for values, matrix in zip((self.cosines, self.affinities), found, strict=True):
            whole = np.full((len(self.names), len(self.names)), np.nan)
            whole[np.ix_(own, own)] = matrix.cpu().numpy()
            values.append(whole)


def measure(found: Prepared, args: TrainingArguments, *, steps: int) -> dict[str, Any]:
    """Train jointly for some steps and compare the tasks on the way.

    Args:
        found: recipe, data and model, frozen as the recipe says; the model is trained.
        args: learning rate, size of a batch, optimizer and seed.
        steps: optimizer steps.

    Returns:
        `tasks`; `steps`, `measurements`, `batch_size`, `shared_weights`, `step_length`, `seconds`;
        `cosines`, for each pair of `tasks`, and `affinities`, for each task that is followed
        (`follows`) and each that gains: `mean`, `standard_error`, share of `negative` ones and
        how many were `compared`. Pairs that share no weights have neither.

    Raises:
        RecipeError: a loss is not finite.
    """
    began = time.perf_counter()
    size = max(args.per_device_train_batch_size, ROWS * len(found.sources))
    model = found.model.float()  # differences of losses are small
    model.to(args.device)  # pyright: ignore[reportArgumentType]
    parameters = shared_parameters(model)
    groups = optimizer_groups(model, found.recipe.freeze, found.recipe.optimizer, args, ())
    length = _step_length(groups, parameters)
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=args.adam_epsilon)
    schedule = get_constant_schedule_with_warmup(optimizer, math.ceil(steps / 10))
    measured = _Measured(sorted(model.task_names))
    every = math.ceil(steps / MEASUREMENTS)
    batches = _batches(found, args, size=size, steps=steps)
    for step, batch in enumerate(tqdm(batches, "Comparing tasks", disable=args.disable_tqdm), 1):
        fed = send_to_device(model_inputs(batch), args.device)
        if step % every == 0:
            measured.add(*_compare(model, fed, parameters, length))
        model.train()
        output = model(**fed)
        _check_finite(output.losses, step)
        output.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {
        "tasks": measured.names,
        "steps": steps,
        "measurements": len(measured.cosines),
        "batch_size": size,
        "shared_weights": sum(parameter.numel() for parameter in parameters),
        "step_length": length,
        "seconds": round(time.perf_counter() - began, 1),
        **_summaries(measured, model),
    }


def _step_length(groups: list[dict[str, Any]], parameters: list[nn.Parameter]) -> float:
    """`LENGTH` times the way that Adam goes when every shared weight moves by its rate."""
    shared = {id(parameter) for parameter in parameters}
    squares = [g["lr"] ** 2 * p.numel() for g in groups for p in g["params"] if id(p) in shared]
    return LENGTH * math.sqrt(sum(squares))


def _batches(found: Prepared, args: TrainingArguments, *, size: int, steps: int) -> DataLoader:
    """Mixed batches with as many rows of each source; no more rows are tokenized than needed."""
    model, tokenizer = found.model, found.tokenizer
    seed = args.seed if args.data_seed is None else args.data_seed
    rows = {}
    for source in found.sources:
        raw = source.splits["train"]
        raw = raw.shuffle(seed=seed).select(range(min(len(raw), size * steps)))
        rows[source.name] = tokenize(replace(source, splits={"train": raw}), "train", tokenizer)
    dataset = MultiTaskDataset(rows)
    sampling = Sampling(strategy="uniform", rows_per_epoch=size * steps)
    sampler = MultiTaskBatchSampler(dataset.ranges, sampling, batch_size=size, seed=seed)
    options = (tokenizer, model.config.tasks, model.task_names, found.tasks_by_source)
    packed = found.recipe.sampling.packing and model.can_pack
    collator = MultiTaskCollator(*options, packed=packed, mask_seed=args.seed)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collator)  # pyright: ignore


def _compare(
    model: PolyheadModel, fed: dict[str, Any], parameters: list[nn.Parameter], length: float
) -> tuple[list[str], tuple[Tensor, Tensor]]:
    """The tasks that a batch has labels of, and their cosines and affinities."""
    model.eval()
    present = [name for name, count in model.count_items(fed["labels"]).items() if count]

    def losses() -> list[Tensor]:
        found = model(**fed).losses
        return [found[name] for name in present]

    return present, compare_tasks(losses, parameters, length)


def _check_finite(losses: dict[str, Tensor], step: int) -> None:
    for name, loss in losses.items():
        if not loss.isfinite():
            what = f"the loss of task {name} is {loss.item()} in step {step}"
            raise RecipeError("affinity", [f"{what}; lower training.learning_rate"])


def _summaries(measured: _Measured, model: PolyheadModel) -> dict[str, list[dict[str, Any]]]:
    names = measured.names
    read = {name: _shared_by(model, name) for name in names}
    cosine, gains = np.stack(measured.cosines), np.stack(measured.affinities)  # (M, K, K)
    places = [(i, j) for i in range(len(names)) for j in range(len(names))]
    places = [(i, j) for i, j in places if read[names[i]] & read[names[j]]]
    return {
        "cosines": [
            {"tasks": [names[i], names[j]], **_summary(cosine[:, i, j])} for i, j in places if i < j
        ],
        "affinities": [
            {"follows": names[i], "gains": names[j], **_summary(gains[:, i, j])} for i, j in places
        ],
    }


def _shared_by(model: PolyheadModel, task: str) -> set[str]:
    """Names of the shared weights that a task's rows go through."""
    shared = {id(parameter) for parameter in shared_parameters(model)}
    others = set(model.loaded_adapters) - {model.config.tasks[task].adapter}
    return {
        name
        for name, parameter in model.encoder.named_parameters()
        if id(parameter) in shared and not others & set(name.split("."))
    }


def _summary(values: np.ndarray) -> dict[str, Any]:
    """(M,) values, NaN left out; the standard error of one value, or of none, is None."""
    values = values[np.isfinite(values)]
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return {
        "mean": float(values.mean()) if count else None,
        "standard_error": error,
        "negative": float((values < 0).mean()) if count else None,
        "compared": count,
    }


# ---- each task alone, and all jointly ----


def _both_ways(found: Prepared, folder: Path, notify: Callable[[str], None]) -> dict[str, Any]:
    """Scores and wall times of `polyhead train` for each task alone and for all."""
    recipe, runs = found.recipe, {}
    for name in recipe.tasks:
        runs[name] = _train_once(_alone(recipe, name), folder / name, notify)
    runs[JOINT] = _train_once(recipe, folder / JOINT, notify)
    joint = runs[JOINT][0]
    rows = {t: {k: len(s.splits[k]) for k in s.splits} for s in found.sources for t in s.tasks}
    scores = {}
    for name in recipe.tasks:
        split = joint["splits"][name]
        both = runs[name][0]["tasks"][name], joint["tasks"][name]
        scores[name] = _side_by_side(*both, rows[name][split]) | {"split": split}
    return {"scores": scores, "wall_seconds": {name: run[1] for name, run in runs.items()}}


def _alone(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one of its tasks; what mixes and weighs tasks is left out."""
    task, training = recipe.tasks[name], dict(recipe.training)
    if isinstance(task.adapter, str):  # the name of one that another task defines
        sections = {
            adapter_name(t, other.adapter): other.adapter
            for t, other in recipe.tasks.items()
            if isinstance(other.adapter, dict)
        }
        task = replace(task, adapter={**sections[task.adapter], "name": task.adapter})
    best = str(training.get("metric_for_best_model", "macro")).removeprefix("eval_")
    if best not in ("macro", "loss"):  # a metric of one task; macro is the main one of the task
        training = {k: v for k, v in training.items() if k not in BEST_MODEL}
    return replace(
        recipe,
        tasks={name: task},
        sampling=Sampling(packing=recipe.sampling.packing, order=recipe.sampling.order),
        balancing=Balancing(),
        freeze=replace(recipe.freeze, heads=[head for head in recipe.freeze.heads if head == name]),
        training=training,
    )


def _train_once(
    recipe: Recipe, folder: Path, notify: Callable[[str], None]
) -> tuple[dict[str, Any], float | None]:
    """Scores and seconds of a run in a folder; it is trained unless it is finished there."""
    training = {k: v for k, v in recipe.training.items() if k != "resume_from_checkpoint"}
    recipe = replace(recipe, output_dir=str(folder), training=training)
    path, scores, clock = (folder / n for n in ("recipe.yaml", "scores.json", "wall_seconds.json"))
    plain = TypeAdapter(Recipe).dump_python(
        recipe, mode="json", by_alias=True, exclude_defaults=True
    )
    text = f"# polyhead train {path}\n{yaml.safe_dump(plain, sort_keys=False)}"
    same = path.is_file() and path.read_text(encoding="utf-8") == text
    if not same or not scores.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for old in (scores, clock):
            old.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        notify(f"training {folder}")
        began = time.perf_counter()
        train(path, notify=notify)
        write_json(clock, round(time.perf_counter() - began, 1))
    seconds = json.loads(clock.read_text(encoding="utf-8")) if clock.is_file() else None
    return json.loads(scores.read_text(encoding="utf-8")), seconds


def _side_by_side(single: dict[str, Any], joint: dict[str, Any], rows: int) -> dict[str, Any]:
    """The main metric of a task trained alone and jointly; `gain` is positive where joint wins."""
    metric = main_metric(list(joint))
    values = (single[metric], joint[metric])
    gain = (values[0] - values[1]) if metric in LOWER_IS_BETTER else (values[1] - values[0])
    errors = [_score_error(metric, value, rows) for value in values]
    known = None not in errors and math.isfinite(gain)
    return {
        "metric": metric,
        "rows": rows,
        "single": values[0] if math.isfinite(values[0]) else None,
        "joint": values[1] if math.isfinite(values[1]) else None,
        "gain": gain if math.isfinite(gain) else None,
        "standard_error": math.hypot(*errors) if known else None,  # pyright: ignore
    }


def _score_error(metric: str, value: float, rows: int) -> float | None:
    """The usual standard error of a share, or of a correlation, over so many rows.

    A share gets two rows that are right and two that are wrong (Agresti and Coull, 1998), so that
    all of a few is not taken for certain.
    """
    if metric in LOWER_IS_BETTER or not math.isfinite(value):
        return None
    if metric in CORRELATIONS:
        return (1 - value**2) / math.sqrt(rows)
    share = (value * rows + 2) / (rows + 4)
    return math.sqrt(share * (1 - share) / (rows + 4))


# ---- what follows from it ----


def conclude(result: dict[str, Any]) -> dict[str, Any]:
    """What the numbers say, in sentences; a finding is what lies beyond 2 standard errors of 0.

    Args:
        result: from `measure`, with `scores`.

    Returns:
        `pairs`: tasks, verdict (help, fight, mixed, unclear, separate) and a sentence for each
        pair; `advice`: verdict (share, divided, apart, either, separate) and a sentence for each
        task; `cautions`: sentences.
    """
    cosine = {frozenset(found["tasks"]): found for found in result["cosines"]}
    gains = {(found["follows"], found["gains"]): found for found in result["affinities"]}
    names = result["tasks"]
    pairs = [
        _pair(one, other, cosine.get(frozenset((one, other))), gains)
        for one, other in combinations(names, 2)
    ]
    if result["scores"] is not None:
        advice = {name: _by_scores(name, found) for name, found in result["scores"].items()}
    else:
        advice = {name: _by_run(name, names, cosine, gains) for name in names}
    return {"pairs": pairs, "advice": advice, "cautions": _cautions(result, cosine, gains)}


def _sign(found: dict[str, Any] | None) -> int:
    """-1 or 1 for what lies beyond 2 standard errors of 0, else 0."""
    if found is None or found["compared"] < FEWEST:
        return 0
    mean = found["mean"]
    return (mean > 0) - (mean < 0) if abs(mean) > 2 * found["standard_error"] else 0


def _said(found: dict[str, Any], *, percent: bool = False) -> str:
    if found["mean"] is None:
        return "not measured"
    scale, sign = (100, " %") if percent else (1, "")
    mean, error = found["mean"], found["standard_error"]
    spread = "" if error is None else f" ± {_digits(scale * error)}"
    return f"{'-' if mean < 0 else '+'}{_digits(abs(scale * mean))}{spread}{sign}"


def _digits(value: float) -> str:
    """Two digits that tell, as 0.0012, 1.2, 120."""
    places = 1 - math.floor(math.log10(value)) if value else 0
    return f"{round(value, places):.{max(0, places)}f}"


def _pair(
    one: str, other: str, cosine: dict[str, Any] | None, gains: dict[Any, dict[str, Any]]
) -> dict[str, Any]:
    if cosine is None:
        text = f"{one} and {other} share no weights that train."
        return {"tasks": [one, other], "verdict": "separate", "sentence": text}
    to, back = gains[one, other], gains[other, one]
    signs = [_sign(cosine), _sign(to), _sign(back)]
    numbers = (
        f"cosine {_said(cosine)}, negative in {cosine['negative'] or 0:.0%}; a step of {one} takes "
        f"{_said(to, percent=True)} off the loss of {other}, one of {other} "
        f"{_said(back, percent=True)} off that of {one}"
    )
    if -1 in signs and 1 in signs:
        verdict, text = "mixed", "the evidence is divided"
    elif -1 in signs:
        verdict, text = "fight", "they fight"
    elif signs[1:] == [1, 1]:
        verdict, text = "help", "they help each other"
    elif 1 in signs[1:]:
        helper, helped = (one, other) if signs[1] == 1 else (other, one)
        verdict, text = "help", f"{helper} helps {helped}"
    elif signs[0] == 1:
        verdict, text = "help", "they pull the same way"
    else:
        verdict, text = "unclear", "nothing beyond 2 standard errors"
    sentence = f"{one} and {other}: {text} ({numbers})."
    return {"tasks": [one, other], "verdict": verdict, "sentence": sentence}


def _by_run(
    name: str, names: list[str], cosine: dict[Any, dict], gains: dict[Any, dict]
) -> dict[str, str]:
    """What the short run says of a task."""
    others = [other for other in names if frozenset((name, other)) in cosine]
    if not others:
        text = f"{name}: it shares no weights that train with another task."
        return {"verdict": "separate", "sentence": text}
    helped = [other for other in others if _sign(gains.get((other, name))) == 1]
    fought = [
        other
        for other in others
        if _sign(gains.get((other, name))) == -1
        or (_sign(cosine.get(frozenset((name, other)))) == -1 and other not in helped)
    ]
    helpers, rivals = ", ".join(helped), ", ".join(fought)
    if helped and fought:
        verdict = "divided"
        text = f"it gains from {helpers} and fights with {rivals}; share with the former, and let "
        text += "--full decide about the latter"
    elif fought:
        verdict = "apart"
        text = f"it fights with {rivals} and gains from no task; an adapter of its own on a frozen "
        text += "encoder, or a model of its own, may serve it better; --full tells"
    elif helped:
        verdict, text = "share", f"share; it gains from {helpers} and fights with none"
    else:
        verdict = "either"
        text = "nothing beyond 2 standard errors for or against sharing; sharing is cheaper"
    return {"verdict": verdict, "sentence": f"{name}: {text}."}


def _by_scores(name: str, found: dict[str, Any]) -> dict[str, str]:
    """What training both ways says of a task."""
    gain, error = found["gain"], found["standard_error"]
    if gain is None:
        text = f"no {found['metric']} to compare"
        return {"verdict": "either", "sentence": f"{name}: {text}."}
    numbers = f"{found['metric']} alone {found['single']:.4f}, jointly {found['joint']:.4f}"
    if error is None:
        text = f"{numbers}; how far rows of {found['split']} can tell this is not known"
        return {"verdict": "either", "sentence": f"{name}: {text}."}
    numbers += f"; {gain:+.4f} ± {error:.4f} over {found['rows']} rows of {found['split']}"
    if abs(gain) <= 2 * error:
        verdict, text = "either", "no difference beyond 2 standard errors; sharing is cheaper"
    elif gain > 0:
        verdict, text = "share", "share; it scores higher jointly"
    else:
        verdict = "apart"
        text = "an adapter of its own on a frozen encoder, or a model of its own; it scores higher "
        text += "alone"
    return {"verdict": verdict, "sentence": f"{name}: {text} ({numbers})."}


def _cautions(result: dict[str, Any], cosine: dict[Any, dict], gains: dict[Any, dict]) -> list[str]:
    numbers = [*cosine.values(), *(f for (one, other), f in gains.items() if one != other)]
    lines = []
    if result["measurements"] < FEWEST:
        lines.append(
            f"{result['measurements']} measurements are too few for a finding; {FEWEST} or more "
            "need more --steps."
        )
    elif not any(map(_sign, numbers)):
        lines.append(
            "Nothing in the short run is beyond 2 standard errors: it gives no reason to part the "
            "tasks, and does not show that they help each other."
        )
    else:
        lines.append(
            f"Of {len(numbers)} numbers about {math.ceil(0.05 * len(numbers))} may lie beyond 2 "
            "standard errors by chance alone."
        )
    weak = [one for one, other in gains if one == other and _sign(gains[one, one]) < 1]
    if weak and result["measurements"] >= FEWEST:
        lines.append(
            f"A step of {', '.join(weak)} does not surely lower its own loss: what it does to "
            "others tells little."
        )
    if result["scores"] is None:
        lines.append(
            f"{result['steps']} steps show the beginning of training only, and tasks that fight "
            "there may score as high in the end; --full trains each task alone and all jointly, "
            "and compares scores."
        )
    else:
        lines.append(
            "The scores decide, not the short run. They are of one seed; ± counts the scored rows "
            "alone."
        )
    return lines


# ---- the picture ----


def draw(result: dict[str, Any]) -> Figure:
    """Heat maps of cosines and affinities, centred at 0; bold: beyond 2 standard errors.

    Args:
        result: from `measure`.
    """
    names = result["tasks"]
    cosine = {place: f for f in result["cosines"] for place in permutations(f["tasks"])}
    gains = {(f["follows"], f["gains"]): f for f in result["affinities"]}
    side = max(2.2, 0.55 * len(names)) + 0.08 * max(map(len, names)) + 0.5
    figure = Figure(figsize=(2 * side + 0.3, side + 1), layout="constrained")
    left, right = figure.subplots(1, 2)
    _heat_map(left, names, cosine)
    left.set_title("cosine of the gradients\n(red: they pull apart)")
    _heat_map(right, names, gains, percent=True)
    right.set(ylabel="a step of", xlabel="takes off the loss of")
    right.set_title("affinity, % of the loss\n(red: it rises)")
    count, steps = result["measurements"], result["steps"]
    figure.suptitle(f"{count} measurements in {steps} steps; bold: beyond 2 standard errors")
    return figure


def _heat_map(
    axes: Axes,
    names: list[str],
    found: dict[tuple[str, ...], dict[str, Any]],
    *,
    percent: bool = False,
) -> None:
    """Means by (row, column); the colours end at the largest off the diagonal.

    They end no lower than at a tenth of the largest gain of a task from its own step, or at 0.1.
    """
    matrix = np.full((len(names), len(names)), np.nan)
    for (row, column), values in found.items():
        if values["mean"] is not None:
            matrix[names.index(row), names.index(column)] = values["mean"]
    diagonal = np.eye(len(names), dtype=bool)
    size = np.abs(np.nan_to_num(matrix))
    limit = max(size[~diagonal].max(), 0.1 * (size[diagonal].max() or 1))
    axes.set_facecolor("0.85")
    axes.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    for i, j in np.argwhere(np.isfinite(matrix)):
        color = "white" if abs(matrix[i, j]) > 0.6 * limit else "black"
        weight = "bold" if _sign(found[names[i], names[j]]) else "normal"
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": color, "weight": weight}
        number = _said({**found[names[i], names[j]], "standard_error": None}, percent=percent)
        axes.text(j, i, number.removesuffix(" %"), **style)
