"""Embedding losses over a whole step: cached micro-batches; see test_distributed.py for ranks."""

from dataclasses import replace

import pytest
import torch
from polyhead.train.recipe.sections import MultiTaskArguments, Sampling
from torch.testing import assert_close
from train_helpers import private_cache, task  # noqa: F401
from trainer_fixtures import logged, weights


@pytest.fixture
def tasks(usual_tasks, data):
    """Three embedding tasks and two others over the same rows."""
    pair = {"data_files": data("pairs"), "text": "text1", "text_pair": "text2"}
    chosen = {name: usual_tasks[name] for name in ("intent", "same")}
    return {
        **chosen,
        "alike": task("embedding", loss="contrastive", matryoshka=[16, 8], **pair),
        "order": task("embedding", label="score", loss="cosent", loss_weight=0.1, **pair),
        "turned": task("embedding", label="score", loss="angle", loss_weight=0.1, **pair),
    }


EVEN = MultiTaskArguments(sampling=Sampling(rows_together=1))  # they come in every step
CACHED = replace(EVEN, cached={"alike", "order", "turned"})


class TestCached:
    def test_accumulated_micro_batches_train_as_one_batch(self, build, tasks):
        whole = build(tasks, multitask=EVEN)
        whole.train()
        parts = build(tasks, size=3, accumulation=4, multitask=CACHED)
        parts.train()
        assert_close(weights(parts), weights(whole), rtol=0, atol=2e-5)
        assert_close(logged(parts, "loss_"), logged(whole, "loss_"), rtol=1e-4, atol=1e-5)
        alone = build(tasks, size=3, accumulation=4, multitask=EVEN)
        alone.train()
        apart = [(weights(alone)[key] - value).abs().max() for key, value in weights(whole).items()]
        assert max(apart) > 1e-3

    def test_the_second_pass_has_the_dropout_of_the_first(self, build, tasks):
        trainer = build(tasks, size=3, accumulation=4, multitask=CACHED, max_steps=1)
        for module in trainer.model.encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        seen = []
        trainer.model.register_forward_hook(
            lambda *hook_args: seen.append(hook_args[-1].embeddings or {})
        )
        trainer.train()
        first, second = seen[:4], seen[4:]
        assert [list(embeddings) for embeddings in first] == [
            list(embeddings) for embeddings in second
        ]
        assert any(first)
        for embeddings, again in zip(first, second, strict=True):
            for name, value in embeddings.items():
                assert_close(again[name], value, rtol=0, atol=0)

    def test_one_micro_batch_needs_no_second_pass(self, build, tasks):
        trainer, calls = build(tasks, multitask=CACHED, max_steps=1), []
        trainer.model.register_forward_hook(lambda *_: calls.append(1))
        trainer.train()
        assert len(calls) == 1
