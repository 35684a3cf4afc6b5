"""A pipeline that uses these tasks: it trains several networks and delivers the best one to a service.

    luigi --module nightly Nightly --configs '["small.yaml", "large.yaml"]' --workers 2

It requires `Report` tasks and reads their accuracy and files from `result()`. As in any Luigi pipeline, a task whose
output exists is complete: to run every night, give the tasks a date parameter and put that into the outputs' names.
"""

from __future__ import annotations

import json
import shutil

import luigi
from luigi.format import Nop

from tasks import Report


class BestModel(luigi.Task):
    """Deliver the ONNX file of the most accurate of several networks."""

    configs = luigi.ListParameter(description="YAML files of the networks")

    def output(self):
        return {
            "model": luigi.LocalTarget("service/model.onnx", format=Nop),
            "about": luigi.LocalTarget("service/about"),
        }

    def run(self):
        reports = [Report(config=config) for config in self.configs]
        yield reports  # trains any missing networks; the workspace is set in [Report] or [vgg] of luigi.cfg
        best = max((report.result() for report in reports), key=lambda result: result.accuracy)
        with best.files["export/model.onnx"].open() as source, self.output()["model"].open("w") as copy:
            shutil.copyfileobj(source, copy)
        with self.output()["about"].open("w") as file:
            json.dump({"run": best.run, "accuracy": best.accuracy}, file)


class Nightly(luigi.Task):
    """Write a line about the model that the service has now."""

    configs = luigi.ListParameter()

    def requires(self):
        return BestModel(configs=self.configs)

    def output(self):
        return luigi.LocalTarget("service/news.txt")

    def run(self):
        with self.input()["about"].open() as file:
            about = json.load(file)
        with self.output().open("w") as file:
            file.write(f"{about['run']}: {about['accuracy']:.1%}\n")
