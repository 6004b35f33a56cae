"""
Images with captions, from pairs of an image, or its address, and an alt text: pairs whose caption or image is unfit are
dropped, and so are all but one of the pairs with the same image.

MM1 does not say how its captions were filtered. The rules of captions are those that public sets share
(`mm1_hf.corpus.pair_rules`), those of images the paper's for interleaved documents.

To change a rule, leave out a step or add one, copy this file and run it: mm1 data captions --way my_captions.py ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mm1_hf.corpus.dataset_files import CAPTION_FEATURES, FileFormat, WriteDataset, caption_record
from mm1_hf.corpus.downloads import DownloadRules
from mm1_hf.corpus.fetch_images import FetchImages
from mm1_hf.corpus.image_extras import extra_image_steps
from mm1_hf.corpus.image_steps import SizeOfImages, address_keys, content_keys
from mm1_hf.corpus.pair_rules import caption_rule, one_image
from mm1_hf.corpus.record_files import ReadPairs
from mm1_hf.corpus.repeats import CountHashes, DropDuplicates, FindRepeats
from mm1_hf.corpus.stages import Stage, data_folder, work_folder
from mm1_hf.corpus.steps import DocumentRule
from mm1_hf.corpus.storage import ReadDocuments, WriteDocuments
from mm1_hf.corpus.text_quality import bad_word_steps, language_steps


@dataclass(frozen=True)
class Settings:
    """
    Options of this way.

    Args:
        inputs: Parquet, JSON-lines and WebDataset files of pairs, or folders of them.
        output: folder of the run.
        format: format of the data set.
        image_column: column of the image or of its address, if it is not one of the layout `caption`.
        text_column: column of the alt text, if it is not one of the layout `caption`.
        download: whether images that are on the web are downloaded. Otherwise their pairs are dropped.
        agent: the name that servers are told when images are downloaded.
        language_model: file of a fastText model of languages. Unset, captions of all languages are kept.
        languages: labels of the languages to keep.
        bad_words: file of words and phrases, one on each line; captions that have one are dropped.
        drop_blurred: whether blurred images are dropped.
        drop_qr_codes: whether images that are mostly QR codes are dropped.
    """

    inputs: tuple[str, ...]
    output: str
    format: FileFormat = "parquet"
    image_column: str | None = None
    text_column: str | None = None
    download: bool = False
    agent: str = "mm1_hf"
    language_model: str | None = None
    languages: Sequence[str] = ("en",)
    bad_words: str | None = None
    drop_blurred: bool = False
    drop_qr_codes: bool = False


def stages(settings: Settings) -> list[Stage]:
    """
    The stages of this way.

    Args:
        settings: the options.

    Raises:
        ValueError: an input, a model or a list of words does not exist, or a package for an option is missing.
    """

    def work(name: str) -> str:
        return work_folder(settings.output, name)

    return [
        Stage(
            "pairs",
            [
                ReadPairs(settings.inputs, settings.image_column, settings.text_column),
                DocumentRule("one image", one_image),
                DocumentRule("captions", caption_rule),
                *language_steps(settings.language_model, settings.languages),
                *bad_word_steps(settings.bad_words),
                CountHashes(work("addresses"), address_keys, owned=True),
                WriteDocuments(work("pairs")),
            ],
        ),
        Stage("addresses", [FindRepeats(work("addresses"), work("repeated-addresses"), limit=1, owned=True)]),
        Stage(
            "images",
            [
                ReadDocuments(work("pairs")),
                DropDuplicates("same address", work("repeated-addresses"), address_keys, "image address seen before"),
                FetchImages(work("downloads"), DownloadRules(settings.agent) if settings.download else None),
                SizeOfImages(),
                *extra_image_steps(settings.drop_blurred, settings.drop_qr_codes),
                DocumentRule("image left", one_image),
                CountHashes(work("files"), content_keys, owned=True),
                WriteDocuments(work("images")),
            ],
        ),
        Stage("files", [FindRepeats(work("files"), work("repeated-files"), limit=1, owned=True)]),
        Stage(
            "captions",
            [
                ReadDocuments(work("images")),
                DropDuplicates("same image", work("repeated-files"), content_keys, "image seen before"),
                WriteDataset(data_folder(settings.output), settings.format, caption_record, CAPTION_FEATURES),
            ],
        ),
    ]
