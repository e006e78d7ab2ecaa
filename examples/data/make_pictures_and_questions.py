"""Makes ``questions.jsonl`` and ``shapes/`` in this folder, the same each time: our own, small enough to look through.

python examples/data/make_pictures_and_questions.py
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

NAMES = ["Ada", "Bo", "Chidi", "Dana", "Emil", "Fatou", "Goran", "Hana", "Ines", "Jonas"]
THINGS = ["apples", "pencils", "stamps", "shells", "marbles", "tickets", "buttons", "cards"]
SHAPES = ["circle", "square", "triangle"]
QUESTIONS, PICTURES, SIZE = 60, 20, 32


def question(number: int, rng: random.Random) -> dict[str, str]:
    """One of four kinds of problem, by its number. The answer says each step, and the result after four hash signs."""
    one, two = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    a, b, c = rng.randint(3, 20), rng.randint(2, 9), rng.randint(2, 9)
    if number % 4 == 0:
        asked = f"{one} has {a} {thing} and finds {b} more. Then {two} brings {c}. How many {thing} are there?"
        steps, result = f"{a} + {b} = {a + b}. {a + b} + {c} = {a + b + c}.", a + b + c
    elif number % 4 == 1:
        asked = f"{one} fills {b} boxes with {c} {thing} each and has {a} left over. How many {thing} has {one}?"
        steps, result = f"{b} * {c} = {b * c}. {b * c} + {a} = {b * c + a}.", b * c + a
    elif number % 4 == 2:
        whole = b * c
        asked = f"{one} shares {whole} {thing} equally among {b} friends. How many {thing} does each friend get?"
        steps, result = f"{whole} / {b} = {c}.", c
    else:
        asked = f"{one} had {a + b + c} {thing}, gave {b} to {two} and lost {c}. How many {thing} are left?"
        steps, result = f"{a + b + c} - {b} = {a + c}. {a + c} - {c} = {a}.", a
    return {"question": asked, "answer": f"{steps}\n#### {result}"}


def picture(shape: str, rng: random.Random) -> Image.Image:
    """A filled shape at some place, of some size and colour, on a plain ground."""
    ground = tuple(rng.randint(200, 255) for _ in range(3))
    image = Image.new("RGB", (SIZE, SIZE), ground)
    side = rng.randint(12, 22)
    x, y = rng.randint(1, SIZE - side - 2), rng.randint(1, SIZE - side - 2)
    colour = tuple(rng.randint(0, 140) for _ in range(3))
    draw, box = ImageDraw.Draw(image), (x, y, x + side, y + side)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=colour)
    return image


def make(folder: Path) -> None:
    """Writes both into a folder."""
    rng = random.Random(0)
    lines = [json.dumps(question(number, rng)) + "\n" for number in range(QUESTIONS)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(lines))
    for shape in SHAPES:
        (folder / "shapes" / shape).mkdir(parents=True, exist_ok=True)
        for number in range(PICTURES):
            picture(shape, rng).save(folder / "shapes" / shape / f"{shape}-{number:02}.png", optimize=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
