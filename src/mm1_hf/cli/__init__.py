"""The `mm1` command: few verbs, each a thin call into the package."""

import argparse
import sys
from collections.abc import Sequence


# Kinds of checkpoints, each a script in `conversion/` too.
_CONVERSIONS = ("decoder", "llava", "open_clip", "aim", "honeybee", "axlearn", "gguf")


def build_parser() -> argparse.ArgumentParser:
    """The command's verbs and options. A test pins them, so that a new one is a decision."""
    parser = argparse.ArgumentParser(prog="mm1", description="MM1 and MM1.5 on Hugging Face.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    quickstart = verbs.add_parser(
        "quickstart", help="assemble an MM1 from embedded parts, teach it easy-VQA, measure it and write a report"
    )
    quickstart.add_argument("--output", default="quickstart-mm1", metavar="DIR", help="where the model and report go")
    quickstart.add_argument("--steps", type=_positive, default=647, metavar="N", help="training steps (default: 647)")
    quickstart.add_argument(
        "--questions", type=_positive, default=1000, metavar="N", help="held-out questions at least (default: 1000)"
    )
    quickstart.add_argument("--seed", type=int, default=0, metavar="N", help="of the training's random draws")

    ask = verbs.add_parser("ask", help="answer one question about a picture with a saved model")
    ask.add_argument("--model", required=True, metavar="DIR", help="a saved model's folder or Hub id")
    ask.add_argument("--image", required=True, metavar="FILE", help="a picture's file or URL")
    ask.add_argument("question")

    inspect = verbs.add_parser("inspect", help="show a training row as the model sees it")
    inspect.add_argument("data", nargs="?", metavar="DATA", help="a data set's file, folder, pattern or Hub id")
    inspect.add_argument("--model", metavar="DIR", help="whose processor reads it: a saved model's folder or Hub id")
    inspect.add_argument("--config", metavar="FILE", help="a run's settings, in place of DATA")
    inspect.add_argument("--command", choices=("pretrain", "sft"), help="which they are for (default: pretrain)")
    inspect.add_argument(
        "--layout", metavar="NAME", help="of DATA: chat, TRL's columns (default), or one of pre-training's"
    )
    inspect.add_argument("--split", metavar="NAME", help="of DATA (default: train)")
    inspect.add_argument("--row", type=int, default=0, metavar="N", help="which, from 0 (default: 0)")
    inspect.add_argument("--labels", choices=("mm1", "trl"), help="mm1 (default), or TRL's own beside them")
    inspect.add_argument("--html", metavar="FILE", help="write a page, too")

    plan = verbs.add_parser("plan", help="what a stage of training takes: FLOPs, memory, tokens and time")
    plan.add_argument("preset", metavar="PRESET", help="such as mm1-3b")
    plan.add_argument("--gpus", type=_positive, required=True, metavar="N", help="devices in all")
    plan.add_argument(
        "--stage", choices=("pretrain", "continual", "sft"), default="pretrain", help="(default: pretrain)"
    )
    plan.add_argument("--tp", type=_positive, metavar="N", help="ranks of a tensor-parallel group (default: up to 8)")
    plan.add_argument("--ep", type=_positive, metavar="N", help="ranks that share the experts (default: the most)")
    plan.add_argument("--gradient-checkpointing", action="store_true", help="compute activations again going back")
    plan.add_argument("--memory", type=float, default=80.0, metavar="GB", help="of one GPU (default: 80)")
    plan.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="of the peak (default: 0.4)")
    plan.add_argument(
        "--peak-tflops", type=float, default=989.0, metavar="N", help="of one GPU in bfloat16 (default: 989, an H100)"
    )

    pretrain = verbs.add_parser("pretrain", help="pre-train a model on a mixture of sources, or go on with a run")
    pretrain.add_argument("--config", required=True, metavar="FILE", help="the run's settings, YAML or JSON")

    sft = verbs.add_parser("sft", help="fine-tune a model on a mixture of conversations, or go on with a run")
    sft.add_argument("--config", required=True, metavar="FILE", help="the run's settings, YAML or JSON")

    convert = verbs.add_parser(
        "convert", help="write a foreign checkpoint as a model, or a part of one, with equal outputs"
    )
    convert.add_argument("kind", choices=_CONVERSIONS, help=f"one of {', '.join(_CONVERSIONS)}", metavar="KIND")
    convert.add_argument("source", metavar="SOURCE", help="a file, a folder or a Hub id")
    convert.add_argument("output", metavar="DIR", help="a folder that does not exist")
    convert.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: the checkpoint's)")
    convert.add_argument("--max-shard-size", default="1GB", metavar="SIZE", help="of files and memory (default: 1GB)")
    convert.add_argument("--allow-pickle", action="store_true", help="read pickled weights, with weights_only")

    push = verbs.add_parser("push", help="publish a saved model or adapter on the Hub, with its code and a card")
    push.add_argument("folder", metavar="DIR", help="where it was saved, with its processor")
    push.add_argument("repo_id", metavar="REPO", help="such as user/name; created if it does not exist")
    push.add_argument(
        "--card", metavar="FILE", help="what the model's card says beside what its files tell, YAML or JSON"
    )
    push.add_argument(
        "--quantize", choices=("int8",), help="publish a variant whose decoder has weights of so many bits"
    )
    push.add_argument("--private", action="store_true", help="if the repository is new")

    for verb, what in (("serve", "serve a saved model to OpenAI's clients"), ("chat", "talk to a served model")):
        # Their arguments are transformers' own and go there unread.
        verbs.add_parser(verb, add_help=False, help=f"{what}, as `transformers {verb}` does")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 where the user has to mend something."""
    arguments = sys.argv[1:] if arguments is None else arguments
    delegated = bool(arguments) and arguments[0] in ("serve", "chat")
    options = vars(build_parser().parse_args(arguments[:1] if delegated else arguments))
    verb = options.pop("verb")
    try:
        if delegated:
            from mm1_hf.cli.serve import run

            run(arguments)
        elif verb == "quickstart":
            from mm1_hf.cli.quickstart import quickstart

            quickstart(**options)
        elif verb == "ask":
            from mm1_hf.cli.ask import ask

            ask(**options)
        elif verb == "inspect":
            from mm1_hf.cli.inspect import inspect

            inspect(**options)
        elif verb == "plan":
            from mm1_hf.planning.planner import plan

            print(plan(**options))
        elif verb == "pretrain":
            from mm1_hf.training.pretraining import load_settings, pretrain

            pretrain(load_settings(options["config"]))
        elif verb == "sft":
            from mm1_hf.cli.sft import sft

            sft(**options)
        elif verb == "convert":
            from mm1_hf.cli.convert import convert

            convert(**options)
        elif verb == "push":
            from mm1_hf.cli.push import push

            push(**options)
    except (ValueError, OSError) as error:
        print(f"mm1 {verb}: {error}", file=sys.stderr)
        return 2
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number
