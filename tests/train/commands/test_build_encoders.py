"""What a recipe may name as `encoder`: a trained tokenizer, a finished Polyhead."""

import pytest
import torch
from conftest import CORPUS, shake_adapters
from polyhead.modeling import PolyheadModel
from polyhead.train.commands.setup import prepare
from polyhead.train.commands.tokenizers import texts_of, train_tokenizer
from polyhead.train.errors import UserError
from polyhead.train.recipe.schema import TrainedTokenizer
from torch.testing import assert_close
from train_helpers import (
    CITIES,
    files_of,
    messages,
    run_cli,
    sources_of,
    task,
    write_recipe,
    write_rows,
    write_splits,
)
from transformers import AutoModel, AutoTokenizer

TRAINING = {"max_steps": 2, "use_cpu": True, "report_to": "none"}
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"intermediate_size": 48, "max_position_embeddings": 64}


@pytest.fixture
def folder(tmp_path):
    write_splits(tmp_path, "messages", messages)
    return tmp_path


def recipe(folder, encoder, name="run", tasks=("intent",), **more):
    data = {"data_files": files_of("messages", "train", "validation"), "text": "text"}
    heads = {
        "intent": {"head": "sequence_classification", "data": {**data, "label": "intent"}},
        "urgency": {
            "head": "sequence_classification",
            "problem_type": "regression",
            "data": {**data, "label": "urgency"},
        },
        "next": {"head": "causal_lm", "data": data},
    }
    chosen = {task: {**heads[task], **more.pop(task, {})} for task in tasks}
    whole = {"encoder": encoder, "tasks": chosen, "output_dir": str(folder / name), **more}
    return write_recipe(folder / f"{name}.yaml", {**whole, "training": TRAINING})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_encoder_in_half_precision_trains_in_float32(dtype, folder, encoder_folder):
    encoder = AutoModel.from_pretrained(encoder_folder("bert")).to(dtype)
    encoder.save_pretrained(folder / "half")
    AutoTokenizer.from_pretrained(encoder_folder("bert")).save_pretrained(folder / "half")
    model = prepare(recipe(folder, str(folder / "half"))).model
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.config.dtype == model.config.encoder_config.dtype == torch.float32
    for name, weight in encoder.named_parameters():
        if "pooler" not in name:
            assert torch.equal(model.encoder.get_parameter(name), weight.float())


class TestTokenizers:
    @pytest.fixture
    def sources(self, tmp_path):
        path = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in CORPUS * 3])
        return sources_of(words=task("masked_lm", data_files=str(path), text="text"))

    @pytest.mark.parametrize("family", ["wordpiece", "bpe", "unigram"])
    def test_it_reads_the_texts_that_it_was_trained_on(self, family, sources):
        options = TrainedTokenizer(train=family, vocab_size=400)
        tokenizer = train_tokenizer(options, sources)
        assert 80 < len(tokenizer) <= 400
        assert [tokenizer.pad_token_id, tokenizer.mask_token_id] == [0, 4]
        for text in texts_of(sources):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            back = tokenizer.decode(ids, skip_special_tokens=True)
            assert "".join(back.split()) == "".join(text.split())
        types = tokenizer("a", "b")["token_type_ids"]
        assert types == sorted(types)
        assert set(types) == {0, 1}

    @pytest.mark.parametrize("family", ["wordpiece", "bpe"])
    def test_it_is_the_same_each_time(self, family, sources):
        options = TrainedTokenizer(train=family, vocab_size=400)
        made = [train_tokenizer(options, sources).get_vocab() for _ in range(3)]
        assert made[0] == made[1] == made[2]

    def test_a_unigram_for_each_process_is_refused(self, sources, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match="unigram is another one in each process"):
            train_tokenizer(TrainedTokenizer(train="unigram"), sources)

    def test_texts_without_letters_are_refused(self, tmp_path, capsys):
        write_rows(tmp_path / "rows.jsonl", [{"text": " "}, {"text": ""}])
        words = {"head": "masked_lm", "data": {"data_files": str(tmp_path / "rows.jsonl")}}
        words["data"]["text"] = "text"
        encoder = {"config": BERT, "tokenizer": {"train": "wordpiece", "vocab_size": 400}}
        path = write_recipe(
            tmp_path / "r.yaml",
            {"encoder": encoder, "tasks": {"words": words}, "output_dir": str(tmp_path / "run")},
        )
        assert run_cli("train", path) == 2
        assert "there is no text to train it on" in " ".join(capsys.readouterr().err.split())
        (tmp_path / "rows.jsonl").write_text("")
        assert run_cli("train", path) == 2
        assert "a file is empty" in " ".join(capsys.readouterr().err.split())

    def test_fewer_pieces_than_signs_are_refused(self, sources):
        options = TrainedTokenizer(train="wordpiece", vocab_size=300)
        options.vocab_size = 20
        with pytest.raises(ValueError, match="vocab_size: 20, but single signs alone take"):
            train_tokenizer(options, sources)

    def test_a_run_that_resumes_keeps_its_tokenizer(self, folder):
        encoder = {"config": BERT, "tokenizer": {"train": "unigram", "vocab_size": 300}}
        path = recipe(folder, encoder)
        assert run_cli("train", path, "training.save_steps=1", "training.save_strategy=steps",
                       "training.eval_strategy=steps", "training.eval_steps=1") == 0  # fmt: skip
        first = AutoTokenizer.from_pretrained(folder / "run/model").get_vocab()
        run = prepare(path, ["training.resume_from_checkpoint=true"])
        assert run.tokenizer.get_vocab() == first
        assert run.model.config.encoder_config.vocab_size == len(first)


