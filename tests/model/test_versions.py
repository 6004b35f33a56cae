"""What MM1 asks about the installed transformers, with each answer forced."""

import inspect
import logging

import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging as transformers_logging

from mm1_hf import MM1Config, MM1ForConditionalGeneration
from mm1_hf.model import versions
from mm1_hf.model.versions import CACHE, NEWEST_TESTED, OLDEST_TESTED, takes_cache, warn_if_untested


OTHER = {"cache": "past_key_values", "past_key_values": "cache"}[CACHE]


def test_outputs_carry_the_installed_name_of_the_cache():
    model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny")).eval()
    ids = torch.tensor([[5, 6, 7]])
    for output in (model(ids, use_cache=True), model.model(input_ids=ids, use_cache=True)):
        assert isinstance(output[CACHE], transformers.Cache) and CACHE in output
    assert CACHE in BaseModelOutputWithPast.__dataclass_fields__


def test_both_names_of_the_cache_are_taken():
    model = MM1ForConditionalGeneration(MM1Config.from_preset("mm1-tiny")).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = model(ids).logits[:, -1]
    for name in (CACHE, OTHER):
        cache = model(ids[:, :3], use_cache=True)[CACHE]
        torch.testing.assert_close(model(ids[:, 3:], **{name: cache}).logits[:, -1], whole, rtol=1e-4, atol=1e-5)
    # An unset one takes nothing away.
    cache = model(ids[:, :3], use_cache=True)[CACHE]
    both = model(ids[:, 3:], **{CACHE: cache, OTHER: None})
    torch.testing.assert_close(both.logits[:, -1], whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="two names of one argument"):
        model(ids[:, 3:], cache=cache, past_key_values=cache)


def test_the_signature_has_the_installed_name():
    @takes_cache
    def forward(self, input_ids, past_key_values=None, **kwargs):
        return past_key_values

    names = set(inspect.signature(forward).parameters)
    assert CACHE in names and OTHER not in names
    cache = DynamicCache()
    assert forward(None, 1, cache=cache) is forward(None, 1, past_key_values=cache) is cache


@pytest.mark.parametrize(
    ("installed", "warns"),
    [(OLDEST_TESTED, False), (NEWEST_TESTED, False), ("5.16.0", True), ("99.0", True), ("6.0.dev0", True)],
)
def test_a_version_outside_of_the_tested_range_is_named_once(installed, warns, monkeypatch, caplog):
    monkeypatch.setattr(versions.transformers, "__version__", installed)
    transformers_logging.get_logger("mm1_hf").warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        warn_if_untested()
        warn_if_untested()
    said = [record.message for record in caplog.records if "MM1 was tested with" in record.message]
    assert len(said) == warns
    assert all(part in message for message in said for part in (OLDEST_TESTED, NEWEST_TESTED, installed))
