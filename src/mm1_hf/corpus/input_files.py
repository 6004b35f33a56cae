"""The files that a run reads, and the first step of a run that reads them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mm1_hf.corpus.steps import CountedReader
from mm1_hf.data.media import local_file
from mm1_hf.data.wall import require_unicode


@dataclass(frozen=True)
class InputFile:
    """
    A file of a run's input.

    Args:
        path: where it is.
        name: its path below the folder that all inputs have in common, with `/`: the same on every machine.
        folder: the input that it lies in, which no file that it names may lie outside of; the file's own folder if the input
            is the file itself.
    """

    path: str
    name: str
    folder: str


def input_files(inputs: Sequence[str], extensions: Sequence[str]) -> Iterator[InputFile]:
    """
    The files of some extensions, sorted by their names. Folders are searched through, but links to folders are not followed.

    Args:
        inputs: files and folders.
        extensions: extensions in lower case, such as `".html"`.
    """
    found: dict[str, InputFile] = {}
    common = _common_folder(inputs)
    for each in map(os.path.abspath, inputs):
        is_folder = os.path.isdir(each)
        for path in _walk(each) if is_folder else (each,):
            if path.lower().endswith(tuple(extensions)):
                name = os.path.relpath(path, common).replace(os.sep, "/")
                found[path] = InputFile(path, name, each if is_folder else os.path.dirname(each))
    yield from sorted(found.values(), key=lambda file: file.name)


def require_input(inputs: Sequence[str], extensions: Sequence[str]) -> None:
    """
    Checks that there is something to read.

    Args:
        inputs: files and folders.
        extensions: extensions that can be read.

    Raises:
        ValueError: an input does not exist, or holds no file with one of the extensions.
    """
    for each in inputs:
        if not os.path.exists(each):
            raise ValueError(f"There is no file or folder {each}. Give existing ones.")
        if next(input_files([each], extensions), None) is None:
            raise ValueError(
                f"{each} holds no file that can be read. Give files of these kinds: {', '.join(extensions)}."
            )


def require_inside(file: InputFile) -> None:
    """
    Checks that a file is not a link that leads out of its input, and that its path can be written down.

    Args:
        file: the file.

    Raises:
        Unusable: the file is outside, or its path is not valid Unicode.
    """
    require_unicode(file.path, ascii(file.name))
    local_file(file.path, file.folder)


class FileReader(CountedReader):
    """
    A reader of files. A task reads whole files, so there should be as many as tasks.

    Args:
        name: what the step does, in a few words.
        inputs: files and folders.
        extensions: extensions that it reads.

    Raises:
        ValueError: an input does not exist or holds no such file.
    """

    def __init__(self, name: str, inputs: Sequence[str], extensions: Sequence[str]) -> None:
        super().__init__(name)
        require_input(inputs, extensions)
        self.inputs, self.extensions = tuple(inputs), tuple(extensions)

    def files(self, rank: int, world_size: int) -> Iterator[InputFile]:
        """
        The files of one task, counted.

        Args:
            rank: number of the task.
            world_size: number of tasks.
        """
        for file in islice(input_files(self.inputs, self.extensions), rank, None, world_size):
            self.stat_update("files read")
            yield file


def _common_folder(inputs: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(each)) for each in inputs])


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(parent, file) for file in files)
