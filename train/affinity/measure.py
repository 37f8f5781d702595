"""Should these tasks share a model? A short joint run that compares them, or training both ways.

The short run trains all tasks jointly on mixed batches and stops every few steps to compare them on
the batch at hand, dropout off:
- cosines of their gradients on the shared weights: below 0 by more than their noise, two tasks
  pull these weights apart (`balancing/agreement.py`);
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

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_constant_schedule_with_warmup

from ...modeling.modeling_polyhead import PolyheadModel
from ..artifacts import write_json
from ..balancing.agreement import agreement_with_itself, own_agreement
from ..balancing.halves import HalfGradient
from ..balancing.task_gradients import cosines, shared_parameters, task_gradients
from ..batches.collator import MultiTaskCollator, model_inputs
from ..batches.sampler import MultiTaskBatchSampler
from ..commands.setup import PreparedRun, prepare
from ..data.dataset import MultiTaskDataset
from ..data.tokenization import tokenize
from ..errors import UserError
from ..optimization.by_task import learning_rates
from ..optimization.freezing import apply_freeze
from ..optimization.parameter_groups import optimizer_groups
from ..recipe.router import unrouted
from ..recipe.sections import Sampling
from ..reports import figures as plots
from .advice import conclude, draw
from .side_by_side import both_ways

STEPS = 120
MEASUREMENTS = 30  # spread over the steps
ROWS = 4  # of each source in a batch, at least
LENGTH = 0.01  # of the lookahead step, in learning_rate * sqrt(P); see above


def affinity(
    path: str | Path,
    overrides: list[str] | None = None,
    *,
    steps: int = STEPS,
    full: bool = False,
) -> dict[str, Any]:
    """Compare the tasks of a recipe; write `output_dir/affinity.json` and `affinity.png`.

    Args:
        path: the recipe.
        overrides: `key=value` with dotted keys.
        steps: optimizer steps of the short run.
        full: train each task alone and all jointly, too, in `output_dir/affinity/<task>` and
            `output_dir/affinity/all-tasks`; a run that is finished there is not repeated, unless
            the recipe has changed.

    Returns:
        JSON-ready: what `measure` gives, `scores` and `wall_seconds` with `full` (`None` without),
        and what `conclude` gives.

    Raises:
        UserError: faults of the recipe, its data or its encoder, one task only, no shared weights
            that train; nothing has been written then. A loss that is not finite.
    """
    if steps < 1:
        raise UserError("affinity", [f"--steps: {steps}; it must be 1 or more"])
    run = prepare(path, overrides, check=partial(unrouted, command="affinity compares"))
    apply_freeze(run.model, run.recipe.freeze)
    if faults := _faults(run, full=full):
        raise UserError(run.recipe.path, faults)
    folder = Path(run.recipe.output_dir)
    result = measure(run, steps=steps)
    result |= {"scores": None, "wall_seconds": None}
    _write(folder, result)
    if full:
        result |= both_ways(run, folder / "affinity")
        _write(folder, result)
    return result


def _write(folder: Path, result: dict[str, Any]) -> None:
    result |= conclude(result)
    write_json(folder / "affinity.json", result)
    plots.draw(folder, {"affinity": draw}, ["affinity"], result)


def _faults(run: PreparedRun, *, full: bool) -> list[str]:
    """What keeps the tasks from being compared, once what the recipe freezes is frozen."""
    if len(run.recipe.tasks) < 2:
        return [f"tasks: {', '.join(run.recipe.tasks)} alone; affinity compares two or more"]
    faults, ranks = [], run.args.world_size
    if ranks > 1:
        faults.append(f"affinity runs in one process, not {ranks}; start it without them")
    if not shared_parameters(run.model):
        faults.append("freeze: no two tasks share weights that train; there is nothing to compare")
    if full and run.args.max_steps > 0:
        faults.append(
            "training.max_steps: a task alone would see more of its rows than jointly; write "
            "num_train_epochs for --full"
        )
    for source in run.sources if full else ():
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
    weights = [parameter.detach().clone() for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]
    rows = []
    for gradient in gradients:
        step = gradient * (length / gradient.double().norm())
        with torch.no_grad():
            for parameter, part in zip(parameters, step.split(sizes), strict=True):
                parameter -= part.view_as(parameter)
            after = torch.stack([loss.double() for loss in losses_of()])
            for parameter, value in zip(parameters, weights, strict=True):
                parameter.copy_(value)
        rows.append((1 - after / before).where(before > 0, torch.nan))
    return cosines(gradients), torch.stack(rows)


@dataclass
class _Measured:
    """Cosines and affinities (K, K) of each measurement; NaN where a task was missing.

    And cosines of two halves of one task's gradient, of the tasks in turn.
    """

    names: list[str]
    cosines: list[np.ndarray] = field(default_factory=list)
    affinities: list[np.ndarray] = field(default_factory=list)
    halves: dict[str, list[float]] = field(default_factory=dict)

    def add(self, present: list[str], matrices: tuple[Tensor, Tensor]) -> None:
        indices = [self.names.index(name) for name in present]
        for values, matrix in zip((self.cosines, self.affinities), matrices, strict=True):
            whole = np.full((len(self.names), len(self.names)), np.nan)
            whole[np.ix_(indices, indices)] = matrix.cpu().numpy()
            values.append(whole)


def measure(run: PreparedRun, *, steps: int) -> dict[str, Any]:
    """Train jointly for some steps and compare the tasks on the way.

    Args:
        run: its model is frozen as the recipe says, and is trained; of its arguments learning rate,
            size of a batch, optimizer and seed count.
        steps: optimizer steps.

    Returns:
        `tasks`; `steps`, `measurements`, `batch_size`, `shared_weights`, `step_length`, `seconds`;
        `cosines`, for each pair of `tasks`, and `affinities`, for each task that is followed
        (`follows`) and each that gains: `mean`, `standard_error`, share of `negative` ones and
        how many were `compared`; of cosines also `own`, what tasks have with themselves. Pairs that
        share no weights have neither.

    Raises:
        UserError: a loss is not finite.
    """
    began, args, recipe = time.perf_counter(), run.args, run.recipe
    size = max(args.per_device_train_batch_size, ROWS * len(run.sources))
    model = run.model.float()  # differences of losses are small
    model.to(args.device)  # pyright: ignore[reportArgumentType]
    parameters = shared_parameters(model)
    rates = learning_rates(recipe)
    groups = optimizer_groups(model, recipe.freeze, recipe.optimizer, args, (), rates)
    length = _step_length(groups, parameters)
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=args.adam_epsilon)
    schedule = get_constant_schedule_with_warmup(optimizer, math.ceil(steps / 10))
    measured = _Measured(sorted(model.task_names))
    every = math.ceil(steps / MEASUREMENTS)
    batches = _batches(run, size=size, steps=steps)
    for step, batch in enumerate(tqdm(batches, "Comparing tasks", disable=args.disable_tqdm), 1):
        fed: Any = send_to_device(model_inputs(batch), args.device)
        if step % every == 0:
            measured.add(*_compare(model, fed, parameters, length))
            name = measured.names[len(measured.cosines) % len(measured.names)]
            half = _halves(model, name, fed, parameters)
            measured.halves.setdefault(name, []).extend(half)
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


def _batches(run: PreparedRun, *, size: int, steps: int) -> DataLoader:
    """Mixed batches with as many rows of each source; no more rows are tokenized than needed."""
    model, tokenizer, args = run.model, run.tokenizer, run.args
    seed = args.seed if args.data_seed is None else args.data_seed
    rows = {}
    for source in run.sources:
        raw = source.splits["train"]
        raw = raw.shuffle(seed=seed).select(range(min(len(raw), size * steps)))
        rows[source.name] = tokenize(replace(source, splits={"train": raw}), "train", tokenizer)
    dataset = MultiTaskDataset(rows)
    sampling = Sampling(strategy="uniform", rows_per_epoch=size * steps)
    sampler = MultiTaskBatchSampler(dataset.ranges, sampling, batch_size=size, seed=seed)
    options = (tokenizer, model.config.tasks, model.task_names, run.tasks_by_source)
    packed = run.recipe.sampling.packing and model.can_pack
    collator = MultiTaskCollator(*options, packed=packed, mask_seed=args.seed)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collator)  # pyright: ignore


def _compare(
    model: PolyheadModel, fed: dict[str, Any], parameters: list[nn.Parameter], length: float
) -> tuple[list[str], tuple[Tensor, Tensor]]:
    """The tasks that a batch has labels of, and their cosines and affinities."""
    model.eval()
    present = [name for name, count in model.count_items(fed["labels"]).items() if count]

    def losses() -> list[Tensor]:
        by_task = model(**fed).losses
        return [by_task[name] for name in present]

    return present, compare_tasks(losses, parameters, length)


def _halves(
    model: PolyheadModel, name: str, fed: dict[str, Any], parameters: list[nn.Parameter]
) -> list[float]:
    """Cosine of two halves of a task's gradient on a batch; none where it has no rows there."""
    if not model.count_items(fed["labels"])[name]:
        return []
    half = HalfGradient(name, model.heads[name], parameters)
    losses = {name: model(**fed).losses[name]}
    half.add(losses)
    half.end()
    cosine = half.cosine(task_gradients(list(losses.values()), parameters)[0])
    return [cosine] if math.isfinite(cosine) else []


def _check_finite(losses: dict[str, Tensor], step: int) -> None:
    for name, loss in losses.items():
        if not loss.isfinite():
            what = f"the loss of task {name} is {loss.item()} in step {step}"
            raise UserError("affinity", [f"{what}; lower training.learning_rate"])


def _summaries(measured: _Measured, model: PolyheadModel) -> dict[str, list[dict[str, Any]]]:
    names = measured.names
    read = {name: _shared_by(model, name) for name in names}
    cosine, gains = np.stack(measured.cosines), np.stack(measured.affinities)  # (M, K, K)
    places = [(i, j) for i in range(len(names)) for j in range(len(names))]
    places = [(i, j) for i, j in places if read[names[i]] & read[names[j]]]
    own = {name: agreement_with_itself(measured.halves.get(name, [])) for name in names}
    return {
        "cosines": [
            {
                "tasks": [names[i], names[j]],
                **_summary(cosine[:, i, j]),
                "own": own_agreement(own[names[i]], own[names[j]]),
            }
            for i, j in places
            if i < j
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
