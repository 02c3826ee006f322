"""The card of a preference set: README.md of its folder, with the header that the `datasets` library reads."""

import html
import re
from collections.abc import Mapping, Sequence

import pandas as pd
import yaml

from picollm_lite.collection.pairs import AnswerPair, Vote
from picollm_lite.evaluation.agreement import flip_rates, gold_agreement, label_shares, pairwise_kappa, panel_alpha
from picollm_lite.evaluation.composition import (
    ask_shares,
    concept_shares,
    length_bias,
    length_quantiles,
    openings,
    position_bias,
)
from picollm_lite.evaluation.label_drivers import feature_margins, label_drivers, suspected_biases
from picollm_lite.evaluation.votes import CHOICES, vote_table
from picollm_lite.world.annotators import Annotator

Split = tuple[Sequence[AnswerPair], Sequence[Vote]]
SHOWN = 10  # rows of a table that has one for each concept or opening
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
LARGEST = "n>1M"


def data_card(
    title: str,
    splits: Mapping[str, Split],
    *,
    files: Mapping[str, str],
    collected: str,
    limits: Sequence[str],
    language: str = "en",
    license: str = "mit",
    panel: Sequence[Annotator] = (),
) -> str:
    """The card as Markdown: how it was collected, counts by split, and the four questions over all splits together.

    `files` names each split's JSONL or Parquet file beside the card. `collected` and `limits` are an author's Markdown;
    what comes from the data is escaped. `panel` adds the flip rates that known annotators should have. Raises
    ValueError where `files` and `splits` differ or an id stands in two splits.
    """
    if list(files) != list(splits):
        raise ValueError(f"expected one file for each of the splits {list(splits)}, got files for {list(files)}")
    pairs = [pair for split in splits.values() for pair in split[0]]
    votes = [vote for split in splits.values() for vote in split[1]]
    vote_table(votes, pairs)
    head = {
        "pretty_name": title,
        "language": [language],
        "license": license,
        "task_categories": ["text-generation"],
        "tags": ["preferences", "reward-modeling", "dpo"],
        "size_categories": [next((name for bound, name in SIZES if len(pairs) < bound), LARGEST)],
        "configs": [
            {"config_name": "default", "data_files": [{"split": name, "path": file} for name, file in files.items()]}
        ],
    }
    sections = [
        "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---",
        f"# {markdown_text(title)}",
        "Intervals are 95 %. Numbers that the data cannot give are marked as unknown.",
        "## How it was collected",
        collected.strip(),
        "## Counts by split",
        markdown_table(_counts(splits)),
        *_who_labeled(votes),
        *_what_rubric(pairs, votes),
        *_how_noisy(pairs, votes, panel),
        *_what_is_over_represented(pairs, votes),
        "## Known limits",
        "\n".join(f"- {limit.strip()}" for limit in limits),
    ]
    return "\n\n".join(sections) + "\n"


def markdown_table(table: pd.DataFrame, *, shown: int | None = None) -> str:
    """A table in GitHub's Markdown, every text in it escaped; beyond `shown` rows it says how many are missing."""
    rows = [list(table.columns), *table.head(shown if shown is not None else len(table)).itertuples(index=False)]
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(table.columns))
    if len(table) > len(rows) - 1:
        lines += ["", f"The first {len(rows) - 1} of {len(table)} rows."]
    return "\n".join(lines)


def _who_labeled(votes: Sequence[Vote]) -> list[str]:
    return [
        "## Who labeled",
        markdown_table(label_shares(votes)),
        "Cohen's kappa of every two annotators, on the pairs that both labeled; ties are a label, skips are none:",
        markdown_table(pairwise_kappa(votes)),
        "Krippendorff's alpha of all annotators (nominal), on the pairs with two labels or more:",
        markdown_table(panel_alpha(votes)),
    ]


def _what_rubric(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> list[str]:
    drivers = label_drivers(pairs, votes)
    cells = [
        f"{_cell(row.coefficient)} ({_cell(row.low)} to {_cell(row.high)})" if row.low == row.low else "unknown"
        for row in drivers.itertuples()
    ]
    wide = drivers.assign(cell=cells).pivot(index="annotator", columns="feature", values="cell")
    wide = wide.loc[drivers.annotator.unique(), drivers.feature.unique()]
    return [
        "## Under what rubric",
        "What moves the labels: log-odds that an answer is preferred for one standard deviation more of a feature.",
        markdown_table(wide.rename_axis(columns=None).reset_index()),
        "Features that annotators favor although the rubric does not pay for them, or work against although it does:",
        markdown_table(suspected_biases(pairs, votes)),
    ]


def _how_noisy(pairs: Sequence[AnswerPair], votes: Sequence[Vote], panel: Sequence[Annotator]) -> list[str]:
    return [
        "## How noisy",
        "Labels that changed when an annotator saw a pair again, and the error of a single label that this implies:",
        markdown_table(flip_rates(pairs, votes, panel=panel)),
        "Agreement with the gold rubric:",
        markdown_table(gold_agreement(pairs, votes, feature_margins(pairs).gold)),
    ]


def _what_is_over_represented(pairs: Sequence[AnswerPair], votes: Sequence[Vote]) -> list[str]:
    return [
        "## What is over-represented",
        markdown_table(concept_shares(pairs), shown=SHOWN),
        markdown_table(ask_shares(pairs)),
        "Length in words:",
        markdown_table(length_quantiles(pairs, votes)),
        "How answers begin:",
        markdown_table(openings(pairs, votes), shown=SHOWN),
        "How often the longer answer is preferred, and how often the one shown first:",
        markdown_table(length_bias(pairs, votes)),
        markdown_table(position_bias(votes)),
    ]


def _counts(splits: Mapping[str, Split]) -> pd.DataFrame:
    rows = []
    for name, (pairs, votes) in splits.items():
        table = vote_table(votes, pairs)
        labels = [(table.label == label).sum() for label in (*CHOICES, "skip")]
        rows.append((name, len(pairs), table.pair.nunique(), len(table), table.annotator.nunique(), *labels))
    return pd.DataFrame(rows, columns=["split", "pairs", "labeled", "labels", "annotators", *CHOICES, "skip"])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "unknown" if value != value else f"{round(value, 3) + 0.0:g}"  # + 0.0: no "-0"
    if isinstance(value, tuple):
        return ", ".join(map(_cell, value)) or "nothing"
    return markdown_text(str(value))


def markdown_text(text: str) -> str:
    """Text of one line that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
