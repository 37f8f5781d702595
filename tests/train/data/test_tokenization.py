"""Rows to tokens: labels stand at the right tokens, and no word of a long row is lost."""

import math

import pytest
import torch
from polyhead.train.data.dataset import MultiTaskDataset
from polyhead.train.data.tokenization import tokenize
from polyhead.train.kinds.tokens import first_tokens_of
from tokenizers import pre_tokenizers
from train_helpers import (
    messages,
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_rows,
)

SEQUENCE, TOKENS = "sequence_classification", "token_classification"
WORDS = ["Anna", "Smith", "works", "for", "ACME", "in", "Zürich", "7", "unquestionably", "🎉"]
TAGS = ["B-per", "I-per", "O", "O", "B-org", "O", "B-loc", "O", "O", "O"]


@pytest.fixture(params=["wordpiece", "bpe"])
def tokenizer(request, tokenizer_of):
    """A tokenizer that reads a word the same way at the start of a text and inside it."""
    found = tokenizer_of(request.param)
    usual = found.backend_tokenizer.pre_tokenizer
    if request.param == "bpe":
        found.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    yield found
    found.backend_tokenizer.pre_tokenizer = usual


def first_tokens(encoding):
    """Per token the word that starts there, or -1; a token that is a bare space starts none.

    But the space that the tokenizer itself puts before the text does.
    """
    reads, seen = [], {None}
    for token, word in zip(encoding.tokens(), encoding.word_ids(), strict=True):
        starts = word not in seen and (token != "Ġ" or word == 0)
        reads.append(word if starts else -1)
        if starts:
            seen.add(word)
    return reads


def source_of(tmp_path, rows, **tasks):
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    made = {name: task(**{"data_files": path, **options}) for name, options in tasks.items()}
    (source,) = sources_of(**made)
    return source


SLOTS = {"head": TOKENS, "tokens": "tokens", "label": "tags"}
INTENT = {"head": SEQUENCE, "text": "text", "label": "intent"}


class TestWords:
    def test_labels_stand_where_word_ids_of_split_words_change(self, tmp_path, tokenizer):
        rows = [
            {"tokens": WORDS, "tags": TAGS},
            {"tokens": ["Anna", *WORDS[::-1]], "tags": ["O"] * 11},
        ]
        source = source_of(tmp_path, rows, slots=SLOTS)
        found = tokenize(source, "train", tokenizer)[:]
        labels = source.configs["slots"].labels
        for number, row in enumerate(rows):
            expected = tokenizer(row["tokens"], is_split_into_words=True)
            reads = first_tokens(expected)
            assert found["input_ids"][number] == [expected["input_ids"]]
            assert found["words"][number] == reads
            assert found["labels_slots"][number] == [
                -100 if word < 0 else labels.index(row["tags"][word]) for word in reads
            ]

    def test_a_word_with_signs_is_read_and_labelled_at_each_part(self, tmp_path, tokenizer):
        row = {"tokens": ["in", "New-York", "."], "tags": ["O", "B-loc", "O"]}
        source = source_of(tmp_path, [row], slots=SLOTS)
        found = tokenize(source, "train", tokenizer)[0]
        expected = tokenizer(row["tokens"], is_split_into_words=True)
        assert found["input_ids"] == [expected["input_ids"]]
        assert [word for word in found["words"] if word >= 0] == [0, 1, 2, 3, 4]
        names = source.configs["slots"].labels
        text = "in New-York ."
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        labelled = {
            text[start:end].strip()[:1]: names[label]
            for (start, end), label in zip(offsets, found["labels_slots"], strict=True)
            if label >= 0
        }
        assert labelled == {"i": "O", "N": "B-loc", "-": "I-loc", "Y": "I-loc", ".": "O"}

    def test_words_are_found_in_the_text_beside_them(self, tmp_path, tokenizer):
        row = {"text": "  Anna,Smith  (Zürich)!", "intent": "a"}
        row |= {"tokens": ["Anna", ",", "Smith", "(", "Zürich", ")", "!"]}
        row |= {"tags": ["B-per", "O", "B-per", "O", "B-loc", "O", "O"]}
        rows = [row, {"text": "x", "intent": "b", "tokens": ["x"], "tags": ["O"]}]
        source = source_of(tmp_path, rows, slots=SLOTS, intent=INTENT)
        found = tokenize(source, "train", tokenizer)[0]
        encoded = tokenizer(row["text"], return_offsets_mapping=True)
        assert found["input_ids"] == [encoded["input_ids"]]
        starts = {}
        for place, word in enumerate(found["words"]):
            if word >= 0:
                start, end = encoded["offset_mapping"][place]
                starts[word] = row["text"][start:end].strip()
        assert list(starts) == list(range(7))
        assert all(row["tokens"][word].startswith(piece) for word, piece in starts.items())
        assert found["labels_intent"] == 0

    def test_a_word_without_a_token_is_read_nowhere(self, tmp_path, tokenizer_of):
        row = {"tokens": ["in", "\u200b", "Zürich"], "tags": ["O", "O", "B-loc"]}
        source = source_of(tmp_path, [row], slots=SLOTS)
        found = tokenize(source, "train", tokenizer_of("wordpiece"))[0]
        assert [word for word in found["words"] if word >= 0] == [0, 2]

    def test_a_row_without_words_has_special_tokens_only(self, tmp_path, tokenizer):
        rows = [{"tokens": WORDS, "tags": TAGS}, {"tokens": [], "tags": []}]
        source = source_of(tmp_path, rows, slots=SLOTS)
        found = tokenize(source, "train", tokenizer)[1]
        assert found["input_ids"] == [tokenizer("")["input_ids"]]
        assert found["words"] == [-1] * len(found["input_ids"][0])

    def test_an_unknown_tag_is_no_label(self, tmp_path, tokenizer):
        source = source_of(tmp_path, [{"tokens": WORDS, "tags": TAGS}], slots=SLOTS)
        config = source.configs["slots"]
        config.labels = [label for label in config.labels if label != "B-loc"]
        found = tokenize(source, "train", tokenizer)[0]
        labelled = {
            word
            for word, label in zip(found["words"], found["labels_slots"], strict=True)
            if word >= 0 and label == -100
        }
        assert labelled == {6}


