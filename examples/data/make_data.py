"""Makes the example files of this folder; they are committed, so nobody has to run it.

    python examples/data/make_data.py

All texts are ours. They are put together from parts by a seed, so that a small encoder can learn something from them.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

HERE = Path(__file__).parent

TICKETS = {
    "billing": [
        (
            "I was charged twice",
            "The invoice shows the wrong amount",
            "My refund has not come yet",
            "The discount was not applied",
        ),
        (
            "for the order of {day}",
            "on my card last week",
            "although I cancelled in {month}",
            "and the tax is missing too",
        ),
        ("Please send a corrected bill.", "Can you pay back the difference?", "I need a receipt for my employer.", ""),
    ],
    "delivery": [
        (
            "The parcel has not arrived",
            "My box came open and wet",
            "The courier left it at the wrong house",
            "Tracking has stood still",
        ),
        (
            "since {day}",
            "although it was promised for {day}",
            "and half of the items are missing",
            "after two weeks of waiting",
        ),
        ("Where is it now?", "Please send it again.", "I will be away from {month} on.", ""),
    ],
    "technical": [
        ("The app closes by itself", "I cannot log in any more", "The page stays white", "Searching gives an error"),
        (
            "since the update of {day}",
            "on my old tablet",
            "whenever I open the settings",
            "although I installed it again in {month}",
        ),
        ("What can I do?", "A screenshot is attached.", "It worked before.", ""),
    ],
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
MONTHS = ("January", "March", "May", "July", "September")

GOOD = ("The room was spotless", "Breakfast was a delight", "The staff remembered our names", "We slept like stones")
BAD = ("The walls were thin", "The shower stayed cold", "Nobody answered at the desk", "The bed had a hole")
ENDINGS = ("in {month}", "on both nights", "for the whole stay", "when we came on {day}", "as a friend had told us")

SUBJECTS = (
    "The library",
    "A bakery",
    "The museum",
    "The swimming pool",
    "The town hall",
    "A bus line",
    "The market",
    "The cinema",
)
SAME = (
    ("{s} opens at nine on {day}.", "On {day}, {l} is open from nine o'clock."),
    ("{s} will be closed in {month}.", "In {month}, {l} stays shut."),
    ("{s} costs nothing for children.", "Children need not pay at {l}."),
    ("{s} is looking for helpers in {month}.", "Helpers are wanted at {l} in {month}."),
)

TOPICS = {
    "sport": ("wins the final", "loses on penalties", "signs a young striker", "runs a record at the marathon"),
    "weather": ("expects heavy rain", "is covered in fog", "counts ten days of frost", "waits for the storm to pass"),
    "culture": ("opens a new gallery", "brings an old opera back", "shows silent films", "lends a rare manuscript"),
}
PLACES = ("The north", "The capital", "The coast", "The valley", "The old port", "The island", "The border town")


def filled(text: str, draw: random.Random) -> str:
    """A text with its days and months."""
    return text.format(day=draw.choice(DAYS), month=draw.choice(MONTHS))


def tickets(draw: random.Random) -> list[list[object]]:
    """150 messages for three teams."""
    found: dict[str, str] = {}
    for team, parts in TICKETS.items():
        while sum(one == team for one in found.values()) < 50:
            found[
                filled(" ".join(draw.choice(part) for part in parts[:2]) + f". {draw.choice(parts[2])}", draw).strip()
            ] = team
    rows = list(found.items())
    draw.shuffle(rows)
    return [[number, text, team] for number, (text, team) in enumerate(rows, start=1001)]


def stays(draw: random.Random) -> list[list[object]]:
    """100 reviews of two sentences with a score from 1 to 10."""
    found: dict[str, float] = {}
    while len(found) < 100:
        kinds = [draw.random() < 0.5 for _ in range(2)]
        halves = [f"{draw.choice(GOOD if good else BAD)} {draw.choice(ENDINGS)}." for good in kinds]
        found[filled(" ".join(halves), draw)] = round(2.0 + 3.5 * sum(kinds) + draw.uniform(-0.9, 0.9), 1)
    return [[text, score] for text, score in found.items()]


def pairs(draw: random.Random) -> list[list[object]]:
    """100 pairs of sentences that say the same, or do not."""
    found: dict[tuple[str, str], str] = {}
    while len(found) < 100:
        same = len(found) % 2 == 0
        (first, _), (_, second) = one, other = draw.choice(SAME), draw.choice(SAME)
        subject, day, month = draw.choice(SUBJECTS), draw.choice(DAYS), draw.choice(MONTHS)
        names = {"s": subject, "l": subject[0].lower() + subject[1:], "day": day, "month": month}
        if same:
            second = one[1]
        elif one == other:
            continue
        found[first.format(**names), second.format(**names)] = "same" if same else "other"
    return [[*texts, label] for texts, label in found.items()]


def headlines(draw: random.Random) -> list[dict[str, str]]:
    """84 headlines of three topics."""
    every = [
        {"text": f"{place} {says}", "label": topic}
        for topic, some in TOPICS.items()
        for says in some
        for place in PLACES
    ]
    draw.shuffle(every)
    return every


def write(name: str, header: list[str], rows: list[list[object]], delimiter: str = ",") -> None:
    """Writes a table."""
    with (HERE / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    draw = random.Random(0)
    write("tickets.csv", ["id", "message", "team"], tickets(draw))
    write("stays.csv", ["review", "score"], stays(draw))
    write("pairs.tsv", ["sentence1", "sentence2", "label"], pairs(draw), "\t")
    lines = "".join(json.dumps(row) + "\n" for row in headlines(draw))
    (HERE / "headlines.jsonl").write_text(lines, encoding="utf-8")
