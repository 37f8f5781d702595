# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Which heads run, on which rows of a batch, with which labels.

The model, exported graphs and the trainer ask here, so that they agree. Numbers of rows stay on the
CPU: the host decides by them.

Shapes: `N` rows, `K` tasks of a row at most; `M` texts, of which the rows are windows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .attention import no_compile
from .packing import moved_to
from .task_config import TaskConfig

Rows = dict[str, Tensor | None]  # by task: numbers of its rows, or None for all


def check_tasks(task_names: list[str], names: Iterable[str]) -> None:
    """Raise ValueError, listing the known tasks, unless all `names` are among them."""
    unknown = [name for name in names if name not in task_names]
    if unknown:
        raise ValueError(
            f"unknown task {', '.join(map(repr, unknown))}; "
            f"this model has: {', '.join(task_names) or 'none'}"
        )


def tasks_to_run(
    task_names: list[str], tasks: Iterable[str] | None, labels: dict[str, Tensor] | None
) -> list[str]:
    """The tasks whose heads run, in the model's order.

    Args:
        task_names: the model's tasks.
        tasks: those that are asked for; None for all.
        labels: labels by task; all of these tasks must run.

    Raises:
        ValueError: `tasks` or `labels` has the wrong type or names an unknown task, or a task has
            labels but is left out.
    """
    if isinstance(tasks, str):
        raise ValueError(f"tasks is the string {tasks!r}; give a list: tasks=[{tasks!r}]")
    chosen = task_names if tasks is None else list(tasks)
    if labels is not None and not isinstance(labels, dict):
        raise ValueError(
            f"labels is a {type(labels).__name__}; give a dict by task: labels={{task: values}}"
        )
    check_tasks(task_names, [*chosen, *(labels or {})])
    idle = [name for name in labels or {} if name not in chosen]
    if idle:
        raise ValueError(f"labels for {', '.join(idle)}, but tasks={chosen} leaves them out")
    return [name for name in task_names if name in chosen]


@no_compile
def rows_by_task(
    task_names: list[str], chosen: list[str], task_ids: Tensor | None, count: int
) -> Rows:
    """Numbers of the rows of each task.

    Args:
        task_names: the model's tasks, as `task_ids` counts them.
        chosen: the tasks that run.
        task_ids: (N,) or (N, K), -1 fills; None when every task reads every row.
        count: N.

    Raises:
        ValueError: `task_ids` has another number of rows, or holds a number that is no task.
    """
    if task_ids is None:
        return dict.fromkeys(chosen)
    if len(task_ids) != count:
        raise ValueError(f"task_ids has {len(task_ids)} rows; the batch has {count}")
    rows: list[list[int]] = [[] for _ in task_names]
    for row, ids in enumerate(task_ids.view(count, -1).tolist()):
        for number in {i for i in ids if i >= 0}:
            if number >= len(task_names):
                raise ValueError(
                    f"task_ids holds {number}; this model has {len(task_names)} tasks: "
                    f"{', '.join(task_names)}"
                )
            rows[number].append(row)
    return {name: torch.tensor(rows[task_names.index(name)]).long() for name in chosen}


