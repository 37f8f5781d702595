"""Messages that docs/troubleshooting.md quotes stand in the source, but for names and numbers."""

import ast
import re

import pytest
from pages import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^> (.+)$", PAGE, re.MULTILINE)
CHANGES = re.compile(r"\b(?:NAME|N)\b")


def texts_of(source: str) -> list[str]:
    """The strings of a file, f-strings too, with N for what is put into them."""
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "N" for v in node.values]
            texts.append("".join(map(str, parts)))
    return texts


@pytest.fixture(scope="module")
def printed() -> list[str]:
    files = [*ROOT.glob("train/**/*.py"), *ROOT.glob("modeling/*.py")]
    return [text for path in files for text in texts_of(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_that_the_code_prints(message, printed):
    for part in message.split("; "):
        pattern = re.compile(r"\w*".join(map(re.escape, CHANGES.split(part.strip()))))
        assert any(pattern.search(text) for text in printed), part


def test_messages_are_quoted():
    assert len(QUOTED) >= 6
