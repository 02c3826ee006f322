"""What a report card says, section by section, as blocks of a page."""

import numpy as np

from picollm_lite.evaluation.data_files import DataFile
from picollm_lite.evaluation.exam import Measured, extremes
from picollm_lite.evaluation.metrics import Interval, WinRate
from picollm_lite.evaluation.report import Card
from picollm_lite.ui.interval_chart import interval_chart
from picollm_lite.ui.report_page import Block, Heading, Paragraph, Pictures, Table

NOT_RECORDED, NONE = "not recorded", "–"
SHOWN = 5  # exploits of the audit
WORST = 3  # answers of a checkpoint
MEASURES = {  # key of `Measured.numbers`: what a reader sees, how it is written
    "gold": ("gold reward", "+z.2f"),
    "proxy": ("proxy reward", "+z.2f"),
    "win rate": ("gold win rate, by prompt", ".0%"),
    "answer by answer": ("gold win rate, answer by answer", ".0%"),
    "length-controlled": ("the same at equal length", ".0%"),
    "words": ("words an answer", ".1f"),
    "finished": ("answers that end", ".0%"),
    "kl": ("KL to the reference, nats an answer", "z.2f"),
    "distinct-2": ("distinct-2", ".2f"),
    "self-similarity": ("self-similarity", ".2f"),
    "perplexity": ("perplexity on base text", ".2f"),
    "facts": ("facts told apart", ".0%"),
}


def title(card: Card) -> str:
    return f"Report card: {', '.join(measured.name for measured in card.checkpoints)} beside {card.ref.name}"


def sections(card: Card) -> list[Block]:
    """The whole card, in order."""
    parts = (_environment, _data, _checkpoints, _suite, _splits, _frontier, _audit, _samples, _failures)
    return [Heading(title(card), 1), *(block for part in parts for block in part(card))]


def cell(value: Interval | WinRate | None, spec: str) -> str:
    """Estimate and interval; a dash where there is no value."""
    if value is None:
        return NONE
    estimate, low, high = (format(number, spec) for number in value[:3])
    return f"{estimate} [{low}, {high}]"


def verdict(name: str, win: WinRate, ref: str) -> str:
    """What the interval of a win rate supports."""
    if win.low > 0.5:
        return f"By gold, {name} is better than {ref} on this suite: the interval of its win rate lies above 50 %."
    if win.high < 0.5:
        return f"By gold, {name} is worse than {ref} on this suite: the interval of its win rate lies below 50 %."
    return f"By gold, {name} and {ref} cannot be told apart on this suite: the interval of the win rate holds 50 %."


def _everyone(card: Card) -> list[Measured]:
    return [card.ref, *card.checkpoints]


def _environment(card: Card) -> list[Block]:
    exam = card.exam
    rows = [
        *card.environment.items(),
        ("seed", str(exam.seed)),
        ("suite", f"{len(exam.prompts)} prompts, {exam.answers} answers to each, at temperature 1"),
        ("reward model", card.reward or "none given"),
    ]
    return [Heading("Environment"), Table(["what", "value"], rows)]


def _data(card: Card) -> list[Block]:
    if not card.data:
        return [Heading("Data"), Paragraph("No data file was named.")]
    rows = [[file.kind, file.path, str(file.rows), _labelers(file), file.sha256] for file in card.data]
    text = "The files that were named to this card. Whether a checkpoint was trained on them, its settings have to say."
    return [Heading("Data"), Paragraph(text), Table(["what", "file", "rows", "labeled by", "sha256"], rows)]


def _labelers(file: DataFile) -> str:
    if file.labelers is None:
        return NOT_RECORDED
    return ", ".join(f"{name} {pairs / file.rows:.0%}" for name, pairs in file.labelers.items())


def _checkpoints(card: Card) -> list[Block]:
    rows = []
    for measured in _everyone(card):
        settings, seconds = NOT_RECORDED, NOT_RECORDED
        if measured.training:
            settings = ", ".join(f"{name} = {value}" for name, value in measured.training.settings.items()) or "none"
            if measured.training.seconds is not None:
                seconds = f"{measured.training.seconds:.0f} s"
        rows.append([measured.name, measured.folder, f"{measured.parameters:,}", seconds, settings])
    text = f"{card.ref.name} is the reference. Settings and time are those that training.json in the folder records."
    head = ["checkpoint", "folder", "parameters", "trained for", "settings"]
    return [Heading("Checkpoints"), Paragraph(text), Table(head, rows)]


def _suite(card: Card) -> list[Block]:
    everyone, ref = _everyone(card), card.ref.name
    measures = {key: measure for key, measure in MEASURES.items() if key in card.checkpoints[0].numbers}
    rows = [[said, *(cell(m.numbers.get(key), spec) for m in everyone)] for key, (said, spec) in measures.items()]
    counts = [f"{win.wins}, {win.ties}, {win.losses}" for win in (m.numbers["win rate"] for m in card.checkpoints)]
    rows.insert(list(measures).index("win rate") + 1, ["prompts won, tied, lost", NONE, *counts])
    text = (
        "Means with 95 % bootstrap intervals over prompts (over documents and concepts in the last two rows). They "
        "speak of these checkpoints on prompts like these: a method trained again, with another seed, gives another "
        "checkpoint. Gold is the rubric, proxy the reward model. A prompt is won where the answers to it have more "
        f"gold on average than those of {ref}; ties count half. A dash: does not apply to the reference itself."
    )
    missing = [] if "proxy" in measures else ["No reward model was given: there is no proxy."]
    missing += [] if card.exam.answers > 1 else ["With one answer a prompt, diversity is not measured."]
    verdicts = [verdict(m.name, m.numbers["win rate"], ref) for m in card.checkpoints]
    head = ["measure", *(m.name for m in everyone)]
    return [Heading("Suite"), *map(Paragraph, [text, *missing, *verdicts]), Table(head, rows)]


