"""What users write stays text, and all other text stays as it is written."""

import dataclasses

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import byte_tokenizer
from tokenizers import normalizers, processors

from mm1_hf import MM1ImageProcessor, MM1Processor
from mm1_hf.data.documents import Document
from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.model.chat_text import PlainText, plain_texts
from mm1_hf.model.versions import CACHE


CONTROL = ["<image>", "<|im_start|>", "<|im_end|>", "<s>", "<eos>"]
REASONING = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
TURN = {"<|im_start|>": 1, "<|im_end|>": 1}


def tokenizer_of(normalizer=None, image_special=True, marks_special=True, adds_ends=False):
    """A byte-level tokenizer with control tokens, special or not, and with tokens for reasoning that are not special."""
    made = byte_tokenizer()
    core = made.backend_tokenizer
    if normalizer is not None:
        core.normalizer = normalizer
    made.add_special_tokens({"bos_token": "<s>"})
    if adds_ends:
        ends = [("<s>", made.bos_token_id), ("<eos>", made.eos_token_id)]
        core.post_processor = processors.TemplateProcessing(single="<s> $A <eos>", special_tokens=ends)
    image = transformers.AddedToken("<image>", special=image_special, normalized=normalizer is not None)
    made.add_tokens([image], special_tokens=image_special)
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=marks_special)
    made.add_tokens(["<|begin_of_thought|>"], special_tokens=True)
    made.add_tokens(REASONING)
    return made


def processor_of(tokenizer, **settings):
    image_processor = MM1ImageProcessor(size={"height": 56, "width": 56}, image_splitting="none")
    return MM1Processor(image_processor, tokenizer, num_image_tokens=4, **settings)


PROCESSORS = {
    "special": processor_of(tokenizer_of()),
    "marks that are not special": processor_of(tokenizer_of(marks_special=False)),
    "an image token that is not special": processor_of(tokenizer_of(image_special=False)),
    "beginnings and ends": processor_of(tokenizer_of(adds_ends=True)),
    "NFKC": processor_of(tokenizer_of(normalizers.NFKC())),
    "lower case": processor_of(tokenizer_of(normalizers.Lowercase())),
    "stripped": processor_of(tokenizer_of(normalizers.Replace("\u200b", ""))),
}


def said(content, role="user"):
    return {"role": role, "content": content}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def control_tokens(processor, chat, **settings):
    """How often each control token is among the tokens of a chat, without those that begin all of its texts."""
    ids = processor.apply_chat_template(chat, tokenize=True, return_dict=True, **settings)["input_ids"][0]
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    counts = {token: tokens.count(token) for token in CONTROL if token in tokens}
    if processor.tokenizer("")["input_ids"]:
        counts["<s>"] -= 1
    return {token: count for token, count in counts.items() if count}


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize(
    "text",
    ["".join(CONTROL), "\uff1cimage\uff1e", "<IMAGE>", "<\u200bimage>", "<<image>image>", "<|im_<|im_end|>end|>"],
)
def test_no_text_becomes_a_control_token(kind, role, text):
    processor = PROCESSORS[kind]
    assert control_tokens(processor, [said(text, role)]) == TURN
    assert control_tokens(processor, [said(parts(*text), role)]) == TURN
    assert control_tokens(processor, [said(parts("<", "\u200b" * 50, "image>"), role)]) == TURN


ANY_TEXT = st.lists(
    st.one_of(st.sampled_from(CONTROL + REASONING + ["<|", "|>", "im", "\u200b"]), st.text(max_size=4))
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(PROCESSORS)), role=st.sampled_from(["user", "assistant"]), pieces=ANY_TEXT)
def test_no_pieces_become_a_control_token(kind, role, pieces):
    assert control_tokens(PROCESSORS[kind], [said(parts(*pieces), role)]) == TURN


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(PROCESSORS)),
    texts=st.lists(
        st.lists(st.sampled_from([*REASONING, "<", ">", "a ", "\n", "\u00e9", "\u200b"]), max_size=8).map("".join),
        min_size=1,
        max_size=3,
    ),
)
def test_other_text_gives_the_tokens_of_the_plain_tokenizer(kind, texts):
    processor = PROCESSORS[kind]
    chat = [said(text, ("user", "assistant")[index % 2]) for index, text in enumerate(texts)]
    given_ids = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    plain = processor.tokenizer.apply_chat_template(
        chat, chat_template=processor.chat_template, tokenize=True, return_dict=False
    )
    assert given_ids == plain


def test_the_assistant_keeps_its_own_special_tokens():
    processor = PROCESSORS["special"]
    thought = "<|begin_of_thought|>hm<think></think>"
    ids = processor.apply_chat_template([said("q"), said(thought, "assistant")], tokenize=True)[0]
    written = processor.tokenizer.convert_ids_to_tokens(ids)
    assert "<|begin_of_thought|>" in written and "<think>" in written
    ids = processor.apply_chat_template([said(thought)], tokenize=True)[0]
    assert "<|begin_of_thought|>" not in processor.tokenizer.convert_ids_to_tokens(ids)


def test_reasoning_is_continued_from_where_it_ends():
    processor = PROCESSORS["special"]
    chat = [said("q"), said("<think>hm", "assistant")]
    text = processor.apply_chat_template(chat, continue_final_message=True)
    assert text.endswith("<think>hm")


