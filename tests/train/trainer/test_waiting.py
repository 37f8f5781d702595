"""The host reads no number of a device in a training step: it would wait for all work given to it.

Without a GPU: what the trainer moves to the device becomes a tensor class of its own, which all
that is computed from it inherits, and which takes down where it is read.
"""

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from polyhead.modeling import attention, head_mixin, packing, segments
from polyhead.train import adapters as adapting
from polyhead.train.adapters import attach_adapters
from torch import Tensor
from trainer_fixtures import weights

READS = {"tolist", "item", "cpu", "numpy", "nonzero", "masked_select", "unique", "__bool__"}
READS |= {"__int__", "__float__", "__index__", "allclose", "equal", "masked_scatter"}
MICRO_BATCHES = 3 * 2
SOURCES = tuple(str(Path(file).parent) for file in (attention.__file__, adapting.__file__))


class OnDevice(Tensor):
    """A tensor of a device; `waits` counts the functions that read its numbers on the host."""

    waits = Counter()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reads(getattr(func, "__name__", ""), args, kwargs):
            cls.waits[caller()] += 1
        return super().__torch_function__(func, types, args, kwargs)


def reads(name, args, kwargs) -> bool:
    if name in ("__getitem__", "__setitem__"):
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(p, OnDevice) and p.dtype == torch.bool for p in indices)
    if name == "repeat_interleave":
        return isinstance(args[-1], OnDevice) and kwargs.get("output_size") is None
    return name in READS and any(isinstance(value, OnDevice) for value in args[:2])


def caller() -> str:
    """The function of ours that reads."""
    frames = traceback.extract_stack()
    ours = [f for f in frames if f.filename.startswith(SOURCES)]
    return ours[-1].name if ours else frames[-4].name


@pytest.fixture
def device(monkeypatch):
    """What is moved becomes `OnDevice`; attention is that of a GPU without the kernel."""
    OnDevice.waits.clear()

    def moved(values: Tensor, other: Tensor) -> Tensor:
        assert not isinstance(values, OnDevice)
        return values.as_subclass(OnDevice) if isinstance(other, OnDevice) else values

    for module in (head_mixin, packing, segments):
        monkeypatch.setattr(module, "moved_to", moved)

    def by_rows(*args, causal):
        longest = int(args[-1].as_subclass(Tensor).diff().max())
        return attention._by_rows(*args, longest, causal=causal)

    monkeypatch.setattr(attention, "_by_runs", by_rows)

    def on_device(trainer):
        def move(data):
            if isinstance(data, Tensor):
                return data.as_subclass(OnDevice)
            if isinstance(data, dict):
                return {key: move(value) for key, value in data.items()}
            return data

        monkeypatch.setattr(trainer, "_prepare_input", move)
        return trainer

    return on_device


def test_what_is_read_is_seen(device):
    values = torch.arange(3).as_subclass(OnDevice)
    twice = values * 2
    assert isinstance(twice, OnDevice)
    assert isinstance(torch.ones(3) + values, OnDevice)
    bool(twice.sum() > 1), twice.tolist(), int(twice[0]), values[twice > 1], twice.nonzero()
    assert sum(OnDevice.waits.values()) == 5
    values[torch.tensor([0])], torch.repeat_interleave(values, values, output_size=3)
    assert sum(OnDevice.waits.values()) == 5


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "adapters"])
def test_a_micro_batch_waits_for_its_losses_and_a_step_for_the_gradients(
    device, build, packing, adapters
):
    options = {"accumulation": 2, "packing": packing, "max_steps": 3}
    options |= {"logging_strategy": "no", "logging_nan_inf_filter": False}  # as recipes have it
    trainers = [build(**options), device(build(**options, output="other"))]
    for trainer in trainers:
        trainer.optimizer_step.shared.comparison.every = 0  # it reads what it finds
        if adapters:
            torch.manual_seed(1)
            names = [n for n in trainer.model.task_names if n != "near"]
            attach_adapters(trainer.model, dict.fromkeys(names, {"r": 2}))
        trainer.train()
    plain, placed = (weights(trainer) for trainer in trainers)
    for name, value in plain.items():
        torch.testing.assert_close(placed[name], value, atol=1e-6, rtol=1e-5)
    waits = Counter(OnDevice.waits)
    assert waits.pop("train") == 1  # HF's mean loss, at the end
    assert waits.pop("finite") == MICRO_BATCHES
    assert waits.pop("_totals_and_gradients") == MICRO_BATCHES / 2  # lengths, for `equal_norms`
    assert waits.pop("loss_sum", 0) <= 2 * MICRO_BATCHES  # near: which of its pairs have a score
    if not packing:
        assert waits.pop("_run") <= MICRO_BATCHES  # transformers': does the mask hide anything?
    assert not waits
