"""Texts that are hard to read the same in another language: scripts, emoji, signs, lengths."""

import random

WORDS = {
    "latin": "Book a table in Zürich naïve café e\u0301te\u0301 straße O'Neil x_y 3.14"
    " U.S. İstanbul ﬁne",
    "emoji": "😀 👩‍👩‍👧 🇩🇪 ok👍🏽 #️⃣ 𝔘nicode 𝟙𝟚 🤷‍♂️",
    "rtl": "مرحبا بالعالم שלום עולם \u200fabc\u200e ١٢٣ ﷺ كِتَاب",
    "thai": "สวัสดีครับ ก้าวหน้า กรุงเทพฯ ที่นี่ ລາວ ខ្មែរ မြန်မာ",
    "cjk": "東京タワー 北京 カタカナ 한국어 𠮷野家 ㈱ ①② ｶﾞ",
    "signs": '£5 (5 %) "a." ... -- $3.50/€4 a@b.c #x [SEP] </s> <mask> \u2028 \ufeff \u00ad',
    "control": "NUL\0here \x1c \x85 \t tab\r\n \u200b zero \ufffd \ud83d half \udc00",
    "indic": "नमस्ते दुनिया বাংলা தமிழ் ൧൨ ½ ² Ⅷ",
}
SPACES = [" ", " ", " ", "", "  ", "\u00a0", "\u3000", "\n"]


def texts_of(count: int, mask: str) -> list[str]:
    """So many texts, the same at each call; some empty, blank, or far longer than a window.

    Args:
        count: how many.
        mask: the tokenizer's mask, put among the words.
    """
    generator = random.Random(7)
    every = [word for words in WORDS.values() for word in words.split(" ")] + [mask]
    texts = ["", " ", "\0", "\n\t", "a" * 3000, "😀" * 300, "New York. " * 200, mask]
    while len(texts) < count:
        words = WORDS[generator.choice(list(WORDS))].split(" ")
        words = every if generator.random() < 0.4 else [*words, "in", "Paris", mask]
        length = generator.choice([1, 2, 3, 5, 8, 13, 40 if generator.random() < 0.5 else 9])
        parts = [generator.choice(words) + generator.choice(SPACES) for _ in range(length)]
        texts.append("".join(parts))
    return texts[:count]
