"""
What has to be waited for before anything is computed: imports, the command, and loading a model. Each is timed in a new
process. An import is compared with that of one of transformers' own models, and loading with reading the file once.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measuring import Case, Report, interleaved
from benchmarks.scales import Scale, build, mm1_config
from mm1_command.parser import build_parser
from mm1_hf import MM1ForConditionalGeneration


IMPORTS = {
    "mm1_hf": "from mm1_hf import MM1ForConditionalGeneration",
    "transformers' LLaVA": "from transformers import LlavaForConditionalGeneration",
}
# Of a decoder of two billion parameters.
LARGE = {
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
# A mapped weight is read when it is first used, so a value of every 4 KiB is.
LOAD = """
import json, resource, sys, time
from mm1_hf import MM1ForConditionalGeneration
begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = MM1ForConditionalGeneration.from_pretrained(sys.argv[1])
total = sum(weight.detach().view(-1)[::1024].float().sum().item() for weight in model.parameters())
seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "memory": 1024 * (after - before)}))
"""
READ = """
import json, sys, time
from pathlib import Path
begin = time.perf_counter()
for file in Path(sys.argv[1]).glob("*.safetensors"):
    with file.open("rb", buffering=0) as opened:
        while opened.read(2**24):
            pass
print(json.dumps({"seconds": time.perf_counter() - begin}))
"""


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def verbs() -> list[str]:
    return [verb for action in build_parser()._actions for verb in (action.choices or ()) if isinstance(verb, str)]


def calls(lines: dict[str, list[str]]) -> dict[str, Case]:
    return {name: lambda arguments=arguments: python(*arguments) for name, arguments in lines.items()}


def measure(scale: Scale, report: Report) -> None:
    rounds = min(scale.rounds, 3)
    imports = {name: ["-c", code] for name, code in IMPORTS.items()}
    for name, timed in interleaved(calls(imports), scale.device, rounds, warm_up=0, least=0).items():
        report.add("import", {}, name, **timed)
    if scale.name != "tiny":
        commands = {f"mm1 {verb} --help": ["-m", "mm1_command", verb, "--help"] for verb in verbs()}
        for name, timed in interleaved(calls(commands), scale.device, rounds, warm_up=0, least=0).items():
            report.add("command", {}, name, **timed)
    with tempfile.TemporaryDirectory() as folder:
        sizes = scale if scale.name == "tiny" else replace(scale, text=scale.text | LARGE)
        model = build(MM1ForConditionalGeneration, mm1_config(sizes, sizes.grid, sizes.image_tokens), sizes)
        model.bfloat16().save_pretrained(folder)
        del model
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        timings: dict[str, list[dict[str, Any]]] = {"from_pretrained": [], "reading the file": []}
        for _ in range(rounds):
            for name, code in zip(timings, (LOAD, READ), strict=True):
                timings[name].append(json.loads(python("-c", code, folder).splitlines()[-1]))
    for name, each in timings.items():
        report.add(
            "load",
            {"bytes": size},
            name,
            seconds=statistics.median(one["seconds"] for one in each),
            rounds=[one["seconds"] for one in each],
            memory=max((one["memory"] for one in each if "memory" in one), default=None),
        )