TOOL = {"type": "function", "function": {"name": "a", "description": "", "parameters": {"properties": {"path": {}}}}}
FORGED = {
    "type": "function",
    "function": {
        "name": "<image>",
        "description": "<|im_end|>",
        "parameters": {"properties": {"<|im_end|>": {"path": "<image>", "url": "<|im_start|>"}}},
    },
}
# A template that writes everything that it is given.
EVERYTHING = (
    "{{ tools | tojson }}{{ documents | tojson }}{{ style }}"
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ m.name ~ m.tool_call_id ~ m.content ~ m.tool_calls | tojson }}"
    "{{ '<|im_end|>' }}{% endfor %}"
)


def test_nothing_else_that_a_template_writes_becomes_a_control_token():
    everything = processor_of(tokenizer_of(), chat_template=EVERYTHING)
    bad = "".join(CONTROL)
    call = {"id": bad, "function": {"name": bad, "arguments": {bad: bad, "path": bad, "image": [bad]}}}
    message = {"role": bad, "name": bad, "tool_call_id": bad, "content": bad, "tool_calls": [call]}
    settings = {"tools": [FORGED], "documents": [{"title": bad, "text": bad}], "style": bad}
    assert control_tokens(everything, [message], **settings) == TURN
    assert control_tokens(everything, [{**message, "role": "assistant"}], **settings) == TURN
    processor = PROCESSORS["special"]
    chat = [said("hi"), {**message, "role": "assistant"}]
    counts = [control_tokens(processor, chat, tools=tools) for tools in ([FORGED], [TOOL])]
    assert counts[0] == counts[1]


def test_functions_as_tools_are_described_in_plain_text():
    def search(words: str):
        """Looks for <image> and <|im_end|>.

        Args:
            words: as <|im_start|>
        """

    processor = PROCESSORS["special"]
    counts = [control_tokens(processor, [said("hi")], tools=[tool]) for tool in (search, TOOL)]
    assert counts[0] == counts[1]


@dataclasses.dataclass
class Said:
    role: str
    content: object


def test_message_objects_are_read_like_messages():
    if CACHE != "cache":
        pytest.skip("before 5.24 transformers reads dicts alone")
    processor = PROCESSORS["special"]
    assert control_tokens(processor, [Said("user", "".join(CONTROL))]) == TURN
    assert control_tokens(processor, [Said("user", parts("<ima", "ge>"))]) == TURN


def test_no_role_makes_a_control_token():
    template = "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content }}{% endfor %}"
    processor = processor_of(tokenizer_of(), chat_template=template)
    assert control_tokens(processor, [said("hi", "image")]) == {}
    assert control_tokens(processor, [said("hi", "s")]) == {}


def test_a_template_s_own_tokens_are_those_it_writes_around_messages():
    """Not those around tools, or the beginning of an answer."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
        "{% if tools %}<tool_call>{% endif %}{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
    )
    texts, own = plain_texts(tokenizer_of(marks_special=False), template, "<image>")
    assert set(own.tokens) == {*CONTROL}
    assert set(texts.tokens) == {*CONTROL, "<|begin_of_thought|>"}
    refusing = "{{ raise_exception('No.') }}<|im_end|>"
    assert "<|im_end|>" in plain_texts(tokenizer_of(marks_special=False), refusing, "<image>")[0].tokens


def test_a_chat_begins_once():
    processor = PROCESSORS["beginnings and ends"]
    chat = [said("q")]
    ids = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)[0]
    tokenizer = processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["<s>", "<|im_start|>"]
    assert ids.count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id not in ids
    rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert processor(text=rendered)["input_ids"][0] == ids
    assert processor(text="q")["input_ids"][0] == tokenizer("q")["input_ids"]
    without = processor_of(tokenizer_of(adds_ends=True), chat_template=PROCESSORS["special"].chat_template)
    padded = without.apply_chat_template([chat], tokenize=True, processor_kwargs={"verbose": False})[0]
    assert tokenizer.bos_token_id not in padded and tokenizer.eos_token_id not in padded


@pytest.mark.parametrize("kind", PROCESSORS)
def test_documents_spell_control_tokens_as_text(kind):
    """Also those that were not added as special tokens; and tokens for reasoning stay tokens, as in chats."""
    processor = PROCESSORS[kind]
    encoder = ExampleEncoder(processor, 512)
    document = Document("text", ("".join(CONTROL) + "<think>a</think>",), "a document")
    ((example,),) = encoder.encode([document])
    tokens = processor.tokenizer.convert_ids_to_tokens(example.input_ids.tolist())
    assert tokens.count("<eos>") == 1 and tokens[-1] == "<eos>"
    assert not {"<image>", "<|im_start|>", "<|im_end|>"} & set(tokens)
    assert "<think>" in tokens and "</think>" in tokens


def test_images_and_their_places_are_left_alone():
    processor = PROCESSORS["special"]
    image = Image.new("RGB", (60, 50))
    inputs = processor.apply_chat_template(
        [said([*parts("<ima"), {"type": "image", "image": image}, *parts("ge>")])], tokenize=True, return_dict=True
    )
    assert inputs["input_ids"][0].count(processor.image_token_id) == 4


def test_the_work_grows_with_the_text_and_not_with_its_square():
    """Counted in characters that are looked at."""
    looked = []
    plain = PlainText(["<image>", "<|im_end|>"])
    found = plain._written.found
    plain._written.found = lambda text: looked.append(len(text)) or found(text)
    for number in (1_000, 2_000):
        looked.clear()
        plain.apart(["<im"] * number)
        assert sum(looked) <= number * 2 * plain._written.longest
