import re
from itertools import pairwise

import pytest
from engine_documents import counts, document, passed
from fasttext_model import write_model

from mm1_hf.corpus.fasttext_rules import languages_rule, quality_rule, scores
from mm1_hf.corpus.text_quality import (
    bad_word_steps,
    bad_words_pattern,
    language_steps,
    line_quality_steps,
    quality_model_steps,
    repetition_and_quality_steps,
)
from mm1_hf.corpus.words import WORDS


PROSE = (
    "The lighthouse at the end of the bay was built in 1902 to guide ships past the rocks. A keeper and his "
    "family lived there until the light became electric. Visitors can climb its narrow stairs in summer and look "
    "over the whole coast. On clear days the islands to the north seem close enough to touch. Most of the old "
    "instruments have been kept, and one of them still tells the direction of the wind. It takes about an hour to "
    "walk from the village to the rocks, and the way back is steeper."
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic: f(x) = 3.14,\n\tok", ["Don't", "panic:", "f(x)", "=", "3.14,", "ok"]),
        ("我们 end。", ["我", "们", "end。"]),
        ("我们end", ["我", "们", "end"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_words(text, words):
    assert WORDS.word_tokenize(text) == words


def test_sentences():
    text = 'One here. Two "is here?" Version 3.14 is no end!\nA line\n\n'
    assert WORDS.sent_tokenize(text) == ["One here.", 'Two "is here?"', "Version 3.14 is no end!", "A line"]
    spans = WORDS.span_tokenize(text)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def reasons(steps, text: str) -> list[str]:
    """What the steps drop a text for."""
    found = [document("a", text)]
    for step in steps:
        found = passed(step, found)
        if not found:
            return [label.removeprefix("dropped: ") for label in counts(step) if label.startswith("dropped: ")]
    return []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PROSE, []),
        # Formulas and code among the words do not make it a bad text.
        (f"{PROSE} So f(x) = x ** 2 + 1, and g[i] = {{f(i)}}.".replace("{", "(").replace("}", ")"), []),
        ("Home", ["gopher_short_doc"]),
        (" ".join(["Buy now and save more today."] * 60), ["top_2_gram"]),
        ("\n\n".join([PROSE] * 3), ["dup_para_frac"]),
        (" ".join(["= | 12 -- 3.4 #"] * 3 + [PROSE]) + " 1 2 3 4 5 6 7 8 9 0" * 4, ["gopher_below_alpha_threshold"]),
        (re.sub(r"\b(the|to|of|and|with|have|be|that)\b", "da", PROSE), ["gopher_enough_stop_words"]),
        ("\n".join(f"• {line}" for line in PROSE.split(". ")), ["gopher_too_many_bullets"]),
        ("", ["empty"]),
    ],
)
def test_quality_of_documents(text, why):
    steps = repetition_and_quality_steps()
    assert reasons(steps, text) == why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PROSE, []),
        (f"{PROSE} Lorem ipsum dolor.", ["lorem_ipsum"]),
        (f"{PROSE} {{color: red}}", ["curly_bracket"]),
        ("Only one sentence is here, and that is not enough.", ["too_few_sentences"]),
        ("\n".join(PROSE.replace(",", ".").replace(".", "\n").split("\n")), ["line_punct_ratio"]),
    ],
)
def test_quality_of_lines(text, why):
    assert reasons(line_quality_steps(), text) == why


def test_languages(tmp_path):
    model = write_model(tmp_path / "lid.bin", {"en": ["the", "and"], "de": ["der", "und"]})
    assert scores(model, "the\ncat and") == pytest.approx({"en": 0.99966, "de": 0.00034}, abs=1e-4)
    (step,) = language_steps(model, ["en"])
    found = passed(
        step, [document("a", "the cat and"), document("b", "der hund"), document("c", ""), document("d", "the der")]
    )
    assert [page.id for page in found] == ["a"]
    assert counts(step) == {"kept": 1, "dropped: another language": 3}
    (step,) = language_steps(model, ["de", "en"])
    assert len(passed(step, [document("a", "the cat and"), document("b", "der hund")])) == 2
    assert language_steps(None, ["en"]) == []


def test_a_quality_model(tmp_path):
    model = write_model(tmp_path / "quality.bin", {"hq": ["theorem"], "cc": ["buy"]})
    (step,) = quality_model_steps(model, "hq", 0.9)
    assert [page.id for page in passed(step, [document("a", "a theorem"), document("b", "buy it")])] == ["a"]
    assert counts(step)["dropped: low score of the quality model"] == 1
    assert quality_model_steps(None, "hq", 0.9) == []


def test_models_that_cannot_be_used(tmp_path):
    (tmp_path / "text").write_text("no model")
    with pytest.raises(ValueError, match=r"There is no model file .*nowhere\.bin"):
        languages_rule(tmp_path / "nowhere.bin", ["en"])
    with pytest.raises(ValueError, match="No language is given"):
        languages_rule(tmp_path / "text", [])
    with pytest.raises(ValueError, match="min_score is 2"):
        quality_rule(tmp_path / "text", "hq", 2)
    with pytest.raises(ValueError, match="is not a fastText model"):
        scores(str(tmp_path / "text"), "a")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What a darn shame", True),
        ("DARN!", True),
        ("darned, or goldarn", False),
        ("such\n a  Bad   thing", True),
        ("a badthing", False),
        ("这是坏话吗", True),
        ("nothing", False),
    ],
)
def test_bad_words(text, found):
    assert bool(bad_words_pattern(["darn", "Bad thing", "坏话"]).search(" ".join(text.lower().split()))) == found


def test_a_list_of_bad_words(tmp_path):
    (tmp_path / "words").write_text("# a comment\ndarn\n\n")
    (step,) = bad_word_steps(tmp_path / "words")
    assert [
        page.id for page in passed(step, [document("a", "good"), document("b", "Darn it"), document("c", "a comment")])
    ] == [
        "a",
        "c",
    ]
    assert counts(step)["dropped: bad word"] == 1
    assert bad_word_steps(None) == []
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no words"):
        bad_word_steps(tmp_path / "empty")
    with pytest.raises(ValueError, match="cannot be read"):
        bad_word_steps(tmp_path / "nowhere")
