"""Log-likelihoods equal those of lm-evaluation-harness."""

import random

import pytest
import torch
from generating import far_from_initial
from tiny import tiny_decoder, tiny_vision
from transformers import GPT2Tokenizer

from mm1_hf import MM1ConnectorConfig, assemble
from mm1_hf.evaluation.models import LocalModel, MM1LocalModel
from mm1_hf.evaluation.models.likelihood import rows_of
from mm1_hf.evaluation.requests import Request


WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "tree",
    "while",
    "bird",
    "sang",
    "loud",
    "songs",
    "of",
    "old",
    "times",
]


@pytest.fixture(scope="module")
def pair():
    """A tokenizer that joins letters over the end of a prompt."""
    draw = random.Random(0)
    corpus = [" ".join(draw.choices(WORDS, k=12)) for _ in range(200)]
    tokenizer = GPT2Tokenizer().train_new_from_iterator(corpus, vocab_size=400)
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    decoder = tiny_decoder(vocab_size=len(tokenizer))
    model, processor = assemble(tiny_vision(), decoder, connector, tokenizer=tokenizer, verbose=False)
    return far_from_initial(model), processor


def drawn() -> list[tuple[str, tuple[str, ...]]]:
    """Prompts that end in letters, white space and nothing, and continuations with and without a space."""
    draw = random.Random(1)
    asked = []
    for _ in range(40):
        words = " ".join(draw.choices(WORDS, k=draw.randint(0, 9)))
        prompt = words + draw.choice(["", " ", "\n", ":"]) if words else ""
        texts = tuple(draw.choice([" ", ""]) + " ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(3))
        asked.append((prompt, texts))
    return asked


def by_hand(model, tokenizer, prompt: str, text: str) -> float:
    """lm-evaluation-harness's rule, one text at a time."""
    kept = prompt.rstrip()
    text = prompt[len(kept) :] + text
    start = tokenizer(kept)["input_ids"] or [tokenizer.bos_token_id]
    end = tokenizer(kept + text)["input_ids"][len(start) if kept else 0 :]
    ids = torch.tensor([start + end])
    with torch.no_grad():
        log_probabilities = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return log_probabilities.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum().item()


@pytest.mark.parametrize("model_class", [LocalModel, MM1LocalModel])
def test_prompts_and_continuations_are_split_into_tokens_by_the_harness_rule(pair, model_class):
    asked = drawn()
    answers = model_class(*pair, batch_size=7).answer(
        [Request((prompt,), continuations=texts) for prompt, texts in asked]
    )
    for (prompt, texts), answer in zip(asked, answers, strict=True):
        expected = [by_hand(pair[0], pair[1].tokenizer, prompt, text) for text in texts]
        assert answer.log_likelihoods == pytest.approx(expected, abs=1e-4)


def test_the_harness_itself_gives_the_same(pair):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed")
    from lm_eval.api.instance import Instance

    model, processor = pair
    harness = huggingface.HFLM(
        pretrained=model, tokenizer=processor.tokenizer, backend="causal", batch_size=1, device="cpu"
    )
    asked = drawn()
    pairs = [(prompt, text) for prompt, texts in asked for text in texts]
    expected = harness.loglikelihood([Instance("loglikelihood", {}, each, 0) for each in pairs], disable_tqdm=True)
    answers = MM1LocalModel(*pair).answer([Request((prompt,), continuations=texts) for prompt, texts in asked])
    found = [each for answer in answers for each in zip(answer.log_likelihoods, answer.greedy, strict=True)]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_letters_share_one_row(pair):
    tokenizer = pair[1].tokenizer
    (row,) = rows_of(tokenizer, 0, "the cat:", True, ("A", "B", "C", "D"))
    assert row.inputs == ()
    assert [index for index, _ in row.members] == [0, 1, 2, 3]
    rows = rows_of(tokenizer, 0, "the cat:", True, (" dog A", " dog B", " mat"))
    assert [[index for index, _ in row.members] for row in rows] == [[0, 1], [2]]


def test_a_continuation_that_is_joined_to_the_prompt_is_scored_by_itself(pair):
    tokenizer = pair[1].tokenizer
    prompt, text = "the ca", "t"
    assert len(tokenizer(prompt + text)["input_ids"]) <= len(tokenizer(prompt)["input_ids"])
    (row,) = rows_of(tokenizer, 0, prompt, True, (text,))
    assert row.members == [(0, tuple(tokenizer(text)["input_ids"]))]
