"""Texts in windows: how they are cut, how their answers become one, in any batch and any part."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shake_adapters
from peft import LoraConfig
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.modeling.encoder_parts import Parts
from polyhead.modeling.packing import cumulative
from polyhead.modeling.windows import encode_pairs, encode_windows
from test_heads import SEQUENCE, twins
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

CLASSES = {"head": "sequence_classification", "labels": ["a", "b", "c"], "dropout": 0.0}
WINDOWS = {"long_texts": "windows"}
TASKS = {
    "mean": TaskConfig(**CLASSES, **WINDOWS),
    "most": TaskConfig(**CLASSES, **WINDOWS, window_pooling="max", pooling="max"),
    "first": TaskConfig(**CLASSES),
    "number": TaskConfig(
        head="sequence_classification", problem_type="regression", dropout=0.0, **WINDOWS
    ),
    "vector": TaskConfig(head="embedding", projection=8, **WINDOWS),
    "raw": TaskConfig(head="embedding", normalize=False, pooling="mean_last_4", **WINDOWS),
    "tags": TaskConfig(head="token_classification", labels=["x", "y"], dropout=0.0),
}
POOLED = ["mean", "most", "number", "vector", "raw"]
DEEP = {"num_hidden_layers": 4}
LENGTHS = [12, 12, 7, 5, 12, 3]  # of three texts: 3 windows, 1, 2
COUNTS = torch.tensor([3, 1, 2])
LONG = "Book a table for two in Paris at seven, please. The train leaves on Monday. " * 8


def outputs(model, batch, **options):
    with torch.no_grad():
        out = model.eval()(**batch, **options)
    return {**(out.logits or {}), **(out.embeddings or {})}


def by_hand(values, lengths):
    """What the tasks of `TASKS` make of the values of one text's windows."""
    weights = torch.tensor(lengths).float() / sum(lengths)
    mean = {name: (weights[:, None] * values[name]).sum(0) for name in ("vector", "raw")}
    return {
        "mean": values["mean"].mean(0),
        "most": values["most"].amax(0),
        "number": values["number"].mean(0),
        "vector": F.normalize(mean["vector"], dim=0),
        "raw": mean["raw"],
        "first": values["first"][0],
    }


def packed(batch, lengths):
    rows = [ids[:n] for ids, n in zip(batch["input_ids"], lengths, strict=True)]
    return {"input_ids": torch.cat(rows)[None], "cu_seq_lens_q": cumulative(torch.tensor(lengths))}


# ---- cutting ----


def test_the_second_text_of_a_pair_is_cut_and_the_first_is_in_each_window(family, tokenizer_of):
    tokenizer = tokenizer_of(family)
    plain = {"add_special_tokens": False, "truncation": False}
    first, second = (tokenizer(text, **plain)["input_ids"] for text in ("play music", LONG))
    whole, long = encode_pairs(tokenizer, [("play", "it"), ("play music", LONG)], 64)
    usual = tokenizer("play", "it")
    assert [window.input_ids for window in whole] == [usual["input_ids"]]
    assert whole[0].token_type_ids == usual.get("token_type_ids")
    room = 64 - len(first) - tokenizer.num_special_tokens_to_add(pair=True)
    start = 0
    for window in long:
        piece = second[start : start + room]
        *begin, end = tokenizer(["play music"], [""])["input_ids"][0]
        assert window.input_ids == [*begin, *piece, end]
        assert not window.cut
        start += room - room // 4
    assert start + room // 4 >= len(second)
    if family == "wordpiece":
        assert long[1].token_type_ids == [0] * (len(first) + 2) + [1] * (62 - len(first))
    else:
        assert long[1].token_type_ids is None


