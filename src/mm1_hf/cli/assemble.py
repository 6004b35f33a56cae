"""`mm1 assemble`: the model that a pre-training starts from."""

from typing import Any

import torch

from mm1_hf.accounting.parameters import count_parameters, parameter_table
from mm1_hf.assemble import assemble
from mm1_hf.cli.models import find_model
from mm1_hf.convert.engine import new_folder
from mm1_hf.model.configuration_mm1 import MM1ConnectorConfig


def run(vision: str, text: str, output: str, connector: Any, tokens: int | None, tile: int | None) -> None:
    """
    Assembles a model, saves it with its processor, and prints its parameters and which of them are new.

    Raises:
        ValueError: the folder is not new, or a part is missing or does not fit.
    """
    connector_config = MM1ConnectorConfig(connector_type=connector, num_tokens=tokens)
    with new_folder(output) as folder:
        # The new weights are drawn at random; the same command should make the same model.
        torch.manual_seed(0)
        model, processor = assemble(find_model(vision), find_model(text), connector_config, image_size=tile)
        for saved in (model, processor):
            saved.save_pretrained(folder)
    # Of the configuration, because that of the model would also show that each of its weights can be trained.
    print(f"\n{parameter_table(model.config)}\n")
    new = count_parameters(model).connector.parameters
    print(f"new:   the connector, {new:,} parameters that have to be trained")
    print(f"model: {output}")
    print(f"train: mm1 pretrain --config FILE, where FILE says `model: {output}`")
