"""Tiny random encoders and tokenizers, made offline and once per session.

Weights are far from their usual initial values (which are near zero), so that a wrong row, token or
layer shows as a large difference and not as one below the tolerance.
"""

import gc
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from polyhead.modeling import PolyheadModel, TaskConfig
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from trainer_fixtures import build, data, rows_of, usual_tasks  # noqa: F401
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

CORPUS = [
    "Book a table for two in Paris at seven tonight, please.",
    "The train to New York leaves on Monday from platform three.",
    "Anna Smith works for Acme in Berlin and lives in Zürich.",
    "Play some music by the Beatles and then set an alarm for six.",
    "What is the weather like in San Francisco tomorrow morning?",
]
POSITIONS = 64  # tokens that every tiny encoder with learned positions accepts
VOCABULARY = {"wordpiece": 160, "bpe": 290, "unigram": 120}
# fmt: off
ENCODERS = {  # kind: (family of its tokenizer, what its config needs beside the common sizes)
    "bert": ("wordpiece", {}),
    "distilbert": ("wordpiece", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "electra": ("wordpiece", {"embedding_size": 16}),
    "mpnet": ("bpe", {"max_position_embeddings": POSITIONS + 2}),
    "deberta-v2": ("wordpiece", {"relative_attention": True, "position_biased_input": False,
                                 "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32}),
    "albert": ("unigram", {"embedding_size": 16}),
    "roberta": ("bpe", {"max_position_embeddings": POSITIONS + 2}),
    "xlm-roberta": ("unigram", {"max_position_embeddings": POSITIONS + 2}),
    "camembert": ("unigram", {"max_position_embeddings": POSITIONS + 2}),
    "modernbert": ("bpe", {"global_attn_every_n_layers": 2, "local_attention": 8}),
    "eurobert": ("bpe", {"head_dim": 8, "num_key_value_heads": 4}),
    "llama": ("bpe", {"num_key_value_heads": 2}),
}
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob",
     "classifier_dropout", "dropout", "attention_dropout", "seq_classif_dropout",
     "pooler_dropout"), 0.0)
SPECIAL = {  # in id order
    "wordpiece": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "bpe": {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>",
            "mask_token": "<mask>"},
}
SPECIAL["unigram"] = SPECIAL["bpe"]
# fmt: on
SAVEFIG = Figure.savefig


def tiny_encoder_config(kind: str, **changes: object) -> PreTrainedConfig:
    """Config of a random `kind` encoder: 2 layers, hidden 32, 4 heads, no dropout."""
    family, options = ENCODERS[kind]
    special = list(SPECIAL[family])
    sizes = {
        "vocab_size": VOCABULARY[family],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": special.index("pad_token"),
        "bos_token_id": special.index("cls_token"),
        "eos_token_id": special.index("sep_token"),
        "cls_token_id": special.index("cls_token"),
        "sep_token_id": special.index("sep_token"),
        "mask_token_id": special.index("mask_token"),
    }
    return AutoConfig.for_model(kind, **{**sizes, **NO_DROPOUT, **options, **changes})


def shake(model: torch.nn.Module, *, scale: float = 0.2) -> None:
    """Move every parameter away from its usual initial value, the same way at each call."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Tokenizer for `CORPUS`: WordPiece, byte-level BPE or Unigram with Metaspace.

    Vocabularies of WordPiece and Unigram are written down, not trained: their trainers break ties
    at random. They hold letters and short words, so that longer words take several tokens.
    """
    special = list(SPECIAL[family].values())
    text = " ".join(CORPUS)
    short = sorted({word for word in re.findall(r"[A-Za-z]+", text) if len(word) <= 5})
    if family == "wordpiece":
        letters = sorted(set(unicodedata.normalize("NFD", text.lower())) - {" ", "\u0308"})
        continued = [f"##{letter}" for letter in letters if letter.isalpha()]
        pieces = dict.fromkeys([*special, *letters, *continued, *map(str.lower, short)])
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    elif family == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY[family],
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    else:
        pieces = [(token, 0.0) for token in special]
        pieces += [("▁", -8.0), *((letter, -9.0) for letter in sorted(set(text) - {" "}))]
        pieces += [(f"▁{word}", -6.0) for word in short]
        tokenizer = Tokenizer(models.Unigram(pieces, special.index("<unk>")))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, number) for number, token in enumerate(special)],
    )
    names = ["input_ids", "attention_mask"]
    if family == "wordpiece":
        names.insert(1, "token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        model_input_names=names,
        **SPECIAL[family],
    )


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: no collection of garbage looks at them again.

    Each training asks for a whole one when it ends.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _blank_pictures() -> Iterator[None]:
    """Figures are made but saved as one dot; drawing them takes longer than a tiny training.

    What is about pictures asks for `rendered`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, path: Image.new("L", (1, 1)).save(path, "PNG"))
        yield


@pytest.fixture(scope="module")
def rendered(_blank_pictures) -> Iterator[None]:
    """Figures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", SAVEFIG)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=list(ENCODERS))
