"""What the tabs return, against the pipeline's own answers."""

import html
import re

import numpy as np
import pytest
from conftest import CORPUS
from polyhead.train.page.answers import read, tasks_that_read
from polyhead.train.page.looking import compare, draw_map
from polyhead.train.page.markup import entities
from serving_fixtures import (  # noqa: F401
    LABELS,
    STARS,
    make_ordered,
    make_ordered_pipe,
    make_pipe,
    make_served,
)

LONG = " ".join(CORPUS)  # several windows
ROW = re.compile(
    r'<tr class="(chosen|other)">.*?<th scope="row">(.*?)</th>.*?<td class="number">(\d\.\d+)'
)
MARK = re.compile(r'<mark class="hue\d" title="(.*?)">(.*?)<small>(.*?)</small></mark>', re.DOTALL)
CELL = re.compile(r">(-?\d\.\d\d)</td>")


def rows_of(page: str) -> list[tuple[str, str, str]]:
    return [(kind, html.unescape(label), value) for kind, label, value in ROW.findall(page)]


def ranked(answers, chosen):
    return [
        ("chosen" if a["label"] in chosen else "other", a["label"], f"{a['score']:.3f}")
        for a in answers
    ]


def test_tasks_by_what_they_read(pipe):
    assert tasks_that_read(pipe, "text") == ["intent", "topics", "urgency", "slots", "words"]
    assert tasks_that_read(pipe, "text", vectors=True) == ["near"]
    assert tasks_that_read(pipe, "pair") == ["same"]
    assert tasks_that_read(pipe, "choices") == []


def test_bars_of_all_labels_and_the_answer(pipe):
    answers = pipe(CORPUS[0], ["intent"], top_k=None)["intent"]
    best = pipe(CORPUS[0], ["intent"])["intent"]["label"]
    page = read(pipe, CORPUS[0], ["intent"])
    assert rows_of(page) == ranked(answers, {best})
    assert "threshold" not in page


def test_classes_in_order_stand_in_their_order(ordered_pipe):
    for text in CORPUS:
        answers = ordered_pipe(text, ["stars"], top_k=10)["stars"]
        middle = ordered_pipe(text, ["stars"])["stars"]
        shown = {answer["label"]: answer for answer in [*answers, middle]}
        expected = [shown[label] for label in STARS if label in shown]
        page = read(ordered_pipe, text, ["stars"])
        assert rows_of(page) == ranked(expected, {middle["label"]})
        assert "ordinal; the 10 best of 12" in page


def test_a_tree_stands_below_its_nodes(ordered_pipe):
    answers = ordered_pipe(CORPUS[0], ["reason"], top_k=None)["reason"]
    page = read(ordered_pipe, CORPUS[0], ["reason"])
    rows = rows_of(page)
    nodes = {node["label"]: node for leaf in answers for node in [*leaf["path"], leaf]}
    assert rows == ranked(nodes.values(), {answers[0]["label"]})
    labels = [label for _, label, _ in rows]
    assert sorted(labels) == sorted(
        ["card", "card/lost", "card/stolen", "card/stolen/abroad", "card/stolen/here", "loan"]
    )
    assert labels.index("card") < labels.index("card/stolen") < labels.index("card/stolen/here")
    assert "<small>hierarchy</small>" in page


def test_labels_from_their_threshold_on(pipe):
    answers = pipe(CORPUS[0], ["topics"], top_k=None)["topics"]
    chosen = {answer["label"] for answer in pipe(CORPUS[0], ["topics"])["topics"]}
    page = read(pipe, CORPUS[0], ["topics"])
    assert rows_of(page) == ranked(answers, chosen)
    assert page.count('style="left:40.0%" title="threshold 0.4"') == len(LABELS)


def test_an_answer_below_its_score_is_not_chosen(pipe, monkeypatch):
    monkeypatch.setattr(pipe.model.config.tasks["intent"], "abstain", 2.0)
    page = read(pipe, CORPUS[0], ["intent"])
    answers = pipe(CORPUS[0], ["intent"], top_k=None)["intent"]
    assert rows_of(page) == ranked(answers, set())
    assert page.count('style="left:100.0%" title="threshold 2"') == len(answers)


def test_numbers_and_masks(pipe):
    page = read(pipe, "a [MASK] b [MASK]", ["urgency", "words"])
    answer = pipe("a [MASK] b [MASK]", ["urgency", "words"], top_k=10)
    assert f'<p class="value">{answer["urgency"]["score"]:.3f}</p>' in page
    one, two = answer["words"]
    best = [ranked(mask, {mask[0]["label"]}) for mask in (one, two)]
    assert rows_of(page) == [*best[0], *best[1]]
    assert "no mask" in read(pipe, "a b", ["words"])


def test_entities_stand_in_their_text(pipe):
    for text in (*CORPUS, LONG, '<b>"Paris" & ${1}</b>\nBerlin שלום 🙂'):
        answers = pipe(text, ["slots"])["slots"]
        page = read(pipe, text, ["slots"])
        (shown,) = re.findall(r'<p class="text">(.*?)</p>', page, re.DOTALL)
        marks = [tuple(map(html.unescape, mark)) for mark in MARK.findall(shown)]
        assert marks == [(f"{a['score']:.3f}", a["word"], a["entity_group"]) for a in answers]
        assert html.unescape(re.sub(r"<small>.*?</small>|</?mark.*?>", "", shown)) == text


