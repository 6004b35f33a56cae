"""The connector learns the words of pictures by itself."""

from pathlib import Path

import torch
from tiny import byte_tokenizer, tiny_mm1

from mm1_hf.quickstart.easy_vqa import Picture, Question
from mm1_hf.quickstart.words import described_pictures, teach_words, words_of


def picture(image_id, **answers):
    asked = [Question("What is it?", answer, kind) for kind, answer in answers.items()]
    yes = Question("Is it red?", "yes", "yes/no")
    return Picture(image_id, Path("none.png"), (yes, *asked))


def test_words_are_the_answers_to_open_questions():
    assert words_of(picture(0, shape="circle", colour="teal")) == ("teal", "circle")
    assert words_of(picture(1, shape="circle")) is None and words_of(picture(2)) is None


def test_a_word_of_several_tokens_has_their_mean():
    embeddings = torch.randn(257, 8, generator=torch.Generator().manual_seed(0))
    found = described_pictures([picture(3, shape="circle", colour="red"), picture(4)], byte_tokenizer(), embeddings)
    assert list(found) == [3]
    # A token for each byte, that of the space included.
    ids = byte_tokenizer()(" red")["input_ids"]
    assert len(ids) == 4
    torch.testing.assert_close(found[3][0], embeddings[ids].mean(dim=0))


def test_the_tokens_of_a_picture_become_its_words():
    model, _ = tiny_mm1()
    connector = model.model.connector
    generator = torch.Generator().manual_seed(0)
    words = 0.1 * torch.randn(4, 64, generator=generator)
    described = {index: [words[index % 2], words[2 + index // 2]] for index in range(4)}
    features = {index: torch.randn(16, 32, generator=generator) for index in range(4)}
    losses = teach_words(connector, features, described, steps=200, batch_size=8)
    assert len(losses) == 200 and losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        tokens = connector(torch.stack([features[index] for index in range(4)]))
    near = torch.cdist(tokens.flatten(0, 1), words).argmin(dim=-1).view(4, 4).tolist()
    assert near == [[index % 2] * 2 + [2 + index // 2] * 2 for index in range(4)]
