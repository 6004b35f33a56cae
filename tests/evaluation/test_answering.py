import torch
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.evaluation.answering import answer


def test_answers_do_not_depend_on_the_batch():
    model, processor = tiny_mm1()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    colours = ["red", "blue", "green", "black", "white"]
    pairs = [
        (Image.new("RGB", (64, 64), colour), "What is it?"[: 4 + 2 * index]) for index, colour in enumerate(colours)
    ]
    together = answer(model, processor, pairs, max_new_tokens=6, batch_size=5)
    alone = answer(model, processor, pairs, max_new_tokens=6, batch_size=1)
    assert together == alone
    assert len(set(together)) > 1, "different pictures and questions give different answers"
