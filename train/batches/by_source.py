"""Micro-batches cut by source: a forward and a backward pass for each source's own rows.

Together the passes read each token once, as one pass over all rows would. What is lost is the size
of a pass: where a device has little to do in one (a GPU with a few short rows) they take longer.
"""

from typing import Any

import torch

from .collator import MultiTaskCollator

PASSES = "passes"


class SourceCollator:
    """Batches the rows of each source by themselves.

    Keys out:
        passes: batches of `MultiTaskCollator`, one for each source with rows, in its order of them
        input_ids: (tokens,), all of them, which HF's Trainer counts

    Args:
        collator: batches rows.
    """

    def __init__(self, collator: MultiTaskCollator) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See the class."""
        by_source = ([r for r in rows if r["source"] == name] for name in self.collator.sources)
        passes = [
            self.collator(some) for some in by_source if any(map(self.collator.tasks_of, some))
        ]
        tokens = [batch["input_ids"].flatten() for batch in passes]
        return {PASSES: passes, "input_ids": torch.cat(tokens or [torch.zeros(0).long()])}


def passes_of(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batches of all passes over some micro-batches, cut by source or not."""
    return [part for batch in batches for part in batch.get(PASSES, [batch])]