def test_a_long_first_text_keeps_half_of_the_room(tokenizer_of):
    tokenizer = tokenizer_of("wordpiece")
    windows = encode_pairs(tokenizer, [(LONG, LONG), (LONG, "play it"), ("", LONG)], 64)
    room, first = 61, tokenizer(LONG)["input_ids"][1:]
    assert len(windows[0]) > 5
    assert [window.cut for window in windows[0]][:2] == [True, False]
    assert all(window.input_ids[1 : 1 + room // 2] == first[: room // 2] for window in windows[0])
    short = tokenizer("play it")["input_ids"][1:]
    (one,) = windows[1]  # the second text leaves more room
    assert one.input_ids[-len(short) :] == short
    assert len(one.input_ids) == 64
    assert one.cut
    assert not windows[2][0].cut


def test_pairs_of_every_length_fit_and_lose_nothing_of_the_second_text(family, tokenizer_of):
    tokenizer = tokenizer_of(family)
    special = set(tokenizer.all_special_ids)
    words = LONG.split()
    for one in (0, 1, 7, 30):
        for other in (1, 2, 9, 40):
            pair = (" ".join(words[:one]), " ".join(words[:other]))
            (windows,) = encode_pairs(tokenizer, [pair], 24)
            assert all(len(window.input_ids) <= 24 for window in windows)
            ends = tokenizer(pair[1], add_special_tokens=False)["input_ids"]
            last = [token for token in windows[-1].input_ids if token not in special]
            assert last[-1] == ends[-1]


def test_masks_are_read_once_where_most_is_seen_around_them(tokenizer_of):
    tokenizer = tokenizer_of("wordpiece")
    text = " ".join(["a", "[MASK]"] * 40)
    (windows,) = encode_windows(tokenizer, [text], [[]], 18)  # 16 tokens of text, 4 in common
    assert len(windows) == 7
    assert [len(window.masks) for window in windows] == [7, 6, 6, 6, 6, 6, 3]
    places = [12 * window.number + token - 1 for window in windows for token in window.masks]
    assert places == list(range(1, 80, 2))


def test_windows_say_which_characters_they_show(tokenizer_of):
    tokenizer = tokenizer_of("wordpiece")
    text = " " + "ab " * 12  # two tokens a word
    texts = [text, "", "a b"]
    windows, empty, short = encode_windows(tokenizer, texts, [[]] * 3, 10)  # 8 tokens, 2 in common
    assert [window.span for window in windows] == [(1, 12), (10, 21), (19, 30), (28, 36)]
    assert [window.span for window in [*empty, *short]] == [(0, 0), (0, 3)]


# ---- pooling ----


def test_windows_equal_hf_heads_on_each_of_them(batch_of):
    options, modules = SEQUENCE["bert"]
    task = TaskConfig(**CLASSES, **WINDOWS, **options)
    theirs, ours = twins("bert", AutoModelForSequenceClassification, task, modules, num_labels=3)
    batch, labels = batch_of(ours, LENGTHS), torch.tensor([2, 0, 1])
    logits = theirs(**batch).logits
    expected = torch.stack([part.mean(0) for part in logits.split(COUNTS.tolist())])
    out = ours(**batch, window_counts=COUNTS, labels={"task": labels})
    assert_close(out.logits["task"], expected)
    loss = F.cross_entropy(expected, labels)
    assert_close(out.loss, loss)
    loss.backward()
    out.loss.backward()
    theirs_by_name = dict(theirs.base_model.named_parameters())
    for name, parameter in ours.encoder.named_parameters():
        assert_close(parameter.grad, theirs_by_name[name].grad, atol=1e-5, rtol=1e-4)
    assert_close(ours.heads["task"].out.weight.grad, theirs.classifier.weight.grad)


def test_each_task_pools_in_its_way(make_model, batch_of):
    model = make_model("bert", TASKS, **DEEP)
    batch = batch_of(model, LENGTHS)
    values = outputs(model, batch)
    found = outputs(model, batch, window_counts=COUNTS)
    start = 0
    for text, count in enumerate(COUNTS.tolist()):
        part = slice(start, start + count)
        expected = by_hand({n: v[part] for n, v in values.items()}, LENGTHS[part])
        for name, value in expected.items():
            assert_close(found[name][text], value, msg=lambda m, n=name: f"{n}: {m}")
        start += count
    assert_close(found["tags"], values["tags"])


def test_a_text_of_one_window_answers_to_the_bit_as_without_windows(make_model, batch_of):
    first = {
        name: replace(task, long_texts=None, window_pooling=None) for name, task in TASKS.items()
    }
    model, other = make_model("bert", TASKS, **DEEP), make_model("bert", first, **DEEP)
    other.load_state_dict(model.state_dict())
    batch = batch_of(model, LENGTHS)
    expected = outputs(other, batch)
    for counts in (None, torch.ones(len(LENGTHS), dtype=torch.long)):
        found = outputs(model, batch, window_counts=counts)
        assert all(torch.equal(found[name], expected[name]) for name in TASKS)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "mpnet", "deberta-v2"])
