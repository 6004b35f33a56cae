"""Adapters in an MM1: one that was made for another base is refused."""

import re
from typing import Any

import torch
import torch.distributed as dist


# A weight of an adapter, and the adapter's name.
_ADAPTED = re.compile(r"\.(?:lora_\w+|modules_to_save)\.([^.]+)")


class AdapterLoadingMixin:
    """
    Refuses adapters of another base. PEFT and transformers load them as far as names match, with a warning at best.
    """

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """
        As transformers' own.

        Args:
            args, kwargs: transformers'.

        Raises:
            ValueError: the adapter was made for another base.
        """
        loaded = super().load_adapter(*args, **{"ignore_mismatched_sizes": True, **kwargs})  # ty: ignore[missing-attribute] -- a mixin
        mismatched = {name for name, *_ in loaded.mismatched_keys}
        _require_fit(mismatched | set(loaded.unexpected_keys), set(loaded.missing_keys))
        return loaded

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # PEFT's way in: all of an adapter's weights under the names they should have here.
        given = {
            name: (weight.shape, match[1]) for name, weight in state_dict.items() if (match := _ADAPTED.search(name))
        }
        # Where processes share the weights, names and shapes here are those of the shards.
        if given and not (dist.is_available() and dist.is_initialized()):
            adapters = {adapter for _, adapter in given.values()}
            weights = {prefix + name: weight.shape for name, weight in self.named_parameters()}  # ty: ignore[missing-attribute] -- a mixin
            own = {name for name in weights if (match := _ADAPTED.search(name)) and match[1] in adapters}
            wrong = {name for name, (shape, _) in given.items() if weights.get(name) != shape}
            # Of a connector that is saved whole, PEFT leaves what has no place here under its name in the base.
            wrong |= {name for name in state_dict if ".connector." in name and name not in weights}
            _require_fit(wrong, own - given.keys())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # ty: ignore[missing-attribute] -- a mixin


def _require_fit(wrong: set[str], missing: set[str]) -> None:
    if wrong or missing:
        raise ValueError(
            f"The adapter was made for another base: {len(wrong)} of its weights have no place of their name and shape in "
            f"this model, and {len(missing)} that this model expects are not in it (such as {min(wrong | missing)}). Load "
            "it on the model that its adapter_config.json names as base_model_name_or_path."
        )
