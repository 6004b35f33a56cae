"""Loading of adapters into an MM1: adapters that were made for another base model are refused."""

import functools
import re
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist

from .versions import WorksWithOlderPeft


# Matches the name of an adapter's weight; its group is the name of the adapter.
_ADAPTED = re.compile(r"\.(?:lora_\w+|modules_to_save)\.([^.]+)")


class AdapterLoadingMixin(WorksWithOlderPeft):
    """
    Refuses adapters that were made for another base model. PEFT and transformers would load the weights whose names
    match, and at best warn about the others.
    """

    def load_adapter(
        self, peft_model_id: str | None = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Same as transformers' `load_adapter`, but refuses adapters that do not fit this model. A refused adapter is
        removed again, and the adapters that were active before are activated.

        Args:
            peft_model_id: folder or Hub id of the adapter.
            adapter_name: name that the adapter gets in this model; unset, `"default"`.
            args, kwargs: other arguments of transformers' `load_adapter`.

        Raises:
            ValueError: the adapter was made for another base model, or is to replace an adapter of other sizes.
        """
        name = adapter_name or "default"
        before = list(self.peft_config) if self._hf_peft_config_loaded else []
        active = self.active_adapters() if before else []
        kwargs = {"ignore_mismatched_sizes": True, **kwargs}
        loaded = super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)
        wrong = {name for name, *_ in loaded.mismatched_keys} | set(loaded.unexpected_keys)
        # transformers also lists weights of other adapters, and of the base model if their names contain this name.
        missing = set(loaded.missing_keys) & self._weights_of(name)
        try:
            if wrong or missing:
                self._load_as_peft_does(peft_model_id, name, *args, **kwargs)
        except (ValueError, KeyError, RuntimeError) as error:
            if name in before:
                raise ValueError(
                    f"The adapter cannot take the place of {name!r}: {len(wrong)} of its weights do not match a "
                    f"weight of {name!r} in name and shape, and {len(missing)} are missing (for example "
                    f"{min(wrong | missing)}). Load it under another name. Only an adapter of the same base model, "
                    f"with the same target modules and ranks, can replace another one. A part of {name!r} has been "
                    "replaced; delete it and load it again before you use it."
                ) from error
            if active:
                self._activate(active)
            self.delete_adapter(name)
            raise _made_for_another(wrong, missing) from error
        if name not in before:
            # transformers activates it in the low-rank updates, but not in the modules that adapters hold whole.
            self._activate([name])
        return loaded

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """
        Same as transformers' `set_adapter`. Modules that an adapter holds whole, such as the connector, are those of
        the base model if no chosen adapter holds them.

        Args:
            adapter_name: name of the adapter, or names of several that are used together.

        Raises:
            ValueError: there is no adapter of this name.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        known = getattr(self, "peft_config", {})
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"There is no adapter named {', '.join(map(repr, unknown))}. The model has these adapters: "
                f"{', '.join(map(repr, known)) or 'none'}. Load the adapter first, with load_adapter."
            )
        import_module("peft.functional").set_adapter(self, adapter_name)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """
        Same as transformers' `delete_adapter`. If the active adapter is deleted, one other adapter becomes active in all
        modules.

        Args:
            adapter_names: name of the adapter, or names of several.
        """
        super().delete_adapter(adapter_names)
        active = self.active_adapters() if self._hf_peft_config_loaded else []
        if active:
            self._activate(active)

    def _activate(self, names: list[str]) -> None:
        """Activates adapters and leaves their weights frozen, or trainable, as they were loaded."""
        frozen = all(self.peft_config[name].inference_mode for name in names)
        import_module("peft.functional").set_adapter(self, names, inference_mode=frozen)

    def enable_adapters(self) -> None:
        """
        Same as transformers' `enable_adapters`, which forgets modules that an adapter holds whole.

        Raises:
            ValueError: the model has no adapter.
        """
        if not self._hf_peft_config_loaded:
            raise ValueError("The model has no adapter to enable. Load one first, with load_adapter.")
        for module in self.modules():
            if hasattr(module, "adapter_layer_names"):
                module.enable_adapters(enabled=True)

    def _weights_of(self, adapter: str) -> set[str]:
        """Names of the weights that an adapter has in this model."""
        names = set()
        for prefix, module in self.named_modules():
            # PEFT lists here the dictionaries that hold what each adapter adds to the module.
            for path in getattr(module, "adapter_layer_names", ()):
                added = attrgetter(path)(module)
                if adapter in added:
                    held = added[adapter]
                    inner = (
                        [""] if isinstance(held, torch.Tensor) else [f".{name}" for name, _ in held.named_parameters()]
                    )
                    names |= {f"{prefix}.{path}.{adapter}{name}" for name in inner}
        return names

    def _load_as_peft_does(
        self,
        peft_model_id: str | None,
        adapter_name: str,
        peft_config: Any = None,
        adapter_state_dict: dict[str, torch.Tensor] | None = None,
        *others: Any,
        adapter_kwargs: dict[str, Any] | None = None,
        **ignored: Any,
    ) -> None:
        """
        Loads an adapter's weights by PEFT's function. transformers does not find all of them: DoRA's magnitudes, and up
        to 5.17 the modules that an adapter holds whole, such as the connector.
        """
        # By name: a file of remote code that imports PEFT could not be loaded without it.
        peft: Any = import_module("peft.utils")
        if adapter_state_dict is None:
            adapter_state_dict = peft.load_peft_weights(peft_model_id, device="cpu", **(adapter_kwargs or {}))
        # PEFT saves the names that the weights have in its own model, which is around this one.
        weights = {name.removeprefix("base_model.model."): weight for name, weight in adapter_state_dict.items()}
        result = peft.set_peft_model_state_dict(self, weights, adapter_name)
        missing = set(result.missing_keys) & self._weights_of(adapter_name)
        if missing or result.unexpected_keys:
            raise _made_for_another(set(result.unexpected_keys), missing)

    def __setattr__(self, name: str, value: Any) -> None:
        # PEFT puts a wrapper in the place of a module that an adapter holds whole.
        if hasattr(value, "modules_to_save"):
            _explain_missing_modules()
        super().__setattr__(name, value)

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
            weights = {prefix + name: weight.shape for name, weight in self.named_parameters()}
            own = {name for name in weights if (match := _ADAPTED.search(name)) and match[1] in adapters}
            wrong = {name for name, (shape, _) in given.items() if weights.get(name) != shape}
            # If the adapter holds a whole connector, PEFT does not rename those of its weights that this model lacks:
            # they keep the names that they have in the base model.
            wrong |= {name for name in state_dict if ".connector." in name and name not in weights}
            if wrong or own - given.keys():
                raise _made_for_another(wrong, own - given.keys())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _explain_missing_modules() -> None:
    """
    Lets PEFT say what is wrong if an adapter holds a connector with fewer layers than the model's: PEFT's function ends
    in a `KeyError`, before it calls a method of this model. For other models nothing changes.
    """
    peft: Any = import_module("peft.peft_model")
    load = peft.set_peft_model_state_dict
    if getattr(load, "explains", None) is _made_for_another:
        return

    @functools.wraps(load)
    def explaining(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(model, *args, **kwargs)
        except KeyError as error:
            if any(isinstance(module, AdapterLoadingMixin) for module in model.modules()):
                raise _made_for_another(set(), {str(error.args[0])}) from error
            raise

    explaining.explains = _made_for_another  # ty: ignore[missing-attribute]
    peft.set_peft_model_state_dict = explaining


def _made_for_another(wrong: set[str], missing: set[str]) -> ValueError:
    return ValueError(
        f"The adapter was made for another base model: {len(wrong)} of its weights do not match a weight of this "
        f"model in name and shape, and {len(missing)} weights that this model expects are missing (for example "
        f"{min(wrong | missing)}). Load the adapter on the model that its adapter_config.json names as "
        "base_model_name_or_path."
    )
