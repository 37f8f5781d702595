"""Documents of one to five windows, and tasks of every kind that reads windows."""

from typing import Any

from polyhead.train.recipe.schema import TaskRecipe
from train_helpers import SEQUENCE, TOKENS, task

WORDS = ("book", "the", "train", "to", "paris", "set", "and", "play", "some", "music")
WINDOW = 46  # tokens from a window to the next, of 64 with 16 in common


def documents(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows whose text takes `number % 5 + 1` windows."""
    rows = []
    for number in range(start, start + count):
        windows = number % 5 + 1
        length = 20 + number if windows == 1 else 62 + WINDOW * (windows - 1) - 10
        words = [WORDS[(7 * number + 3 * n + n * n % 5) % 10] for n in range(length)]
        rows.append(
            {
                "text": " ".join(words),
                "short": " ".join(words[::9][:8]),
                "tokens": words,
                "tags": [f"T{len(word) % 2}" for word in words],
                "topic": "abc"[number % 3],
                "grade": number % 7 / 7,
                "same": ["no", "yes"][number % 2],
                "score": number % 4 / 3,
            }
        )
    return rows


def long_tasks(files: dict[str, str]) -> dict[str, TaskRecipe]:
    """Tasks over files of such rows; dropout is off."""
    text = {"data_files": files, "text": "text"}
    windows = {"long_texts": "windows"}
    pair = {"data_files": files, "text": "short", "text_pair": "text"}
    number = {"problem_type": "regression", "window_pooling": "max"}
    vectors = {**text, "text_pair": "short", **windows}
    return {
        "topic": task(SEQUENCE, label="topic", dropout=0.0, **text, **windows),
        "grade": task(SEQUENCE, label="grade", dropout=0.0, **number, **text, **windows),
        "same": task(SEQUENCE, label="same", dropout=0.0, **pair, **windows),
        "near": task("embedding", label="score", loss="cosine_mse", **vectors),
        "closest": task("embedding", loss="contrastive", cached=True, prompts=["say: "], **vectors),
        "tags": task(TOKENS, tokens="tokens", label="tags", dropout=0.0, **text),
        "words": task("masked_lm", **text, **windows),
    }