def labels_of_rows(name: str, values: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Labels of one task for its rows: (n, ...), cut down where they are of all rows, (N, ...).

    Args:
        name: name of the task, for the message.
        values: one for each of the task's rows, or of all rows.
        rows: numbers of the task's rows; None for all.
        count: N.

    Raises:
        ValueError: there are neither as many labels as the task has rows nor as the batch has.
    """
    expected = count if rows is None else len(rows)
    if len(values) == expected:
        return values
    if rows is not None and len(values) == count:
        return values[moved_to(rows, values)]
    raise ValueError(
        f"{len(values)} labels for task {name!r}; give one for each of its {expected} rows"
        + (f" or of all {count} rows" if rows is not None else "")
    )


@dataclass(frozen=True)
class TextWindows:
    """Rows that are the windows of texts, those of each text consecutive.

    Args:
        counts: windows of each text.
    """

    counts: list[int]

    @classmethod
    def of(cls, counts: Tensor, rows: int) -> "TextWindows":
        """From (M,) counts for so many rows.

        Raises:
            ValueError: a count is below 1, or they do not add up to the rows.
        """
        numbers = counts.tolist()
        if min(numbers, default=1) < 1 or sum(numbers) != rows:
            raise ValueError(
                f"window_counts is {numbers}; each is 1 or more, and together they are the "
                f"{rows} rows of the batch"
            )
        return cls(numbers)

    def rows_of(self, texts: Tensor | None, *, all_windows: bool) -> Tensor:
        """Numbers of the rows that a head reads of some texts (None: of all).

        Args:
            texts: numbers of the texts.
            all_windows: all of their windows, not the first ones alone.
        """
        counts = torch.tensor(self.counts)
        first = counts.cumsum(0) - counts
        if texts is not None:
            counts, first = counts[texts], first[texts]
        if not all_windows:
            return first
        inner = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(
            counts
        )
        return first.repeat_interleave(counts) + inner

    @no_compile
    def pool(
        self,
        values: Tensor,
        lengths: Tensor,
        texts: Tensor | None,
        function: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """(n, L) of the windows of some texts -> (m, L); one window alone is left as it is.

        Args:
            values: what a head gave for the rows that `rows_of` names.
            lengths: (n,), their tokens.
            texts: numbers of the texts; None for all.
            function: what pools the (W, L) values and (W,) lengths of a text.
        """
        counts = self.counts if texts is None else [self.counts[n] for n in texts.tolist()]
        if len(counts) == len(values):
            return values
        parts = zip(values.split(counts), lengths.split(counts), strict=True)
        pooled = [part[0] if len(part) == 1 else function(part, tokens) for part, tokens in parts]
        return torch.stack(pooled)


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Which rows each task reads, and which texts its answers are of.

    Args:
        configs: the tasks of the model.
        names: the tasks that read any.
        texts: by task, numbers of its texts.
        rows: by task, numbers of the rows that it reads of them.
        count: rows of the batch.
        windows: the rows are windows of the texts; None where each is a text.
    """

    configs: dict[str, TaskConfig]
    names: list[str]
    texts: Rows
    rows: Rows
    count: int
    windows: TextWindows | None

    @property
    def text_count(self) -> int:
        """Texts of the batch."""
        return self.count if self.windows is None else len(self.windows.counts)

    def labels(self, name: str, labels: dict[str, Tensor] | None) -> Tensor | None:
        """The task's labels for its own rows; those of all texts, or rows, are cut down to them."""
        if labels is None or name not in labels:
            return None
        values, head = labels[name], self.configs[name].head_class
        if head.grouped or (head.per_token and len(values) == 1):  # packed tokens
            return values
        if head.per_token:
            return labels_of_rows(name, values, self.rows[name], self.count)
        return labels_of_rows(name, values, self.texts[name], self.text_count)

    def pool(self, name: str, values: Tensor, lengths: Tensor) -> Tensor:
        """What a head gave for its rows, as one for each text, if the task pools windows.

        Args:
            name: the task.
            values: (n, L) of the rows that it reads.
            lengths: (n,), their tokens.

        Returns:
            (m, L), of its texts; else `values`.
        """
        task = self.configs[name]
        if self.windows is None or not task.pools_windows:
            return values
        function = partial(task.head_class.pool_windows, task)
        return self.windows.pool(values, lengths, self.texts[name], function)


def read_rows(
    configs: dict[str, TaskConfig],
    task_names: list[str],
    chosen: list[str],
    task_ids: Tensor | None,
    count: int,
    window_counts: Tensor | None = None,
) -> TaskRows:
    """What each of the chosen tasks reads of a batch.

    Args:
        configs: the tasks of the model.
        task_names: their order, as `task_ids` counts them.
        chosen: the tasks that run.
        task_ids: of each text; None when every task reads all.
        count: rows of the batch.
        window_counts: how many of the rows are windows of each text; None where each is a text.

    Raises:
        ValueError: see `rows_by_task` and `TextWindows.of`.
    """
    windows = None if window_counts is None else TextWindows.of(window_counts, count)
    text_count = count if windows is None else len(windows.counts)
    texts = rows_by_task(task_names, chosen, task_ids, text_count)
    names = [name for name in chosen if (numbers := texts[name]) is None or len(numbers)]
    rows: Rows = texts
    if windows is not None:
        every = {n: configs[n].reads_windows or configs[n].head_class.per_token for n in names}
        rows = {n: windows.rows_of(texts[n], all_windows=every[n]) for n in names}
    return TaskRows(
        configs=configs, names=names, texts=texts, rows=rows, count=count, windows=windows
    )