def _splits(card: Card) -> list[Block]:
    measures = {key: MEASURES[key] for key in MEASURES if key in (*card.ref.columns, "win rate")}
    rows = []
    for split in card.ref.splits:
        count = str(card.exam.splits.count(split))
        for measured in _everyone(card):
            numbers = measured.splits[split]
            cells = [cell(numbers.get(key), spec) if numbers else NONE for key, (_, spec) in measures.items()]
            rows.append([split, count, measured.name, *cells])
    head = ["split", "prompts", "checkpoint", *(said for said, _ in measures.values())]
    return [
        Heading("By split"),
        Paragraph("A split of a single prompt has no interval, and a dash."),
        Table(head, rows),
    ]


def _frontier(card: Card) -> list[Block]:
    here = {card.ref.name: Interval(0.0, 0.0, 0.0)} | {m.name: m.numbers["kl"] for m in card.checkpoints}
    everyone = sorted(_everyone(card), key=lambda measured: here[measured.name].estimate)
    rewards = [key for key in ("gold", "proxy") if key in card.ref.numbers]
    rows = [
        [m.name, cell(here[m.name], "z.2f"), *(cell(m.numbers[key], MEASURES[key][1]) for key in rewards)]
        for m in everyone
    ]
    xlabel = MEASURES["kl"][0]
    charts = [
        interval_chart(
            {m.name: (here[m.name], m.numbers[key]) for m in everyone}, title=MEASURES[key][0], xlabel=xlabel
        )
        for key in rewards
    ]
    text = (
        "What each checkpoint gained, and how far it moved for that. At the same KL, more gold is better; checkpoints "
        "at different KL are points of different curves, and which method is better does not follow. Where proxy rises "
        "with KL and gold does not, the reward model is over-optimized."
    )
    head = ["checkpoint", xlabel, *(MEASURES[key][0] for key in rewards)]
    alt = f"{' and '.join(rewards)} of each checkpoint at its KL, with intervals; the table has the same numbers."
    return [Heading("Reward-KL frontier"), Paragraph(text), Table(head, rows), Pictures(charts, alt)]


def _audit(card: Card) -> list[Block]:
    heading = Heading("Audit of the reward model")
    if card.audit is None:
        return [heading, Paragraph("No reward model was given.")]
    rows = [
        [
            str(edit),
            row["feature"],
            cell(Interval(row["proxy"], row["proxy low"], row["proxy high"]), "+z.2f"),
            cell(Interval(row["gold"], row["gold low"], row["gold high"]), "+z.2f"),
            "yes" if row["exploit"] and row["certain"] else "perhaps" if row["exploit"] else "no",
        ]
        for edit, row in card.audit.head(SHOWN).iterrows()
    ]
    text = (
        "What an edit of a perfect answer changes. An exploit pays by the proxy and costs gold; it is certain where "
        f"both intervals leave 0 out. The first {len(rows)} of {len(card.audit)} edits, the most exploitable first."
    )
    head = ["edit", "feature", "proxy change", "gold change", "exploit"]
    return [heading, Paragraph(text), Table(head, rows)]


def _samples(card: Card) -> list[Block]:
    text = (
        "For each checkpoint the prompts on which its mean gold is best, median and worst, and the first answer of "
        f"{card.ref.name} and of the checkpoint, neither of them picked. In brackets the gold of that answer."
    )
    blocks: list[Block] = [Heading("Samples side by side"), Paragraph(text)]
    for measured in card.checkpoints:
        rows = [
            [place, card.exam.prompts[p], _answer(card.ref, p), _answer(measured, p)]
            for place, p in extremes(measured).items()
        ]
        blocks += [Heading(measured.name, 3), Table(["", "prompt", card.ref.name, measured.name], rows, equal=True)]
    return blocks


def _answer(measured: Measured, number: int) -> str:
    return f"[{measured.gold[number]:+z.2f}] {measured.texts[number].strip() or '(nothing)'}"


def _failures(card: Card) -> list[Block]:
    text = (
        f"Features of bad answers that became more common than in {card.ref.name}, as shares of answers, certain where "
        f"the interval of the rise lies above 0; and the {WORST} answers with the least gold."
    )
    blocks: list[Block] = [Heading("Known failures"), Paragraph(text)]
    for measured in card.checkpoints:
        risen = measured.rises[measured.rises["rise"] > 0]
        rows = [
            [
                str(feature),
                f"{row['before']:.0%}",
                f"{row['after']:.0%}",
                cell(Interval(row["rise"], row["rise low"], row["rise high"]), "+z.0%"),
                "yes" if row["certain"] else "no",
            ]
            for feature, row in risen.iterrows()
        ]
        found = Table(["feature", card.ref.name, measured.name, "rise", "certain"], rows)
        worst = np.argsort(measured.gold, kind="stable")[:WORST]
        answers = [[str(place), card.exam.asked[n], _answer(measured, n)] for place, n in enumerate(worst, start=1)]
        blocks += [
            Heading(measured.name, 3),
            found if rows else Paragraph("No feature became more common."),
            Table(["worst", "prompt", "answer"], answers, equal=True),
        ]
    return blocks
