"""Rows of many adapters in one batch: what it costs over the bare encoder, beside what others do.

Peers: the same encoder bare; PEFT's `adapter_names` (evaluation only); one forward per adapter over
its own rows, as PEFT's users do with `set_adapter`. Polyhead's time includes a head for each task,
theirs none. Then a training step against one step per task, the same text for eight tasks whose
adapters sit in the top layers, and what one more adapter costs in memory and on disk.
"""

import copy
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import SEED, alternate, encoder_folder, keep, ratios
from peft import LoraConfig, PeftModel, get_peft_model
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.adapters import attach_adapters, merged_encoder
from torch import Tensor
from transformers import AutoModel

SHAPES = ((16, 16), (64, 32), (8, 32))
ADAPTERS = (1, 2, 4, 8, 16, 64)
TARGETS = ["query", "key", "value", "dense"]
LORA = {"r": 8, "lora_alpha": 16, "init_lora_weights": False}


def main() -> None:
    """All tables; `--quick` measures K = 16 at 16 x 16 only."""
    torch.manual_seed(SEED)
    bare = AutoModel.from_pretrained(encoder_folder(), add_pooling_layer=False).eval()
    quick = "--quick" in sys.argv
    tables = {}
    for count in (16,) if quick else ADAPTERS:
        names = [f"task{number}" for number in range(count)]
        ours = polyhead(names, LORA)
        theirs = plain_peft(names, ours)
        for rows, tokens in SHAPES[:1] if quick else SHAPES:
            for mix in ("even", "skewed") if count >= 4 else ("even",):
                runs = inference(bare, theirs, ours, task_ids(rows, count, mix), tokens)
                key = f"{rows}x{tokens}, {count} adapters, {mix}"
                tables[key] = ratios(key, "bare encoder", alternate(runs, 7 if rows < 64 else 5))
    tables["training"] = training()
    tables["fan-out"] = fan_out()
    if not quick:
        tables["growth"] = growth(ours)
    keep("adapters", "rows of many adapters in one batch", tables)


