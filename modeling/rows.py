# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Which heads run, on which rows of a batch, with which labels.

The model, exported graphs and the trainer ask here, so that they agree. Numbers of rows stay on the
CPU: the host decides by them.

Shapes: `N` rows, `K` tasks of a row at most.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from .attention import no_compile
from .packing import moved_to

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
