"""Encodings that are kept: the same answers, the encoder not asked, and never an old one."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.train.adapters import attach_adapters
from test_pipeline import SINGLE, TASKS, TEXTS, assert_same

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "dense"], "init_lora_weights": False}


class Counted:
    """Counts the passes of an encoder and the tokens in them."""

    def __init__(self, model):
        self.tokens = []
        model.encoder.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.tokens.append(kwargs["input_ids"].numel())

    def taken(self):
        tokens, self.tokens = self.tokens, []
        return sum(tokens)


def pipes(model, tokenizer, size=100):
    """One that keeps encodings, and one that does not."""
    parts = {"model": model, "tokenizer": tokenizer, "device": "cpu", "compute": "exact"}
    return PolyheadPipeline(**parts, cache=size), PolyheadPipeline(**parts)


@pytest.fixture
def two(make_model, tokenizer_of):
    return pipes(make_model("bert", TASKS), tokenizer_of("wordpiece"))


@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_answers_are_the_same_and_texts_are_encoded_once(make_model, tokenizer_of, kind):
    pipe, plain = pipes(make_model(kind, TASKS), tokenizer_of("wordpiece"))
    counted = Counted(pipe.model)
    for tasks in (["intent"], ["slots", "vector"], ["topics"], SINGLE):
        expected = plain(TEXTS, tasks)
        counted.taken()
        found = pipe([*TEXTS, TEXTS[0]], tasks)
        assert_same(found, [*expected, expected[0]])
        once = counted.taken()
        assert bool(once) == (tasks == ["intent"])
        assert_same(pipe(TEXTS[::-1], tasks), expected[::-1])
        assert not counted.taken()
    pair = ("one text", "another")
    assert_same(pipe(pair), plain(pair))
    assert_same(pipe(pair), plain(pair))


def test_heads_that_read_all_layers_and_long_texts(make_model, tokenizer_of):
    tasks = {
        **TASKS,
        "deep": TaskConfig(head="embedding", pooling="mean_last_4"),
        "mixed": TaskConfig(head="token_classification", labels=["O", "B-x"], layer_mix=True),
        "low": TaskConfig(head="token_classification", labels=["O", "B-x"], layer=2),
        "windows": TaskConfig(
            head="sequence_classification", labels=["x", "y"], long_texts="windows"
        ),
    }
    tokenizer = copy.deepcopy(tokenizer_of("wordpiece"))
    pipe, plain = pipes(make_model("bert", tasks, num_hidden_layers=4), tokenizer)
    texts = [*TEXTS, " ".join(TEXTS * 4)]
    names = [*SINGLE, "deep", "mixed", "low", "windows"]
    for _ in range(2):
        for name in names:
            assert_same(pipe(texts, [name]), plain(texts, [name]))
        assert_same(pipe(texts, names), plain(texts, names))
    tokenizer.model_max_length = 12
    assert_same(pipe(texts, names), plain(texts, names))


def test_adapters_and_prompts_have_encodings_of_their_own(make_model, tokenizer_of):
    prompted = TaskConfig(head="embedding", prompts=["ask: ", "tell: "])
    model = make_model("bert", {**TASKS, "asked": prompted})
    attach_adapters(model, {"intent": LORA, "slots": LORA})
    pipe, plain = pipes(model, tokenizer_of("wordpiece"))
    names = [*SINGLE, "asked"]
    for tasks in (["topics"], ["intent"], ["slots", "urgency"], names, ["asked"], names):
        assert_same(pipe(TEXTS, tasks), plain(TEXTS, tasks))
    assert_same(pipe(TEXTS, ["asked"], document=True), plain(TEXTS, ["asked"], document=True))
    counted = Counted(model)
    assert_same(pipe(TEXTS[3], names), plain(TEXTS[3], names))
    kept = counted.taken()
    plain(TEXTS[3], names)
    assert kept == counted.taken()


def train(model):
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.5)
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, tasks=["vector"]).embeddings["vector"].sum().backward()
    optimizer.step()


def load(model):
    model.load_state_dict({name: value + 0.01 for name, value in model.state_dict().items()})


def assign(model):
    state = {name: value + 0.01 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def write_data(model):
    for parameter in model.encoder.parameters():
        parameter.data.mul_(1.1)


def another_adapter(model):
    model.detach_adapter("intent")
    attach_adapters(model, {"intent": LORA})


def write_adapter(model):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(2)


def scale(model):
    for layer in model.encoder.modules():
        if hasattr(layer, "lora_A"):
            layer.set_scale("intent", 5.0)


@pytest.mark.parametrize(
    "change",
    [train, load, assign, write_data, another_adapter, write_adapter, scale, lambda m: m.double()],
)
def test_encodings_of_other_weights_are_forgotten(make_model, tokenizer_of, change):
    model = make_model("bert", TASKS)
    attach_adapters(model, {"intent": LORA})
    pipe, plain = pipes(model, tokenizer_of("wordpiece"))
    before = pipe(TEXTS, ["intent", "vector"])
    change(model)
    model.eval()
    after = pipe(TEXTS, ["intent", "vector"])
    assert_same(after, plain(TEXTS, ["intent", "vector"]))
    assert any(
        abs(one["intent"]["score"] - other["intent"]["score"]) > 1e-7
        for one, other in zip(before, after, strict=True)
    )


def test_a_head_that_is_trained_or_added_reads_what_is_kept(two):
    pipe, plain = two
    pipe(TEXTS, ["intent"])
    counted = Counted(pipe.model)
    with torch.no_grad():
        pipe.model.heads["intent"].out.bias += torch.tensor([3.0, 0, 0])
    pipe.model.add_task("tone", TaskConfig(head="sequence_classification", labels=["a", "b"]))
    found = pipe(TEXTS, ["intent", "tone"])
    assert not counted.taken()
    assert_same(found, plain(TEXTS, ["intent", "tone"]))


def test_no_more_are_kept_than_asked_for_and_the_latest(two):
    pipe, _ = two
    pipe.encodings.size = 3
    counted = Counted(pipe.model)
    pipe(TEXTS, ["intent"])
    assert len(pipe.encodings) == 3
    for text in TEXTS[:3]:
        pipe(text, ["intent"])
    counted.taken()
    pipe(TEXTS[:3], ["slots"])
    assert not counted.taken()
    pipe(TEXTS[4], ["slots"])
    assert counted.taken()
    assert len(pipe.encodings) == 3
    pipe.encodings.clear()
    assert len(pipe.encodings) == 0


def test_from_many_threads_as_from_one(two):
    pipe, plain = two
    pipe.encodings.size = 3
    expected = {(n, text): plain(text, [n])[n] for n in SINGLE for text in TEXTS}

    def work(seed):
        chance = random.Random(seed)
        for _ in range(30):
            names, texts = chance.sample(SINGLE, 2), chance.sample(TEXTS, 3)
            for text, answer in zip(texts, pipe(texts, names), strict=True):
                for name in names:
                    assert_same(answer[name], expected[name, text])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


@pytest.mark.parametrize("size", [-1, True, "10", 2.0, None])
def test_what_is_no_number_is_refused(two, size):
    parts = {"model": two[0].model, "tokenizer": two[0].tokenizer}
    with pytest.raises(ValueError, match="cache is .*; give a number of encodings, 0 for none"):
        PolyheadPipeline(**parts, cache=size)
