"""What the pages tell users to type is typed here, on small files and a small model."""

import json
import re
import shlex
from pathlib import Path

import datasets
import pytest
import torch
from pages import COMMANDS, ROOT, blocks_of, run_page
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.train.commands import edit_tasks as tasks
from polyhead.train.commands import extend_task
from polyhead.train.data.loading import load_sources
from polyhead.train.hub import save_folder
from polyhead.train.hub.proof import fingerprint
from polyhead.train.recipe import load_recipe
from safetensors.torch import load_file
from train_helpers import (
    INTENTS,
    messages,
    pairs,
    private_cache,  # noqa: F401
    tables,  # noqa: F401
    write_recipe,
)
from transformers import AutoTokenizer

PAGES = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if re.search("```|~~~", path.read_text(encoding="utf-8"))
]
SEQUENCE, TOKENS = "sequence_classification", "token_classification"


def write(name: str, rows: list[dict], *columns: str) -> None:
    """These columns of the rows, in the format that the name ends with."""
    chosen = datasets.Dataset.from_list(rows).select_columns(list(columns))
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    {".csv": chosen.to_csv, ".jsonl": chosen.to_json, ".parquet": chosen.to_parquet}[
        Path(name).suffix
    ](name)


def hashes_here(folder: str | Path) -> dict:
    """Hashes without a process of their own: the same ones, sooner."""
    return fingerprint(PolyheadModel.from_pretrained(folder))


@pytest.fixture
def typed(tmp_path, monkeypatch) -> Path:
    """The folder in which a page is typed: `configs/` and the data files that pages name."""
    monkeypatch.setattr(tasks, "fresh_fingerprint", hashes_here)
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for name, count, start in (("train", 24, 0), ("dev", 8, 24), ("test", 8, 32)):
        write(f"{name}.csv", messages(count, start), "text", "intent")
    for name, start in (("ner.jsonl", 0), ("ner_dev.jsonl", 20), ("ner_test.jsonl", 32)):
        write(name, messages(24 if start == 0 else 8, start), "tokens", "tags")
    write("texts.parquet", messages(6), "text")
    write("messages.csv", messages(6), "text", "intent")
    alike = [{"text": row["text1"], "other": row["text2"]} for row in pairs(4)]
    write("pairs.csv", alike, "text", "other")
    return tmp_path


@pytest.fixture
def quickstart(typed, make_model, tokenizer_of) -> None:
    """A model of the quickstart's tasks, not trained."""
    sources = load_sources(load_recipe(ROOT / "configs/quickstart.yaml"))
    configs = {name: config for source in sources for name, config in source.configs.items()}
    model = make_model("bert", configs)
    save_folder(model, tokenizer_of("wordpiece"), typed / "runs/quickstart/model")


@pytest.fixture
def recipe(typed) -> dict:
    """A recipe of two tasks, to be given an encoder."""
    intent = {"data_files": {"train": "train.csv", "test": "test.csv"}, "text": "text"}
    words = {"data_files": {"train": "ner.jsonl", "test": "ner_test.jsonl"}, "tokens": "tokens"}
    return {
        "tasks": {
            "intent": {"head": SEQUENCE, "data": intent | {"label": "intent"}},
            "entities": {"head": TOKENS, "data": words | {"label": "tags"}},
        },
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
        "output_dir": "runs/mine",
    }


def test_a_test_types_every_block_of_every_page():
    source = Path(__file__).read_text(encoding="utf-8")
    assert sorted(re.findall(r'\brun_page\("(.+?)"', source)) == sorted(PAGES)
    for page in PAGES:
        text, blocks = (ROOT / page).read_text(encoding="utf-8"), blocks_of(page)
        assert "~~~" not in text
        assert text.count("```") == 2 * len(blocks), f"{page}: a block that nobody reads"
        for language, block in blocks:
            assert language in ("bash", "python", "yaml"), page
            if language == "bash":
                lines = [shlex.split(line, comments=True) for line in block.splitlines()]
                assert {line[0] for line in lines} <= set(COMMANDS), page


