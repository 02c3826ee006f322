"""The report card of any checkpoints beside the one that they started from: report_card.md and report_card.html.

    python -m picollm_lite.report_card CHECKPOINT [...] --ref CHECKPOINT [--reward CHECKPOINT] [--into FOLDER]

A checkpoint is a folder or, if you are online, a hub id. Both files are written when everything has been measured, and
neither where something fails. The page needs no network and no script.
"""

import argparse
import sys
from pathlib import Path

from picollm_lite import paths
from picollm_lite.data import load_suite
from picollm_lite.evaluation.data_files import describe_demos, describe_preferences
from picollm_lite.evaluation.report import Card, report_card
from picollm_lite.files import replace_file
from picollm_lite.ui.report_page import as_html, as_markdown
from picollm_lite.ui.report_sections import sections, title
from picollm_lite.ui.setup import start

MARKDOWN, HTML = "report_card.md", "report_card.html"


def write(card: Card, folder: str | Path) -> tuple[Path, Path]:
    """The card as Markdown and as an HTML page in `folder`, each written aside, then renamed."""
    blocks = sections(card)
    markdown, html = as_markdown(blocks, HTML), as_html(blocks, title(card))
    return replace_file(Path(folder) / MARKDOWN, markdown.encode()), replace_file(Path(folder) / HTML, html.encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm_lite.report_card", description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--ref", required=True, metavar="CHECKPOINT", help="what they started from, such as SFT")
    parser.add_argument("--reward", metavar="CHECKPOINT", help="the reward model; without one there is no proxy")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="default: report/ in the outputs")
    parser.add_argument("--suite", type=Path, default=paths.SUITE, metavar="FILE")
    parser.add_argument("--demos", type=Path, nargs="*", default=[paths.DEMOS], metavar="FILE")
    parser.add_argument("--preferences", type=Path, nargs="*", default=[paths.PREFERENCES], metavar="FILE")
    parser.add_argument("--answers", type=int, default=4, metavar="N", help="answers a prompt (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        device = start(options.seed)
        data = [*map(describe_demos, options.demos), *map(describe_preferences, options.preferences)]
        card = report_card(
            options.checkpoints,
            ref=options.ref,
            suite=load_suite(options.suite),
            reward=options.reward,
            data=data,
            answers=options.answers,
            seed=options.seed,
            device=device,
        )
        written = write(card, options.into or paths.outputs() / "report")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
