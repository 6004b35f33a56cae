"""Stop strings end a text at the same place whether generation is stopped or the text is cut."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer

from mm1_hf.evaluation.models.stopping import StopStrings, cut


TOKENIZER = byte_tokenizer()
STOPS = st.lists(st.text("ab.\né", min_size=1, max_size=3), min_size=1, max_size=3)


@given(st.text("ab.\né", max_size=12), STOPS, st.text("ab.", max_size=4))
def test_generation_stops_with_the_token_that_completes_a_stop_string(text, stop, prompt):
    start = len(TOKENIZER(prompt)["input_ids"])
    ids = TOKENIZER(prompt + text)["input_ids"]
    criterion = StopStrings(TOKENIZER, stop, start)
    decoded = [TOKENIZER.decode(ids[start:end]) for end in range(start + 1, len(ids) + 1)]
    first = next((place for place, done in enumerate(decoded) if any(string in done for string in stop)), None)
    stopped = [bool(criterion(torch.tensor([ids[:end]]), None)) for end in range(start + 1, len(ids) + 1)]
    assert next((place for place, done in enumerate(stopped) if done), None) == first
    # A stop string that holds another is never completed.
    if first is not None and not any(one in other for one in stop for other in stop if one != other):
        assert cut(decoded[first], stop) == cut(text, stop)


@given(st.text("ab. \n", max_size=12), STOPS)
def test_nothing_of_a_stop_string_is_left(text, stop):
    kept = cut(text, stop)
    assert not any(string in kept for string in stop)
    assert text.strip().startswith(kept)
    assert kept == kept.strip()


def test_rows_stop_one_by_one():
    rows = [TOKENIZER(text)["input_ids"] for text in ("x.abc", "x.a.c", "x.abc")]
    assert StopStrings(TOKENIZER, ["."], 2)(torch.tensor(rows), None).tolist() == [False, True, False]
