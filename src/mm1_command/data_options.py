"""The options of `mm1 data`: those that all ways of building a data set share, and those of each way."""

import argparse
from collections.abc import Callable


FORMATS = ("parquet", "webdataset")
EXECUTORS = ("local", "slurm", "ray")


def add_ways(data: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """
    Adds a parser for every way.

    Args:
        data: parser of the verb.
        positive: reads a number of 1 or more.
    """
    ways = data.add_subparsers(dest="name", required=True, metavar="WAY")

    def add(name: str, help: str, inputs: str, needed: bool = True) -> argparse.ArgumentParser:
        way = ways.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        way.add_argument("inputs", nargs="+" if needed else "*", metavar="INPUT", help=inputs)
        way.add_argument(
            "output",
            metavar="OUTPUT",
            help="folder for the data set, its counts and the page; a run that was stopped goes on in it",
        )
        _add_run(way, positive)
        return way

    _add_documents(add("documents", "interleaved documents from web pages (MM1, appendix A.1)", _PAGES))
    _add_text(add("text", "text from web pages or texts (MM1, appendix A.2)", _TEXTS))
    _add_captions(add("captions", "images with captions from pairs of image and alt text", _PAIRS))
    _add_synthetic(
        add("synthetic", "captions that models write anew from an image and its alt text", _PAIRS), positive
    )
    _add_pages(add("pages", "pictures of pages with their text, from PDF files or drawn", _PDFS, needed=False))


_PAGES = "folder of HTML files, or WARC or Parquet files of pages, or a folder of these"
_TEXTS = "folder of HTML files, or WARC, Parquet or JSON-lines files, or a folder of these"
_PAIRS = "Parquet, JSON-lines or WebDataset file of pairs, or a folder of these"
_PDFS = "PDF file with a text layer, WebDataset archive of documents (PDFA, IDL), or a folder of these (default: none)"


def _add_run(way: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    add = way.add_argument
    add("--format", choices=FORMATS, default="parquet", help="format of the data set (default: parquet)")
    add(
        "--tasks",
        type=positive,
        default=1,
        metavar="N",
        help="parts that the work is cut into; a stopped run repeats the unfinished ones (default: 1)",
    )
    add("--workers", type=positive, default=1, metavar="N", help="tasks that run at the same time (default: 1)")
    add(
        "--executor",
        choices=EXECUTORS,
        default="local",
        help="where the tasks run: processes of this machine (default), jobs of Slurm, or a Ray cluster",
    )
    add("--partition", metavar="NAME", help="partition of Slurm")
    add("--time", metavar="HH:MM:SS", help="time limit of a Slurm job")
    add("--way", metavar="FILE", help="your own copy of the way's file of steps, in place of the package's")


def _add_downloads(way: argparse.ArgumentParser) -> None:
    add = way.add_argument
    add(
        "--download",
        action="store_true",
        help="download images that are on the web, if robots.txt and opt-out headers allow it (default: drop them)",
    )
    add(
        "--agent",
        default="mm1_hf",
        metavar="NAME",
        help="name that servers are told; an address for complaints may follow it (default: mm1_hf)",
    )


def _add_words(way: argparse.ArgumentParser) -> None:
    add = way.add_argument
    add(
        "--language-model",
        metavar="FILE",
        help="fastText model of languages, such as lid.176.bin (default: all languages)",
    )
    add(
        "--languages",
        nargs="+",
        default=["en"],
        metavar="NAME",
        help="languages to keep, as the model calls them (default: en)",
    )
    add("--bad-words", metavar="FILE", help="words and phrases, one on each line; texts with one of them are dropped")


def _add_image_extras(way: argparse.ArgumentParser) -> None:
    way.add_argument("--drop-blurred", action="store_true", help="also drop blurred images")
    way.add_argument("--drop-qr-codes", action="store_true", help="also drop images that are mostly QR codes")


def _add_documents(way: argparse.ArgumentParser) -> None:
    """Options of `mm1_hf.corpus.ways.documents`."""
    _add_downloads(way)
    _add_words(way)
    _add_image_extras(way)


def _add_text(way: argparse.ArgumentParser) -> None:
    """Options of `mm1_hf.corpus.ways.text`."""
    _add_words(way)
    add = way.add_argument
    add("--quality-model", metavar="FILE", help="fastText classifier of good texts (default: rules alone judge)")
    add("--quality-label", default="hq", metavar="NAME", help="the classifier's label of good texts (default: hq)")
    add(
        "--min-quality",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="smallest score of that label, from 0 to 1 (default: 0.5)",
    )


def _add_captions(way: argparse.ArgumentParser) -> None:
    """Options of `mm1_hf.corpus.ways.captions`."""
    add = way.add_argument
    add(
        "--image-column",
        metavar="NAME",
        help="column of the images or their addresses (default: the layout caption's)",
    )
    add("--text-column", metavar="NAME", help="column of the alt texts (default: the layout caption's)")
    _add_downloads(way)
    _add_words(way)
    _add_image_extras(way)


def _add_synthetic(way: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Options of `mm1_hf.corpus.ways.synthetic`."""
    add = way.add_argument
    for name, what in (("captioner", "describes the images"), ("fuser", "fuses description and alt text")):
        add(
            f"--{name}",
            metavar="MODEL",
            help=f"folder or Hub id of the model that {what}, or its name at the endpoint",
        )
        add(
            f"--{name}-endpoint",
            metavar="URL",
            help=f"OpenAI-style server that {what}, such as http://localhost:8000/v1",
        )
    add(
        "--batch-size",
        type=positive,
        default=8,
        metavar="N",
        help="pairs that a model in this process is asked about at once (default: 8)",
    )
    add(
        "--requests",
        type=positive,
        default=16,
        metavar="N",
        help="requests to an endpoint that are under way in each task (default: 16)",
    )


def _add_pages(way: argparse.ArgumentParser) -> None:
    """Options of `mm1_hf.corpus.ways.pages`."""
    add = way.add_argument
    add(
        "--texts",
        action="append",
        default=[],
        metavar="PATH",
        help="text, JSON-lines, Parquet or HTML file, or folder of these, to draw as pages; may be given several times",
    )
    add("--figures", type=int, default=0, metavar="N", help="charts and tables to draw (default: 0)")
    add(
        "--fonts", metavar="DIR", help="folder of fonts to draw with (default: the fonts that matplotlib brings along)"
    )
    add(
        "--longest-side",
        type=int,
        default=1344,
        metavar="N",
        help="longer side of the pictures, in pixels (default: 1344)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of what is drawn (default: 0)")
