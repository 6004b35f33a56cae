import copy
from collections import Counter

import pytest
from engine_documents import counts, document, passed
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.corpus.image_steps import address_key, address_keys, content_key, content_keys, first_of_each
from mm1_hf.corpus.repeats import CountHashes, DropDuplicates, DropRepeatedImages, FindRepeats, text_hashes


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


def find(folder, tasks: list[list], hashes_of, limit: int, ranges: int = 2, owned: bool = False) -> str:
    """Counts the documents of some tasks. Returns the folder of what repeats."""
    for rank, documents in enumerate(tasks):
        assert passed(CountHashes(folder / "runs", hashes_of, owned), documents, rank) == documents
    for rank in range(ranges):
        assert passed(FindRepeats(folder / "runs", folder / "repeats", limit, owned), [], rank, ranges) == []
    return str(folder / "repeats")


pages = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(pages, min_size=1, max_size=3), st.integers(0, 3), st.booleans())
def test_images_on_too_many_pages_are_dropped(tmp_path_factory, tasks, limit, by_address):
    """Against a plain count of pages."""
    made = [
        [
            document(
                f"{task}/{number}",
                "a",
                *(f"https://a.example/{name}" if by_address else name.encode() for name in names),
            )
            for number, names in enumerate(found)
        ]
        for task, found in enumerate(tasks)
    ]
    shown = Counter(name for found in tasks for names in found for name in set(names))
    keys, key = (address_keys, address_key) if by_address else (content_keys, content_key)
    folder = find(tmp_path_factory.mktemp("repeats"), made, keys, limit)
    for rank, documents in enumerate(made):
        step = DropRepeatedImages(folder, key)
        kept = passed(step, copy.deepcopy(documents), rank)
        assert len(kept) == len(documents)
        left = [[image.url[-1] if by_address else image.media_bytes.decode() for image in page.media] for page in kept]
        assert left == [[name for name in names if shown[name] <= limit] for names in tasks[rank]]
        dropped = sum(shown[name] > limit for names in tasks[rank] for name in names)
        assert counts(step).get("image dropped: repeated in the data set", 0) == dropped


texts = st.lists(st.tuples(st.sampled_from(["a b", "A  b\n", "b", "c"]), st.integers(0, 20)), max_size=12)


@settings(max_examples=25, deadline=None)
@given(texts, st.integers(1, 4), st.integers(1, 4))
def test_of_equal_texts_the_same_one_stays_for_any_number_of_tasks(tmp_path_factory, found, first, second):
    def kept(tasks: int) -> list[tuple[str, str]]:
        # Ids repeat where a page was crawled twice.
        made = [[document(str(id), text) for text, id in found[rank::tasks]] for rank in range(tasks)]
        folder = find(tmp_path_factory.mktemp("texts"), made, text_hashes, 1, owned=True)
        steps = [DropDuplicates("same text", folder, text_hashes) for _ in made]
        left = [page for rank, step in enumerate(steps) for page in passed(step, made[rank], rank)]
        return sorted((page.id, " ".join(page.text.lower().split())) for page in left)

    assert kept(first) == kept(second)
    assert [text for _, text in sorted(kept(first), key=lambda page: page[1])] == sorted(
        {" ".join(text.lower().split()) for text, _ in found}
    )


def test_dropping_before_counting_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds 0 files"):
        passed(DropRepeatedImages(tmp_path, address_key), [document("a")])


def test_an_image_is_known_by_its_address_and_by_its_file():
    same = document(
        "a", "", "https://a.example/x#1", "https://a.example/x#2", "/a/x.png", b"x", b"y", "data:image/png,"
    )
    keys = [address_key(image) for image in same.media]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3:] == [None, None, None]
    assert [content_key(image) is None for image in same.media] == [True, True, True, False, False, True]


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        ([], []),
        ([(b"a", b"1"), (b"b", b"2")], [True, True]),
        ([(b"a", b"1"), (b"a", b"2"), (b"b", b"1")], [True, False, False]),
        # A third image that is like a dropped one.
        ([(b"a", b"1"), (b"a", b"2"), (b"b", b"2")], [True, False, False]),
        ([(None, b"1"), (None, None), (None, None), (None, b"1")], [True, True, True, False]),
    ],
)
def test_the_first_of_a_kind(keys, first):
    assert first_of_each(keys) == first
