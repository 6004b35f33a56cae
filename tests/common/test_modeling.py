"""transformers' own tests of models: dense and sparse, every connector, a foreign decoder, the decoder alone, two ranks."""

import unittest
import unittest.mock

import pytest
import torch
from transformers import CLIPVisionConfig, PreTrainedConfig, Qwen3Config, set_seed
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
tensor_parallel = pytest.importorskip("tests.test_tensor_parallel_mixin")
expert_parallel = pytest.importorskip("tests.test_expert_parallel_mixin")
# Lists of transformers' own models; None is any.
tensor_parallel.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
expert_parallel.EP_DISTRIBUTED_TEST_MODEL_TYPES = None
common_ids_tensor = common.ids_tensor

# Low, because one test cuts the vocabulary.
IMAGE_TOKEN = 3
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_layer_period": 2, "moe_intermediate_size": 16}
C_ABSTRACTOR = {"num_tokens": 4, "hidden_size": 16, "depth": 1}
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
    """The same of the whole model: a tile's image tokens, then text."""

    base_model_class = MM1Model
    conditional_generation_class = MM1ForConditionalGeneration
    text_config_class: type[PreTrainedConfig] = MM1TextConfig
    is_training = True
    # As many rows as the largest batch of the suites, which fill up smaller ones with more tiles than image tokens.
    batch_size = 7
    image_token_id = IMAGE_TOKEN
    image_size = 8
    patch_size = 2
    num_channels = 3
    num_text_tokens = 7

    def __init__(self, parent: unittest.TestCase, connector: dict, **fields: object):
        self.parent = parent
        self.connector = connector
        self.num_image_tokens = connector.get("num_tokens", (self.image_size // self.patch_size) ** 2)
        self.seq_length = self.encoder_seq_length = self.num_image_tokens + self.num_text_tokens
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
            text_config=self.text_config_class(**self.text_fields),
            connector_config=MM1ConnectorConfig(**self.connector),
            image_token_id=self.image_token_id,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[MM1Config, dict]:
        image = torch.full((self.batch_size, self.num_image_tokens), IMAGE_TOKEN, device=torch_device)
        input_ids = torch.cat([image, random_ids(self.batch_size, self.num_text_tokens)], dim=1)
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
    inputs_class = MM1Tester
    connector = C_ABSTRACTOR
    text_fields = {}

    def setUp(self) -> None:
        if "batched_and_grouped" in self._testMethodName and "num_experts" not in self.text_fields:
            self.skipTest("A dense decoder has no experts, though its class could set them.")
        set_seed(0)
        self.model_tester = self.inputs_class(self, self.connector, **self.text_fields)
        self.config_tester = config_common.ConfigTester(self, config_class=MM1Config, has_text_modality=False)
        # Random ids of the whole vocabulary hold image tokens without an image, which MM1 refuses.
        patch = unittest.mock.patch.object(common, "ids_tensor", text_ids)
        patch.start()
        self.addCleanup(patch.stop)


class DenseSuite(CompositeSuite):
    @unittest.skip("A dense decoder has no router, though its configuration has the field.")
    def test_output_router_logits_from_config(self) -> None: ...


class MM1DenseModelTest(DenseSuite, unittest.TestCase): ...


class MM1SparseModelTest(CompositeSuite, unittest.TestCase):
    text_fields = SPARSE


class MM1TextModelTest(Suite, unittest.TestCase):
    all_model_classes = (MM1TextModel, MM1TextForCausalLM)

    def setUp(self) -> None:
        set_seed(0)
        self.model_tester = MM1TextTester(self, **SPARSE)
        self.config_tester = config_common.ConfigTester(self, config_class=MM1TextConfig, **TEXT_FIELDS)


# The classes with `core` below run these in `make test`, and everything in `make test-all`.
CORE = (
    "test_batching_equivalence",
    "test_can_init_all_missing_weights",
    "test_can_load_from_already_mapped_keys",
    "test_config",
    "test_eager_matches_sdpa_inference_00",
    "test_forward_signature",
    "test_get_image_features_output",
    "test_initialization",
    "test_model_outputs_equivalence",
    "test_resize_tokens_embeddings",
    "test_save_load",
    "test_sdpa_can_dispatch_composite_models",
    "test_torch_save_load",
    "test_training",
)


class MM1AverageModelTest(DenseSuite, unittest.TestCase):
    core = CORE
    connector = {"connector_type": "average", "num_tokens": 4}


class MM1AttentionModelTest(DenseSuite, unittest.TestCase):
    core = CORE
    connector = {"connector_type": "attention", "num_tokens": 4, "num_attention_heads": 4}


class MM1LinearModelTest(DenseSuite, unittest.TestCase):
    core = CORE
    connector = {"connector_type": "linear"}


class MM1MLPModelTest(DenseSuite, unittest.TestCase):
    core = CORE
    connector = {"connector_type": "mlp"}


class Qwen3Tester(MM1Tester):
    text_config_class = Qwen3Config


class MM1Qwen3ModelTest(CompositeSuite, unittest.TestCase):
    core = CORE
    inputs_class = Qwen3Tester
    text_fields = {"head_dim": 8}


class ParallelSuite(tensor_parallel.TensorParallelTesterMixin):
    """Two ranks against one, from text alone."""

    model_tester = None
    core = ("test_tp_plan", "test_moe_parallel_plans", "test_tp_backward", "test_tp_generation")


class ExpertParallelSuite(expert_parallel.ExpertParallelTesterMixin, ParallelSuite):
    core = ("test_tp_plan", "test_moe_parallel_plans", "test_ep_backward_1")


class CompositeParallelSuite:
    """Of so large a vocabulary that the suites' ids never draw the image token, which needs an image."""

    all_model_classes = (MM1Model, MM1ForConditionalGeneration)
    text_fields = {}

    def setUp(self) -> None:
        self.model_tester = MM1Tester(self, C_ABSTRACTOR, **{**self.text_fields, "vocab_size": 1999})
        self.model_tester.image_token_id = 1998


class MM1DenseParallelTest(CompositeParallelSuite, ParallelSuite, unittest.TestCase): ...


class MM1SparseParallelTest(CompositeParallelSuite, ExpertParallelSuite, unittest.TestCase):
    text_fields = SPARSE


class MM1TextParallelTest(ExpertParallelSuite, unittest.TestCase):
    core = ("test_tp_plan", "test_moe_parallel_plans")
    all_model_classes = (MM1TextModel, MM1TextForCausalLM)

    def setUp(self) -> None:
        self.model_tester = MM1TextTester(self, **SPARSE)


# Bases only.
del Suite, CompositeSuite, DenseSuite, ParallelSuite, ExpertParallelSuite, CompositeParallelSuite
