# SPDX-License-Identifier: Apache-2.0
"""An exported model with numpy, onnxruntime and tokenizers alone; `polyhead export --bundle`.

    python runner.py --text "where is my parcel?" --task intent
    python runner.py < texts.jsonl > answers.jsonl
    from runner import Runner; answers = Runner("folder")(["where is my parcel?"], ["intent"])

Answers are those of Polyhead's pipeline and of its server's `/predict`; what `start` and `end`
count are characters (code points) of the text as it was given.

Shapes: `N` rows, `T` tokens, `L` labels, `U` units of words, `D` width of an embedding.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BATCH_TOKENS, STRETCH = 1024, 1024  # of a pass, padding counted; lines that are read together
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
FORMS = {"text": "single texts", "pair": "pairs (text, text)", "choices": "(text, [text, text])"}
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


class Runner:
    """The model of a folder (default: where this file lies); any number of threads may call it.

    `threads` of a pass: 0 leaves it to ONNX Runtime. ValueError: the folder is no bundle.
    """

    def __init__(self, folder: str | Path | None = None, threads: int = 0) -> None:
        folder = Path(folder or Path(__file__).parent)
        self.about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        if "bundle" not in self.about:
            raise ValueError(f"{folder} is no bundle; export the model with --bundle")
        self.bundle = bundle = self.about["bundle"]
        self.word, self.space, self.letter = (
            re.compile(bundle[name]) for name in ("word", "space", "letter")
        )
        self.follow = {n: np.array([*map(list, t)], int) for n, t in bundle["tags"].items()}
        tasks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["tasks"]
        self.tasks = {name: tasks[name] for name in self.about["tasks"]}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=onnxruntime.get_available_providers()
        )
        self.widths = {output.name: output.shape[-1] for output in self.session.get_outputs()}
        self.single, self.pair = (Tokenizer.from_file(f"{folder}/tokenizer.json") for _ in "ab")
        stride = (bundle["window"] - self.single.num_special_tokens_to_add(is_pair=False)) // 4
        for tokenizer, overlap in ((self.single, stride), (self.pair, 0)):
            tokenizer.no_padding()
            side = bundle["truncation_side"]
            tokenizer.enable_truncation(bundle["window"], stride=overlap, direction=side)

    def __call__(
        self,
        texts: Iterable[Any],
        tasks: Iterable[str] | None = None,
        *,
        top_k: int | None = 1,
        threshold: float | None = None,
        document: bool = False,
        dimensions: int | None = None,
    ) -> list[dict[str, Any]]:
        """One dict per text, keyed by task; options are those of `/predict`.

        A text is a string, (text, text) for pair tasks, (text, [text, text]) for tasks that choose,
        or a dict of `text` and `text_pair`. `tasks` None is all that read such texts, `top_k` None
        all labels; `dimensions`, of `matryoshka`, cuts embeddings. ValueError says what is wrong.
        """
        if isinstance(texts, (str, dict)):
            raise ValueError("texts is one text; give a list of texts")
        items = [_read(item, number) for number, item in enumerate(texts)]
        if not items:
            return []
        names = self._choose({form for form, _, _ in items}, tasks)
        self._check(names, top_k, threshold, dimensions)
        rows = [(first, second) for _, first, seconds in items for second in seconds]
        groups: dict[str, list[str]] = {}
        for name in names:
            prompts = self.tasks[name].get("prompts") or [""]
            groups.setdefault(prompts[min(int(document), len(prompts) - 1)], []).append(name)
        answers: dict[str, list] = {}
        for prompt, group in groups.items():
            answers |= self._run(prompt, rows, group, (top_k, threshold, dimensions))
        if items[0][0] == "choices":
            for name, scores in answers.items():
                every = iter(scores)
                answers[name] = [_choice(list(islice(every, len(of))), of) for *_, of in items]
        return [{name: answers[name][row] for name in names} for row in range(len(items))]

    def _choose(self, forms: set[str], tasks: Iterable[str] | None) -> list[str]:
        if len(forms) > 1:
            raise ValueError("texts and pairs of texts are mixed; give them in separate calls")
        (form,), known, reads = forms, ", ".join(self.tasks), self.bundle["reads"]
        names = [name for name in reads if reads[name] == form] if tasks is None else list(tasks)
        if unknown := [repr(name) for name in names if name not in reads]:
            raise ValueError(f"unknown task {', '.join(unknown)}; this model has: {known}")
        if not names:
            raise ValueError(f"no task for {FORMS[form]}; this model has: {known}")
        if wrong := [name for name in names if reads[name] != form]:
            raise ValueError(f"task {wrong[0]!r} reads {FORMS[reads[wrong[0]]]}")
        return list(dict.fromkeys(names))

    def _check(self, names: list[str], top_k: Any, threshold: Any, dimensions: Any) -> None:
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError(f"top_k is {top_k!r}; it must be at least 1, or None")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}; it must lie in [0, 1], or be None")
        if dimensions is None:
            return
        for name in names:
            widths = {self.widths[name], *self.tasks[name].get("matryoshka", ())}
            allowed = sorted(widths, reverse=True) if self._is(name, "embedding") else []
            if dimensions not in allowed:
                raise ValueError(f"dimensions is {dimensions}; task {name!r} has: {allowed}")

    def _is(self, name: str, head: str) -> bool:
        return self.tasks[name]["head"] == head

    def _run(self, prompt: str, rows: list, names: list[str], asked: tuple) -> dict[str, list]:
        """Answers of tasks to texts, or pairs, under one prompt; one for each row."""
        tags = [name for name in names if self._is(name, "token_classification")]
        units, entries = self._windows([(prompt + first, second) for first, second in rows], tags)
        scores = {}  # (U, L) log-probabilities; a word without a token keeps even ones
        for name in tags:
            count = len(self.tasks[name]["labels"])
            scores[name] = [np.full((len(u), count), -np.log(count), np.float32) for u in units]
        results: dict[str, list] = {name: [None] * len(rows) for name in names}
        while entries:
            count = max(1, BATCH_TOKENS // len(entries[0][2].ids))
            batch, entries = entries[:count], entries[count:]
            for name, values in self._encode([entry[2] for entry in batch], names).items():
                for (row, number, window, reads), value in zip(batch, values, strict=True):
                    if name in scores:
                        unit, token = np.array(reads, int).reshape(-1, 2).T
                        scores[name][row][unit] = _log_softmax(value[token])
                    elif number == 0:
                        results[name][row] = self._answer(name, value, window.ids, *asked)
        for name in tags:
            for row, (text, _) in enumerate(rows):
                results[name][row] = self._entities(name, text, units[row], scores[name][row])
        return results

    def _windows(self, rows: list, tags: list[str]) -> tuple[list, list]:
        """Units of each text; (row, window's number, its encoding, what is read), longest first."""
        read: list = [HALF.sub("\ufffd", first) for first, _ in rows]
        if pairs := rows[0][1] is not None:
            seconds = [HALF.sub("\ufffd", second) for _, second in rows]
            read = list(zip(read, seconds, strict=True))
        units, entries = [], []
        for row, encoded in enumerate((self.pair if pairs else self.single).encode_batch(read)):
            windows = [encoded, *encoded.overflowing] if tags else [encoded]
            words = [match.span() for match in self.word.finditer(read[row])] if tags else []
            of_text, reads = self._units(read[row], words, windows)
            units.append(of_text)
            entries += [(row, n, window, reads[n]) for n, window in enumerate(windows)]
        return units, sorted(entries, key=lambda entry: -len(entry[2].ids))

    def _encode(self, windows: list, names: list[str]) -> dict[str, np.ndarray]:
        """What each task gives, (N, L), (N, D) or (N, T, L); a pass for each adapter of theirs."""
        feed: dict[str, Any] = {
            name: np.zeros((len(windows), len(windows[0].ids)), np.int64) for name in INPUTS
        }
        feed["input_ids"] += self.bundle["pad_id"]
        for row, one in enumerate(windows):
            types = one.type_ids if self.bundle["type_ids"] else [0] * len(one.ids)
            for name, values in zip(INPUTS, (one.ids, one.attention_mask, types), strict=True):
                feed[name][row, : len(values)] = values
        adapters, outputs = self.about["adapters"], {}
        for adapter in dict.fromkeys(adapters[name] for name in names):
            group = [name for name in names if adapters[name] == adapter]
            feed["task_ids"] = np.full(len(windows), self.about["tasks"].index(group[0]), np.int64)
            inputs = {name: feed[name] for name in self.about["inputs"]}
            outputs |= zip(group, self.session.run(group, inputs), strict=True)
        return outputs

    def _answer(
        self, name: str, values: np.ndarray, ids: list[int], top_k: Any, threshold: Any, width: Any
    ) -> Any:
        """What is said of one text: of (L,), (D,) or (T, L)."""
        task, token = self.tasks[name], self.single.id_to_token
        if task["head"] == "embedding":
            cut = values[:width]
            shorter = task["normalize"] and len(cut) < len(values)
            return (cut / max(float(np.linalg.norm(cut)), 1e-12) if shorter else cut).tolist()
        if task["head"] in ("masked_lm", "causal_lm"):
            scores = values[:, : self.single.get_vocab_size()]
            if task["head"] == "masked_lm":
                masks = [i for i, number in enumerate(ids) if number == self.bundle["mask_id"]]
                return [_ranked(_softmax(scores[mask]), token, top_k) for mask in masks]
            special = self.bundle["special_ids"]
            last = max((i for i, number in enumerate(ids) if number not in special), default=0)
            return _ranked(_softmax(scores[last]), token, top_k)
        if "labels" not in task:
            return {"score": float(values[0])}
        label = task["labels"].__getitem__
        if task.get("hierarchy"):
            return _branches(_softmax(values), task["labels"], top_k)
        if task["problem_type"] == "single_label_classification":
            return _ranked(_softmax(values), label, top_k)
        if task["problem_type"] == "ordinal":
            scores = _softmax(values)
            middle = int((scores.cumsum()[:-1] < 0.5).sum())
            one = {"label": label(middle), "score": float(scores[middle])}
            return one if top_k == 1 else _ranked(scores, label, top_k)
        if threshold is None:
            threshold = 0 if top_k is None else task["threshold"]
        labels = _ranked(1 / (1 + np.exp(-values)), label, None)
        return [entry for entry in labels if entry["score"] >= threshold]

    def _entities(self, name: str, text: str, units: list, scores: np.ndarray) -> list[dict]:
        """Entities in characters of one text, of (U, L) log-probabilities of its units."""
        task = self.tasks[name]
        labels, signs = task["labels"], task.get("signs") or []

        def end_of(words: list) -> tuple[int, int]:  # the first word that is no foreign sign
            for start, end in words if "signs" in task and len(words) > 1 else ():
                if text[start:end] in signs or self.letter.search(text[start:end]):
                    return start, end
            return words[0]

        follow = self.follow.get(name, np.empty(0))
        path = _viterbi(scores, follow) if follow.size else scores.argmax(-1).tolist()
        chances, spans = np.exp(scores[range(len(path)), path]).tolist(), []
        if not follow.size:  # each word by itself
            for tag, chance, unit in zip(path, chances, units, strict=True):
                spans += [(labels[tag], chance, *word) for word in unit]
            path = []
        start, before = 0, -1
        for number, tag in enumerate([*path, -1] if path else ()):
            step = follow[before, tag]  # 2 goes on, 3 makes what was no entity
            if step != 2:
                kind = labels[before].partition("-")[2] if before >= 0 else ""
                if kind and step != 3:
                    chance = sum(chances[start:number]) / (number - start)
                    begin, end = end_of(units[start])[0], end_of(units[number - 1][::-1])[1]
                    spans.append((kind, chance, begin, end))
                start = number
            before = tag
        names = ("entity_group", "score", "word", "start", "end")
        return [dict(zip(names, (k, p, text[a:b], a, b), strict=True)) for k, p, a, b in spans]

    def _units(self, text: str, words: list, windows: list) -> tuple[list, list[list]]:
        """Units: words that share their first token; (unit, token) read in each window.

        A word is read in the window that shows most of its surroundings.
        """
        nearest: dict[int, tuple[int, int, int]] = {}  # word -> (context, window, token)
        for number, window in enumerate(windows if words else ()):
            skip, spans = window.special_tokens_mask, []
            for (start, end), special in zip(window.offsets, skip, strict=True):
                while start < end and self.space.match(text, start):
                    start += 1
                spans.append((end, end) if special else (start, end))
            inner = [token for token, special in enumerate(skip) if not special]
            for word, token in _words_at(spans, words):
                left = token - inner[0] if number else len(skip)
                right = inner[-1] - token if number < len(windows) - 1 else len(skip)
                if word not in nearest or min(left, right) > nearest[word][0]:
                    nearest[word] = (min(left, right), number, token)
        units, reads, before = [], [[] for _ in windows], None
        for number, word in enumerate(words):
            place = nearest[number][1:] if number in nearest else None
            if place is not None and place == before:
                units[-1].append(word)
                continue
            if place is not None:
                reads[place[0]].append((len(units), place[1]))
            units.append([word])
            before = place
        return units, reads


def _read(value: Any, number: int) -> tuple[str, str, list]:
    """A key of `FORMS`, the text, and those that go with it."""
    item = value
    if isinstance(value, dict) and "text" in value and set(value) <= {"text", "text_pair"}:
        other = value.get("text_pair")
        item = value["text"] if other is None else (value["text"], other)
    if isinstance(item, str):
        return "text", item, [None]
    if isinstance(item, (tuple, list)) and len(item) == 2 and item[1]:
        others = item[1] if isinstance(item[1], (tuple, list)) else [item[1]]
        if all(isinstance(text, str) for text in (item[0], *others)):
            return "choices" if others is item[1] else "pair", item[0], list(others)
    raise ValueError(f"text {number} is {value!r:.80}; give a text, a pair or a text with choices")


def _words_at(spans: list, words: list) -> list[tuple[int, int]]:
    """(word, token): the first token that starts in the word, else the one that reaches into it."""
    pairs, token = [], 0
    for number, (start, end) in enumerate(words):
        while token < len(spans) and spans[token][1] <= max(start, spans[token][0]):
            token += 1
        best = token
        while best + 1 < len(spans) and spans[best][0] < start <= spans[best + 1][0] < end:
            if spans[best + 1][0] == spans[best + 1][1]:
                break
            best += 1
        if best < len(spans) and spans[best][0] < end:
            pairs.append((number, best))
    return pairs


def _log_softmax(values: np.ndarray) -> np.ndarray:
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def _softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(values))


