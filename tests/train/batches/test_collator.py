"""Rows to a batch: the exact keys, shapes and values; masks for masked LM."""

from dataclasses import replace

import pytest
import torch
from polyhead.modeling import TaskConfig
from polyhead.train.batches.collator import MultiTaskCollator, model_inputs

NAN = float("nan")
SEQUENCE = {"head": "sequence_classification"}
CONFIGS = {
    "intent": TaskConfig(**SEQUENCE, labels=["a", "b", "c"]),
    "near": TaskConfig(head="embedding"),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"]),
    "topics": TaskConfig(**SEQUENCE, labels=["a", "b"], problem_type="multi_label_classification"),
    "urgency": TaskConfig(**SEQUENCE, problem_type="regression"),
    "words": TaskConfig(head="masked_lm"),
}
NAMES = list(CONFIGS)
SOURCES = {"text": ["intent", "slots"], "pairs": ["near"], "more": ["topics", "urgency"]}


@pytest.fixture
def tokenizer(tokenizer_of):
    return tokenizer_of("wordpiece")


@pytest.fixture
def collate(tokenizer):
    return MultiTaskCollator(tokenizer, CONFIGS, NAMES, SOURCES)


def row(source, *texts, number=0, window=0, **labels):
    found = {"source": source, "row": number, "window": window, "input_ids": list(texts)}
    found["token_type_ids"] = [[0] * len(text) for text in texts]
    return {**found, **{f"labels_{name}": value for name, value in labels.items()}}


def assert_batch(found, expected):
    """The same keys in the same order, and the same tensors, of the same type and shape."""
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_batch(found[key], value)
        else:
            torch.testing.assert_close(found[key], torch.tensor(value), equal_nan=True)


