"""What measures a model leaves every module of it in the mode that it found."""

import pytest
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.collation import MM1Collator
from mm1_hf.evaluation.answering import answer
from mm1_hf.evaluation.held_out import held_out_loss
from mm1_hf.evaluation.image_gain import caption_losses
from mm1_hf.evaluation.modes import evaluation_mode


IMAGE = Image.new("RGB", (56, 56), "teal")
MEASUREMENTS = {
    "answer": lambda model, processor: answer(model, processor, [(IMAGE, "What?")], max_new_tokens=1),
    "caption_losses": lambda model, processor: caption_losses(model, processor, [(IMAGE, "a colour")]),
    "held_out_loss": lambda model, processor: held_out_loss(model, [MM1Collator(processor)([{"text": "words"}])]),
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("training", [True, False])
def test_measuring_keeps_the_mode(measure, training):
    model, processor = tiny_mm1()
    model.train(training)
    # As after freezing: parts differ in their mode.
    model.model.vision_tower.eval()
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    modes = {name: module.training for name, module in model.named_modules()}
    measure(model, processor)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert seen and not any(seen)


def test_an_error_does_not_leave_the_model_in_evaluation_mode():
    model, _ = tiny_mm1()
    model.train()
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not model.training
        _ = 1 / 0
    assert model.training and model.model.connector.training
