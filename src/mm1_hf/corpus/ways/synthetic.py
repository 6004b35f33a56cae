"""
Synthetic captions: an image and its alt text become an image with two captions (VeCap; MM1, section 3.2).

A captioner describes what it sees in each image. A language model fuses its description with the alt text, which may
know names and places. Pairs of which either answer is no good are left out. These steps are VeCap's; its prompts and
filters were never published, so these are our own. Training draws one of the two captions: see the layout
`two_captions`.

Images are not downloaded here: `mm1 data captions` does that, and filters the pairs.

To change a prompt or a rule, copy this file and run it: mm1 data synthetic --way my_captions.py ...
"""

from dataclasses import dataclass
from functools import partial

from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.captioning.checks import alt_text_fault, caption_fault, fusion_fault
from mm1_hf.corpus.captioning.steps import (
    TWO_CAPTIONS_FEATURES,
    TakeAnswers,
    provenance_of,
    two_captions_record,
)
from mm1_hf.corpus.captioning.writers import WRITTEN, CaptionWriter, writer_of
from mm1_hf.corpus.dataset_files import FileFormat, WriteDataset
from mm1_hf.corpus.fetch_images import FetchImages
from mm1_hf.corpus.pair_rules import one_image
from mm1_hf.corpus.record_files import ReadPairs
from mm1_hf.corpus.stages import Stage, data_folder, work_folder
from mm1_hf.corpus.steps import DocumentRule
from mm1_hf.corpus.storage import ReadDocuments, WriteDocuments


# Settings that a resumed run may change: a server that died may come back at another address.
MAY_CHANGE = ("captioner_endpoint", "fuser_endpoint", "requests")

DESCRIBE = "Describe this image in one or two plain sentences. Name only what can be seen."
FUSE = """\
Here are two texts about one image. The first comes from a web page: it may know names and places, and it may be wrong
or say little. The second says what can be seen.

First: {alt_text}
Second: {description}

Write one caption of the image in plain English, of one to three sentences. Keep the names and facts of the first text
that fit what can be seen. Add nothing that neither text says. Write only the caption."""


@dataclass(frozen=True)
class Settings:
    """
    What a run makes of which pairs.

    Args:
        inputs: Parquet, JSON-lines or WebDataset files of pairs, or folders of these.
        output: folder of the run.
        format: format of the data set.
        captioner: folder or Hub id of the model that describes images; with `captioner_endpoint`, its name there, which
            may be left out if it is the only one.
        captioner_endpoint: address of an OpenAI-style server with the captioner, such as `http://localhost:8000/v1`.
            Unset, the captioner is loaded into this process.
        fuser: folder or Hub id of the language model that fuses both texts; with `fuser_endpoint`, its name there.
        fuser_endpoint: address of an OpenAI-style server with the language model.
        batch_size: number of pairs that a model in this process is asked about at once.
        requests: number of requests to an endpoint that are under way in each task.
    """

    inputs: tuple[str, ...]
    output: str
    format: FileFormat = "parquet"
    captioner: str | None = None
    captioner_endpoint: str | None = None
    fuser: str | None = None
    fuser_endpoint: str | None = None
    batch_size: int = 8
    requests: int = 16


def stages(settings: Settings) -> list[Stage]:
    """
    The stages of a run.

    Args:
        settings: what the run makes of which pairs.

    Raises:
        ValueError: an input does not exist, a model is not named, or an endpoint has no address or several models.
        ConnectionError: the name of a model is to be asked of an endpoint, and it does not answer.
    """
    captioner = writer_of(settings.captioner, settings.captioner_endpoint, "captioner", DESCRIBE, sees=True)
    fuser = writer_of(settings.fuser, settings.fuser_endpoint, "fuser", FUSE, sees=False)
    pairs, described = (work_folder(settings.output, name) for name in ("pairs", "described"))
    descriptions, captions = (work_folder(settings.output, name) for name in ("descriptions", "captions"))
    asking = {"batch_size": settings.batch_size, "requests": settings.requests}
    record = partial(
        two_captions_record,
        provenance=provenance_of(description=captioner.provenance(), synthetic_caption=fuser.provenance()),
    )
    return [
        Stage(
            "pairs",
            [
                ReadPairs(settings.inputs),
                DocumentRule("alt texts", alt_text_rule),
                DocumentRule("one image", one_image),
                FetchImages(work_folder(settings.output, "downloads")),
                DocumentRule("image left", one_image),
                WriteDocuments(pairs),
            ],
        ),
        Stage("describe", [ReadDocuments(pairs), captioner.step(descriptions, **asking)]),
        Stage(
            "fuse",
            [
                ReadDocuments(pairs),
                TakeAnswers(
                    "descriptions", descriptions, "description", partial(description_rule, captioner=captioner)
                ),
                WriteDocuments(described),
                fuser.step(captions, **asking),
            ],
        ),
        Stage(
            "captions",
            [
                ReadDocuments(described),
                TakeAnswers("fused captions", captions, "synthetic_caption", partial(caption_rule, fuser=fuser)),
                WriteDataset(data_folder(settings.output), settings.format, record, TWO_CAPTIONS_FEATURES),
            ],
        ),
    ]


def alt_text_rule(document: EngineDocument) -> str | None:
    """
    The reason to drop a pair for its alt text.

    Args:
        document: the pair.
    """
    return alt_text_fault(document.text)


def description_rule(text: str, document: EngineDocument, captioner: CaptionWriter) -> str | None:
    """
    The reason not to use what the captioner wrote.

    Args:
        text: the description.
        document: the pair.
        captioner: who wrote it.
    """
    return caption_fault(text, captioner.instructions(), [document.text])


def caption_rule(text: str, document: EngineDocument, fuser: CaptionWriter) -> str | None:
    """
    The reason not to use what the language model made of both texts.

    Args:
        text: the fused caption.
        document: the pair with its description.
        fuser: who wrote it.
    """
    texts = [document.text, document.metadata[WRITTEN]["description"]]
    return caption_fault(text, fuser.instructions(), texts) or fusion_fault(text, texts)
