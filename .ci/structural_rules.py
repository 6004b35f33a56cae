"""Runs transformers' structural rules (mlinter) on the model's files.

Two of its default rules are about how transformers' own repository looks rather than about structure: a licence header in
every file (TRF028) and generated docstrings (TRF057).
"""

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from mlinter.mlinter import main


rules = files("mlinter").joinpath("rules.toml").read_text(encoding="utf-8")
for rule in ("TRF028", "TRF057"):
    rules = re.sub(rf"(\[rules\.{rule}\]\n[^\[]*?default_enabled = )true", r"\1false", rules)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "rules.toml")
    path.write_text(rules, encoding="utf-8")
    sys.argv[1:] = ["--no-cache", "--no-progress", "--rules-toml", str(path), "src/mm1_hf"]
    sys.exit(main())
