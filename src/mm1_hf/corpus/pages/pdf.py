"""Reads the pages of PDF files: their pictures, and the words of their text layer in reading order."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO, cast

from mm1_hf.corpus.pages import pdf_process
from mm1_hf.corpus.pages.page import Line, Page, Word
from mm1_hf.corpus.pages.pdf_process import SKEWED, PixelBox, upright
from mm1_hf.corpus.pages.reading_order import reading_order
from mm1_hf.data.documents import Unusable
from mm1_hf.grounding.regions import Box


# Processor time of a page, and memory of the process that draws it: many times what a page of text needs.
CPU_SECONDS = 30
MEMORY_BYTES = 1 << 31


class PdfReader:
    """
    Draws and reads files in a process of its own, so that no file can take down this one. A page that makes the PDF
    library crash or takes more than `cpu_seconds` or `memory_bytes` ends its document; the next one gets a new process.
    To be used in a `with` statement.

    Args:
        longest_side: the longer side of the page pictures, in pixels.
        cpu_seconds: processor time that opening a document, and each of its pages, may take.
        memory_bytes: memory that the process may take.
    """

    def __init__(
        self, longest_side: int = 1344, *, cpu_seconds: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._command = [
            sys.executable,
            "-P",
            pdf_process.__file__,
            str(longest_side),
            str(cpu_seconds),
            str(memory_bytes),
        ]
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "PdfReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def pages(self, source: bytes | str, name: str) -> Iterator[tuple[str, Page | Unusable]]:
        """
        Yields the name of each page, and the page or the reason why it cannot be used. A reason under the name of the
        document is that of the whole document, or of the pages that would follow.

        Args:
            source: the content of a PDF file with a text layer, or its path.
            name: name of the document. Its pages are named after it and their number, from 1.
        """
        answers = self._ask(source)
        last, ended = 0, False
        try:
            while (answer := _receive(answers)) is not None:
                header, picture = answer
                if "end" in header:
                    ended = True
                    return
                page_name = name
                if "page" in header:
                    last = header["page"] + 1
                    page_name = f"{name}#{last}"
                if "reason" in header:
                    yield page_name, Unusable(header["reason"], header["detail"])
                else:
                    lines = _lines(header["words"])
                    yield page_name, Page(page_name, picture, header["height"], header["width"], lines)
        finally:
            # Also where the caller takes no more pages: the next document's answers must not follow those of this one.
            if not ended:
                self._end()
        yield f"{name}#{last + 1}", Unusable("page too costly", "the PDF library crashed or passed its limits")

    def _ask(self, source: bytes | str) -> BinaryIO:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if _receive(cast(BinaryIO, self._process.stdout)) is None:
                self._end()
                raise RuntimeError(f"The process that draws PDF files does not start: {' '.join(self._command)}")
        requests, answers = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        if isinstance(source, bytes):
            requests.write(json.dumps({"size": len(source)}).encode() + b"\n" + source)
        else:
            requests.write(json.dumps({"path": os.path.abspath(source)}).encode() + b"\n")
        requests.flush()
        return answers

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _receive(answers: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message, or `None` if the process ended before its end."""
    size = answers.read(4)
    header = answers.read(int.from_bytes(size, "big")) if len(size) == 4 else b""
    if len(header) < int.from_bytes(size, "big") or not header:
        return None
    message = json.loads(header)
    picture = answers.read(message["picture"])
    return (message, picture) if len(picture) == message["picture"] else None


def _lines(words: list[tuple[str, PixelBox, int]]) -> tuple[Line, ...]:
    """
    The lines of a page. Words that are written in another direction, such as the label of an axis, follow those that are
    written as most words of the page.
    """
    by_turn: dict[int, list[Word]] = defaultdict(list)
    for text, box, turn in words:
        by_turn[turn].append(Word(text, Box(*upright(box, turn))))
    lines = []
    for turn, turned in sorted(by_turn.items(), key=lambda item: (-len(item[1]), item[0])):
        back = turn if turn == SKEWED else (4 - turn) % 4
        for line in reading_order(turned):
            lines.append(Line(tuple(Word(word.text, Box(*upright(word.box, back))) for word in line.words)))
    return tuple(lines)
