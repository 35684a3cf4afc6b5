"""The launcher without a cluster: programs that start a command in a bare environment, late, or not at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_runs import LIMIT, Luigi, weights
from luigi_runs import SmallChain, clean_environment

from pipeline import config, start
from pipeline.errors import ConfigError
from pipeline.process import child, launcher

#: Starts a command with a bare environment, as ssh or a container does.
BARE = ["env", "-i", "PATH=/usr/bin:/bin"]


def test_a_launcher_needs_no_environment_of_its_parent(chain: SmallChain) -> None:
    chain.configure(launcher=BARE, training__epochs=1)
    luigi = Luigi(chain)
    assert luigi.finish() == 0, luigi.output
    assert chain.manifest("train")["details"]["epochs"] == 1


def test_ssh_gets_its_command_quoted_for_the_remote_shell(chain: SmallChain, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    ssh = folder / "ssh"
    ssh.write_text('#!/bin/sh\nshift\nexec env -i PATH=/usr/bin:/bin sh -c "$*"\n')
    ssh.chmod(0o755)
    chain.configure(launcher=[str(ssh), "somewhere"], training__epochs=1)
    luigi = Luigi(chain, PYTHONPATH=f"{clean_environment()['PYTHONPATH']}:{folder}")
    assert luigi.finish() == 0, luigi.output


@pytest.mark.parametrize(
    "front",
    [
        ["ssh", "host"],
        ["ssh", "-p", "22", "host"],
        ["ssh", "-tp22", "host"],
        ["HERE/ssh", "-o", "A=b", "host"],
        ["ssh", "-i", "{workspace}/key", "host", "echo {workspace} '{workspace}' >/dev/null;", "exec"],
    ],
)
def test_a_remote_shell_gets_separate_words_whatever_options_ssh_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front: list[str]
) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    ssh = bin / "ssh"
    # parses options like ssh, and passes everything after the host to a shell
    ssh.write_text('#!/bin/sh\nwhile getopts "tp:i:o:" option; do :; done\nshift $OPTIND\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    words = [word.replace("HERE", str(bin)) for word in front]
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "a $HOME 'word'"]
    workspace = tmp_path / "two words; echo pwned"
    line = launcher.command_line(words, command, workspace, Path(launcher.__file__).parents[1])
    guard = line.index(words[0])
    done = subprocess.run(line[guard:], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.stdout == "[\"a $HOME 'word'\"]\n", done.stderr


def test_a_launcher_expands_folders_and_may_bring_its_own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    words = launcher.command_line(
        ["docker", "-v", "{workspace}:{workspace}", "{package}", "python3.11"],
        ["/here/python", "/opt/plugin/pipeline/start.py", "pipeline.training"],
        Path("/data/space here"),
        Path("/opt/plugin/pipeline"),
    )
    command = words[words.index("docker") :]
    assert command[:4] == ["docker", "-v", "/data/space here:/data/space here", "/opt/plugin/pipeline"]
    assert command[4] == "env"
    assert command[-4:] == ["python3.11", "-c", start.CODE, "pipeline.training"]
    assert not any("PYTHONPATH" in word for word in command)


def test_a_slow_launcher_is_reported_as_waiting_and_its_own_json_is_ignored(chain: SmallChain) -> None:
    printed = ('{"event": "hello"}', '{"event": "result", "value": 7}', '{"event": ["note"]}', '{"event": "progress"}')
    said = "; ".join(f"echo '{line}'" for line in printed)
    slow = ["sh", "-c", f'{said}; echo "job 7 queued" >&2; sleep 4; exec "$@"', "sh"]
    chain.configure(launcher=slow, training__epochs=1)
    luigi = Luigi(chain)
    assert luigi.finish() == 0, luigi.output
    assert luigi.output.index("waiting for a node (job 7 queued)") < luigi.output.index("started on")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-program", "--token=x"], "launcher: program 'no-such-program' not found"),
        (
            ["sh", "-c", "echo no room >&2; exit 5"],
            "exited with status 5 before the training started; its last line: no ",
        ),
    ],
)
def test_a_launcher_that_starts_nothing_is_reported_in_one_line(
    chain: SmallChain, words: list[str], message: str
) -> None:
    chain.configure(launcher=words)
    luigi = Luigi(chain)
    assert luigi.finish() == 30
    assert message in luigi.output
    assert "Traceback" not in luigi.output


def test_a_training_with_a_silent_parent_checkpoints_and_exits(chain: SmallChain) -> None:
    chain.configure(training__epochs=100_000)
    request = {**child.request(chain.chain(), "train"), "watchdog_seconds": 3, "heartbeat_seconds": 1}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.training"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    output = process.stdout.read()  # and its standard input stays open
    assert process.wait(timeout=LIMIT) == child.EXIT_INTERRUPTED
    assert "Interrupted" in output
    assert '"event": "hello"' in output.splitlines()[0]


def test_one_luigi_cfg_serves_all_configurations(chain: SmallChain, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(f"launcher: {json.dumps(BARE)}\n")
    chain.configure(training__epochs=1, launcher=["no-such-program"])
    luigi = Luigi(chain, "--vgg-launcher", str(tmp_path / "site.yaml"))
    assert luigi.finish() == 0, luigi.output
    luigi.wait_for_output("started on")
    chain.configure(training__epochs=2)
    assert Luigi(chain, "--vgg-launcher", "none").finish() == 0
    assert weights(chain)


def test_a_launcher_can_be_given_by_the_name_of_its_file(chain: SmallChain) -> None:
    chain.configure(launcher="config/launchers/slurm.yaml")
    assert config.load(chain.config).launcher[0] == "srun"
    (chain.root / "own.yaml").write_text("launcher: [ssh, gpu-host]\n")
    chain.configure(launcher="own.yaml")
    assert config.load(chain.config).launcher == ["ssh", "gpu-host"]


def test_every_ready_made_launcher_is_a_list_of_words() -> None:
    folder = config.ready_made_folder() / "launchers"
    for file in sorted(folder.glob("*.yaml")):
        assert config.load_launcher(f"config/launchers/{file.name}", "here", folder.parent.parent)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.yaml", "found 'nowhere.yaml', which is not a file"),
        (["srun", "--time", 14400], "launcher[2]: found 14400, expected text; put each argument in quotes"),
        (3, "launcher: found 3, expected a list of arguments, or the name of a file that holds one"),
        (["srun", ""], "an argument must not be empty"),
    ],
)
def test_a_wrong_launcher_is_refused(chain: SmallChain, value: object, message: str) -> None:
    chain.configure(launcher=value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.load(chain.config)


def test_a_launcher_that_cannot_be_started_is_refused_wherever_it_comes_from(chain: SmallChain) -> None:
    (chain.root / "own.yaml").write_text('launcher: [ssh, "a\\0"]\n')
    with pytest.raises(ConfigError, match=r"own\.yaml: launcher: found .*must not be empty or contain a NUL"):
        config.load_launcher("own.yaml", "here", chain.root)
    with pytest.raises(ConfigError, match=r"^here: found \[\"ssh\", \"\"\]; an argument must not be empty"):
        config.with_launcher(config.load(chain.config), "ssh ''", "here")