class TestBatches:
    def test_rows_of_several_sources_make_one_batch(self, collate):
        rows = [
            row("text", [2, 7, 3], number=5, intent=1, slots=[-100, 2, -100]),
            row("pairs", [2, 8, 3], [2, 8, 9, 8, 3], number=1, near=0.5),
            row("more", [2, 3], number=0, topics=[1.0, 0.0], urgency=0.25),
            row("text", [2, 6, 6, 3], number=2, intent=-100, slots=[-100, 0, -100, -100]),
        ]
        intent, near, slots, topics, urgency, _ = range(6)
        assert_batch(
            collate(rows),
            {
                "input_ids": [
                    [2, 7, 3, 0, 0],
                    [2, 8, 3, 0, 0],
                    [2, 8, 9, 8, 3],
                    [2, 3, 0, 0, 0],
                    [2, 6, 6, 3, 0],
                ],
                "token_type_ids": [[0] * 5] * 5,
                "attention_mask": [
                    [1, 1, 1, 0, 0],
                    [1, 1, 1, 0, 0],
                    [1, 1, 1, 1, 1],
                    [1, 1, 0, 0, 0],
                    [1, 1, 1, 1, 0],
                ],
                "task_ids": [
                    [intent, slots],
                    [near, -1],
                    [near, -1],
                    [topics, urgency],
                    [intent, slots],
                ],
                "labels": {
                    "intent": [1, -100],
                    "near": [0.5],
                    "slots": [[-100, 2, -100, -100, -100], [-100, 0, -100, -100, -100]],
                    "topics": [[1.0, 0.0]],
                    "urgency": [0.25],
                },
                "rows": [5, 1, 0, 2],
                "windows": [0, 0, 0, 0],
                "sources": [0, 1, 2, 0],
                "counts": [[2, 7], [1, 8], [2, 7], [1, 2], [1, 2], [0, 0]],
            },
        )

    def test_one_task_makes_one_column_of_task_ids(self, collate):
        batch = collate([row("pairs", [2, 3], [2, 4, 3], near=NAN)])
        assert_batch(
            batch,
            {
                "input_ids": [[2, 3, 0], [2, 4, 3]],
                "token_type_ids": [[0] * 3] * 2,
                "attention_mask": [[1, 1, 0], [1, 1, 1]],
                "task_ids": [[1], [1]],
                "labels": {"near": [NAN]},
                "rows": [0],
                "windows": [0],
                "sources": [1],
                "counts": [[0, 0], [1, 5], [0, 0], [0, 0], [0, 0], [0, 0]],
            },
        )

    def test_an_encoder_without_segments_gets_none(self, collate):
        rows = [row("text", [2, 3], intent=0, slots=[-100, -100])]
        del rows[0]["token_type_ids"]
        found = model_inputs(collate(rows))
        assert list(found) == ["input_ids", "attention_mask", "task_ids", "labels"]

    def test_a_stopped_task_has_no_labels_and_is_not_counts(self, collate):
        rows = [row("text", [2, 7, 3], intent=2, slots=[-100, 1, -100])]
        everything = collate(rows)
        collate.stopped = {"slots"}
        left = collate(rows)
        assert sorted(everything["labels"]) == ["intent", "slots"]
        assert sorted(left["labels"]) == ["intent"]
        assert left["task_ids"].tolist() == [[NAMES.index("intent")]]
        assert left["counts"][NAMES.index("slots")].tolist() == [0, 0]

    def test_only_token_tasks_read_windows_after_the_first(self, collate):
        rows = [
            row("text", [2, 7, 3], number=4, window=0, intent=2, slots=[-100, 1, -100]),
            row("text", [2, 8, 3], number=4, window=1, intent=2, slots=[-100, 2, -100]),
        ]
        batch = collate(rows)
        assert batch["task_ids"].tolist() == [[0, 2], [2, -1]]
        assert batch["labels"]["intent"].tolist() == [2]
        assert batch["labels"]["slots"].tolist() == [[-100, 1, -100], [-100, 2, -100]]
        assert batch["rows"].tolist() == [4, 4]

    def test_padding_is_on_the_right_whatever_the_tokenizer_says(self, collate, tokenizer):
        tokenizer.padding_side = "left"
        try:
            batch = collate([row("pairs", [2, 3], [2, 4, 3], near=1.0)])
        finally:
            tokenizer.padding_side = "right"
        assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]

    def test_the_rows_given_stay_as_they_were(self, collate):
        given = row("text", [2, 7, 3], intent=1, slots=[-100, 2, -100])
        copy = {key: list(v) if isinstance(v, list) else v for key, v in given.items()}
        collate([given, row("text", [2, 7, 7, 3], intent=1, slots=[-100, 2, 0, -100])])
        assert given == copy

    def test_the_model_takes_the_batch(self, collate, make_model):
        model = make_model("bert", CONFIGS)
        batch = collate(
            [
                row("text", [2, 7, 3], intent=1, slots=[-100, 2, -100]),
                row("pairs", [2, 8, 3], [2, 8, 9, 8, 3], near=0.5),
            ]
        )
        out = model(**model_inputs(batch))
        assert batch["rows"].tolist() == [0, 0]
        assert sorted(out.losses) == ["intent", "near", "slots"]
        counts = {n: int(c) for n, c in model.count_items(batch["labels"]).items()}
        assert counts == {"intent": 1, "near": 1, "slots": 1}


