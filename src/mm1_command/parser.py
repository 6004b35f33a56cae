"""The verbs and options of the `mm1` command."""

import argparse
import re
import sys
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from .data_options import add_ways


CONNECTORS = ("c_abstractor", "average", "attention", "linear", "mlp")
# What `mm1 convert` reads; each kind has a script in `conversion/` too.
CONVERSION_KINDS = ("decoder", "llava", "open_clip", "aim", "honeybee", "axlearn", "gguf")


_SERVE = """\
DIR is the folder or Hub id of the model. The other options are those of `transformers serve`, such as:
  --host NAME    address to listen on (default: localhost)
  --port N       port to listen on (default: 8000)
  --device NAME  device of the model, such as cuda:0 or cpu (default: auto)
  --dtype NAME   dtype of the weights (default: that of the saved model)
  --enable-cors  accept requests of web pages from anywhere
`transformers serve --help` lists them all. With --engine vllm they are those of `vllm serve`."""
_CHAT = """\
NAME is the name of the served model, and URL the address of its server (default: http://localhost:8000). Settings are those
of generation, such as max_new_tokens=64. `transformers chat --help` lists the options."""


def build_parser() -> argparse.ArgumentParser:
    """The command's verbs and options. A test pins them: adding one is a decision."""
    parser = argparse.ArgumentParser(prog="mm1", description="MM1 and MM1.5 on Hugging Face.")
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version of the package"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)

    def add(verb: str, help: str, **options: Any) -> argparse.ArgumentParser:
        # What `--help` lists in a line is also the first sentence of the verb's own help.
        added = verbs.add_parser(verb, help=help, description=f"{help[0].upper()}{help[1:]}.", **options)
        added.set_defaults(passes_on=added.passes_on)
        return added

    quickstart = add(
        "quickstart", "assemble an MM1 from embedded parts, train it on easy-VQA, measure it, write a report"
    )
    quickstart.add_argument(
        "--output", default="quickstart-mm1", metavar="DIR", help="folder for the model and the report"
    )
    quickstart.add_argument("--steps", type=_positive, default=200, metavar="N", help="training steps (default: 200)")
    quickstart.add_argument(
        "--questions",
        type=_positive,
        default=1000,
        metavar="N",
        help="smallest number of held-out questions to measure on (default: 1000)",
    )
    quickstart.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the training (default: 0)")

    ask = add("ask", "answer one question about an image with a saved model")
    ask.add_argument("--model", required=True, metavar="DIR", help="folder or Hub id of a saved model")
    ask.add_argument("--image", required=True, metavar="FILE", help="file or URL of the image")
    ask.add_argument("question", help="the question, in quotes")

    assemble = add("assemble", "make a new model from an image encoder and a decoder, for `mm1 pretrain` to train")
    assemble.add_argument("vision", metavar="VISION", help="folder or Hub id of the image encoder")
    assemble.add_argument("text", metavar="TEXT", help="folder or Hub id of the decoder, with its tokenizer")
    assemble.add_argument(
        "output", metavar="DIR", help="folder for the model and its processor; it must not exist yet, or be empty"
    )
    assemble.add_argument(
        "--connector",
        choices=CONNECTORS,
        default="c_abstractor",
        metavar="TYPE",
        help=f"type of the connector: {', '.join(CONNECTORS)} (default: c_abstractor)",
    )
    assemble.add_argument(
        "--tokens",
        type=_positive,
        metavar="N",
        help="image tokens per tile (default: 144; linear and mlp keep one per patch)",
    )
    assemble.add_argument(
        "--tile",
        type=_positive,
        metavar="PIXELS",
        help="side of a tile (default: the encoder's image size; for another, its position embeddings are interpolated)",
    )

    inspect = add("inspect", "show a training row as the model sees it")
    inspect.add_argument("data", nargs="?", metavar="DATA", help="file, folder, pattern or Hub id of a data set")
    inspect.add_argument("--model", metavar="DIR", help="folder or Hub id of the model whose processor reads DATA")
    inspect.add_argument("--config", metavar="FILE", help="settings file of a run, in place of DATA")
    inspect.add_argument(
        "--command", choices=("pretrain", "sft"), help="which command the settings are for (default: pretrain)"
    )
    inspect.add_argument(
        "--layout",
        metavar="NAME",
        help="layout of DATA: chat, which reads TRL's columns (default), or a layout of pre-training",
    )
    inspect.add_argument(
        "--image-folder",
        metavar="DIR",
        help="folder where the relative paths of the images start (default: the folder of DATA)",
    )
    inspect.add_argument("--split", metavar="NAME", help="split of DATA (default: train)")
    inspect.add_argument(
        "--row", type=int, default=0, metavar="N", help="index of the row, counted from 0 (default: 0)"
    )
    inspect.add_argument(
        "--labels",
        choices=("mm1", "trl"),
        help="mm1 (default), or trl to show the labels of TRL's collator beside them",
    )
    inspect.add_argument("--html", metavar="FILE", help="also write the row as an HTML page")

    recipe = add(
        "recipe", "settings of runs over public data by the papers' weights: list them, write one, check its sources"
    )
    recipe.add_argument(
        "name", nargs="?", metavar="NAME", help="name of a recipe, such as mm1.5-3b-sft (default: list all)"
    )
    recipe.add_argument("--output", metavar="FILE", help="write the settings file there, in place of printing it")
    recipe.add_argument("--check", action="store_true", help="read one record of each source, and say what it became")
    recipe.add_argument(
        "--data", metavar="DIR", help="folder with a local copy of each source, under its name (default: the Hub)"
    )

    plan = add("plan", "what a stage of training needs: FLOPs, memory, tokens and time")
    plan.add_argument("preset", nargs="?", metavar="PRESET", help="name of a preset, such as mm1-3b")
    plan.add_argument(
        "--recipe", metavar="NAME", help="an open recipe of `mm1 recipe`, in place of a preset and a stage"
    )
    plan.add_argument("--gpus", type=_positive, required=True, metavar="N", help="number of GPUs")
    plan.add_argument(
        "--stage",
        choices=("pretrain", "continual", "sft"),
        help="stage of training (default: pretrain)",
    )
    plan.add_argument(
        "--tp",
        type=_positive,
        metavar="N",
        help="size of a tensor-parallel group (default: the largest up to 8 that fits)",
    )
    plan.add_argument(
        "--ep", type=_positive, metavar="N", help="size of an expert-parallel group (default: the largest that fits)"
    )
    plan.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute activations in the backward pass"
    )
    plan.add_argument("--memory", type=float, default=80.0, metavar="GB", help="memory of one GPU (default: 80)")
    plan.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the peak FLOP/s that is reached (default: 0.4)",
    )
    plan.add_argument(
        "--peak-tflops",
        type=float,
        default=989.0,
        metavar="N",
        help="peak of one GPU in bfloat16 TFLOP/s (default: 989, an H100)",
    )

    pretrain = add("pretrain", "pre-train a model on a mixture of sources, or resume a stopped run")
    sft = add("sft", "fine-tune a model on a mixture of conversations, or resume a stopped run")
    for training in (pretrain, sft):
        training.add_argument("--config", required=True, metavar="FILE", help="settings file of the run, YAML or JSON")

    _add_eval(add("eval", "measure a model on tasks, few-shot or not, or compare two such runs"))

    add_ways(
        add("data", "build a data set from web pages, pairs, texts or PDF files, on one machine or many"), _positive
    )

    convert = add("convert", "convert a foreign checkpoint to a model, or to a part of one, with equal outputs")
    convert.add_argument(
        "kind", choices=CONVERSION_KINDS, metavar="KIND", help=f"kind of checkpoint: {', '.join(CONVERSION_KINDS)}"
    )
    convert.add_argument("source", metavar="SOURCE", help="file, folder or Hub id of the checkpoint")
    convert.add_argument("output", metavar="DIR", help="folder to write to; it must not exist yet")
    convert.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the written weights (default: the checkpoint's)",
    )
    convert.add_argument(
        "--max-shard-size",
        default="1GB",
        metavar="SIZE",
        help="largest size of a written file, which also bounds the memory used (default: 1GB)",
    )
    convert.add_argument(
        "--allow-pickle", action="store_true", help="also read pickled weights, with torch's weights_only=True"
    )

    push = add("push", "publish a saved model or adapter on the Hub, with its code and a model card")
    push.add_argument("folder", metavar="DIR", help="folder of the saved model and its processor, or of an adapter")
    push.add_argument(
        "repo_id", metavar="REPO", help="Hub repository, such as user/name; created if it does not exist"
    )
    push.add_argument(
        "--card", metavar="FILE", help="what the model card should say beyond what the files tell, YAML or JSON"
    )
    push.add_argument(
        "--quantize", choices=("int8",), help="publish a variant whose decoder weights are quantised to this type"
    )
    push.add_argument(
        "--eval", metavar="FILE", help="results.json of `mm1 eval` on this model, for the card and its metadata"
    )
    push.add_argument("--private", action="store_true", help="make a new repository private")

    # The server and transformers' chat read the other options, so only the usual ones are named here.
    serve = add(
        "serve",
        "serve a saved model through an OpenAI-style API, as `transformers serve` does",
        usage="mm1 serve [DIR] [--engine NAME] [OPTION ...]",
        passes_on=_SERVE,
    )
    serve.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="whose server: that of transformers (default), or of vllm where it is installed",
    )
    add(
        "chat",
        "talk to a served model, as `transformers chat` does",
        usage="mm1 chat NAME [URL] [SETTING=VALUE ...] [OPTION ...]",
        passes_on=_CHAT,
    )
    return parser


