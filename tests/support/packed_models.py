"""Small models with several kinds of decoders, whose weights are random but large enough that every leak shows, and a
training step of each."""

import torch
from tiny import tiny_vision
from transformers import CONFIG_MAPPING, Trainer, TrainingArguments

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1TextConfig


IMAGE = 63
TOKENS = 4
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Windows smaller than the segments below.
DECODERS = {
    "mm1_text": {},
    "llama": {},
    "mistral": {"sliding_window": 3},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
SPARSE = {"num_experts": 4, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1}


def build(kind: str = "mm1_text", **fields) -> MM1ForConditionalGeneration:
    fields = {**TEXT, **DECODERS.get(kind, {}), **fields}
    config = MM1Config(
        vision_config=tiny_vision().config,
        text_config=MM1TextConfig(**fields) if kind == "mm1_text" else CONFIG_MAPPING[kind](**fields),
        connector_config={"num_tokens": TOKENS, "hidden_size": 16, "depth": 1},
        image_token_id=IMAGE,
    )
    model = MM1ForConditionalGeneration(config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    return model.eval()


def words(number: int, seed: int) -> list[int]:
    return torch.randint(3, IMAGE, (number,), generator=torch.Generator().manual_seed(seed)).tolist()


def tiles(number: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(number, 3, 56, 56, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def close(got, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def step(model, rows: list[dict], collate, folder, **arguments) -> tuple[dict[str, torch.Tensor], float]:
    """The weights after one step of plain gradient descent, and the loss of an evaluation after it."""
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        prediction_loss_only=True,
        **arguments,
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    trainer.train()
    assert model.config.text_config.use_cache, "the trap: Trainer turns the cache off at the top only"
    loss = trainer.evaluate()["eval_loss"]
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, loss


def concatenate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
