"""Embedding tasks by recipe: a teacher, prompts, a sentence-transformers model to start from."""

import json

import numpy as np
import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train.commands import training as run
from polyhead.train.commands.setup import prepare
from polyhead.train.data.tokenization import tokenize
from polyhead.train.errors import UserError
from polyhead.train.hub import save_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from train_helpers import files_of, run_cli, set_key, write_recipe, write_splits
from transformers import AutoTokenizer

WORDS = ["book", "train", "music", "Paris", "Berlin", "go", "seven"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXTS = ["Book a table in Paris.", "go", "The train to Berlin leaves."]


def rows(count, start=0):
    found = []
    for n in range(start, start + count):
        one, two, three = (WORDS[(n + k) % len(WORDS)] for k in (0, 1, 3))
        vector = np.cos(np.arange(16) * (n % len(WORDS) + 1))
        found.append(
            {
                "text": f"{one} it",
                "positive": f"{one} {two}",
                "negative": f"{three} now",
                "margin": float(n % 3),
                "vector": (vector / np.linalg.norm(vector)).tolist(),
            }
        )
    return found


@pytest.fixture
def recipe(tmp_path, tokenizer_of):
    """(task, changes) -> path of a recipe over rows with texts, margins and vectors."""
    write_splits(tmp_path, "rows", rows)
    tokenizer_of("wordpiece").save_pretrained(tmp_path / "tokenizer")

    def write(task, **changes):
        data = {"data_files": files_of("rows"), "text": "text"}
        made = {
            "encoder": {
                "config": {"model_type": "bert", **SIZES, "intermediate_size": 24},
                "tokenizer": str(tmp_path / "tokenizer"),
            },
            "tasks": {"near": {"head": "embedding", **task, "data": data | task["data"]}},
            "training": {"num_train_epochs": 15, "learning_rate": 1e-2, "use_cpu": True},
            "output_dir": str(tmp_path / "out"),
        }
        made["training"] |= {"disable_tqdm": True, "logging_steps": 1}
        for key, value in changes.items():
            set_key(made, key, value)
        return write_recipe(tmp_path / "recipe.yaml", made)

    return write


VECTORS = {"loss": "mse", "data": {"label": "vector"}}


class TestTeacher:
    def test_vectors_are_learned_and_scored_by_their_cosine(self, recipe, tmp_path):
        scores = run.train(recipe(VECTORS))
        model = PolyheadModel.from_pretrained(tmp_path / "out/model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
        test = [json.loads(line) for line in (tmp_path / "rows_test.jsonl").open()]
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
        found = np.stack([answer["near"] for answer in pipe([row["text"] for row in test])])
        wanted = np.array([row["vector"] for row in test])
        expected = (found * wanted).sum(1).mean()
        assert scores["tasks"]["near"]["cosine"] == pytest.approx(expected, abs=1e-5)
        assert expected > 0.7

    def test_margins_are_learned(self, recipe):
        task = {"loss": "margin_mse", "normalize": False}
        task["data"] = {"text_pair": "positive", "negative": "negative", "label": "margin"}
        path = recipe(task)
        run.train(path)
        log = json.loads((path.parent / "out/log_history.json").read_text())
        losses = [line["loss_near"] for line in log if "loss_near" in line]
        assert np.mean(losses[-6:]) < np.mean(losses[:6]) / 1.5

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            (
                VECTORS | {"projection": 8},
                "near.data.label: vectors of 16 numbers, but the embeddings have 8; "
                "write projection: 16",
            ),
            (
                {"loss": "mse", "data": {"label": "margin"}},
                "a list of some numbers is wanted, but row 0",
            ),
            (VECTORS | {"matryoshka": [8, 4]}, "loss mse compares whole vectors"),
            ({"loss": "margin_mse", "data": {"label": "margin"}}, "negative: missing"),
            (VECTORS | {"prompts": []}, "prompts is []; give [text] or [query, document]"),
        ],
    )
    def test_what_does_not_fit_is_one_message(self, task, expected, recipe):
        with pytest.raises(UserError) as stopped:
            prepare(recipe(task))
        assert expected in str(stopped.value)


