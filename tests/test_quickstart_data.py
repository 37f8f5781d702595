"""The quickstart data: well-formed, large enough, and no text of one split leaks into another."""

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from polyhead.modeling.tags import spans_of
from polyhead.modeling.windows import locate_words, split_words
from scipy.sparse import csr_matrix

FOLDER = Path(__file__).parents[1] / "configs" / "quickstart"
SPLITS = ("train", "validation", "test")
STOPWORDS = frozenset(
    re.findall(
        "[a-z]+",
        """a an the and or but if so to of in on at for from with by as it its is are was were be
        been am i im ive id me my we our us you your u he she they them this that these those there
        here do does did have has had can could would will shall should not no just please pls hi
        hello hey thanks thank dear what when where which who how why any some""",
    )
)


def read(name: str) -> list[dict]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def messages() -> dict[str, list[dict]]:
    return {split: read(split) for split in SPLITS}


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[dict]]:
    return {split: read(f"pairs_{split}") for split in SPLITS}


def kinds(rows: list[dict]) -> set[str]:
    return {tag[2:] for row in rows for tag in row["tags"] if tag != "O"}


# ---- near-duplicates ----


def normalise(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", re.sub("['’]", "", text.lower())))


def four_grams(text: str) -> set[str]:
    text = normalise(text)
    return {text[i : i + 4] for i in range(max(1, len(text) - 3))}


def content_words(text: str) -> frozenset[str]:
    return frozenset(normalise(text).split()) - STOPWORDS


def similarity(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First text, second text, Jaccard index of their 4-grams; pairs that share none left out."""
    grams = [four_grams(text) for text in texts]
    number = {gram: n for n, gram in enumerate(sorted(set(chain(*grams))))}
    columns = [number[gram] for of_text in grams for gram in of_text]
    sizes = np.array([len(of_text) for of_text in grams])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    shape = (len(texts), len(number))
    table = csr_matrix((np.ones(len(columns), dtype=np.int32), columns, ends), shape=shape)
    shared = (table @ table.T).tocoo()
    union = sizes[shared.row] + sizes[shared.col] - shared.data
    return shared.row, shared.col, shared.data / union


def near_duplicates(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    """Pairs across two lists: Jaccard above 0.4, or the same content words."""
    rows, columns, scores = similarity(first + second)
    across = (rows < len(first)) & (columns >= len(first)) & (scores > 0.4)
    alike = {
        (first[r], second[c - len(first)])
        for r, c in zip(rows[across], columns[across], strict=True)
    }
    by_words: dict[frozenset[str], list[str]] = {}
    for text in first:
        by_words.setdefault(content_words(text), []).append(text)
    by_words.pop(frozenset(), None)
    for text in second:
        alike |= {(other, text) for other in by_words.get(content_words(text), [])}
    return sorted(alike)


def test_similarity_is_the_jaccard_index():
    rows, columns, scores = similarity(["abcde", "ABC-dx", "A'bcdx", "wwww"])
    by_pair = {(r, c): s for r, c, s in zip(rows.tolist(), columns.tolist(), scores, strict=True)}
    # {abcd, bcde}, {"abc ", "bc d", "c dx"}, {abcd, bcdx}, {wwww}
    same = {(n, n): 1.0 for n in range(4)}
    assert by_pair == same | {(0, 2): 1 / 3, (2, 0): 1 / 3}


def test_near_duplicates_are_found_by_letters_and_by_words():
    train = ["my smart scale will not sync my weight", "Refund, when?", "hello there"]
    test = ["the smart scale won't sync weight", "When is the REFUND", "hi there", "lamp"]
    assert near_duplicates(train, test) == [(train[1], test[1]), (train[0], test[0])]


def test_no_near_duplicate_crosses_splits(messages, pairs):
    texts = {
        split: [row["text"] for row in messages[split]]
        + [row[key] for row in pairs[split] for key in ("text1", "text2")]
        for split in SPLITS
    }
    assert near_duplicates(texts["train"], texts["validation"] + texts["test"]) == []
    assert near_duplicates(texts["validation"], texts["test"]) == []


# ---- size and labels ----


def test_there_is_enough_of_it(messages, pairs):
    everything = list(chain(*messages.values()))
    assert len({row["text"].lower() for row in everything}) == len(everything) >= 1500
    assert len({row["intent"] for row in everything}) >= 10
    assert len(kinds(everything)) >= 6
    assert len({(p["text1"], p["text2"]) for p in chain(*pairs.values())}) >= 400


def test_every_split_has_every_intent_equally_often(messages):
    for split, each in zip(SPLITS, (98, 14, 28), strict=True):
        assert set(Counter(row["intent"] for row in messages[split]).values()) == {each}


def test_every_label_is_in_train(messages):
    labels = {
        split: {row["intent"] for row in rows} | {tag for row in rows for tag in row["tags"]}
        for split, rows in messages.items()
    }
    assert labels["validation"] | labels["test"] <= labels["train"]


# ---- rows ----


@pytest.mark.parametrize("split", SPLITS)
def test_fields_and_ranges(messages, pairs, split):
    for row in messages[split]:
        assert list(row) == ["text", "intent", "tokens", "tags", "urgency"]
        assert row["text"] == row["text"].strip() != ""
        assert 0 <= row["urgency"] <= 1
        assert row["urgency"] * 20 == pytest.approx(round(row["urgency"] * 20))
    for row in pairs[split]:
        assert list(row) == ["text1", "text2", "score"]
        assert 0 <= row["score"] <= 1
        assert row["text1"] != row["text2"]


@pytest.mark.parametrize("split", SPLITS)
def test_tokens_are_the_words_of_the_text(messages, split):
    for row in messages[split]:
        assert locate_words(row["text"], row["tokens"]) == split_words(row["text"])


@pytest.mark.parametrize("split", SPLITS)
def test_tags_are_valid_iob2_and_as_many_as_tokens(messages, split):
    for row in messages[split]:
        assert len(row["tags"]) == len(row["tokens"])
        covered = sum(last - first for _, first, last in spans_of(row["tags"], "iob2"))
        assert covered == sum(tag != "O" for tag in row["tags"])
        assert all(tag == "O" or re.fullmatch("[BI]-[a-z_]+", tag) for tag in row["tags"])


def test_entities_hold_what_their_kind_says(messages):
    texts_of: dict[str, list[str]] = {}
    for row in chain(*messages.values()):
        spans = split_words(row["text"])
        for kind, first, last in spans_of(row["tags"], "iob2"):
            entity = row["text"][spans[first][0] : spans[last - 1][1]]
            texts_of.setdefault(kind, []).append(entity)
    plans = {text.lower().removesuffix(" plan") for text in texts_of["plan"]}
    assert plans == {"basic", "plus", "family", "studio", "student"}
    assert all(re.fullmatch(r"(#|FL-|fl )?\d{5}", text) for text in texts_of["order_id"])
    assert all(re.search(r"\d|thirty", text) for text in texts_of["amount"])
    assert not [t for t in texts_of["date"] if re.match("(on|at|in|since|until) ", t, re.I)]
