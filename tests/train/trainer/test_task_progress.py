"""What the bars of an evaluation leave on the terminal."""

import gc
import re
import sys
from types import SimpleNamespace

from polyhead.train.trainer.callbacks import TaskProgress


def test_each_sources_bar_ends_before_what_comes_after_it(capsys):
    progress, state = TaskProgress(), SimpleNamespace(is_world_process_zero=True)
    for batches in ([0, 1], [0]):
        for _ in batches:
            progress.on_prediction_step(None, state, None, eval_dataloader=batches)
    sys.stderr.write("result\n")
    del progress
    gc.collect()
    left = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    left = [re.sub(r" \[.*\]$", "", line) for line in left]  # seconds and batches a second
    assert left == ["100%|██████████| 2/2", "100%|██████████| 1/1", "result", ""]
