"""
Texts, as MM1 prepares them (appendix A.2): what surrounds the body of a page is removed, texts that are too short,
profane or of low quality are dropped, and of equal and of nearly equal texts one stays. `mm1_hf.corpus.text_quality`
says where the rules are from.

To change a rule, leave out a step or add one, copy this file and run it: mm1 data text --way my_text.py ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mm1_hf.corpus.dataset_files import TEXT_FEATURES, FileFormat, WriteDataset, text_record
from mm1_hf.corpus.near_duplicates import near_duplicate_stages
from mm1_hf.corpus.repeats import CountHashes, DropDuplicates, FindRepeats, text_hashes
from mm1_hf.corpus.stages import Stage, data_folder, work_folder
from mm1_hf.corpus.storage import ReadDocuments, WriteDocuments
from mm1_hf.corpus.text_inputs import ReadTexts
from mm1_hf.corpus.text_quality import (
    bad_word_steps,
    language_steps,
    line_quality_steps,
    quality_model_steps,
    repetition_and_quality_steps,
)


@dataclass(frozen=True)
class Settings:
    """
    Options of this way.

    Args:
        inputs: HTML, WARC, Parquet, JSON-lines and text files, or folders of them.
        output: folder of the run.
        format: format of the data set.
        language_model: file of a fastText model of languages. Unset, texts of all languages go on to the other rules,
            which are made for English.
        languages: labels of the languages to keep.
        quality_model: file of a fastText classifier of quality. Unset, only rules judge.
        quality_label: the classifier's label of good texts.
        min_quality: smallest score of that label, from 0 to 1.
        bad_words: file of words and phrases, one on each line; texts that have one are dropped.
    """

    inputs: tuple[str, ...]
    output: str
    format: FileFormat = "parquet"
    language_model: str | None = None
    languages: Sequence[str] = ("en",)
    quality_model: str | None = None
    quality_label: str = "hq"
    min_quality: float = 0.5
    bad_words: str | None = None


def stages(settings: Settings) -> list[Stage]:
    """
    The stages of this way.

    Args:
        settings: the options.

    Raises:
        ValueError: an input, a model or a list of words does not exist, or fastText is missing.
    """

    def work(name: str) -> str:
        return work_folder(settings.output, name)

    return [
        Stage(
            "texts",
            [
                ReadTexts(settings.inputs),
                *language_steps(settings.language_model, settings.languages),
                *repetition_and_quality_steps(),
                *line_quality_steps(),
                *quality_model_steps(settings.quality_model, settings.quality_label, settings.min_quality),
                *bad_word_steps(settings.bad_words),
                CountHashes(work("hashes"), text_hashes, owned=True),
                WriteDocuments(work("texts")),
            ],
        ),
        Stage("hashes", [FindRepeats(work("hashes"), work("repeated-hashes"), limit=1, owned=True)]),
        Stage(
            "duplicates",
            [
                ReadDocuments(work("texts")),
                DropDuplicates("same text", work("repeated-hashes"), text_hashes),
                WriteDocuments(work("different")),
            ],
        ),
        *near_duplicate_stages(
            settings.output,
            work("different"),
            [WriteDataset(data_folder(settings.output), settings.format, text_record, TEXT_FEATURES)],
        ),
    ]
