"""Section `[vgg]` of luigi.cfg."""

from __future__ import annotations

import luigi


class vgg(luigi.Config):  # noqa: N801 (the section's name in luigi.cfg)
    workspace = luigi.Parameter(default="artifacts", description="default of --workspace for all tasks, e.g. /data/vgg")
    config = luigi.Parameter(
        default="config/vgg11.yaml", description="default of --config for all tasks, e.g. /etc/vgg/nightly.yaml"
    )
    overlap = luigi.ChoiceParameter(
        choices=["leave", "wait"],
        default="leave",
        description="if another process works on the same stage: leave (exit with 10) or wait for it",
    )
    cache = luigi.Parameter(
        default="",
        description="for a workspace in a store (s3://…): local folder for copies and work in progress; default: "
        "luigi-vgg in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)",
    )
    retry_timeout = luigi.FloatParameter(
        default=60.0, description="how long to retry a failing request to a store, in seconds"
    )
    stale_seconds = luigi.FloatParameter(
        default=120.0,
        description="how long another host may be silent before its lock in a store is stale, in seconds; at least "
        "twice retry_timeout",
    )
    report_seconds = luigi.FloatParameter(
        default=2.0, description="interval between progress reports to the scheduler, in seconds"
    )
    workspace_url = luigi.Parameter(
        default="",
        description="URL at which a web server serves the workspace, e.g. http://node1/vgg; the dashboard then links "
        "to each report",
    )
    metrics = luigi.Parameter(
        default="",
        description="file for node_exporter's textfile collector, e.g. /var/lib/node_exporter/vgg.prom; written by "
        "Retrain, Rollback, Retire --confirm, Prune and Status",
    )
    notify = luigi.Parameter(
        default="",
        description="shell command that receives notable events (promoted, refused, rolled back, failed) as JSON on "
        "standard input",
    )
    launcher = luigi.Parameter(
        default="",
        description="overrides the configuration's launcher: a file that contains one, or its command line; none to "
        "use no launcher",
    )
