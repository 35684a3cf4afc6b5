"""Section `[vgg]` of luigi.cfg."""

from __future__ import annotations

import luigi


class vgg(luigi.Config):  # noqa: N801 (the section's name in luigi.cfg)
    """Section `[vgg]` of luigi.cfg."""

    workspace = luigi.Parameter(default="artifacts", description="--workspace of all tasks, e.g. /data/vgg")
    config = luigi.Parameter(
        default="config/vgg11.yaml", description="--config of all tasks, e.g. /etc/vgg/nightly.yaml"
    )
    overlap = luigi.ChoiceParameter(
        choices=["leave", "wait"],
        default="leave",
        description="when another process works on the same stage: leave at once (exit code 10) or wait for it",
    )
    cache = luigi.Parameter(
        default="",
        description="for a workspace in a store (s3://…): the folder for copies here and work in progress; default: "
        "luigi-vgg in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)",
    )
    retry_timeout = luigi.FloatParameter(
        default=60.0, description="for how many seconds a failing request to a store is retried"
    )
    stale_seconds = luigi.FloatParameter(
        default=120.0,
        description="after how many silent seconds another host's lock in a store counts as left behind; at "
        "least twice retry_timeout",
    )
    report_seconds = luigi.FloatParameter(
        default=2.0, description="seconds between two progress reports to the scheduler"
    )
    workspace_url = luigi.Parameter(
        default="",
        description="where a web server shows the workspace, e.g. http://node1/vgg: the dashboard then links each "
        "report's page",
    )
    metrics = luigi.Parameter(
        default="",
        description="a file for node_exporter's textfile collector, e.g. /var/lib/node_exporter/vgg.prom: Retrain, "
        "Rollback, Retire --confirm, Prune and Status replace it",
    )
    notify = luigi.Parameter(
        default="",
        description="a shell command that receives notable events (promoted, refused, rolled back, failed) as JSON on "
        "its standard input",
    )
    launcher = luigi.Parameter(
        default="",
        description="in place of the configuration's launcher: a file that holds one, or the words of its command; "
        "none for none",
    )
