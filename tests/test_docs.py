"""What the pages tell users to type is typed here, on a small model in the place of the demo's."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from polyhead.train.data import load_sources
from polyhead.train.hub import save_folder
from polyhead.train.recipe import load_recipe
from train_helpers import INTENTS, messages, run_cli, write_recipe, write_rows
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(python|bash)\n(.*?)```", re.DOTALL)


@pytest.fixture
def quickstart(make_model, tokenizer_of, tmp_path, monkeypatch):
    """A folder to stand in: `configs/` and a model of the quickstart's tasks, not trained."""
    sources = load_sources(load_recipe(ROOT / "configs/quickstart.yaml"))
    tasks = {name: config for source in sources for name, config in source.configs.items()}
    model = make_model("bert", tasks)
    save_folder(model, tokenizer_of("wordpiece"), tmp_path / "runs/quickstart/model")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_every_way_to_use_a_model(quickstart):
    blocks = BLOCK.findall((ROOT / "docs/use.md").read_text(encoding="utf-8"))
    known: dict = {}
    for language, text in blocks:
        if language == "python":
            exec(text, known)
            continue
        for line in text.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "polyhead"
            assert run_cli(*arguments) == 0, line
    assert {"bash", "python"} == {language for language, _ in blocks}
    assert [sorted(answer) for answer in known["answers"]] == [
        ["entities", "intent", "similarity", "urgency"]
    ] * 2
    assert sorted(known["answer"]) == ["entities", "intent"]
    torch.testing.assert_close(
        torch.from_numpy(known["vectors"]), known["out"].embeddings["similarity"]
    )
    for name, values in known["out"].logits.items():
        found = torch.from_numpy(known["outputs"][name])
        torch.testing.assert_close(found, values, rtol=0, atol=1e-4)


@pytest.fixture
def readme(encoder_folder, tmp_path, monkeypatch):
    """A folder with the files that the README's recipe names, and one more task to add."""
    parts = {"train": (24, 0), "dev": (8, 24), "test": (8, 32)}
    for name, (count, start) in parts.items():
        rows = messages(count, start)
        lines = [f"{row['text']},{row['intent']}" for row in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,intent", *lines]) + "\n")
        words = [{"tokens": row["tokens"], "tags": row["tags"]} for row in rows]
        write_rows(tmp_path / f"ner{'' if name == 'train' else f'_{name}'}.jsonl", words)
    texts = datasets.Dataset.from_dict({"text": [row["text"] for row in messages(6)]})
    texts.to_parquet(tmp_path / "texts.parquet")
    files = {"train": "train.csv", "test": "test.csv"}
    task = {"head": "sequence_classification", "labels": INTENTS}
    task["data"] = {"data_files": files, "text": "text", "label": "intent"}
    more = {"tasks": {"again": task}, "output_dir": "runs/more"}
    write_recipe(tmp_path / "more.yaml", more | {"training": {"num_train_epochs": 1}})
    monkeypatch.chdir(tmp_path)
    return encoder_folder("bert")


@pytest.mark.slow
def test_the_readme(readme, tmp_path):
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (recipe,) = [text for language, text in blocks if language == "yaml"]
    assert "sentence-transformers/all-MiniLM-L6-v2" in recipe
    recipe = recipe.replace("sentence-transformers/all-MiniLM-L6-v2", str(readme))
    (tmp_path / "recipe.yaml").write_text(recipe)
    (commands,) = [text for language, text in blocks if "polyhead inspect" in text]
    done = []
    for line in commands.splitlines():
        command, *arguments = shlex.split(line, comments=True)
        done.append(arguments[0])
        if command == "torchrun":  # a run of its own
            arguments += ["training.use_cpu=true", "output_dir=runs/ranks"]
            call = [sys.executable, "-m", "torch.distributed.run", *arguments]
            subprocess.run(call, check=True, capture_output=True, timeout=300)
            continue
        assert run_cli(*arguments) == 0, line
    expected = "inspect train evaluate predict affinity report add-task remove-task export push"
    assert set(expected.split()) <= set(done)
    for name in ("runs/mine/model", "runs/ranks/model", "runs/less", "exported", "entities"):
        assert (tmp_path / name / "config.json").is_file(), name
    assert (tmp_path / "answers.parquet").is_file()
    model = "PolyheadModel.from_encoder("
    (python,) = [text for language, text in blocks if language == "python" and model in text]
    tokenizer = AutoTokenizer.from_pretrained(readme)
    tokens = tokenizer(["go", "book a train"], padding=True, return_tensors="pt")
    slots = torch.zeros_like(tokens["input_ids"])
    known = {"tokens": dict(tokens), "ids": torch.tensor([0, 1])}
    known |= {"y": torch.tensor([0, -100]), "z": slots}
    exec(python.replace("<hub id or folder>", str(readme)), known)
    assert set(known["out"].losses) == {"intent", "slots"}
