"""Loading of adapters into an MM1: adapters that were made for another base model are refused."""

import re
from typing import Any

import torch
import torch.distributed as dist


# Matches the name of an adapter's weight; its group is the name of the adapter.
_ADAPTED = re.compile(r"\.(?:lora_\w+|modules_to_save)\.([^.]+)")


class AdapterLoadingMixin:
    """
    Refuses adapters that were made for another base model. PEFT and transformers would load the weights whose names
    match, and at best warn about the others.
    """

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """
        Same as transformers' `load_adapter`, but refuses adapters that do not fit this model.

        Args:
            args, kwargs: arguments of transformers' `load_adapter`.

        Raises:
            ValueError: the adapter was made for another base model.
        """
        loaded = super().load_adapter(*args, **{"ignore_mismatched_sizes": True, **kwargs})  # ty: ignore[missing-attribute] -- a mixin
        mismatched = {name for name, *_ in loaded.mismatched_keys}
        _require_fit(mismatched | set(loaded.unexpected_keys), set(loaded.missing_keys))
        return loaded

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # PEFT loads an adapter through this method. It passes all of the adapter's weights, named as in this model.
        given = {
            name: (weight.shape, match[1]) for name, weight in state_dict.items() if (match := _ADAPTED.search(name))
        }
        # With several processes the weights may be sharded, and then names and shapes here are those of the shards.
        if given and not (dist.is_available() and dist.is_initialized()):
            adapters = {adapter for _, adapter in given.values()}
            weights = {prefix + name: weight.shape for name, weight in self.named_parameters()}  # ty: ignore[missing-attribute] -- a mixin
            own = {name for name in weights if (match := _ADAPTED.search(name)) and match[1] in adapters}
            wrong = {name for name, (shape, _) in given.items() if weights.get(name) != shape}
            # If the adapter holds a whole connector, PEFT does not rename those of its weights that this model lacks:
            # they keep the names that they have in the base model.
            wrong |= {name for name in state_dict if ".connector." in name and name not in weights}
            _require_fit(wrong, own - given.keys())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # ty: ignore[missing-attribute] -- a mixin


def _require_fit(wrong: set[str], missing: set[str]) -> None:
    if wrong or missing:
        raise ValueError(
            f"The adapter was made for another base model: {len(wrong)} of its weights do not match a weight of this "
            f"model in name and shape, and {len(missing)} weights that this model expects are missing (for example "
            f"{min(wrong | missing)}). Load the adapter on the model that its adapter_config.json names as "
            "base_model_name_or_path."
        )
