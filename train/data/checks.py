"""What is wrong with texts of rows; nothing is changed here."""

from ..kinds import kind_of
from ..kinds.values import rows_named
from ..recipe.schema import TaskRecipe


def text_faults(task: TaskRecipe, name: str, split: str, batch: dict[str, list]) -> list[str]:
    """Rows without a text in a column of texts."""
    faults, kind = [], kind_of(task)
    for key in ("text", "text_pair", "negative"):
        column = getattr(task.data, key)
        if column is None:
            continue
        values = batch[column]
        bad = [i for i, value in enumerate(values) if kind.text_fault(key, value)]
        if bad:
            faults.append(
                f"tasks.{name}.data.{key}: {split}, column {column!r}: "
                f"{kind.text_fault(key, values[bad[0]])} in {rows_named(bad)}, but "
                f"{values[bad[0]]!r:.60}"
            )
    return faults
