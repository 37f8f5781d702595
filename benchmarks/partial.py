"""Rows that mark some types only: O taken at its word or not, two corpora, tasks that grow.

`craft`: half of the train rows of craft_partial show two types of entities, half the other two;
validation and test show all four. `corpora`: ncbi_disease and bc2gm (diseases, genes) train one
head, beside a model of each. `entity`: wnut17 without locations, extended by rows that mark
nothing else, beside a model of all types. `intent`: the same with an intent of banking77. Each is
one seed of the MiniLM encoder; `--rows` of train are drawn, of tasks that grow `SCORED` of test.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
from common import SEED, data_folder, encoder_folder, files_of, keep, prepared, quiet

HEAD = "token_classification"
TEXTS = "sequence_classification"
SCORED, INTENTS = 600, 20  # rows of validation and of test; of 77
NEW_TYPE, NEW_INTENT = "location", "card_payment_fee_charged"
WAYS = {  # of growing: the adapter, --keep
    "keep weights": (None, "weights"),
    "keep strict": (None, "strict"),
    "adapter r 8": ({"r": 8}, "weights"),
}


def main() -> None:
    """Train and score what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=tuple(MEASURES))
    parser.add_argument("--rows", type=int, default=2000, help="of train, of each corpus")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    quiet()
    scores = MEASURES[options.what](options.rows, options.epochs)
    print(json.dumps(scores, indent=2))
    what = f"F1 on test, {options.rows} rows of train, {options.epochs} epochs"
    keep(f"partial_{options.what}", what, scores)


def craft(rows: int, epochs: int) -> dict[str, Any]:
    """Entity F1 on test, with and without the column that says what a row marks."""
    data = {**place("craft_partial"), "label": "ner_tags"}
    masked = trained({**data, "marks": "annotated"}, rows, epochs)
    return {"masked": masked, "O at its word": trained(data, rows, epochs)}


def corpora(rows: int, epochs: int) -> dict[str, Any]:
    """Entity F1 of each corpus' own type, by one head and by a model of its own."""
    marks = {"ncbi_disease": ["Disease"], "bc2gm": ["GENE"]}
    places = [{**place(name), "marks": types} for name, types in marks.items()]
    scores: dict[str, Any] = {"one head": trained(places, rows, epochs)}
    return scores | {name: trained(place(name), rows, epochs) for name in marks}


def entity(rows: int, epochs: int) -> dict[str, Any]:
    """F1 of each type of wnut17 where the new one came later, and where all are learned at once."""

    def only(row: dict[str, Any], *, new: bool) -> dict[str, Any]:
        tags = [t if (t[2:] == NEW_TYPE) == new else "O" for t in row["ner_tags"]]
        return {"tokens": row["tokens"], "ner_tags": tags}

    columns = {"tokens": "tokens", "label": "ner_tags"}
    task = {"head": HEAD, "marks": {"marks": [NEW_TYPE]}, "columns": columns, "lr": 1e-4}
    parts = {
        "all": lambda row: row,
        "old": lambda row: only(row, new=False),
        "new": lambda row: only(row, new=True),
    }
    return grown("wnut17", task, parts, rows, epochs)


def intent(rows: int, epochs: int) -> dict[str, Any]:
    """F1 of the new intent of banking77, and accuracy on the others."""

    def only(row: dict[str, Any]) -> dict[str, Any]:
        return row if row["intent"] == NEW_INTENT else {**row, "intent": "other"}

    columns = {"text": "text", "label": "intent"}
    marks = {"marks": [NEW_INTENT], "unmarked": "other"}
    task = {"head": TEXTS, "marks": marks, "columns": columns, "lr": 3e-4}
    table = pyarrow.parquet.read_table(data_folder() / "banking77/train.parquet")
    others = sorted({*table["intent"].to_pylist()} - {NEW_INTENT})
    chosen = {NEW_INTENT, *random.Random(SEED).sample(others, INTENTS - 1)}
    parts = {
        "all": lambda row: row,
        "old": lambda row: None if row["intent"] == NEW_INTENT else row,
        "new": only,
    }
    return grown("banking77", task, parts, rows, epochs, lambda row: row["intent"] in chosen)


