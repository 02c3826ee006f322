"""The floors of the package: a file imports only from lower floors, or from a neighbor in its own room."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = "picollm_lite"
SOURCE = Path(__file__).parents[2] / PACKAGE
# Bottom up. A room is a folder; the modules that stand alone in one set are neighbors, the folders are not.
FLOORS = (
    {"paths"},
    {"kernels", "world"},
    {"adapters", "chat", "compat", "models", "data", "scoring", "formats", "files", "processes"},
    {"stages", "collection", "evaluation"},
    {"ui", "build", "quality", "trl_settings"},
    {"course", "slides", "results", "report_card", "handoff", "publish"},
)
ROOMS = {"kernels", "world", "stages", "collection", "evaluation", "ui"}
TORCH = {"torch", "transformers", "accelerate", "jaxtyping"}


def imports(source, module):
    """Every (line, absolute name) that `module` imports, inside functions as well; `from a import b` gives a.b."""
    package = module if module.endswith(".__init__") or module == PACKAGE else module.rpartition(".")[0]
    package = package.removesuffix(".__init__")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield node.lineno, ast.literal_eval(node.args[0])


def floor(room):
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def problems(source, module):
    """One line for each import that `module` (a dotted name) may not have."""
    room = module.split(".")[1] if "." in module else None
    found = []
    for line, name in imports(source, module):
        top, _, rest = name.partition(".")
        where = f"{module}, line {line}: imports {name}"
        if top == PACKAGE:
            other = rest.split(".")[0]
            if other in ("", "__version__"):
                continue
            if floor(other) is None:
                found.append(f"{where}: {other} is on no floor")
            elif not allowed(room, other):
                found.append(f"{where}: {room} may not import {other}")
        elif room == "kernels" and top not in {"torch", "jaxtyping", *sys.stdlib_module_names}:
            found.append(f"{where}: kernels import torch, jaxtyping and the standard library only")
        elif room in ("world", "paths", "formats", "files") and top in TORCH:
            found.append(f"{where}: {room} needs no torch")
    return found


def allowed(room, other):
    if room == "kernels":  # pure functions: they need no paths either
        return other == "kernels"
    if (room, other) == ("evaluation", "collection"):  # judges what was collected; a collection judges nothing
        return True
    return floor(other) < floor(room) or room == other or (floor(other) == floor(room) and not {room, other} & ROOMS)


def module_name(path):
    return ".".join([PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts])


FILES = sorted(SOURCE.rglob("*.py"))
MODULES = [path for path in FILES if path.name != "__init__.py"]


def test_there_are_modules():
    assert MODULES


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down(path):
    assert floor(module_name(path).split(".")[1]) is not None, f"{path.name} is on no floor"
    found = problems(path.read_text(encoding="utf-8"), module_name(path))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module_name)
def test_init_holds_a_docstring_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    rest = [ast.unparse(node).partition(" =")[0] for node in tree.body[1:]]
    assert rest == (["__version__"] if path.parent == SOURCE else [])


def test_every_folder_is_a_package():
    folders = {path.parent for path in MODULES}
    assert [folder.name for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kernels.losses", "from picollm_lite.world import rubric"),
        ("kernels.losses", "import picollm_lite.paths"),
        ("kernels.losses", "import numpy as np"),
        ("kernels.losses", "def f():\n    import transformers"),
        ("world.rubric", "import picollm_lite.kernels.losses"),
        ("world.rubric", "import torch.nn as nn"),
        ("world.rubric", "from ..kernels import losses"),
        ("world.rubric", "from .. import kernels"),
        ("formats", "from transformers import PreTrainedTokenizerBase"),
        ("chat", "from picollm_lite.stages.sft import train"),
        ("chat", "from .stages import sft"),
        ("chat", "from . import ui"),
        ("stages.sft", "from picollm_lite.evaluation import metrics"),
        ("stages.sft", "def f():\n    from picollm_lite.ui import plots"),
        ("collection.labels", "from picollm_lite.ui.labelling import label_pairs"),
        ("collection.labels", "from picollm_lite.evaluation import metrics"),
        ("stages.sft", "import importlib\nimportlib.import_module('picollm_lite.build')"),
        ("collection.pairs", "from picollm_lite.evaluation import metrics"),
        ("collection.pairs", "from picollm_lite.stages import sampling"),
        ("stages.reward", "from picollm_lite.collection.pairs import Vote"),
        ("ui.plots", "from picollm_lite import course"),
        ("build", "from picollm_lite.ui import plots"),
        ("ui.plots", "from picollm_lite import report_card"),
        ("stages.dpo", "from picollm_lite.trl_settings import settings"),
        ("trl_settings", "from picollm_lite.handoff import hand_off"),
        ("build", "from picollm_lite.publish import published"),
        ("build", "from picollm_lite.somewhere import thing"),
    ],
)
def test_a_wrong_import_is_named(module, source):
    assert problems(source, f"{PACKAGE}.{module}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "kernels.losses",
            "import math\nimport torch.nn.functional as F\nfrom jaxtyping import Float\nfrom . import logprobs",
        ),
        (
            "world.rubric",
            "from rapidfuzz import fuzz\nfrom picollm_lite.world.concepts import Concept\nfrom .. import paths",
        ),
        ("data", "from picollm_lite.chat import render\nfrom picollm_lite.kernels import losses"),
        ("stages.sft", "from picollm_lite import models\nfrom ..kernels.losses import sft_loss\nfrom .reward import f"),
        ("evaluation.agreement", "from picollm_lite.collection.pairs import Vote\nfrom .metrics import Interval"),
        ("course", "from picollm_lite import __version__, paths\nimport picollm_lite"),
        ("publish", "from picollm_lite import course\nfrom picollm_lite.files import replace_file"),
        ("report_card", "from picollm_lite.ui import plots\nfrom picollm_lite.evaluation.report import Card"),
    ],
)
def test_a_right_import_passes(module, source):
    assert problems(source, f"{PACKAGE}.{module}") == []
