"""Labels for pairs: from the simulated panel, from people with a spreadsheet, from people at the widget."""

import csv
import io
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from picollm_lite.chat import readable
from picollm_lite.collection.label_store import CHOICES, SIDES, UNDECIDED, read_rows, undecided_path
from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.files import replace_file
from picollm_lite.world.annotators import PANEL, Annotator, draw

LABELS = (*CHOICES, *UNDECIDED)
TEXTS = ("prompt", "a", "b")
COLUMNS = ("id", *TEXTS, "label")
# A spreadsheet runs a cell as a formula if it begins so; an apostrophe before it keeps it a text.
FORMULA = r"\s*[=+\-@＝＋－＠]"


def pairs_by_id(pairs: Iterable[AnswerPair]) -> dict[str, AnswerPair]:
    """Raises ValueError where two pairs have one id."""
    known = {}
    for pair in pairs:
        if pair.id in known:
            raise ValueError(f"expected a different id for every pair, got {pair.id!r} twice")
        known[pair.id] = pair
    return known


def find_pair(known: Mapping[str, AnswerPair], pair_id: str, where: str) -> AnswerPair:
    """Raises ValueError naming `where` for an id that no pair has."""
    if pair_id not in known:
        raise ValueError(
            f"{where}: none of the {len(known)} pairs has the id {pair_id!r}: pass the pairs it belongs to"
        )
    return known[pair_id]


def panel_votes(
    pairs: Iterable[AnswerPair], panel: Sequence[Annotator] = PANEL, *, votes: int = 1, seed: int = 0
) -> list[Vote]:
    """`votes` labels a pair by simulated annotators, drawn by share, none a second time before all had their turn.

    A pair's votes hang on the seed and its id alone, and with more votes the first ones stay.
    Raises ValueError naming the pair whose prompt ends with no question of the course desk.
    """
    if votes < 1 or not any(annotator.share > 0 for annotator in panel):
        raise ValueError(f"expected votes >= 1 and a panel with a share above 0, got votes={votes}, {panel}")
    given = []
    for pair in pairs:
        rng = random.Random(f"panel {seed} {pair.id}")
        given += [_vote(pair, annotator, rng) for annotator in islice(_by_share(panel, rng), votes)]
    return given


def all_votes(
    pairs: Iterable[AnswerPair], panel: Sequence[Annotator] = PANEL, *, repeats: int = 1, seed: int = 0
) -> list[Vote]:
    """Every annotator labels every pair, `repeats` times anew. Raises as `panel_votes` does."""
    if repeats < 1:
        raise ValueError(f"expected repeats >= 1, got {repeats}")
    given = []
    for pair in pairs:
        rng = random.Random(f"all {seed} {pair.id}")
        given += [_vote(pair, annotator, rng) for annotator in panel for _ in range(repeats)]
    return given