def _ranked(scores: np.ndarray, label: Callable[[int], Any], top_k: int | None) -> Any:
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    entries = [{"label": label(number), "score": float(scores[number])} for number in order]
    return entries[0] if top_k == 1 else entries


def _branches(scores: np.ndarray, labels: list[str], top_k: int | None) -> Any:
    """Leaves of a tree, the best branch first; the score of a node is the sum of its leaves'."""
    parts, sums = [label.split("/") for label in labels], {}
    paths = [["/".join(p[: end + 1]) for end in range(len(p))] for p in parts]
    for path, score in zip(paths, scores.tolist(), strict=True):
        for node in path:
            sums[node] = sums.get(node, 0.0) + score
    first = {node: number for number, node in enumerate(sums)}
    deepest = max(map(len, paths))
    order = sorted(
        paths,
        key=lambda path: [
            (-sums[node], first[node]) for node in path + path[-1:] * (deepest - len(path))
        ],
    )
    entries = [
        {"label": path[-1], "score": sums[path[-1]]}
        | {"path": [{"label": node, "score": sums[node]} for node in path[:-1]]}
        for path in order[:top_k]
    ]
    return entries[0] if top_k == 1 else entries


def _choice(answers: list[dict], choices: list[str]) -> dict[str, Any]:
    scores = _softmax(np.array([answer["score"] for answer in answers], np.float32))
    best = int(scores.argmax())
    return {"label": choices[best], "choice": best, "score": float(scores[best])}


