"""Adapters that lie together in memory: never out of date, whatever happens to their weights."""

import copy
import io
import pickle

import pytest
import torch
from conftest import tiny_encoder_config
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig, routing
from polyhead.modeling.segments import Plan
from polyhead.modeling.stacks import STACKS, line_up, stack_products
from polyhead.train.adapters import attach_adapters

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value", "dense"]}
NAMES = [f"task{number}" for number in range(6)]
MIXES = (
    [0, 1, 2, 3, 4, 5],  # all, in order
    [5, 0, 3, 3, 3, 3],  # rows move, one adapter has most
    [2, 3, 4, 2, 3, 4],  # neighbours
    [5, 1, 3, 1, 1, 3],  # others lie between
    [4, 4, 4, 4, 4, 4],
)


def model_of(sections):
    """A task with an adapter for each section; weights that matter."""
    task = {"head": "sequence_classification", "labels": ["x", "y"], "dropout": 0.0}
    tasks = {name: TaskConfig(**task) for name in sections}
    config = PolyheadConfig(encoder_config=tiny_encoder_config("bert"), tasks=tasks)
    model = PolyheadModel(config)
    attach_adapters(model, {n: {"init_lora_weights": False, **s} for n, s in sections.items()})
    return model.eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return model_of(dict.fromkeys(NAMES, LORA))


def inputs_of(layout):
    """Six texts of 3, 5, 5, 2, 4 and 4 tokens."""
    lengths = torch.tensor([3, 5, 5, 2, 4, 4])
    ids = torch.randint(5, 40, (6, 5), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(5) < lengths[:, None]).long()
    if layout == "padded":
        return {"input_ids": ids, "attention_mask": mask}
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return {"input_ids": ids[mask.bool()][None], "cu_seq_lens_q": starts}


def check(model, *, uses_stacks=True):
    """Answers are those of the weights as autograd sees them, gathered for the call."""
    used = []
    add = routing.add_products
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "add_products", lambda *args: used.append(1) or add(*args))
        for layout in ("padded", "packed"):
            for mix in MIXES:
                names = len(model.task_names)
                arguments = {**inputs_of(layout), "task_ids": torch.tensor(mix) % names}
                expected = model(**arguments).logits
                assert not used
                with torch.no_grad():
                    logits = model(**arguments).logits
                assert bool(used) == uses_stacks
                used.clear()
                for name, values in expected.items():
                    torch.testing.assert_close(logits[name], values, atol=1e-5, rtol=1e-5)
    return logits


def stacked(encoder, names):
    """A pass through these adapters finds all of their weights in the stacks."""
    plan = Plan([(name, number, number + 1) for number, name in enumerate(names)])
    stack_products(encoder, plan)
    return len(plan.products) == len(encoder.__dict__[STACKS])


def lora_weights(model):
    return [p for name, p in model.named_parameters() if "lora_" in name]


def test_any_mix_of_texts_equals_gathered_weights(model):
    check(model)


def test_adapters_of_several_ranks_and_layers_are_stacked_by_rank():
    sections = {f"task{n}": {**LORA, "r": 4 if n % 2 else 8} for n in range(4)}
    sections |= {"task4": {**LORA, "layers": [1]}, "task5": {**LORA, "lora_alpha": 3}}
    model = model_of(sections)
    check(model)
    layer = model.encoder.encoder.layer[0].attention.self.query
    assert [len(stack) for stack in layer._polyhead_stacks.downs] == [2, 3]


@pytest.mark.parametrize("option", [{"use_dora": True}, {"lora_bias": True}])
def test_of_an_adapter_that_cannot_be_stacked_the_pass_gathers(option):
    model = model_of({**dict.fromkeys(NAMES[:4], LORA), "task4": {**LORA, **option}})
    arguments = {**inputs_of("padded"), "task_ids": torch.tensor([0, 1, 2, 3, 4, 4])}
    expected = model(**arguments).logits
    with torch.no_grad():
        assert not stacked(model.encoder, ["task3", "task4"])
        for name, values in model(**arguments).logits.items():
            torch.testing.assert_close(values, expected[name], atol=1e-5, rtol=1e-5)


def test_what_training_and_loading_write_in_place_is_in_the_next_answer(model):
    before = check(model)
    optimizer = torch.optim.AdamW(lora_weights(model), lr=0.1)
    arguments = {**inputs_of("padded"), "task_ids": torch.arange(6)}
    sum(v.square().sum() for v in model.train()(**arguments).logits.values()).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step()
    after = check(model.eval())
    assert not torch.allclose(after["task4"], before["task4"], atol=1e-3)
    model.load_state_dict(state)
    assert torch.equal(check(model)["task4"], before["task4"])
    for weight in lora_weights(model):
        weight.data.mul_(2)  # which no version counter counts
    check(model)


def test_weights_that_were_put_elsewhere_are_gathered(model):
    doubled = {name: value * 2 for name, value in model.state_dict().items() if "lora_" in name}
    model.load_state_dict({**model.state_dict(), **doubled}, assign=True)
    check(model, uses_stacks=False)
    weight = lora_weights(model)[3]
    weight.data = weight.data + 1
    check(model, uses_stacks=False)


def test_of_one_weight_elsewhere_only_its_adapter_is_gathered(model):
    weight = model.encoder.encoder.layer[1].attention.self.query.lora_B["task2"].weight
    weight.data = weight.data + 1
    assert not stacked(model.encoder, ["task1", "task2"])
    assert stacked(model.encoder, ["task1", "task3"])


def test_in_another_dtype_and_back_they_lie_together_again(model):
    check(model)
    check(model.double())
    check(model.float())
    assert torch.equal(lora_weights(model)[0], lora_weights(copy.deepcopy(model))[0])


def test_where_they_lie_together_nothing_moves(model):
    addresses = [weight.data_ptr() for weight in lora_weights(model)]
    model.to("cpu")
    line_up(model.encoder)
    assert [weight.data_ptr() for weight in lora_weights(model)] == addresses


def test_weights_in_memory_of_others_stay_there(model):
    model.share_memory()
    addresses = [weight.data_ptr() for weight in lora_weights(model)]
    line_up(model.encoder)
    assert [weight.data_ptr() for weight in lora_weights(model)] == addresses
    check(model, uses_stacks=False)


def test_a_scaling_that_peft_sets_counts(model):
    layer = model.encoder.encoder.layer[0].attention.self.query
    before = check(model)
    layer.set_scale("task4", 20.0)
    assert not torch.allclose(check(model)["task4"], before["task4"], atol=1e-3)


def test_copies_have_weights_of_their_own(model):
    before = check(model)["task4"]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # noqa: S301
    copies.append(torch.load(file, weights_only=False))
    for other in copies:
        for weight in lora_weights(other):
            weight.data += 1
        check(other, uses_stacks=False)
        assert torch.equal(check(model)["task4"], before)
    for weight in lora_weights(model):
        weight.data += 1
    for other in copies:
        torch.testing.assert_close(check(other, uses_stacks=False), check(model))


def test_adapters_that_come_and_go_leave_the_others_stacked(model):
    before = check(model)["task4"]
    model.detach_adapter("task1")
    assert torch.equal(check(model)["task4"], before)
    attach_adapters(model, {"task1": {**LORA, "r": 8}})
    assert torch.equal(check(model.eval())["task4"], before)
    assert stacked(model.encoder, NAMES)
