"""A tokenizer trained from the texts of a recipe, by the `tokenizers` library.

It is the same each time: `tokenizers` breaks ties by the numbers of pieces, which are given here in
one order. Unigram's sums have no such order, so a run that resumes takes its checkpoint's.
"""

import logging
import os
from collections.abc import Iterable, Iterator

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..data.loading import Source
from ..recipe.schema import TrainedTokenizer

logger = logging.getLogger(__name__)
SPECIAL = {  # in id order
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROWS = 1000  # in memory at once
CONTINUED = "##"  # before a piece that begins no word, of WordPiece


def train_tokenizer(options: TrainedTokenizer, sources: list[Source]) -> PreTrainedTokenizerBase:
    """A tokenizer of the texts of train.

    Args:
        options: what kind, and how many pieces.
        sources: checked rows.

    Raises:
        ValueError: the texts hold no letter, or fewer pieces are asked for than they have signs;
            several processes would each make another one.
    """
    if options.train == "unigram" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "tokenizer: unigram is another one in each process; train wordpiece or bpe, or in one "
            "process first, and name its folder"
        )
    signs = sorted({sign for text in texts_of(sources) for sign in text if not sign.isspace()})
    if not signs:
        raise ValueError("tokenizer: there is no text to train it on; every row of train is empty")
    least = len(SPECIAL) + (256 if options.train == "bpe" else len(signs))
    if options.vocab_size <= least:
        raise ValueError(
            f"tokenizer.vocab_size: {options.vocab_size}, but single signs alone take {least}; "
            "write more"
        )
    make = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[options.train]
    tokenizer = make(options.vocab_size, sources, signs)
    numbers = [(token, tokenizer.token_to_id(token)) for token in SPECIAL.values()]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=numbers
    )
    size = tokenizer.get_vocab_size()
    if size < options.vocab_size:
        logger.info("tokenizer: %d pieces; the texts give no more", size)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def texts_of(sources: Iterable[Source]) -> Iterator[str]:
    """The texts of train, of each source in turn."""
    for source in sources:
        for batch in source.splits["train"].iter(ROWS):
            for column in source.texts_of(dict(batch)):
                for value in column:
                    yield from [value] if isinstance(value, str) else value


def _wordpiece(size: int, sources: list[Source], signs: list[str]) -> Tokenizer:
    """BERT's (arXiv:1609.08144), with capitals and accents."""

    def empty(vocabulary: dict[str, int] | None = None) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    first = [*SPECIAL.values(), *signs, *(f"{CONTINUED}{sign}" for sign in signs)]
    trained = empty()
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, len(first)), special_tokens=first, show_progress=False
    )
    trained.train_from_iterator(texts_of(sources), trainer)
    vocabulary = trained.get_vocab()
    used = sorted(vocabulary, key=vocabulary.__getitem__)
    tokenizer = empty({piece: number for number, piece in enumerate(used)})
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    return tokenizer


def _bpe(size: int, sources: list[Source], signs: list[str]) -> Tokenizer:
    """GPT-2's, over bytes: no text has an unknown sign."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts_of(sources), trainer)
    return tokenizer


def _unigram(size: int, sources: list[Source], signs: list[str]) -> Tokenizer:
    """SentencePiece's (arXiv:1804.10959)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL.values()),
        unk_token=SPECIAL["unk_token"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts_of(sources), trainer)
    return tokenizer