class TestPrompts:
    PAIRS = {
        "loss": "contrastive",
        "prompts": ["query: ", "text: "],
        "data": {"text_pair": "positive"},
    }

    def test_stand_before_the_texts_in_training(self, recipe):
        found = prepare(recipe(self.PAIRS))
        (source,) = found.sources
        tokens = tokenize(source, "train", found.tokenizer)[0]["input_ids"]
        raw = source.splits["train"][0]
        expected = [f"query: {raw['text']}", f"text: {raw['positive']}"]
        assert tokens == found.tokenizer(expected)["input_ids"]

    def test_stand_before_the_texts_in_use(self, make_model, tokenizer_of):
        tasks = {
            "near": TaskConfig(head="embedding", prompts=["query: ", "text: "]),
            "plain": TaskConfig(head="embedding"),
            "intent": TaskConfig(head="sequence_classification", labels=["a", "b"]),
        }
        model, tokenizer = make_model("bert", tasks), tokenizer_of("wordpiece")
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")

        def direct(texts, task):
            with torch.no_grad():
                tokens = tokenizer(texts, padding=True, return_tensors="pt")
                return model(**tokens, tasks=[task]).embeddings[task].numpy()

        for document, prompt in ((False, "query: "), (True, "text: ")):
            found = pipe(TEXTS, document=document)
            assert list(found[0]) == ["near", "plain", "intent"]
            expected = direct([prompt + text for text in TEXTS], "near")
            np.testing.assert_allclose([a["near"] for a in found], expected, rtol=0, atol=1e-5)
            expected = direct(TEXTS, "plain")
            np.testing.assert_allclose([a["plain"] for a in found], expected, rtol=0, atol=1e-5)

    def test_reach_sentence_transformers(self, make_model, tokenizer_of, tmp_path):
        tasks = {"near": TaskConfig(head="embedding", prompts=["query: ", "text: "])}
        model, tokenizer = make_model("bert", tasks), tokenizer_of("wordpiece")
        save_folder(model, tokenizer, tmp_path)
        theirs = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
        queries, documents = ([a["near"] for a in pipe(TEXTS, document=d)] for d in (False, True))
        for found in (theirs.encode(TEXTS), theirs.encode_query(TEXTS)):
            np.testing.assert_allclose(found, queries, rtol=0, atol=1e-6)
        found = theirs.encode_document(TEXTS)
        np.testing.assert_allclose(found, documents, rtol=0, atol=1e-6)

    def test_reach_the_embed_command(self, make_model, tokenizer_of, tmp_path, capsys):
        tasks = {"near": TaskConfig(head="embedding", prompts=["query: ", "text: "])}
        model, tokenizer = make_model("bert", tasks), tokenizer_of("wordpiece")
        save_folder(model, tokenizer, tmp_path)
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
        for options, document in (([], False), (["--document"], True)):
            assert run_cli("embed", tmp_path, *TEXTS, *options) == 0
            found = json.loads(capsys.readouterr().out)
            expected = [answer["near"] for answer in pipe(TEXTS, document=document)]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert run_cli("embed", tmp_path, "go", "--task", "nope") == 2
        assert (
            "--task: task is 'nope'; embedding tasks of this model: near" in capsys.readouterr().err
        )


class TestStart:
    @pytest.mark.parametrize(("mode", "pooling"), [("cls", "cls"), ("lasttoken", "last_token")])
    def test_a_sentence_transformers_model_gives_encoder_and_pooling(
        self, mode, pooling, recipe, encoder_folder, tmp_path
    ):
        encoder = Transformer(str(encoder_folder("bert")))
        modules = [encoder, Pooling(32, pooling_mode=mode), Normalize()]
        theirs = SentenceTransformer(modules=modules, device="cpu")
        theirs.save_pretrained(str(tmp_path / "start"))
        data = {"text_pair": "positive"}
        path = recipe({"loss": "contrastive", "data": data}, encoder=str(tmp_path / "start"))
        found = prepare(path)
        assert found.model.config.pooling == pooling
        model = found.model.eval()
        pipe = PolyheadPipeline(model=model, tokenizer=found.tokenizer, device="cpu")
        vectors = [answer["near"] for answer in pipe(TEXTS)]
        np.testing.assert_allclose(vectors, theirs.encode(TEXTS), rtol=0, atol=1e-5)
        assert prepare(path, ["pooling=max"]).model.config.pooling == "max"

    def test_a_pooling_that_there_is_not_is_refused(self, recipe, encoder_folder, tmp_path):
        encoder = Transformer(str(encoder_folder("bert")))
        modules = [encoder, Pooling(32, pooling_mode=("cls", "max"))]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "start"))
        task = {"loss": "contrastive", "data": {"text_pair": "positive"}}
        with pytest.raises(UserError, match="pools by cls, max; known: mean, cls, max, lasttoken"):
            prepare(recipe(task, encoder=str(tmp_path / "start")))

    def test_the_folder_of_an_old_version_is_read(self, recipe, encoder_folder, tmp_path):
        place = tmp_path / "old"
        (place / "1_Pooling").mkdir(parents=True)
        (place / "0_Transformer").symlink_to(encoder_folder("bert"))
        kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ]
        (place / "modules.json").write_text(json.dumps(modules))
        flags = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}
        (place / "1_Pooling/config.json").write_text(json.dumps(flags))
        task = {"loss": "contrastive", "data": {"text_pair": "positive"}}
        assert prepare(recipe(task, encoder=str(place))).model.config.pooling == "max"
