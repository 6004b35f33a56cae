"""What is found wrong with captions that models wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.corpus.captioning.checks import (
    CaptionRules,
    alt_text_fault,
    caption_fault,
    fusion_fault,
    repeats_itself,
    tidied,
    whole_sentences,
    words_of,
)
from mm1_hf.corpus.captioning.phrases import PATTERNS


PROMPT = "Look at the image and tell in one plain sentence what it shows. Add nothing else."

GOOD = (
    "A red double-decker bus crosses Westminster Bridge in London.",
    "Two dogs play with a ball on a beach; behind them is the sea.",
    "A sign in Paris that says “Boulangerie”.",
    "The image shows three people at a table, with cups of coffee.",
    "A portrait of Ludwig van Beethoven (1770–1827), painted in 1820.",
    "一只白色的猫坐在窗台上看着外面的雨。",
    "A bird that cannot fly sits on a rock, as an AI-themed balloon floats by.",
    "A woman is sorry about the broken vase on the floor.",
    "Ein rotes Haus am See, im Hintergrund die Alpen.",
    "A cat, a dog, a bird and a fish.",
)


@pytest.mark.parametrize("text", GOOD)
def test_captions_that_pass(text):
    # Its own alt text is in the same script.
    assert caption_fault(text, PROMPT, [text if not text.isascii() else "bus"]) is None


BAD = {
    "I'm sorry, but I cannot see any image here.": "a refusal",
    "Unfortunately, I can’t view images, so this is a guess.": "a refusal",
    "As an AI language model, I have no eyes.": "a refusal",
    "As a text-based assistant I only read.": "a refusal",
    "No image was provided with the request.": "a refusal",
    "对不起，我无法查看这张图片。": "boilerplate of another language",
    "Es tut mir leid, ich sehe kein Bild.": "boilerplate of another language",
    "Je suis désolé, mais ceci n'est pas une pipe.": "boilerplate of another language",
    "Lo siento, no puedo ver la imagen.": "boilerplate of another language",
    "申し訳ありませんが、画像が見えません。": "boilerplate of another language",
    "К сожалению, изображения нет.": "boilerplate of another language",
    "A bus on a bridge. Let me know if you need more!": "speaks to the user",
    "Please provide the image that you mean.": "speaks to the user",
    "A bus, which the first text calls red.": "speaks of its task",
    "The alt text says that it is a bus.": "speaks of its task",
    "A bus <|im_end|> <|im_start|>user": "control tokens",
    "A bus [/INST] and more of it": "control tokens",
    "<image> A bus on a bridge": "control tokens",
    "A bus in **London** with people": "markup or code",
    '{"caption": "A bus in London"}': "markup or code",
    "<p>A bus in London</p>": "markup or code",
    "A bus at https://a.example/b in London": "an address",
    "A bus, see www.a.example for more": "an address",
    "A bus in London #travel #bus": "an address",
    "A bus \x00 in London": "control characters",
    "A bus \ufffd in London": "control characters",
    "A bus \u202e in London": "control characters",
    "A bus.": "too short",
    "": "empty",
    " \n": "empty",
    "bus " * 6: "repeats itself",
    "A bus in London. " * 9: "repeats itself",
    "the red bus of the red bus of the red bus of the red bus": "repeats itself",
    "You look at the image and tell in one plain sentence that it is a bus.": "repeats its instructions",
    "Красный автобус едет по мосту.": "letters of another script",
    "A bus: 红色的巴士在桥上行驶": "letters of another script",
    "x" * 5000: "too long",
    " ".join(f"word{index}" for index in range(200)): "too long",
}


@pytest.mark.parametrize("text", BAD)
def test_captions_that_do_not_pass(text):
    assert caption_fault(text, PROMPT, ["red bus"]) == BAD[text]


def test_what_the_alt_text_says_too_is_no_fault():
    for said in (
        "Card: I am sorry, I can't help it",
        "The Hello&amp;Co. label",
        "Visit www.a.example",
        "Поезд в Москве",
    ):
        text = f"A picture with the words {said} on it"
        assert caption_fault(text, PROMPT, ["another"]) is not None
        assert caption_fault(text, PROMPT, [said]) is None


def test_every_reason_has_a_caption_here():
    assert {*PATTERNS, "empty", "too long", "too short", "control characters", "repeats itself"} <= {*BAD.values()}


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ('"A red bus."', "A red bus."),
        ("“A red bus.”", "A red bus."),
        ("Caption: A red bus.", "A red bus."),
        ("**Caption:** A red bus.", "**Caption:** A red bus."),
        ("Sure, here is the caption of the image:\n\n\u201cA red bus.\u201d\n", "A red bus."),
        ("Here's one: 'A red bus.'", "A red bus."),
        ('"A" and "B" are letters.', '"A" and "B" are letters.'),
        ("  A\n red\tbus.  ", "A red bus."),
        ("Caption:", "Caption:"),
        ("Sign: do not enter", "Sign: do not enter"),
        ("", ""),
    ],
)
def test_what_models_write_around_a_caption_is_removed(answer, caption):
    assert tidied(answer) == caption


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A bus. A car. A bic", "A bus. A car."),
        ("A bus in the", ""),
        ("He said “Go!” and the", "He said “Go!”"),
        ("It costs 3.50 euros and", ""),
        ("一辆公车。还有", "一辆公车。"),
        ("A bus.", "A bus."),
    ],
)
def test_an_unfinished_sentence_is_removed(text, sentences):
    assert whole_sentences(text) == sentences


def test_what_a_language_model_invents_is_found():
    sources = ["Eiffel Tower, 1889", "A tall iron tower stands under a blue sky."]
    assert fusion_fault("The Eiffel Tower, built in 1889, under a blue sky.", sources) is None
    assert fusion_fault("The Eiffel Tower of 1890 under a blue sky.", sources) == "a number that is in neither text"
    assert fusion_fault("Bananas dance happily through purple jungles.", sources) == "little of it is in either text"
    assert fusion_fault("A cat.", sources) is None


def test_alt_texts_that_models_are_not_asked_about():
    assert alt_text_fault("IMG_0001") is None
    assert alt_text_fault("two\nlines\tof text") is None
    assert alt_text_fault(" ") == "no alt text"
    assert alt_text_fault("x" * 5000) == "alt text too long"
    assert alt_text_fault("a\x1b[2J") == "control characters"
    assert alt_text_fault("a<|im_end|><|im_start|>system") == "control tokens"


def test_words_are_counted_in_every_script():
    assert words_of("It's a well-known “café” 12") == ["it's", "a", "well-known", "café", "12"]
    assert words_of("白い猫 cat") == ["白", "い", "猫", "cat"]


@given(st.text(max_size=400), st.text(max_size=60))
def test_any_answer_has_a_verdict(text, alt_text):
    caption = tidied(text)
    reason = caption_fault(caption, PROMPT, [alt_text])
    assert reason is None or (reason and len(reason) < 60)
    if reason is None:
        assert CaptionRules().min_words <= len(words_of(caption)) <= CaptionRules().max_words
        fusion_fault(caption, [alt_text])


@given(st.lists(st.sampled_from("abcdefg"), max_size=40))
def test_repetition_is_what_a_plain_count_finds(words):
    rules = CaptionRules()
    run = longest = 0
    previous = None
    for word in words:
        run = run + 1 if word == previous else 1
        longest, previous = max(longest, run), word
    triples = [tuple(words[index : index + 3]) for index in range(len(words) - 2)]
    again = sum(triple in triples[:index] for index, triple in enumerate(triples))
    expected = longest > rules.max_repeats or (bool(triples) and again / len(triples) > rules.max_repeated_share)
    assert repeats_itself(words, rules) == expected


@given(st.text(alphabet='ab .!?"”', max_size=60))
def test_whole_sentences_are_a_beginning_of_the_text(text):
    found = whole_sentences(text)
    assert text.startswith(found)
    assert found == whole_sentences(found)
