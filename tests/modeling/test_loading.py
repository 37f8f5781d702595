"""A saved folder that is not whole does not load; what is whole loads to the bit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer, shake_adapters, shake_heads, tiny_encoder_config
from polyhead.modeling import PolyheadConfig, PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.reading import read_json
from polyhead.modeling.views import PolyheadForSequenceClassification
from polyhead.train.adapters import attach_adapters
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import BertModel

TASKS = {
    "intent": {"head": "sequence_classification", "labels": ["a", "b"]},
    "tags": {"head": "token_classification", "labels": ["O", "B-x", "I-x"]},
    "fill": {"head": "masked_lm"},
}
LORA = {"r": 4, "target_modules": ["query", "value"]}


def new_model(kind="bert", tasks=TASKS, **changes):
    torch.manual_seed(0)
    config = tiny_encoder_config(kind, **changes)
    config.is_causal = False
    tasks = {name: TaskConfig(**task) for name, task in tasks.items()}
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks)).eval()
    shake_heads(model)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with two adapters, saved once; and the logits of its model."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    model = new_model()
    attach_adapters(model, {"intent": dict(LORA), "tags": dict(LORA), "fill": None})
    shake_adapters(model)
    model.save_pretrained(folder)
    return folder, logits(model)


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(whole[0], tmp_path / "copy"))


@torch.no_grad()
def logits(model):
    ids = torch.tensor([[2, 11, 12, 13, 3], [2, 14, 15, 16, 3]])
    return {name: values.clone() for name, values in model(ids).logits.items()}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def refused(folder, *parts, **kwargs):
    with pytest.raises(ValueError) as stopped:
        PolyheadModel.from_pretrained(folder, **kwargs)
    for part in parts:
        assert part in str(stopped.value), str(stopped.value)


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def change_weights(path, change):
    state = load_file(path)
    change(state)
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})


# ---- weights ----


def without(key):
    return lambda state: state.pop(key)


def fill(key, value):
    def change(state):
        state[key] = state[key].clone()
        state[key].view(-1)[0] = value

    return change


def become(key, tensor):
    return lambda state: state.update({key: tensor(state.get(key))})


LAYER = "encoder.encoder.layer.1.output.dense.weight"
DAMAGES = {
    "a head": (without("heads.intent.out.weight"), "missing: heads.intent.out.weight"),
    "a head's bias": (without("heads.tags.out.bias"), "missing: heads.tags.out.bias"),
    "a layer": (without(LAYER), f"missing: {LAYER}"),
    "embeddings": (without("encoder.embeddings.word_embeddings.weight"), "word_embeddings"),
    "a head with another name": (
        lambda state: state.update({"heads.other.out.bias": state.pop("heads.tags.out.bias")}),
        "not part of what config.json describes: heads.other.out.bias",
    ),
    "more layers than the config has": (
        become("encoder.encoder.layer.2.output.dense.weight", lambda _: torch.zeros(32, 48)),
        "not part of what config.json describes: encoder.encoder.layer.2",
    ),
    "another shape": (
        become("heads.intent.out.weight", lambda _: torch.zeros(3, 32)),
        "heads.intent.out.weight (3, 32) for (2, 32)",
    ),
    "a transposed layer": (become(LAYER, lambda w: w.T), "(48, 32) for (32, 48)"),
    "int8": (become(LAYER, lambda w: (w * 100).to(torch.int8)), "weights of type I8"),
    "int64": (become(LAYER, lambda w: w.to(torch.int64)), "weights of type I64"),
    "float8": (become(LAYER, lambda w: w.to(torch.float8_e4m3fn)), "weights of type F8_E4M3"),
    "booleans": (become(LAYER, lambda w: w > 0), "weights of type BOOL"),
    "NaN in a head": (
        fill("heads.tags.out.weight", float("nan")),
        "NaN or infinite weights, which answer anything: heads.tags.out.weight",
    ),
    "infinity in a layer": (fill(LAYER, float("inf")), f"anything: {LAYER}"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_weights_are_refused(name, folder):
    change, expected = DAMAGES[name]
    change_weights(folder / "model.safetensors", change)
    refused(folder, str(folder), expected)


def test_each_missing_weight_is_refused(folder):
    state = load_file(folder / "model.safetensors")
    for key in state:
        change_weights(folder / "model.safetensors", without(key))
        refused(folder, f"missing: {key}")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_message_counts_what_is_missing(folder):
    def only_heads(state):
        for key in [key for key in state if key.startswith("encoder.")]:
            del state[key]

    change_weights(folder / "model.safetensors", only_heads)
    refused(folder, "missing: encoder.embeddings.LayerNorm.bias, ", "... (37 in all)", "again")


def test_weights_cut_short_are_refused_at_every_place(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(folder, str(path), "cut short")
    path.write_bytes(whole + b"x")
    refused(folder, str(path), "cut short or changed")


def test_shards_load_and_a_missing_or_cut_one_is_refused(whole, folder):
    PolyheadModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert not (folder / "model.safetensors").exists()
    assert_equal(logits(PolyheadModel.from_pretrained(folder)), whole[1])
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-7])
    refused(folder, shards[1].name, "cut short")
    shards[1].unlink()
    refused(folder, f"model.safetensors.index.json: missing: {shards[1].name}")
    shards[1].write_bytes(content)
    change_json(folder / "model.safetensors.index.json", lambda index: index.pop("weight_map"))
    refused(folder, "weight_map must tell the file of each weight")


def test_a_bare_encoder_is_not_a_polyhead(folder, tmp_path):
    config = PolyheadConfig.from_pretrained(folder)
    BertModel(config.encoder_config).save_pretrained(tmp_path / "bare")
    refused(tmp_path / "bare", "this is a bert model, not a Polyhead; put heads on it with")
    refused(tmp_path / "bare", "PolyheadModel.from_encoder(", config=config)


def test_what_the_caller_asks_for_is_told_not_refused(folder):
    change_weights(folder / "model.safetensors", without("heads.intent.out.weight"))
    _, report = PolyheadModel.from_pretrained(folder, output_loading_info=True)
    assert report["missing_keys"] == {"heads.intent.out.weight"}
    refused(folder, "missing")  # the next call is strict again
    shape = become("heads.intent.out.weight", lambda _: torch.zeros(3, 32))
    change_weights(folder / "model.safetensors", shape)
    loaded = PolyheadModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert loaded.heads["intent"].out.weight.shape == (2, 32)


def test_views_are_as_strict(folder):
    change_weights(folder / "model.safetensors", without("heads.tags.out.weight"))
    with pytest.raises(ValueError, match=r"missing: heads\.tags\.out\.weight"):
        PolyheadForSequenceClassification.from_pretrained(folder, task="intent")


def test_no_pickle_is_read_even_when_asked_for(folder):
    with pytest.raises(ValueError, match="would read a pickle"):
        PolyheadModel.from_pretrained(folder, use_safetensors=False)


def test_other_ways_to_load_stay(whole, folder):
    half = PolyheadModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    model, report = PolyheadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert_equal(logits(model), whole[1])
    mapped = PolyheadModel.from_pretrained(folder, device_map={"": "cpu"})
    assert_equal(logits(mapped), whole[1])


# ---- config.json ----


NESTED = '{"a": ' * 100_000
FILES = {
    "null": ("null", "holds null; it must hold an object"),
    "a list": ("[1]", "holds [1]; it must hold an object"),
    "a string": ('"polyhead"', 'holds "polyhead"; it must hold an object'),
    "nothing": ("", "cannot be read"),
    "nested": (NESTED, "nested deeper than 64 levels"),
    "nested and closed": (NESTED + "1" + "}" * 100_000, "nested deeper than 64 levels"),
    "NaN": ('{"temperature": NaN}', "the number NaN is no JSON"),
    "a key twice": ('{"tasks": {}, "tasks": {}}', "the key 'tasks' is there twice"),
    "a number too large": ('{"a": 1e999}', "a number is too large"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_config_is_refused(name, folder):
    text, expected = FILES[name]
    (folder / "config.json").write_text(text)
    refused(folder, str(folder / "config.json"), expected)


def test_files_that_are_no_text_or_too_large_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="cannot be read: 'utf-8'"):
        read_json(path)
    monkeypatch.setattr("polyhead.modeling.reading.MOST_BYTES", 8)
    with pytest.raises(ValueError, match="has 12 bytes; 8 are allowed"):
        read_json(write(path, '{"a": "bcd"}'))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no file"):
        read_json(tmp_path)


def write(path, text):
    path.write_text(text)
    return path


OPTIONS = [
    ("format_version", 2, "saved by a newer release: upgrade"),
    ("format_version", "1", "format_version is '1'"),
    ("format_version", True, "format_version is True"),
    ("format_version", 0, "format_version is 0"),
    ("adapters", "intent", "adapters is 'intent'; it must be a list"),
    ("adapter_hashes", [], "adapter_hashes is []; it must be a dict"),
    ("task_names", "intent", "task_names is 'intent'; it must be a list"),
    ("task_names", [["intent"], "tags", "fill"], "task_names holds ['intent']"),
    ("tasks", None, "differ"),
    ("tasks", 7, "tasks is 7; it must be a dict"),
    ("pooling", ["mean"], "pooling is ['mean']; allowed"),
    ("dtype", "int8", "dtype is 'int8'; allowed: float32"),
    ("dtype", "no_type", "dtype is 'no_type'"),
    ("id2label", 5, "id2label is 5"),
    ("return_dict", "yes", "return_dict is 'yes'"),
    ("initializer_range", "wide", "initializer_range is 'wide'"),
    ("encoder_config", None, "encoder_config must be a dict with a model_type"),
    ("encoder_config", [], "encoder_config must be a dict with a model_type"),
    ("encoder_config", {"model_type": "evil"}, "evil"),
    ("model_type", "bert", "this is a bert model"),
    ("custom_pipelines", "run", "custom_pipelines is 'run'"),
]
ENCODER_OPTIONS = [
    ("num_attention_heads", 0, "num_attention_heads is 0"),
    ("num_attention_heads", 5, "not a multiple"),
    ("num_hidden_layers", -1, "num_hidden_layers is -1"),
    ("num_hidden_layers", 3, "missing: encoder.encoder.layer.2"),
    ("num_hidden_layers", 1, "not part of what config.json describes: encoder.encoder.layer.1"),
    ("num_hidden_layers", 2.0, "num_hidden_layers is 2.0"),
    ("hidden_size", 64, "other shapes than config.json describes"),
    ("hidden_size", True, "hidden_size is True"),
    ("hidden_act", "evil", "makes no bert: KeyError: 'evil'"),
    ("hidden_act", 5, "hidden_act"),
    ("layer_norm_eps", {"__float__": "NaN"}, "layer_norm_eps is NaN"),
    ("layer_norm_eps", "small", "layer_norm_eps"),
    ("vocab_size", 161, "other shapes"),
    ("dtype", "int8", "encoder_config: dtype is 'int8'"),
    ("model_type", "vit", "is no text encoder"),
    ("id2label", 3, "config.json"),
]
TASK_OPTIONS = [
    ("dropout", {"__float__": "NaN"}, "dropout is nan"),
    ("temperature", {"__float__": "NaN"}, "temperature is nan; it must be a number up to"),
    ("loss_weight", {"__float__": "Infinity"}, "loss_weight is inf; it must be a number up to"),
    ("margin", 1e300, "margin is 1e+300"),
    ("threshold", [0.3, 0.5], "threshold is [0.3, 0.5]; it must be float"),
    ("threshold", "0.5", "threshold is '0.5'"),
    ("labels", ["a", "b", "c"], "heads.intent.out.weight (2, 32) for (3, 32)"),
    ("labels", ["a"], "needs 2 labels or more"),
    ("labels", {"0": "a"}, "labels is {'0': 'a'}"),
    ("activation", "tanh", "missing: heads.intent.dense.bias"),
    ("head", "token_classification", "problem_type belongs to"),
    ("head", ["sequence_classification"], "head is ['sequence_classification']"),
    ("adapter", "nobody", "names adapter 'nobody'; there are: intent, tags"),
    ("adapter", 5, "adapter is 5"),
    ("pooling", "mean_last_4", "reads 4 layers; this encoder has 2"),
]


def ids(table):
    return [f"{key}={value}"[:40] for key, value, _ in table]


@pytest.mark.parametrize(("key", "value", "expected"), OPTIONS, ids=ids(OPTIONS))
def test_an_exchanged_option_is_refused(key, value, expected, folder):
    change_json(folder / "config.json", lambda config: config.update({key: value}))
    refused(folder, expected)


@pytest.mark.parametrize(("key", "value", "expected"), ENCODER_OPTIONS, ids=ids(ENCODER_OPTIONS))
def test_an_exchanged_option_of_the_encoder_is_refused(key, value, expected, folder):
    change_json(folder / "config.json", lambda c: c["encoder_config"].update({key: value}))
    refused(folder, expected)


@pytest.mark.parametrize(("key", "value", "expected"), TASK_OPTIONS, ids=ids(TASK_OPTIONS))
def test_an_exchanged_option_of_a_task_is_refused(key, value, expected, folder):
    change_json(folder / "config.json", lambda c: c["tasks"]["intent"].update({key: value}))
    refused(folder, expected)


def test_a_task_taken_out_of_the_config_is_missed(folder):
    def change(config):
        del config["tasks"]["fill"]
        config["task_names"].remove("fill")

    change_json(folder / "config.json", change)
    refused(folder, "not part of what config.json describes: heads.fill.")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threshold": [0.3, 0.5]}, "threshold is [0.3, 0.5]; it must be float"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"loss_weight": float("inf")}, "loss_weight is inf"),
        ({"loss_weight": 10**400}, "it must be a number up to 1e+09"),
        ({"margin": None}, "margin is None; it must be float"),
        ({"dropout": True}, "dropout is True; it must be float"),
        ({"pair": 1}, "pair is 1; it must be bool"),
        ({"labels": "ab"}, "labels is 'ab'; it must be a list of strings"),
        ({"labels": {0: "a", 1: "b"}}, "it must be a list of strings"),
        ({"labels": ["a", None]}, "labels holds None; a label is a string"),
        ({"labels": ["a", ["b"]]}, "labels holds ['b']; a label is a string"),
        ({"labels": 2}, "labels is 2; it must be a list of strings"),
        ({"pooling": 3}, "pooling is 3"),
    ],
)
def test_an_option_of_another_type_is_refused_in_python(options, expected):
    with pytest.raises(ValueError) as stopped:
        TaskConfig(**{"head": "sequence_classification", "labels": ["a", "b"], **options})
    assert expected in str(stopped.value)


# ---- the tokenizer ----


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_half_a_tokenizer_is_refused(name, folder):
    make_tokenizer("wordpiece").save_pretrained(folder)
    PolyheadModel.from_pretrained(folder)
    (folder / name).unlink()
    refused(folder, "the tokenizer", name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cls_token", "a"),
        ("cls_token", "\u202e"),
        ("cls_token", ""),
        ("sep_token", None),
        ("mask_token", True),
        ("pad_token", {"a": None}),
        ("unk_token", []),
        ("do_lower_case", "x"),
        ("strip_accents", 1.5),
        ("model_max_length", 0),
        ("model_max_length", -1),
        ("model_max_length", True),
        ("model_max_length", 12.5),
        ("model_max_length", "x"),
        ("tokenizer_class", 1),
        ("tokenizer_class", {}),
    ],
)
def test_an_odd_value_of_a_tokenizer_is_refused(key, value, folder):
    make_tokenizer("wordpiece").save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", lambda config: config.update({key: value}))
    refused(folder, "tokenizer_config.json", key)


@pytest.mark.parametrize("text", ["null", "[]", "1", '"x"'])
def test_a_tokenizers_config_that_is_none_is_refused(text, folder):
    make_tokenizer("wordpiece").save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(text)
    refused(folder, "tokenizer_config.json")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_each_family_of_tokenizers_loads(kind, folder):
    make_tokenizer(kind).save_pretrained(folder)
    PolyheadModel.from_pretrained(folder)


def test_a_tokenizer_of_more_words_than_the_encoder_knows_is_refused(whole):
    model = PolyheadModel.from_pretrained(whole[0])
    tokenizer = make_tokenizer("wordpiece")
    tokenizer.add_tokens([f"new{n}" for n in range(model.config.vocab_size)])
    with pytest.raises(ValueError, match="the tokenizer is not this model's"):
        PolyheadPipeline(model=model, tokenizer=tokenizer)


def test_a_pipeline_needs_a_tokenizer_with_words(whole):
    model = PolyheadModel.from_pretrained(whole[0])
    with pytest.raises(ValueError, match="the tokenizer is missing.*save_pretrained"):
        PolyheadPipeline(model=model)
    tokenizer = make_tokenizer("wordpiece")
    special = {t: i for i, t in enumerate(tokenizer.all_special_tokens)}
    empty = type(tokenizer)(
        tokenizer_object=Tokenizer(models.WordPiece(special, unk_token="[UNK]")),
        **tokenizer.special_tokens_map,
    )
    with pytest.raises(ValueError, match="the tokenizer has no words"):
        PolyheadPipeline(model=model, tokenizer=empty)
    assert PolyheadPipeline(model=model, tokenizer=tokenizer)("book a table", tasks=["intent"])


# ---- a saving that is cut off ----


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(4))
def test_a_saving_that_is_cut_off_leaves_no_model(step, folder, monkeypatch):
    """Cut off after the adapters, after config.json, in the weights, or before anything."""
    model = new_model()
    attach_adapters(model, {"intent": dict(LORA), "tags": None, "fill": None})

    def die(*_, **__):
        raise Killed

    def die_half_way(state, path, **_):
        save_file(state, path)
        os.truncate(path, os.path.getsize(path) // 2)
        raise Killed

    module = "polyhead.modeling"
    where = [
        (f"{module}.adapters.save_file", die),
        (f"{module}.configuration_polyhead.PolyheadConfig.save_pretrained", die),
        ("transformers.modeling_utils.safe_save_file", die),
        ("transformers.modeling_utils.safe_save_file", die_half_way),
    ][step]
    monkeypatch.setattr(*where)
    with pytest.raises(Killed):
        model.save_pretrained(folder)
    monkeypatch.undo()
    with pytest.raises((OSError, ValueError)):
        PolyheadModel.from_pretrained(folder)
    model.save_pretrained(folder)
    assert_equal(logits(PolyheadModel.from_pretrained(folder)), logits(model))
    assert [path.name for path in (folder / "adapters").iterdir()] == ["intent"]
