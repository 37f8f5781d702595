"""The pipeline gives what a direct call of the model gives, in the caller's order."""

import collections
import copy
import importlib.util
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import ENCODERS
from polyhead.modeling import PolyheadPipeline, TaskConfig, attention
from polyhead.modeling.decoding import decode_entities
from polyhead.modeling.passes import cut_into_passes
from polyhead.modeling.windows import split_words

SEQUENCE = {"head": "sequence_classification"}
TAGS = ["O", "B-x", "I-x", "B-y", "I-y"]
TASKS = {
    "intent": TaskConfig(**SEQUENCE, labels=["book", "play", "ask"]),
    "topics": TaskConfig(
        **SEQUENCE,
        problem_type="multi_label_classification",
        labels=["food", "travel", "music"],
        threshold=0.4,
    ),
    "urgency": TaskConfig(**SEQUENCE, problem_type="regression", pooling="cls"),
    "slots": TaskConfig(head="token_classification", labels=TAGS),
    "vector": TaskConfig(head="embedding"),
    "same": TaskConfig(**SEQUENCE, labels=["no", "yes"], pair=True),
}
SINGLE = [name for name in TASKS if name != "same"]
TEXTS = [
    "Book a table for two in Paris at seven tonight, please.",
    "Play music",
    "What is the weather  like in Zürich?",
    "go 🎉",
    "The train to New York leaves on Monday from platform three.",
]


@pytest.fixture
def pipe(make_model, tokenizer_of):
    model, tokenizer = make_model("bert", TASKS), tokenizer_of("wordpiece")
    with torch.no_grad():  # centred, so that the best label differs from text to text
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        for name in ("intent", "topics"):
            model.heads[name].out.bias -= logits[name].mean(0)
    return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")


def assert_same(found, expected):
    """Equal results; scores and vectors up to the last bits, which differ with the padding."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (float, np.ndarray)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    else:
        assert found == expected


def directly(pipe, text):
    """The results of one text by the model's logits alone."""
    tokens = pipe.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = pipe.model(**tokens)
    intent = out.logits["intent"][0].softmax(-1)
    topics = out.logits["topics"][0].sigmoid()
    words = split_words(text)
    first = {}
    for place, word in enumerate(tokens.word_ids()):
        first.setdefault(word, place)
    scores = out.logits["slots"][0].log_softmax(-1)[[first[w] for w in range(len(words))]]
    return {
        "intent": {
            "label": TASKS["intent"].labels[int(intent.argmax())],
            "score": float(intent.max()),
        },
        "topics": [
            {"label": TASKS["topics"].labels[i], "score": float(topics[i])}
            for i in topics.argsort(descending=True).tolist()
            if topics[i] >= 0.4
        ],
        "urgency": {"score": float(out.logits["urgency"][0, 0])},
        "slots": decode_entities(text, [[word] for word in words], scores, TAGS, "iob2"),
        "vector": out.embeddings["vector"][0].numpy(),
    }


def test_results_are_those_of_the_model_in_the_order_of_the_texts(pipe):
    results = pipe(TEXTS)
    assert_same(results, [directly(pipe, text) for text in TEXTS])
    assert any(result["slots"] for result in results)
    assert len({result["intent"]["label"] for result in results}) > 1
    assert len({len(result["topics"]) for result in results}) > 1


def test_another_copy_of_the_code_in_the_process_changes_nothing(pipe):
    # a model of the Hub brings its own attention.py, with a name and a state of its own
    expected = pipe(TEXTS)
    assert pipe.model._packs
    spec = importlib.util.spec_from_file_location("another_attention", attention.__file__)
    copy_of = importlib.util.module_from_spec(spec)
    sys.modules["another_attention"] = copy_of
    spec.loader.exec_module(copy_of)
    assert copy_of.NAME != attention.NAME
    assert_same(pipe(TEXTS), expected)
    pipe.model._packs = None
    assert pipe.model.can_pack


def test_one_text_gives_one_result_and_a_list_gives_a_list(pipe):
    alone = pipe(TEXTS[0])
    assert_same([alone], pipe([TEXTS[0]]))
    assert_same([alone], pipe(TEXTS)[:1])


@pytest.mark.parametrize("size", [{"batch_size": n} for n in (1, 2, 100)] + [{"batch_tokens": 9}])
def test_batches_of_any_size_change_nothing(pipe, size):
    assert_same(pipe(TEXTS, **size), pipe(TEXTS))