def task_ids(rows: int, count: int, mix: str) -> Tensor:
    """(rows,) one task per row: in turn, or half of the rows of one and the rest in turn."""
    ids = torch.arange(rows) % min(count, rows)
    if mix == "skewed":
        ids[: rows // 2] = 0
        ids[rows // 2 :] = torch.arange(rows - rows // 2) % min(count, rows)
    return ids[torch.randperm(rows, generator=torch.Generator().manual_seed(SEED))]


def polyhead(names: list[str], section: dict) -> PolyheadModel:
    """A task with an adapter for each name, on the real encoder."""
    task = {"head": "sequence_classification", "labels": ["x", "y"], "dropout": 0.0}
    model = PolyheadModel.from_encoder(encoder_folder(), {n: TaskConfig(**task) for n in names})
    attach_adapters(model, dict.fromkeys(names, section))
    return model.eval()


def plain_peft(names: list[str], ours: PolyheadModel) -> PeftModel:
    """The same adapters, same weights, in a PeftModel."""
    encoder = AutoModel.from_pretrained(encoder_folder(), add_pooling_layer=False)
    config = LoraConfig(target_modules=TARGETS, **LORA)
    model = get_peft_model(encoder, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, copy.copy(config))
    state = ours.encoder.state_dict()
    weights = {
        key.removeprefix("base_model.model."): value for key, value in model.state_dict().items()
    }
    assert weights.keys() == state.keys()
    with torch.no_grad():
        for key, value in weights.items():
            value.copy_(state[key])
    return model.eval()


def inference(
    bare: torch.nn.Module,
    theirs: PeftModel,
    ours: PolyheadModel,
    ids: Tensor,
    tokens: int,
) -> dict[str, Callable[[], object]]:
    """The four ways, checked to give the same states."""
    names = ours.task_names
    input_ids = torch.randint(1000, 20000, (len(ids), tokens))
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    by_row = [names[number] for number in ids.tolist()]
    groups = {name: (ids == names.index(name)).nonzero()[:, 0] for name in dict.fromkeys(by_row)}

    @torch.no_grad()
    def alone() -> Tensor:
        return bare(**batch).last_hidden_state

    @torch.no_grad()
    def adapter_names() -> Tensor:
        return theirs(**batch, adapter_names=by_row).last_hidden_state

    @torch.no_grad()
    def forwards() -> Tensor:
        states = torch.empty(*input_ids.shape, bare.config.hidden_size)
        for name, rows in groups.items():
            theirs.set_adapter(name)
            part = {key: value[rows] for key, value in batch.items()}
            states[rows] = theirs(**part).last_hidden_state
        return states

    @torch.no_grad()
    def routed() -> Tensor:
        return ours(**batch, task_ids=ids).last_hidden_state

    expected = forwards()
    torch.testing.assert_close(adapter_names(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(routed(), expected, atol=1e-4, rtol=0)
    return {
        "bare encoder": alone,
        "PEFT adapter_names": adapter_names,
        "a forward per adapter": forwards,
        "Polyhead": routed,
    }


def training() -> dict:
    """One mixed step over K tasks' rows against K steps, each over one task's rows."""
    results = {}
    for count in (4, 16):
        key = f"training step, 32x32, {count} tasks, frozen encoder"
        results[key] = ratios(key, "one mixed step", alternate(steps(count, 32, 32), 5))
    return results


def steps(count: int, rows: int, tokens: int) -> dict[str, Callable[[], None]]:
    """Forward, backward and AdamW over the adapters and heads of `count` tasks."""
    names = [f"task{number}" for number in range(count)]
    model = polyhead(names, {**LORA, "init_lora_weights": True}).train()
    for key, parameter in model.encoder.named_parameters():
        parameter.requires_grad_("lora_" in key)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    input_ids = torch.randint(1000, 20000, (rows, tokens))
    ids = task_ids(rows, count, "even")

    def step(chosen: Tensor) -> None:
        optimizer.zero_grad()
        counts = {name: int((ids[chosen] == number).sum()) for number, name in enumerate(names)}
        labels = {name: torch.zeros(n, dtype=torch.long) for name, n in counts.items() if n}
        model(input_ids=input_ids[chosen], task_ids=ids[chosen], labels=labels).loss.backward()
        optimizer.step()

    def pure() -> None:
        for number in range(count):
            step((ids == number).nonzero()[:, 0])

    return {"a step per task": pure, "one mixed step": lambda: step(torch.arange(rows))}


def fan_out() -> dict:
    """The same 8 texts for 8 tasks with adapters in the top 2 of 6 layers."""
    names = [f"task{number}" for number in range(8)]
    model = polyhead(names, {**LORA, "layers": "top 2"})
    input_ids = torch.randint(1000, 20000, (8, 32))

    @torch.no_grad()
    def separate() -> list[Tensor]:
        return [model(input_ids=input_ids, tasks=[name]).logits[name] for name in names]

    @torch.no_grad()
    def together() -> list[Tensor]:
        return list(model(input_ids=input_ids).logits.values())

    for one, other in zip(separate(), together(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    key = "8 texts x 32 tokens, 8 tasks each, adapters in the top 2 of 6 layers"
    return ratios(key, "one pass", alternate({"8 forwards": separate, "one pass": together}, 9))


def growth(model: PolyheadModel) -> dict:
    """Memory, disk and loading time of one more adapter."""
    names = model.task_names
    weights = [p for k, p in model.encoder.named_parameters() if "lora_" in k]
    plain = merged_encoder(model, None)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        disk = sum(f.stat().st_size for f in Path(folder).glob("adapters/*/*"))
        loads = {
            f"load {count} of {len(names)}": lambda n=count: PolyheadModel.from_pretrained(
                folder, tasks=names[:n]
            )
            for count in (0, 1, 8, 64)
        }
        seconds = alternate(loads, 1)
    results = {
        "MiB of weights for each adapter": sum(p.nbytes for p in weights) / len(names) / 2**20,
        "MiB on disk for each adapter": disk / len(names) / 2**20,
        "MiB of the encoder": sum(p.nbytes for p in plain.parameters()) / 2**20,
        **{name: values[0] for name, values in seconds.items()},
    }
    for what, value in results.items():
        print(f"{what}: {value:.2f}" + (" s" if what.startswith("load") else ""))
    return results


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