def test_windows_alone_are_those_in_a_batch_padded_or_packed(kind, make_model, batch_of):
    model = make_model(kind, TASKS, **DEEP)
    batch, names = batch_of(model, LENGTHS), [*POOLED, "first"]
    padded = outputs(model, batch, window_counts=COUNTS, tasks=names)
    found = outputs(model, packed(batch, LENGTHS), window_counts=COUNTS, tasks=names)
    start = 0
    for text, count in enumerate(COUNTS.tolist()):
        part = slice(start, start + count)
        alone = batch_of(model, LENGTHS[part])
        alone["input_ids"][alone["attention_mask"].bool()] = batch["input_ids"][part][
            batch["attention_mask"][part].bool()
        ]
        one = outputs(model, alone, window_counts=COUNTS[text : text + 1], tasks=names)
        for name in names:
            assert_close(padded[name][text], one[name][0], atol=1e-5, rtol=1e-5)
            assert_close(found[name][text], one[name][0], atol=1e-5, rtol=1e-5)
        start += count


def test_rows_of_other_tasks_stand_beside_windows(make_model, batch_of):
    names = sorted(TASKS)
    model = make_model("bert", {name: TASKS[name] for name in names}, **DEEP)
    batch = batch_of(model, LENGTHS)
    every = outputs(model, batch, window_counts=COUNTS)
    number = model.task_names.index
    ids = torch.tensor(
        [
            [number("mean"), number("tags")],
            [number("vector"), -1],
            [number("first"), number("mean")],
        ]
    )
    labels = {"mean": torch.tensor([1, 2]), "tags": torch.ones(3, 12).long()}
    found = outputs(model, batch, window_counts=COUNTS, task_ids=ids, labels=labels)
    assert_close(found["mean"], every["mean"][[0, 2]])
    assert_close(found["vector"], every["vector"][[1]])
    assert_close(found["first"], every["first"][[2]])
    assert_close(found["tags"], every["tags"][:3])
    assert set(found) == {"mean", "vector", "first", "tags"}


def test_counts_that_do_not_fit_are_refused(make_model, batch_of):
    model = make_model("bert", {"mean": TASKS["mean"]})
    batch = batch_of(model, LENGTHS)
    for counts in ([3, 1], [3, 0, 3], [7, -1]):
        with pytest.raises(ValueError, match=r"window_counts is .*the 6 rows of the batch"):
            model(**batch, window_counts=torch.tensor(counts))


# ---- a part at a time ----


def gradients(model, batch, **options):
    model.zero_grad()
    torch.manual_seed(1)
    out = model.train()(**batch, **options)
    out.loss.backward()
    return out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("adapted", [True, False])
