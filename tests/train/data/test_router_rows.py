"""Rows of a router: which texts, and which tasks each is for."""

import datasets
from polyhead.train.data import router_rows as made
from polyhead.train.data.loading import load_sources
from polyhead.train.data.router_rows import router_rows
from polyhead.train.recipe.reader import load_recipe
from train_helpers import SEQUENCE, TOKENS, files_of, sources_of, task, write_recipe, write_rows


def rows_of(path, **columns):
    names = list(columns)
    values = zip(*columns.values(), strict=True)
    return str(write_rows(path, [dict(zip(names, row, strict=True)) for row in values]))


def labelled(rows: datasets.Dataset) -> dict[str, list[str]]:
    return dict(zip(rows["text"], rows["tasks"], strict=True))


def test_a_text_is_for_the_tasks_of_all_sources_that_have_it_in_any_split(tmp_path):
    one = rows_of(tmp_path / "one.jsonl", text=["a", "b", "c"], label=["x", "y", "x"])
    test = rows_of(tmp_path / "test.jsonl", text=["d", "e"], label=["x", "y"])
    two = rows_of(tmp_path / "two.jsonl", text=["b", "d", "  "], label=["x", "y", "x"])
    words = [["a", "f"], ["c"]]
    tags = rows_of(tmp_path / "tags.jsonl", words=words, tags=[["O", "B-x"], ["O"]])
    sources = sources_of(
        first=task(SEQUENCE, data_files={"train": one, "test": test}, text="text", label="label"),
        second=task(SEQUENCE, data_files={"train": two}, text="text", label="label"),
        third=task(TOKENS, data_files={"train": tags}, tokens="words", label="tags"),
    )
    splits = router_rows(sources, ["first", "second", "third"])
    assert list(splits) == ["train", "test"]
    assert labelled(splits["train"]) == {
        "a": ["first"],
        "b": ["first", "second"],
        "c": ["first", "third"],
        "d": ["first", "second"],
        "a f": ["third"],
    }
    assert labelled(splits["test"]) == {"d": ["first", "second"], "e": ["first"]}


def test_sources_give_as_many_texts_as_others_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "MOST_ROWS", 5)
    many = rows_of(tmp_path / "m.jsonl", text=[f"m{n}" for n in range(40)], label=["x", "y"] * 20)
    few = rows_of(tmp_path / "f.jsonl", text=[f"f{n}" for n in range(6)], label=["x", "y"] * 3)
    rare = rows_of(tmp_path / "r.jsonl", text=["r", "r", "s"], label=["x", "y", "x"])
    sources = sources_of(
        **{
            name: task(SEQUENCE, data_files={"train": path}, text="text", label="label")
            for name, path in (("many", many), ("few", few), ("rare", rare))
        }
    )
    names = ["few", "many", "rare"]
    rows = labelled(router_rows(sources, names)["train"])
    counts = {name: sum(name in tasks for tasks in rows.values()) for name in names}
    assert counts == {"few": 5, "many": 5, "rare": 2}
    assert rows == labelled(router_rows(sources, names)["train"])


def test_rows_of_a_recipe(tmp_path, tokenizer_of):
    from train_helpers import messages, pairs, recipe_of, write_splits

    write_splits(tmp_path, "messages", messages)
    write_splits(tmp_path, "pairs", pairs)
    tokenizer_of("wordpiece").save_pretrained(tmp_path / "tokenizer")
    raw = recipe_of(tmp_path / "tokenizer") | {"router": True}
    raw["tasks"]["copy"] = {
        "head": SEQUENCE,
        "data": {"data_files": files_of("pairs", "train"), "text": "text2", "label": "same"},
    }
    sources = load_sources(load_recipe(write_recipe(tmp_path / "r.yaml", raw)))
    router = sources[-1]
    known = ["copy", "intent", "near", "slots", "topics", "urgency"]
    assert router.configs["router"].labels == known  # no pairs, no language model
    assert router.configs["router"].problem_type == "multi_label_classification"
    train = labelled(router.splits["train"])
    ofs = {source.name: source for source in sources}
    for text in ofs["intent+slots+topics+urgency+words"].splits["train"]["text"]:
        assert train[text] == ["intent", "slots", "topics", "urgency"]
    assert train["book it"] == ["near"]  # both texts of a pair that is embedded
    assert train["book this"] == ["copy", "near"]
    assert set(router.splits) == {"train", "validation", "test"}
