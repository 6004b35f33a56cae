"""Which demonstrations are drawn: never the query, always the same for a seed, and how similarity chooses."""

import io
from collections import Counter

import numpy as np
import pytest
from evaluation_data import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.data.documents import ImagePart
from mm1_hf.evaluation.demonstrations import Demonstrations
from mm1_hf.evaluation.samples import Sample, read_samples
from mm1_hf.evaluation.tasks import load_task


def example(n, image=None, **more):
    return Sample(f"p{n}", (ImagePart(picture(n if image is None else image)),), "What?", answer=f"thing {n}", **more)


POOL = [example(n) for n in range(30)]
QUERY = Sample("q", (ImagePart(picture(200)),), "What?")
hows = st.sampled_from(["random", "fixed", "rices"])


def embed(images):
    """Their first pixels, as a place in the space of colours."""
    return [np.array(image.load().convert("RGB").getpixel((0, 0)), float) + 1 for image in images]


def ids(shots):
    return [shot.id for shot in shots]


def make(how, pool=POOL, **options):
    return Demonstrations(pool, how=how, embed=embed, **options)


@given(how=hows, seed=st.integers(0, 5), trial=st.integers(0, 3), shots=st.integers(0, 8), place=st.integers(0, 29))
@settings(max_examples=60, deadline=None)
def test_the_query_is_never_drawn_and_nothing_is_drawn_twice(how, seed, trial, shots, place):
    drawn = make(how, seed=seed).draw(POOL[place], shots, trial)
    assert len(drawn) == len(set(ids(drawn))) == shots
    assert POOL[place].id not in ids(drawn)


@given(how=hows, seed=st.integers(0, 5), trial=st.integers(0, 3), fewer=st.integers(1, 4), more=st.integers(4, 8))
@settings(max_examples=40, deadline=None)
def test_more_shots_hold_the_fewer(how, seed, trial, fewer, more):
    demonstrations = make(how, seed=seed)
    few, many = (ids(demonstrations.draw(QUERY, shots, trial)) for shots in (fewer, more))
    assert few == (many[-fewer:] if how == "rices" else many[:fewer])


@pytest.mark.parametrize("how", ["random", "fixed", "rices"])
def test_the_order_of_the_calls_makes_no_difference(how):
    first, second = make(how), make(how)
    queries = [Sample(f"q{n}", (ImagePart(picture(200 + n)),)) for n in range(5)]
    forward = [ids(first.draw(query, 4)) for query in queries]
    backward = [ids(second.draw(query, 4)) for query in reversed(queries)][::-1]
    assert forward == backward


@pytest.mark.parametrize(
    ("how", "drawn"),
    [
        ("random", ["p90", "p85", "p84", "p2", "p10", "p28", "p13", "p70"]),
        ("fixed", ["p28", "p92", "p41", "p64", "p53", "p90", "p19", "p42"]),
    ],
)
def test_draws_are_the_same_in_every_process_and_release(how, drawn):
    # Written down once: a change would make old results and new ones incomparable.
    pool = [Sample(f"p{n}", question=f"q{n}", answer="a") for n in range(100)]
    demonstrations = Demonstrations(pool, how=how, seed=3, size=50)
    assert ids(demonstrations.draw(Sample("x", question="?"), 8, trial=2)) == drawn


def test_random_draws_differ_by_query_trial_and_seed():
    other = Sample("r", (ImagePart(picture(201)),))
    draws = [
        ids(make("random").draw(QUERY, 8)),
        ids(make("random").draw(other, 8)),
        ids(make("random").draw(QUERY, 8, trial=1)),
        ids(make("random", seed=1).draw(QUERY, 8)),
    ]
    assert len({tuple(draw) for draw in draws}) == 4


def test_every_example_is_drawn_about_equally_often():
    demonstrations = make("random")
    counts = Counter(name for n in range(600) for name in ids(demonstrations.draw(Sample(f"q{n}"), 3)))
    # 60 draws of each are expected; their standard deviation is 7.3.
    assert len(counts) == 30
    assert all(30 < count < 90 for count in counts.values())


def test_a_fixed_set_is_that_of_the_trial_and_a_query_in_it_is_replaced():
    demonstrations = make("fixed")
    usual = ids(demonstrations.draw(QUERY, 4))
    assert usual == ids(demonstrations.draw(Sample("r", (ImagePart(picture(201)),)), 4))
    assert usual != ids(demonstrations.draw(QUERY, 4, trial=1))
    longer = ids(demonstrations.draw(QUERY, 5))
    member = next(each for each in POOL if each.id == usual[1])
    assert ids(demonstrations.draw(member, 4)) == [name for name in longer if name != member.id]


# Never the query.


def png(number, **options):
    file = io.BytesIO()
    picture(number).save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("how", ["random", "fixed", "rices"])
def test_the_querys_picture_under_another_name_is_not_drawn(how, tmp_path):
    path = tmp_path / "same.png"
    path.write_bytes(png(5))
    pool = [Sample(f"p{n}", (ImagePart(png(n % 6)),), "What?", answer="x") for n in range(12)]
    drawn = make(how, pool).draw(Sample("q", (ImagePart(str(path)),), "Other?"), 10)
    assert set(ids(drawn)) == {f"p{n}" for n in range(12) if n % 6 != 5}


def test_addresses_are_compared_without_a_download():
    pool = [Sample(f"p{n}", (ImagePart(f"https://127.0.0.1/{n}.png"),), answer="x") for n in range(4)]
    drawn = make("random", pool).draw(Sample("q", (ImagePart("https://127.0.0.1/2.png"),)), 3)
    assert set(ids(drawn)) == {"p0", "p1", "p3"}


