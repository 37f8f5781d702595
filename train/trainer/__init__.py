"""One Trainer for many tasks: its step, its evaluation, its checkpoints.

Names are loaded when they are asked for: writing files needs `checkpoints` and no Trainer.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer

__all__ = ["MultiTaskTrainer"]
__getattr__ = lazy(__name__, {"MultiTaskTrainer": "trainer"})
