"""Loading of adapters into an MM1: adapters that were made for another base model are refused."""

import re
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist

from .versions import LOADS_WHOLE_MODULES


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
        wrong = {name for name, *_ in loaded.mismatched_keys} | set(loaded.unexpected_keys)
        missing = set(loaded.missing_keys)
        if not LOADS_WHOLE_MODULES:
            placed = self._load_whole_modules(*args, **kwargs)
            wrong, missing = wrong - placed.keys(), missing - set(placed.values())
        _require_fit(wrong, missing)
        return loaded

    def _load_whole_modules(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, torch.Tensor] | None = None,
        *others: Any,
        **kwargs: Any,
    ) -> dict[str, str]:
        """
        Loads the modules that an adapter holds whole, such as the connector, which transformers leaves out up to 5.17.

        Returns:
            The names of their weights in the base model, with their names beside an adapter.
        """
        if adapter_state_dict is None:
            # By name: a file of remote code that imports PEFT could not be loaded without it.
            peft: Any = import_module("peft.utils")
            adapter_state_dict = peft.load_peft_weights(peft_model_id, **(kwargs.get("adapter_kwargs") or {}))
        given = {name.removeprefix("base_model.model."): weight for name, weight in adapter_state_dict.items()}
        beside = f".modules_to_save.{adapter_name or 'default'}."
        placed = {}
        with torch.no_grad():
            for name, own in self.named_parameters():  # ty: ignore[missing-attribute] -- a mixin
                weight = given.get(name.replace(beside, ".")) if beside in name else None
                if weight is not None and weight.shape == own.shape:
                    own.copy_(weight)
                    placed[name.replace(beside, ".")] = name
        return placed

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
