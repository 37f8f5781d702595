"""`polyhead map` and `similarity`: numbers as sentence-transformers', pages that are safe."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CORPUS, shake_heads
from PIL import Image
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train.hub import save_folder
from polyhead.train.inference.vectors import text_vectors
from train_helpers import private_cache, run_cli, write_rows  # noqa: F401

NEAR = TaskConfig(head="embedding", projection=12)
INTENT = TaskConfig(head="sequence_classification", labels=["a", "b"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder_folder, tokenizer_of) -> Path:
    """A model with one embedding task and one of another kind."""
    model = PolyheadModel.from_encoder(
        str(encoder_folder("bert")), tasks={"near": NEAR, "intent": INTENT}
    )
    shake_heads(model)
    path = tmp_path_factory.mktemp("model")
    save_folder(model, tokenizer_of("wordpiece"), path)
    return path


@pytest.fixture
def pipe(folder, tokenizer_of) -> PolyheadPipeline:
    model = PolyheadModel.from_pretrained(folder)
    return PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"), compute="exact")


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    """A file of texts with a label and a number; it is the working folder too."""
    monkeypatch.chdir(tmp_path)
    lines = [
        {"text": f"{text} {n}", "label": "abc"[n % 3], "number": n / 7, "pair": CORPUS[n % 2]}
        for n, text in enumerate(CORPUS * 3)
    ]
    return write_rows(tmp_path / "rows.jsonl", lines)


def refusal(capsys, *arguments) -> str:
    """What a refused call says, on one line."""
    capsys.readouterr()
    assert run_cli(*arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    return " ".join(streams.err.split())


class TestSimilarity:
    def test_it_is_that_of_sentence_transformers(self, folder, pipe):
        encoder = pytest.importorskip("sentence_transformers").SentenceTransformer(
            str(folder), trust_remote_code=True, device="cpu"
        )
        vectors = encoder.encode(CORPUS, task="near", convert_to_tensor=True)
        assert torch.allclose(
            pipe.similarity(CORPUS), encoder.similarity(vectors, vectors), atol=1e-5
        )
        one, other = vectors[:2], vectors[2:]
        wanted = encoder.similarity(one, other)
        assert torch.allclose(pipe.similarity(CORPUS[:2], CORPUS[2:]), wanted, atol=1e-5)
        assert torch.allclose(pipe.similarity(CORPUS[0], CORPUS[2:]), wanted[:1], atol=1e-5)

    def test_of_a_task_with_two_prompts_the_others_are_documents(self, make_model, tokenizer_of):
        task = TaskConfig(head="embedding", prompts=["query: ", "passage: "])
        model = make_model("bert", {"near": task})
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer_of("wordpiece"), compute="exact")
        (query,), (document,) = pipe(["a"]), pipe(["a"], document=True)
        wanted = torch.cosine_similarity(
            *map(torch.tensor, (query["near"], document["near"])), dim=0
        )
        assert pipe.similarity("a", "a").item() == pytest.approx(wanted.item(), abs=1e-6)
        assert pipe.similarity("a").item() == pytest.approx(1)

    @pytest.mark.parametrize(
        ("texts", "task", "message"),
        [
            ([], None, "there is no text to compare"),
            (["a"], "intent", "embedding tasks of this model: near"),
            ([1], None, "1"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, pipe, texts, task, message):
        with pytest.raises(ValueError, match=message):
            pipe.similarity(texts, task=task)

    def test_texts_are_a_table_and_a_picture(self, folder, pipe, rows, rendered, capsys):
        texts = CORPUS[:3]
        assert run_cli("similarity", folder, *texts, "--plot", "heat.png", "--json") == 0
        compared = json.loads(capsys.readouterr().out)
        assert compared["texts"] == texts
        assert np.allclose(compared["similarity"], pipe.similarity(texts), atol=1e-5)
        assert Image.open("heat.png").width > 300
        assert run_cli("similarity", folder, *texts) == 0
        assert "1.000" in capsys.readouterr().out
        assert "heat.png exists" in refusal(
            capsys, "similarity", folder, *texts, "--plot", "heat.png"
        )

    def test_a_file_of_pairs_gets_a_column(self, folder, pipe, rows, capsys):
        options = ["--input", rows, "--text-pair", "pair", "--output", "out.csv", "--json"]
        assert run_cli("similarity", folder, *options, "--plot", "heat.png") == 0
        pairs = json.loads(capsys.readouterr().out)["pairs"]
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        for pair, line in zip(pairs, lines, strict=True):
            assert (pair["text"], pair["pair"]) == (line["text"], line["pair"])
            wanted = pipe.similarity(line["text"], line["pair"]).item()
            assert pair["similarity"] == pytest.approx(wanted, abs=1e-5)
        written = Path("out.csv").read_text().splitlines()
        assert written[0] == "text,pair,similarity"
        assert float(written[1].rpartition(",")[2]) == pytest.approx(
            pairs[0]["similarity"], abs=1e-5
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["one"], "1 text; give two or more"),
            ([], "give two texts or more, or a file of pairs"),
            (["one", "two", "--input", "rows.jsonl"], "give two texts or more, or a file"),
            (["one", " "], "text 2 is empty"),
            (["one", "two", "--plot", "x.svg"], "its ending is .png"),
            (["one", "two", "--output", "x.csv"], "--output is for the pairs of --input"),
            (["one", "two", "--task", "intent"], "embedding tasks of this model: near"),
            (["--input", "rows.jsonl"], "--text-pair: no column 'text_pair'; the file has: text"),
            (["--input", "rows.jsonl", "--text-pair", "number"], "no text in row 0"),
            (["--input", "none.csv"], "there is no file none.csv"),
            (["--input", "rows.jsonl", "--output", "x.xls"], "allowed endings"),
        ],
    )
    def test_bad_input_is_one_message(self, folder, rows, arguments, message, capsys):
        assert message in refusal(capsys, "similarity", folder, *arguments)
        assert [path.name for path in Path().iterdir() if path.is_file()] == ["rows.jsonl"]


class Scripts(HTMLParser):
    """What the page points at, and the data in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links, self.data, self.inside = [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        self.inside = tag == "script" and ("id", "data") in attributes

    def handle_data(self, data):
        if self.inside:
            self.data += data


class TestMap:
    def test_a_picture_and_a_page_with_every_text(self, folder, pipe, rows, rendered, capsys):
        arguments = ["map", folder, "--input", rows, "--color", "label"]
        assert run_cli(*arguments, "--json") == 0
        drawn = json.loads(capsys.readouterr().out)
        assert drawn["rows"] == drawn["of"] == 15
        assert Image.open("map.png").width > 600
        page = Scripts(Path("map.html").read_text(encoding="utf-8"))
        data = json.loads(page.data)
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        assert page.links == []
        assert data["texts"] == [line["text"] for line in lines]
        assert [data["names"][group] for group in data["groups"]] == [
            line["label"] for line in lines
        ]
        assert [shown["title"][:3] for shown in data["maps"]] == ["PCA", "t-S"]
        places = np.array(data["maps"][0]["points"])
        unit = torch.nn.functional.normalize(torch.tensor(text_vectors(pipe, data["texts"])))
        centred = (unit - unit.mean(0)).numpy()
        best = np.linalg.svd(centred, full_matrices=False)[2][:2] @ centred.T  # (2, N)
        for axis, wanted in zip(places.T, best, strict=True):
            assert abs(np.corrcoef(axis, wanted)[0, 1]) > 0.999
        assert "map.html exists" in refusal(capsys, *arguments)
        assert run_cli(*arguments, "--overwrite") == 0

    def test_texts_are_no_tags(self, folder, rows, capsys):
        nasty = ["</script><script>alert(1)</script>", "<b>&amp;", "\u2028 $data", "é"]
        write_rows(rows, [{"text": text, "label": text} for text in nasty])
        assert run_cli("map", folder, "--input", rows, "--color", "label", "--method", "pca") == 0
        text = Path("map.html").read_text(encoding="utf-8")
        assert text.count("<script") == text.count("</script") == 2
        assert "alert(1)<" not in text
        data = json.loads(Scripts(text).data)
        assert data["texts"][:2] == nasty[:2]
        assert data["names"][0] == nasty[0]

    def test_numbers_have_a_scale(self, folder, rows, capsys):
        options = ["--input", rows, "--color", "number", "--method", "pca", "--output", "n.html"]
        assert run_cli("map", folder, *options) == 0
        data = json.loads(Scripts(Path("n.html").read_text()).data)
        assert data["numbers"] == pytest.approx([n / 7 for n in range(15)])
        assert data["names"] == []

    def test_of_many_rows_some_by_chance_and_it_says_so(self, folder, rows, capsys):
        options = ["--input", rows, "--method", "pca", "--rows", "4"]
        assert run_cli("map", folder, *options) == 0
        assert "4 of 15 rows, by chance; --rows takes more" in capsys.readouterr().err
        assert len(json.loads(Scripts(Path("map.html").read_text()).data)["texts"]) == 4

    @pytest.mark.parametrize(
        ("lines", "arguments", "message"),
        [
            (None, ["--text", "body"], "--text: no column 'body'; the file has: text, label"),
            (None, ["--color", "class"], "--color: no column 'class'; the file has: text, label"),
            (None, ["--method", "lda"], "--method: 'lda'; allowed, one or more joined by commas"),
            (None, ["--output", "map.png"], "--output: map.png; its ending is .html"),
            (None, ["--task", "intent"], "embedding tasks of this model: near"),
            ([], [], "no data: a file is empty"),
            ([{"text": "a"}], ["--method", "pca"], "has 1 rows; PCA needs 2 or more"),
            ([{"text": "a"}] * 3, [], "has 3 rows; t-SNE needs 4 or more"),
            ([{"text": "a"}] * 5, [], "all rows have the same vector"),
            ([{"text": "a"}, {"text": None}, {"text": "b"}], [], "no text in row 1 (1 rows)"),
            ([{"text": "a"}, {"text": " "}, {"text": "b"}], [], "the text of row 1 is empty"),
            ([{"text": 1.5}, {"text": float("nan")}], [], "no text in row 0"),
        ],
    )
    def test_bad_input_is_one_message(self, folder, rows, lines, arguments, message, capsys):
        if lines is not None:
            write_rows(rows, lines)
        assert message in refusal(capsys, "map", folder, "--input", rows, *arguments)
        assert [path.name for path in Path().iterdir() if path.is_file()] == ["rows.jsonl"]

    def test_without_an_embedding_task_it_is_the_encoder_pooled(self, make_model, tokenizer_of):
        model, tokenizer = make_model("bert", {"intent": INTENT}), tokenizer_of("wordpiece")
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, compute="exact")
        vectors = text_vectors(pipe, CORPUS)
        for text, vector in zip(CORPUS, vectors, strict=True):
            tokens = tokenizer(text, return_tensors="pt")
            wanted = model.embed(**tokens)[0].detach().numpy()
            assert np.allclose(vector, wanted, atol=1e-5)
