"""What the pages tell users to type is typed here, on a small model in the place of the demo's."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from polyhead.train.data import load_sources
from polyhead.train.hub import save_folder
from polyhead.train.recipe import load_recipe
from train_helpers import run_cli

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
