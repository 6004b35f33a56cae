"""Tiny image-text-to-text models of transformers' own families, with their processors, without torchvision, and pictures."""

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import torch
from generating import far_from_initial
from PIL import Image
from tiny import byte_tokenizer
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from mm1_hf.data.documents import ImagePart


_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 256,
}
_TURN = (
    "{% for message in messages %}{{ '<|' ~ message.role ~ '|>' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _without_videos(processor_class):
    """transformers' video processors need torchvision, and a processor that may have one checks its type."""

    class Processor(processor_class):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    return Processor


def _tokenizer(*special: str):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def tiny_llava():
    """LLaVA, with a template that writes a message's images before its texts, as LLaVA 1.5's does."""
    tokenizer = _tokenizer("<image>")
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for message in messages %}{{ message.role | upper ~ ': ' }}"
        "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message.content if part.type == 'text' %}{{ part.text ~ ' ' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
        image_token_index=processor.image_token_id,
    )
    return far_from_initial(LlavaForConditionalGeneration(config)), processor


def _idefics(config_class, model_class, processor_class, image_processor_class, **others):
    tokenizer = _tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    processor = processor_class(
        image_processor_class(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer,
        image_seq_len=1,
        **others,
        chat_template=_TURN.replace("IMAGE", "<image>"),
    )
    config = config_class(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        text_config=LlamaConfig(**_TEXT, vocab_size=len(tokenizer)).to_dict(),
        scale_factor=2,
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(0)
    return far_from_initial(model_class(config)), processor


def tiny_idefics3():
    return _idefics(Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, Idefics3ImageProcessorPil)


def tiny_smolvlm():
    # It spells the number of a video's frames by a package that is not needed here.
    processing_smolvlm.num2words = str
    return _idefics(
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        _without_videos(SmolVLMProcessor),
        SmolVLMImageProcessorPil,
        # What its chats read of a video processor.
        video_processor=SimpleNamespace(num_frames=1, fps=1, video_size=None),
    )


def tiny_qwen2_vl():
    """Qwen2-VL, whose template writes marks around an image."""
    tokenizer = _tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    template = _TURN.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = _without_videos(Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer,
        chat_template=template,
    )
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    config = Qwen2VLConfig(
        text_config={
            **_TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    return far_from_initial(Qwen2VLForConditionalGeneration(config)), processor


PEERS = {"llava": tiny_llava, "idefics3": tiny_idefics3, "smolvlm": tiny_smolvlm, "qwen2_vl": tiny_qwen2_vl}


def picture(seed: int, height: int = 40, width: int = 60) -> ImagePart:
    """A picture of noise, as the bytes of a PNG file."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return ImagePart(file.getvalue())
