"""Everything around the model: recipes, data, training, saving, commands.

What a script needs stands here, loaded when it is asked for: `train` with `Task`s over rows that
one holds, the `MultiTaskTrainer` for a model that one has, and `Recipe`.
"""

from typing import TYPE_CHECKING

from .lazy import lazy

if TYPE_CHECKING:
    from .commands.from_objects import Task, TrainResult, train
    from .recipe.schema import Recipe
    from .trainer.trainer import MultiTaskTrainer

__all__ = ["MultiTaskTrainer", "Recipe", "Task", "TrainResult", "train"]
__getattr__ = lazy(
    __name__,
    {
        "MultiTaskTrainer": "trainer.trainer",
        "Recipe": "recipe.schema",
        "Task": "commands.from_objects",
        "TrainResult": "commands.from_objects",
        "train": "commands.from_objects",
    },
)
