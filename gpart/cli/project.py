"""``gpart project``: an adapter in another layout, and what that loses."""

from __future__ import annotations

import json
from dataclasses import replace

from gpart.arithmetic import project, read
from gpart.cli.adapters import ADAPTER, check_output, console, facts, summary
from gpart.cli.message import Parser
from gpart.errors import GPartError

DESCRIPTION = """Brings an adapter to another layout: another seed or d, or the weights, seed and d of another adapter. Written is
the adapter whose update is nearest to the one that is projected; printed is the part that is lost. Two seeds share little: of
a random update about d/D of the squared norm is kept."""


def project_command(words: list[str]) -> int:
    """Writes the projected adapter, and prints what is kept and lost.

    Raises:
        GPartError: if the layouts are not of one base, d is more than D, or something is in the folder already.
    """
    parser = Parser(prog="gpart project", description=DESCRIPTION)
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--d", type=int, metavar="N", help="length of the new theta; default: the adapter's")
    parser.add_argument("--seed", type=int, metavar="N", help="the new seed; default: the adapter's")
    parser.add_argument("--like", metavar="OTHER", help="an adapter whose adapted weights, d and seed are used")
    parser.add_argument("--no-check-base", action="store_true", help="project even if the bases seem to differ")
    parser.add_argument("--force", action="store_true", help="write to OUT even if it is not empty")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args(words)
    changes = {key: value for key, value in (("d", asked.d), ("seed", asked.seed)) if value is not None}
    if (asked.like is None) == (not changes):
        given = f"--like {asked.like} and {', '.join(f'--{key} {value}' for key, value in changes.items())}"
        raise GPartError(f"gpart project takes --d and --seed, or --like OTHER; got {given if changes else 'none'}")
    check_output(asked.out, asked.force)
    stored = read(asked.adapter)
    onto = replace(stored.manifest.config, **changes) if asked.like is None else read(asked.like)
    made = project(stored, onto, check_base=not asked.no_check_base)
    made.adapter.save(asked.out)
    if asked.json:
        numbers = {"norm": made.norm, "kept": made.kept, "lost": made.lost, "relative": made.relative}
        print(json.dumps({"written": asked.out, "projected": stored.source, **numbers}, indent=2, ensure_ascii=False))
        return 0
    rows = {
        "written": asked.out,
        "projected": f"{stored.source} (norm {made.norm:.6g})",
        **summary(made.adapter),
        "lost": f"{made.lost:.6g} ({made.relative:.2%} of the norm)",
    }
    console().print(facts(rows))
    return 0