@pytest.mark.slow
def test_every_way_that_a_task_grows(recipe, encoder_folder, monkeypatch):
    entities = [
        {"tokens": ["BRCA1", "binds"], "tags": ["B-gene", "O"]},
        {"tokens": ["a", "cancer"], "tags": ["O", "B-disease"]},
    ]
    write("genes.jsonl", entities[:1], "tokens", "tags")
    diseases = [{"words": row["tokens"], "ner": row["tags"]} for row in entities[1:]]
    write("diseases.jsonl", diseases, "words", "ner")
    labels = ["card", "charge", "other"]
    write("mail.csv", [{"text": f"my {x}", "label": x} for x in labels], "text", "label")
    write_recipe(Path("recipe.yaml"), recipe | {"encoder": str(encoder_folder("bert"))})
    monkeypatch.setattr(extend_task, "fresh_fingerprint", hashes_here)
    merged, mail = run_page("docs/grow.md", encoder_folder("bert"))["parts"]
    assert merged.tasks["entities"].partial == [["O", "B-disease"], ["O", "B-gene"]]
    assert mail.tasks["mail"].partial is None  # thanks is all that is left
    (kept,) = Path("runs/extended").glob("model.*")
    grown = PolyheadModel.from_pretrained(kept).config.tasks["entities"]
    assert set(grown.strict) == {"gene"}
    back = PolyheadModel.from_pretrained("runs/extended/model").config.tasks["entities"]
    assert back.strict is None


