"""`make demo`: train the quickstart, beat rules of thumb, then use the model as a stranger would.

The baselines are what a support desk has before it has a model: the commonest intent, key words per
intent, regular expressions and a list of known names, a list of alarming words, shared words.
"""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from polyhead.modeling.tags import spans_of
from polyhead.train.commands.training import train
from polyhead.train.data.loading import Source, load_sources
from polyhead.train.evaluation.metrics import compute
from polyhead.train.recipe.reader import load_recipe
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

MESSAGES = [
    "hi, the reading lamp from order FL-31877 came with a cracked shade, Tom promised a new one "
    "by friday and nothing happened",
    "There is smoke coming out of the kettle base, I pulled the plug!! What do I do now?",
    "move me from Family to Basic from 1 June please",
]

ALONE = Path(__file__).with_name("alone.json")  # scores of each task trained alone

# Runs with an empty module search path of its own; `polyhead` is barred on top of that.
STRANGER = """
import sys
sys.modules["polyhead"] = None
try:
    import polyhead
except ImportError:
    print("polyhead cannot be imported here; transformers alone loads", sys.argv[1])
from transformers import logging, pipeline
logging.set_verbosity_error()
logging.disable_progress_bar()
predict = pipeline(model=sys.argv[1], trust_remote_code=True)
texts = sys.argv[2:]
for text, answer in zip(texts, predict(texts, tasks=["entities", "intent", "urgency"])):
    for entity in reversed(answer["entities"]):
        mark = f"[{entity['word']}]({entity['entity_group']})"
        text = text[:entity["start"]] + mark + text[entity["end"]:]
    label = answer["intent"]
    print(f"\\n{text}\\n  intent {label['label'] or 'not sure'} ({label['score']:.2f}), "
          f"urgency {answer['urgency']['score']:.2f}")
"""

RULES = {
    "order_id": r"\b(?:FL|fl)[- ]?\d{4,6}\b|#\d{4,6}\b",
    "amount": r"[£$€]\s?\d+(?:[.,]\d+)*"
    r"|\b\d+(?:[.,]\d+)?\s?(?:euros?|pounds?|quid|bucks|dollars|%)",
    "error_code": r"\b[A-Z]{1,2}-?\d{1,3}\b|\b0x[0-9A-Fa-f]+\b",
    "date": r"\b(?:yesterday|today|tomorrow|tonight|(?:last|next|this) (?:week|month|\w+day)"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|(?:two|three|\d+) (?:days|weeks)(?: ago)?)\b",
    "plan": r"\b(?:Basic|Plus|Family|Studio|Student)\b",
}
ALARMING = re.compile(
    r"!|\b(?:now|today|urgent\w*|asap|immediately|smoke|fire|fraud|hacked|tomorrow|never|third)\b",
    re.IGNORECASE,
)


def baselines(sources: list[Source]) -> dict[str, dict[str, float]]:
    """Scores of the rules of thumb on the test rows of the quickstart."""
    messages = next(source for source in sources if "intent" in source.tasks)
    pairs = next(source for source in sources if "similarity" in source.tasks)
    train_rows, test_rows = messages.splits["train"][:], messages.splits["test"][:]
    pair_rows = pairs.splits["test"][:]
    answers = {
        "intent": _key_words(train_rows["text"], train_rows["intent"], test_rows["text"]),
        "entities": _known_names(train_rows, test_rows["tokens"]),
        "urgency": [float(len(ALARMING.findall(text))) for text in test_rows["text"]],
        "similarity": [
            _shared(a, b) for a, b in zip(pair_rows["text1"], pair_rows["text2"], strict=True)
        ],
    }
    wanted = {
        "intent": test_rows["intent"],
        "entities": test_rows["tags"],
        "urgency": test_rows["urgency"],
        "similarity": pair_rows["score"],
    }
    metric = {"intent": "accuracy", "entities": "entity_f1", "urgency": "pearson"}
    return {
        task: compute(
            [metric.get(task, "spearman")],
            (messages if task in messages.configs else pairs).configs[task],
            answers[task],
            wanted[task],
        )
        for task in answers
    }


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def _key_words(texts: list[str], labels: list[str], test: list[str]) -> list[str]:
    """The intent whose 20 most telling words the text has most of; the commonest where none."""
    seen: dict[str, Counter] = defaultdict(Counter)
    for text, label in zip(texts, labels, strict=True):
        for word in sorted(_words(text)):  # ties are broken by who comes first
            seen[word][label] += 1
    telling: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for word, counts in seen.items():
        label, count = counts.most_common(1)[0]
        if count >= 3:
            telling[label].append((count / (counts.total() + 2), word))
    keys = {label: {word for _, word in sorted(w)[-20:]} for label, w in telling.items()}
    common = Counter(labels).most_common(1)[0][0]
    answers = []
    for text in test:
        hits = {label: len(_words(text) & words) for label, words in keys.items()}
        best = max(hits, key=lambda label: hits[label])
        answers.append(best if hits[best] else common)
    return answers


