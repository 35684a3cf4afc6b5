"""How many threads a stage gets (affinity mask, cgroup quota, the user's setting), and how trainings take turns."""

from __future__ import annotations

import contextlib
import os

import pytest

from pipeline.process import cores


@pytest.mark.parametrize(
    ("process", "files", "expected"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {"cpu.max": "lots\n"}, None),
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", {"cpu.max": "max 100", "a/cpu.max": "50 100", "a/b/cpu.max": "400 100"}, 0.5),
        (  # cgroups v1
            "4:cpu,cpuacct:/docker\n3:memory:/other",
            {"cpu/docker/cpu.cfs_quota_us": "250000", "cpu/docker/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("4:cpu:/docker", {"cpu/docker/cpu.cfs_quota_us": "-1"}, None),
    ],
)
def test_the_tightest_quota_of_the_cgroup_and_its_ancestors_wins(tmp_path, process, files, expected):
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "process").write_text(f"{process}\n")
    assert cores.cgroup_quota(tmp_path / "cgroup", tmp_path / "process") == expected


@pytest.mark.parametrize(
    ("mask", "quota", "expected"), [(8, None, 8), (8, 0.2, 1), (8, 1.5, 2), (8, 4.0, 4), (8, 64.0, 8), (1, None, 1)]
)
def test_usable_cores_are_the_affinity_mask_capped_by_the_quota(monkeypatch, mask, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(mask)))
    monkeypatch.setattr(cores, "cgroup_quota", lambda: quota)
    assert cores.usable_cores() == expected


def test_in_a_slurm_job_the_allocated_cores_count():
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_CPUS_ON_NODE": "4"}
    assert cores.slurm_grant(step) == 4
    assert cores.slurm_grant({**step, "SLURM_CPUS_PER_TASK": "2"}) == 2
    assert cores.slurm_grant({**step, "SLURM_STEP_NUM_TASKS": "2"}) is None
    assert cores.slurm_grant({"SLURM_CPUS_ON_NODE": "4"}) is None


def test_the_users_number_of_threads_wins(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    assert cores.thread_environment({})["OMP_NUM_THREADS"] == "6"
    for given, threads in ("", "6"), ("2,1", "2"), (" 3 ", "3"), ("128", "128"):
        assert cores.thread_environment({"OMP_NUM_THREADS": given})["OMP_NUM_THREADS"] == threads
        assert cores.ignored_threads_warning({"OMP_NUM_THREADS": given}) is None


@pytest.mark.parametrize("given", ["auto", "1.0", "0", "-1", "99999", "0x2", "9" * 5000, ","])
def test_an_invalid_number_of_threads_is_ignored_with_a_warning(given, monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    assert cores.thread_environment({"OMP_NUM_THREADS": given})["OMP_NUM_THREADS"] == "6"
    assert "unset it; using 6" in cores.ignored_threads_warning({"OMP_NUM_THREADS": given})


# --- trainings take turns ---------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with two cores on which nothing trains."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setattr(cores, "turn_lock", lambda: tmp_path / "ours" / "cores.lock")
    return tmp_path


def test_the_second_of_two_trainings_on_all_cores_waits_for_the_first(machine):
    lines = []
    with contextlib.ExitStack() as first:
        first.enter_context(cores.take_turn("train a", 1, print))

        def waiting(line):
            lines.append(line)
            if len(lines) == 2:
                first.close()

        with cores.take_turn("train b", 1, waiting) as inherited:
            assert len(inherited) == 1
    assert lines == [lines[0]] * 2  # called at every poll, so that the caller can stop
    assert lines[0].startswith(f"train b: waiting for process {os.getpid()} on ")


def test_trainings_that_leave_cores_free_run_side_by_side(machine, monkeypatch):
    with cores.take_turn("train a", 1, print):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with cores.take_turn("train b", 1, print) as inherited:
            assert inherited == []
    with cores.take_turn("train c in two processes", 2, print) as inherited:
        assert len(inherited) == 1


def test_nobody_waits_if_the_lock_cannot_be_created_or_another_user_owns_its_folder(machine, monkeypatch):
    (machine / "ours").write_text("a file")
    with cores.take_turn("train a", 1, print) as inherited:
        assert inherited == []
    (machine / "ours").unlink()
    (machine / "ours").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: (machine / "ours").stat().st_uid + 1)
    with cores.take_turn("train a", 1, print) as inherited:
        assert inherited == []


def test_processes_on_other_cores_or_another_share_of_them_have_their_own_lock(monkeypatch):
    monkeypatch.setattr(cores, "cgroup_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    ours = cores.turn_lock()
    assert ours == cores.turn_lock()
    monkeypatch.setattr(cores, "cgroup_quota", lambda: 1.0)
    limited = cores.turn_lock()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    assert len({ours, limited, cores.turn_lock()}) == 3
