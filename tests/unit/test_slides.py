"""Decks: what stands right of and what below a slide, without a network, on a sample and on the shipped notebooks."""

import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from picollm_lite import slides

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
SLIDE, SKIP = {"slideshow": {"slide_type": "slide"}}, {"slideshow": {"slide_type": "skip"}}


class Outline(HTMLParser):
    """Text of each slide, top to bottom, left to right: nbconvert nests two levels of `section`."""

    def __init__(self, page):
        super().__init__()
        self.depth, self.slides = 0, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self.depth += 1
            if self.depth == 1:
                self.slides.append([])
            else:
                self.slides[-1].append("")

    def handle_endtag(self, tag):
        self.depth -= tag == "section"

    def handle_data(self, data):
        if self.depth == 2:
            self.slides[-1][-1] += data


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("building a deck uses the network")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (socket, "create_connection")):
        monkeypatch.setattr(owner, name, refuse)


@pytest.fixture
def notebook(tmp_path):
    cells = [
        new_markdown_cell("Title"),
        new_code_cell("imports", metadata={"tags": ["setup"]}),
        new_code_cell("options"),
        new_markdown_cell(
            "Story [next](b.ipynb) [rubric](../data/r.md) [paper](https://x.org) [here](#a)", metadata=SLIDE
        ),
        new_code_cell("detail"),
        new_code_cell("picture", metadata=SLIDE),
        new_code_cell("hidden", metadata=SKIP),
    ]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(new_notebook(cells=cells), folder / "a.ipynb")
    return folder / "a.ipynb"


def test_the_story_goes_right_and_details_go_down(notebook, tmp_path):
    page = slides.build(notebook, tmp_path / "outputs" / "slides").read_text(encoding="utf-8")
    found = [[text.split()[0] for text in slide] for slide in Outline(page).slides]
    assert found == [["Title", "options"], ["Story", "detail"], ["picture"]]


def test_links_lead_back_to_the_notebooks(notebook, tmp_path):
    page = slides.build(notebook, tmp_path / "outputs" / "slides").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]+)"', page)
    assert links == ["../../notebooks/b.ipynb", "../../notebooks/../data/r.md", "https://x.org", "#a"]


def test_with_the_packages_beside_it_a_deck_fetches_nothing(notebook, tmp_path):
    fetched = r'(?:src|href|from|@import)[=( ]*["\'](https?:[^"\']+)|"(https?:[^"]+\.js)"'
    page = slides.build(notebook, tmp_path).read_text(encoding="utf-8")
    assert len(re.findall(fetched, page)) >= len(slides.LOCAL)
    (tmp_path / "node_modules").mkdir()
    page = slides.build(notebook, tmp_path).read_text(encoding="utf-8")
    assert [a or b for a, b in re.findall(fetched, page)] == ["https://x.org"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shipped_notebooks(path, tmp_path):
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if cell.metadata.get("slideshow", {}).get("slide_type") == "slide"]
    setup = [cell.source for cell in cells if "setup" in cell.metadata.get("tags", ())]
    decks = Outline(slides.build(path, tmp_path).read_text(encoding="utf-8")).slides
    assert len(tagged) >= 5 and setup
    assert len(decks) == len(tagged) + 1  # the title
    assert sum(map(len, decks)) == len(cells) - len(setup)
    shown = "\n".join(text for slide in decks for text in slide)
    assert [source for source in setup if source in shown] == []


def test_main_writes_one_deck_a_notebook(tmp_path, capsys):
    assert slides.main(["--only", "00", "--outputs", str(tmp_path)]) == 0
    assert [path.name for path in (tmp_path / "slides").iterdir()] == ["00_start_here.slides.html"]
    out = capsys.readouterr().out
    assert "needs a network" in out and "npm install" in out and "reveal.js@4" in out
    assert slides.main(["--only", "99"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