def _known_names(train_rows: dict[str, list], test: list[list[str]]) -> list[list[str]]:
    """Regular expressions, then names seen as entities in train, longest first."""
    names = {
        tuple(token.lower() for token in tokens[first:last]): kind
        for tokens, tags in zip(train_rows["tokens"], train_rows["tags"], strict=True)
        for kind, first, last in spans_of(tags, "iob2")
    }
    answers = []
    for tokens in test:
        tags = ["O"] * len(tokens)
        starts, text = [], ""
        for token in tokens:
            starts.append(len(text))
            text += token + ("" if token in "#£$€-" else " ")
        for kind, rule in RULES.items():
            for match in re.finditer(rule, text):
                inside = [i for i, s in enumerate(starts) if match.start() <= s < match.end()]
                _mark(tags, inside, kind)
        lower = [token.lower() for token in tokens]
        for name in sorted(names, key=len, reverse=True):
            for i in range(len(lower) - len(name) + 1):
                if tuple(lower[i : i + len(name)]) == name:
                    _mark(tags, list(range(i, i + len(name))), names[name])
        answers.append(tags)
    return answers


def _mark(tags: list[str], places: list[int], kind: str) -> None:
    if places and all(tags[i] == "O" for i in places):
        for i in places:
            tags[i] = f"{'B' if i == places[0] else 'I'}-{kind}"


def _shared(a: str, b: str) -> float:
    """Jaccard similarity of the words."""
    first, second = _words(a), _words(b)
    return len(first & second) / max(1, len(first | second))


def main(recipe: str = "configs/quickstart.yaml") -> int:
    """Train, compare, use; 0 when every baseline is clearly beaten."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(highlight=False)
    loaded = load_recipe(recipe, sys.argv[2:])
    rules = baselines(load_sources(loaded))
    scores: dict[str, Any] = train(recipe, sys.argv[2:], overwrite=True)["tasks"]
    alone = json.loads(ALONE.read_text(encoding="utf-8"))
    columns = ("task", "metric", "rules of thumb", "a model of its own", "Polyhead, joint")
    table = Table(*columns, title="Test rows", caption=f"a model of its own: {alone['how']}")
    beaten = True
    for task, values in rules.items():
        metric, baseline = next(iter(values.items()))
        single = alone["scores"][task][metric]
        numbers = (baseline, single, scores[task][metric])
        table.add_row(task, metric, *(f"{number:.3f}" for number in numbers))
        beaten &= scores[task][metric] > baseline + 0.1
    console.print(table)
    folder = Path(loaded.output_dir) / "model"
    command = [sys.executable, "-I", "-c", STRANGER, str(folder.resolve()), *MESSAGES]
    done = subprocess.run(command, check=False)
    console.print(
        f"\nOpen it on a page: polyhead demo {folder}   (pip install 'polyhead\\[page]')\n"
        f"Serve it over HTTP: polyhead serve {folder}   (pip install 'polyhead\\[serve]')\n"
        f"Its scores and pictures: polyhead report {folder.parent}",
        soft_wrap=True,
    )
    return 0 if beaten and done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
