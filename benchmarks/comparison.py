"""What comparing the tasks' gradients costs at its default interval, in a training of four tasks.

The quickstart's recipe. With four tasks the default is one comparison in 64 optimizer steps; each
run trains so many, in turns with runs that compare nothing. A comparison changes no gradient:
the runs' mean training losses are compared first. After the warm-up, which trains too, each side
has trained as often as the other.
"""

import argparse
import tempfile
from typing import Any

from common import ROOT, SEED, alternate, quiet, report
from transformers import PrinterCallback, set_seed

STEPS = 64  # the default interval of four tasks
PEER, OURS = "with comparison", "without"


def main() -> None:
    """Alternate between comparing and not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run, one with a comparison")
    options = parser.parse_args()
    quiet()
    losses: dict[str, list[float]] = {PEER: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            PEER: trainer(folder, options.steps, options.steps),
            OURS: trainer(folder, options.steps, 0),
        }

        def run(name: str) -> None:
            set_seed(SEED)
            losses[name].append(trainers[name].train().training_loss)
            first = [values[0] for values in losses.values() if values]
            assert max(first) - min(first) < 1e-4, f"losses differ: {losses}"

        runs = {name: lambda name=name: run(name) for name in trainers}
        seconds = alternate(runs, options.repeats)
    what = f"{options.steps} training steps of four tasks, one comparison of gradients"
    report("comparison", what, PEER, OURS, seconds)


def trainer(folder: str, steps: int, interval: int) -> Any:
    """Of the quickstart, for so many steps, comparing in every `interval`-th."""
    from polyhead.train.commands.fitting import make_trainer
    from polyhead.train.commands.setup import prepare

    set_seed(SEED)
    run = prepare(
        f"{ROOT}/configs/quickstart.yaml",
        [
            f"training.max_steps={steps}",
            f"balancing.gradient_steps={interval}",
            "training.disable_tqdm=true",
            "training.use_cpu=true",
            *(f"training.{key}=no" for key in ("save_strategy", "eval_strategy")),
            "training.report_to=none",
            f"output_dir={folder}",
        ],
    )
    multitask = make_trainer(run)
    multitask.remove_callback(PrinterCallback)
    return multitask


if __name__ == "__main__":
    main()
