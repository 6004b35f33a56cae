"""The cache of features, and what identifies a picture."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import picture

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.evaluation.models.features import FeatureCache, picture_key


@given(st.integers(0, 12), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8)), max_size=40))
def test_the_least_recently_used_are_dropped_first(limit, uses):
    cache, kept = FeatureCache(limit), OrderedDict()
    hits = 0
    for key, size in uses:
        found = cache.get(key)
        assert (found is None) == (key not in kept)
        if key in kept:
            hits += 1
            assert found == ("value", key)
            kept.move_to_end(key)
        else:
            cache.put(key, ("value", key), size)
            if size <= limit:
                kept[key] = size
                while sum(kept.values()) > limit:
                    kept.popitem(last=False)
        assert cache.bytes == sum(kept.values()) <= limit
    assert (cache.hits, cache.misses) == (hits, len(uses) - hits)


def test_a_picture_is_known_by_its_content(tmp_path):
    part = picture(0)
    path = tmp_path / "a.png"
    path.write_bytes(part.source)
    assert picture_key(part) == picture_key(ImagePart(str(path))) == picture_key(picture(0)) != picture_key(picture(1))
    image = part.load()
    assert picture_key(ImagePart(image)) == picture_key(ImagePart(image.copy()))
    assert picture_key(ImagePart(image)) != picture_key(ImagePart(image.resize(image.size[::-1])))
    with pytest.raises(Unusable, match="missing file"):
        picture_key(ImagePart(str(tmp_path / "b.png")))