def test_without_a_picture_the_same_question_is_not_drawn():
    pool = [Sample(f"p{n}", question=f"What is {n % 2}?", answer="x") for n in range(6)]
    drawn = make("random", pool).draw(Sample("q", question="What is 1?"), 3)
    assert set(ids(drawn)) == {"p0", "p2", "p4"}


def test_of_several_pictures_one_may_be_shared():
    def pair(name, first, second):
        return Sample(name, (ImagePart(picture(first)), ImagePart(picture(second))), answer="x")

    pool = [pair("p0", 1, 2), pair("p1", 2, 1), pair("p2", 1, 3), pair("p3", 1, 1)]
    drawn = make("random", pool).draw(pair("q", 1, 2), 1)
    assert ids(drawn) == ["p2"]
    with pytest.raises(ValueError, match="only 1 that can be used"):
        make("random", pool).draw(pair("q", 1, 2), 2)


def test_one_split_serves_both(tmp_path):
    samples = read_samples(load_task("easy_vqa"), limit=40)
    demonstrations = Demonstrations(samples, seed=1)
    for sample in samples:
        drawn = demonstrations.draw(sample, 4)
        assert all(shot.images[0].read() != sample.images[0].read() for shot in drawn)


# The pool.


def test_a_large_pool_is_cut_to_random_examples():
    demonstrations = make("random", size=10)
    drawn = {name for n in range(50) for name in ids(demonstrations.draw(Sample(f"q{n}"), 4))}
    assert len(drawn) == 10
    assert demonstrations.describe()["pool"] == 10
    assert {name for n in range(50) for name in ids(make("random", size=10, seed=1).draw(Sample(f"q{n}"), 4))} != drawn


def test_examples_that_cannot_be_used_are_counted():
    pool = [example(0), example(1, error="no image"), Sample("p2", question="no answer"), example(3)]
    demonstrations = make("random", pool)
    assert set(ids(demonstrations.draw(QUERY, 2))) == {"p0", "p3"}
    with pytest.raises(
        ValueError,
        match=r"3 demonstrations were asked for, but for sample q there are only 2 that can be used "
        r"\(left out: the query itself, 1 .*, 1 .*\)",
    ):
        demonstrations.draw(QUERY, 3)
    assert demonstrations.describe()["left_out"] == {"with an error": 1, "without an answer": 1}


def test_no_shots_need_no_pool():
    assert Demonstrations(None).draw(QUERY, 0) == []
    with pytest.raises(ValueError, match="brings no demonstrations"):
        Demonstrations(None).draw(QUERY, 1)


def test_a_sample_may_bring_its_own():
    groups = tuple((example(2 * n), example(2 * n + 1)) for n in range(5))
    query = Sample("q", (ImagePart(picture(200)),), pool=groups)
    drawn = ids(Demonstrations(None).draw(query, 2))
    assert len(drawn) == 4
    assert all(
        int(first[1:]) % 2 == 0 and int(second[1:]) == int(first[1:]) + 1 for first, second in [drawn[:2], drawn[2:]]
    )
    assert ids(Demonstrations(None).draw(query, 3))[:4] == drawn
    with pytest.raises(ValueError, match="only 5"):
        Demonstrations(None).draw(query, 6)


# Retrieval.


def test_the_most_similar_one_comes_last():
    colours = {"p0": (200, 0, 0), "p1": (100, 100, 0), "p2": (0, 200, 0), "p3": (150, 50, 0)}
    pool = [Sample(name, (ImagePart(_plain(colour)),), answer="x") for name, colour in colours.items()]
    # Angles to red, worked out by hand: p0 0, p3 18, p1 45, p2 90 degrees.
    query = Sample("q", (ImagePart(_plain((210, 0, 0))),))
    assert ids(make("rices", pool).draw(query, 3)) == ["p1", "p3", "p0"]


def _plain(colour):
    image = picture(0)
    image.paste(colour, (0, 0, *image.size))
    return image


def test_pool_images_are_embedded_once_and_in_batches():
    calls = []

    def counted(images):
        calls.append(len(images))
        return embed(images)

    demonstrations = Demonstrations([example(n) for n in range(150)], how="rices", embed=counted)
    for n in range(3):
        demonstrations.draw(Sample(f"q{n}", (ImagePart(picture(200 + n)),)), 2)
    assert calls == [64, 64, 22, 1, 1, 1]


def test_an_image_of_the_pool_that_cannot_be_read_is_counted():
    pool = [example(0), Sample("p1", (ImagePart(b"broken"),), answer="x"), example(2)]
    demonstrations = make("rices", pool)
    assert set(ids(demonstrations.draw(QUERY, 2))) == {"p0", "p2"}
    assert demonstrations.describe()["left_out"] == {"corrupt image": 1}


def test_a_query_that_cannot_be_read_still_gets_demonstrations():
    assert len(make("rices").draw(Sample("q", (ImagePart(b"broken"),)), 3)) == 3


def test_retrieval_needs_images_and_a_function():
    with pytest.raises(ValueError, match="has no image"):
        make("rices").draw(Sample("q", question="text"), 1)
    with pytest.raises(ValueError, match="needs embed"):
        Demonstrations(POOL, how="rices")


@pytest.mark.parametrize("how", ["random", "fixed", "rices"])
def test_an_example_whose_image_cannot_be_decoded_stands_before_no_question(how):
    pool = [*POOL[:6], Sample("cut", (ImagePart(b"not an image"),), "What?", answer="thing")]
    demonstrations = make(how, pool)
    for number in range(20):
        query = Sample(f"q{number}", (ImagePart(picture(100 + number)),), "What?")
        assert "cut" not in ids(demonstrations.draw(query, 6))
    assert demonstrations.describe()["left_out"] == {"corrupt image": 1}
