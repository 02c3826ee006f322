"""Turns each stored notebook into a reveal.js deck in outputs/slides/ (`make slides`); builds without a network.

    python -m picollm_lite.slides [--only 01 04] [--outputs DIR]

To the right go the cells tagged `slide`, which tell the story; below each of them stand the cells up to the next one.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

from picollm_lite import paths
from picollm_lite.course import find_notebooks

LOOK = {
    "reveal_theme": "white",  # the default theme takes its fonts from Google
    "reveal_width": "1600",  # holds a line of code of 120 characters
    "reveal_height": "900",
    "exclude_input_prompt": True,
    "exclude_output_prompt": True,
    "embed_images": True,
    # Notebooks have no diagrams in Mermaid; without this each deck fetches megabytes of it.
    "mermaid_js_url": "data:text/javascript,export default {initialize() {}}",
}
# A slide that is higher than the screen scrolls (nbconvert's own reveal_scroll ignores that reveal.js scales slides).
STYLE = f"""<style>
.reveal .slides section section {{ max-height: {LOOK["reveal_height"]}px; overflow-y: auto; }}
:root {{ --jp-content-font-size1: 21px; --jp-code-font-size: 17px; --r-heading-text-transform: none; }}
</style>
"""
# What a browser fetches when a deck is shown, as `npm install` lays it out beside the decks.
PACKAGES = ("reveal.js@4", "mathjax@2", "jquery@3", "requirejs@2")
LOCAL = {
    "reveal_url_prefix": "node_modules/reveal.js",
    "mathjax_url": "node_modules/mathjax/MathJax.js?config=TeX-AMS_CHTML-full,Safe",
    "jquery_url": "node_modules/jquery/dist/jquery.min.js",
    "require_js_url": "node_modules/requirejs/require.js",
}


def build(notebook: Path, folder: Path) -> Path:
    """Writes the notebook's deck to `folder`; it uses the local packages if `folder` has node_modules."""
    nb = nbformat.read(notebook, as_version=4)
    for cell in nb.cells:
        kind = "skip" if "setup" in cell.metadata.get("tags", ()) else "subslide"
        cell.metadata.setdefault("slideshow", {"slide_type": kind})
    exporter = SlidesExporter(**LOOK, **(LOCAL if (folder / "node_modules").is_dir() else {}))
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    page, _ = exporter.from_notebook_node(nb, resources=resources)
    back = Path(os.path.relpath(notebook.parent, folder)).as_posix()
    page = re.sub(r'<a href="(?![a-z]+:|#)', f'<a href="{back}/', page)  # links were relative to the notebook
    page = page.replace("</head>", STYLE + "</head>", 1)
    folder.mkdir(parents=True, exist_ok=True)
    deck = folder / f"{notebook.stem}.slides.html"
    deck.write_text(page, encoding="utf-8")
    return deck


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.slides", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="only notebooks whose names start so")
    parser.add_argument("--outputs", type=Path, metavar="DIR", help="where results go (default: outputs/)")
    options = parser.parse_args(arguments)
    folder = (options.outputs or paths.outputs()).resolve() / "slides"
    try:
        for notebook in find_notebooks(".ipynb", options.only):
            print(build(notebook, folder))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not (folder / "node_modules").is_dir():
        print(f"Showing them needs a network. To show them without: npm install --prefix {folder} {' '.join(PACKAGES)}")
        print("once, while there is one, then make slides again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
