"""How the command shows what a run warns of."""

from __future__ import annotations

import warnings

from gpart.cli.message import PACKAGE, own_warnings_in_a_line


def test_a_warning_of_ours_is_one_line_and_others_stay_as_they_are() -> None:
    before = warnings.formatwarning
    with own_warnings_in_a_line():
        ours = warnings.formatwarning(
            "1 row was\nleft out", UserWarning, str(PACKAGE / "loading.py"), 3, "warn(f'{x}')"
        )
        theirs = warnings.formatwarning("slow", UserWarning, "/somewhere/torch/x.py", 3, "warn('slow')")
    assert ours == "gpart: warning: 1 row was left out\n"
    assert theirs == before("slow", UserWarning, "/somewhere/torch/x.py", 3, "warn('slow')")
    assert warnings.formatwarning is before
