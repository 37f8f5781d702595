"""Rows of any sources to one batch: pad to the longest, sort labels by task.

Padding is on the right: with absolute positions, padding on the left changes the results.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling.heads import HEADS
from ...modeling.packing import cumulative
from ...modeling.task_config import TaskConfig
from ..data.tokenization import WEIGHT, reads_later_windows
from ..kinds import BatchLayout, LanguageModel, kind_of

TAUGHT = "taught_"  # column of a token task's tags by its teacher, of rows of other tasks
FOR_TRAINER = ("rows", "windows", "sources", "counts")  # keys that the model does not read


@dataclass
class MultiTaskCollator:
    """Batches tokenized rows (see `tokenization.py`) of one or several sources.

    Keys in: `source`, `input_ids`, `row`, `window`, perhaps `token_type_ids` and `window_counts`,
    `labels_<task>` and perhaps `weight_<task>`; `taught_<task>`, tags by text of a token task that
    is not the row's own.
    Keys out, with N texts (windows, where some texts have several) and T tokens:
        input_ids, attention_mask, perhaps token_type_ids: (N, T)
            or, packed: input_ids (1, P), perhaps token_type_ids, cu_seq_lens_q (N + 1,)
            and max_length_q, a number
        window_counts: (M,), windows of each of the M texts, where one has several
        task_ids: (M, K), the tasks of each text, -1 fills
        labels: by task, of its own texts only: (n,) ids or numbers, (n, L) multi-label, (n, T) or
            packed (1, tokens) token tasks and language models, (groups,) heads over groups
        label_weights: by task whose rows have weights, those of its labels: (n,) or, of token
            tasks, as the labels
        rows: (examples,), the number of each example in its dataset
        windows: (examples,), the number of its window in a long text
        sources: (examples,), its source, as counted in `sources`
        counts: (tasks, 2), examples and tokens that each task of the model has in the batch

    Args:
        tokenizer: pads, and masks for masked LM.
        configs: the model's tasks.
        task_names: the model's order of them, which `task_ids` counts.
        sources: source name to its tasks.
        mask_seed: masks the same tokens of a row each time (with `epoch`), so that evaluation
            repeats and a resumed run goes on as it was; None draws anew.
        packed: lay the texts end to end instead of padding them; those of like length side by side.
        epoch: set by the trainer.
        stopped: tasks that train no more; their labels are left out.
    """

    tokenizer: PreTrainedTokenizerBase
    configs: dict[str, TaskConfig]
    task_names: list[str]
    sources: dict[str, list[str]]
    mask_seed: int | None = None
    packed: bool = False
    epoch: int = 0
    stopped: set[str] = field(default_factory=set)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See the class."""
        if self.packed:
            rows = sorted(rows, key=lambda row: len(row["input_ids"][0]))
        members = [self.tasks_of(row) for row in rows]
        batch = self._pack(rows) if self.packed else self._pad(rows)
        batch["task_ids"] = self._task_ids(rows, members)
        counts = [count for row in rows for count in windows_of(row)]
        if max(counts) > 1:
            batch["window_counts"] = torch.tensor(counts)
        labels, weights = {}, {}
        for name in self.task_names:
            if any(name in tasks for tasks in members):
                rows_of_task = [
                    row for row, tasks in zip(rows, members, strict=True) if name in tasks
                ]
                labels[name] = self._labels(name, rows_of_task, batch)
                if any(WEIGHT + name in row for row in rows_of_task):
                    weights[name] = self._weights(name, rows_of_task, labels[name])
        batch["labels"] = labels
        if weights:
            batch["label_weights"] = weights
        batch["rows"] = torch.tensor([row["row"] for row in rows])
        batch["windows"] = torch.tensor([row["window"] for row in rows])
        names = list(self.sources)
        batch["sources"] = torch.tensor([names.index(row["source"]) for row in rows])
        batch["counts"] = self._counts(rows, members)
        return batch

    def _counts(self, rows: list[dict[str, Any]], members: list[list[str]]) -> Tensor:
        counts = torch.zeros(len(self.task_names), 2, dtype=torch.long)
        for row, tasks in zip(rows, members, strict=True):
            tokens = sum(map(len, row["input_ids"]))
            for name in tasks:
                counts[self.task_names.index(name)] += torch.tensor([1, tokens])
        return counts

    def tasks_of(self, row: dict[str, Any]) -> list[str]:
        """The tasks that read a row; a window after the first is not for all."""
        names = [
            name
            for name in self.sources[row["source"]]
            if row["window"] == 0 or reads_later_windows(self.configs[name])
        ]
        names += [name for name in self.task_names if row.get(TAUGHT + name) is not None]
        return [name for name in names if name not in self.stopped]

    def _pad(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [text for row in rows for text in row["input_ids"]]
        features: dict[str, Any] = {"input_ids": ids}
        if "token_type_ids" in rows[0]:
            features["token_type_ids"] = [t for row in rows for t in row["token_type_ids"]]
        return dict(self.tokenizer.pad(features, padding_side="right", return_tensors="pt"))

    def _pack(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {
            key: torch.tensor([[token for row in rows for text in row[key] for token in text]])
            for key in ("input_ids", "token_type_ids")
            if key in rows[0]
        }
        lengths = [len(text) for row in rows for text in row["input_ids"]]
        batch["cu_seq_lens_q"] = cumulative(torch.tensor(lengths))
        return {**batch, "max_length_q": max(lengths)}

    def _task_ids(self, rows: list[dict[str, Any]], members: list[list[str]]) -> Tensor:
        width = max(len(tasks) for tasks in members)
        ids = []
        for row, tasks in zip(rows, members, strict=True):
            numbers = [self.task_names.index(t) for t in tasks]
            ids += [numbers + [-1] * (width - len(numbers))] * len(windows_of(row))
        return torch.tensor(ids)

    def _labels(self, name: str, rows: list[dict[str, Any]], batch: dict[str, Any]) -> Tensor:
        kind = kind_of(self.configs[name])
        layout = BatchLayout(packed=self.packed, width=batch["input_ids"].shape[1])
        if isinstance(kind, LanguageModel):
            return kind.collate(self._labels_of_tokens(kind, name, rows, batch), layout)
        taught = [row.get(TAUGHT + name) for row in rows]
        labels = [
            [row[f"labels_{name}"]] if of_texts is None else of_texts
            for row, of_texts in zip(rows, taught, strict=True)
        ]
        return kind.collate([label for of_row in labels for label in of_row], layout)

    def _weights(self, name: str, rows: list[dict[str, Any]], labels: Tensor) -> Tensor:
        """Weights of the labels of a task: of its rows, or of their tokens."""
        weights = [float(row.get(WEIGHT + name, 1.0)) for row in rows]
        if not HEADS[self.configs[name].head].per_token:
            return torch.tensor(weights)
        texts = [len(row["input_ids"]) for row in rows]
        of_texts = torch.tensor(weights).repeat_interleave(torch.tensor(texts))
        if not self.packed:
            return of_texts[:, None].expand(labels.shape).contiguous()
        lengths = torch.tensor([len(text) for row in rows for text in row["input_ids"]])
        return of_texts.repeat_interleave(lengths)[None]

    def _labels_of_tokens(
        self, kind: LanguageModel, name: str, rows: list[dict[str, Any]], batch: dict[str, Any]
    ) -> list[list[int]]:
        """Labels of each text of the task's rows; what is to be read of it is put in `batch`."""
        number = self.task_names.index(name)
        of_task = (batch["task_ids"] == number).any(1)
        if "window_counts" in batch:
            of_task = of_task.repeat_interleave(batch["window_counts"])
        texts = iter(of_task.nonzero()[:, 0].tolist())
        starts = batch["cu_seq_lens_q"].tolist() if self.packed else []
        labels: list[list[int]] = []
        for row in rows:
            seed = None
            if self.mask_seed is not None:
                source = list(self.sources).index(row["source"])
                seed = (self.mask_seed, self.epoch, source, row["row"], row["window"])
            words = row["token_words"] if kind.reads_words else None
            ids, of_row = kind.labels_of(row["input_ids"], words, self.tokenizer, seed)
            for text in ids:
                place = next(texts)
                line, first = (0, starts[place]) if self.packed else (place, 0)
                batch["input_ids"][line, first : first + len(text)] = torch.tensor(text)
            labels += of_row
        return labels


def windows_of(row: dict[str, Any]) -> list[int]:
    """How many windows each text of a tokenized row has."""
    return row.get("window_counts") or [1] * len(row["input_ids"])


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without what the collator tells the trainer alone."""
    return {key: value for key, value in batch.items() if key not in FOR_TRAINER}
