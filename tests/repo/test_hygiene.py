"""The repository as a newcomer finds it: small, nothing stray, a folder map that is true, links that lead somewhere."""

import re
from pathlib import Path, PurePosixPath

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
TOP = {
    *("notebooks", "picollm_lite", "data", "tests", "environment.yml", "README.md", "CONTRIBUTING.md"),
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


def without_fences(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text):
    """Targets of links and pictures into the repository in Markdown, outside code."""
    text = re.sub(r"`[^`\n]*`", "", without_fences(text))
    found = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    return [target for target in found if not re.match(r"[a-z]+:|//", target, re.IGNORECASE)]


def broken(text, folder, tracked):
    """Relative links in a text of `folder` that lead to nothing in the repository."""
    there = set(tracked) | folders(tracked)
    paths = [link for link in links(text) if not link.startswith("#")]
    return [link for link in paths if resolve(folder, link) not in there | {""}]


def dangling(name, texts):
    """Links of texts[name] to a heading that their target, itself one of `texts`, does not have."""
    found = []
    for link in links(texts[name]):
        path, _, anchor = link.partition("#")
        target = resolve(PurePosixPath(name).parent, path) if path else name
        if anchor and target in texts and anchor not in anchors(target, texts[target]):
            found.append(link)
    return found


def anchors(name, text):
    """What one can link to: GitHub's names of headings in a .md, Jupyter's in a notebook."""
    headings = re.findall(r"^#+ +(.*?)[ #]*$", without_fences(text), re.MULTILINE)
    if name.endswith(".ipynb"):
        return {heading.replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


@pytest.fixture(scope="module")
def texts(tracked):
    """Name to Markdown of every page, notebook (its cells) and source of a notebook."""
    found = {name: (ROOT / name).read_text(encoding="utf-8") for name in tracked if name.endswith(".md")}
    for name in tracked:
        if name.endswith(".ipynb"):
            cells = nbformat.read(ROOT / name, as_version=4).cells
        elif re.fullmatch(r"notebooks/\d\d_\w+\.py", name):
            cells = jupytext.read(ROOT / name, fmt="py:percent").cells
        else:
            continue
        found[name] = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return found


def test_links_into_the_repository_resolve(tracked, texts):
    assert len(texts) > 10
    found = {name: broken(text, PurePosixPath(name).parent, tracked) for name, text in texts.items()}
    assert {name: links for name, links in found.items() if links} == {}


def test_links_to_headings_resolve(texts):
    assert {name: links for name in texts if (links := dangling(name, texts))} == {}


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


def test_dangling_links_are_named():
    texts = {
        "README.md": "## Folder map\n[a](#folder-map) [b](#gone) [c](docs/a.md#who-s-who) [d](docs/a.md#whos-who-2)",
        "docs/a.md": "# Who's who, 2\n```\n# code\n```\n[e](../README.md#folder-map) [f](#code) [g](b.ipynb#The-loss)",
        "docs/b.ipynb": "## The loss",
    }
    assert dangling("README.md", texts) == ["#gone", "docs/a.md#who-s-who"]
    assert dangling("docs/a.md", texts) == ["#code"]


@pytest.mark.parametrize(
    "name", ["a.py.orig", "notebooks/Untitled.ipynb", "x/.ipynb_checkpoints/a", "data/model.pt", "a~"]
)
def test_stray_names_are_noticed(name):
    assert STRAY.search(name)
