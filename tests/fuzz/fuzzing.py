"""What the tests of this tier share: how many examples, how long one may take, nasty texts.

The same examples are tried at each run; `POLYHEAD_FUZZ=10` tries ten times as many, others.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("POLYHEAD_FUZZ", "1"))
SECONDS = 20  # for one example; nothing here takes one


def examples(count: int) -> settings:
    """Settings for so many examples."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def in_time() -> Iterator[None]:
    """Fail where an example hangs."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


PIECES = [
    *[
        "a",
        "Book",
        "Paris",
        "now",
        "the",
        "£5",
        "°c",
        "...",
        ".",
        ",",
        "-",
        "'",
        "@",
        "#",
        "1",
        "²",
    ],
    *[
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\xa0",
        "\u3000",
        "\u200b",
        "\u200d",
        "\ufeff",
        "\x00",
        "\x1b",
    ],
    *["é", "e\u0301", "ß", "İ", "ﬁ", "Å", "名", "東京", "สวัสดี", "नमस्ते", "שלום", "\u202e", "한국"],
    *[
        "😀",
        "👨‍👩‍👧",
        "🇩🇪",
        "\ud83d",
        "\ude00",
        "\ufffd",
        "[MASK]",
        "<mask>",
        "</s>",
        "[SEP]",
        "##a",
        "▁",
        "Ġ",
    ],
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(
    st.characters(codec=None), max_size=40
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(
        [2**31, 2**63, -(2**70), 1e308, 1e-320, float("nan"), float("inf"), 0.5, -0.5]
    )
    | st.sampled_from(["", "x", "true", "1", "../x", "/", "a.b", "${HOME}", "auto", "\x00", "日本"])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abz_.$", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def places_in(value: object, place: tuple = ()) -> Iterator[tuple]:
    """The path of each value in a tree, its root left out."""
    if place:
        yield place
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    for key, part in parts:
        yield from places_in(part, (*place, key))


def value_at(tree: object, place: tuple) -> object:
    """The value at a path."""
    for key in place:
        tree = tree[key]  # pyright: ignore
    return tree
