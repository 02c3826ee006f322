"""The repository as a newcomer finds it: small, nothing stray, a folder map that is true, links that lead somewhere."""

import re
from pathlib import Path, PurePosixPath

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
TOP = {
    *("notebooks", "picollm_lite", "data", "tests", "environment.yml", "README.md"),
    *("pyproject.toml", "jupytext.toml", "Makefile", "requirements.lock", "LICENSE", ".github", ".ci", ".gitignore"),
}
STRAY = re.compile(
    r"(~|\.(orig|rej|bak|swp|tmp|log|pyc|pt|pkl|pickle|bin))$|(^|/)(Untitled|\.DS_Store|\.ipynb_checkpoints)"
)
MEGABYTE = 1_000_000
GENERATED = {"outputs"}  # may stand in the map although a fresh clone has none


def folder_map(readme):
    """Paths named in the fenced block under the heading "Folder map"; a deeper indent is inside the line above."""
    block = re.search(r"^#+ Folder map\s*\n.*?^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    if not block:
        return []
    parents, names = [], []
    for line in block[1].splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        while parents and parents[-1][0] >= indent:
            parents.pop()
        path = "/".join([*(name for _, name in parents), line.split()[0].rstrip("/")])
        parents.append((indent, line.split()[0].rstrip("/")))
        names.append(path)
    return names


def folders(tracked):
    return {str(parent) for name in tracked for parent in PurePosixPath(name).parents} - {"."}


def map_problems(readme, tracked):
    """Folders that the map leaves out, and names in it that do not exist."""
    named = folder_map(readme)
    there = folders(tracked)
    wanted = {folder for folder in there if "/" not in folder and not folder.startswith(".")}
    wanted |= {folder for folder in there if re.fullmatch(r"picollm_lite/[^/]+", folder)}
    missing = [f"not in the map: {folder}" for folder in sorted(wanted - set(named))]
    return missing + [f"does not exist: {name}" for name in named if name not in there | set(tracked) | GENERATED]


def links(text):
    """Targets of relative links and pictures in Markdown, outside code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    return [target for target in found if not re.match(r"[a-z]+:|#|//", target, re.IGNORECASE)]


def broken(text, folder, tracked):
    """Relative links in a text of `folder` that lead to nothing in the repository."""
    there = set(tracked) | folders(tracked)
    return [link for link in links(text) if resolve(folder, link) not in there | {""}]


def resolve(folder, link):
    parts = []
    for part in PurePosixPath(folder, link.partition("#")[0].partition("?")[0]).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            return ".."  # leaves the repository
    return "/".join(parts)


def test_data_is_small(tracked):
    assert sum((ROOT / name).stat().st_size for name in tracked if name.startswith("data/")) < 30 * MEGABYTE


def test_no_file_is_large(tracked):
    assert [name for name in tracked if (ROOT / name).stat().st_size > 8 * MEGABYTE] == []


def test_nothing_stray(tracked):
    assert tracked
    assert {name.partition("/")[0] for name in tracked} - TOP == set(), "not expected at the top level"
    assert [name for name in tracked if STRAY.search(name)] == []
    empty = [name for name in tracked if not (ROOT / name).stat().st_size]
    assert empty == [], "empty files"


def test_folder_map_is_true(tracked):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert folder_map(readme), 'README.md has no fenced block under the heading "Folder map"'
    assert map_problems(readme, tracked) == []


def test_relative_links_resolve(tracked):
    found = []
    for name in tracked:
        if name.endswith(".md"):
            texts = [(ROOT / name).read_text(encoding="utf-8")]
        elif name.endswith(".ipynb"):
            cells = nbformat.read(ROOT / name, as_version=4).cells
            texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
        else:
            continue
        found += [f"{name}: {link}" for text in texts for link in broken(text, PurePosixPath(name).parent, tracked)]
    assert found == []


# The checks above on a repository that is wrong.

README = """# Title
## Folder map
One line a folder:
```
notebooks/          the course
picollm_lite/       the package
  kernels/          pure functions
    losses.py       one function per loss
outputs/            what you make
README.md           this page
```
"""
FILES = ["README.md", "notebooks/a.ipynb", "picollm_lite/kernels/losses.py", ".ci/run"]


def test_map_problems_are_named():
    assert map_problems(README, FILES) == []
    assert map_problems(README, [*FILES, "data/x"]) == ["not in the map: data"]
    assert map_problems(README, [*FILES, "picollm_lite/world/x.py"]) == ["not in the map: picollm_lite/world"]
    assert map_problems(README, FILES[:2]) == [
        f"does not exist: picollm_lite{rest}" for rest in ("", "/kernels", "/kernels/losses.py")
    ]
    assert folder_map("# No map\n```\nx/\n```\n") == []


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("[a](notebooks/a.ipynb) [b](https://x.org) [c](#here) ![d](picollm_lite/)", []),
        ("[a](README.md#folder-map)", []),
        ("[a](gone.md)", ["gone.md"]),
        ("![a](gone.png)", ["gone.png"]),
        ('<img src="gone.png" alt="x">', ["gone.png"]),
        ("[a]: gone.md", ["gone.md"]),
        ("[a](../elsewhere.md)", ["../elsewhere.md"]),
        ("`[a](gone.md)`\n```\n[b](gone.md)\n```\n", []),
    ],
)
def test_broken_links_are_named(text, bad):
    assert broken(text, PurePosixPath(""), FILES) == bad


@pytest.mark.parametrize(
    "name", ["a.py.orig", "notebooks/Untitled.ipynb", "x/.ipynb_checkpoints/a", "data/model.pt", "a~"]
)
def test_stray_names_are_noticed(name):
    assert STRAY.search(name)
