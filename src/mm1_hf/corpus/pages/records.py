"""Pages as documents on their way through a run, and as the records that are written in the end."""

from typing import Any

from datasets import Features, Image, List, Value
from datatrove.data import Document as EngineDocument

from mm1_hf.corpus.bridge import image_of, to_engine
from mm1_hf.corpus.dataset_files import CAPTION_FEATURES
from mm1_hf.corpus.pages.page import Page
from mm1_hf.data.documents import Document, ImagePart
from mm1_hf.grounding.text import RegionFormat


# Keys of a document's metadata: the lines with their places, and questions about the page with their answers.
LINES, QUESTIONS = "lines", "questions"

_PLACED = {"text": Value("string"), "box": List(Value("float32")), "region": Value("string")}
# A page and its text, in the layout `caption`, and the lines and words with their places.
PAGE_FEATURES = Features({**CAPTION_FEATURES, "lines": List(Features({**_PLACED, "words": List(Features(_PLACED))}))})
# A page and questions about it, in the layout `chat`.
QUESTION_FEATURES = Features(
    {
        "images": List(Image()),
        "messages": List(Features({"role": Value("string"), "content": Value("string")})),
        "name": Value("string"),
    }
)


def page_document(page: Page, text: str, questions: list[tuple[str, str]]) -> EngineDocument:
    """
    A page as a document of one image and its text.

    Args:
        page: the page.
        text: what is to be learned to say about the picture: the text of the page, or the numbers of a chart.
        questions: questions about the page, with their answers.
    """
    document = to_engine(Document("caption", (ImagePart(page.picture), text), page.name))
    document.metadata[LINES] = page.line_records(RegionFormat())
    document.metadata[QUESTIONS] = [list(pair) for pair in questions]
    return document


def page_record(document: EngineDocument) -> dict[str, Any]:
    """
    The page and its text, as [`PAGE_FEATURES`] describes them.

    Args:
        document: a document that [`page_document`] made.
    """
    return {
        "image": _image(document),
        "text": document.text,
        "name": document.id,
        "lines": document.metadata[LINES],
    }


def question_record(document: EngineDocument) -> dict[str, Any]:
    """
    The page and the questions about it, as [`QUESTION_FEATURES`] describes them.

    Args:
        document: a document that [`page_document`] made with questions.
    """
    messages = []
    for question, answer in document.metadata[QUESTIONS]:
        mark = "" if messages else "<image>\n"
        messages += [{"role": "user", "content": f"{mark}{question}"}, {"role": "assistant", "content": answer}]
    return {"images": [_image(document)], "messages": messages, "name": document.id}


def _image(document: EngineDocument) -> dict[str, Any]:
    (medium,) = document.media
    return {"bytes": image_of(medium).read(), "path": None}