@pytest.mark.parametrize(
    ("packed", "cuts"),
    [  # of windows of 9, 6, 4, 3, 3, 2 tokens
        (
            True,
            {10: [1, 2, 3], 12: [1, 2, 3], 13: [1, 3, 2], 9: [1, 1, 2, 2], 4: [1, 1, 1, 1, 1, 1]},
        ),
        (False, {10: [1, 1, 2, 2], 12: [1, 2, 3], 27: [3, 3], 4: [1, 1, 1, 1, 1, 1]}),
    ],
)
def test_a_pass_has_at_most_so_many_tokens(packed, cuts):
    lengths = [9, 6, 4, 3, 3, 2]
    for tokens, sizes in cuts.items():
        found = list(cut_into_passes(lengths, packed=packed, batch_tokens=tokens))
        assert [cut.stop - cut.start for cut in found] == sizes, tokens
        assert [i for cut in found for i in range(cut.start, cut.stop)] == list(range(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2, "batch_tokens": 8}, "give batch_tokens or batch_size, not both"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_tokens": -1}, "batch_tokens is -1; it must be at least 1"),
    ],
)
def test_wrong_sizes_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(TEXTS, **options)


def test_how_to_compute_is_chosen_before_the_first_call(pipe):
    assert pipe.model.compute.mode == "auto"
    PolyheadPipeline(model=pipe.model, tokenizer=pipe.tokenizer, compute="exact")
    assert pipe.model.compute.mode == "exact"
    with pytest.raises(ValueError, match="compute is 'fast'; allowed: exact, auto, bf16"):
        PolyheadPipeline(model=pipe.model, tokenizer=pipe.tokenizer, compute="fast")


@pytest.mark.parametrize("packed", [False, True])
def test_batches_hold_texts_of_like_length(packed, pipe):
    assert pipe.model.can_pack
    pipe.model._packs = packed
    shapes = []
    pipe.model.encoder.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    pipe(TEXTS, batch_size=2)
    lengths = sorted((len(pipe.tokenizer(text)["input_ids"]) for text in TEXTS), reverse=True)
    if packed:  # end to end, without padding
        ends = [sum(lengths[start : start + 2]) for start in (0, 2, 4)]
        assert shapes == [(1, tokens) for tokens in ends]
    else:
        assert shapes == [(2, lengths[0]), (2, lengths[2]), (1, lengths[4])]


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "modernbert", "llama"])
def test_packed_and_padded_batches_give_the_same(kind, make_model, tokenizer_of):
    tasks = {**TASKS, "deep": TaskConfig(head="embedding", pooling="mean_last_4")}
    model = make_model(kind, tasks, num_hidden_layers=4)
    tokenizer = tokenizer_of(ENCODERS[kind][0])
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
    found = pipe(TEXTS)
    assert model.can_pack == (kind != "mpnet")
    model._packs = False
    assert_same(found, pipe(TEXTS))


def test_any_iterable_of_texts_is_read(pipe):
    expected = pipe(TEXTS)
    assert_same(list(pipe(text for text in TEXTS)), expected)
    assert_same(pipe(collections.deque(TEXTS)), expected)
    assert_same(pipe(dict(enumerate(TEXTS)).values()), expected)


def test_no_texts_give_no_results(pipe):
    assert pipe([]) == []


def test_an_empty_text_has_no_entities(pipe):
    result = pipe("")
    assert result["slots"] == []
    assert list(result) == SINGLE


def test_chosen_tasks_come_in_the_order_asked_for(pipe):
    whole = pipe(TEXTS[0])
    chosen = pipe(TEXTS[0], tasks=["slots", "intent"])
    assert list(chosen) == ["slots", "intent"]
    assert_same(chosen, {name: whole[name] for name in ("slots", "intent")})


def test_only_chosen_heads_run(pipe):
    ran = []
    for name, head in pipe.model.heads.items():
        head.register_forward_hook(lambda *_, n=name: ran.append(n))
    pipe(TEXTS[:2], tasks=["urgency"])
    assert ran == ["urgency"]


def test_top_k_gives_a_list_best_first(pipe):
    [first, second] = pipe(TEXTS[0], tasks=["intent"], top_k=2)["intent"]
    assert first == pipe(TEXTS[0])["intent"]
    assert first["score"] > second["score"]
    every = pipe(TEXTS[0], tasks=["intent"], top_k=3)["intent"]
    assert sum(entry["score"] for entry in every) == pytest.approx(1)


