"""transformers' own tests of models, on one dense and one sparse MM1 and on its decoder alone."""

import unittest
import unittest.mock

import pytest
import torch
from transformers import CLIPVisionConfig, set_seed
from transformers.testing_utils import torch_device

from mm1_hf import (
    MM1Config,
    MM1ConnectorConfig,
    MM1ForConditionalGeneration,
    MM1Model,
    MM1TextConfig,
    MM1TextForCausalLM,
    MM1TextModel,
)


common = pytest.importorskip("tests.test_modeling_common")
config_common = pytest.importorskip("tests.test_configuration_common")
generation = pytest.importorskip("tests.generation.test_utils")
common_ids_tensor = common.ids_tensor

# Low, because one test cuts the vocabulary.
IMAGE_TOKEN = 3
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_layer_period": 2, "moe_intermediate_size": 16}
# What ConfigTester builds a configuration from.
TEXT_FIELDS = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def text_ids(shape: list[int], vocab_size: int) -> torch.Tensor:
    """The suites' random ids, without the special tokens and the image token."""
    return common_ids_tensor(shape, vocab_size - IMAGE_TOKEN - 1) + IMAGE_TOKEN + 1


def random_ids(batch_size: int, length: int) -> torch.Tensor:
    return text_ids([batch_size, length], TEXT_FIELDS["vocab_size"])


class MM1TextTester:
    """What the suites ask of a decoder: a configuration, inputs and the numbers that outputs are checked by."""

    base_model_class = MM1TextModel
    causal_lm_class = MM1TextForCausalLM
    is_training = True
    batch_size = 3
    seq_length = 7
    encoder_seq_length = 7

    def __init__(self, parent: unittest.TestCase, **fields: object):
        self.parent = parent
        self.fields = {**TEXT_FIELDS, **fields}
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, self.fields[name])

    def get_config(self) -> MM1TextConfig:
        return MM1TextConfig(**self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[MM1TextConfig, dict]:
        input_ids = random_ids(self.batch_size, self.seq_length)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class MM1Tester:
    """The same of the whole model: 4 image tokens, then text."""

    base_model_class = MM1Model
    is_training = True
    # As many rows as the largest batch of the suites, which fill up smaller ones with more tiles than image tokens.
    batch_size = 7
    num_image_tokens = 4
    image_size = 8
    patch_size = 2
    num_channels = 3
    seq_length = 11
    encoder_seq_length = 11

    def __init__(self, parent: unittest.TestCase, **fields: object):
        self.parent = parent
        self.text_fields = {**TEXT_FIELDS, **fields}
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, self.text_fields[name])

    def get_config(self) -> MM1Config:
        return MM1Config(
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=self.image_size,
                patch_size=self.patch_size,
                projection_dim=32,
            ),
            text_config=MM1TextConfig(**self.text_fields),
            connector_config=MM1ConnectorConfig(num_tokens=self.num_image_tokens, hidden_size=16, depth=1),
            image_token_id=IMAGE_TOKEN,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[MM1Config, dict]:
        image = torch.full((self.batch_size, self.num_image_tokens), IMAGE_TOKEN, device=torch_device)
        input_ids = torch.cat([image, random_ids(self.batch_size, self.seq_length - self.num_image_tokens)], dim=1)
        side = self.image_size
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": torch.rand(self.batch_size, self.num_channels, side, side, device=torch_device),
        }


class Suite(common.ModelTesterMixin, generation.GenerationTesterMixin):
    pipeline_model_mapping = {}

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class CompositeSuite(Suite):
    all_model_classes = (MM1Model, MM1ForConditionalGeneration)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    text_fields = {}

    def setUp(self) -> None:
        set_seed(0)
        self.model_tester = MM1Tester(self, **self.text_fields)
        self.config_tester = config_common.ConfigTester(self, config_class=MM1Config, has_text_modality=False)
        # Random ids of the whole vocabulary hold image tokens without an image, which MM1 refuses.
        patch = unittest.mock.patch.object(common, "ids_tensor", text_ids)
        patch.start()
        self.addCleanup(patch.stop)


class MM1DenseModelTest(CompositeSuite, unittest.TestCase):
    @unittest.skip("A dense decoder has no router, though its configuration has the field.")
    def test_output_router_logits_from_config(self) -> None: ...


class MM1SparseModelTest(CompositeSuite, unittest.TestCase):
    text_fields = SPARSE


class MM1TextModelTest(Suite, unittest.TestCase):
    all_model_classes = (MM1TextModel, MM1TextForCausalLM)

    def setUp(self) -> None:
        set_seed(0)
        self.model_tester = MM1TextTester(self, **SPARSE)
        self.config_tester = config_common.ConfigTester(self, config_class=MM1TextConfig, **TEXT_FIELDS)


# Bases only.
del Suite, CompositeSuite
