"""What an MM1 has to know about a decoder of another class: how it is built, its experts, and whether it keeps packed
examples apart."""

from typing import Any

import torch
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_mm1 import MM1TextConfig
from .modeling_mm1_text import MM1TextModel
from .segments import boundary_kwargs, packed_mask, segment_positions


# The names that serving engines give their attention.
_ENGINES = frozenset({"vllm", "sglang"})


def build_decoder(config: PreTrainedConfig) -> PreTrainedModel:
    """
    Builds the decoder: `mm1_text` from its class in this package, which also loads from the Hub without the package; any
    other decoder by its model type.

    Args:
        config: configuration of the decoder.
    """
    # CODEPATH: the presets and every other MM1 with an mm1_text decoder; the last line builds other decoders.
    if config.model_type == MM1TextConfig.model_type:
        return MM1TextModel._from_config(config)
    return AutoModel.from_config(config)


def keeps_own_cache(decoder: PreTrainedModel) -> bool:
    """
    Whether the decoder's attention is that of a serving engine. It keeps the cache itself, and calls the model for every
    token as if nothing came before it.

    Args:
        decoder: the decoder.
    """
    return decoder.config._attn_implementation in _ENGINES


def balance_coefficient(text_config: PreTrainedConfig) -> float | None:
    """
    Weight of a decoder's load-balancing loss, `None` if it has none. JetMoE calls the field `aux_loss_coef`.

    Args:
        text_config: configuration of the decoder.
    """
    return getattr(text_config, "router_aux_loss_coef", getattr(text_config, "aux_loss_coef", None))


def num_experts(text_config: PreTrainedConfig) -> int:
    """
    Number of experts in a sparse layer; 0 for a dense decoder and for one without a load-balancing loss.

    Args:
        text_config: configuration of the decoder.
    """
    if balance_coefficient(text_config) is None:
        return 0
    return getattr(text_config, "num_experts", None) or getattr(text_config, "num_local_experts", None) or 0


def require_packed_path(decoder: PreTrainedModel, inputs_embeds: torch.Tensor) -> None:
    """
    Refuses a decoder that cannot keep the segments of a packed row apart.

    Args:
        decoder: the decoder.
        inputs_embeds: `(batch, sequence, hidden)`. Only its width, dtype and device are used, not its values.

    Raises:
        ValueError: in this decoder the segments of a packed row would see each other.
    """
    layer_types = set(getattr(decoder.config, "layer_types", None) or ())
    recurrent = layer_types - {"full_attention", "sliding_attention", "chunked_attention"}
    if recurrent or decoder._is_stateful:
        reason = f"has layers that carry a state along the row{f' ({sorted(recurrent)})' if recurrent else ''}"
    elif not keeps_examples_apart(decoder, inputs_embeds):
        reason = "has an attention mask that does not follow restarting positions"
    else:
        return
    raise ValueError(
        f"{type(decoder).__name__} ({decoder.config.model_type}) {reason}, so it cannot keep the segments of a packed "
        "row apart. Train it on one example per row."
    )


@torch.no_grad()
def keeps_examples_apart(decoder: PreTrainedModel, inputs_embeds: torch.Tensor) -> bool:
    """
    Tests whether a decoder keeps the examples of a packed row apart, and remembers the result for each attention
    implementation. It runs two packed rows that differ only in their first example: the outputs for the second example
    must be equal. Some decoders (OPT, BLOOM, Falcon, gpt-oss) do not use the positions in their mask, so that examples
    see each other without any error.

    Args:
        decoder: the decoder to test.
        inputs_embeds: `(batch, sequence, hidden)`. Only its width, dtype and device are used, not its values.
    """
    implementation = decoder.config._attn_implementation
    known = decoder.__dict__.setdefault("_mm1_keeps_examples_apart", {})
    if implementation not in known:
        noise = torch.randn(2, 1, inputs_embeds.shape[-1], generator=torch.Generator().manual_seed(0))
        rows = torch.cat([noise, noise[:1].expand(2, -1, -1)], dim=1).to(inputs_embeds)
        segments = torch.tensor([[1, 2], [1, 2]], device=rows.device)
        # Dropout would make the outputs differ too.
        training = [module for module in decoder.modules() if module.training]
        decoder.eval()
        outputs = decoder(
            inputs_embeds=rows,
            position_ids=segment_positions(segments),
            use_cache=False,
            **boundary_kwargs(segments, implementation),
        )
        for module in training:
            module.training = True
        first, second = outputs.last_hidden_state[:, 1].float()
        known[implementation] = torch.allclose(first, second, rtol=0, atol=1e-3 * float(first.abs().max()))
    return known[implementation]


