"""Tasks that learn from teachers: targets that other models gave, annealed to the labels.

Born-again multi-task networks (BAM, arXiv:1907.04829): single-task models teach one of many tasks.
Targets are computed once, before training, and stay on the host in float16: of a text its logits
or vector, of a token task the logits of each word, so that a teacher may cut words otherwise. How
far a task's answers are from a teacher's, its kind says (`TaskKind.teacher_loss`).

Shapes: `n` units of a batch, `E` units in all, `L` labels, `D` width of a vector.
"""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ...modeling.heads import HEADS, IGNORE
from ...modeling.modeling_polyhead import PolyheadModel, PolyheadOutput
from ...modeling.packing import moved_to
from ..data.dataset import MultiTaskDataset
from ..kinds import kind_of
from ..recipe.sections import Distill
from .meters import LossMeter
from .row_targets import RowNumbers, spread


class UnitNumbers:
    """The units of a task with a teacher, as numbers of its targets.

    A unit is a text or, of a token task, a word that has a label. Teacher and student share the
    numbers: those of texts, row by row, or of words, row by row.

    Args:
        rows: all rows of the dataset.
        source: the task's rows, tokenized.
        first: number of their first one in the dataset.
        per_token: the units are words.
        task: name of the task.
    """

    def __init__(
        self, rows: RowNumbers, source: Any, first: int, *, per_token: bool, task: str
    ) -> None:
        self.rows = rows
        here = slice(first, first + len(source))
        row_of = np.asarray(source["row"][:])
        if per_token:
            columns = (source[name][:] for name in ("words", "word_counts", f"labels_{task}"))
            units, ends = _words(*columns)
        else:
            texts = rows.texts[here]
            if "window_counts" in source.column_names:
                texts = np.array([len(counts) for counts in source["window_counts"][:]])
            ends = np.where(np.asarray(source["window"][:]) == 0, texts, 0)
            units = [np.arange(end) for end in ends]
        self.sizes = np.zeros(row_of.max() + 1, dtype=int)  # units of each row of the data
        np.maximum.at(self.sizes, row_of, ends)
        self.starts = self.sizes.cumsum() - self.sizes
        self.count = int(self.sizes.sum())
        self._counts = np.zeros(len(rows.texts), dtype=int)  # of each row of the dataset
        self._counts[here] = [len(numbers) for numbers in units]
        self._first = self._counts.cumsum() - self._counts
        shifted = [numbers + self.starts[row] for numbers, row in zip(units, row_of, strict=True)]
        self._numbers = np.concatenate(shifted).astype(int)

    def units_in(self, batch: dict[str, Any]) -> Tensor:
        """(n,): the units of a batch, in its order."""
        rows = self.rows.rows_of(batch)
        examples, inside = spread(self._counts[rows])
        return torch.from_numpy(self._numbers[self._first[rows][examples] + inside])


def _words(words: list, word_counts: list, labels: list) -> tuple[list[np.ndarray], np.ndarray]:
    """Of each window the words at its labelled tokens, and the number after its last word."""
    units, ends = [], []
    for of_tokens, counts, tags in zip(words, word_counts, labels, strict=True):
        first = np.asarray(of_tokens)
        units.append(first[np.asarray(tags) != IGNORE])
        ends.append(max(0, (first + np.asarray(counts)).max()))
    return units, np.asarray(ends)


class Distillation:
    """The losses that hold tasks to their teachers' answers.

    Args:
        model: the model to be trained.
        options: the recipe's.
        dataset: tokenized rows of all sources.
        sources: source name to its tasks, as the collator counts them.
    """

    def __init__(
        self,
        model: PolyheadModel,
        options: Distill,
        dataset: MultiTaskDataset,
        sources: dict[str, list[str]],
    ) -> None:
        self.model = model
        self.options = options
        self.targets: dict[str, Tensor] = {}  # by task: (E, L) or (E, D)
        self._meter = LossMeter(list(options.teachers))
        rows = RowNumbers(dataset, list(sources))
        self.units = {
            task: UnitNumbers(
                rows,
                dataset.parts[name],
                dataset.ranges[name].start,
                per_token=self._per_token(task),
                task=task,
            )
            for name, tasks in sources.items()
            for task in tasks
            if task in options.teachers
        }

    def set_targets(self, task: str, targets: Tensor) -> None:
        """The teacher's answers to the units of a task: (E, L) or (E, D)."""
        self.targets[task] = targets

    def _per_token(self, task: str) -> bool:
        return HEADS[self.model.config.tasks[task].head].per_token

    def shares(self, progress: float) -> tuple[float, float]:
        """How much labels and teachers count when this share of the training is over."""
        weight = self.options.weight
        return (progress, weight * (1 - progress)) if self.options.anneal else (1.0, weight)

    def mixed(
        self,
        losses: dict[str, Tensor],
        outputs: PolyheadOutput,
        batch: dict[str, Any],
        num_items: dict[str, Tensor],
        progress: float,
    ) -> dict[str, Tensor]:
        """The losses of a micro-batch with the teachers' parts in them.

        Args:
            losses: those of the labels, by task.
            outputs: the model's.
            batch: the batch, on the device.
            num_items: labelled units by task, in the whole optimizer step.
            progress: share of the training that is over.
        """
        by_labels, by_teachers = self.shares(progress)
        values = {**(outputs.logits or {}), **(outputs.embeddings or {})}
        mixed, labels = dict(losses), batch["labels"]
        for name in sorted(self.targets.keys() & values.keys() & losses.keys()):
            total = self.loss(name, values[name], labels[name], batch)
            part = by_teachers * total / num_items[name].clamp(min=1)
            mixed[name] = by_labels * losses[name] + part
            if torch.is_grad_enabled():
                counts = self.model.count_items({name: labels[name]})
                self._meter.add(name, total.detach(), counts[name])
        return mixed

    def log(self, accelerator: Accelerator) -> dict[str, float]:
        """`teacher_<task>`, the mean distance over the units since the last log."""
        means = self._meter.means(accelerator)
        return {f"teacher_{name}": value for name, value in means.items()}

    def loss(self, task: str, values: Tensor, labels: Tensor, batch: dict[str, Any]) -> Tensor:
        """Sum over the labelled units of the distance to the teacher, a scalar.

        Args:
            task: a task with a teacher.
            values: what its head gave, of its own rows.
            labels: of the batch.
            batch: the batch, on the device.
        """
        numbers = self.units[task].units_in(batch)
        targets = moved_to(self.targets[task][numbers], values).float()
        if self._per_token(task):
            values, labels = values[labels != IGNORE], labels[labels != IGNORE]
            known = ~targets.isnan().any(1)  # the teacher cuts no word that has no tokens for it
            values, targets, labels = values[known], targets[known], labels[known]
        kind = kind_of(self.model.config.tasks[task])
        return kind.teacher_loss(values.float(), targets, labels)