def test_given_threshold_replaces_that_of_the_task(pipe):
    every = pipe(TEXTS[0], tasks=["topics"], threshold=0.0)["topics"]
    assert sorted(entry["label"] for entry in every) == ["food", "music", "travel"]
    own = pipe(TEXTS[0], tasks=["topics"])["topics"]
    assert own == [entry for entry in every if entry["score"] >= 0.4]
    assert pipe(TEXTS[0], tasks=["topics"], threshold=1.0)["topics"] == []


def test_pairs_are_read_by_pair_tasks_alone(pipe):
    pairs = [("Play music", "Play some music by the Beatles"), ("Play", "The train leaves")]
    results = pipe(pairs)
    assert [list(result) for result in results] == [["same"], ["same"]]
    for (one, other), result in zip(pairs, results, strict=True):
        with torch.no_grad():
            out = pipe.model(**pipe.tokenizer(one, other, return_tensors="pt"), tasks=["same"])
        scores = out.logits["same"][0].softmax(-1)
        label = ["no", "yes"][int(scores.argmax())]
        assert_same(result, {"same": {"label": label, "score": float(scores.max())}})
    assert_same(pipe(pairs[0]), results[0])


@pytest.mark.parametrize(
    ("texts", "tasks", "message"),
    [
        (["a", 3], None, "text 1 is 3; give a string or a pair of strings"),
        (["a", None], None, "text 1 is None"),
        ([("a", "b", "c")], None, r"text 0 is \('a', 'b', 'c'\)"),
        ([["a", "b"]], None, r"text 0 is \['a', 'b'\]"),
        (["a", ("b", "c")], None, "mixed; give them in separate calls"),
        ("a", ["mood"], "unknown task 'mood'; this model has: intent, topics, urgency, slots, "),
        ("a", ["same"], r"task 'same' reads pairs, as \(text, text\)"),
        (("a", "b"), ["intent"], "task 'intent' reads single texts"),
        ("a", "intent", r"tasks=\['intent'\]"),
    ],
)
def test_wrong_input_is_refused_with_what_to_give(pipe, texts, tasks, message):
    with pytest.raises(ValueError, match=message):
        pipe(texts, tasks)


def test_a_model_that_reads_only_pairs_says_so(make_model, tokenizer_of):
    pipe = PolyheadPipeline(
        model=make_model("bert", {"same": TASKS["same"]}), tokenizer=tokenizer_of("wordpiece")
    )
    with pytest.raises(ValueError, match="every task of this model reads pairs"):
        pipe("a")


def test_options_are_for_the_call(pipe):
    with pytest.raises(ValueError, match="unknown option top_k; give options in the call"):
        PolyheadPipeline(model=pipe.model, tokenizer=pipe.tokenizer, top_k=2)


def test_padding_side_of_the_tokenizer_does_not_matter(pipe):
    expected = pipe(TEXTS)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.padding_side = "left"
    assert_same(pipe(TEXTS), expected)


def test_dropout_is_off_and_no_gradient_is_kept(pipe):
    expected = pipe(TEXTS)
    for head in pipe.model.heads.values():
        if hasattr(head, "dropout"):
            head.dropout.p = 0.9
    pipe.model.train()
    assert_same(pipe(TEXTS), expected)
    assert all(module.training for module in pipe.model.modules())  # perhaps in another thread
    assert pipe.model.encoder.embeddings.word_embeddings.weight.grad is None


def test_vectors_are_float32_also_from_a_half_precision_model(pipe):
    pipe.model.bfloat16()
    vector = pipe(TEXTS[0], tasks=["vector"])["vector"]
    assert (vector.dtype, vector.shape) == (np.float32, (32,))


def test_masks_are_filled_with_tokens(make_model, tokenizer_of):
    tokenizer = tokenizer_of("unigram")  # shorter than the encoder's vocabulary, as padded ones are
    model = make_model("albert", {"words": TaskConfig(head="masked_lm")})
    with torch.no_grad():
        model.heads["words"].decoder.bias[len(tokenizer) :] = 100.0  # no token has these ids
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer)
    texts = ["The <mask> to <mask> leaves", "no mask here"]
    [found, none] = pipe(texts, top_k=2)
    assert none == {"words": []}
    tokens = tokenizer(texts[0], return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens).logits["words"][0, :, : len(tokenizer)]
    places = (tokens["input_ids"][0] == tokenizer.mask_token_id).nonzero().squeeze(1)
    assert len(places) == 2
    expected = [
        tokenizer.convert_ids_to_tokens(logits[place].topk(2).indices.tolist()) for place in places
    ]
    assert [[entry["label"] for entry in mask] for mask in found["words"]] == expected


