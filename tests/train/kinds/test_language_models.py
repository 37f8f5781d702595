"""Labels that are tokens of the text: masks, next tokens, blocks, perplexity."""

import math
from collections import Counter

import pytest
import torch
from conftest import CORPUS
from polyhead.modeling import TaskConfig
from polyhead.modeling.heads import IGNORE
from polyhead.train.batches.collator import MultiTaskCollator
from polyhead.train.data import MultiTaskDataset, tokenize
from polyhead.train.data.tokenization import join_blocks
from polyhead.train.kinds import kind_of
from train_helpers import run_cli, sources_of, task, write_recipe, write_rows


@pytest.fixture
def tokenizer(tokenizer_of, family):
    return tokenizer_of(family)


def masked(**options):
    return kind_of(TaskConfig(head="masked_lm", **options))


class TestMasks:
    """One text of 4,000 tokens, none of them special."""

    TEXT = [9 + i % 100 for i in range(4000)]

    @pytest.fixture
    def tokenizer(self, tokenizer_of):
        return tokenizer_of("wordpiece")

    def drawn(self, tokenizer, seed=(1,), words=None, **options):
        [ids], [labels] = masked(**options).labels_of([self.TEXT], words, tokenizer, seed)
        chosen = [i for i, label in enumerate(labels) if label != IGNORE]
        assert [labels[i] for i in chosen] == [self.TEXT[i] for i in chosen]
        assert all(ids[i] == self.TEXT[i] for i in range(4000) if i not in set(chosen))
        return ids, chosen

    def test_so_many_tokens_are_hidden(self, tokenizer):
        _, chosen = self.drawn(tokenizer, mlm_probability=0.3)
        assert abs(len(chosen) / 4000 - 0.3) < 0.03

    @pytest.mark.parametrize("shares", [None, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.2, 0.3]])
    def test_in_the_shares_that_are_asked_for(self, tokenizer, shares):
        ids, chosen = self.drawn(tokenizer, mlm_probability=1.0, mask_shares=shares)
        hidden = sum(ids[i] == tokenizer.mask_token_id for i in chosen) / len(chosen)
        kept = sum(ids[i] == self.TEXT[i] for i in chosen) / len(chosen)
        expected = shares or [0.8, 0.1, 0.1]
        assert abs(hidden - expected[0]) < 0.03
        assert abs(kept - expected[2]) < 0.03

    def test_words_are_hidden_whole(self, tokenizer):
        words = [[i // 3 for i in range(4000)]]
        _, chosen = self.drawn(tokenizer, words=words, whole_word=True, mlm_probability=0.3)
        counts = Counter(i // 3 for i in chosen)
        assert counts.keys() - {1333}
        assert set(counts.values()) <= {3, 1}
        assert abs(len(chosen) / 4000 - 0.3) < 0.04

    def test_a_seed_draws_the_same_again_and_another_other_ones(self, tokenizer):
        first, again, other = (self.drawn(tokenizer, seed=seed)[1] for seed in ((1,), (1,), (2,)))
        assert first == again
        assert first != other

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mlm_probability": 1.5}, "mlm_probability is 1.5; it must lie in"),
            ({"mask_shares": [0.8, 0.1]}, "mask_shares is .*; give .masked, random, kept"),
            ({"mask_shares": [0.8, 0.1, 0.2]}, "mask_shares is .* sum to 1"),
        ],
    )
    def test_odd_shares_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            masked(**options)

    def test_other_heads_do_not_read_them(self):
        with pytest.raises(ValueError, match="whole_word belongs to masked_lm, not to causal_lm"):
            TaskConfig(head="causal_lm", whole_word=True)


def test_masks_are_those_of_the_row_in_any_batch(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in CORPUS])
    [source] = sources_of(words=task("masked_lm", data_files=str(path), text="text"))
    rows = MultiTaskDataset({"words": tokenize(source, "train", tokenizer)})

    def masks(numbers, **options):
        collator = MultiTaskCollator(
            tokenizer, source.configs, ["words"], {"words": ["words"]}, mask_seed=3, **options
        )
        batch = collator(rows.__getitems__(numbers))
        labels = batch["labels"]["words"]
        if options:
            ends = batch["cu_seq_lens_q"].tolist()
            parts = [labels[0, s:e] for s, e in zip(ends[:-1], ends[1:], strict=True)]
        else:
            lengths = batch["attention_mask"].sum(1).tolist()
            parts = [text[:n] for text, n in zip(labels, lengths, strict=True)]
        return dict(zip(batch["rows"].tolist(), [part.tolist() for part in parts], strict=True))

    together = masks([0, 1, 2, 3, 4])
    assert together == masks([4, 2, 0, 3, 1], packed=True)
    for number in range(5):
        assert masks([number]) == {number: together[number]}


