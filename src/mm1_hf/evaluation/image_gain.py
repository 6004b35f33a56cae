"""Measures how much a model uses images: how much lower a caption's loss is with its own image than with another."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.packing import build_row
from mm1_hf.evaluation.modes import evaluation_mode
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor


@dataclass(frozen=True)
class ImageGain:
    """
    Losses of captions in nats per token, averaged over the captions.

    Args:
        right: loss with each caption's own image.
        shuffled: loss with the image of another caption.
        standard_error: standard error of the mean difference between the two losses.
        captions: number of captions.
    """

    right: float
    shuffled: float
    standard_error: float
    captions: int

    @property
    def gain(self) -> float:
        """By how much the right image lowers the loss, in nats per token."""
        return self.shuffled - self.right

    def __str__(self) -> str:
        return (
            f"{self.captions} captions: loss {self.right:.3f} with their own images, {self.shuffled:.3f} with "
            f"shuffled images; gain {self.gain:.3f}, which is {self.gain / self.standard_error:.1f} standard errors"
        )


def image_gain(
    model: MM1ForConditionalGeneration,
    processor: MM1Processor,
    pairs: Sequence[tuple[Image.Image | bytes | str, str]],
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> ImageGain:
    """
    Measures the loss of captions with their own images and with shuffled images. The captions should not be ones that
    the model was trained on.

    Args:
        model: a pre-trained model that has not been fine-tuned on chats; it is left in the mode it was in.
        processor: the model's processor.
        pairs: two or more pairs of an image, or its file, and a caption.
        batch_size: number of pairs per forward pass.
        seed: seed of the shuffle, which leaves no caption with its own image.

    Raises:
        ValueError: there are fewer than two pairs.
        Unusable: an image is broken, or a caption has no text.
    """
    if len(pairs) < 2:
        raise ValueError(
            f"{len(pairs)} pair(s) of an image and a caption are too few to shuffle the images; give two or more."
        )
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    shuffled = [(pairs[other[index]][0], caption) for index, (_, caption) in enumerate(pairs)]
    right_losses = caption_losses(model, processor, pairs, batch_size=batch_size, description="Own images")
    shuffled_losses = caption_losses(model, processor, shuffled, batch_size=batch_size, description="Shuffled images")
    difference = shuffled_losses - right_losses
    return ImageGain(
        right=right_losses.mean().item(),
        shuffled=shuffled_losses.mean().item(),
        standard_error=(difference.std() / len(pairs) ** 0.5).item(),
        captions=len(pairs),
    )


@torch.no_grad()
def caption_losses(
    model: MM1ForConditionalGeneration,
    processor: MM1Processor,
    pairs: Sequence[tuple[Image.Image | bytes | str, str]],
    *,
    batch_size: int = 16,
    description: str | None = None,
) -> torch.Tensor:
    """
    Computes the loss of each caption after its image. As in pre-training, the targets are the caption and the end of
    text.

    Args:
        model: a pre-trained model that has not been fine-tuned on chats; it is left in the mode it was in.
        processor: the model's processor.
        pairs: pairs of an image, or its file, and a caption.
        batch_size: number of pairs per forward pass.
        description: label of the progress bar.

    Returns:
        Loss of each caption in nats per token, `(pairs,)`, float32.

    Raises:
        Unusable: an image is broken, or a caption has no text.
    """
    limit = model.config.get_text_config().max_position_embeddings
    encoder = ExampleEncoder(processor, limit)
    losses = []
    for start in tqdm(range(0, len(pairs), batch_size), desc=description, unit="batch"):
        documents = [
            Document("caption", (ImagePart(picture), caption), f"pair {start + index}")
            for index, (picture, caption) in enumerate(pairs[start : start + batch_size])
        ]
        examples = []
        for encoded in encoder.encode(documents):
            if isinstance(encoded, Unusable):
                raise encoded
            examples += encoded
        length = max(len(example.input_ids) for example in examples)
        rows = [build_row([example], length) for example in examples]
        batch = {name: torch.stack([row[name] for row in rows]).to(model.device) for name in rows[0]}
        pixels = torch.cat([encoder.pixel_values(example) for example in examples])
        with evaluation_mode(model):
            logits = model(
                input_ids=batch["input_ids"],
                attention_mask=(batch["segment_ids"] > 0).long(),
                pixel_values=pixels.to(model.device, model.dtype),
            ).logits
        targets = batch["labels"][:, 1:]
        loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
        losses.append(loss.sum(dim=1) / (targets != -100).sum(dim=1))
    return torch.cat(losses).cpu()
