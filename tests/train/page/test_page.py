"""What the page offers, and how it is typed and clicked in a browser."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import CORPUS
from polyhead.train.errors import UserError
from polyhead.train.hub.card import summary_of
from polyhead.train.page.app import create_page, launch
from polyhead.train.page.examples import by_tasks, examples_of, usual_examples
from serving_fixtures import (  # noqa: F401
    TASKS,
    make_ordered,
    make_ordered_pipe,
    make_pipe,
    make_served,
)
from train_helpers import run_cli

EXAMPLES = {
    "intent": [CORPUS[0], "Cancel <b>it</b> & ${1 + 1}"],
    "same": [["one text", "another"]],
    "near": CORPUS[:3],
}
PAIRS = [
    {
        "tasks": ["intent", "slots"],
        "mean": -0.31,
        "compared": 20,
        "negative": 0.9,
        "standard_error": 0.02,
    }
]
RUN = {
    "encoder": None,
    "tasks": {},
    "card": {"language": [], "license": None, "limits": None},
    "recipe": {"tasks": {name: {"examples": texts} for name, texts in EXAMPLES.items()}},
    "steps": 4,
    "epochs": 1.0,
    "seconds": 3,
    "resumed": False,
    "processes": 1,
    "device": "cpu",
    "threads": 1,
    "machine": "Linux",
    "versions": {},
    "gradient_cosines": PAIRS,
}


@pytest.fixture(scope="module", name="trained")
def make_trained(served, tmp_path_factory) -> Path:
    """The served model with scores and a training."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(served, folder)
    (folder / "training.json").write_text(json.dumps([RUN]), encoding="utf-8")
    scores = {"intent": {"accuracy": 0.875, "f1_macro": 0.75}}
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    return folder


def test_examples_are_those_of_the_recipe(pipe, served, trained, tmp_path):
    assert examples_of(pipe, served) == {}
    assert examples_of(pipe, trained) == {**EXAMPLES, "same": [("one text", "another")]}
    later = {**RUN, "recipe": {"tasks": {"intent": {"examples": ["new"]}}}}
    odd = {**RUN, "recipe": {"tasks": {"slots": {"examples": [3, ["a", "b"]]}, "same": 3}}}
    (tmp_path / "training.json").write_text(json.dumps([RUN, later, odd]), encoding="utf-8")
    assert examples_of(pipe, tmp_path)["intent"] == ["new"]
    assert set(examples_of(pipe, tmp_path)) == set(EXAMPLES)
    (tmp_path / "training.json").write_text("[3]", encoding="utf-8")
    with pytest.raises(UserError, match="training.json"):
        create_page(pipe, tmp_path, "m")


def test_tasks_with_the_same_examples_share_a_heading():
    examples = {"one": ["a"], "two": ["b"], "three": ["a"]}
    assert by_tasks(examples) == {"one, three": ["a"], "two": ["b"]}


def test_models_without_get_examples_of_ours(pipe):
    assert "[MASK]" in usual_examples(pipe, "text")[-1]
    (pair,) = usual_examples(pipe, "pair")
    assert len(pipe([pair], ["same"])) == 1


def test_the_summary_of_a_card(served, trained):
    shown = summary_of(TASKS, trained)
    assert "| `intent` | single_label_classification | a text | `one` | accuracy 0.8750" in shown
    assert "Pulling apart: intent and slots." in shown
    assert "| `near` | embedding | a text | - | not measured |" in shown
    assert "was not measured" in summary_of(TASKS, served)


def test_demo_needs_a_model(tmp_path, capsys):
    assert run_cli("demo", tmp_path / "none") == 2
    assert "there is no folder" in capsys.readouterr().err


# ---- in a browser ----