def write_csv(path: str | Path, pairs: Iterable[AnswerPair]) -> Path:
    """A table to label in a spreadsheet: `label` is to be filled with a, b, tie or skip, all else to be left alone.

    Raises FileExistsError where a file with other lines, that may be labels, would go.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for pair in pairs_by_id(pairs).values():
        writer.writerow([_as_text(cell) for cell in (pair.id, *_texts(pair), "")])
    path, data = Path(path), table.getvalue().encode("utf-8-sig")  # the mark tells a spreadsheet that this is UTF-8
    if path.exists() and path.read_bytes() != data:
        raise FileExistsError(f"{path} exists and holds something else, labels perhaps: name another file")
    return replace_file(path, data)


def read_csv(path: str | Path, pairs: Iterable[AnswerPair], annotator: str) -> list[Vote]:
    """The labels in a table of `write_csv`, with a warning that counts the pairs without one.

    Column a stands first, so that is `shown_first`. Raises ValueError naming the line for an unknown id, an unknown
    label, a text that was edited, or a second line for a pair.
    """
    path, known, labels = Path(path), pairs_by_id(pairs), {}
    for cells, where in _lines(path):
        pair = find_pair(known, _as_it_was(cells["id"]), where)
        edited = [key for key, text in zip(TEXTS, _texts(pair), strict=True) if _as_it_was(cells[key]) != _lf(text)]
        if edited:
            raise ValueError(f"{where}: {', '.join(edited)} of {pair.id} was edited: fill in the column `label` only")
        label = cells["label"].strip().lower()
        if label not in ("", *LABELS):
            raise ValueError(f"{where}: expected a label out of {', '.join(LABELS)}, or none, got {cells['label']!r}")
        if pair.id in labels:
            raise ValueError(f"{where}: a second line for {pair.id}: take one out")
        labels[pair.id] = label
    votes = [Vote(pair_id, annotator, label, "a") for pair_id, label in labels.items() if label]
    if len(votes) < len(known):
        warnings.warn(f"{path}: {len(known) - len(votes)} of {len(known)} pairs have no label yet", stacklevel=2)
    return votes


def widget_votes(path: str | Path, pairs: Iterable[AnswerPair]) -> list[Vote]:
    """Everybody's labels in the two files of the labeling widget; `path` is the one with the choices.

    Pairs that were labeled as preference rows have the chosen answer as a. Raises FileNotFoundError, or ValueError
    naming file and line for a label of an unknown pair, or of one that had other texts.
    """
    path, known, votes = Path(path), pairs_by_id(pairs), []
    if not (path.exists() or undecided_path(path).exists()):
        raise FileNotFoundError(f"no labels at {path}: check the path, or label a pair first")
    for row, where in read_rows(path):
        pair, first = find_pair(known, row["id"], where), SIDES[row["shown_first"]]
        label = row["label"]
        if label in CHOICES:
            label = first if label == "a" else _other(first)
            texts = [pair.prompt, getattr(pair, label), getattr(pair, _other(label))]
            if [row.get(key) for key in ("prompt", "chosen", "rejected")] != texts:
                raise ValueError(f"{where}: {pair.id} has other texts here: pass the pairs that were labeled")
        votes.append(Vote(pair.id, row["annotator"], label, first))
    return votes


def _by_share(panel: Sequence[Annotator], rng: random.Random) -> Iterator[Annotator]:
    left: list[Annotator] = []
    while True:
        left = left or [annotator for annotator in panel if annotator.share > 0]
        drawn = draw(rng, left)
        left.remove(drawn)
        yield drawn


def _vote(pair: AnswerPair, annotator: Annotator, rng: random.Random) -> Vote:
    try:
        prefers_a = annotator.prefers_first(pair.prompt[-1]["content"], readable(pair.a), readable(pair.b), rng)
    except ValueError as error:
        raise ValueError(f"{pair.id}: {error}") from None
    return Vote(pair.id, annotator.name, "a" if prefers_a else "b", rng.choice("ab"))


def _other(side: str) -> str:
    return "b" if side == "a" else "a"


def _texts(pair: AnswerPair) -> list[str]:
    return [readable(getattr(pair, key)) for key in TEXTS]


def _as_text(cell: str) -> str:
    return f"'{cell}" if re.match(f"'*{FORMULA}", cell) else cell


def _as_it_was(cell: str) -> str:
    """What `_as_text` was given; a spreadsheet may have taken the apostrophe for its own, and other line ends."""
    return _lf(cell[1:] if re.match(f"'+{FORMULA}", cell) else cell)


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """Each row's cells by column, and the line on which it begins; cells missing at the end are empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}): save it as CSV in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not any(row):  # a blank line, or empty cells below the table
                continue
            if not header:
                header = row
                missing = [name for name in COLUMNS if name not in header]
                if missing:
                    raise ValueError(f"{where}: expected the columns {', '.join(COLUMNS)}, comma-separated, got {row}")
            elif len(row) > len(header):
                raise ValueError(f"{where}: expected {len(header)} cells, got {len(row)}")
            else:
                yield dict(zip(header, row + [""] * (len(header) - len(row)), strict=True)), where
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: no CSV ({error})") from None
    if not header:
        raise ValueError(f"{path} is empty: expected the table that write_csv wrote")
