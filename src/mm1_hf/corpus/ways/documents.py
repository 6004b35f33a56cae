"""
Interleaved documents from web pages, as MM1 builds them (appendix A.1): HTML files, WARC files or Parquet files of pages
become texts with images in place. Pages and images are filtered by the paper's rules, images that repeat in the data set are
dropped. The paper says nothing of the texts; here those of low quality and near-duplicates are dropped by the rules of
`mm1_hf.corpus.ways.text` that do not change a text. They are made for English prose.

To change a rule, leave out a step or add one, copy this file and run it: mm1 data documents --way my_documents.py ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mm1_hf.corpus.dataset_files import FileFormat, WriteDataset
from mm1_hf.corpus.downloads import DownloadRules
from mm1_hf.corpus.fetch_images import FetchImages
from mm1_hf.corpus.filters import PageRules
from mm1_hf.corpus.image_extras import extra_image_steps
from mm1_hf.corpus.image_steps import (
    AtLeastOneImage,
    FirstOnPage,
    NumberOfImages,
    SizeOfImages,
    WordsInAddresses,
    address_key,
    address_keys,
    content_key,
    content_keys,
)
from mm1_hf.corpus.input_files import input_files
from mm1_hf.corpus.near_duplicates import near_duplicate_stages
from mm1_hf.corpus.page_files import WARC, ReadPages
from mm1_hf.corpus.repeats import CountHashes, DropRepeatedImages, FindRepeats
from mm1_hf.corpus.stages import Stage, data_folder, work_folder
from mm1_hf.corpus.storage import ReadDocuments, WriteDocuments
from mm1_hf.corpus.text_quality import bad_word_steps, language_steps, repetition_and_quality_steps
from mm1_hf.corpus.warc_images import IndexWarcImages


@dataclass(frozen=True)
class Settings:
    """
    Options of this way.

    Args:
        inputs: HTML, WARC and Parquet files, or folders of them.
        output: folder of the run.
        format: format of the data set.
        download: whether images that are on the web are downloaded. Otherwise they are dropped, unless they are in the WARC
            files of the pages.
        agent: the name that servers are told when images are downloaded.
        language_model: file of a fastText model of languages. Unset, pages of all languages are kept.
        languages: labels of the languages to keep.
        bad_words: file of words and phrases, one on each line; pages that have one are dropped.
        drop_blurred: whether blurred images are dropped.
        drop_qr_codes: whether images that are mostly QR codes are dropped.
    """

    inputs: tuple[str, ...]
    output: str
    format: FileFormat = "parquet"
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
    rules = PageRules()

    def work(name: str) -> str:
        return work_folder(settings.output, name)

    archives = [file.path for file in input_files(settings.inputs, WARC)]
    return [
        Stage(
            "pages",
            [
                ReadPages(settings.inputs),
                NumberOfImages(rules),
                *language_steps(settings.language_model, settings.languages),
                *repetition_and_quality_steps(),
                *bad_word_steps(settings.bad_words),
                CountHashes(work("addresses"), address_keys),
                WriteDocuments(work("pages")),
            ],
        ),
        Stage("addresses", [FindRepeats(work("addresses"), work("repeated-addresses"), rules.max_repeats)]),
        *([Stage("warc-images", [IndexWarcImages(archives, work("warc-images"))])] if archives else []),
        Stage(
            "images",
            [
                ReadDocuments(work("pages")),
                DropRepeatedImages(work("repeated-addresses"), address_key, "addresses of images"),
                WordsInAddresses(rules),
                FirstOnPage(),
                AtLeastOneImage(),
                FetchImages(
                    work("downloads"),
                    DownloadRules(settings.agent) if settings.download else None,
                    work("warc-images") if archives else None,
                ),
                SizeOfImages(rules),
                *extra_image_steps(settings.drop_blurred, settings.drop_qr_codes),
                CountHashes(work("files"), content_keys),
                WriteDocuments(work("images")),
            ],
        ),
        Stage("files", [FindRepeats(work("files"), work("repeated-files"), rules.max_repeats)]),
        Stage(
            "repeats",
            [
                ReadDocuments(work("images")),
                DropRepeatedImages(work("repeated-files"), content_key, "files of images"),
                FirstOnPage(),
                AtLeastOneImage(),
                WriteDocuments(work("documents")),
            ],
        ),
        *near_duplicate_stages(
            settings.output,
            work("documents"),
            [WriteDataset(data_folder(settings.output), settings.format)],
        ),
    ]