def kind(request) -> str:
    """Each kind of encoder in turn; parametrize `kind` to choose some."""
    return request.param


@pytest.fixture(params=list(VOCABULARY))
def family(request) -> str:
    """Each family of tokenizers in turn."""
    return request.param


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[str], PreTrainedTokenizerFast]:
    """Family (`wordpiece`, `bpe`, `unigram`) -> its tokenizer."""
    made = {name: make_tokenizer(name) for name in VOCABULARY}
    for name, tokenizer in made.items():
        assert len(tokenizer) <= VOCABULARY[name], (name, len(tokenizer))
    return made.__getitem__


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory, tokenizer_of) -> Callable[..., Path]:
    """Kind (and changes of its config) -> folder with a random encoder and its tokenizer."""
    root, made = tmp_path_factory.mktemp("encoders"), {}

    def folder(kind: str, **changes: object) -> Path:
        key = json.dumps([kind, changes], sort_keys=True)
        if key not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)  # the same encoder whichever test asks first
                encoder = AutoModel.from_config(tiny_encoder_config(kind, **changes))
            shake(encoder)
            made[key] = root / f"{kind}-{len(made)}"
            encoder.save_pretrained(made[key])
            tokenizer_of(ENCODERS[kind][0]).save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def make_model(encoder_folder) -> Callable[..., PolyheadModel]:
    """(kind, tasks, pooling=, experts=, changes of the encoder) -> model with shaken heads."""

    def make(
        kind: str,
        tasks: dict[str, TaskConfig],
        *,
        pooling: str = "mean",
        experts: dict[str, object] | None = None,
        **changes: object,
    ) -> PolyheadModel:
        folder = str(encoder_folder(kind, **changes))
        model = PolyheadModel.from_encoder(folder, tasks=tasks, pooling=pooling, experts=experts)
        shake_heads(model)
        if model.experts is not None:
            shake(model.experts)
        return model

    return make


def shake_heads(model: PolyheadModel) -> None:
    """Shake the heads only; what a head shares with the encoder stays."""
    shared = {id(parameter) for parameter in model.encoder.parameters()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            if id(parameter) not in shared:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def shake_adapters(model: PolyheadModel) -> None:
    """Shake the adapters' weights only; LoRA's begin as no change at all."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if any(part in name for part in ("lora_", "ia3_")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.fixture
def batch_of() -> Callable[..., dict[str, torch.Tensor]]:
    """(model, lengths, side=, extra=) -> random ids of these lengths, padded by `extra` more."""

    def batch(
        model: PreTrainedModel, lengths: list[int], *, side: str = "right", extra: int = 0
    ) -> dict[str, torch.Tensor]:
        config = model.config.get_text_config()
        generator = torch.Generator().manual_seed(7)
        ids = torch.full((len(lengths), max(lengths) + extra), config.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, length in enumerate(lengths):
            columns = slice(0, length) if side == "right" else slice(ids.shape[1] - length, None)
            ids[row, columns] = torch.randint(5, config.vocab_size, (length,), generator=generator)
            mask[row, columns] = 1
        return {"input_ids": ids, "attention_mask": mask}

    return batch
