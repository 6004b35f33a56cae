"""Weights from elsewhere: foreign checkpoints become models and parts of MM1, with equal outputs."""

from .decoders import convert_decoder, text_config_of


__all__ = ["convert_decoder", "text_config_of"]
