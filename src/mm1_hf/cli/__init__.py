"""
The `mm1` command. Every verb has a module of its own name here, whose `run` takes the verb's options. The module is imported
when its verb is run, so that no verb waits for the libraries of another.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module


# What `mm1 convert` reads; each kind has a script in `conversion/` too.
_CONVERSIONS = ("decoder", "llava", "open_clip", "aim", "honeybee", "axlearn", "gguf")


def build_parser() -> argparse.ArgumentParser:
    """The command's verbs and options. A test pins them: adding one is a decision."""
    parser = argparse.ArgumentParser(prog="mm1", description="MM1 and MM1.5 on Hugging Face.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(verb: str, help: str, passes_on: bool = False) -> argparse.ArgumentParser:
        added = verbs.add_parser(verb, help=help, add_help=not passes_on)
        added.set_defaults(module=f"mm1_hf.cli.{verb}", passes_on=passes_on)
        return added

    quickstart = add(
        "quickstart", "assemble an MM1 from embedded parts, train it on easy-VQA, measure it, write a report"
    )
    quickstart.add_argument(
        "--output", default="quickstart-mm1", metavar="DIR", help="folder for the model and the report"
    )
    quickstart.add_argument("--steps", type=_positive, default=647, metavar="N", help="training steps (default: 647)")
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

    plan = add("plan", "what a stage of training needs: FLOPs, memory, tokens and time")
    plan.add_argument("preset", metavar="PRESET", help="name of a preset, such as mm1-3b")
    plan.add_argument("--gpus", type=_positive, required=True, metavar="N", help="number of GPUs")
    plan.add_argument(
        "--stage",
        choices=("pretrain", "continual", "sft"),
        default="pretrain",
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

    convert = add("convert", "convert a foreign checkpoint to a model, or to a part of one, with equal outputs")
    convert.add_argument(
        "kind", choices=_CONVERSIONS, metavar="KIND", help=f"kind of checkpoint: {', '.join(_CONVERSIONS)}"
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
    push.add_argument("--private", action="store_true", help="make a new repository private")

    # Their options are transformers' own, which reads them.
    add("serve", "serve a saved model through an OpenAI-style API, as `transformers serve` does", passes_on=True)
    add("chat", "talk to a served model, as `transformers chat` does", passes_on=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for a mistake that the user can mend."""
    parser = build_parser()
    namespace, unread = parser.parse_known_args(arguments)
    options = vars(namespace)
    verb, module, passes_on = (options.pop(name) for name in ("verb", "module", "passes_on"))
    if passes_on:
        options = {"arguments": [verb, *unread]}
    elif unread:
        parser.error(f"unrecognized arguments: {' '.join(unread)}")
    try:
        import_module(module).run(**options)
    except (ValueError, OSError) as error:
        print(f"mm1 {verb}: {error}", file=sys.stderr)
        return 2
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
