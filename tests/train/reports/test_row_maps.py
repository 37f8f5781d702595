"""Maps of a run's rows: what heads read, with the labels of the rows."""

import numpy as np
import pytest
import torch
from polyhead.train.records import TASK_REPORT
from polyhead.train.reports import row_maps as maps
from polyhead.train.reports.figures import draw_report
from polyhead.train.reports.projection import project
from train_helpers import INTENTS, private_cache  # noqa: F401


@pytest.fixture
def made(build):
    """A trainer, and the maps of its validation rows."""
    trainer = build(evaluates=True)
    collator, prepare = trainer.evaluation.collator, trainer.prepare_inputs
    before = collator.sources
    trainer.model.train()
    sections = maps.row_maps(trainer.model, trainer.eval_dataset, collator, prepare, seed=0)
    assert collator.sources is before
    assert trainer.model.training
    return trainer, sections


def test_each_task_over_whole_texts_has_one(made):
    _, sections = made
    assert set(sections) == {"intent", "near", "same", "topics", "urgency"}  # slots reads tokens
    assert sections["near"]["labels"] == ["text1", "text2"] * 4
    assert sections["near"]["column"] == "column"
    assert set(sections["intent"]["labels"]) <= set(INTENTS)
    assert all(isinstance(label, float) for label in sections["urgency"]["labels"])
    assert set(sections["topics"]["labels"]) == {"", "travel", "travel, music"}
    assert {section["split"] for section in sections.values()} == {"validation"}


def test_points_are_those_of_the_vectors_that_the_head_reads(made, tokenizer_of):
    trainer, sections = made
    split = next(s for s in trainer.eval_dataset.values() if "intent" in s.source.tasks)
    raw = split.source.splits["validation"]
    texts = [raw[row]["text"] for row in split.rows["row"]]
    assert sections["intent"]["labels"] == [raw[row]["intent"] for row in split.rows["row"]]
    tokens = tokenizer_of("wordpiece")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = trainer.model.eval()(**tokens, tasks=()).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    expected = project(((states * mask).sum(1) / mask.sum(1)).numpy())
    points = np.array(sections["intent"]["points"])
    assert np.abs(points) == pytest.approx(np.abs(expected.points), abs=2e-3)
    assert sections["intent"]["title"] == expected.title


def test_it_is_drawn_from_the_report_alone(made, rendered, tmp_path):
    _, sections = made
    for task in ("intent", "near"):
        report = {"task": task, "kind": "x", "split": "test", "rows": 4, "map": sections[task]}
        assert TASK_REPORT.validate_python(report)
        assert [path.name for path in draw_report(report, tmp_path)] == [f"{task}_map.png"]


def test_many_rows_are_drawn_from_by_chance(build, monkeypatch):
    monkeypatch.setattr(maps, "ROWS", 3)
    trainer = build(evaluates=True)
    collator, prepare = trainer.evaluation.collator, trainer.prepare_inputs
    first, again, other = (
        maps.row_maps(trainer.model, trainer.eval_dataset, collator, prepare, seed=seed)
        for seed in (0, 0, 3)
    )
    assert len(first["intent"]["points"]) == 3
    assert first == again
    assert first != other


def test_a_text_in_several_windows_is_their_mean():
    vectors = torch.tensor([[1.0], [3.0], [5.0], [4.0]])
    assert maps.means_by_text(vectors, torch.tensor([2, 1, 1])).tolist() == [[2.0], [5.0], [4.0]]
    assert maps.means_by_text(vectors, torch.tensor([1, 1, 1, 1])) is vectors
