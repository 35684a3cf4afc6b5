"""A month of a nightly job on a folder in which images arrive, some of them under the wrong label for a week.

Each night runs the real commands under a real luigid: `Retrain`, `Prune --older-than 5d --confirm`, `Status --json`; a
service reads the current model all the time. `tests/nightly_job.py` compares all that they tell with what is known
otherwise, and ends this program where something is wrong.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import bench

sys.path.append(str(bench.ROOT / "tests"))

from luigid_process import luigid
from nightly_job import Night, NightlyJob

WORKDAY, NOTHING_NEW = Night(images=2), Night(outcome="")
WEEK = [*[WORKDAY] * 5, *[NOTHING_NEW] * 2]

MONTH = [
    Night(),  # the first model
    *WEEK,
    *[Night(images=2, wrong=3)] * 6,  # too few to be noticed
    Night(images=2, wrong=80, outcome="refused", back_to=9),  # somebody looks, and goes back to before the week
    Night(images=2, corrected=True),
    *WEEK,
    *WEEK,
]


def main() -> None:
    started, processor = time.monotonic(), bench.cpu_seconds()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, luigid(Path(name) / "luigid") as central:
        job, told = NightlyJob(Path(name) / "job", central, len(MONTH)), []
        for night in job.month(MONTH):
            told.append(night)
            print(f"{night.generation}: {night.outcome}", flush=True)
        assert job.service
        loaded = [model["generation"] for model in job.service.loaded()]
    seconds, processor = time.monotonic() - started, bench.cpu_seconds() - processor
    rows = [
        (
            night.generation,
            f"{4 * plan.images + plan.wrong:+}" if plan.images else "",
            f"{plan.wrong} wrong" if plan.wrong else "labels corrected" if plan.corrected else "",
            night.images,
            night.outcome + (", then rolled back" if plan.back_to else ""),
            f"{night.accuracy:.2%}" if night.accuracy else "",
            night.current,
            f"{night.megabytes:.1f}",
            f"{night.seconds:.1f}",
        )
        for plan, night in zip(MONTH, told, strict=True)
    ]
    columns = ("generation", "images", "", "in all", "outcome", "accuracy", "then current", "MB", "seconds")
    read = f"the model read {job.reads:,} times, {len(loaded)} of them in turn, without a fault"
    bench.table(f"{len(told)} nights in {seconds:.0f} s ({processor:.0f} processor seconds); {read}", columns, rows)
    about = {"seconds": seconds, "processor_seconds": processor, "reads": job.reads, "loaded": loaded}
    bench.finish("month", {**about, "nights": [asdict(night) for night in told]})


if __name__ == "__main__":
    main()
