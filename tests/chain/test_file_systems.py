"""Workspaces on file systems that lack something, and workspaces that several users share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from luigi_runs import SmallChain, luigi_command, run

from pipeline.storage import locks

#: In place of libc's: what CIFS, FAT and Lustre answer. $VGG_TEST_REFUSE says which calls are refused.
REFUSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int refused(const char *name) {
    const char *names = getenv("VGG_TEST_REFUSE");
    return names && strstr(names, name);
}
int fsync(int fd) {
    struct stat status;
    if (refused("fsync") && fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) { errno = EINVAL; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
int flock(int fd, int operation) {
    if (refused("flock")) { errno = ENOSYS; return -1; }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}
"""


@pytest.fixture(scope="session")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library to preload, with which the file system refuses some calls."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "refusing.c").write_text(REFUSING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "refusing.so", "refusing.c", "-ldl"], cwd=folder, check=True)
    return str(folder / "refusing.so")


def test_a_chain_runs_where_the_syncing_of_folders_is_refused(fresh: SmallChain, refusing: str) -> None:
    fresh.report(LD_PRELOAD=refusing, VGG_TEST_REFUSE="fsync")
    assert fresh.luigi("Verify").rc == 0


def test_a_file_system_without_locks_is_reported_in_one_line(done: SmallChain, refusing: str) -> None:
    environment = {"LD_PRELOAD": refusing, "VGG_TEST_REFUSE": "flock"}
    (done.folder("report") / "index.html").unlink()
    advice = "mount it with locks (Lustre: -o flock; NFS: version 4), or choose another --workspace"
    result = done.luigi("Report", **environment)
    assert result.rc == 30
    assert result.text.count("this file system does not lock files (Function not implemented)") == 1
    assert advice in result.text
    assert "Traceback" not in result.text
    status = done.luigi("Status", **environment)
    assert status.rc == 3, status.text
    assert "report    will run" in status.output
    doctor = done.luigi("Doctor", **environment)
    assert advice in doctor.text
    assert "Traceback" not in doctor.text


def test_work_and_trash_may_be_on_another_file_system(done: SmallChain) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        if os.stat(scratch).st_dev == os.stat(done.root).st_dev:
            pytest.skip("/dev/shm and the temporary folder are one file system")
        shutil.rmtree(done.workspace / "work")
        for name in ("work", "trash"):
            (Path(scratch) / name).mkdir()
            (done.workspace / name).symlink_to(Path(scratch) / name)
        for stage in ("dataset", "train"):
            result = done.luigi("SetAside", "--stage", stage, "--confirm")
            assert result.rc == 0, result.text
        assert len([*done.workspace.glob("trash/*/datasets/*"), *done.workspace.glob("trash/*/runs/*/*/train")]) == 2
        assert done.report().ran == ["dataset", "train", "report"], "the same weights come out"


def test_files_of_a_shared_workspace_have_the_mode_that_the_umask_leaves(fresh: SmallChain) -> None:
    before = os.umask(0o002)
    try:
        fresh.report()
    finally:
        os.umask(before)
    private = {
        str(path.relative_to(fresh.workspace)): oct(path.stat().st_mode & 0o777)
        for path in fresh.workspace.rglob("*")
        if path.stat().st_mode & 0o020 == 0
    }
    assert private == {}


def test_planted_links_and_pipes_are_refused_in_one_line(done: SmallChain) -> None:
    victim = done.root / "victim"
    victim.write_text("mine")
    report = done.folder("report")
    (report / "index.html").unlink()
    (report / "report.log").unlink()
    (report / "report.log").symlink_to(victim)
    (done.workspace / "events.jsonl").unlink()
    os.mkfifo(done.workspace / "events.jsonl")
    result = done.luigi("Report")
    assert result.rc == 30, result.text
    assert f"{report / 'report.log'}: " in result.text
    assert "a link, a pipe or a folder, not a regular file: remove it" in result.text
    assert "event 'started' was not recorded" in result.text
    assert "Traceback" not in result.text
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("linked", ["run", "report"])
def test_a_stage_writes_through_no_link_in_place_of_its_folder(done: SmallChain, linked: str) -> None:
    folder = done.folder("report")
    place, site = (folder.parent if linked == "run" else folder), done.root / "site"
    (folder / "index.html").unlink()
    place.rename(site)
    place.symlink_to(site)
    before = sorted(site.rglob("*"))
    result = done.luigi("Report")
    assert result.rc == 30, result.text
    assert (
        f"{place}: found a symbolic link, through which report must not write: replace it with a folder" in result.text
    )
    assert sorted(site.rglob("*")) == before


@pytest.fixture
def bound() -> list[str]:
    """Put in front of a command, binds root to permissions as any other user."""
    if os.getuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root is bound by no permissions, and there is no setpriv")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def test_a_workspace_that_this_user_may_not_read_is_reported_in_one_line(done: SmallChain, bound: list[str]) -> None:
    predict = [sys.executable, "-m", "pipeline.predict", "--model", str(done.workspace), str(done.archive)]
    place = ["--workspace", str(done.workspace), "--local-scheduler"]
    luigi = [*luigi_command(), "--module", "tasks", "Report", "--config", str(done.config), *place]
    for folder in (done.workspace, done.workspace / "runs"):
        folder.chmod(0)
        try:
            for command, codes in ((predict, (1,)), (luigi, (30, 35))):
                result = run([*bound, *command], done.cwd)
                assert result.rc in codes, result.text
                assert "ermission denied" in result.text
                assert "Traceback" not in result.text
        finally:
            folder.chmod(0o755)


def test_an_unlistable_folder_is_neither_complete_nor_unneeded(done: SmallChain, bound: list[str]) -> None:
    runs = done.workspace / "runs"
    for folder in (runs, *runs.iterdir(), done.folder("train").parent):
        for task in (["Verify"], ["Prune", "--confirm", "--config", str(done.config)]):
            folder.chmod(0)
            command = [*luigi_command(), "--module", "tasks", *task, "--workspace", str(done.workspace)]
            try:
                result = run([*bound, *command], done.cwd)
            finally:
                folder.chmod(0o755)
            assert result.rc == 30, result.text
            assert "permission denied" in result.text
            assert "Traceback" not in result.text
    assert not (done.workspace / "trash").exists()


def test_a_data_set_is_not_set_aside_while_it_is_made_or_read(done: SmallChain) -> None:
    chain = done.chain()
    workspace, data_set = chain.workspace, done.folder("dataset")
    made = workspace.lock(workspace.source_pointer(chain.config.data).stem)
    readers = workspace.readers_lock(data_set.name)
    arguments = ("--stage", "dataset", "--confirm")
    with locks.hold(made, "dataset", wait=False):
        assert "is already being worked on" in done.luigi("SetAside", *arguments).text
    with locks.share(readers, "train"):
        assert "is in use by a running stage" in done.luigi("SetAside", *arguments).text
    with locks.hold(chain.run().lock("evaluate"), "evaluate", wait=False):  # type: ignore[union-attr]
        assert "is already being worked on" in done.luigi("SetAside", "--stage", "train", "--confirm").text
    assert data_set.exists()
    assert not (done.workspace / "trash").exists()


def test_a_missing_home_folder_is_reported(done: SmallChain) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    code = (
        "import os, pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from pipeline.storage import default_cache\n"
        "default_cache()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=done.cwd
    )
    assert "ConfigError: this user has no home folder" in result.stderr
