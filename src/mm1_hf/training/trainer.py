"""transformers' `Trainer` with what MM1's training needs beside it, added through its own hooks."""

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

from mm1_hf.training.parts import parameter_groups
from mm1_hf.training.streams import MixtureTrainer


class MM1Trainer(MixtureTrainer):
    """
    [`MixtureTrainer`] whose optimizer has a learning rate for each part.

    Args:
        args, kwargs: those of `Trainer`.
        learning_rates: of the parts that differ from the arguments' `learning_rate`.

    Example:

    ```python
    >>> from transformers import TrainingArguments
    >>> from mm1_hf import MM1Config, MM1ForConditionalGeneration
    >>> from mm1_hf.training.trainer import MM1Trainer

    >>> model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny"))
    >>> arguments = TrainingArguments("run", learning_rate=1e-5, report_to="none", use_cpu=True)
    >>> trainer = MM1Trainer(model, arguments, learning_rates={"connector": 1e-3})
    >>> sorted({group["lr"] for group in trainer.create_optimizer().param_groups})
    [1e-05, 0.001]

    ```
    """

    def __init__(self, *args: Any, learning_rates: Mapping[str, float] | None = None, **kwargs: Any):
        self.learning_rates = learning_rates
        super().__init__(*args, **kwargs)

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        optimizer, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        # Trainer takes groups from here in place of its own; only now is the model sharded.
        model = self.model if model is None else model
        assert model is not None
        groups = parameter_groups(model, args.learning_rate, args.weight_decay, self.learning_rates)
        return optimizer, {**kwargs, "params": groups}
