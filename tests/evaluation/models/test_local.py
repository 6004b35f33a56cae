"""Any image-text-to-text model of transformers answers in batches what it answers one by one, and alone."""

import random

import pytest
import torch
from generating import far_from_initial
from peers import PEERS, picture
from tiny import tiny_mm1

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.models import LocalModel, MM1LocalModel
from mm1_hf.evaluation.requests import Answer, Request, Turn


BROKEN = ImagePart(b"not an image")
NEW = 6


def mm1():
    model, processor = tiny_mm1()
    return far_from_initial(model), processor


@pytest.fixture(scope="module", params=["mm1", *PEERS])
def pair(request):
    return mm1() if request.param == "mm1" else PEERS[request.param]()


@pytest.fixture(scope="module")
def mm1_pair():
    return mm1()


def local(pair, **settings) -> LocalModel:
    return (MM1LocalModel if type(pair[0]).__name__.startswith("MM1") else LocalModel)(*pair, **settings)


def mixed() -> list[Request]:
    """No image to three, texts of several lengths, chats among them, several stop strings and lengths."""
    return [
        Request((picture(0), "A photo of"), NEW, ("\n",)),
        Request(("Hello there, this is a longer text without any image.",), NEW, ("\n",)),
        Request((picture(1), "one", picture(2, 30, 90), "two", picture(3), "three"), NEW, ("\n",)),
        Request((Turn("user", (picture(0), "What?")),), NEW),
        Request((Turn("user", ("Hi",)), Turn("assistant", ("Yes.",)), Turn("user", ("So?", picture(4)))), NEW),
        Request((picture(5), "Short answer:"), 3),
        Request((picture(0), "It is"), continuations=(" A", " B", " a cat")),
        Request(("Text alone",), continuations=(" is", " was not")),
        Request(("",), continuations=("abc", "d")),
        Request((Turn("user", (picture(1), "Which?")),), continuations=("A", "B")),
    ]


def close(first: Answer, second: Answer) -> bool:
    return (first.text, first.greedy, first.error) == (second.text, second.greedy, second.error) and (
        first.log_likelihoods == pytest.approx(second.log_likelihoods, abs=1e-4)
    )


def test_batches_answer_as_one_by_one_in_the_order_of_the_requests(pair):
    requests = mixed()
    together = local(pair, batch_size=3).answer(requests)
    alone = [local(pair).answer([request])[0] for request in requests]
    order = random.Random(0).sample(range(len(requests)), len(requests))
    shuffled = local(pair).answer([requests[index] for index in order])
    for index, answer in enumerate(together):
        assert answer.error is None
        assert close(answer, alone[index])
        assert close(answer, shuffled[order.index(index)])
    # Answers that are all the same would prove nothing.
    assert len({answer.text for answer in together if answer.text}) >= 5


def test_a_chat_is_answered_as_by_transformers_own_calls(pair):
    model, processor = pair
    image = picture(7)
    content = [{"type": "image", "image": image.load()}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=256)
    expected = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    (answer,) = local(pair).answer([Request((Turn("user", (image, "What is it?")),), NEW)])
    assert answer.text == expected.strip() != ""


def test_log_likelihoods_are_those_of_the_logits(pair):
    model, processor = pair
    writer = local(pair)._writer
    texts = [" a cat", "!"]
    (answer,) = local(pair).answer([Request((picture(1), "It is"), continuations=tuple(texts))])
    for text, likelihood in zip(texts, answer.log_likelihoods, strict=True):
        inputs = processor(images=[[picture(1).load()]], text=[f"{writer.image_mark}It is{text}"], return_tensors="pt")
        with torch.no_grad():
            log_probabilities = model(**inputs).logits[0, :-1].log_softmax(-1)
        # The tokens are bytes.
        expected = log_probabilities.gather(1, inputs["input_ids"][0, 1:, None])[-len(text) :].sum()
        assert likelihood == pytest.approx(expected.item(), abs=1e-4)


def test_the_greedy_continuation_is_what_is_generated(pair):
    prompt = (picture(2), "It is")
    model = local(pair)
    logits = []
    handle = pair[0].register_forward_hook(lambda module, args, output: logits.append(output.logits[0, -1]))
    model.answer([Request(prompt, 1)])
    handle.remove()
    # A token of one byte of ASCII that is text by itself.
    best = max(
        (chr(byte) for byte in range(33, 127)), key=lambda text: logits[0][pair[1].tokenizer(text)["input_ids"][0]]
    )
    is_first = logits[0].argmax() == pair[1].tokenizer(best)["input_ids"][0]
    (answer,) = model.answer([Request(prompt, continuations=(best, best + "\n" * 5))])
    assert answer.greedy == (bool(is_first), False)