class TestSharedTokens:
    """Of words that share a sub-token, each is read there; the token has one label."""

    ROWS = (("bioes", ["S-m"]), ("iob2", ["B-m"]), ("iob1", ["I-m"]))

    @pytest.mark.parametrize(("scheme", "tags"), ROWS)
    def test_a_word_keeps_the_tag_of_an_entity_of_its_own(
        self, scheme, tags, tmp_path, tokenizer_of
    ):
        row = {"tokens": ["in", "go🎉now", "on"], "tags": ["O", *tags, "O"]}  # one unknown token
        source = source_of(tmp_path, [row], slots={**SLOTS, "scheme": scheme})
        found = tokenize(source, "train", tokenizer_of("wordpiece"))[0]
        names = source.configs["slots"].labels
        assert [names[i] for i in found["labels_slots"] if i >= 0] == ["O", *tags, "O"]
        assert [(w, n) for w, n in zip(found["words"], found["word_counts"], strict=True) if n] == [
            (0, 1), (1, 3), (4, 1)
        ]  # fmt: skip
        assert first_tokens_of(found["words"], found["word_counts"]) == [
            (0, 1), (1, 2), (2, 2), (3, 2), (4, 3)
        ]  # fmt: skip

    def test_an_entity_is_not_lost_beside_a_word_of_none(self, tmp_path, tokenizer_of):
        row = {"text": "in go🎉now on", "tokens": ["in", "go", "🎉", "now", "on"]}
        row["tags"] = ["O", "O", "O", "B-m", "O"]
        source = source_of(tmp_path, [row], slots={**SLOTS, "text": "text"})
        found = tokenize(source, "train", tokenizer_of("wordpiece"))[0]
        names = source.configs["slots"].labels
        assert [names[i] for i in found["labels_slots"] if i >= 0] == ["O", "B-m", "O"]


