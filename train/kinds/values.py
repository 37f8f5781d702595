"""Raw values of a column of labels or texts: what they are, and how a message names their rows."""

import math
import re
from decimal import Decimal
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..recipe.data_config import DataConfig

NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*|\s*[-+]?nan\s*", re.A | re.I)
SHOWN = 3  # rows named in a fault


def rows_named(numbers: list[int]) -> str:
    """`row 1, 5, 7 and 12 more`."""
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row {', '.join(map(str, numbers[:SHOWN]))}{more}"


def is_text(value: Any) -> bool:
    """A string that has a form in UTF-8: without half a surrogate pair."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def soft_cross_entropy(values: Tensor, targets: Tensor) -> Tensor:
    """(n, L) logits and a teacher's -> (n,) cross-entropy to the teacher's probabilities."""
    return -(targets.softmax(-1) * values.log_softmax(-1)).sum(-1)


def taught(values: Tensor, targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the labels that a teacher knows, and the teacher's.

    Args:
        values: (n, L).
        targets: (n, K), of the first K labels.
        labels: (n,) ids; units with one of the other labels are left out.

    Returns:
        (m, K) each.
    """
    known, count = targets.shape[1], values.shape[1]
    older = (labels < known) | (labels >= count)
    return (values, targets) if known == count else (values[older, :known], targets[older])


def ids_of(labels: list[str], references: list[str]) -> Tensor:
    """(n,) ids of labels, -1 for one that is not among them."""
    ids = {label: i for i, label in enumerate(labels)}
    return torch.tensor([ids.get(label, -1) for label in references], dtype=torch.long)


def is_missing(value: Any) -> bool:
    """None or NaN."""
    return value is None or value != value  # NaN is not equal to itself


def is_real(value: Any) -> TypeGuard[float]:
    """A number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number_of(value: Any) -> Any:
    """The number that a string or decimal writes (NaN as None); any other value as it is."""
    if isinstance(value, str) and NUMBER.fullmatch(value) or isinstance(value, Decimal):
        value = float(value)
        return None if math.isnan(value) else value
    return value


def labels_in(value: Any) -> list[str]:
    """The labels of one row: none, one, or a list of them, each once; null in a list is none."""
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(str(label) for label in values if label is not None))


def scaled(value: Any, data: DataConfig) -> float:
    """A number from `data.label_range` to 0-1; NaN where there is none."""
    if value is None:
        return float("nan")
    low, high = data.label_range or (0.0, 1.0)
    return (float(value) - low) / (high - low)
