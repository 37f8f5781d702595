"""Users' texts stay text on pages, in cards, in pictures and on the console."""

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_checks import blocks, check_markdown
from polyhead.train import escape
from polyhead.train.cli import console
from polyhead.train.cli.console import print_answer, print_scores, table_of
from rich.console import Console

NASTY = [
    "[/x]",
    "[red]",
    "[link=http://a]b[/link]",
    ":smile:",
    "../../x",
    "a\n# Heading",
    "a\r\n\r\n---\n\n| b |",
    "<script>alert(1)</script>",
    "<!-- a",
    "&amp;",
    "a|b",
    "a\\|b",
    "`",
    "``a``",
    "`a|b`",
    " a ",
    "",
    "$x^{",
    "$5_x^",
    "\\$x$",
    "$$",
    "*a* _b_ ~c~",
    "__init__",
    "![a](http://b/c.png)",
    "[a]: http://b",
    "http://a.example",
    "www.a.example",
    "😀",
    "👨‍👩‍👧",
    "名",
    "\u202eabc\u202c",
    "\u200fשלום",
    "\x1b[2J\x07",
    "a\tb",
    "\x7f\x85",
    "\u2028\u2029",
    "\ud83d",
    "\ufeffa",
    "#",
    "- a",
    "1. a",
    "{{a}} {b} %s",
    "--- ",
    "x" * 5000,
]
nasty = pytest.mark.parametrize("text", NASTY, ids=ascii)
TEXTS = st.text(alphabet=st.characters(codec=None), max_size=30) | st.text(
    alphabet="ab\\`*_[]()<>|~$&#!:-+.\n \t/", max_size=12
)
ENTITY = re.compile(r"&#(\d+);")


@nasty
def test_markdown_shows_a_text_as_it_is(text):
    check_markdown(text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TEXTS)
def test_markdown_shows_any_text_as_it_is(text):
    check_markdown(text)


@nasty
def test_an_authors_words_begin_no_block(text):
    tokens = blocks(f"- {escape.paragraph(text)}\n- end\n")
    kinds = [t.type for t in tokens if t.type.endswith("_open") or t.type in ("hr", "fence")]
    assert kinds.count("list_item_open") == 2
    allowed = {"bullet_list_open", "list_item_open", "paragraph_open"}
    assert set(kinds) <= allowed, kinds
    assert "<script" not in escape.paragraph(text)


def test_an_author_may_emphasise_and_link():
    words = "It is **not** for\n[people](http://a.example) & AT&T."
    assert escape.paragraph(words) == (
        "It is **not** for [people](http://a.example) &amp; AT&amp;T."
    )


@nasty
def test_a_fence_ends_where_it_is_closed(text):
    block = f"{text}\n```\n{text}\n````\n"
    tokens = blocks(f"{escape.fenced(block, 'yaml')}\nend\n")
    assert [t.type for t in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == escape.lines(block).rstrip() + "\n"


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@nasty
def test_html_shows_a_text_as_it_is(text):
    safe = escape.in_html(text)
    page = _Tags(f'<p id="{safe}">{safe}</p>')
    assert page.tags == [("p", {"id": escape.visible(text)})]
    assert "".join(page.text) == escape.visible(text)
    f"{safe}".encode()


@nasty
def test_nothing_moves_the_cursor(text):
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", escape.visible(text))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", escape.lines(text))


def test_what_has_no_glyph_is_written_as_python_does():
    assert escape.visible("a\n\t\x1b\x00\u202e\ud83d") == r"a\n\t\x1b\x00\u202e\ud83d"
    assert escape.visible("grün 名 👨‍👩‍👧 می‌خواهم") == "grün 名 👨‍👩‍👧 می‌خواهم"
    assert escape.lines("a\r\nb\tc\rd") == "a\nb\tc\\rd"


@nasty
def test_json_can_be_written(text):
    written = escape.in_json(json.dumps({text: text}, ensure_ascii=False))
    written.encode()
    assert json.loads(written) == {text: text}


# ---- the console ----


@pytest.fixture
def screen(monkeypatch):
    """A wide console; what was printed, without its frame."""
    wide = Console(width=20_000, record=True, **console.PLAIN)
    monkeypatch.setattr(console, "out", wide)
    return wide


@nasty
def test_a_table_has_a_row_for_each_name(screen, text):
    row = {"precision": 0.5, "recall": 0.25, "f1": 0.125, "support": 7}
    print_scores({"tasks": {"ner": {"f1": 0.5, "per_type": {text: row}}}, "macro": 0.5}, "Scores")
    printed = screen.export_text()
    assert f" {escape.visible(text)} " in printed
    (line,) = [one for one in printed.splitlines() if "0.1250" in one]
    assert line.count("│") == 6


@nasty
def test_answers_are_printed_as_they_are(screen, text):
    print_answer(text, {"one": {"label": text, "score": 0.5}, "all": []})
    printed = screen.export_text()
    assert f"  one: {escape.visible(text)} 0.500" in printed
    assert "\x1b" not in printed


def test_entities_keep_their_text(screen):
    text = "see [/x]\x1b[2J now"
    spans = [{"entity_group": "[/b]", "score": 1.0, "word": "[/x]", "start": 4, "end": 8}]
    print_answer(text, {"ner": spans})
    assert r"ner: see [[/x]]([/b])\x1b[2J now" in screen.export_text()


def test_a_title_is_text(screen):
    screen.print(table_of(("a",), [("b" * 40,)], title="[/x] :smile: [red]"))
    assert "[/x] :smile: [red]" in screen.export_text()