def _add_eval(evaluation: argparse.ArgumentParser) -> None:
    add = evaluation.add_argument
    add("--model", metavar="DIR", help="folder or Hub id of the model; with --endpoint, the name of the served model")
    add("--endpoint", metavar="URL", help="an OpenAI-style server that answers, such as http://localhost:8000/v1")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="names of tasks, or files (YAML) of your own")
    add("--list", action="store_true", help="list the tasks")
    add(
        "--shots",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="numbers of demonstrations, such as 0 4 8 (default: 0)",
    )
    add("--trials", type=_positive, default=1, metavar="N", help="trials, each with other demonstrations (default: 1)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the choice of demonstrations (default: 0)")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="[TASK=]PATH",
        help="local copy of a task's data, or a folder with those of all tasks (default: the Hub)",
    )
    add("--limit", type=_positive, metavar="N", help="ask only the first N questions of each task")
    add(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="questions that are answered together (default: as many as fit in memory, up to 64; 8 for an endpoint)",
    )
    add("--style", choices=("completion", "chat"), help="form of the prompts (default: that of each task)")
    add(
        "--demonstrations",
        choices=("random", "fixed", "rices"),
        default="random",
        help="random ones for each question (default), one fixed set for each trial, or those with the most similar images",
    )
    add(
        "--split-last",
        type=int,
        metavar="K",
        help="split only the images of the last K demonstrations into tiles (default: all, if the model splits)",
    )
    add("--output", metavar="DIR", help="folder for the results; a run that was stopped goes on in it")
    add("--judge", metavar="URL", help="OpenAI-style server that scores the answers of llava_wild and mm_vet")
    add("--judge-model", metavar="NAME", help="name of the judge, if its server has several models")
    compare = evaluation.add_subparsers(dest="action", metavar="compare").add_parser(
        "compare",
        help="compare two runs on the same questions: mm1 eval compare A B",
        description="Compare two runs on the same questions by a paired test.",
    )
    compare.add_argument("first", metavar="A", help="output folder of a finished run")
    compare.add_argument("second", metavar="B", help="output folder of another one")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


