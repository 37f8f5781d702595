"""What comparing the tasks' gradients costs at its default interval: quickstart, 64 steps each.

With four tasks the default is one comparison in 64 steps; each run trains so many, in turns.
"""

import tempfile
from collections.abc import Callable

from common import ROOT, alternate, report, trainer_of

STEPS = 64
REPEATS = 3


def run_of(folder: str, overrides: list[str]) -> Callable[[], None]:
    """A training of `STEPS` steps."""
    from polyhead.train.preparation import prepare

    fixed = [f"training.max_steps={STEPS}", "training.disable_tqdm=true", f"output_dir={folder}"]
    found = prepare(
        f"{ROOT}/configs/quickstart.yaml", [*fixed, "training.use_cpu=true", *overrides]
    )
    found.recipe.training["save_strategy"] = "no"
    trainer = trainer_of(found)
    return lambda: trainer.train() and None


def main() -> None:
    """Alternate between comparing and not."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "with comparison": run_of(f"{folder}/with", []),
            "without": run_of(f"{folder}/without", ["balancing.gradient_steps=0"]),
        }
        seconds = alternate(runs, REPEATS)
    what = f"{STEPS} training steps of four tasks, one comparison of gradients"
    report("comparison", what, "with comparison", "without", seconds)


if __name__ == "__main__":
    main()
