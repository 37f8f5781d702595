"""PolyheadModel under the common model tests of transformers; run by `hf_common.py`.

The tests make a tiny model with one task of every kind and check what transformers promises of any
model: saving and loading, initialisation from nothing, attention implementations, gradient
checkpointing, resized embeddings, the same result for a row alone and in a batch. They do not see
pooling that ignores the mask, nor a masked-LM head that is no longer tied.
"""

import unittest

import torch
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from transformers import BertConfig
from transformers.testing_utils import torch_device

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["a", "b", "c"]),
    "topics": TaskConfig(
        head="sequence_classification",
        labels=["x", "y"],
        problem_type="multi_label_classification",
        pooling="cls",
        activation="tanh",
    ),
    "urgency": TaskConfig(head="sequence_classification", problem_type="regression", pooling="max"),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-city", "I-city"]),
    "sim": TaskConfig(head="embedding", projection=8),
    "mlm": TaskConfig(head="masked_lm"),
}


class PolyheadModelTester:
    """The tiny model and its inputs; the attributes are those that the common tests read."""

    batch_size = 4
    seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    vocab_size = 99
    is_training = True

    def get_config(self):
        encoder = BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            max_position_embeddings=64,
        )
        return PolyheadConfig(encoder_config=encoder, tasks=TASKS)

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        inputs = {
            "input_ids": ids_tensor(shape, self.vocab_size),
            "attention_mask": random_attention_mask(shape),
            "token_type_ids": ids_tensor(shape, 2),
        }
        return self.get_config(), inputs


class PolyheadModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (PolyheadModel,)
    _is_composite = True
    # Off, because it loads the bare encoder's folder as a Polyhead. That folder holds another
    # architecture's config, without tasks; `from_encoder` is the way to start from one.
    test_missing_keys = False
    # Otherwise skipped, for a configuration file that names no copyright year of 2023 or later.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = PolyheadModelTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """The mixin makes labels for the class names it knows; ours go by task."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            rows, tokens = self.model_tester.batch_size, self.model_tester.seq_length
            labels = {
                "intent": torch.zeros(rows, dtype=torch.long),
                "topics": torch.ones(rows, 2),
                "urgency": torch.ones(rows),
                "slots": torch.zeros(rows, tokens, dtype=torch.long),
                "sim": torch.linspace(0, 1, rows // 2),  # pairs
                "mlm": torch.zeros(rows, tokens, dtype=torch.long),
            }
            inputs["labels"] = {name: values.to(torch_device) for name, values in labels.items()}
        return inputs

    def test_config(self):
        tasks = self.model_tester.get_config().to_dict()["tasks"]
        tester = ConfigTester(self, config_class=PolyheadConfig, tasks=tasks, pooling="cls")
        tester.run_common_tests()
