"""Unpacks transformers' own common test suites, of the installed version, where `make test` finds them.

The source distribution on the package index holds the mixins but not everything that their modules import; small stand-ins
take the place of the rest. Nothing of it is committed.
"""

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from PIL import Image


_PACKAGES = ("tests", "tests/generation", "tests/exporters", "tests/utils")
_STAND_INS = {
    "tests/utils/tiny_model_summary.json": "{}",
    # The generation suite is not in the distribution; our own tests cover generate().
    "tests/generation/test_utils.py": """
class GenerationTesterMixin:
    all_generative_model_classes = ()

    def prepare_config_and_inputs_for_generate(self, batch_size=2):
        return self.model_tester.prepare_config_and_inputs_for_common()
""",
    # Public attributes that ConfigTester sets on a configuration and reads back.
    "tests/utils/test_configuration_utils.py": """
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "architectures": ["AnyModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
    "tests/exporters/test_export.py": """
class ExportTesterMixin:
    pass
""",
    "utils/fetch_hub_objects_for_ci.py": """
from pathlib import Path


def url_to_local_path(url, return_url_if_not_found=True):
    local = Path(__file__).parent / url.split("/")[-1]
    return str(local) if local.exists() else url if return_url_if_not_found else None
""",
    # A group of processes on this machine, one for each rank, as the parallelism suites ask for it.
    "tests/distributed_testing_utils.py": """
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank, world_size, backend, meeting, function, args):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=120)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timeout)
    function(rank, *args)
    dist.destroy_process_group()


def run_distributed(world_size, backend="gloo"):
    def wrap(function):
        def call(*args):
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(_run, (world_size, backend, f"{folder}/meeting", function, args), nprocs=world_size)

        return call

    return wrap
""",
}


def fetch(destination: Path) -> None:
    """Downloads and unpacks the suites into `destination/transformers`."""
    release = version("transformers")
    download = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", f"transformers=={release}"]
    subprocess.run([sys.executable, *download, "--dest", str(destination)], check=True)
    with tarfile.open(destination / f"transformers-{release}.tar.gz") as archive:
        archive.extractall(destination, filter="data")
    root = destination / "transformers"
    shutil.rmtree(root, ignore_errors=True)
    (destination / f"transformers-{release}").rename(root)
    # Beside the tests lies the library's source, which must not be imported in place of the installed one.
    (root / "src").rename(root / "unused-src")
    for package in _PACKAGES:
        (root / package).mkdir(parents=True, exist_ok=True)
        (root / package / "__init__.py").touch()
    for name, text in _STAND_INS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip(), encoding="utf-8")
    # In place of the photograph that the processor suite loads from the Hub.
    Image.effect_mandelbrot((640, 480), (-2, -1.2, 1, 1.2), 50).convert("RGB").save(root / "utils/coco_sample.png")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