class TestPacked:
    """Texts end to end in one row, those of like length side by side."""

    @pytest.fixture
    def collate(self, tokenizer):
        return MultiTaskCollator(tokenizer, CONFIGS, NAMES, SOURCES, packed=True)

    def test_rows_of_several_sources_make_one_row(self, collate):
        rows = [
            row("text", [2, 6, 6, 3], number=2, intent=-100, slots=[-100, 0, -100, -100]),
            row("pairs", [2, 8, 3], [2, 8, 9, 8, 3], number=1, near=0.5),
            row("more", [2, 3], number=0, topics=[1.0, 0.0], urgency=0.25),
            row("text", [2, 7, 3], number=5, intent=1, slots=[-100, 2, -100]),
        ]
        intent, near, slots, topics, urgency, _ = range(6)
        batch = collate(rows)
        lengths = batch.pop("cu_seq_lens_q")
        assert (lengths.tolist(), lengths.dtype) == ([0, 2, 5, 10, 13, 17], torch.int32)
        assert batch.pop("max_length_q") == 5
        assert_batch(
            batch,
            {
                "input_ids": [[2, 3, 2, 8, 3, 2, 8, 9, 8, 3, 2, 7, 3, 2, 6, 6, 3]],
                "token_type_ids": [[0] * 17],
                "task_ids": [
                    [topics, urgency],
                    [near, -1],
                    [near, -1],
                    [intent, slots],
                    [intent, slots],
                ],
                "labels": {
                    "intent": [1, -100],
                    "near": [0.5],
                    "slots": [[-100, 2, -100, -100, 0, -100, -100]],
                    "topics": [[1.0, 0.0]],
                    "urgency": [0.25],
                },
                "rows": [0, 1, 5, 2],
                "windows": [0, 0, 0, 0],
                "sources": [2, 1, 0, 0],
                "counts": [[2, 7], [1, 8], [2, 7], [1, 2], [1, 2], [0, 0]],
            },
        )

    @pytest.mark.parametrize("training", [False, True])
    def test_losses_are_those_of_the_padded_batch(self, collate, make_model, tokenizer, training):
        configs = {n: replace(c, dropout=0.0) for n, c in CONFIGS.items() if n != "words"}
        model = make_model("bert", configs).train(training)
        padded = MultiTaskCollator(tokenizer, CONFIGS, NAMES, SOURCES)
        rows = [
            row("text", [2, 6, 6, 3], intent=2, slots=[-100, 0, 1, -100]),
            row("pairs", [2, 8, 3], [2, 8, 9, 8, 3], near=0.5),
            row("pairs", [2, 9, 3], [2, 7, 3], near=1.0),
            row("more", [2, 7, 7, 7, 3], topics=[1.0, NAN], urgency=0.25),
            row("text", [2, 7, 3], intent=1, slots=[-100, 2, -100]),
        ]
        losses = []
        for one in (collate, padded):
            batch = one(rows)
            batch = model_inputs(batch)
            losses.append(model(**batch).losses)
        assert sorted(losses[0]) == ["intent", "near", "slots", "topics", "urgency"]
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)

    def test_a_row_of_as_many_labels_as_tokens_keeps_its_labels(self, make_model, tokenizer):
        names = ["a", "b", "c", "d", "e"]
        topics = TaskConfig(**SEQUENCE, labels=names, problem_type="multi_label_classification")
        configs = {"intent": CONFIGS["intent"], "topics": topics}
        sources = {"text": ["intent"], "more": ["topics"]}
        rows = [row("text", [2, 3], intent=1), row("more", [2, 7, 3], topics=[1.0] * 5)]
        model = make_model("bert", configs).eval()
        found = []
        for packed in (False, True):
            batch = MultiTaskCollator(tokenizer, configs, list(configs), sources, packed=packed)(
                rows
            )
            batch = model_inputs(batch)
            found.append(model(**batch).losses["topics"])
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