class Reader:
    """Somebody in front of the page; nothing but the page's own address may be asked."""

    def __init__(self, browser, address: str, **options: object) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(20_000)
        self.asked: set[str] = set()
        self.faults: list[str] = []
        self.tab.on("request", lambda request: self.asked.add(request.url))
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on(
            "console", lambda line: self.faults.append(line.text) if line.type == "error" else None
        )
        self.tab.goto(address)
        self.tab.wait_for_selector("textarea")
        self.address = address

    def open(self, name: str):
        """The panel of a tab."""
        self.tab.get_by_role("tab", name=name, exact=True).click()
        return self.tab.get_by_role("tabpanel").filter(visible=True)

    def leave(self) -> None:
        """Check what was asked for, and go."""
        inside = (self.address, "data:", "blob:", "about:srcdoc")
        assert [url for url in self.asked if not url.startswith(inside)] == []
        assert self.faults == []
        self.context.close()


@pytest.fixture(scope="module", name="address")
def make_address(pipe, trained):
    page = create_page(pipe, trained, "a/model")
    launch(page, "127.0.0.1", None)
    yield page.local_url
    page.close(verbose=False)


@pytest.mark.slow
def test_the_page_in_a_browser(pipe, address, tmp_path):
    from browser import open_browser

    with open_browser() as browser:
        reader = Reader(browser, address)
        _reads_texts(reader, pipe)
        _reads_pairs(reader, pipe)
        _compares(reader, pipe)
        _draws(reader, pipe, tmp_path)
        _shows_scores(reader)
        reader.leave()
        _works_without_a_mouse(browser, address, pipe)
        _is_dark_where_the_reader_is(browser, address)


@pytest.mark.slow
def test_classes_in_order_and_trees_in_a_browser(ordered, ordered_pipe):
    from browser import open_browser

    page = create_page(ordered_pipe, ordered, "a/model")
    launch(page, "127.0.0.1", None)
    answers = ordered_pipe(CORPUS[0], top_k=1)
    with open_browser() as browser:
        reader = Reader(browser, page.local_url)
        panel = reader.open("Text")
        panel.get_by_role("textbox", name="Text").fill(CORPUS[0])
        panel.get_by_role("button", name="Read", exact=True).click()
        for name in ("stars", "reason"):
            section = panel.locator(".answer", has=reader.tab.locator("h3", has_text=name))
            section.wait_for()
            labels = section.locator("tr.chosen th").all_inner_texts()
            assert labels == [answers[name]["label"]]
        panel = reader.open("Map")
        for name in ("stars", "reason"):
            panel.get_by_role("textbox", name="Texts 2,000").fill("\n".join(CORPUS))
            panel.get_by_label("Colour by what it says").click()
            panel.get_by_role("option", name=name).click()
            panel.get_by_role("button", name="Draw", exact=True).click()
            counted = panel.locator(".answer", has=reader.tab.locator("h3", has_text=name))
            counted.wait_for()
            labels = {answer[name]["label"] for answer in ordered_pipe(CORPUS, [name])}
            assert set(counted.locator("tr td:first-child").all_inner_texts()) == labels
        reader.leave()
    page.close(verbose=False)


def _reads_texts(reader, pipe):
    panel = reader.open("Text")
    panel.get_by_role("button", name="Cancel <b>it</b> & ${1 + 1}").click()
    box = panel.get_by_role("textbox", name="Text")
    reader.tab.wait_for_function("document.querySelector('textarea').value.length > 5")
    assert box.input_value() == EXAMPLES["intent"][1]
    panel.get_by_role("button", name="Read", exact=True).click()
    label = pipe(EXAMPLES["intent"][1], ["intent"])["intent"]["label"]
    intent = panel.locator(".answer", has=reader.tab.locator("h3", has_text="intent"))
    intent.wait_for()
    assert intent.locator("tr.chosen th").all_inner_texts() == [label]
    slots = panel.locator(".answer", has=reader.tab.locator("h3", has_text="slots"))
    assert EXAMPLES["intent"][1].split("&")[1] in re.sub(r"\n", "", slots.inner_text())
    box.fill(" ".join(CORPUS))
    panel.get_by_role("button", name="Read", exact=True).click()
    windows = panel.locator(".answer", has_text="How the text was read")
    windows.wait_for()
    count = len(pipe.read([" ".join(CORPUS)], ["slots"]).entries)
    assert windows.locator(".ruler").count() == count
    box.fill("")
    panel.get_by_role("button", name="Read", exact=True).click()
    alert = panel.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == "type a text"