@pytest.mark.parametrize("packs", [False, True])
def test_the_label_of_a_token_is_the_next_of_its_text(packs, tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in CORPUS])
    [source] = sources_of(words=task("causal_lm", data_files=str(path), text="text"))
    rows = MultiTaskDataset({"words": tokenize(source, "train", tokenizer)})
    names = {"words": ["words"]}
    collator = MultiTaskCollator(tokenizer, source.configs, ["words"], names, packed=packs)
    batch = collator(rows.__getitems__(list(range(5))))
    ids, labels = batch["input_ids"], batch["labels"]["words"]
    if packs:
        cuts = batch["cu_seq_lens_q"].diff().tolist()
        ids, labels = ids[0].split(cuts), labels[0].split(cuts)
    for text, expected in zip(ids, labels, strict=True):
        known = (expected != IGNORE).nonzero()[:, 0].tolist()
        length = len(known) + 1
        assert known == list(range(length - 1))
        assert expected[: length - 1].tolist() == text[1:length].tolist()
        assert text[length - 1] == tokenizer.sep_token_id


class TestBlocks:
    def tokens(self, tokenizer, texts):
        inner = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [token for text in inner for token in text]

    def rows(self, tokenizer, tmp_path, texts, split="train", **options):
        path = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
        files = {"train": str(path), "test": str(path)}
        words = task("masked_lm", data_files=files, text="text", blocks=True, **options)
        [source] = sources_of(words=words)
        return tokenize(source, split, tokenizer)

    def test_short_texts_fill_them_and_nothing_is_lost(self, tokenizer, tmp_path):
        texts = [" ".join(text.split()[:3]) for text in CORPUS] * 40
        rows = self.rows(tokenizer, tmp_path, texts)
        sizes = [sum(map(len, block)) for block in rows["input_ids"]]
        assert max(sizes) <= 64
        assert sum(sizes) / (64 * len(sizes)) > 0.85
        special = set(tokenizer.all_special_ids)
        pieces = [text for block in rows["input_ids"] for text in block]
        for text in pieces:
            assert (text[0], text[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        found = Counter(token for text in pieces for token in text[1:-1])
        assert found == Counter(self.tokens(tokenizer, texts))
        assert special

    def test_a_long_text_is_cut_and_nothing_of_it_lost(self, tokenizer, tmp_path):
        text = " ".join(CORPUS * 5)
        rows = self.rows(tokenizer, tmp_path, [text], split="test")
        assert rows["window"] == list(range(len(rows)))
        found = [token for [piece] in rows["input_ids"] for token in piece[1:-1]]
        assert found == self.tokens(tokenizer, [text])

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_each_window_of_a_long_text_is_read(self, split, tokenizer, tmp_path):
        rows = self.rows(tokenizer, tmp_path, [" ".join(CORPUS * 5)], split=split)
        assert max(rows["window"]) > 0
        config = {"words": TaskConfig(head="causal_lm", blocks=True)}
        collator = MultiTaskCollator(tokenizer, config, ["words"], {"words": ["words"]})
        dataset = MultiTaskDataset({"words": rows})
        for number, block in enumerate(rows["input_ids"]):
            labels = collator(dataset.__getitems__([number]))["labels"]["words"]
            assert (labels != -100).sum() == sum(len(piece) - 1 for piece in block)

    def test_words_go_along(self, tokenizer, tmp_path):
        rows = self.rows(tokenizer, tmp_path, CORPUS, whole_word=True)
        for block, words in zip(rows["input_ids"], rows["token_words"], strict=True):
            for text, numbers in zip(block, words, strict=True):
                assert len(text) == len(numbers)
                assert numbers[0] == numbers[-1] == -1
                assert sorted(set(numbers[1:-1])) == list(range(numbers[-2] + 1))

    def test_a_block_counts_all_its_tokens(self, tokenizer, tmp_path):
        rows = self.rows(tokenizer, tmp_path, CORPUS * 3)
        lengths = MultiTaskDataset({"words": rows}).lengths
        assert lengths == [sum(map(len, block)) for block in rows["input_ids"]]

    def test_an_empty_text_is_no_piece(self, tokenizer, tmp_path):
        assert len(self.rows(tokenizer, tmp_path, [CORPUS[0], ""], split="test")) == 1

    def test_a_text_sees_itself_alone(self, tokenizer_of, tmp_path, make_model):
        tokenizer = tokenizer_of("wordpiece")
        rows = self.rows(tokenizer, tmp_path, CORPUS * 3)
        model = make_model("bert", {"words": TaskConfig(head="masked_lm")}).eval()
        config = {"words": TaskConfig(head="masked_lm", mlm_probability=0.0, blocks=True)}
        collator = MultiTaskCollator(
            tokenizer, config, ["words"], {"words": ["words"]}, packed=True, mask_seed=0
        )
        batch = collator(MultiTaskDataset({"words": rows}).__getitems__([0, 1]))
        inputs = {key: batch[key] for key in ("input_ids", "token_type_ids", "cu_seq_lens_q")}
        ends = batch["cu_seq_lens_q"].tolist()
        assert len(ends) - 1 == len(rows[0]["input_ids"]) + len(rows[1]["input_ids"])
        with torch.no_grad():
            together = model(**inputs).logits["words"][0]
            for start, end in zip(ends[:-1], ends[1:], strict=True):
                alone = model(batch["input_ids"][:, start:end]).logits["words"][0]
                torch.testing.assert_close(together[start:end], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["masked_lm", "causal_lm"])
def test_a_recipe_trains_in_blocks_and_scores_by_perplexity(head, encoder_folder, tmp_path, capsys):
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", [{"text": text} for text in CORPUS * 4])
    files = {split: f"${{RECIPE_DIR}}/{split}.jsonl" for split in ("train", "validation")}
    data = {"data_files": files, "text": "text"}
    recipe = {
        "encoder": str(encoder_folder("bert")),
        "tasks": {"words": {"head": head, "blocks": True, "data": data}},
        "output_dir": str(tmp_path / "run"),
        "training": {"max_steps": 2, "use_cpu": True, "report_to": "none", "eval_steps": 2},
    }
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert run_cli("train", path) == 0
    capsys.readouterr()
    assert run_cli("evaluate", tmp_path / "run/model", path, "--split", "validation", "--json") == 0
    out = capsys.readouterr().out
    assert '"perplexity"' in out
    assert run_cli("inspect", tmp_path / "run/model") == 0
    mask = "causal, trained with: bidirectional" if head == "causal_lm" else "bidirectional"
    assert f"mask: {mask}" in " ".join(capsys.readouterr().out.split())


def test_perplexity_alone_is_no_score_to_choose_by(tmp_path, capsys):
    data = {"path": "p", "text": "t"}
    words = {"head": "causal_lm", "data": data, "metrics": ["perplexity"]}
    tags = {"head": "token_classification", "data": {**data, "tokens": "w", "label": "l"}}
    recipe = {"encoder": "e", "output_dir": "o", "tasks": {"words": words, "tags": tags}}
    assert run_cli("train", write_recipe(tmp_path / "recipe.yaml", recipe)) == 2
    fault = " ".join(capsys.readouterr().err.split())
    assert "perplexity is lower where it is better; add token_accuracy" in fault
    assert "task words reads with a causal mask, tags in both directions" in fault


def test_even_a_hopeless_model_has_a_perplexity():
    scores = masked().score(torch.tensor([[0, 1, 1e9]]).numpy(), None)  # pyright: ignore
    assert math.isfinite(scores["perplexity"])


def test_rows_are_put_together_the_same_each_time(tokenizer_of):
    import datasets

    rows = [{"input_ids": [[1] * (3 + i * 7 % 11)], "row": i, "window": 0} for i in range(50)]
    pieces = datasets.Dataset.from_list(rows)
    first, again = (join_blocks(pieces, 16)["input_ids"] for _ in range(2))
    assert first[:] == again[:]
