"""Jobs in several processes."""

from __future__ import annotations

import os
import time

import pytest
from worker_jobs import job

from gpart.errors import GPartError
from gpart.studies.landscape.workers import results


def test_one_worker_is_this_process_and_runs_a_job_when_it_is_asked_for() -> None:
    asked = results([0, 3], job, workers=1)
    assert next(asked) == (0, os.getpid())
    with pytest.raises(GPartError, match="three"):
        next(asked)


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(("last", "message"), [(3, "three is no number"), (4, "2 worker processes died")])
def test_a_job_that_fails_ends_the_others(last: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with pytest.raises(GPartError, match=message):
        # Four jobs: Python 3.11's pool may overlook the death of a worker that it started last until another job is handed in.
        list(results([5, last, 0, 0], job, workers=2))
    assert time.monotonic() - began < 150
    assert "Error" not in capfd.readouterr().err  # it died of the job, not of its import