def grown(
    name: str,
    task: dict[str, Any],
    parts: dict[str, Any],
    rows: int,
    epochs: int,
    counts: Any = lambda row: True,
) -> dict[str, Any]:
    """Scores of a model of all labels, of one of the old ones, and of that one grown in each way.

    Args:
        name: of the data.
        task: head, columns, what rows of the new label mark, learning rate.
        parts: by name a row to that of the part, None where it has none.
        rows: of train.
        epochs: of each training.
        counts: whether a row is among them.
    """
    from polyhead.train.commands import train
    from polyhead.train.commands.extend_task import extend_task

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part, of_part in parts.items():
            for split in ("train", "validation", "test"):
                path = data_folder() / name / f"{split}.parquet"
                read = pyarrow.parquet.read_table(path).to_pylist()
                read = [row for row in read if counts(row)]
                most = rows if split == "train" else SCORED
                read = random.Random(SEED).sample(read, min(most, len(read)))
                made = [row for row in map(of_part, read) if row is not None]
                text = "".join(json.dumps(row) + "\n" for row in made)
                (folder / f"{part}_{split}.jsonl").write_text(text, encoding="utf-8")
        encoder = {"encoder": encoder_folder()}
        for part in ("all", "old"):
            train(_recipe(folder, part, task, epochs, encoder))
        scores = {part: _scores(folder, part, task) for part in ("all", "old")}
        for way, (adapter, keep_) in WAYS.items():
            run = way.replace(" ", "_")
            path = _recipe(folder, "new", task, epochs, {}, run=run, adapter=adapter)
            changed = extend_task(folder / "old/model", path, keep=keep_)["extended"]["labels"]
            counts = {key: changed[key] for key in ("rows", "changed", "elsewhere")}
            scores[way] = {**_scores(folder, run, task), "answers": counts}
            print(way, scores[way], flush=True)
    return scores


def _recipe(
    folder: Path,
    part: str,
    task: dict[str, Any],
    epochs: int,
    more: dict[str, Any],
    *,
    run: str = "",
    adapter: dict[str, Any] | None = None,
) -> Path:
    """A recipe over the rows of a part, written beside them."""
    files = {s: str(folder / f"{part}_{s}.jsonl") for s in ("train", "validation", "test")}
    data = {"data_files": files, **task["columns"], **(task["marks"] if part == "new" else {})}
    options = {"head": task["head"], "data": data, **({"adapter": adapter} if adapter else {})}
    recipe = {
        **more,
        "tasks": {"labels": options},
        "training": {
            "num_train_epochs": epochs,
            "learning_rate": task["lr"] if more else 1e-3,
            "per_device_train_batch_size": 16 if more else 32,
            "seed": SEED,
            "disable_tqdm": True,
            "eval_strategy": "no",
            "save_strategy": "no",
        },
        "output_dir": str(folder / (run or part)),
    }
    path = folder / f"{run or part}.json.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _scores(folder: Path, run: str, task: dict[str, Any]) -> dict[str, Any]:
    """On test F1 by type; of texts that of the new label, and accuracy on the others."""
    from polyhead.modeling.pipeline_polyhead import PolyheadPipeline
    from polyhead.train.commands import evaluate
    from polyhead.train.inference.load import load_model

    model = folder / run / "model"
    if task["head"] == HEAD:
        scores = evaluate(model, folder / "all.json.yaml")["tasks"]["labels"]
        return _by_type(scores)
    loaded, tokenizer = load_model(model)
    lines = (folder / "all_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pipe = PolyheadPipeline(model=loaded, tokenizer=tokenizer, compute="exact")
    answers: Any = pipe([row["text"] for row in rows])
    said = [answer["labels"]["label"] for answer in answers]
    true = [row["intent"] for row in rows]
    old = [a == t for a, t in zip(said, true, strict=True) if t != NEW_INTENT]
    hits = sum(a == t == NEW_INTENT for a, t in zip(said, true, strict=True))
    both = said.count(NEW_INTENT) + true.count(NEW_INTENT)
    return {"new": 2 * hits / both, "old": sum(old) / len(old)}


def place(name: str) -> dict[str, Any]:
    """`data` of a set of words and tags."""
    return {"data_files": files_of(name), "tokens": "tokens", "label": "ner_tags"}


def trained(data: Any, rows: int, epochs: int) -> dict[str, float]:
    """F1 of all entities and of each type, on test."""
    from polyhead.train.commands.fitting import fit

    tasks = {"entities": {"head": HEAD, "data": data, "max_rows": rows}}
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(tasks, folder, seed=SEED, epochs=epochs, batch=16)
        _, scores, _ = fit(run)
    return _by_type(scores["tasks"]["entities"])


def _by_type(scores: dict[str, Any]) -> dict[str, float]:
    by_type = {kind: values["f1"] for kind, values in scores["per_type"].items()}
    return {"all": scores["entity_f1"], **by_type}


MEASURES = {"craft": craft, "corpora": corpora, "entity": entity, "intent": intent}

if __name__ == "__main__":
    main()