def test_a_generator_is_read_as_its_answers_are_asked_for(pipe, monkeypatch):
    monkeypatch.setattr(sys.modules[PolyheadPipeline.__module__], "STRETCH", 2)
    read = []

    def texts():
        for number, text in enumerate(TEXTS):
            read.append(number)
            yield text

    answers = pipe(texts(), tasks=SINGLE, batch_size=2)
    assert read == []
    first = next(answers)
    assert read == [0, 1]
    assert_same([first, *answers], pipe(TEXTS, tasks=SINGLE))


def test_a_column_of_a_dataset_is_read(pipe):
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    assert_same(pipe(rows["text"], tasks=SINGLE), pipe(TEXTS, tasks=SINGLE))
    with pytest.raises(ValueError, match=r"a Dataset of columns \['text'\]; give one"):
        pipe(rows)


# ---- long texts ----

LONG = " ".join([*TEXTS, "and then"] * 8)


@pytest.fixture
def word_by_word(make_model, tokenizer_of):
    """A pipeline whose tokens do not see one another, without limit of length."""
    model = make_model("llama", {"slots": TASKS["slots"], "intent": TASKS["intent"]})
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.o_proj.weight.zero_()
    tokenizer = copy.deepcopy(tokenizer_of("bpe"))
    tokenizer.model_max_length = 5000
    return PolyheadPipeline(model=model, tokenizer=tokenizer)


@pytest.mark.parametrize("length", [9, 16, 64])
def test_entities_of_a_long_text_are_found_in_every_window(length, word_by_word):
    expected = word_by_word(LONG, tasks=["slots"])
    word_by_word.tokenizer.model_max_length = length
    found = word_by_word([TEXTS[1], LONG], tasks=["slots"], batch_size=4)[1]
    assert_same(found, expected)
    assert len(found["slots"]) > 20
    for entity in found["slots"]:
        assert LONG[entity["start"] : entity["end"]] == entity["word"]


def test_entities_of_3000_tokens_are_those_of_an_encoder_that_reads_them_whole(
    make_model, tokenizer_of
):
    # an encoder that sees 4 tokens to each side in one layer, and windows that overlap by more
    tasks = {"slots": TASKS["slots"]}
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 8192, "local_attention": 8}
    model = make_model("modernbert", tasks, **sizes, layer_types=["sliding_attention"])
    tokenizer = copy.deepcopy(tokenizer_of("bpe"))
    tokenizer.model_max_length = 8192
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
    text = LONG * 8
    assert len(tokenizer(text)["input_ids"]) >= 3000
    expected = pipe(text)
    tokenizer.model_max_length = 128
    found = pipe(text)
    assert_same(found, expected)
    assert len(found["slots"]) > 100


def test_other_heads_read_the_first_window_of_a_long_text(pipe):
    names = ["intent", "urgency", "vector"]
    found = pipe(LONG, tasks=["slots", *names])
    tokens = pipe.tokenizer(LONG, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        out = pipe.model(**tokens, tasks=names)
    assert_same(found["urgency"], {"score": float(out.logits["urgency"])})
    assert_same(found["vector"], out.embeddings["vector"][0].numpy())
    assert_same(pipe(LONG, tasks=names), {name: found[name] for name in names})


def test_long_texts_take_more_windows_only_for_token_tasks(pipe):
    assert pipe.model.can_pack
    rows = []
    pipe.model.encoder.register_forward_pre_hook(
        lambda _, __, given: rows.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    pipe(LONG, tasks=["intent"])
    assert rows == [(1, 64)]
    pipe(LONG, tasks=["slots"], batch_size=100)
    assert rows[1][0] == 1  # packed
    assert rows[1][1] > 2 * 64


def test_a_long_pair_is_cut_to_fit(pipe):
    result = pipe((LONG, LONG))
    tokens = pipe.tokenizer(LONG, LONG, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        scores = pipe.model(**tokens, tasks=["same"]).logits["same"][0].softmax(-1)
    assert result["same"]["score"] == pytest.approx(float(scores.max()), abs=1e-5)


@pytest.mark.parametrize("limit", [int(1e30), 512])
def test_a_tokenizer_without_the_encoders_limit_takes_it_from_the_encoder(limit, pipe):
    expected = pipe([LONG, TEXTS[0]])
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = limit
    assert_same(pipe([LONG, TEXTS[0]]), expected)
    assert pipe((LONG, LONG))["same"]["label"] in ("no", "yes")
