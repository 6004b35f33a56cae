"""
The one list of what the package uses of transformers that transformers does not promise to keep: private functions that it
calls or overrides, and private attributes that it reads. Each function is pinned by a digest of its code as it was read.

After a move to another transformers, read what changed, mend what builds on it, and write the new digests here.
"""

import ast
import hashlib
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

import mm1_hf


# The version of transformers that was read, which is the one in constraints.txt.
READ_IN = "5.24.0"

# Where it is defined, what uses it and how, and the digest of its code.
FUNCTIONS = {
    # The Trainer's hooks that save and resume split weights and streams. It has no public ones for that.
    "transformers.trainer.Trainer._save_optimizer_and_scheduler": "99a0de2f2453",
    "transformers.trainer.Trainer._save_rng_state": "ba52f801ff55",
    "transformers.trainer.Trainer._load_from_checkpoint": "9041218b8c5d",
    "transformers.trainer.Trainer._load_best_model": "3810044fbf47",
    "transformers.trainer.Trainer._load_optimizer_and_scheduler": "cd72a358e3c5",
    "transformers.trainer.Trainer._save_checkpoint": "3f08503719cd",
    "trl.trainer.sft_trainer.SFTTrainer._save_checkpoint": "9e443b9bdf40",
    # The norm of the gradients of a step, before the optimizer uses them.
    "transformers.trainer.Trainer._get_grad_norm": "b2787642923d",
    "transformers.distributed.checkpoint._load_model_checkpoint_distributed": "6aef0001506d",
    # A batch loses the entries that only the trainer reads, before the model sees it.
    "transformers.trainer.Trainer._prepare_inputs": "20227b701701",
    # Every model and image processor of transformers overrides or calls these in the same way.
    "transformers.modeling_utils.PreTrainedModel._init_weights": "feaee7aa9726",
    "transformers.modeling_utils.PreTrainedModel._from_config": "631049c9a3d3",
    "transformers.modeling_utils.PreTrainedModel._can_set_experts_implementation": "793182d657d2",
    # Rows with tiles of their own are repeated for beams.
    "transformers.generation.utils.GenerationMixin._expand_inputs_for_generation": "cb123c7fdea3",
    # A draft model encodes the tiles by itself.
    "transformers.generation.utils.GenerationMixin._get_candidate_generator": "05bb845d6d49",
    "transformers.generation.utils.GenerationMixin._validate_model_kwargs": "8a4af2cfb784",
    "transformers.image_processing_utils.BaseImageProcessor._standardize_kwargs": "1b042335d41f",
    "transformers.image_processing_utils.BaseImageProcessor._validate_preprocess_kwargs": "095c0dff22a6",
    "transformers.image_processing_utils.BaseImageProcessor._preprocess_image_like_inputs": "f6edfca3f2fa",
    "transformers.image_processing_utils.BaseImageProcessor._set_attributes": "d5030ffd37e3",
    "transformers.processing_utils.ProcessorMixin._process_images": "d6be72a2063e",
    "transformers.processing_utils.ProcessorMixin._check_special_mm_tokens": "9b6762855d49",
}

# Attributes, and a module of transformers that sets them.
ATTRIBUTES = {
    "_train_batch_size": "transformers.trainer",
    "_name_or_path": "transformers.configuration_utils",
    "_is_stateful": "transformers.generation.utils",
    "_model_mapping": "transformers.models.auto.auto_factory",
    "_valid_kwargs_names": "transformers.image_processing_utils",
    "_attn_implementation": "transformers.configuration_utils",
    "_supports_flash_attn": "transformers.modeling_utils",
    "_keep_in_fp32_modules": "transformers.modeling_utils",
    "_hf_peft_config_loaded": "transformers.integrations.peft",
}

# Of torch and the standard library, not of transformers.
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
_OTHERS = _HOOKS | {
    "_fields",
    "_grouped_mm",
    "_local_scalar_dense",
    "_is_replica",
    "_load_from_state_dict",
    "_replace",
}
_LIBRARIES = ("transformers", "trl")


def resolve(path: str) -> Any:
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:]:
            found = inspect.getattr_static(found, name)
        return found
    raise AttributeError(path)


def digest(function: Any) -> str:
    """Of the code without comments, line breaks and docstring."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    (definition,) = tree.body
    if isinstance(definition, ast.FunctionDef) and ast.get_docstring(definition) is not None:
        del definition.body[0]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]


def overridden() -> Iterator[str]:
    """Private methods of a library's classes that a class of the package replaces."""
    for each in pkgutil.walk_packages(mm1_hf.__path__, "mm1_hf."):
        if each.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(each.name)).values():
            if not inspect.isclass(value) or not value.__module__.startswith("mm1_hf."):
                continue
            for name in {name for own in value.__mro__ if own.__module__.startswith("mm1_hf.") for name in vars(own)}:
                if not name.startswith("_") or name.startswith("__"):
                    continue
                owner = next(
                    (
                        base
                        for base in value.__mro__
                        if name in vars(base) and base.__module__.split(".")[0] in _LIBRARIES
                    ),
                    None,
                )
                if owner is not None and inspect.isroutine(getattr(owner, name)):
                    yield f"{owner.__module__}.{owner.__qualname__}.{name}"


def used() -> set[str]:
    """Private names that the package's code asks for and does not define itself."""
    defined, asked = set(), set()
    for file in Path(mm1_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Attribute):
                (defined if isinstance(node.ctx, ast.Store) else asked).add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _LIBRARIES:
                asked |= {alias.name for alias in node.names}
    return {name for name in asked - defined if name.startswith("_") and not name.startswith("__")}


def test_the_list_is_about_the_installed_version():
    constraints = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8")
    (constrained,) = re.findall(r"^transformers==(.*)$", constraints, flags=re.MULTILINE)
    assert constrained == READ_IN, "read the functions of this list again, and write their digests"


@pytest.mark.parametrize("path", FUNCTIONS)
def test_private_functions_are_those_that_were_read(path):
    found = resolve(path)
    if transformers.__version__ == READ_IN:
        assert digest(found) == FUNCTIONS[path], f"{path} is not what it was in {READ_IN}: read it again"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_private_attributes_are_there(name):
    source = inspect.getsource(importlib.import_module(ATTRIBUTES[name]))
    assert re.search(rf"\b{name}\b", source), f"{ATTRIBUTES[name]} no longer knows {name}"


def test_the_list_is_complete():
    listed = {path.rpartition(".")[2] for path in FUNCTIONS}
    assert used() <= listed | set(ATTRIBUTES) | _OTHERS
    assert set(overridden()) <= set(FUNCTIONS)
    # Nothing stays listed that is used no more.
    assert listed <= used() | {path.rpartition(".")[2] for path in overridden()}