@pytest.mark.slow
def test_every_way_to_use_a_model(quickstart, encoder_folder):
    known = run_page("docs/use.md", encoder_folder("bert"))
    assert [sorted(answer) for answer in known["answers"]] == [  # those of the threads, made last
        ["entities", "intent", "similarity", "urgency"]
    ] * 3
    assert sorted(known["answer"]) == ["entities", "intent"]
    torch.testing.assert_close(
        torch.from_numpy(known["vectors"]), known["out"].embeddings["similarity"]
    )
    for name, values in known["out"].logits.items():
        logits = torch.from_numpy(known["outputs"][name])
        torch.testing.assert_close(logits, values, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_map_on_a_ray_cluster_of_this_machine(quickstart, encoder_folder, monkeypatch):
    ray = pytest.importorskip("ray", reason='needs Ray: pip install "polyhead[ray]"')
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    options = {"include_dashboard": False, "log_to_driver": False}
    ray.init(num_cpus=2, object_store_memory=80 * 2**20, **options)
    try:
        run_page("docs/ray.md", encoder_folder("bert"))
    finally:
        ray.shutdown()
    answers = datasets.Dataset.from_parquet("answers/*.parquet")
    assert answers.column_names == ["text", "intent", "entities"]
    assert answers["text"] == [row["text"] for row in messages(6)]


@pytest.mark.slow
def test_a_page_without_its_port(quickstart, encoder_folder):
    run_page("docs/page.md", encoder_folder("bert"))


@pytest.mark.slow
def test_one_model_after_many(typed, encoder_folder):
    known = run_page("docs/from_n_models.md", encoder_folder("bert"))
    assert {"one", "old", "new"} <= known.keys()
    again = PolyheadModel.from_pretrained("runs/two/model")
    assert again.task_names == ["entities", "intent", "second"]
    for task in ("entities", "intent"):
        for name, value in known["one"].heads[task].state_dict().items():
            assert torch.equal(again.heads[task].state_dict()[name], value), name


@pytest.mark.slow
def test_a_server_without_its_port(quickstart, encoder_folder):
    run_page("docs/serve.md", encoder_folder("bert"))


@pytest.mark.slow
def test_the_readme_with_make_on_a_dry_run_and_ranks_left_to_their_page(
    quickstart, encoder_folder, monkeypatch
):
    def typed_elsewhere(arguments: list[str], encoder: Path) -> None:
        line = shlex.join(["torchrun", *arguments])
        assert line in blocks_of("docs/distributed.md")[0][1].splitlines()

    monkeypatch.setitem(COMMANDS, "torchrun", typed_elsewhere)
    files = {"train": "train.csv", "test": "test.csv"}
    task = {"head": SEQUENCE, "labels": INTENTS}
    task["data"] = {"data_files": files, "text": "text", "label": "intent"}
    more = {"tasks": {"again": task}, "output_dir": "runs/more"}
    write_recipe(Path("more.yaml"), more | {"training": {"num_train_epochs": 1}})
    encoder = encoder_folder("bert")
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokens = tokenizer(["go", "book a train"], padding=True, return_tensors="pt")
    slots = torch.zeros_like(tokens["input_ids"])
    names = {"tokens": dict(tokens), "ids": torch.tensor([0, 1])}
    names |= {"y": torch.tensor([0, -100]), "z": slots}
    known = run_page("README.md", encoder, names)
    for name in ("runs/mine/model", "runs/more/model", "runs/less", "exported", "entities"):
        assert (Path(name) / "config.json").is_file(), name
    assert Path("answers.parquet").is_file()
    assert set(known["out"].losses) == {"intent", "slots"}


@pytest.mark.slow
def test_training_from_nothing_but_data_files(typed, make_model, tokenizer_of, encoder_folder):
    write("messages.csv", messages(40), "text", "intent")
    write("words.jsonl", messages(24), "tokens", "tags")
    write("words_test.jsonl", messages(8, 24), "tokens", "tags")
    write("topics.jsonl", messages(24), "text", "topics")
    labels, tags = INTENTS, ["O", "B-city", "I-city"]
    teachers = {
        "intent": TaskConfig(head=SEQUENCE, labels=labels),
        "entities": TaskConfig(head=TOKENS, labels=tags, scheme="iob2"),
    }
    for name, config in teachers.items():
        teacher = make_model("bert", {name: config})
        save_folder(teacher, tokenizer_of("wordpiece"), f"runs/{name}/model")
    known = run_page("docs/training.md", encoder_folder("bert", num_hidden_layers=6))
    model = PolyheadModel.from_pretrained("runs/mine/model")
    assert model.config.tasks["intent"].labels == labels
    assert model.config.tasks["entities"].labels == tags
    assert len(known["parts"]) == 13


@pytest.mark.slow
def test_sections_of_recipes(recipe, make_model, tokenizer_of, encoder_folder):
    write("messages.jsonl", messages(12), "text", "intent", "tokens", "tags", "topics")
    texts = [
        {"question": row["text"], "answer": f"to {row['intent']}, type it"} for row in messages(12)
    ]
    write("questions.csv", texts, "question", "answer")
    damages = ["None", "Water", "Torn", "n/a", "?", ""] * 2
    lines = [{"text": f"claim {i}", "damage": damage} for i, damage in enumerate(damages)]
    write("claims [2024].csv", lines, "text", "damage")
    claims = [
        {"text": f"claim {i}", "damage": name, "trust": i / 5, "votes": None if i % 2 else votes}
        for i, name in enumerate(["none", "torn", "water"] * 4)
        for votes in ([0.1, 0.8, 0.1],)
    ]
    write("claims.jsonl", claims, "text", "damage", "trust", "votes")
    vectors = [{"text": f"text {i}", "vector": [i % 2, 1, i % 3 % 2]} for i in range(12)]
    write("topics.jsonl", vectors, "text", "vector")
    long = "the train to paris and then some music " * 12
    papers = [{"title": f"paper {i}", "body": f"{i} {long}"} for i in range(12)]
    write("papers.jsonl", papers, "title", "body")
    clauses = [
        {"hypothesis": f"claim {i}", "text": f"{i} {long}", "label": "ab"[i % 2]} for i in range(12)
    ]
    write("contracts.jsonl", clauses, "hypothesis", "text", "label")
    wide = {"hidden_size": 384}
    teacher = make_model("bert", {"similarity": TaskConfig(head="embedding")}, **wide)
    save_folder(teacher, tokenizer_of("wordpiece"), "runs/teacher/model")
    encoder = encoder_folder("bert", **wide)
    write_recipe(Path("recipe.yaml"), {"encoder": str(encoder)} | recipe)
    configs = run_page("docs/recipes.md", encoder)["parts"]
    assert [sorted(set(config.tasks) - set(recipe["tasks"])) for config in configs] == [
        ["words"],
        ["damage", "topics"],
        [],
        ["damage"],
        ["search"],
        ["vectors"],
        [],
        ["topics"],
        ["contract", "search"],
    ]
    assert configs[0].get_text_config().hidden_size == 256
    assert {task.adapter for task in configs[6].tasks.values()} == {"intent"}


@pytest.mark.slow
def test_an_encoder_from_nothing_and_heads_on_it(typed, encoder_folder):
    documents = [{"text": f"One is {i}. Two is more. Three is most."} for i in range(8)]
    write("documents.jsonl", documents, "text")
    run_page("docs/pretraining.md", encoder_folder("bert"))
    base = PolyheadModel.from_pretrained("runs/base/model")
    assert base.config.get_text_config().model_type == "modernbert"
    heads = PolyheadModel.from_pretrained("runs/heads/model")
    assert heads.config.trained_causal
    more = PolyheadModel.from_pretrained("runs/more/model")
    assert sorted(more.task_names) == ["entities", "intent"]
    kept, other = (m.heads["intent"].state_dict() for m in (heads, more))
    torch.testing.assert_close(kept, other, rtol=0, atol=0)


@pytest.mark.slow
def test_annotations_of_tools(recipe, encoder_folder):
    for name in ("label_studio.json", "wnut.conll"):
        Path(name).symlink_to(ROOT / "tests/data" / name)
    encoder = encoder_folder("bert")
    write_recipe(Path("recipe.yaml"), {"encoder": str(encoder)} | recipe)
    [config] = run_page("docs/data.md", encoder)["parts"]
    assert sorted(config.tasks) == ["entities", "intent", "sentiment"]
    rows = [json.loads(line) for line in Path("spans.jsonl").read_text().splitlines()]
    spans = [[{"start": 0, "end": 4, "label": "PER"}], [], None]
    assert [row["spans"] for row in rows] == spans


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
def test_parts_of_ones_own(typed, encoder_folder):
    write("pairs_test.csv", pairs(6), "text1", "text2", "score")
    write("pairs.csv", pairs(16), "text1", "text2", "score")
    known = run_page("docs/extend.md", encoder_folder("bert"))
    assert known["recipe"].tasks["intent"].head == "gated"
    assert known["answer"]["intent"]["label"] in INTENTS
    scores = json.loads(Path("runs/extended/scores.json").read_text(encoding="utf-8"))
    assert set(scores["tasks"]["intent"]) == {"accuracy", "worst_recall"}


@pytest.fixture
def public_data(typed, monkeypatch) -> None:
    """Small files with the columns of the public ones."""
    names = {
        "banking77": ["text", "intent"],
        "wnut17": ["tokens", "ner_tags"],
        "sst2": ["text", "sentiment"],
        "stsb": ["sentence1", "sentence2", "score"],
        "snips": ["text", "intent", "tokens", "ner_tags"],
    }
    for split, count, start in (("train", 12, 0), ("validation", 6, 12), ("test", 6, 18)):
        rows = [
            one
            | {"ner_tags": one["tags"], "sentiment": one["intent"]}
            | {"sentence1": two["text1"], "sentence2": two["text2"], "score": two["score"]}
            for one, two in zip(messages(count, start), pairs(count, start), strict=True)
        ]
        for name, columns in names.items():
            write(f"public/{name}/{split}.parquet", rows, *columns)
    monkeypatch.setenv("POLYHEAD_DATA", str(typed / "public"))


@pytest.mark.slow
def test_adapters_and_tasks_that_come_and_go_with_small_files_for_public_data(
    public_data, encoder_folder
):
    write("urgency.csv", messages(24), "text", "urgency")
    write("urgency_test.csv", messages(8, 24), "text", "urgency")
    known = run_page("docs/adapters.md", encoder_folder("bert"))
    assert known["part"].loaded_adapters == ["urgency"]
    assert PolyheadModel.from_pretrained("runs/less").task_names == ["entities", "urgency"]
    slots = PolyheadModel.from_pretrained("runs/add_slots/model")
    assert slots.config.adapters == ["entities", "intent", "sentiment", "similarity", "slots"]
    assert Path("runs/topic/model/adapters/topic/adapter_model.safetensors").is_file()
    assert known["model"].config.tasks["topic"].adapter == "blend"
    ids = torch.arange(5, 25).view(2, 10)
    model = PolyheadModel.from_pretrained("runs/urgency/model").eval()
    with torch.no_grad():
        expected = model(input_ids=ids, tasks=["urgency"]).last_hidden_state
        states = known["encoder"].eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states, expected)


@pytest.mark.slow
def test_two_processes_on_cpus_while_lines_for_gpus_and_nodes_are_parsed(recipe, encoder_folder):
    encoder = encoder_folder("bert")
    write_recipe(Path("recipe.yaml"), {"encoder": str(encoder)} | recipe)
    run_page("docs/distributed.md", encoder)
    one, other = (
        load_file(f"runs/{by}/model/model.safetensors") for by in ("torchrun", "accelerate")
    )
    torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_training_from_python_on_rows_in_memory(recipe, encoder_folder):
    encoder = encoder_folder("bert")
    write_recipe(Path("recipe.yaml"), {"encoder": str(encoder)} | recipe)
    known = run_page("docs/python.md", encoder)
    assert known["metrics"]["eval_intent_accuracy"] >= 0
    assert [sorted(answer) for answer in known["answers"]] == [["label", "score"]] * 4
    assert (Path("runs/objects/model") / "config.json").is_file()
