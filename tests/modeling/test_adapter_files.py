"""Adapters in files: every kind that docs name comes back to the bit, what is damaged does not."""

import itertools
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import shake_adapters, tiny_encoder_config
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.modeling.adapter_options import CHECKS, adapter_option_faults, peft_config_class
from polyhead.train.adapters import adapter_faults, attach_adapters, read_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModel

TASK = {"head": "sequence_classification", "labels": ["a", "b"]}
LORA = {"r": 4, "target_modules": ["query", "value"]}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def new_model(kind="bert", names=("first", "second", "bare")):
    torch.manual_seed(0)
    config = tiny_encoder_config(kind)
    config.is_causal, config.dtype = False, torch.float32
    tasks = {name: TaskConfig(**TASK) for name in names}
    return PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks)).eval()


@torch.no_grad()
def logits(model):
    ids = torch.tensor([[2, 11, 12, 13, 3], [2, 14, 15, 16, 3]])
    return {name: values.clone() for name, values in model(ids).logits.items()}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def files_of(folder):
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# ---- round trips ----

SECTIONS = {
    "lora": {"r": 4},
    "alpha": {"r": 4, "lora_alpha": 32, "lora_dropout": 0.1},
    "rslora": {"r": 4, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "bias of B": {"r": 4, "lora_bias": True},
    "gaussian": {"r": 4, "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "init_lora_weights": "orthogonal"},
    "no init": {"r": 4, "init_lora_weights": False},
    "targets": LORA,
    "top 1": {"r": 4, "layers": "top 1"},
    "layers": {"r": 4, "layers": [0]},
    "excluded": {"r": 4, "exclude_modules": ["key", "dense"]},
    "ranks": {**LORA, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
    "ranks by layer": {**LORA, "rank_pattern": {r"layer\.0\..*": 2}},
    "one layer": {**LORA, "layers_to_transform": [1], "layers_pattern": "layer"},
    "ia3": {"type": "ia3"},
    "ia3 targets": {"type": "ia3", "target_modules": ["query", "dense"]},
    "ia3 forward": {
        "type": "ia3",
        "target_modules": ["key", "dense"],
        "feedforward_modules": ["output.dense"],
    },
    "ia3 none forward": {"type": "ia3", "feedforward_modules": []},
}


def assert_round_trip(model, folder):
    expected = logits(model)
    assert not torch.equal(expected["first"], expected["bare"])  # the adapter matters
    model.save_pretrained(folder / "one")
    loaded = PolyheadModel.from_pretrained(folder / "one")
    assert_equal(logits(loaded), expected)
    loaded.save_pretrained(folder / "two")
    model.save_pretrained(folder / "three")
    assert files_of(folder / "one") == files_of(folder / "two") == files_of(folder / "three")


@pytest.mark.parametrize("name", SECTIONS)
def test_a_recipes_adapter_comes_back_to_the_bit(name, tmp_path):
    assert adapter_faults({"first": SECTIONS[name]}) == []
    model = new_model()
    for task in model.heads.values():
        torch.nn.init.normal_(task.out.weight)
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    attach_adapters(model, {"first": dict(SECTIONS[name]), "second": None, "bare": None})
    after = {k.replace(".base_layer", ""): v for k, v in model.encoder.state_dict().items()}
    assert all(torch.equal(before[key], after[key]) for key in before)  # the encoder is shared
    shake_adapters(model)
    assert_round_trip(model, tmp_path)


@pytest.mark.parametrize("kind", ["albert", "modernbert", "llama", "deberta-v2"])
@pytest.mark.parametrize("section", [{"r": 4}, {"type": "ia3", "feedforward_modules": []}], ids=str)
def test_on_other_encoders_too(section, kind, tmp_path):
    model = new_model(kind)
    for task in model.heads.values():
        torch.nn.init.normal_(task.out.weight)
    attach_adapters(model, {"first": dict(section), "second": dict(section), "bare": None})
    shake_adapters(model)
    assert_round_trip(model, tmp_path)


IN_PYTHON = {
    "embeddings": ("bert", LoraConfig(r=4, target_modules=["word_embeddings"])),
    "embeddings and more": ("bert", LoraConfig(r=4, target_modules=["word_embeddings", "query"])),
    "embeddings by PEFT's name": ("llama", LoraConfig(r=4, target_modules=["embed_tokens"])),
    "a pattern": ("bert", LoraConfig(r=4, target_modules=r".*\.(query|value)")),
    "a pattern with layers": ("bert", LoraConfig(r=4, target_modules=r".*layer\.\d\.out.*dense")),
    "all linear": ("bert", LoraConfig(r=4, target_modules="all-linear")),
    "patterns of ranks": (
        "bert",
        LoraConfig(
            r=4,
            target_modules=["query", "dense"],
            rank_pattern={r".*layer\.1\..*query": 2},
            alpha_pattern={"^encoder.layer.0.output.dense": 2.5},
        ),
    ),
    "excluded by a pattern": (
        "bert",
        LoraConfig(r=4, target_modules=["query"], exclude_modules=r".*\.0\..*"),
    ),
    "ia3 by patterns": (
        "bert",
        IA3Config(
            target_modules=r".*\.(key|dense)",
            feedforward_modules=r".*\.output\.dense",
            exclude_modules="pooler.dense",
        ),
    ),
    "task type": ("bert", LoraConfig(**LORA, task_type="FEATURE_EXTRACTION")),
}


@pytest.mark.parametrize("name", IN_PYTHON)
def test_an_adapter_attached_in_python_comes_back_to_the_bit(name, tmp_path):
    kind, config = IN_PYTHON[name]
    model = new_model(kind)
    for task in model.heads.values():
        torch.nn.init.normal_(task.out.weight)
    model.attach_adapter("first", config, ["first"])
    shake_adapters(model)
    assert_round_trip(model, tmp_path)
    saved = json.loads((tmp_path / "one/adapters/first" / CONFIG).read_text())
    assert isinstance(saved["target_modules"], list)
    assert saved["target_modules"] == sorted(saved["target_modules"])
    keys = load_file(tmp_path / "one/adapters/first" / WEIGHTS)
    assert all("lora_" in key or "ia3_" in key for key in keys)  # nothing of the encoder


def test_a_config_given_to_several_adapters_is_not_changed():
    config = LoraConfig(r=4, target_modules=r".*\.query")
    before = config.to_dict()
    model = new_model()
    model.attach_adapter("first", config, ["first"])
    model.attach_adapter("second", config, ["second"])
    assert config.to_dict() == before


# ---- what is damaged ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = new_model()
    attach_adapters(model, {"first": dict(LORA), "second": dict(LORA), "bare": None})
    shake_adapters(model)
    model.save_pretrained(folder)
    return folder, logits(model)


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


@pytest.fixture
def old_folder(folder):
    """As saved before config.json had hashes."""
    change_json(folder / "config.json", lambda config: config.pop("adapter_hashes"))
    return folder


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(folder, *parts):
    with pytest.raises(ValueError) as stopped:
        PolyheadModel.from_pretrained(folder)
    for part in parts:
        assert part in str(stopped.value), str(stopped.value)


def exchange(one, other):
    one.rename(one.parent / "aside")
    other.rename(one)
    (one.parent / "aside").rename(other)


def test_exchanged_adapters_are_refused(folder):
    exchange(folder / "adapters/first", folder / "adapters/second")
    refused(folder, f"first/{WEIGHTS} or its {CONFIG} is not the one that was saved")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_one_exchanged_file_is_refused(name, folder):
    if name == CONFIG:
        path = folder / "adapters/first" / name
        change_json(path, lambda config: config.update(lora_alpha=9))
    else:
        exchange(folder / "adapters/first" / name, folder / "adapters/second" / name)
    refused(folder, "is not the one that was saved with the model", "adapter_hashes")


def test_a_folder_without_hashes_gives_the_same_logits(saved, old_folder):
    model = PolyheadModel.from_pretrained(old_folder)
    assert_equal(logits(model), saved[1])
    model.save_pretrained(old_folder)
    assert files_of(old_folder) == files_of(saved[0])


def test_only_the_adapters_that_are_loaded_are_compared(folder):
    (folder / "adapters/second" / WEIGHTS).unlink()
    assert PolyheadModel.from_pretrained(folder, tasks=["first"]).loaded_adapters == ["first"]
    refused(folder, f"second: {WEIGHTS} cannot be had")


def test_a_missing_adapter_is_refused(folder):
    shutil.rmtree(folder / "adapters/first")
    refused(folder, f"adapters/first: {CONFIG} cannot be had")


def test_an_adapter_that_no_config_names_is_refused(folder):
    def change(config):
        config["adapters"].remove("second")
        del config["tasks"]["second"]["adapter"]

    change_json(folder / "config.json", change)
    refused(folder, "adapters: second is not among the adapters that config.json names")


def test_no_pickle_is_read_in_the_place_of_an_adapter(folder):
    path = folder / "adapters/first" / WEIGHTS
    torch.save(load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()
    refused(folder, f"{WEIGHTS} cannot be had (adapters are read from safetensors only)")
    with pytest.raises(ValueError, match="adapters are read from safetensors only"):
        read_adapter(new_model().encoder, str(folder / "adapters/first"))


def first_key(state):
    return next(iter(state))


WEIGHT_DAMAGES = {
    "missing": (lambda state: state.pop(first_key(state)), "lacks|missing"),
    "left over": (
        lambda state: state.update({"base_model.model.x.lora_A.weight": ONE}),
        "x.lora_A",
    ),
    "an encoder's weight": (
        lambda state: state.update({"base_model.model.embeddings.word_embeddings.weight": ONE}),
        "word_embeddings",
    ),
    "shape": (lambda state: state.update({first_key(state): ONE}), "size mismatch"),
    "int8": (
        lambda state: state.update({first_key(state): state[first_key(state)].to(torch.int8)}),
        "weights of type I8",
    ),
    "NaN": (lambda state: state[first_key(state)].fill_(float("nan")), "NaN or infinite weights"),
}
ONE = torch.ones(1, 1)


@pytest.mark.parametrize("name", WEIGHT_DAMAGES)
def test_damaged_weights_of_an_adapter_are_refused(name, old_folder):
    change, expected = WEIGHT_DAMAGES[name]
    path = old_folder / "adapters/first" / WEIGHTS
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=expected):
        PolyheadModel.from_pretrained(old_folder)


def test_a_layer_without_weights_is_missed_in_old_ia3_folders(tmp_path):
    model = new_model()
    section = {"type": "ia3", "target_modules": ["query"], "feedforward_modules": []}
    attach_adapters(model, {"first": section, "second": None, "bare": None})
    model.save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", lambda config: config.pop("adapter_hashes"))
    path = tmp_path / "adapters/first" / WEIGHTS
    state = load_file(path)
    state.pop(first_key(state))
    save_file(state, path, metadata={"format": "pt"})
    refused(tmp_path, "lacks weights of encoder.layer.0.attention.self.query")


def test_weights_cut_short_are_refused(folder):
    path = folder / "adapters/first" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    refused(folder, str(path), "cut short")


FILES = {
    "[]": "holds []",
    "null": "holds null",
    "{": "cannot be read",
    "[" * 10**5: "nested deeper",
}


@pytest.mark.parametrize("text", FILES, ids=["list", "null", "cut", "nested"])
def test_what_is_no_config_is_refused(text, folder):
    (folder / "adapters/first" / CONFIG).write_text(text)
    refused(folder, f"adapters/first/{CONFIG}", FILES[text])


# ---- options ----

REFUSED = [
    ("r", 0, "a whole number from 1 to 8192"),
    ("r", 10**12, "a whole number from 1 to 8192"),
    ("r", "8", "a whole number"),
    ("r", True, "a whole number"),
    ("r", 4.0, "a whole number"),
    ("lora_alpha", 0, "a number above 0"),
    ("lora_alpha", "16", "a number above 0"),
    ("lora_alpha", 1e30, "a number above 0"),
    ("lora_dropout", 1.0, "a number in [0, 1)"),
    ("lora_dropout", [0.1], "a number in [0, 1)"),
    ("bias", "all", "allowed: none"),
    ("bias", "lora_only", "allowed: none"),
    ("use_dora", 1, "true or false"),
    ("use_rslora", "yes", "true or false"),
    ("init_lora_weights", "pissa", "allowed: True, False, gaussian, orthogonal"),
    ("init_lora_weights", "pissa_niter_4", "allowed: True, False"),
    ("init_lora_weights", "olora", "allowed: True, False"),
    ("init_lora_weights", "loftq", "allowed: True, False"),
    ("init_lora_weights", "corda", "allowed: True, False"),
    ("init_lora_weights", "eva", "allowed: True, False"),
    ("init_lora_weights", "lora_ga", "allowed: True, False"),
    ("init_lora_weights", "mica", "allowed: True, False"),
    ("init_lora_weights", 1, "allowed: True, False"),
    ("modules_to_save", ["LayerNorm"], "it trains parts of the encoder"),
    ("trainable_token_indices", [1], "it trains parts of the encoder"),
    ("layer_replication", [[0, 2], [1, 2]], "it changes the encoder"),
    ("loftq_config", {"loftq_bits": 4}, "it changes the encoder"),
    ("megatron_config", {"a": 1}, "it loads other code"),
    ("megatron_core", "os.path", "it loads other code"),
    ("target_parameters", ["weight"], "name linear or embedding layers"),
    ("velora_config", {"num_groups": 2}, "no test says"),
    ("alora_invocation_tokens", [1], "no test says"),
    ("use_qalora", True, "no test says"),
    ("qalora_group_size", 8, "no test says"),
    ("monteclora_config", {"num_samples": 2}, "no test says"),
    ("arrow_config", {"top_k": 2}, "no test says"),
    ("kasa_config", {"beta": 0.1}, "no test says"),
    ("use_bdlora", {"nblocks": 2}, "no test says"),
    ("ensure_weight_tying", True, "no test says"),
    ("target_modules", "(.+)+!", "none repeated"),
    ("target_modules", ["(.+)+!"], "is no module name"),
    ("target_modules", [5], "is no module name"),
    ("target_modules", {"query": 1}, "a list of module names"),
    ("exclude_modules", "(.+)+!", "none repeated"),
    ("rank_pattern", {"(.+)+!": 2}, "none repeated"),
    ("rank_pattern", {"query": 0}, "a whole number from 1"),
    ("rank_pattern", ["query"], "a mapping from module names"),
    ("alpha_pattern", {"(a|a)(a|a)(a|a)(a|a)!": 2}, "up to 3 groups"),
    ("alpha_pattern", {".*.*.*!": 2}, "up to 2 repeats"),
    ("alpha_pattern", {"query": None}, "a number above 0"),
    ("layers_to_transform", ["0"], "a layer number"),
    ("layers_pattern", "(.+)+", "a name or a list of names"),
    ("an_option_of_tomorrow", 3, "unknown option 'an_option_of_tomorrow'; allowed: r, "),
    ("peft_type", "EVIL", "peft_type is 'EVIL'; allowed: LORA, IA3"),
    ("peft_type", "LOHA", "allowed: LORA, IA3"),
    ("peft_type", ["LORA"], "allowed: LORA, IA3"),
    ("peft_type", None, "allowed: LORA, IA3"),
]
IDS = [f"{key}={value}"[:40] for key, value, _ in REFUSED]


@pytest.mark.parametrize(("key", "value", "expected"), REFUSED, ids=IDS)
def test_an_option_is_refused_when_the_folder_is_loaded(key, value, expected, folder):
    path = folder / "adapters/first" / CONFIG
    change_json(path, lambda config: config.update({key: value}))
    began = time.perf_counter()
    refused(folder, f"adapters/first/{CONFIG}: ", key, expected)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(("key", "value", "expected"), REFUSED, ids=IDS)
def test_an_option_is_refused_in_python_and_recipes(key, value, expected):
    faults = adapter_option_faults({"peft_type": "LORA", "r": 4, key: value})
    assert len(faults) == 1
    assert expected in faults[0]
    if key == "peft_type":
        return
    section = {"r": 4, key: value}
    named = adapter_faults({"first": section})
    assert len(named) == 1
    assert named[0].startswith(("tasks.first.adapter: ", "tasks.first.adapter."))
    assert key in named[0]


def test_every_option_of_peft_is_allowed_or_refused_by_its_name():
    for kind, checks in CHECKS.items():
        defaults = peft_config_class(kind)().to_dict()
        assert adapter_option_faults(defaults) == []
        for name in defaults.keys() - checks.keys():
            odd = adapter_option_faults({"peft_type": kind, name: "odd"})
            assert odd == [] or odd[0].startswith(f"{name} is"), name


@pytest.mark.parametrize("name", ["auto_mapping", "revision", "inference_mode", "task_type"])
def test_a_recipe_refuses_options_without_effect(name):
    faults = adapter_faults({"first": {"r": 4, name: "x"}})
    assert faults == [f"tasks.first.adapter.{name}: has no effect here; leave it out"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"type": ["lora"]}, ".type: ['lora']; allowed: lora, ia3"),
        ({"name": ["a"], "r": 4}, ".name: adapter name ['a']: use lower-case letters"),
        ({"name": "../x", "r": 4}, ".name: adapter name '../x': use lower-case letters"),
        ({"path": 5}, ".path: 5; write a folder or a Hub id"),
        ({"layers": [True], "r": 4}, ".layers: [True]; write 'top 2' or a list"),
        ({"layers": [], "r": 4}, ".layers: []; write 'top 2' or a list"),
        ({"layers": "top \u00b2", "r": 4}, ".layers: 'top \u00b2'; write"),
        ({"type": "ia3", "r": 4}, ": unknown option 'r'; allowed: target_modules"),
        ({5: 6}, ": unknown option 5; allowed: r"),
    ],
    ids=str,
)
def test_a_section_that_is_odd_is_one_fault(section, expected):
    (fault,) = adapter_faults({"first": section})
    assert fault.startswith(f"tasks.first.adapter{expected}")


