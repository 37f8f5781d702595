"""Rows that mark some types only: masked against O taken at its word, and two corpora in one head.

`craft`: half of the train rows of craft_partial show two types of entities, half the other two;
validation and test show all four. `corpora`: ncbi_disease and bc2gm (diseases, genes) train one
head, beside a model of each. Each is one seed of the MiniLM encoder; `--rows` of train are drawn.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import SEED, data_folder, encoder_folder, keep, quiet

HEAD = "token_classification"


def main() -> None:
    """Train and score what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("craft", "corpora"))
    parser.add_argument("--rows", type=int, default=2000, help="of train, of each corpus")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    quiet()
    scores = {"craft": craft, "corpora": corpora}[options.what](options.rows, options.epochs)
    what = f"entity F1 on test, {options.rows} rows of train, {options.epochs} epochs"
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


def place(name: str) -> dict[str, Any]:
    """`data` of a set of words and tags."""
    folder = data_folder() / name
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    return {"data_files": files, "tokens": "tokens", "label": "ner_tags"}


def trained(data: Any, rows: int, epochs: int) -> dict[str, float]:
    """F1 of all entities and of each type, on test."""
    from polyhead.train.commands.fitting import fit
    from polyhead.train.commands.setup import prepare
    from polyhead.train.recipe.reader import build_recipe

    with tempfile.TemporaryDirectory() as folder:
        recipe = build_recipe(
            {
                "encoder": encoder_folder(),
                "tasks": {"entities": {"head": HEAD, "data": data, "max_rows": rows}},
                "training": {
                    "num_train_epochs": epochs,
                    "learning_rate": 1e-4,
                    "per_device_train_batch_size": 16,
                    "seed": SEED,
                    "disable_tqdm": True,
                    "use_cpu": True,
                    "eval_strategy": "no",
                    "save_strategy": "no",
                },
                "output_dir": str(Path(folder) / "run"),
            },
            "partial",
        )
        _, scores, _ = fit(prepare(recipe))
    entities = scores["tasks"]["entities"]
    by_type = {kind: values["f1"] for kind, values in entities["per_type"].items()}
    return {"all": entities["entity_f1"], **by_type}


if __name__ == "__main__":
    main()
