"""Small parts that tests assemble: a byte-level tokenizer, encoders and decoders of a few thousand parameters."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mm1_hf import (
    AIMVisionConfig,
    AIMVisionModel,
    MM1ConnectorConfig,
    MM1TextConfig,
    MM1TextForCausalLM,
    assemble,
)


DECODER_SIZES = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 256,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and an end-of-text token; every text survives a round trip."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | {"<eos>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def tiny_vision(kind: str = "clip", layers: int = 3):
    """An encoder 32 wide, for tiles of 56 pixels in 4 x 4 patches."""
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    model_class, config = {
        "clip": (CLIPVisionModel, CLIPVisionConfig(intermediate_size=64, **sizes)),
        "siglip": (SiglipVisionModel, SiglipVisionConfig(intermediate_size=64, **sizes)),
        "aimv2": (Aimv2VisionModel, Aimv2VisionConfig(intermediate_size=64, **sizes)),
        "dinov2": (Dinov2Model, Dinov2Config(**sizes)),
        "aim": (AIMVisionModel, AIMVisionConfig(intermediate_size=64, **sizes)),
    }[kind]
    return model_class(config).eval()


def tiny_decoder(vocab_size: int = 257, **fields):
    """A Llama 64 wide with as many embedding rows as `byte_tokenizer` has tokens."""
    torch.manual_seed(2)
    config = LlamaConfig(**{**DECODER_SIZES, "vocab_size": vocab_size, "bos_token_id": None, **fields})
    return LlamaForCausalLM(config).eval()


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# The package's own and a foreign one.
TINY_DECODERS = {
    "mm1_text": lambda: MM1TextForCausalLM(MM1TextConfig(**DECODER_SIZES)),
    "mm1_text-sparse": lambda: MM1TextForCausalLM(MM1TextConfig(**DECODER_SIZES, **_EXPERTS)),
    "llama": tiny_decoder,
}


def tiny_mm1(vision: str = "clip", connector: MM1ConnectorConfig | None = None):
    """A model and its processor, 4 tokens per tile of 56 pixels."""
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32) if connector is None else connector
    torch.manual_seed(3)
    return assemble(tiny_vision(vision), tiny_decoder(), connector, tokenizer=byte_tokenizer(), verbose=False)
