"""Users' texts (labels, entity types, splits, names of files) where they would mean something else.

A label may hold anything: a line break, a tag, a `|`, a formula, the bytes that clear a terminal. A
page, a card, a picture or a line on the console shows it as text: each has its function here.
"""

import html
import re
import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # no glyph: controls, direction marks, half a surrogate
JOINERS = "\u200c\u200d"  # parts of words in Persian and Hindi, and of emoji
NEEDS_CODE_TAG = re.compile(r"[`|]|^\s|\s$")
# Signs of Markdown and HTML; of `_`, `:` and `.` those that begin emphasis or a link.
MARKDOWN = re.compile(
    r"[\\`*\[\]<>|~$&#@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE
)
# What at the beginning of a line is a heading, quote, list, rule, fence or the target of a link.
BLOCK = re.compile(r"#|>|=|[-+*](?=[-+*\s]*(\s|$))|\d(?=\d*[.)])|```|~~~|\[(?=[^]]*]:)")
SURROGATES = re.compile(r"[\ud800-\udfff]")
FORMULA = "$"


def visible(text: str, *, keep: str = "") -> str:
    r"""The text on one line, with characters that have no glyph as Python writes them: `\n`.

    Args:
        text: any.
        keep: characters that stay as they are, as line breaks where lines do no harm.
    """
    if text.isascii() and text.isprintable():
        return text
    keep += JOINERS
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in HIDDEN and char not in keep else char
        for char in text
    )


def lines(text: str) -> str:
    """The text with its line breaks and tabs; nothing else in it moves a cursor."""
    return visible(text.replace("\r\n", "\n"), keep="\n\t")


def in_html(text: str) -> str:
    """Text of a page, or the value of an attribute in quotes."""
    return html.escape(visible(text))


def in_markdown(text: str) -> str:
    """Text in a paragraph, a heading or a cell of a table; no sign of it is Markdown or HTML."""
    return MARKDOWN.sub(lambda sign: f"&#{ord(sign[0])};", visible(text))


def code(text: str) -> str:
    """Text in the type of code, anywhere in Markdown; a table's cell ends at a `|` even in code."""
    text = visible(text)
    if not text:
        return "(empty)"
    return f"<code>{in_markdown(text)}</code>" if NEEDS_CODE_TAG.search(text) else f"`{text}`"


def fenced(text: str, language: str) -> str:
    """A block of code, whose fence is longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{lines(text).rstrip()}\n{fence}\n"


def paragraph(text: str) -> str:
    """An author's own Markdown as part of a line: no heading, list or tag begins in it."""
    text = visible(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    return f"&#{ord(text[0])};{text[1:]}" if BLOCK.match(text) else text


def drawn(text: str, width: int | None = None) -> str:
    """Text in a picture, at most `width` characters of it; two `$` enclose no formula."""
    text = visible(" ".join(text.split()))
    text = text if width is None or len(text) <= width else f"{text[: width - 1]}…"
    return text.replace(FORMULA, rf"\{FORMULA}")


def in_json(text: str) -> str:
    """JSON without half a surrogate, which no encoding can write: it is escaped."""
    return SURROGATES.sub(lambda half: ascii(half[0])[1:-1], text)