def test_parts_give_what_one_pass_gives(packs, adapted, make_model, batch_of, monkeypatch):
    tasks = {name: copy.deepcopy(TASKS[name]) for name in ("mean", "vector", "raw", "tags")}
    model = make_model("bert", tasks, **DEEP)
    if adapted:
        for name in ("mean", "vector"):
            model.attach_adapter(name, LoraConfig(r=2, target_modules=["query", "value"]), [name])
        shake_adapters(model)
    batch = batch_of(model, LENGTHS)
    tags = torch.ones(6, 12).long().masked_fill(batch["attention_mask"] == 0, -100)
    if packs:
        tags = tags[tags >= 0][None]
        batch = packed(batch, LENGTHS)
    labels = {"mean": torch.tensor([1, 2, 0]), "tags": tags}
    options = {"window_counts": COUNTS, "labels": labels}
    assert model.can_pack
    rows = []
    handle = model.encoder.register_forward_pre_hook(
        lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    out, found = gradients(model, batch, **options)
    assert len(rows) == 4  # two parts of three rows, each of them twice
    handle.remove()
    monkeypatch.setattr(model, "_parts", lambda *_, **__: Parts(100))
    whole, expected = gradients(model, batch, **options)
    assert_close(out.losses, whole.losses)
    for name in out.logits:
        assert_close(out.logits[name], whole.logits[name])
    assert_close(out.embeddings, whole.embeddings)
    if out.last_hidden_state is None:
        assert whole.last_hidden_state is None
    else:
        assert_close(out.last_hidden_state, whole.last_hidden_state)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_a_part_is_computed_again_with_the_same_dropout(make_model, batch_of, monkeypatch):
    model = make_model("bert", {"mean": TASKS["mean"]}, hidden_dropout_prob=0.3)
    batch, labels = batch_of(model, LENGTHS), {"mean": torch.tensor([1, 2, 0])}
    out, found = gradients(model, batch, window_counts=COUNTS, labels=labels)
    torch.manual_seed(1)
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 3), slice(3, 6))]
    parts = [model(**half).logits["mean"] for half in halves]
    logits = torch.cat(parts).split(COUNTS.tolist())
    loss = F.cross_entropy(torch.stack([part.mean(0) for part in logits]), labels["mean"])
    assert_close(out.loss, loss)
    model.zero_grad()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-5)


def test_states_are_kept_where_tokens_are_read_alone(make_model, batch_of):
    model = make_model("bert", TASKS, **DEEP).eval()
    batch = batch_of(model, LENGTHS)
    assert model(**batch, window_counts=COUNTS, tasks=POOLED).last_hidden_state is None
    with torch.no_grad():
        assert model(**batch, window_counts=COUNTS).last_hidden_state.shape == (6, 12, 32)
        assert model(**batch, window_counts=COUNTS, tasks=()).last_hidden_state is not None
        deep = model(**batch, window_counts=COUNTS, tasks=["mean"], output_hidden_states=True)
    assert len(deep.hidden_states) == 5


# ---- the pipeline ----


@pytest.fixture
def pipe(make_model, tokenizer_of):
    tasks = {
        **TASKS,
        "pair": TaskConfig(**CLASSES, **WINDOWS, pair=True),
        "cut": TaskConfig(**CLASSES, pair=True),
        "words": TaskConfig(head="masked_lm", **WINDOWS),
        "top": TaskConfig(head="masked_lm"),
    }
    model = make_model("bert", tasks, **DEEP)
    return PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"), device="cpu")


def windows_of(pipe, texts):
    """A padded batch of the windows of texts, or pairs, and how many each has."""
    tokenizer = copy.deepcopy(pipe.tokenizer)
    if isinstance(texts[0], tuple):
        windows = encode_pairs(tokenizer, texts, 64)
    else:
        windows = encode_windows(tokenizer, texts, [[] for _ in texts], 64)
    rows = [
        {"input_ids": w.input_ids, "token_type_ids": w.token_type_ids} for of in windows for w in of
    ]
    batch = pipe.tokenizer.pad(rows, return_tensors="pt")
    return batch, torch.tensor([len(of) for of in windows])


def assert_answers(found, name, task, values):
    if task.head == "embedding":
        np.testing.assert_allclose(found[name], values.numpy(), rtol=0, atol=1e-5)
    elif task.labels is None:
        assert found[name]["score"] == pytest.approx(float(values[0]), abs=1e-5)
    else:
        best = int(values.argmax())
        score = float(values.softmax(0)[best])
        assert found[name] == {"label": task.labels[best], "score": pytest.approx(score, abs=1e-5)}


