"""Draws docs/partition.svg: a small model's weights as one vector, cut into groups by the real partition.

python docs/draw_partition.py
"""

from __future__ import annotations

from pathlib import Path

from gpart import Partition

COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2"]
LAYERS = [("layer 1: query", 4, 6), ("layer 1: value", 4, 6), ("layer 2: query", 4, 6), ("layer 2: value", 4, 6)]
CELL = 20


def main() -> None:
    """Writes the picture beside this file."""
    size, d = sum(rows * columns for _, rows, columns in LAYERS), len(COLOURS)
    partition = Partition(size=size, d=d, seed=0)
    groups, sizes = partition.groups().tolist(), partition.sizes().tolist()
    shapes: list[str] = []
    x, position = 20, 0
    for name, rows, columns in LAYERS:
        shapes.append(text(x, 62, name))
        for row in range(rows):
            for column in range(columns):
                shapes.append(cell(x + column * CELL, 72 + row * CELL, COLOURS[groups[position]]))
                position += 1
        x += columns * CELL + 36
    y = 72 + 4 * CELL + 62
    shapes += [text(20, 30, "W = W₀ + P·θ: each weight belongs to one of d groups, across all layers", 16)]
    shapes += [text(20, y - 14, f"θ: one trainable number a group, d = {d}; stored: the seed and these numbers")]
    for group, colour in enumerate(COLOURS):
        at = 20 + group * 128
        shapes.append(cell(at, y, colour, 30))
        shapes.append(text(at + 38, y + 20, f"θ{'₀₁₂₃₄'[group]} / √{sizes[group]}"))
    width, height = x, y + 50
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    body = "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>", ""])
    Path(__file__).with_name("partition.svg").write_text(body)


def cell(x: int, y: int, colour: str, side: int = CELL) -> str:
    """One weight."""
    return f'<rect x="{x}" y="{y}" width="{side - 2}" height="{side - 2}" rx="2" fill="{colour}"/>'


def text(x: int, y: int, words: str, size: int = 13) -> str:
    """One line of text."""
    return f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{size}" fill="#333">{words}</text>'


if __name__ == "__main__":
    main()
