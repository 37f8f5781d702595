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
from collections.abc import Callable, Iterable, Iterator
from functools import partial
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
        self.how, self.pools, self.windowed = (bundle[n] for n in ("how", "pools", "windowed"))
        self.word, self.letter = re.compile(bundle["word"]), re.compile(bundle["letter"])
        self.follow = {n: np.array([*map(list, t)], int) for n, t in bundle["tags"].items()}
        tasks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["tasks"]
        self.tasks = {name: tasks[name] for name in self.about["tasks"]}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=onnxruntime.get_available_providers()
        )
        self.widths = {output.name: output.shape[-1] for output in self.session.get_outputs()}
        self.single, self.pair, self.whole = (
            Tokenizer.from_file(f"{folder}/tokenizer.json") for _ in range(3)
        )
        stride, side = bundle["room"]["text"] // 4, bundle["truncation_side"]
        for tokenizer, overlap in ((self.single, stride), (self.pair, 0), (self.whole, 0)):
            tokenizer.enable_truncation(bundle["window"], stride=overlap, direction=side)
            tokenizer.no_padding()
        self.whole.no_truncation()

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
        if isinstance(tasks, str):
            raise ValueError(f"tasks is {tasks!r}; give a list of names: a bundle finds no tasks")
        items = [_read(item, number) for number, item in enumerate(texts)]
        if not items:
            return []
        names = self._choose({form for form, _, _ in items}, tasks)
        self._check(names, top_k, threshold, dimensions)
        pairs = items[0][2][0] is not None
        groups: dict[tuple[str, bool], list[str]] = {}  # pairs are cut otherwise for windows
        for name in names:
            prompts = self.tasks[name].get("prompts") or [""]
            key = (prompts[min(int(document), len(prompts) - 1)], pairs and name in self.windowed)
            groups.setdefault(key, []).append(name)
        answers: dict[str, list] = {}
        for (prompt, _), group in groups.items():
            rows = [(prompt + first, second) for _, first, seconds in items for second in seconds]
            answers |= self._run(rows, group, (top_k, threshold, dimensions))
        if items[0][0] == "choices":
            for name, scores in answers.items():
                every, least = iter(scores), self.tasks[name].get("abstain", 0)
                chosen = [_choice(list(islice(every, len(of))), of) for *_, of in items]
                answers[name] = [_if_sure(answer, least) for answer in chosen]
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
        for name in names if dimensions is not None else ():
            widths = {self.widths[name], *self.tasks[name].get("matryoshka", ())}
            allowed = sorted(widths, reverse=True) if self.how[name] == "vector" else []
            if dimensions not in allowed:
                raise ValueError(f"dimensions is {dimensions}; task {name!r} has: {allowed}")

    def _run(self, rows: list, names: list[str], asked: tuple) -> dict[str, list]:
        """Answers of tasks to texts, or pairs, one for each row."""
        tags = [name for name in names if self.how[name] == "spans"]
        units, entries = self._windows(rows, names, tags)
        scores = {}  # (U, L) log-probabilities; a word without a token keeps even ones
        for name in tags:
            count = len(self.tasks[name]["labels"])
            scores[name] = [np.full((len(u), count), -np.log(count), np.float32) for u in units]
        parts: dict[str, list[list]] = {name: [[] for _ in rows] for name in names}  # by window
        for name, (row, number, window, reads, masks), value in self._encode(entries, names):
            if name in scores:
                unit, token = np.array(reads, int).reshape(-1, 2).T
                scores[name][row][unit] = _log_softmax(value[token])
            elif name in self.pools:
                parts[name][row].append((value, len(window.ids)))
            elif number == 0 or name in self.windowed:
                read = masks if name in self.windowed else self._masks(window.ids)
                parts[name][row] += self._answers(name, value, window.ids, read, *asked)
        for name in self.pools.keys() & parts:
            values = [self._pooled(name, part) for part in parts[name]]
            parts[name] = [self._answers(name, value, [], [], *asked) for value in values]
        for name, of_task in scores.items():
            texts = [text for text, _ in rows]
            parts[name] = [*map(partial(self._entities, name), texts, units, of_task)]
        several = {"spans", "masks"}
        return {n: p if self.how[n] in several else [a for (a,) in p] for n, p in parts.items()}

    def _pooled(self, name: str, parts: list) -> np.ndarray:
        """(L,) or (D,) of a text, of its windows' (values, number of tokens)."""
        values, lengths = (np.array(part, np.float32) for part in zip(*parts, strict=True))
        if self.pools[name] == "max":
            return values.max(0)
        weights = lengths if self.pools[name] == "tokens" else np.ones_like(lengths)
        return weights / weights.sum() @ values

    def _windows(self, rows: list, names: list[str], tags: list[str]) -> tuple[list, list]:
        """Units of each text; (row, number, window, units and masks read in it), longest first."""
        several = any(name in self.windowed for name in names)
        texts: list = [HALF.sub("\ufffd", first) for first, _ in rows]
        if rows[0][1] is None:
            encoded = [[one, *one.overflowing] for one in self.single.encode_batch(texts)]
        else:
            pairs = [(t, HALF.sub("\ufffd", row[1])) for t, row in zip(texts, rows, strict=True)]
            once = [] if several else self.pair.encode_batch(pairs)
            encoded = [self._of_pair(*pair) for pair in pairs] if several else [[e] for e in once]
        room = self.bundle["room"]["text"]
        units, entries, step = [], [], room - room // 4
        for row, windows in enumerate(encoded):
            windows = windows if several else windows[:1]
            words = [match.span() for match in self.word.finditer(texts[row])] if tags else []
            of_text, reads = self._units(texts[row], words, windows)
            units.append(of_text)
            masks = [[(n * step + k, k) for k in self._masks(w.ids)] for n, w in enumerate(windows)]
            best = list(_nearest(masks, windows).values())
            for n, window in enumerate(windows):
                entries.append((row, n, window, reads[n], [token for at, token in best if at == n]))
        return units, sorted(entries, key=lambda entry: -len(entry[2].ids))

    def _masks(self, ids: list[int]) -> list[int]:
        return [token for token, number in enumerate(ids) if number == self.bundle["mask_id"]]

    def _of_pair(self, first: str, second: str) -> list:
        """Windows of a pair: its first text, up to half of the room, and a stretch of the other."""
        whole = self.whole.encode(first, second)
        if len(whole.ids) <= self.bundle["window"]:
            return [whole]
        room = self.bundle["room"]["pair"]
        one, other = self.whole.encode_batch([first, second], add_special_tokens=False)
        most = max(room // 2, room - len(other.ids))
        while len(one.ids) > most:  # a text cut inside a word may have more tokens
            first = first[: min(one.offsets[most - 1][1], len(first) - 1)]
            one = self.whole.encode(first, add_special_tokens=False)
        other.truncate(room - len(one.ids), stride=(room - len(one.ids)) // 4)
        return [self.whole.post_process(one, part) for part in (other, *other.overflowing)]

    def _encode(self, entries: list, names: list[str]) -> Iterator[tuple[str, Any, np.ndarray]]:
        """(task, entry, (L,), (D,) or (T, L)); windows of a length pass together, by adapter."""
        adapters, tasks = self.about["adapters"], self.about["tasks"]
        while entries:
            count = max(1, BATCH_TOKENS // len(entries[0][2].ids))
            batch, entries = entries[:count], entries[count:]
            shape = len(batch), len(batch[0][2].ids)
            feed: dict[str, Any] = {name: np.zeros(shape, np.int64) for name in INPUTS}
            feed["input_ids"] += self.bundle["pad_id"]
            for row, (_, _, one, _, _) in enumerate(batch):
                types = one.type_ids if self.bundle["type_ids"] else [0] * len(one.ids)
                for name, values in zip(INPUTS, (one.ids, one.attention_mask, types), strict=True):
                    feed[name][row, : len(values)] = values
            for adapter in dict.fromkeys(adapters[name] for name in names):
                group = [name for name in names if adapters[name] == adapter]
                feed["task_ids"] = np.full(len(batch), tasks.index(group[0]), np.int64)
                inputs = {name: feed[name] for name in self.about["inputs"]}
                outputs: Any = self.session.run(group, inputs)
                for name, values in zip(group, outputs, strict=True):
                    yield from ((name, *pair) for pair in zip(batch, values, strict=True))

    def _answers(
        self, name: str, values: np.ndarray, ids: list[int], masks: list[int], *asked: Any
    ) -> list:
        """What is said of one text, of (L,), (D,) or (T, L): of each of its masks, or once."""
        (top_k, threshold, width), task, how = asked, self.tasks[name], self.how[name]
        if how == "number":
            return [{"score": float(values[0])}]
        if how == "vector":
            cut = values[:width]
            length = max(float(np.linalg.norm(cut)), 1e-12) if task["normalize"] else 1
            return [(cut / length).tolist()]
        if how in ("masks", "next"):
            special, scores = self.bundle["special_ids"], values[:, : self.single.get_vocab_size()]
            last = max((token for token, i in enumerate(ids) if i not in special), default=0)
            read = masks if how == "masks" else [last]
            return [_ranked(_softmax(scores[at]), self.single.id_to_token, top_k) for at in read]
        label = task["labels"].__getitem__
        if how == "several":
            own = task.get("thresholds", {}) if threshold is None and top_k else {}
            threshold = (task["threshold"] if top_k else 0) if threshold is None else threshold
            labels = _ranked(1 / (1 + np.exp(-values)), label, None)
            return [[one for one in labels if one["score"] >= own.get(one["label"], threshold)]]
        scores = _softmax(values)
        if how == "branches":
            answer = _branches(scores, task["labels"], self.bundle["levels"][name], top_k)
        elif how == "middle" and top_k == 1:
            middle = int((scores.cumsum()[:-1] < 0.5).sum())
            answer = {"label": label(middle), "score": float(scores[middle])}
        else:
            answer = _ranked(scores, label, top_k)
        return [_if_sure(answer, task.get("abstain", 0)) if top_k == 1 else answer]

    def _entities(self, name: str, text: str, units: list, scores: np.ndarray) -> list[dict]:
        """Entities in characters of one text, of (U, L) log-probabilities of its units."""
        labels, signs = self.tasks[name]["labels"], self.tasks[name].get("signs")

        def edge(words: list) -> tuple[int, int]:  # the first word that is no foreign sign
            read = [(text[a:b], (a, b)) for a, b in words]
            own = (w for t, w in read if signs is None or t in signs or self.letter.search(t))
            return next(own, words[0])

        follow, spans, start, before = self.follow.get(name), [], 0, -1
        path = scores.argmax(-1).tolist() if follow is None else _viterbi(scores, follow)
        chances = np.exp(scores[range(len(path)), path]).tolist()
        if follow is None:  # each word by itself
            for tag, chance, unit in zip(path, chances, units, strict=True):
                spans += [(labels[tag], chance, *word) for word in unit]
            path, follow = [], np.ones((1, 1))
        for number, tag in enumerate([*path, -1]):
            step = follow[before, tag]  # 2 goes on, 3 makes what was no entity
            kind = labels[before].partition("-")[2] if before >= 0 else ""
            if kind and step not in (2, 3):
                begin, end = edge(units[start])[0], edge(units[number - 1][::-1])[1]
                spans.append((kind, sum(chances[start:number]) / (number - start), begin, end))
            start, before = start if step == 2 else number, tag
        names = ("entity_group", "score", "word", "start", "end")
        sure = [span for span in spans if span[1] >= self.tasks[name].get("abstain", 0)]
        return [dict(zip(names, (k, p, text[a:b], a, b), strict=True)) for k, p, a, b in sure]

    def _units(self, text: str, words: list, windows: list) -> tuple[list, list[list]]:
        """Units: words that share their first token; (unit, token) read in each window."""
        found = []
        for window in windows if words else ():
            offsets = zip(window.offsets, window.special_tokens_mask, strict=True)
            spans = [(b if skip else b - len(text[a:b].lstrip()), b) for (a, b), skip in offsets]
            found.append(_words_at(spans, words))
        nearest, units, reads, before = _nearest(found, windows), [], [[] for _ in windows], None
        for number, word in enumerate(words):
            place = nearest.get(number)
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
        two = [
            (t, s) for t, (s, e) in enumerate(spans[token : token + 2], token) if s < min(end, e)
        ]
        if two and two[0][0] == token:
            pairs.append((number, next((t for t, s in two if s >= start), token)))
    return pairs


def _nearest(reads: list, windows: list) -> dict[int, tuple[int, int]]:
    """(window, token) of each unit: in the window that shows most of its surroundings.

    `reads` has (unit, token) of each window.
    """
    best: dict[int, tuple[int, int, int]] = {}
    for number, pairs in enumerate(reads):
        skip = windows[number].special_tokens_mask
        inner = [token for token, special in enumerate(skip) if not special]
        for unit, token in pairs:
            left = token - inner[0] if number else len(skip)
            right = inner[-1] - token if number < len(windows) - 1 else len(skip)
            if unit not in best or min(left, right) > best[unit][0]:
                best[unit] = (min(left, right), number, token)
    return {unit: place[1:] for unit, place in best.items()}


def _log_softmax(values: np.ndarray) -> np.ndarray:
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def _softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(values))


def _ranked(scores: np.ndarray, label: Callable[[int], Any], top_k: int | None) -> Any:
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    entries = [{"label": label(number), "score": float(scores[number])} for number in order]
    return entries[0] if top_k == 1 else entries


def _branches(scores: np.ndarray, labels: list[str], levels: list, top_k: int | None) -> Any:
    """Leaves of a tree, the best branch first; the score of a node is the sum of its leaves'.

    `levels` has the number of each leaf's node at each level.
    """
    sums = [np.bincount(level, scores)[level] for level in levels]
    keys = [key for s, level in zip(sums, levels, strict=True) for key in (-s, level)]
    entries = []
    for leaf in np.lexsort(keys[::-1])[:top_k].tolist():
        ends = [at for at, sign in enumerate(labels[leaf] + "/") if sign == "/"]
        nodes = zip(ends, sums, strict=False)
        path = [{"label": labels[leaf][:end], "score": float(s[leaf])} for end, s in nodes]
        entries.append(path[-1] | {"path": path[:-1]})
    return entries[0] if top_k == 1 else entries


def _if_sure(answer: dict[str, Any], least: float) -> dict[str, Any]:
    """The answer; below this score without its label, and the number of its choice."""
    sure = answer["score"] >= least
    return answer if sure else answer | dict.fromkeys({"label", "choice"} & answer.keys())


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