class _VerbParser(argparse.ArgumentParser):
    """
    Parser of a verb. It names an option that the verb does not have, with the nearest that it has, before argparse
    complains that the option which was meant is missing.

    Args:
        passes_on: help on the options, if they are not read here but passed on.
        options: as for `argparse.ArgumentParser`.
    """

    def __init__(self, *, passes_on: str | None = None, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        # What is passed on is not taken for the beginning of an option's name.
        super().__init__(epilog=passes_on, formatter_class=formatter, allow_abbrev=passes_on is None, **options)
        self.passes_on = passes_on is not None

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        if not self.passes_on:
            actions = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
            # What follows the name of a parser below is for that parser to read.
            ends = {"--", *(name for action in actions for name in action.choices)}
            for argument in takewhile(lambda argument: argument not in ends, args or ()):
                self._require_known(argument)
        return super().parse_known_args(args, namespace)

    def _require_known(self, argument: str) -> None:
        name = argument.partition("=")[0]
        known = self._option_string_actions
        if not re.fullmatch(r"--?[a-zA-Z][\w-]*", name) or any(option.startswith(name) for option in known):
            return
        nearest = get_close_matches(name, known, n=1)
        meant = f"did you mean {nearest[0]}?" if nearest else f"`{self.prog} --help` lists the options"
        self.error(f"unknown option {name}; {meant}")


class _Version(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        # Takes longer to import than everything else here.
        from importlib.metadata import version

        print(f"mm1 {version('mm1_hf')}")
        sys.exit()
