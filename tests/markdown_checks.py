"""Markdown as CommonMark reads it: whether a text stays text in it."""

from markdown_it import MarkdownIt
from polyhead.train import escape


def blocks(markdown: str) -> list:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)


def shown(inline) -> str:
    """Text of a paragraph or cell; it must hold nothing but text and code."""
    kinds = {"text", "code_inline", "html_inline", "text_special"}
    assert {child.type for child in inline.children} <= kinds, inline.children
    tags = [child.content for child in inline.children if child.type == "html_inline"]
    assert set(tags) <= {"<code>", "</code>"}
    return "".join(c.content for c in inline.children if c.type != "html_inline")


def cells(markdown: str) -> list[str]:
    """The cells of the only table."""
    tokens = blocks(markdown)
    assert [t.type for t in tokens if t.level == 0] == ["table_open", "table_close"]
    return [shown(token) for token in tokens if token.type == "inline"]


def check_markdown(text: str) -> None:
    plain = escape.visible(text)
    for escaped, expected in (
        (escape.in_markdown(text), plain),
        (escape.code(text), plain or "(empty)"),
    ):
        stripped = expected.strip()
        table = f"| one | other |\n|---|---|\n| {escaped} | end |\n"
        texts = cells(table)
        assert len(texts) == 4
        assert texts[2].strip() == stripped
        assert texts[3] == "end"
        heading, inline, _ = blocks(f"### x: {escaped}")
        assert heading.type == "heading_open"
        if not stripped.endswith("#"):  # closes a heading
            assert shown(inline).strip() == f"x: {expected}".strip()
