import itertools

import pytest

from mm1_hf.hub.licenses import CombinedLicense, combine_licenses


@pytest.mark.parametrize(
    ("parts", "identifier", "name"),
    [
        (["mit", "apache-2.0"], "apache-2.0", None),
        (["apache-2.0", "apple-amlr", "mit"], "apple-amlr", None),
        (["cc-by-nc-4.0", "apple-amlr"], "apple-amlr", None),
        (["cc-by-nc-4.0", "apache-2.0"], "other", "apache-2.0-and-cc-by-nc-4.0"),
        (["cc-by-nc-4.0", "mit"], "cc-by-nc-4.0", None),
        (["gemma", "apache-2.0"], "gemma", None),
        (["gemma", "apple-amlr", "mit"], "other", "apple-amlr-and-gemma"),
        (["cc-by-sa-4.0", "gpl-3.0"], "other", "cc-by-sa-4.0-and-gpl-3.0"),
        (["Apache-2.0"], "apache-2.0", None),
        (["mit", None], "other", "unknown"),
        (["apple-amlr", None], "other", "apple-amlr-and-unknown"),
        ([None, None], "other", "unknown"),
    ],
)
def test_the_whole_has_what_covers_all_parts(parts, identifier, name):
    for order in itertools.permutations(parts):
        assert combine_licenses(order) == CombinedLicense(identifier, name)


@pytest.mark.parametrize("strict", ["apple-amlr", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "agpl-3.0", "llama3.2", None])
@pytest.mark.parametrize("free", ["mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "bsd-3-clause"])
def test_it_is_never_a_freer_one(strict, free):
    combined = combine_licenses([free, strict])
    assert (strict or "unknown") in (combined.name or combined.identifier).split("-and-")


def test_there_must_be_one():
    with pytest.raises(ValueError, match="no licence"):
        combine_licenses([])
