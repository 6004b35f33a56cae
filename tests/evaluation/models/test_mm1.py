"""MM1 encodes each picture once, and splits the images that a request says."""

from collections import Counter

import pytest
import torch
from generating import far_from_initial
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import picture
from tiny import tiny_mm1

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.models import LocalModel, MM1LocalModel
from mm1_hf.evaluation.requests import Request


@pytest.fixture(scope="module")
def pair():
    model, processor = tiny_mm1()
    processor.image_processor.image_splitting = "static"
    processor.image_processor.position_indicators = "index"
    return far_from_initial(model), processor


def encoded(model) -> Counter[bytes]:
    """How often each tile goes through the encoder from now on; zeros that fill a batch are left out."""
    tiles: Counter[bytes] = Counter()

    def count(module, args, kwargs):
        given = args[0] if args else kwargs["pixel_values"]
        tiles.update(tile.numpy().tobytes() for tile in given if tile.abs().sum())

    model.model.vision_tower.register_forward_pre_hook(count, with_kwargs=True)
    return tiles


def shots(number: int, query: int, **settings) -> Request:
    parts = [part for index in range(number) for part in (picture(index), f" is {index}.\n")]
    return Request((*parts, picture(100 + query), " is"), 4, **settings)


def test_a_demonstrations_picture_is_encoded_once(pair):
    model = MM1LocalModel(*pair, batch_size=4)
    # The first picture that it encodes tells it how many it may encode together.
    model.answer([Request((picture(50), "x"), 1)])
    tiles = encoded(pair[0])
    # Up to two images are split, into 4 tiles and an overview.
    requests = [shots(1, query) for query in range(6)]
    model.answer(requests)
    assert set(tiles.values()) == {1} and tiles.total() == 5 * (1 + 6)
    model.answer(requests)
    assert tiles.total() == 5 * (1 + 6)
    # As one of four images, the first picture is not split: other tiles, but for the overviews.
    model.answer([shots(3, query) for query in range(6)])
    assert tiles.total() == 5 * (1 + 6) + 3 + 6
    assert model.cache.bytes == (tiles.total() + 5) * 4 * 64 * 4


def test_pictures_of_later_prompts_fill_a_batch_of_the_encoder(pair):
    calls = []
    handle = pair[0].model.vision_tower.register_forward_pre_hook(lambda *given: calls.append(1))
    requests = [Request((picture(200 + number % 24), "x"), 1, whole=frozenset({0})) for number in range(30)]
    requests.insert(3, Request((ImagePart(b"no image"), "x"), 1))
    answers = MM1LocalModel(*pair, batch_size=1).answer(requests)
    handle.remove()
    # Two calls find out how many may be encoded together.
    assert len(calls) == 2 + 24 / 8
    assert [number for number, answer in enumerate(answers) if answer.error] == [3]


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_image_tokens_depend_on_neither_batch_nor_cache_nor_what_came_before(pair, data):
    requests = [shots(number % 3, number % 5) for number in range(8)]
    kept: dict = {}
    for _ in range(2):
        size, limit = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([2**20, 20_000, 0]))
        model = MM1LocalModel(*pair, batch_size=size, cache_bytes=limit)
        for index in data.draw(st.permutations(range(8))):
            prompt = model._writer.write(requests[index])
            following = map(model._writer.write, requests[index:])
            (ready,) = model._loaded([prompt], following)
            features = torch.cat([image.features for image in ready.images])
            assert torch.equal(kept.setdefault(index, features), features)


def test_answers_are_those_of_the_plain_way(pair):
    requests = [shots(number, number) for number in range(4)]
    requests += [Request(request.prompt, continuations=(" yes", " no", " A")) for request in requests]
    plain = LocalModel(*pair, batch_size=3).answer(requests)
    for limit in (2**20, 6000, 0):
        for answer, expected in zip(
            MM1LocalModel(*pair, batch_size=3, cache_bytes=limit).answer(requests), plain, strict=True
        ):
            assert (answer.text, answer.greedy, answer.error) == (expected.text, expected.greedy, None)
            assert answer.log_likelihoods == pytest.approx(expected.log_likelihoods, abs=1e-4)


def test_mixed_resolution_is_that_of_the_processors_own_setting(pair):
    """`split_last` of the image processor is MM1's mixed resolution, which a request says by images."""
    model, processor = pair
    request = shots(4, 0, whole=frozenset({0, 1, 2}))
    (answer,) = MM1LocalModel(model, processor).answer([request])
    processor.image_processor.split_last = 2
    try:
        (expected,) = LocalModel(model, processor).answer([shots(4, 0)])
    finally:
        processor.image_processor.split_last = None
    assert answer == expected != MM1LocalModel(model, processor).answer([shots(4, 0)])[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.none() | st.sets(st.integers(0, 4)))
def test_image_tokens_are_those_of_whole_and_split_pictures(pair, number, whole):
    whole = None if whole is None else frozenset(index for index in whole if index < number)
    model = MM1LocalModel(*pair)
    prompt = model._writer.write(Request((*(picture(index) for index in range(number)), "x"), 4, whole=whole))
    (ready,) = model._loaded([prompt], ())
    inputs = model._encode([ready], [prompt.text], True, "left")
    split = (number if number <= 2 else 0) if whole is None else number - len(whole)
    tiles = 5 * split + number - split
    assert int((inputs["input_ids"] == pair[1].image_token_id).sum()) == 4 * tiles
    assert inputs["mm_encoder_outputs"]["image"].pooler_output.shape == (tiles, 4, 64)
    # Each of the tiles of a split image has its position in the text.
    assert pair[1].tokenizer.decode(inputs["input_ids"][0]).count("(") == 5 * split


def test_a_picture_is_embedded_by_the_encoder_alone(pair):
    model, processor = pair
    tiles = processor.image_processor([[picture(0).load()]], image_splitting="none", return_tensors="pt")
    with torch.no_grad():
        features = model.model.vision_tower(tiles["pixel_values"]).last_hidden_state[0, 1:].mean(0)
    (row,) = MM1LocalModel(model, processor).embed_images([picture(0)])
    assert torch.allclose(row, features / features.norm(), atol=1e-5)


def test_mixed_resolution_is_refused_where_nothing_is_split():
    with pytest.raises(ValueError, match="image_splitting is none"):
        MM1LocalModel(*tiny_mm1()).answer([shots(2, 0, whole=frozenset({0}))])


def test_features_do_not_depend_on_what_was_encoded_before(pair):
    request = Request((picture(1), picture(2), " is"), continuations=(" A", " dog"))
    model = MM1LocalModel(*pair)
    model.answer([shots(1, query) for query in range(3)])
    warm, cold = model.answer([request]), MM1LocalModel(*pair).answer([request])
    assert warm == cold
