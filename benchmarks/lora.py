"""A training step of `configs/lora_four_tasks.yaml` beside one of `configs/four_tasks.yaml`.

The same rows in the same packed, mixed batches; forward, backward and AdamW. Needs `POLYHEAD_DATA`.
"""

from collections.abc import Callable

import torch
from common import ROOT, SEED, alternate, keep, ratios
from polyhead.train.batches.collator import MultiTaskCollator, model_inputs
from polyhead.train.batches.sampler import MultiTaskBatchSampler
from polyhead.train.commands.setup import prepare
from polyhead.train.data.dataset import MultiTaskDataset
from polyhead.train.data.tokenization import tokenize

STEPS = 8  # batches of 32 rows in a run


def main() -> None:
    """Both recipes on the same 8 batches."""
    runs, trainable = {}, {}
    for name in ("four_tasks", "lora_four_tasks"):
        runs[name], trainable[name] = steps(f"{ROOT}/configs/{name}.yaml")
    for name, count in trainable.items():
        print(f"{name}: {count:,} trainable parameters")
    table = ratios(f"{STEPS} training steps", "lora_four_tasks", alternate(runs, 5))
    keep("lora", "full fine-tuning and LoRA", {"steps": table, "trainable parameters": trainable})


def steps(recipe: str) -> tuple[Callable[[], None], int]:
    """A run over the first batches, and the number of parameters that train."""
    torch.manual_seed(SEED)
    prepared = prepare(recipe)
    rows = {s.name: tokenize(s, "train", prepared.tokenizer) for s in prepared.sources}
    data = MultiTaskDataset(rows)
    tasks, names = prepared.model.config.tasks, prepared.model.task_names
    collate = MultiTaskCollator(
        prepared.tokenizer, tasks, names, prepared.tasks_by_source, packed=True
    )
    sampler = iter(MultiTaskBatchSampler(data.ranges, batch_size=32, seed=SEED))
    batches = [collate([data[row] for row in next(sampler)]) for _ in range(STEPS)]
    model = prepared.model.train()
    assert model.can_pack
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def run() -> None:
        for batch in batches:
            optimizer.zero_grad()
            model(**model_inputs(batch)).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

    return run, sum(p.numel() for p in trained)


if __name__ == "__main__":
    main()
