"""The gain of seeing, against losses computed one by one."""

import pytest
import torch
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.collation import MM1Collator
from mm1_hf.data.documents import Unusable
from mm1_hf.evaluation.image_gain import caption_losses, image_gain


PAIRS = [(Image.new("RGB", (56, 56), (30 * index, 80, 200)), "a colour " * (1 + index % 3)) for index in range(7)]


def test_losses_are_those_of_every_pair_alone():
    model, processor = tiny_mm1()
    losses = caption_losses(model, processor, PAIRS, batch_size=3)
    collate = MM1Collator(processor)
    for loss, (picture, caption) in zip(losses, PAIRS, strict=True):
        alone = collate([{"text": f"<image>{caption}<eos>", "images": [picture]}])
        torch.testing.assert_close(loss, model(**alone).loss.detach(), atol=1e-5, rtol=1e-5)


def test_the_gain_of_a_model_that_sees_is_large_and_of_one_that_does_not_is_none():
    model, processor = tiny_mm1()
    with torch.no_grad():
        for weight in model.model.connector.parameters():
            weight.zero_()
    blind = image_gain(model, processor, PAIRS)
    assert blind.gain == pytest.approx(0, abs=1e-6) and blind.captions == 7
    seen = image_gain(*tiny_mm1(), PAIRS)
    assert seen.standard_error > 0 and seen.gain == pytest.approx(seen.shuffled - seen.right)
    assert "7 captions" in str(seen)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="give two or more"):
        image_gain(*tiny_mm1(), PAIRS[:1])
    with pytest.raises(Unusable, match="corrupt image"):
        caption_losses(*tiny_mm1(), [(b"no image", "words")])