def _reads_pairs(reader, pipe):
    panel = reader.open("Pair")
    panel.get_by_role("button", name="one text | another").click()
    first, second = (panel.get_by_role("textbox", name=n) for n in ("First", "Second"))
    reader.tab.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(t => t.value == 'another')"
    )
    assert (first.input_value(), second.input_value()) == ("one text", "another")
    panel.get_by_role("button", name="Read", exact=True).click()
    label = pipe([("one text", "another")], ["same"])[0]["same"]["label"]
    panel.locator(".answer").wait_for()
    assert panel.locator("tr.chosen th").all_inner_texts() == [label]


def _compares(reader, pipe):
    panel = reader.open("Similarity")
    assert panel.get_by_role("textbox", name="Texts").input_value() == "\n".join(EXAMPLES["near"])
    panel.get_by_role("button", name="Compare", exact=True).click()
    panel.locator("table.heat").wait_for()
    matrix = pipe.similarity(EXAMPLES["near"], task="near")
    cells = panel.locator("table.heat td").all_inner_texts()
    assert cells == [f"{value:.2f}" for value in matrix.flatten().tolist()]


def _draws(reader, pipe, tmp_path):
    panel = reader.open("Map")
    path = tmp_path / "texts.csv"
    path.write_text("said\n" + "".join(f'"{text}"\n' for text in CORPUS), encoding="utf-8")
    panel.locator("input[type=file]").set_input_files(path)
    panel.get_by_text("texts.csv").first.wait_for()
    panel.get_by_role("textbox", name="Column").fill("said")
    panel.get_by_role("button", name="Draw", exact=True).click()
    panel.locator("iframe").wait_for()
    frame = panel.frame_locator("iframe")
    labels = [answer["intent"]["label"] for answer in pipe(CORPUS, ["intent"])]
    frame.locator("#legend button").first.wait_for()
    legend = " ".join(frame.locator("#legend button").all_inner_texts())
    assert all(label in legend for label in labels)
    assert f"{len(CORPUS)} texts" in frame.locator("header").inner_text()


def _shows_scores(reader):
    text = reader.open("Scores").inner_text()
    assert "accuracy 0.8750, f1_macro 0.7500" in text
    assert "Pulling apart: intent and slots." in text


def _works_without_a_mouse(browser, address, pipe):
    reader = Reader(browser, address)
    keys = reader.tab.keyboard
    for _ in range(30):
        keys.press("Tab")
        if reader.tab.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    keys.type(CORPUS[0])
    keys.press("Shift+Enter")
    reader.tab.locator(".answer tr.chosen").first.wait_for()
    answer = pipe(CORPUS[0], ["intent"])["intent"]["label"]
    assert reader.tab.locator(".answer tr.chosen th").first.inner_text() == answer
    reader.tab.get_by_role("tab", name="Text", exact=True).focus()
    for _ in range(4):
        keys.press("Tab")
        if reader.tab.evaluate("document.activeElement.innerText") == "Similarity":
            break
    keys.press("Enter")
    reader.tab.get_by_role("button", name="Compare", exact=True).focus()
    keys.press("Enter")
    reader.tab.locator("table.heat").wait_for()
    reader.leave()


def _is_dark_where_the_reader_is(browser, address):
    shades = {}
    for scheme in ("light", "dark"):
        reader = Reader(browser, address, color_scheme=scheme)
        colour = reader.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
        reader.leave()
    assert shades["light"] > 200
    assert shades["dark"] < 60
