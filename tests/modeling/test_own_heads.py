"""A head over the vocabulary starts from the one that the checkpoint brings along."""

import pytest
import torch
from conftest import ENCODERS, shake, tiny_encoder_config
from polyhead.modeling import PolyheadModel, TaskConfig
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, BertForPreTraining
from transformers.utils import logging

LENGTHS = [9, 5, 12]
MASKED = [kind for kind in ENCODERS if kind not in ("llama", "eurobert")]
FAULT = "has a head of another form; this one starts from random weights"


def checkpoint(folder, auto, kind, **changes):
    model = auto.from_config(tiny_encoder_config(kind, **changes)).eval()
    shake(model, scale=0.05)
    model.save_pretrained(folder)
    return model


def logits_of(folder, head, batch_of, **options):
    model = PolyheadModel.from_encoder(str(folder), {"words": TaskConfig(head=head, **options)})
    batch = batch_of(model, LENGTHS)
    with torch.no_grad():
        return model, model(**batch).logits["words"], batch


@pytest.mark.parametrize("kind", MASKED)
def test_masked_lm_has_the_logits_of_hf(kind, tmp_path, batch_of):
    theirs = checkpoint(tmp_path, AutoModelForMaskedLM, kind)
    model, found, batch = logits_of(tmp_path, "masked_lm", batch_of)
    with torch.no_grad():
        expected = theirs(**batch).logits
    real = batch["attention_mask"].bool()
    assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)
    assert model.heads["words"].decoder.weight is model.get_input_embeddings().weight


def test_so_has_a_checkpoint_with_other_heads_beside(tmp_path, batch_of):
    theirs = BertForPreTraining(tiny_encoder_config("bert")).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    _, found, batch = logits_of(tmp_path, "masked_lm", batch_of)
    with torch.no_grad():
        assert_close(found, theirs(**batch).prediction_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_causal_lm_has_the_logits_of_hf(tied, tmp_path, batch_of):
    theirs = checkpoint(tmp_path, AutoModelForCausalLM, "llama", tie_word_embeddings=tied)
    _, found, batch = logits_of(tmp_path, "causal_lm", batch_of, tied=tied)
    with torch.no_grad():
        expected = theirs(**batch).logits
    real = batch["attention_mask"].bool()
    assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


def test_a_head_of_another_form_starts_from_random_weights_and_says_so(
    tmp_path, batch_of, caplog, monkeypatch
):
    monkeypatch.setattr(logging.get_logger("polyhead"), "propagate", True)
    checkpoint(tmp_path / "one", AutoModelForMaskedLM, "eurobert")
    logits_of(tmp_path / "one", "masked_lm", batch_of)
    assert FAULT in caplog.text
    caplog.clear()
    folder = tmp_path / "two"
    theirs = checkpoint(folder, AutoModelForCausalLM, "llama", tie_word_embeddings=False)
    model, _, _ = logits_of(folder, "causal_lm", batch_of)  # tied
    assert FAULT in caplog.text
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings, theirs.get_input_embeddings().weight)


def test_an_encoder_without_a_head_brings_none(tmp_path, batch_of, caplog):
    checkpoint(tmp_path, AutoModel, "bert")
    model, _, _ = logits_of(tmp_path, "masked_lm", batch_of)
    assert FAULT not in caplog.text
    assert bool((model.heads["words"].decoder.bias == 0).all())