class TestMaskedLM:
    """A row of `mixed` is masked; a row of `text`, beside it, is not."""

    SOURCES = {"mixed": ["intent", "words"], "text": ["intent", "slots"]}

    @pytest.fixture
    def rows(self, tokenizer):
        texts = ["Book a table for two in Paris", "play", "Anna Smith works for Acme in Berlin"]
        ids = [tokenizer(text)["input_ids"] for text in texts * 4]
        found = [row("mixed", text, number=i, intent=0) for i, text in enumerate(ids)]
        labels = [-100] * len(ids[0])
        return [*found, row("text", ids[0], number=99, intent=1, slots=labels)]

    def collate(self, tokenizer, seed=None, share=0.3, packed=False):
        configs = {**CONFIGS, "words": TaskConfig(head="masked_lm", mlm_probability=share)}
        return MultiTaskCollator(
            tokenizer, configs, NAMES, self.SOURCES, mask_seed=seed, packed=packed
        )

    def plain(self, tokenizer, rows):
        return tokenizer.pad({"input_ids": [r["input_ids"][0] for r in rows]}, return_tensors="pt")

    def test_only_real_tokens_of_its_own_rows_are_masked(self, tokenizer, rows):
        plain = self.plain(tokenizer, rows)["input_ids"]
        special = torch.isin(plain, torch.tensor(tokenizer.all_special_ids))
        batch = self.collate(tokenizer, share=1.0)(rows)
        labels = batch["labels"]["words"]
        assert labels.shape == (12, plain.shape[1])
        expected = plain[:12].masked_fill(special[:12], -100)
        assert torch.equal(labels, expected)
        assert torch.equal(batch["input_ids"][12], plain[12])
        assert torch.equal(batch["input_ids"][:12][special[:12]], plain[:12][special[:12]])

    def test_packed_rows_are_masked_alike(self, tokenizer, rows):
        batch = self.collate(tokenizer, share=1.0, packed=True)(rows)
        order = batch["rows"].tolist()
        texts = {r["row"]: torch.tensor(r["input_ids"][0]) for r in rows}
        plain = torch.cat([texts[number] for number in order if number != 99])
        special = torch.isin(plain, torch.tensor(tokenizer.all_special_ids))
        labels = batch["labels"]["words"]
        assert torch.equal(labels, plain.masked_fill(special, -100).unsqueeze(0))
        ends = batch["cu_seq_lens_q"].tolist()
        for place, number in enumerate(order):
            found = batch["input_ids"][0, ends[place] : ends[place + 1]]
            kept = torch.isin(texts[number], torch.tensor(tokenizer.all_special_ids))
            assert torch.equal(found[kept], texts[number][kept])
            assert number != 99 or torch.equal(found, texts[number])

    def test_labels_are_the_tokens_that_stood_there(self, tokenizer, rows):
        plain = self.plain(tokenizer, rows)["input_ids"]
        batch = self.collate(tokenizer)(rows)
        labels, ids = batch["labels"]["words"], batch["input_ids"][:12]
        chosen = labels != -100
        assert 0 < int(chosen.sum()) < int((plain[:12] > 4).sum())
        assert torch.equal(labels[chosen], plain[:12][chosen])
        assert torch.equal(ids[~chosen], plain[:12][~chosen])
        assert int((ids[chosen] == tokenizer.mask_token_id).sum()) > 0

    def test_the_share_of_masked_tokens_is_the_one_asked_for(self, tokenizer, rows):
        batch = self.collate(tokenizer, share=0.0)(rows)
        assert bool((batch["labels"]["words"] == -100).all())
        assert torch.equal(batch["input_ids"], self.plain(tokenizer, rows)["input_ids"])

    def test_a_seed_masks_the_same_tokens_each_time(self, tokenizer, rows):
        first, second = (self.collate(tokenizer, seed=1)(rows) for _ in range(2))
        again = self.collate(tokenizer, seed=1)
        again(rows[3:])
        third = again(rows)
        for batch in (second, third):
            assert torch.equal(first["input_ids"], batch["input_ids"])
            assert torch.equal(first["labels"]["words"], batch["labels"]["words"])

    def test_another_seed_masks_others(self, tokenizer, rows):
        first, second = (self.collate(tokenizer, seed=seed)(rows) for seed in (1, 2))
        assert not torch.equal(first["labels"]["words"], second["labels"]["words"])

    def test_without_a_seed_each_batch_is_drawn_anew(self, tokenizer, rows):
        collate = self.collate(tokenizer)
        first, second = collate(rows), collate(rows)
        assert not torch.equal(first["labels"]["words"], second["labels"]["words"])
