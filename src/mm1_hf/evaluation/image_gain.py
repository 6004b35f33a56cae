"""What a model sees: how much likelier it finds a caption beside its own picture than beside another's."""

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
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.processing_mm1 import MM1Processor


@dataclass(frozen=True)
class ImageGain:
    """
    Losses in nats per token, averaged over captions.

    Args:
        right: beside the caption's own picture.
        shuffled: beside another caption's.
        standard_error: of the mean difference, over the captions.
        captions: their number.
    """

    right: float
    shuffled: float
    standard_error: float
    captions: int

    @property
    def gain(self) -> float:
        """What seeing the picture saves."""
        return self.shuffled - self.right

    def __str__(self) -> str:
        return (
            f"{self.captions} captions: loss {self.right:.3f} with their pictures, {self.shuffled:.3f} with others'; "
            f"gain {self.gain:.3f}, {self.gain / self.standard_error:.1f} standard errors"
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
    Measures captions that the model was not trained on beside their own pictures and beside shuffled ones. No caption keeps
    its own picture.

    Args:
        model: as it was pre-trained, before any chat.
        processor: the model's own.
        pairs: pictures, or their files, with their captions; two or more.
        batch_size: pairs of one forward pass.
        seed: of the shuffling.

    Raises:
        ValueError: fewer than two pairs.
        Unusable: a picture that is broken.
    """
    if len(pairs) < 2:
        raise ValueError(
            f"Pictures are shuffled among captions, and {len(pairs)} is too few for that; give two or more."
        )
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    shuffled = [(pairs[other[index]][0], caption) for index, (_, caption) in enumerate(pairs)]
    right_losses = caption_losses(model, processor, pairs, batch_size=batch_size, description="Own pictures")
    shuffled_losses = caption_losses(
        model, processor, shuffled, batch_size=batch_size, description="Shuffled pictures"
    )
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
    Each caption's loss behind its picture, as pre-training sees it: the caption and the end of text.

    Args:
        model: as it was pre-trained, before any chat.
        processor: the model's own.
        pairs: pictures, or their files, with captions.
        batch_size: pairs of one forward pass.
        description: label of the progress bar.

    Returns:
        `(pairs,)`, nats per token, float32.

    Raises:
        Unusable: a picture that is broken, or a caption without text.
    """
    model.eval()
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
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=(batch["segment_ids"] > 0).long(),
            pixel_values=pixels.to(model.device, model.dtype),
        ).logits
        targets = batch["labels"][:, 1:]
        loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
        losses.append(loss.sum(dim=1) / (targets != -100).sum(dim=1))
    return torch.cat(losses).cpu()
