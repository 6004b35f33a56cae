"""Prompts as the text that processors read."""

from types import SimpleNamespace

import pytest
from generating import far_from_initial
from peers import PEERS, picture
from tiny import byte_tokenizer, tiny_mm1
from tokenizers.processors import TemplateProcessing

from mm1_hf.evaluation.models import MM1LocalModel
from mm1_hf.evaluation.models.prompts import PromptWriter
from mm1_hf.evaluation.requests import Request, Turn


@pytest.fixture(scope="module")
def writer():
    return PromptWriter(tiny_mm1()[1])


@pytest.mark.parametrize(
    ("family", "mark"),
    [
        # Its template writes images before the texts, so the token itself is what can stand between texts.
        ("llava", "<image>"),
        ("idefics3", "<image>"),
        ("qwen2_vl", "<|vision_start|><|image_pad|><|vision_end|>"),
    ],
)
def test_each_family_marks_an_image_in_its_own_way(family, mark):
    writer = PromptWriter(PEERS[family]()[1])
    prompt = writer.write(Request(("Look: ", picture(0), " and ", picture(1)), 8))
    assert prompt.text == f"Look: {mark} and {mark}"
    assert len(prompt.images) == 2


def test_a_completion_prompt_is_written_as_it_is(writer):
    parts = (picture(0), " A photo of a cat.\n", picture(1), " A photo of")
    prompt = writer.write(Request(parts, 8, whole=frozenset({0})))
    assert prompt.text == "<image> A photo of a cat.\n<image> A photo of"
    assert (prompt.special, prompt.whole) == (True, frozenset({0}))


@pytest.mark.parametrize("begins", [False, True])
def test_a_prompt_does_not_end_with_the_token_for_ends(begins):
    """The answer would be what follows the end of a text."""
    model, processor = tiny_mm1()
    model, tokenizer = far_from_initial(model), processor.tokenizer
    # A token that is there already, so that the model keeps its size.
    tokenizer.bos_token = "<pad>" if "<pad>" in tokenizer.get_vocab() else tokenizer.eos_token
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {tokenizer.bos_token, tokenizer.eos_token}]
    begin = f"{tokenizer.bos_token} " if begins else ""
    requests = [Request((picture(0), "It is"), 4), Request(("It is",), continuations=(" A", " no"))]
    answers = {}
    for end in ("", f" {tokenizer.eos_token}"):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{begin}$A{end}", special_tokens=tokens
        )
        assert (tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id) == bool(end)
        answers[end] = MM1LocalModel(model, processor).answer(requests)
    (without, with_end) = answers.values()
    assert without == with_end and without[0].text
    assert PromptWriter(processor).write(requests[0]).text == begin.strip() + "<image>It is"


def test_a_chat_is_written_by_the_template(writer):
    turns = (Turn("system", ("Be short.",)), Turn("user", (picture(0), "What?")), Turn("assistant", ("A cat.",)))
    prompt = writer.write(Request((*turns, Turn("user", ("And now?",))), 8))
    assert prompt.text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<image>What?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(prompt.images) == 1


@pytest.mark.parametrize("chat", [False, True])
def test_text_never_becomes_an_image_or_a_control_token(writer, chat):
    parts = ("Is <ima", "ge> a token, and <image>, and <eos>?", picture(0))
    prompt = writer.write(Request((Turn("user", parts),) if chat else parts, 8))
    assert prompt.text.count("<image>") == 1
    assert "<eos>" not in prompt.text


def test_the_tokenizer_adds_to_a_chat_what_the_processor_itself_lets_it_add():
    """As the inputs of `apply_chat_template` show, with a tokenizer that begins every text with a token."""
    for make, begins in ((tiny_mm1, False), (PEERS["llava"], False), (PEERS["llava"], True)):
        processor = make()[1]
        tokenizer = processor.tokenizer
        tokenizer.bos_token = "<eos>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<eos> $A", special_tokens=[("<eos>", 256)])
        if begins:
            processor.chat_template = "{{ bos_token }}" + processor.chat_template
        content = [{"type": "text", "text": "Hi"}]
        settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        expected = processor.apply_chat_template([{"role": "user", "content": content}], **settings)["input_ids"][0]
        prompt = PromptWriter(processor).write(Request((Turn("user", ("Hi",)),), 8))
        assert tokenizer(prompt.text, add_special_tokens=prompt.special)["input_ids"] == list(expected)


def test_chats_without_a_template_and_images_without_a_token_are_refused():
    processor = SimpleNamespace(tokenizer=byte_tokenizer(), chat_template=None)
    writer = PromptWriter(processor)
    with pytest.raises(ValueError, match=r"no chat template.*style completion"):
        writer.write(Request((Turn("user", ("Hi",)),), 8))
    with pytest.raises(ValueError, match="has no image_token"):
        writer.write(Request((picture(0), "Hi"), 8))