@pytest.fixture(scope="module")
def base(tmp_path_factory, encoder_folder):
    """A model of two tasks, one of them behind an adapter."""
    folder, adapter = tmp_path_factory.mktemp("base"), {"r": 2, "lora_alpha": 4}
    write_splits(folder, "messages", messages)
    path = recipe(
        folder, str(encoder_folder("bert")), "base", ("intent", "urgency"), pooling="cls",
        urgency={"adapter": adapter},
    )  # fmt: skip
    assert run_cli("train", path) == 0
    name = folder / "base/model"
    model = PolyheadModel.from_pretrained(name)
    shake_adapters(model)
    model.save_pretrained(name)
    return name, model


class TestFinished:
    def states(self, model, **options):
        ids = torch.tensor([[2, 9, 30, 31, 3]])
        with torch.no_grad():
            return model.eval()(ids, **options)

    def test_its_name_gives_encoder_and_pooling(self, base, folder):
        name, model = base
        run = prepare(recipe(folder, str(name)))
        assert run.model.task_names == ["intent"]
        assert run.model.config.adapters == []
        assert run.model.config.pooling == "cls"
        assert run.model.config.encoder_config.model_type == "bert"
        expected = self.states(model, tasks=()).last_hidden_state
        assert_close(self.states(run.model, tasks=()).last_hidden_state, expected)
        assert prepare(recipe(folder, str(name), pooling="max")).model.config.pooling == "max"

    def test_an_adapter_is_merged(self, base, folder):
        name, model = base
        run = prepare(recipe(folder, {"model": str(name), "merge": "urgency"}))
        expected = self.states(model, tasks=["urgency"]).last_hidden_state
        found = self.states(run.model, tasks=()).last_hidden_state
        assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert run.model.loaded_adapters == []

    def test_tasks_are_kept_with_head_and_adapter(self, base, folder):
        name, model = base
        encoder = {"model": str(name), "keep_tasks": ["urgency"]}
        path = recipe(folder, encoder, "more", freeze={"encoder": True})
        assert run_cli("train", path) == 0
        kept = PolyheadModel.from_pretrained(folder / "more/model")
        assert kept.task_names == ["urgency", "intent"]
        assert torch.equal(
            self.states(kept).logits["urgency"], self.states(model).logits["urgency"]
        )

    def test_a_task_goes_on_from_its_head(self, base, folder):
        name, model = base
        run = prepare(recipe(folder, {"model": str(name), "keep_tasks": ["intent"]}))
        assert torch.equal(
            self.states(run.model).logits["intent"], self.states(model).logits["intent"]
        )
        assert run.sources[0].configs["intent"] is run.model.config.tasks["intent"]

    def test_a_merged_task_reads_the_encoder(self, base, folder):
        name, model = base
        encoder = {"model": str(name), "merge": "urgency", "keep_tasks": ["urgency"]}
        path = recipe(folder, encoder, freeze={"encoder": True})
        run = prepare(path)
        expected = self.states(model).logits["urgency"]
        found = self.states(run.model).logits["urgency"]
        assert_close(found, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        ("encoder", "more", "faults"),
        [
            ({"merge": "intent"}, {}, ["has no adapter intent; it has: urgency"]),
            (
                {"keep_tasks": ["mood", "urgency"]},
                {},
                ["has no task mood; it has: intent, urgency", "urgency has no rows here, and its"],
            ),
            (
                {"merge": "urgency", "keep_tasks": ["intent"]},
                {"pooling": "max", "intent": {"activation": "tanh", "adapter": {"r": 2}}},
                [
                    "intent does not go through adapter urgency",
                    "tasks.intent.adapter: encoder.keep_tasks brings",
                    "tasks.intent.activation: 'tanh', but its head has None",
                    "pooling: max, but the head of intent was trained on cls",
                ],
            ),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, base, folder, encoder, more, faults):
        with pytest.raises(UserError) as refused:
            prepare(recipe(folder, {"model": str(base[0]), **encoder}, **more))
        for fault in faults:
            assert fault in str(refused.value)

    def test_labels_that_its_head_does_not_know_are_refused(self, base, folder):
        rows = [{"text": "a", "intent": city} for city in CITIES]
        write_rows(folder / "messages_train.jsonl", rows)
        write_rows(folder / "messages_validation.jsonl", rows)
        with pytest.raises(UserError, match="its head knows no label Berlin, New York, Paris"):
            prepare(recipe(folder, {"model": str(base[0]), "keep_tasks": ["intent"]}))

    def test_a_causal_base_looks_both_ways_under_other_tasks(self, folder, capsys):
        encoder = {"config": BERT, "tokenizer": {"train": "bpe", "vocab_size": 400}}
        assert run_cli("train", recipe(folder, encoder, "base", ("next",))) == 0
        assert run_cli("train", recipe(folder, str(folder / "base/model"))) == 0
        capsys.readouterr()
        assert run_cli("inspect", folder / "run/model") == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "mask: bidirectional, trained with: causal" in shown

    def test_keys_of_another_form_are_told_apart(self, folder, capsys):
        assert run_cli("train", recipe(folder, {"model": "m", "keep": ["intent"]})) == 2
        shown = " ".join(capsys.readouterr().err.split())
        assert "encoder.keep: unknown key; did you mean keep_tasks?" in shown
        assert "config: missing" not in shown
