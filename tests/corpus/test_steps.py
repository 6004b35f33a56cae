import hashlib
import json

import pytest
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.filters.base_filter import BaseFilter
from web_pages import picture

from mm1_hf.corpus.bridge import to_engine
from mm1_hf.corpus.samples import SAMPLES_PER_REASON, Samples, merged_samples
from mm1_hf.corpus.steps import Change, CountedReader, CountedStep, DocumentRule, EngineFilter, ImageRule
from mm1_hf.data.documents import Document, ImagePart, Unusable


def documents(*texts: str) -> list[EngineDocument]:
    return [EngineDocument(text, f"document {index}") for index, text in enumerate(texts)]


def counts(step: CountedStep) -> dict[str, int]:
    return {label: int(value.total) for label, value in step.stats.stats.items()}


def ids(found) -> list[str]:
    return [document.text for document in found]


def short(document: EngineDocument) -> str | None:
    return "short" if len(document.text) < 3 else None


def test_a_rule_drops_documents_and_counts_them_by_reason():
    step = DocumentRule("length", short)
    assert ids(step.run(documents("abc", "a", "abcd", ""))) == ["abc", "abcd"]
    assert counts(step) == {"kept": 2, "dropped: short": 2}


def test_whatever_a_rule_raises_is_the_reason_of_that_document():
    step = DocumentRule("broken", lambda document: 1 / (len(document.text) - 1))
    assert ids(step.run(documents("ab", "a"))) == []
    assert counts(step) == {
        # A number is no reason in words, but it says that the document goes.
        "dropped: 1.0": 1,
        "dropped: unreadable record (ZeroDivisionError)": 1,
    }


def test_a_rule_drops_images_and_keeps_the_document():
    def small(image: ImagePart) -> str | None:
        return "small" if image.size()[0] < 90 else None

    step = ImageRule("size", small)
    parts = ("a", ImagePart(picture(1)), "b", ImagePart(picture(2, height=80)), "c", ImagePart(b"no image"))
    (found,) = step.run([to_engine(Document("interleaved", parts, "page"))])
    assert [image.media_bytes for image in found.media] == [picture(1)]
    assert found.text == "abc"
    assert counts(step) == {"kept": 1, "image kept": 1, "image dropped: small": 1, "image dropped: corrupt image": 1}


def test_a_change_replaces_documents_or_drops_them():
    def upper(document: EngineDocument) -> EngineDocument:
        if not document.text:
            raise Unusable("empty", "nothing in it")
        document.text = document.text.upper()
        return document

    step = Change("upper case", upper)
    assert ids(step.run(documents("a", ""))) == ["A"]
    assert counts(step) == {"kept": 1, "dropped: empty": 1}


class Vowels(BaseFilter):
    name = "vowels"

    def filter(self, doc):
        return True if "a" in doc.text else (False, "no_a") if "e" in doc.text else False


def test_a_filter_of_datatrove_counts_by_its_reasons():
    step = EngineFilter(Vowels())
    assert ids(step.run(documents("a", "e", "o"))) == ["a"]
    assert counts(step) == {"kept": 1, "dropped: no_a": 1, "dropped: vowels": 1}
    assert step.name == "vowels"


class Pairs(CountedStep):
    """Keeps the first of two documents; a batch of one means that the machine is broken."""

    batch_size = 2

    def process(self, document):
        raise NotImplementedError

    def process_batch(self, documents):
        if len(documents) < 2:
            raise ConnectionError("the server is gone")
        return [documents[0], Unusable("second")]


def test_batches_are_outside_of_the_wall():
    step = Pairs("pairs")
    assert ids(step.run(documents("a", "b", "c", "d"))) == ["a", "c"]
    assert counts(step) == {"kept": 2, "dropped: second": 2}
    with pytest.raises(ConnectionError):
        list(Pairs("pairs").run(documents("a", "b", "c")))


class Lines(CountedReader):
    def read(self, rank, world_size):
        for number in range(rank, 7, world_size):
            name = f"line {number}"
            yield EngineDocument(str(number), name) if number != 4 else (EngineDocument("", name), Unusable("four"))


def test_a_reader_counts_what_it_cannot_read():
    step = Lines("lines")
    assert ids(step.run(rank=0, world_size=2)) == ["0", "2", "6"]
    assert counts(step) == {"kept": 3, "dropped: four": 1}
    assert ids(Lines("lines").run(rank=1, world_size=2)) == ["1", "3", "5"]


@pytest.mark.parametrize("tasks", [1, 3])
def test_the_samples_are_the_same_for_any_number_of_tasks(tasks, tmp_path):
    everything = documents(*(f"{'x' * (index % 5)}" for index in range(60)))
    for rank in range(tasks):
        step = DocumentRule("length", short)
        step.samples_path = str(tmp_path / "00")
        list(step.run(everything[rank::tasks], rank, tasks))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"00-{rank:05d}.json" for rank in range(tasks)]
    merged = merged_samples(json.loads(file.read_text()) for file in files)
    assert {reason: len(found) for reason, found in merged.items()} == dict.fromkeys(
        ("kept", "dropped: short"), SAMPLES_PER_REASON
    )
    # Chosen by the hashes of the ids alone.
    kept = sorted(
        (each.id for each in everything if len(each.text) >= 3), key=lambda id: hashlib.md5(id.encode()).digest()
    )
    assert [sample.id for sample in merged["kept"]] == kept[:SAMPLES_PER_REASON]


def test_samples_show_images_and_the_text_around_them():
    samples = Samples()
    before, after = "a" * 1000, "b" * 1000
    page = to_engine(Document("interleaved", (before, ImagePart(picture(1)), after, ImagePart(b"broken")), "page"))
    page.media[1].url = "https://a.example/broken.png"
    samples.add("kept", page)
    samples.add("image dropped: size", page, "too small", images=[page.media[1]])
    ((_, _, kept),), ((_, _, dropped),) = samples._kept["kept"], samples._kept["image dropped: size"]
    text, image, more, broken = kept.parts
    assert text.startswith("…a") and more.endswith("b") and len(text) < 200 and image["image"]
    assert broken == {"image": "", "address": "https://a.example/broken.png"}
    assert (dropped.parts, dropped.detail) == ([broken], "too small")
