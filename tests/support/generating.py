"""Prompts with images for a tiny MM1, and its answers token by token."""

import torch
from transformers import PreTrainedModel


NEW = 6


def far_from_initial(model: PreTrainedModel, seed: int = 7) -> PreTrainedModel:
    """The model, far from its initial weights, where every answer is the same."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    model.tie_weights()
    return model.eval()


def prompt(model, *parts: int) -> dict[str, torch.Tensor]:
    """Words, an image for each 0: prompt(model, 3, 0, 2) is 3 words, an image and 2 words."""
    generator = torch.Generator().manual_seed(sum(parts) + len(parts))
    ids = []
    for part in parts:
        words = torch.randint(0, 256, (part,), generator=generator).tolist()
        ids += words if part else [model.config.image_token_id] * 4
    images = parts.count(0)
    pixels = {"pixel_values": torch.rand(images, 3, 56, 56, generator=generator)} if images else {}
    return {"input_ids": torch.tensor([ids]), **pixels}


def answer(model, inputs, **settings) -> torch.Tensor:
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 256, **settings}
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def greedy(model, inputs) -> torch.Tensor:
    """One token after the other, everything computed again for each."""
    ids = inputs["input_ids"]
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": ids}, use_cache=False).logits[:, -1]
        logits[:, model.config.image_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[:, inputs["input_ids"].shape[1] :]