def test_a_recipe_refuses_what_excludes_each_other():
    assert "lora_bias" in adapter_faults({"a1": {"r": 4, "lora_bias": True, "use_dora": True}})[0]
    odd = {"r": 3, "init_lora_weights": "orthogonal"}
    assert "takes an even number" in adapter_faults({"a1": odd})[0]


BAD = (
    LoraConfig(**LORA, init_lora_weights="pissa"),
    LoraConfig(**LORA, init_lora_weights="olora"),
    LoraConfig(**LORA, modules_to_save=["LayerNorm"]),
    LoraConfig(**LORA, bias="all"),
    LoraConfig(**LORA, trainable_token_indices=[1]),
    LoraConfig(r=4, target_modules="(.+)+!"),
    LoHaConfig(target_modules=["query"]),
    LoraConfig(r=4, target_modules=["no_such_layer"]),
    LoraConfig(r=4, target_modules=["LayerNorm"]),
    LoraConfig(r=4, target_modules=["query"], rank_pattern={"query": 0}),
)


@pytest.mark.parametrize(
    ("config", "others"), itertools.product(BAD, [False, True]), ids=lambda value: str(value)[-40:]
)
def test_what_python_may_not_attach_leaves_the_model_as_it_was(config, others):
    model = new_model()
    if others:
        model.attach_adapter("second", LoraConfig(**LORA), ["second"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected, adapters = logits(model), list(model.loaded_adapters)
    with pytest.raises(ValueError, match="adapter 'first'"):
        model.attach_adapter("first", config, ["first"])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model.loaded_adapters == adapters
    assert_equal(logits(model), expected)
    model.attach_adapter("first", LoraConfig(**LORA), ["first"])


def test_patterns_that_are_allowed_end_soon():
    slow = {f".*.*{letter}!": 2 for letter in "abcdefghijklmnop"}
    assert adapter_option_faults({"peft_type": "LORA", "rank_pattern": slow}) == []
    model = new_model()
    began = time.perf_counter()
    model.attach_adapter("first", LoraConfig(**LORA, rank_pattern=slow), ["first"])
    model.attach_adapter("second", LoraConfig(r=4, target_modules=".*.*.*.*y"), ["second"])
    assert time.perf_counter() - began < 5
    many = {f".*{number}": 2 for number in range(17)}
    faults = adapter_option_faults({"peft_type": "LORA", "rank_pattern": many})
    assert "16 patterns are allowed" in faults[0]


@pytest.mark.parametrize("pattern", [r".*\.(query|value)", r".*\.[qk].*"])
def test_an_adapter_of_plain_peft_may_have_a_pattern(pattern, tmp_path):
    plain = AutoModel.from_config(tiny_encoder_config("bert"))
    get_peft_model(plain, LoraConfig(r=4, target_modules=pattern)).save_pretrained(tmp_path)
    config, state = read_adapter(new_model().encoder, str(tmp_path))
    assert len(config.target_modules) == len(state) // 2 == 4