class TestWindows:
    @pytest.fixture
    def long_row(self):
        words = [*WORDS, "in", "Paris"] * 9
        tags = [*TAGS, "O", "B-loc"] * 9
        return {"text": " ".join(words), "tokens": words, "tags": tags, "intent": "a"}

    @pytest.fixture
    def found(self, tmp_path, tokenizer, long_row):
        rows = [{**messages(1)[0], "intent": "b"}, long_row, {**messages(2)[1], "intent": "b"}]
        rows = [{key: row[key] for key in long_row} for row in rows]
        source = source_of(tmp_path, rows, slots=SLOTS, intent=INTENT)
        return source, tokenize(source, "train", tokenizer)

    def test_windows_are_numbered_within_their_row(self, found):
        rows = found[1]
        numbers = list(zip(rows["row"], rows["window"], strict=True))
        count = len(numbers) - 2
        assert count > 2
        assert numbers == [(0, 0), *[(1, i) for i in range(count)], (2, 0)]

    def test_no_window_is_longer_than_the_model_takes(self, found, tokenizer):
        lengths = [len(texts[0]) for texts in found[1]["input_ids"]]
        assert max(lengths) == tokenizer.model_max_length == 64

    def test_every_word_is_scored_in_exactly_one_window(self, found, long_row):
        rows = found[1].filter(lambda row: row["row"] == 1)
        read = [word for window in rows["words"] for word in window if word >= 0]
        assert sorted(read) == list(range(len(long_row["tokens"])))

    def test_every_word_carries_its_own_tag(self, found, long_row):
        source, rows = found
        names = source.configs["slots"].labels
        rows = rows.filter(lambda row: row["row"] == 1)
        for words, labels in zip(rows["words"], rows["labels_slots"], strict=True):
            for word, label in zip(words, labels, strict=True):
                if word >= 0:
                    assert names[label] == long_row["tags"][word]

    def test_other_heads_read_one_window(self, tmp_path, tokenizer, long_row):
        rows = [long_row, {**long_row, "intent": "b"}]
        source = source_of(tmp_path, rows, intent=INTENT)
        found = tokenize(source, "train", tokenizer)
        expected = tokenizer(long_row["text"], truncation=True, max_length=64)["input_ids"]
        assert found["input_ids"] == [[expected], [expected]]


class TestLabels:
    """One label per row; what is not known is missing, not wrong."""

    def labels(self, tmp_path, tokenizer, values, *, known=None, **options):
        lines = [{"text": "some text", "label": value} for value in values]
        options = {"head": SEQUENCE, "text": "text", "label": "label", **options}
        source = source_of(tmp_path, lines, one=options)
        if known is not None:
            source.configs["one"].labels = known
        return tokenize(source, "train", tokenizer)["labels_one"][:]

    def test_classes_are_ids(self, tmp_path, tokenizer):
        assert self.labels(tmp_path, tokenizer, ["b", "a", None, "b"]) == [1, 0, -100, 1]

    def test_an_unknown_class_is_missing(self, tmp_path, tokenizer):
        assert self.labels(tmp_path, tokenizer, ["a", "b", "c"], known=["a", "c"]) == [0, -100, 1]

    def test_several_labels_are_zeros_and_ones(self, tmp_path, tokenizer):
        values = [["b", "a"], [], ["c"], None]
        found = self.labels(tmp_path, tokenizer, values, problem_type="multi_label_classification")
        assert found[:3] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
        assert [math.isnan(value) for value in found[3]] == [True] * 3

    def test_numbers_stay_and_missing_ones_are_nan(self, tmp_path, tokenizer):
        found = self.labels(tmp_path, tokenizer, [0.5, -2, None], problem_type="regression")
        assert found[:2] == [0.5, -2]
        assert math.isnan(found[2])

    def test_label_range_is_scaled_to_one(self, tmp_path, tokenizer):
        options = {"problem_type": "regression", "label_range": (1.0, 5.0)}
        assert self.labels(tmp_path, tokenizer, [1, 2, 5], **options) == [0, 0.25, 1]

    def test_a_masked_lm_has_no_labels_yet(self, tmp_path, tokenizer):
        options = {"head": "masked_lm", "text": "text"}
        source = source_of(tmp_path, [{"text": "a"}], one=options)
        found = tokenize(source, "train", tokenizer).column_names
        assert sorted(set(found) - {"token_type_ids"}) == ["cut", "input_ids", "row", "window"]