@pytest.mark.parametrize("size", [{}, {"batch_size": 1}, {"batch_tokens": 200}])
def test_the_pipeline_answers_as_the_model(size, pipe):
    texts = [LONG, "play music", LONG[:300]]
    batch, counts = windows_of(pipe, texts)
    assert counts.tolist()[1] == 1
    assert counts[0] > counts[2] > 1
    names = [*POOLED, "first"]
    expected = outputs(pipe.model, batch, window_counts=counts, tasks=names)
    for together in (names, names[:1], [*names, "tags"]):
        for text, answers in enumerate(pipe(texts, together, **size)):
            for name in set(together) & set(names):
                assert_answers(answers, name, TASKS[name], expected[name][text])


def test_pairs_are_read_by_each_task_in_its_way(pipe):
    pairs = [("play music", LONG), ("book it", "please"), (LONG, LONG)]
    batch, counts = windows_of(pipe, pairs)
    expected = outputs(pipe.model, batch, window_counts=counts, tasks=["pair"])["pair"]
    cut = pipe.tokenizer(
        *map(list, zip(*pairs, strict=True)), truncation=True, padding=True, return_tensors="pt"
    )
    firsts = outputs(pipe.model, cut, tasks=["cut"])["cut"]
    for row, answers in enumerate(pipe(pairs)):
        assert_answers(answers, "pair", TASKS["mean"], expected[row])
        assert_answers(answers, "cut", TASKS["mean"], firsts[row])


def test_masks_of_all_windows_are_filled(pipe):
    text = LONG + "[MASK] " + LONG + "[MASK]"
    answers = pipe(text, ["words", "top"])
    assert len(answers["words"]) == 2
    assert answers["top"] == []
    batch, _ = windows_of(pipe, [text])
    logits = outputs(pipe.model, batch, tasks=["words"])["words"]
    row, place = (batch["input_ids"] == pipe.tokenizer.mask_token_id).nonzero()[-1]
    best = logits[row, place][: len(pipe.tokenizer)].softmax(-1).max()
    assert answers["words"][1]["score"] == pytest.approx(float(best), abs=1e-5)
    assert len(pipe("a [MASK] [MASK]", ["words"])["words"]) == 2
    assert pipe(LONG, ["words"]) == {"words": []}


def test_what_fits_is_answered_to_the_bit_as_without_windows(pipe, make_model):
    first = {
        name: replace(task, long_texts=None, window_pooling=None)
        for name, task in pipe.model.config.tasks.items()
    }
    model = make_model("bert", first, **DEEP)
    model.load_state_dict(pipe.model.state_dict())
    other = PolyheadPipeline(model=model, tokenizer=pipe.tokenizer, device="cpu")
    texts = ["play [MASK] music", "book a table", "please"]
    for one, two in zip(pipe(texts), other(texts), strict=True):
        for name in one:
            if isinstance(one[name], np.ndarray):
                assert (one[name] == two[name]).all()
            else:
                assert one[name] == two[name]
    pairs = [("a", "the train"), ("play", "music")]
    assert pipe(pairs, ["pair"]) == other(pairs, ["pair"])


def test_what_is_cut_is_said_once_with_count_and_share(pipe, caplog):
    pipe([LONG, LONG, "play"], POOLED)
    pipe([("play", LONG)], ["pair"])
    assert caplog.messages == []
    pipe([LONG, LONG, "play"], ["mean", "first"])
    pipe([LONG], ["first"])
    assert caplog.messages == [
        "2 of 3 texts (66.7%) are longer than 64 tokens and are cut for first; this is said once"
    ]


def test_a_pair_whose_first_text_is_cut_is_said(pipe, caplog):
    pipe([(LONG, LONG), ("play", LONG)], ["pair"])
    assert caplog.messages == [
        "1 of 2 texts (50.0%) are longer than 64 tokens and are cut for pair; this is said once"
    ]
