"""The quickstart's first lesson: the connector alone learns to turn a picture into the words that describe it. It takes a
small part of the time that the same would take through the decoder's thirty layers."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mm1_hf.quickstart.easy_vqa import Picture


_LEARNING_RATE = 1e-3
_WARM_UP = 10


def words_of(picture: Picture) -> tuple[str, str] | None:
    """The colour and the shape that a picture shows; `None` if not both are the answer to one of its questions."""
    answers = {question.kind: question.answer for question in picture.questions}
    return (answers["colour"], answers["shape"]) if {"colour", "shape"} <= answers.keys() else None


def described_pictures(
    pictures: Iterable[Picture], tokenizer: Any, embeddings: torch.Tensor
) -> dict[int, list[torch.Tensor]]:
    """
    The decoder's input embeddings of the words of every picture that has them, `(hidden,)` each in float32, by image id. A
    word of several tokens has their mean.

    Args:
        pictures: the pictures.
        tokenizer: the decoder's tokenizer.
        embeddings: `(vocabulary, hidden)`, the decoder's input embeddings.
    """
    described = {picture.image_id: words for picture in pictures if (words := words_of(picture)) is not None}
    known: dict[str, torch.Tensor] = {}
    for word in sorted({word for words in described.values() for word in words}):
        # As it is written inside a text, after a space.
        tokens = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        known[word] = embeddings[tokens].float().mean(dim=0)
    return {image: [known[word] for word in words] for image, words in described.items()}


def teach_words(
    connector: nn.Module,
    features: Mapping[int, torch.Tensor],
    described: Mapping[int, Sequence[torch.Tensor]],
    steps: int,
    batch_size: int = 32,
    seed: int = 0,
) -> list[float]:
    """
    Trains a connector so that a picture's tokens are the embeddings of its words: the first share of them of the first
    word, the next share of the second. A decoder can read such tokens from the start, as if the words were written there.

    Args:
        connector: the connector. All its weights are trained, in their own dtype.
        features: the encoder's patch features of every picture, `(patches, width)`, by image id.
        described: the embeddings of the words of each picture to train on, `(hidden,)` each, by image id.
        steps: number of steps.
        batch_size: number of pictures in a step.
        seed: seed of the choice of pictures.

    Returns:
        The loss of every step: the mean squared error, as a share of the embeddings' variance.
    """
    draw, images = random.Random(seed), sorted(described)
    variance = torch.stack([word for words in described.values() for word in words]).var()
    optimizer = torch.optim.AdamW(connector.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    # A short warm-up, and a decay to 0 in the last third.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP, 3 * (steps - step) / steps)
    )
    weight = next(connector.parameters())
    losses = []
    for _ in range(steps):
        chosen = draw.choices(images, k=batch_size)
        tokens = connector(torch.stack([features[image] for image in chosen]).to(weight.device, weight.dtype))
        words = torch.stack([torch.stack(list(described[image])) for image in chosen])
        targets = words.repeat_interleave(tokens.shape[1] // words.shape[1], dim=1).to(tokens)
        loss = F.mse_loss(tokens, targets) / variance
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(connector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
