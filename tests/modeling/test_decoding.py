"""Words, windows, tag schemes and what a user reads."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhead.modeling.decoding import (
    decode_classes,
    decode_entities,
    gold_entities,
    unit_tags,
    word_tags,
)
from polyhead.modeling.tags import (
    decode_tags,
    legal_transitions,
    spans_of,
    viterbi,
    write_tags,
)
from polyhead.modeling.windows import (
    encode_windows,
    joined_words,
    locate_words,
    split_words,
    units_of,
)
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

settings.register_profile("unit", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("unit")

SEQEVAL = {"iob1": IOB1, "iob2": IOB2, "bioes": IOBES}
TAGS = {
    "iob1": ["O", "B-x", "I-x", "B-y", "I-y"],
    "iob2": ["O", "B-x", "I-x", "B-y", "I-y"],
    "bioes": ["O", "B-x", "I-x", "E-x", "S-x", "B-y", "I-y", "E-y", "S-y"],
}
SCHEMES = list(TAGS)

# ---- words ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Book a table", ["Book", "a", "table"]),
        ("  two  spaces\tand\nlines ", ["two", "spaces", "and", "lines"]),
        ("don't, U.S.", ["don", "'", "t", ",", "U", ".", "S", "."]),
        ("snake_case 3.5%", ["snake", "_", "case", "3", ".", "5", "%"]),
        ("Zürich naïve Ærø", ["Zürich", "naïve", "Ærø"]),
        # accents and vowel signs that are characters of their own belong to their letter
        ("Zu\u0308rich cafe\u0301", ["Zu\u0308rich", "cafe\u0301"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("go🎉🎉now", ["go", "🎉", "🎉", "now"]),
        ("東京に行く", ["東", "京", "に", "行", "く"]),
        ("in 東京 now", ["in", "東", "京", "now"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_words_are_runs_of_letters_and_single_signs(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


@given(st.text(alphabet="ab é🎉.東_\n'1", max_size=30))
def test_words_cover_all_but_white_space_in_order(text):
    spans = split_words(text)
    covered = [position for start, end in spans for position in range(start, end)]
    assert covered == [position for position, sign in enumerate(text) if not sign.isspace()]


@pytest.mark.parametrize(
    ("text", "tokens", "spans"),
    [
        ("to  be or", ["to", "be", "or"], [(0, 2), (4, 6), (7, 9)]),
        ("don't", ["do", "n't"], [(0, 2), (2, 5)]),
        ("a a", ["a", "a"], [(0, 1), (2, 3)]),
        ("cats sat", ["sat"], None),  # "cats" would be passed over
        ("to be", ["to", "bee"], None),
        ("be to", ["to", "be"], None),
        ("to be", [], []),
    ],
)
def test_given_words_are_located_in_order_or_not_at_all(text, tokens, spans):
    assert locate_words(text, tokens) == spans


# ---- windows ----

TEXTS = [
    "Book a table in Paris.",
    "two  spaces   and a\ttab",
    " leading and trailing ",
    "Zürich naïve Ærø",
    "go 🎉 now",
    "Smith's (Acme) U.S.",
    "in 東 now",
    "xylophone qqqq zzzzzz",
]


@pytest.mark.parametrize("text", TEXTS)
def test_first_token_of_each_word_starts_where_the_word_starts(text, family, tokenizer_of):
    tokenizer, words = tokenizer_of(family), split_words(text)
    [[window]] = encode_windows(tokenizer, [text], [words], 200)
    assert [word for word, _ in window.first_tokens] == list(range(len(words)))
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    for word, token in window.first_tokens:
        start, end = offsets[token]
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        assert first == words[word][0], (text, word, offsets[token])


@pytest.mark.parametrize(
    ("family", "text", "tokens"),
    [
        ("wordpiece", "on go🎉now on", [1, 2, 2, 2, 3]),  # unknown as a whole: no space between
        ("unigram", "on 東京 on", [1, 3, 3, 4]),  # unknown signs are joined
    ],
)
def test_a_token_over_several_words_is_read_for_each(family, text, tokens, tokenizer_of):
    [[window]] = encode_windows(tokenizer_of(family), [text], [split_words(text)], 200)
    assert window.first_tokens == list(enumerate(tokens))


@pytest.mark.parametrize(
    ("family", "text", "units"),
    [
        ("wordpiece", "on go🎉now on", [["on"], ["go", "🎉", "now"], ["on"]]),
        ("unigram", "on 東京 on", [["on"], ["東", "京"], ["on"]]),
        ("bpe", "on 東京 on", [["on"], ["東"], ["京"], ["on"]]),
        ("wordpiece", "on \u200b on", [["on"], ["\u200b"], ["on"]]),  # has no token
    ],
)
def test_words_of_one_token_are_one_unit(family, text, units, tokenizer_of):
    words = split_words(text)
    [[window]] = encode_windows(tokenizer_of(family), [text], [words], 200)
    spans, [reads] = units_of(words, [window.first_tokens])
    assert [[text[a:b] for a, b in unit] for unit in spans] == units
    tokens = dict(window.first_tokens)
    first = [sum(map(len, units[:number])) for number in range(len(units))]
    assert reads == [(unit, tokens[w]) for unit, w in enumerate(first) if w in tokens]


def test_a_text_that_fits_is_one_window_as_the_tokenizer_gives_it(family, tokenizer_of):
    tokenizer, text = tokenizer_of(family), TEXTS[0]
    expected = tokenizer(text)
    [[window]] = encode_windows(tokenizer, [text], [[]], 64)
    assert window.input_ids == expected["input_ids"]
    assert window.token_type_ids == expected.get("token_type_ids")
    assert window.first_tokens == []


def test_texts_encoded_together_are_as_encoded_alone(family, tokenizer_of):
    tokenizer = tokenizer_of(family)
    texts = [*TEXTS, "", " ".join(TEXTS)]
    words = [split_words(text) for text in texts]
    together = encode_windows(tokenizer, texts, words, 16)
    for text, spans, windows in zip(texts, words, together, strict=True):
        assert [windows] == encode_windows(tokenizer, [text], [spans], 16)


LONG = " ".join(f"{text} {number}" for number in range(4) for text in TEXTS)


@pytest.mark.parametrize("length", [7, 16, 33])
def test_each_word_is_read_once_with_the_same_token_as_without_windows(
    length, family, tokenizer_of
):
    tokenizer, words = tokenizer_of(family), split_words(LONG)
    [[whole]] = encode_windows(tokenizer, [LONG], [words], 10_000)
    [windows] = encode_windows(tokenizer, [LONG], [words], length)
    assert max(len(window.input_ids) for window in windows) == length
    read = [(word, w.input_ids[token]) for w in windows for word, token in w.first_tokens]
    expected = [(word, whole.input_ids[token]) for word, token in whole.first_tokens]
    assert sorted(read) == expected
    assert [word for word, _ in expected] == list(range(len(words)))


@pytest.mark.parametrize("length", [7, 16, 33])
def test_each_word_is_read_where_most_is_seen_around_it(length, family, tokenizer_of):
    tokenizer, words = tokenizer_of(family), split_words(LONG)
    [[whole]] = encode_windows(tokenizer, [LONG], [words], 10_000)
    [windows] = encode_windows(tokenizer, [LONG], [words], length)
    size, total = length - 2, len(whole.input_ids) - 2
    step = size - size // 4  # windows overlap by a quarter
    starts = [number * step for number in range(len(windows))]
    assert [w.input_ids[1:-1] for w in windows] == [
        whole.input_ids[1 + start : 1 + min(start + size, total)] for start in starts
    ]

    def context(number, position):
        """Tokens seen on the poorer side; the ends of the text do not count against a window."""
        left = position - starts[number] if number else math.inf
        right = min(starts[number] + size, total) - 1 - position
        return min(left, right if number < len(windows) - 1 else math.inf)

    place_of = {word: token - 1 for word, token in whole.first_tokens}
    for number, window in enumerate(windows):
        for word, token in window.first_tokens:
            position = place_of[word]
            assert token - 1 == position - starts[number]
            possible = [n for n, s in enumerate(starts) if s <= position < min(s + size, total)]
            assert context(number, position) == max(context(n, position) for n in possible)


@given(text=st.text(alphabet="ab é🎉.東_\n'Z", max_size=40), length=st.integers(5, 12))
@pytest.mark.parametrize("family", ["wordpiece", "bpe", "unigram"])
def test_no_word_is_lost_whatever_the_text(text, length, family, tokenizer_of):
    words = split_words(text)
    [windows] = encode_windows(tokenizer_of(family), [text], [words], length)
    read = [word for window in windows for word, _ in window.first_tokens]
    assert sorted(read) == list(range(len(words)))


# ---- tag schemes ----


def seqeval_strict(tags, scheme):
    entities = Entities([tags], SEQEVAL[scheme]).entities[0]
    return [(entity.tag, entity.start, entity.end) for entity in entities]


def seqeval_loses_a_legal_entity(tags, scheme):
    """IOB1 in seqeval drops an entity B-x when the next tag is (wrongly) B- of another kind."""
    pairs = itertools.pairwise(tags)
    return scheme == "iob1" and any(a[0] == b[0] == "B" and a != b for a, b in pairs)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_of_every_short_sequence_equal_seqeval_strict(scheme):
    for length in range(5):
        for tags in itertools.product(TAGS[scheme], repeat=length):
            if not seqeval_loses_a_legal_entity(tags, scheme):
                assert spans_of(list(tags), scheme) == seqeval_strict(list(tags), scheme), tags


@given(data=st.data())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_of_random_sequences_equal_seqeval_strict(scheme, data):
    tags = data.draw(st.lists(st.sampled_from(TAGS[scheme]), max_size=20))
    if not seqeval_loses_a_legal_entity(tags, scheme):
        assert spans_of(tags, scheme) == seqeval_strict(tags, scheme)


def write(entities, scheme):
    """[(kind or "", words)] -> (tags, spans), legal by construction."""
    tags, spans, before = [], [], ""
    for kind, size in entities:
        if not kind:
            tags += ["O"] * size
        else:
            spans.append((kind, len(tags), len(tags) + size))
            inside = [f"I-{kind}"] * (size - 1)
            if scheme == "iob1":
                tags += [f"B-{kind}" if before == kind else f"I-{kind}", *inside]
            elif scheme == "iob2":
                tags += [f"B-{kind}", *inside]
            else:
                tags += [f"S-{kind}"] if size == 1 else [f"B-{kind}", *inside[1:], f"E-{kind}"]
        before = kind
    return tags, spans


ENTITIES = st.lists(st.tuples(st.sampled_from(["", "x", "y"]), st.integers(1, 3)), max_size=6)


@given(entities=ENTITIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_written_as_tags_are_read_back(scheme, entities):
    tags, spans = write(entities, scheme)
    assert spans_of(tags, scheme) == spans
    assert seqeval_strict(tags, scheme) == spans


@pytest.mark.parametrize("scheme", SCHEMES)
def test_legal_sequences_are_those_that_lose_no_tag(scheme):
    labels = TAGS[scheme]
    starts, pairs, ends = legal_transitions(labels, scheme)
    for path in itertools.product(range(len(labels)), repeat=3):
        legal = starts[path[0]] and ends[path[-1]] and pairs[path[:-1], path[1:]].all()
        tags = [labels[i] for i in path]
        inside = {w for _, first, last in spans_of(tags, scheme) for w in range(first, last)}
        lossless = inside == {w for w, tag in enumerate(tags) if tag != "O"}
        assert bool(legal) == lossless, tags


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_viterbi_equals_trying_every_sequence(words, scheme):
    labels = TAGS[scheme][:5]
    starts, pairs, ends = legal_transitions(labels, scheme)
    legal = [
        path
        for path in itertools.product(range(5), repeat=words)
        if starts[path[0]] and ends[path[-1]] and pairs[path[:-1], path[1:]].all()
    ]
    rows = torch.arange(words)
    for _ in range(20):
        scores = torch.randn(words, 5).log_softmax(-1)
        best = max(legal, key=lambda path: scores[rows, list(path)].sum().item())  # noqa: B023
        assert viterbi(scores, starts, pairs, ends) == list(best)


@given(seed=st.integers(0, 10_000), words=st.integers(1, 12))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoded_tags_are_always_legal(scheme, seed, words):
    labels = TAGS[scheme]
    scores = torch.randn(words, len(labels), generator=torch.Generator().manual_seed(seed)) * 3
    tags = decode_tags(scores.log_softmax(-1), labels, scheme)
    starts, pairs, ends = legal_transitions(labels, scheme)
    ids = [labels.index(tag) for tag in tags]
    assert len(ids) == words
    assert starts[ids[0]]
    assert ends[ids[-1]]
    assert pairs[ids[:-1], ids[1:]].all()


def test_without_words_there_are_no_tags():
    empty = torch.zeros(0, 5)
    assert decode_tags(empty, TAGS["iob2"], "iob2") == []
    assert decode_tags(empty, ["NOUN", "VERB", "X", "Y", "Z"], None) == []
    assert spans_of([], "iob2") == []


def test_without_a_scheme_each_word_takes_its_best_label():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    assert decode_tags(scores, ["NOUN", "VERB"], None) == ["NOUN", "VERB"]


def test_an_illegal_best_tag_is_repaired_by_the_scores():
    # I-x cannot follow O: 0.45 * 0.5 (B-x I-x) beats 0.55 * 0.3 (O B-x) and 0.55 * 0.2 (O O)
    scores = torch.tensor([[0.55, 0.45, 0.0], [0.2, 0.3, 0.5]]).log()
    assert decode_tags(scores, ["O", "B-x", "I-x"], "iob2") == ["B-x", "I-x"]


@given(entities=ENTITIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_are_written_as_the_tags_that_they_were_read_from(scheme, entities):
    tags, spans = write(entities, scheme)
    words = joined_words(["w"] * len(tags))
    characters = [(kind, words[a][0], words[b - 1][1]) for kind, a, b in spans]
    assert gold_entities("w " * len(tags), words, tags, scheme) == characters
    assert write_tags(characters, words, scheme) == tags


PARTS = {  # text, given words, their tags -> tags of the words of the pipeline
    "a word with signs": (
        "ask vera@x.org now", ["ask", "vera@x.org", "now"],
        {"iob2": ["O", "B-m", "O"], "iob1": ["O", "I-m", "O"], "bioes": ["O", "S-m", "O"]},
        {"iob2": "O B I I I I O", "iob1": "O I I I I I O", "bioes": "O B I I I E O"},
    ),
    "two neighbours": (
        "a-b c-d", ["a-b", "c-d"],
        {"iob2": ["B-m", "B-m"], "iob1": ["I-m", "B-m"], "bioes": ["S-m", "S-m"]},
        {"iob2": "B I I B I I", "iob1": "I I I B I I", "bioes": "B I E B I E"},
    ),
    "one that goes on": (
        "a-b c-d", ["a-b", "c-d"],
        {"iob2": ["B-m", "I-m"], "iob1": ["I-m", "I-m"], "bioes": ["B-m", "E-m"]},
        {"iob2": "B I I I I I", "iob1": "I I I I I I", "bioes": "B I I I I E"},
    ),
    "halves of a word": (
        "10km off", ["10", "km", "off"],
        {"iob2": ["B-m", "I-m", "O"], "iob1": ["I-m", "I-m", "O"], "bioes": ["B-m", "E-m", "O"]},
        {"iob2": "B O", "iob1": "I O", "bioes": "S O"},
    ),
    "a word without a label": (
        "a b c", ["a", "b", "c"],
        {"iob2": ["B-m", None, "O"], "iob1": ["I-m", None, "O"], "bioes": ["S-m", None, "O"]},
        {"iob2": "B - O", "iob1": "I - O", "bioes": "S - O"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", PARTS)
def test_parts_of_words_have_the_tags_that_are_read_as_the_entity(case, scheme):
    text, given_words, tags, expected = PARTS[case]
    words, units = locate_words(text, given_words), [[word] for word in split_words(text)]
    tags_of_units = unit_tags(text, units, words, tags[scheme], scheme)
    assert " ".join("-" if tag is None else tag[0] for tag in tags_of_units) == expected[scheme]
    if "-" not in expected[scheme]:
        spans = [(unit[0][0], unit[-1][1]) for unit in units]
        assert gold_entities(text, spans, tags_of_units, scheme) == gold_entities(
            text, words, tags[scheme], scheme
        )


@pytest.mark.parametrize(
    ("tags", "label"),
    [
        ({"£": "O", "5": "B-m"}, "B-m"),
        ({"£": "B-m", "5": "I-m"}, "B-m"),
        ({"£": "B-m", "5": "O"}, "B-m"),
        ({"£": "B-x", "5": "B-m"}, "B-x"),  # both cannot be had; the first is
        ({"£": "O", "5": "O"}, "O"),
        ({"£": None, "5": "O"}, None),
        ({"£": None, "5": "B-m"}, "B-m"),
        ({"£5": "B-m"}, "B-m"),
    ],
)
def test_a_unit_of_several_words_is_learned_as_the_entity_that_begins_in_it(tags, label):
    words = locate_words("pay £5 now", ["pay", *tags, "now"])
    units = [[(0, 3)], [(4, 5), (5, 6)], [(7, 10)]]
    tags_of_units = unit_tags("pay £5 now", units, words, ["O", *tags.values(), "O"], "iob2")
    assert tags_of_units == ["O", label, "O"]


@pytest.mark.parametrize(
    ("tags", "label"),
    [
        ({"£": "SYM", "5": "NUM"}, "NUM"),
        ({"£5": "NUM"}, "NUM"),
        ({"£": None, "5": "NUM"}, "NUM"),
        ({"£": "SYM", "5": None}, None),
    ],
)
def test_without_a_scheme_a_unit_has_the_tag_of_its_letters_and_digits(tags, label):
    words = locate_words("£5", list(tags))
    assert unit_tags("£5", [[(0, 1), (1, 2)]], words, list(tags.values()), None) == [label]


# ---- what a user reads ----


@pytest.mark.parametrize(
    ("text", "unit", "signs", "word"),
    [
        ("£5", [(0, 1), (1, 2)], None, "£5"),
        ("£5", [(0, 1), (1, 2)], [], "5"),
        ("£5", [(0, 1), (1, 2)], ["£"], "£5"),
        ("5%", [(0, 1), (1, 2)], [], "5"),
        ("(5)", [(0, 1), (1, 2), (2, 3)], ["."], "5"),
        (".)", [(0, 1), (1, 2)], ["."], "."),
        (".)", [(0, 1), (1, 2)], [], ".)"),  # an entity, if the model says so
        ("£", [(0, 1)], [], "£"),  # a word that is read alone is what it is
    ],
)
def test_signs_that_no_entity_ends_with_are_left_out_of_shared_tokens(text, unit, signs, word):
    scores = torch.tensor([[0.1, 0.9]]).log()
    [entity] = decode_entities(text, [unit], scores, ["O", "B-m"], "iob2", signs)
    assert (entity["word"], text[entity["start"] : entity["end"]]) == (word, word)


def test_answers_are_given_back_to_the_words_of_the_data():
    text = "we don't go"
    words = locate_words(text, ["we", "do", "n't", "go"])
    spans = split_words(text)  # we don ' t go
    names = ["PRON", "VERB", "PART", "PART", "ADV"]
    scores = torch.full((5, 4), -9.0)
    labels = ["PRON", "VERB", "PART", "ADV"]
    for unit, name in enumerate(names):
        scores[unit, labels.index(name)] = 0.0
    entities = decode_entities(text, [[span] for span in spans], scores, labels, None)
    assert [entity["word"] for entity in entities] == ["we", "don", "'", "t", "go"]
    assert word_tags(entities, words, None) == ["PRON", "VERB", "PART", "ADV"]
    assert word_tags([], words, None) == [None] * 4


def test_entities_have_exact_characters_and_mean_scores():
    text = "fly  to São  Paulo 🎉 now"
    words = split_words(text)
    labels = ["O", "B-city", "I-city"]
    rows = [[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
    scores = torch.tensor([*rows, [0.9, 0.05, 0.05], [0.3, 0.5, 0.2]]).log()
    assert decode_entities(text, [[word] for word in words], scores, labels, "iob2") == [
        {
            "entity_group": "city",
            "score": pytest.approx(0.7),
            "word": "São  Paulo",
            "start": 8,
            "end": 18,
        },
        {
            "entity_group": "city",
            "score": pytest.approx(0.5),
            "word": "now",
            "start": 21,
            "end": 24,
        },
    ]
    assert text[8:18] == "São  Paulo"


def test_without_a_scheme_every_word_is_given():
    scores = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    entities = decode_entities("we go", [[(0, 2)], [(3, 5)]], scores, ["PRON", "VERB"], None)
    assert entities == [
        {"entity_group": "PRON", "score": pytest.approx(0.75), "word": "we", "start": 0, "end": 2},
        {"entity_group": "VERB", "score": pytest.approx(0.75), "word": "go", "start": 3, "end": 5},
    ]


def test_best_label_or_the_top_k():
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    a, b, c = (
        {"label": n, "score": pytest.approx(p)} for n, p in zip("abc", (0.1, 0.6, 0.3), strict=True)
    )
    options = {"multi_label": False, "threshold": 0.5}
    assert decode_classes(logits, [*"abc"], top_k=1, **options) == b
    assert decode_classes(logits, [*"abc"], top_k=2, **options) == [b, c]
    assert decode_classes(logits, [*"abc"], top_k=9, **options) == [b, c, a]


def test_multi_label_gives_what_reaches_the_threshold():
    logits = torch.tensor([0.5, 0.9, 0.2]).logit()
    options = {"multi_label": True, "top_k": 1}
    answers = decode_classes(logits, [*"abc"], threshold=0.5, **options)
    assert answers == [
        {"label": "b", "score": pytest.approx(0.9)}, {"label": "a", "score": pytest.approx(0.5)}
    ]  # fmt: skip
    assert decode_classes(logits, [*"abc"], threshold=0.95, **options) == []
