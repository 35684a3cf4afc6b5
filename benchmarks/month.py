"""A month of a nightly job on a folder in which images arrive, some of them mislabelled for a week.

Each night runs `Retrain`, `Prune --older-than 5d --confirm` and `Status --json` under a real luigid, while a service
keeps reloading the current model. `tests/nightly_job.py` checks all they report and aborts on the first difference.
"""

from __future__ import annotations

import argparse
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
    *[Night(images=2, wrong=3)] * 6,  # too few to notice
    Night(images=2, wrong=80, outcome="refused", back_to=9),  # noticed: roll back to before that week
    Night(images=2, corrected=True),
    *WEEK,
    *WEEK,
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    started, processor = time.monotonic(), bench.cpu_seconds()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, luigid(Path(name) / "luigid") as central:
        job, results = NightlyJob(Path(name) / "job", central, len(MONTH)), []
        for night in job.month(MONTH):
            results.append(night)
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
        for plan, night in zip(MONTH, results, strict=True)
    ]
    columns = ("generation", "images", "", "total", "outcome", "accuracy", "current afterwards", "MB", "seconds")
    reads = f"{job.reads:,} reads of {len(loaded)} models in turn, none failed"
    bench.table(f"{len(results)} nights in {seconds:.0f} s ({processor:.0f} s of CPU); {reads}", columns, rows)
    about = {"seconds": seconds, "processor_seconds": processor, "reads": job.reads, "loaded": loaded}
    bench.finish("month", {**about, "nights": [asdict(night) for night in results]})


if __name__ == "__main__":
    main()
