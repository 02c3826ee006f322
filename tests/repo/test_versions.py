"""Versions stand in two places: ranges in pyproject.toml, exact ones in requirements.lock. All else follows these."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path, PurePosixPath

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
RANGES = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
# PyPI's torch pins these on Linux; elsewhere they do not exist, so the lock leaves them to torch.
TORCH_PINS = ("nvidia-", "cuda-", "triton")
IMPORTED_AS = {"yaml": "pyyaml", "IPython": "ipython", "PIL": "pillow", "sklearn": "scikit-learn"}


def read_lock(text):
    """Name to version. Raises ValueError for a line that is not one exact version."""
    versions = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        if pin.operator != "==" or "*" in pin.version or Version(pin.version).local:
            raise ValueError(f"not an exact version that every platform has: {line}")
        versions[canonicalize_name(requirement.name)] = pin.version
    return versions


def outside(ranges, versions):
    """Direct requirements that the lock lacks or does not satisfy."""
    return [str(r) for r in ranges if not r.specifier.contains(versions.get(canonicalize_name(r.name), "0"))]


def missing_transitive(names, versions):
    """What the locked packages need, as installed here, and the lock does not hold."""
    seen, todo, missing = set(), [(name, "") for name in names], []
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name.startswith(TORCH_PINS):
            continue
        seen.add((name, extra))
        if name not in versions:
            missing.append(name)
            continue
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(needed.name), extra) for extra in ("", *needed.extras)]
    return missing


def imported(source):
    """Top-level names that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_lock_satisfies_every_range():
    assert outside(RANGES, read_lock(LOCK)) == []
    assert read_lock(LOCK)["torch"] == "2.13.0"


def test_the_ranges_hold_what_colab_has():
    pins = read_lock((ROOT / "tests" / "colab" / "requirements.txt").read_text(encoding="utf-8"))
    shared = [r for r in RANGES if canonicalize_name(r.name) in pins]
    assert {"transformers", "datasets", "ipywidgets"} <= {r.name for r in shared}
    assert outside(shared, pins) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the lock is resolved on Linux")
def test_lock_is_complete():
    assert missing_transitive([canonicalize_name(r.name) for r in RANGES], read_lock(LOCK)) == []


def test_ranges_are_ranges():
    assert [str(r) for r in RANGES if "==" in str(r.specifier) or ">=" not in str(r.specifier)] == []


def test_every_import_is_declared(tracked):
    declared = {canonicalize_name(r.name) for r in RANGES} | {"picollm-lite"}
    undeclared = {
        f"{name}: {module}"
        for name in tracked
        if name.endswith(".py")
        for module in imported((ROOT / name).read_text(encoding="utf-8"))
        if module not in sys.stdlib_module_names
        and canonicalize_name(IMPORTED_AS.get(module, module)) not in declared
        and module != "google"  # Colab's own
        and str(PurePosixPath(name).with_name(f"{module}.py")) not in tracked  # a script's neighbor
    }
    assert not undeclared, "add to pyproject.toml: " + ", ".join(sorted(undeclared))


def test_conda_installs_the_lock_and_pins_only_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, with_pip = environment["dependencies"]
    assert pip == "pip"
    assert with_pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))


def test_make_and_ci_install_the_lock():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "install --no-compile $(PIP_ARGS) -r requirements.lock\n" in makefile
    assert "$(READY): requirements.lock pyproject.toml\n" in makefile
    versions = read_lock(LOCK)
    pins = re.findall(r"([\w-]+)==([\w.]+)", makefile)
    assert pins == [("torch", versions["torch"])]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    assert [run.split(" PIP_ARGS=")[0] for run in runs] == ["make test"]
    pythons = [step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {})]
    assert len(pythons) == 1 and SpecifierSet(PROJECT["requires-python"]).contains(pythons[0])
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in script and "pip install" not in script


def test_makefile_accepts_the_pythons_of_pyproject():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    low, high = re.search(r"not \(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)", makefile).groups()
    assert PROJECT["requires-python"] == f">=3.{low},<3.{int(high) + 1}"


def test_notebook_headers_name_no_version_or_machine():
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        metadata = jupytext.read(path, fmt="py:percent").metadata
        text = path.read_text(encoding="utf-8")
        assert metadata.get("kernelspec") == KERNELSPEC, path.name
        assert "jupytext_version" not in text, path.name
        assert not re.search(r"pip install[^\n]*==", text), f"{path.name}: versions belong in requirements.lock"


# The checks above on a lock that is wrong.

SMALL = [Requirement("numpy>=2,<3"), Requirement("PyYAML>=6")]


def test_wrong_locks_are_noticed():
    assert outside(SMALL, {"numpy": "2.4.6", "pyyaml": "6.0.3"}) == []
    assert outside(SMALL, {"numpy": "3.0", "pyyaml": "6.0.3"}) == ["numpy<3,>=2"]
    assert outside(SMALL, {"numpy": "2.4.6"}) == ["PyYAML>=6"]
    versions = read_lock(LOCK)
    versions.pop("tornado")
    assert missing_transitive(["jupyterlab"], versions) == ["tornado"]


@pytest.mark.parametrize("line", ["torch==2.13.0+cpu", "torch>=2", "torch==2.*", "torch"])
def test_a_lock_line_is_one_exact_version(line):
    with pytest.raises(ValueError):
        read_lock(line)