class TestGroups:
    ROWS = [
        {"a": "book it", "b": "cancel it now", "c": "play", "same": "no", "score": 1},
        {"a": "play", "b": "play " * 80, "c": "go", "same": "yes", "score": 4},
    ]

    def test_an_embedding_task_reads_its_texts_one_by_one(self, tmp_path, tokenizer):
        options = {"head": "embedding", "text": "a", "text_pair": "b", "label": "score"}
        source = source_of(tmp_path, self.ROWS, near={**options, "label_range": (0.0, 4.0)})
        found = tokenize(source, "train", tokenizer)
        for number, row in enumerate(self.ROWS):
            texts = [tokenizer(row[key], truncation=True, max_length=64) for key in "ab"]
            assert found[number]["input_ids"] == [text["input_ids"] for text in texts]
        assert found["labels_near"] == [0.25, 1]

    def test_a_contrastive_task_may_have_hard_negatives(self, tmp_path, tokenizer):
        options = {"head": "embedding", "loss": "contrastive", "text": "a", "text_pair": "b"}
        source = source_of(tmp_path, self.ROWS, near={**options, "negative": "c"})
        found = tokenize(source, "train", tokenizer)
        assert found[0]["input_ids"] == [tokenizer(self.ROWS[0][k])["input_ids"] for k in "abc"]
        assert found["labels_near"] == [1, 1]

    def test_a_pair_task_reads_both_texts_in_one_sequence(self, tmp_path, tokenizer):
        options = {"head": SEQUENCE, "text": "a", "text_pair": "b", "label": "same"}
        source = source_of(tmp_path, self.ROWS, same=options)
        found = tokenize(source, "train", tokenizer)
        for number, row in enumerate(self.ROWS):
            pair = tokenizer(row["a"], row["b"], truncation=True, max_length=64)
            assert found[number]["input_ids"] == [pair["input_ids"]]
            if "token_type_ids" in pair:
                assert found[number]["token_type_ids"] == [pair["token_type_ids"]]
        assert found["labels_same"] == [0, 1]
        assert source.configs["same"].pair

    def test_segments_are_kept_where_the_encoder_has_them(self, tmp_path, tokenizer):
        options = {"head": "embedding", "text": "a", "text_pair": "b", "label": "score"}
        source = source_of(tmp_path, self.ROWS, near=options)
        found = tokenize(source, "train", tokenizer)
        wanted = "token_type_ids" in tokenizer.model_input_names
        assert ("token_type_ids" in found.column_names) == wanted


def test_longest_first_sorts_and_keeps_rows_of_one_length_in_order(tmp_path, tokenizer_of):
    texts = ["now", "now now now", "play", "now now", "now now now now"]
    lines = [{"text": text, "intent": "ab"[i % 2]} for i, text in enumerate(texts)]
    source = source_of(tmp_path, lines, intent=INTENT)
    found = tokenize(source, "train", tokenizer_of("bpe"), longest_first=True)
    assert found["row"] == [4, 1, 3, 0, 2]
    assert found["labels_intent"] == [0, 1, 1, 0, 0]


class TestDataset:
    @pytest.fixture
    def data(self, tmp_path, tokenizer_of):
        one = source_of(tmp_path / "one", messages(4), intent=INTENT)
        two = source_of(tmp_path / "two", messages(3, 4), slots=SLOTS)
        tokenizer = tokenizer_of("wordpiece")
        return MultiTaskDataset({s.name: tokenize(s, "train", tokenizer) for s in (one, two)})

    def test_sources_stand_one_after_the_other(self, data):
        assert data.ranges == {"intent": range(4), "slots": range(4, 7)}
        assert len(data) == 7

    def test_rows_come_in_the_order_asked_for(self, data):
        numbers = [5, 0, 6, 0, 3]
        found = data.__getitems__(numbers)
        assert [row["source"] for row in found] == ["slots", "intent", "slots", "intent", "intent"]
        assert [row["row"] for row in found] == [1, 0, 2, 0, 3]
        for number, row in zip(numbers, found, strict=True):
            assert row == data[number]

    def test_a_row_is_that_of_its_source(self, data):
        assert data[5] == {"source": "slots", **data.parts["slots"][1]}

    def test_lengths_are_those_of_the_longest_texts(self, data):
        rows = [data[number]["input_ids"] for number in range(7)]
        assert data.lengths == [max(map(len, texts)) for texts in rows]

    def test_a_torch_loader_reads_it(self, data):
        loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=list)
        sizes = [[row["source"] for row in batch] for batch in loader]
        assert sizes == [["intent"] * 4, ["slots"] * 3]