def _viterbi(scores: np.ndarray, follow: np.ndarray) -> list[int]:
    """The best legal tags of (U, L) scores; `follow` (L + 1, L + 1) ends with what is outside."""
    best = scores.argmax(-1).tolist()
    if (follow[[-1, *best], [*best, -1]] > 0).all():
        return best
    barred = np.where(follow > 0, 0, -np.inf).astype(np.float32)
    total, origins = scores[0] + barred[-1, :-1], []
    for emission in scores[1:]:
        paths = total[:, None] + barred[:-1, :-1]
        origins.append(paths.argmax(0))
        total = paths.max(0) + emission
    path = [int((total + barred[:-1, -1]).argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return path[::-1]


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Without --text: JSONL from stdin to stdout.")
    parser.add_argument("--text", action="append", help="a text; may be repeated")
    parser.add_argument("--text-pair", help="the second text, for pair tasks")
    parser.add_argument("--task", action="append", help="a task; may be repeated; default all")
    parser.add_argument("--top-k", type=lambda k: None if k == "all" else int(k), default=1)
    parser.add_argument("--threshold", type=float, help="of multi-label tasks")
    parser.add_argument("--document", action="store_true", help="texts are no queries")
    parser.add_argument("--dimensions", type=int, help="width of embeddings, of matryoshka")
    options = vars(parser.parse_args())
    texts, other, tasks = (options.pop(name) for name in ("text", "text_pair", "task"))
    shown: Any = sys.stdout
    shown.reconfigure(encoding="utf-8", errors="backslashreplace")  # halves of pairs
    try:
        run = Runner()
        if texts is not None:
            items = texts if other is None else [(text, other) for text in texts]
            print(json.dumps(run(items, tasks, **options), ensure_ascii=False, indent=2))
        while texts is None and (lines := list(islice(sys.stdin.buffer, STRETCH))):
            for answer in run([json.loads(line) for line in lines], tasks, **options):
                print(json.dumps(answer))  # escaped: U+2028 and others end lines for some readers
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