def test_marks_are_put_where_entities_begin_and_end():
    answers = [
        {"entity_group": "city", "score": 0.5, "word": "New York", "start": 3, "end": 11},
        {"entity_group": "state", "score": 0.25, "word": "York", "start": 7, "end": 11},
        {"entity_group": "<b>", "score": 0.75, "word": "&", "start": 12, "end": 13},
        {"entity_group": "city", "score": 1.0, "word": "Bonn", "start": 14, "end": 18},
    ]
    page = entities("in New York & Bonn.", answers)
    assert page == (
        '<p class="text">in <mark class="hue0" title="0.500">New York<small>city</small></mark> '
        '<mark class="hue1" title="0.750">&amp;<small>&lt;b&gt;</small></mark> '
        '<mark class="hue0" title="1.000">Bonn<small>city</small></mark>.</p>'
    )
    assert "Nothing is marked" in entities("a", [])


def test_windows_of_a_long_text(pipe):
    page = read(pipe, LONG, ["slots", "intent"])
    windows = [entry.window for entry in pipe.read([LONG], ["slots"]).entries]
    spans = [f"{window.span[0]:,}-{window.span[1]:,}" for window in windows]
    assert len(spans) > 2
    assert re.findall(r"<td>(\d+-\d+)</td>", page) == spans
    assert [spans[0][:2], spans[-1].split("-")[1]] == ["0-", str(len(LONG))]
    readers = re.findall(r"<td>([a-z, ]+)</td></tr>", page)
    assert readers == ["slots, intent", *["slots"] * (len(spans) - 1)]
    assert "read by no task" not in page


def test_a_text_that_is_cut_says_so(pipe):
    (entry,) = pipe.read([LONG], ["intent"]).entries
    unread = len(LONG) - entry.window.span[1]
    assert f"The last {unread:,} characters are read by no task." in read(pipe, LONG, ["intent"])
    assert "read by no task" not in read(pipe, CORPUS[0][:20], ["intent"])


def test_pairs(pipe):
    page = read(pipe, ("a b", "c"), ["same"])
    answers = pipe([("a b", "c")], ["same"], top_k=None)[0]["same"]
    assert rows_of(page) == ranked(answers, {answers[0]["label"]})


@pytest.mark.parametrize(
    ("text", "tasks", "says"),
    [
        (" \n", ["intent"], "type a text"),
        (("", ""), ["same"], "type a text"),
        ("a", [], "choose a task"),
        ("a", ["same"], "task 'same' reads pairs"),
        ("a", ["nothing"], "nothing"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(pipe, text, tasks, says):
    with pytest.raises(ValueError, match=says):
        read(pipe, text, tasks)


# ---- many texts ----


def test_the_heat_map_has_the_cosines(pipe):
    page = compare(pipe, "\n".join([*CORPUS[:3], "", "<i>"]), "near")
    matrix = pipe.similarity([*CORPUS[:3], "<i>"], task="near").numpy()
    assert CELL.findall(page) == [f"{value:.2f}" for value in np.clip(matrix, -1, 1).ravel()]
    assert "&lt;i&gt;" in page
    assert "<i>" not in page


@pytest.mark.parametrize("lines", ["", "one", "\n".join("abcdefg" * 6)])
def test_too_few_or_too_many_to_compare(pipe, lines):
    with pytest.raises(ValueError, match="type 2 to 40"):
        compare(pipe, lines, "near")


def test_a_map_of_lines_and_of_files_is_the_same(pipe, tmp_path):
    lines = "\n".join(CORPUS)
    page = draw_map(pipe, lines, None, task="near", color="intent")
    labels = [answer["intent"]["label"] for answer in pipe(CORPUS, ["intent"])]
    counted = dict(re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td></tr>", page))
    assert counted == {label: str(labels.count(label)) for label in set(labels)}
    frame = html.unescape(re.search(r'srcdoc="(.*?)"', page, re.DOTALL)[1])
    assert CORPUS[2] in frame
    assert "default-src 'none'" in frame
    (tmp_path / "t.txt").write_text(lines, encoding="utf-8")
    rows = ["said", *(f'"{text}"' for text in CORPUS)]
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    for name, column in (("t.txt", "text"), ("t.csv", "said")):
        path = str(tmp_path / name)
        assert draw_map(pipe, "", path, column=column, task="near", color="intent") == page


def test_a_map_may_have_one_colour_numbers_or_several_labels(pipe):
    lines = "\n".join(CORPUS)
    assert "<table>" not in draw_map(pipe, lines, None, task="near")
    assert "<table>" not in draw_map(pipe, lines, None, task="near", color="urgency")
    assert "topics" in draw_map(pipe, lines, None, task="near", color="topics")


def test_what_cannot_be_drawn_says_what_to_do(pipe, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("said\nhello\n", encoding="utf-8")
    for lines, file, says in [
        ("", None, "no texts"),
        ("a", str(path), "take one of them out"),
        ("", str(path), "no column 'text'"),
        ("a", None, "1 rows"),
        ("a\n" * 2001, None, "2,001 texts"),
    ]:
        with pytest.raises(ValueError, match=says):
            draw_map(pipe, lines, file, task="near")
