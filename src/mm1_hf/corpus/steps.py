"""
Pure rules as steps of datatrove that count what they keep and drop by reason, and keep samples of both.

A rule is a function that knows nothing of datatrove. [`DocumentRule`] and [`ImageRule`] make a step of a rule that only
judges, [`Change`] of a function that makes another document, and [`EngineFilter`] of a filter of datatrove. What needs
documents in batches, or may fail for a reason that lies outside of the documents, inherits from [`CountedStep`].
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice

from datatrove.data import Document as EngineDocument
from datatrove.data import Media
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result

from mm1_hf.corpus.bridge import Documents, image_of
from mm1_hf.corpus.samples import Samples
from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.wall import result_or_reason


# Labels of the statistics; the reason follows those that end in a colon.
KEPT = "kept"
DROPPED = "dropped: "
IMAGE_KEPT = "image kept"
IMAGE_DROPPED = "image dropped: "

# What a reader finds: a document, or an empty one, which has only an id, with the reason why it cannot be one.
Found = EngineDocument | tuple[EngineDocument, Unusable]


class CountedStep(PipelineStep):
    """
    A step that counts the documents and images that it keeps, and those that it drops by reason, in datatrove's statistics.

    Args:
        name: what the step does, in a few words, for logs and the page of a run.
    """

    type = "MM1"
    # How many documents `process_batch` gets at once.
    batch_size = 1

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__()
        self.samples = Samples()
        # Where the samples go: a folder and a beginning of the file's name. Set when the step is part of a run.
        self.samples_path: str | None = None

    @abstractmethod
    def process(self, document: EngineDocument) -> EngineDocument:
        """
        What becomes of a document. Whatever exception it raises is the document's reason to be dropped.

        Args:
            document: the document, which may be changed.

        Raises:
            Unusable: the document is dropped.
        """

    def process_batch(self, documents: list[EngineDocument]) -> list[EngineDocument | Unusable]:
        """
        What becomes of several documents, each a document or the reason to drop it. An exception that is raised here ends
        the task: it is for what is not the fault of a document, such as a server that does not answer.

        Args:
            documents: up to `batch_size` documents.
        """
        return [result_or_reason(self.process, document, document.id) for document in documents]

    def drop_image(self, document: EngineDocument, image: Media, why: Unusable) -> None:
        """
        Removes an image from a document, and counts it.

        Args:
            document: the document.
            image: one of its images.
            why: why it is dropped.
        """
        document.media = [medium for medium in document.media if medium is not image]
        label = f"{IMAGE_DROPPED}{why.reason}"
        self.stat_update(label)
        self.samples.add(label, document, why.detail, images=[image])

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Passes on what `process_batch` makes of the documents. At the end, the samples are written."""
        documents: Iterator[EngineDocument] = iter(data or ())
        while True:
            batch: list[EngineDocument] = list(islice(documents, self.batch_size))
            if not batch:
                break
            with self.track_time():
                results = self.process_batch(batch)
            for document, result in zip(batch, results, strict=True):
                if self.count(document, result):
                    yield result
        self.end(rank)

    def count(self, document: EngineDocument, result: EngineDocument | Unusable) -> bool:
        """
        Counts a document, offers it as a sample, and says whether it is kept.

        Args:
            document: the document as it was before the step, for a document that is dropped.
            result: what became of it.
        """
        if isinstance(result, Unusable):
            self.stat_update(f"{DROPPED}{result.reason}")
            self.samples.add(f"{DROPPED}{result.reason}", document, result.detail)
            return False
        self.stat_update(KEPT)
        if result.media:
            self.stat_update(IMAGE_KEPT, value=len(result.media))
        self.samples.add(KEPT, result)
        return True

    def end(self, rank: int) -> None:
        """
        Writes the samples, if the step is part of a run.

        Args:
            rank: number of the task.
        """
        if self.samples_path is not None:
            self.samples.write(f"{self.samples_path}-{rank:05d}.json")


class CountedReader(CountedStep):
    """
    A first step of a run: it makes documents of files, and counts what cannot become one.
    """

    type = "MM1 reader"

    @abstractmethod
    def read(self, rank: int, world_size: int) -> Iterator[Found]:
        """
        The documents of one task. What cannot become a document is a pair of an empty document, which has only an id, and
        the reason.

        Args:
            rank: number of the task.
            world_size: number of tasks. Together they read everything once.
        """

    def process(self, document: EngineDocument) -> EngineDocument:
        """A reader gets no documents of a step before it; those pass unchanged."""
        return document

    def run(self, data: Documents = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents that the task reads. At the end, the samples are written."""
        documents = self.read(rank, world_size)
        while True:
            with self.track_time():
                found = next(documents, None)
            if found is None:
                break
            document, result = found if isinstance(found, tuple) else (found, found)
            if self.count(document, result):
                yield result
        self.end(rank)


class DocumentRule(CountedStep):
    """
    Drops the documents that a rule finds unfit.

    Args:
        name: what the step does.
        rule: takes a datatrove document and returns the reason to drop it, or `None` to keep it.
    """

    def __init__(self, name: str, rule: Callable[[EngineDocument], str | None]) -> None:
        super().__init__(name)
        self.rule = rule

    def process(self, document: EngineDocument) -> EngineDocument:
        if reason := self.rule(document):
            raise Unusable(reason)
        return document


class ImageRule(CountedStep):
    """
    Drops the images that a rule finds unfit. The text around them and the document stay.

    Args:
        name: what the step does.
        rule: takes an image and returns the reason to drop it, or `None` to keep it. Whatever it raises is a reason too.
    """

    def __init__(self, name: str, rule: Callable[[ImagePart], str | None]) -> None:
        super().__init__(name)
        self.rule = rule

    def process(self, document: EngineDocument) -> EngineDocument:
        for image in list(document.media):
            found = result_or_reason(self.rule, image_of(image), document.id)
            if isinstance(found, str):
                found = Unusable(found, image.url or image.path or "")
            if found is not None:
                self.drop_image(document, image, found)
        return document


class Change(CountedStep):
    """
    Replaces every document by what a function makes of it.

    Args:
        name: what the step does.
        function: takes and returns a datatrove document; it raises `Unusable` to drop it.
    """

    def __init__(self, name: str, function: Callable[[EngineDocument], EngineDocument]) -> None:
        super().__init__(name)
        self.function = function

    def process(self, document: EngineDocument) -> EngineDocument:
        return self.function(document)


class EngineFilter(CountedStep):
    """
    A filter of datatrove, counted by its reasons. The filter may not change the text of documents that have images.

    Args:
        filter: the filter of datatrove.
        name: what it does. Unset, its own name.
    """

    def __init__(self, filter: BaseFilter, name: str | None = None) -> None:
        super().__init__(name or str(filter.name))
        self.filter = filter

    def process(self, document: EngineDocument) -> EngineDocument:
        kept, reason = get_filter_result(self.filter.filter(document))
        if not kept:
            raise Unusable(str(reason or self.filter.name))
        return document
