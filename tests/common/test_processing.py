"""transformers' own tests of processors, for `MM1Processor`."""

import unittest
import unittest.mock

import pytest
from tiny import byte_tokenizer

from mm1_hf import MM1ImageProcessor, MM1Processor


common = pytest.importorskip("tests.test_processing_common")


class MM1ProcessingTest(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = MM1Processor
    # The bytes of a word are a token each.
    chat_template_max_length = 200

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<eos>"})
        return tokenizer

    @classmethod
    def _setup_image_processor(cls):
        return MM1ImageProcessor(size={"height": 20, "width": 20})

    @staticmethod
    def prepare_processor_dict():
        return {"num_image_tokens": 4}

    def test_replacement_offsets(self) -> None:
        # The original runs where there is a `replace_image_token`; here a batch's texts come from its layouts.
        def has_offsets(_, name: str) -> bool:
            return name == "replace_image_token"

        with unittest.mock.patch.object(self, "does_processor_return_mm_offsets", has_offsets):
            super().test_replacement_offsets()

    def test_get_num_multimodal_tokens_matches_processor_call(self) -> None:
        # The original counts images of several texts in one call, which here are those of one text, as vLLM passes them:
        # then only the first few would be split.
        processor = self.get_processor()
        processor.image_processor.max_split_images = 16
        with unittest.mock.patch.object(self, "get_processor", return_value=processor):
            super().test_get_num_multimodal_tokens_matches_processor_call()

    def _test_apply_chat_template(self, *args: object) -> None:
        # The original states one row of pixel_values per image, which flat tiles have where none is split.
        processor = self.get_processor()
        processor.image_processor.image_splitting = "none"
        with unittest.mock.patch.object(self, "get_processor", return_value=processor):
            super()._test_apply_chat_template(*args)


del common
