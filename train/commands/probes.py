"""What the heads of a recipe score on an encoder that does not train: linear probes.

The encoder reads each row once. What it gives to a head is kept, each feature brought to mean 0 and
deviation 1, and the head is trained on all of it together by L-BFGS with the penalty of
scikit-learn's `LogisticRegression` (C = 0.01, the best of four on banking77 and sst2): no learning
rate has a part in it, so encoders can be compared. Training a head so costs seconds; the pass
through the encoder is the cost, that of evaluating on as many rows.

Shapes: `U` units that have a label (texts, tokens), `H` what the head reads of one.
"""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from ...modeling.heads import IGNORE
from ..batches.collator import MultiTaskCollator, model_inputs
from ..data.dataset import MultiTaskDataset
from ..evaluation.scoring import EvalSplit, eval_splits
from ..reports.row_maps import means_by_text
from ..trainer.trainer import MultiTaskTrainer
from .setup import PreparedRun
from .trials import SCORED, part_of

ROWS = 2_000  # training rows of a source, at most
TOKENS = 100_000  # of a token task, at most
ROWS_A_PASS = 16
STEPS = 200  # of L-BFGS
PENALTY = 100.0  # 1 / C


@dataclass
class HeadInputs:
    """What a head reads of the training rows, and the labels of it.

    Args:
        states: parts of (U, H).
        labels: parts of (U, ...), or of as many as there are groups.
    """

    states: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)


def probe(run: PreparedRun) -> dict[str, dict[str, Any]]:
    """Train the heads on the states of the encoder as it is, and score them.

    Embedding tasks without a projection have nothing to train and are scored as they are.

    Args:
        run: from `prepare`; its heads are trained.

    Returns:
        task to its metrics on validation rows, `SCORED` at most.
    """
    sources = [part_of(source, _share(source), run.args.seed) for source in run.sources]
    with tempfile.TemporaryDirectory() as folder:  # a Trainer makes its output_dir
        trainer = MultiTaskTrainer(
            model=run.model,
            args=TrainingArguments(
                output_dir=folder,
                remove_unused_columns=False,
                per_device_eval_batch_size=ROWS_A_PASS,
                seed=run.args.seed,
                use_cpu=run.args.use_cpu,
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.accelerator.is_available(),
            ),
            processing_class=run.tokenizer,
            sources={source.name: list(source.tasks) for source in sources},
        )
        run.model.eval()
        with _scaled(run.model.heads) as scales:
            for split in eval_splits(sources, "train", run.tokenizer, run.configs).values():
                for task, read in _head_inputs(trainer, split).items():
                    scales[task] = _train_head(run.model.heads[task], read)
            parts = eval_splits(sources, "validation", run.tokenizer, run.configs)
            scores, _ = trainer.evaluate_tasks(parts, "validation")
    del trainer
    gc.collect()  # a trainer and its parts name each other
    return scores


def _share(source: Any) -> float:
    return min(1.0, ROWS / len(source.splits["train"]))


def rows_probed(run: PreparedRun, task: str) -> dict[str, int]:
    """Split to how many rows of a task are read."""
    rows = run.rows_of(task)
    return {"train": min(ROWS, rows["train"]), "validation": min(SCORED, rows["validation"])}


Scale = tuple[Tensor, Tensor]


@contextmanager
def _scaled(heads: nn.ModuleDict) -> Iterator[dict[str, Scale]]:
    """Within the block heads read features less their mean, through their deviation.

    Yields:
        task to mean and deviation, (H,) each; to be filled.
    """
    scales: dict[str, Scale] = {}

    def hook_of(task: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if task not in scales:
                return None
            mean, deviation = scales[task]
            return ((inputs[0] - mean) / deviation, *inputs[1:])

        return hook

    hooks = [head.register_forward_pre_hook(hook_of(task)) for task, head in heads.items()]
    try:
        yield scales
    finally:
        for hook in hooks:
            hook.remove()


def _head_inputs(trainer: MultiTaskTrainer, split: EvalSplit) -> dict[str, HeadInputs]:
    """What the heads with weights of a source read of its training rows."""
    model = trainer.model_for_tasks
    heads: dict[str, Any] = {
        task: model.heads[task]
        for task in split.source.tasks
        if any(True for _ in model.heads[task].parameters())
    }
    if not heads:
        return {}
    read = {task: HeadInputs() for task in heads}
    inputs_of: dict[str, Tensor] = {}

    def note(task: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            inputs_of[task] = inputs[0].detach().float()

        return hook

    hooks = [head.register_forward_pre_hook(note(task)) for task, head in heads.items()]
    name = split.source.name
    collator: MultiTaskCollator = replace(
        trainer.evaluation.collator, packed=False, sources={name: list(split.source.tasks)}
    )
    dataset = MultiTaskDataset({name: split.rows})
    draw = torch.Generator().manual_seed(trainer.args.seed)
    try:
        for start in range(0, len(dataset), ROWS_A_PASS):
            numbers = list(range(start, min(start + ROWS_A_PASS, len(dataset))))
            batch = trainer.prepare_inputs(collator(dataset.__getitems__(numbers)))
            inputs, windows = model_inputs(batch), batch.get("window_counts")
            labels = inputs.pop("labels")
            with torch.no_grad():
                model(**inputs, tasks=list(heads))
            for task in inputs_of.keys() & labels.keys():
                states, of_task = inputs_of.pop(task), labels[task]
                if heads[task].per_token:
                    most = max(1, TOKENS * len(numbers) // len(dataset))
                    states, of_task = _labelled(states, of_task, most, draw)
                elif windows is not None:  # a linear head of their mean gives the mean of theirs
                    states = means_by_text(states.cpu(), windows.cpu()).to(states.device)
                read[task].states.append(states)
                read[task].labels.append(of_task)
    finally:
        for hook in hooks:
            hook.remove()
    return read


def _labelled(
    states: Tensor, labels: Tensor, most: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(N, T, H) states and (N, T) labels to the (U, H) and (U,) of labelled tokens, so many."""
    states, labels = states[labels != IGNORE], labels[labels != IGNORE]
    if len(labels) > most:
        chosen = torch.randperm(len(labels), generator=draw)[:most].to(labels.device)
        states, labels = states[chosen], labels[chosen]
    return states, labels


def _train_head(head: Any, read: HeadInputs) -> Scale:
    """Train a head; mean and deviation of its features."""
    states, labels = torch.cat(read.states), torch.cat(read.labels)
    mean, deviation = states.mean(0), states.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    states = (states - mean) / deviation
    weights = [parameter for parameter in head.parameters() if parameter.dim() > 1]
    optimizer = torch.optim.LBFGS(
        list(head.parameters()), max_iter=STEPS, line_search_fn="strong_wolfe"
    )
    units = head.count(labels).clamp(min=1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = sum(weight.square().sum() for weight in weights) * PENALTY / (2 * units)
        value = head.loss(head(states), labels) + penalty
        value.backward()
        return value

    head.requires_grad_(requires_grad=True)
    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return mean, deviation
