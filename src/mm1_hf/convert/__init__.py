"""Converts foreign checkpoints to MM1 models, or to parts of them, that compute the same outputs as their source."""

from .aim import convert_aim
from .axlearn import convert_axlearn
from .decoders import convert_decoder, text_config_of
from .gguf import convert_gguf
from .honeybee import convert_honeybee, load_connector
from .llava import convert_llava
from .open_clip import convert_open_clip


__all__ = [
    "convert_aim",
    "convert_axlearn",
    "convert_decoder",
    "convert_gguf",
    "convert_honeybee",
    "convert_llava",
    "convert_open_clip",
    "load_connector",
    "text_config_of",
]