def branch_mask(decoder: PreTrainedModel, inputs_embeds: torch.Tensor, segment_ids: torch.Tensor) -> Any:
    """
    The attention mask of rows with branches, for a decoder that [`require_packed_path`] has accepted.

    Args:
        decoder: the decoder.
        inputs_embeds: `(batch, sequence, hidden)`. Only its width, dtype and device are used, not its values.
        segment_ids: `(batch, sequence)`, 0 for padding, negative for branches.

    Returns:
        A mask as [`packed_mask`] makes it; for a decoder with several kinds of layers, a dictionary with a mask for each
        of them.

    Raises:
        ValueError: in this decoder the branches of a packed row would see each other.
    """
    if not _keeps_branches_apart(decoder, inputs_embeds):
        raise ValueError(
            f"{type(decoder).__name__} ({decoder.config.model_type}) cannot keep the branches of a packed row (negative "
            "segment_ids) apart, because its attention does not follow a given mask. Give every example a segment of its "
            "own: where data is read, leave out separate_exchanges."
        )
    return _branch_mask(decoder.config, inputs_embeds.dtype, segment_ids)


def _branch_mask(config: PreTrainedConfig, dtype: torch.dtype, segment_ids: torch.Tensor) -> Any:
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if not kinds:
        return packed_mask(segment_ids, config, dtype, window)
    masks = {
        kind: packed_mask(segment_ids, config, dtype, window if kind == "sliding_attention" else None)
        for kind in kinds
    }
    return masks if len(masks) > 1 else masks[kinds[0]]


@torch.no_grad()
def _keeps_branches_apart(decoder: PreTrainedModel, inputs_embeds: torch.Tensor) -> bool:
    """
    Tests whether a decoder keeps the branches of a packed row apart, and remembers the result for each attention
    implementation. It runs three rows of two branches each. The outputs for the second branch must be equal where only the
    first branch differs, and must differ where the shared beginning does.
    """
    implementation = decoder.config._attn_implementation
    known = decoder.__dict__.setdefault("_mm1_keeps_branches_apart", {})
    if implementation in known:
        return known[implementation]
    if "chunked_attention" in (getattr(decoder.config, "layer_types", None) or ()):
        # Its chunks are counted in columns.
        known[implementation] = False
        return False
    noise = torch.randn(5, inputs_embeds.shape[-1], generator=torch.Generator().manual_seed(0)).to(inputs_embeds)
    rows = noise[torch.tensor([[0, 1, 2], [0, 3, 2], [4, 1, 2]], device=noise.device)]
    segments = torch.tensor([[1, -1, -2]], device=rows.device).expand(3, -1)
    training = [module for module in decoder.modules() if module.training]
    # Dropout would make the outputs differ too.
    decoder.eval()
    outputs = decoder(
        inputs_embeds=rows,
        attention_mask=_branch_mask(decoder.config, rows.dtype, segments),
        position_ids=segment_positions(segments),
        use_cache=False,
        **boundary_kwargs(segments, implementation),
    )
    for module in training:
        module.training = True
    second, other_branch, other_beginning = outputs.last_hidden_state[:, 2].float()
    tolerance = 1e-3 * float(second.abs().max())
    known[implementation] = torch.allclose(second, other_branch, rtol=0, atol=tolerance) and not torch.allclose(
        second, other_beginning, rtol=0, atol=tolerance
    )
    return known[implementation]