def test_what_is_wrong_with_one_request_is_its_answer_alone(pair):
    good = Request((picture(0), "A photo of"), NEW)
    model = local(pair, batch_size=4)
    long = model.context + 88
    requests = [good, Request((picture(1), BROKEN, "two"), NEW), Request(("a" * long,), NEW), good]
    requests += [
        Request((BROKEN, "It is"), continuations=(" A",)),
        Request(("a" * long,), continuations=(" A", " B")),
        Request(("It is",), continuations=(" A",)),
    ]
    answers = model.answer(requests)
    assert answers[0] == answers[3] == model.answer([good])[0]
    assert answers[0].error is None
    assert "corrupt image" in answers[1].error and "corrupt image" in answers[4].error
    assert str(long) in answers[2].error and str(model.context) in answers[2].error
    assert str(model.context) in answers[5].error and not answers[5].log_likelihoods
    assert answers[6].error is None


def test_an_answer_takes_the_room_that_its_prompt_leaves(mm1_pair):
    model = local(mm1_pair)
    short, long = Request(("a" * 10,), NEW), Request(("b" * (model.context - 2),), NEW)
    steps = []
    handle = mm1_pair[0].register_forward_hook(lambda *_: steps.append(1))
    (expected,) = model.answer([short])
    before = len(steps)
    answers = model.answer([long])
    assert len(steps) - before == 2 and answers[0].error is None
    handle.remove()
    assert model.answer([short, long]) == [expected, *answers]


def test_what_the_processor_refuses_is_the_answer_of_that_request():
    model = local(PEERS["qwen2_vl"](), batch_size=2)
    good = Request((picture(0), "A"), NEW)
    answers = model.answer([good, Request((picture(1, 1, 1000), "B"), NEW)])
    assert answers[0] == model.answer([good])[0]
    assert "aspect ratio" in answers[1].error


def test_stop_strings_cut_the_text_and_end_the_generation(mm1_pair):
    model = local(mm1_pair)
    request = Request((picture(0), "A photo of"), 12)
    (whole,) = model.answer([request])
    stop = whole.text[4]
    steps = []
    handle = mm1_pair[0].register_forward_hook(lambda *_: steps.append(1))
    (answer,) = model.answer([Request(request.prompt, 12, (stop,))])
    handle.remove()
    assert answer.text == whole.text[: whole.text.index(stop)].strip()
    assert len(steps) < 12


def test_the_batch_is_halved_until_it_fits_in_memory(mm1_pair, monkeypatch):
    sizes = []

    def generate(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return kwargs["input_ids"]

    model = local(mm1_pair)
    monkeypatch.setattr(mm1_pair[0], "generate", generate)
    answers = model.answer([Request(("a" * length,), NEW) for length in range(1, 9)])
    assert len(answers) == 8
    assert sizes == [8, 8, 8, 8, 4, 2, 2, 2, 2]
    assert model.batch_size == 2
    with pytest.raises(torch.OutOfMemoryError):
        local(mm1_pair, batch_size=4).answer([Request(("a",), NEW)] * 4)


def test_a_generation_configuration_does_not_change_greedy_decoding():
    pair = mm1()
    request = Request((picture(0), "A photo of"), 12)
    (expected,) = local(pair).answer([request])
    pair[0].generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, no_repeat_ngram_size=1)
    assert local(pair).answer([request])[0] == expected


def test_the_model_is_left_in_its_mode(mm1_pair):
    mm1_pair[0].train()
    local(mm1_pair).answer([Request(("a",), 1)])
    assert mm1_pair[0].training
    mm1_pair[0].eval()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(("a",)), "max_new_tokens of 0"),
        (Request(("a",), continuations=("b", "")), "empty text"),
        (Request((picture(0), "a", picture(1)), 4, whole=frozenset({0})), "treats all images alike"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_anything_is_answered(request_, message):
    with pytest.raises(ValueError, match=message):
        local(PEERS["llava"]()).answer([Request(("a",), 1), request_])


def test_a_model_with_an_encoder_for_text_is_refused():
    model, processor = mm1()
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="reads its prompt by an encoder"):
        LocalModel(model, processor)


def test_pictures_are_embedded_for_retrieval(pair):
    model = local(pair)
    rows = model.embed_images([picture(0), picture(1), picture(0), BROKEN])
    assert rows.dtype == torch.float32 and rows.device.type == "cpu"
    assert torch.equal(rows[0], rows[2]) and not torch.allclose(rows[0], rows[1], atol=1e-3)
    assert torch.allclose(rows[:3].norm(dim=1), torch.ones(3)) and rows[3].abs().sum() == 0
    assert torch.equal(model.embed_images([picture(1)])[0], rows[1])


def test_the_record_says_what_was_measured(pair):
    model = local(pair, batch_size=2, name="toy", revision="abc")
    record = model.describe()
    assert (record["name"], record["revision"], record["dtype"], record["device"]) == ("toy", "abc", "float32", "cpu")
    assert (record["tiling"] is None) == (not isinstance(model, MM1LocalModel))
    assert record["parameters"] == pair[0].num_parameters()
