import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_mm1
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.evaluation.answering import question_messages
from mm1_hf.quickstart.folding import fold_rows


QUESTIONS = {
    "red": [("what is it?", "red"), ("what?", "a circle"), ("is it red?", "yes")],
    "blue": [("is it?", "no"), ("blue?", "yes")],
}


def test_folded_rows_learn_what_separate_rows_learn():
    model, processor = tiny_mm1()
    model.train()
    examples, groups, tiles = [], [], []
    for group, (colour, questions) in enumerate(QUESTIONS.items()):
        image = Image.new("RGB", (64, 64), colour)
        tiles.append(processor.image_processor([image], return_tensors="pt")["pixel_values"])
        examples += [{"messages": question_messages(text, answer), "images": [image]} for text, answer in questions]
        groups += [group] * len(questions)
    rows = MM1Collator(processor)(examples)
    lengths = rows["attention_mask"].sum(dim=1).tolist()
    folded = fold_rows(
        [row[:length] for row, length in zip(rows["input_ids"], lengths, strict=True)],
        [row[:length] for row, length in zip(rows["labels"], lengths, strict=True)],
        groups,
        IGNORED,
    )
    assert folded["input_ids"].numel() < rows["input_ids"].numel()

    expected = model(**rows).loss
    expected.backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    tokens = model.model.get_image_features(torch.cat(tiles)).pooler_output
    given = model(**folded, mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=tokens)}).loss
    given.backward()
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=8), min_size=1, max_size=3), min_size=1, max_size=3
    )
)
def test_each_row_is_found_again(groups):
    rows = [torch.tensor(row) for group in groups for row in group]
    numbers = [index for index, group in enumerate(groups) for _ in group]
    labels = [torch.where(torch.arange(len(row)) < len(row) - 1, IGNORED, row) for row in rows]
    folded = fold_rows(rows, labels, numbers, IGNORED)
    assert len(folded["input_ids"]) <= len(groups)
    ends = (folded["labels"] != IGNORED).nonzero()
    assert len(ends) == len(rows)
    for (place, end), row in zip(ends.tolist(), rows, strict=True):
        seen = folded["attention_mask"][place, 0, end].nonzero().flatten()
        assert folded["input_ids"][place, seen].tolist() == row.tolist(), "the last token sees its own row, in order"
        assert folded["position_ids"][place, seen].tolist() == list(range(len(row)))


def test_short_groups_share_a_row():
    rows = [torch.arange(length) for length in (9, 4, 4, 9, 4)]
    labels = [torch.where(row < len(row) - 1, IGNORED, row) for row in rows]
    folded = fold_rows(rows, labels, list(range(5)), IGNORED)
    ends = (folded["labels"] != IGNORED).nonzero()
    assert folded["input_ids"].shape == (4, 9) and ends[:, 0].tolist() == [0, 1, 1, 2, 3], "in their order"
