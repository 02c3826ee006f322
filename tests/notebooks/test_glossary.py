"""The glossary names the notebook that defines a term; the map of equations in 00 names functions that exist."""

import ast
import re
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))


def prose(path):
    cells = jupytext.read(path, fmt="py:percent").cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def bold(text):
    """What stands in bold, in lower case, each on one line."""
    return {" ".join(found.split()).lower() for found in re.findall(r"\*\*(.+?)\*\*", text, re.DOTALL)}


def glossary(text):
    """Term and notebook number of each row."""
    return re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d\d) \|$", text, re.MULTILINE)


def places(text):
    """File and function of each name on the map, `folder/file.py: one, other`."""
    rows = re.findall(r"`([\w/]+\.py): ([\w, ]+)`", text)
    return [(file, name) for file, names in rows for name in names.split(", ")]


def public_functions(file):
    tree = ast.parse((ROOT / "picollm_lite" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


TERMS = glossary((ROOT / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8"))
BOLD = {path.name[:2]: bold(prose(path)) for path in NOTEBOOKS}
PLACES = places(prose(NOTEBOOKS[0]))


def test_there_is_a_glossary_and_a_map():
    assert len(TERMS) > 40 and len(PLACES) > 20
    assert len({term.lower() for term, _ in TERMS}) == len(TERMS)


@pytest.mark.parametrize(("term", "number"), TERMS, ids=[term for term, _ in TERMS])
def test_a_term_is_first_bold_where_the_glossary_says(term, number):
    assert next((name for name, terms in BOLD.items() if term.lower() in terms), None) == number


@pytest.mark.parametrize(("file", "name"), PLACES, ids=[name for _, name in PLACES])
def test_functions_on_the_map_exist(file, name):
    assert name in public_functions(file)


def test_every_loss_is_on_the_map():
    losses = {
        (file, name) for file in ("kernels/losses.py", "kernels/group_losses.py") for name in public_functions(file)
    }
    assert losses - set(PLACES) == set()


def test_bold_may_go_over_a_line_end():
    assert bold("The **response\nmask** and *not this* and **KL**") == {"response mask", "kl"}


def test_rows_are_read():
    assert glossary("| term | in one line | notebook |\n|---|---|---|\n| audit | looks | 03 |\n") == [("audit", "03")]
    assert places("| x | `a/b.py: one, two` |") == [("a/b.py", "one"), ("a/b.py", "two")]
