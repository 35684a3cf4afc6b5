"""Downloads from a real web server that misbehaves in every way a server can misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import threading

import pytest
from small_cifar import mini_100_files, mini_files, tar_gz

from pipeline import dataset
from pipeline.dataset import download, source
from pipeline.errors import DataError, WorkspaceError
from pipeline.files import write_json

CONTENT = tar_gz(mini_files(images=60))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _served(site):
    site.pages["/mini.tar.gz"] = CONTENT


def leftovers(made):
    folder = made.workspace.downloads
    return sorted(path.name.partition(".")[2] for path in folder.iterdir()) if folder.exists() else []


def test_a_download_becomes_a_data_set_and_leaves_no_archive(chain, site, reporter):
    made = chain(site.url(), sha256=SHA256)
    assert dataset.prepare(made, reporter)["details"]["archive_sha256"] == SHA256
    assert made.why("dataset") == []
    assert leftovers(made) == []


@pytest.fixture
def cut_off(site, reporter, monkeypatch):
    """Let a chain download 150,000 bytes, after which the server fails."""

    def cut_off(made):
        monkeypatch.setattr(download, "TRIES", 1)
        site.cuts, site.answers = [150_000], [200, 503]
        with pytest.raises(DataError, match="answered 503"):
            dataset.prepare(made, reporter)

    return cut_off


def test_a_link_in_place_of_a_partial_download_is_not_written_through(chain, site, reporter, cut_off, tmp_path):
    made, victim = chain(site.url(), sha256=SHA256), tmp_path / "victim"
    cut_off(made)
    partial = source.download_path(made).with_suffix(".archive.part")
    partial.rename(victim)
    partial.symlink_to(victim)
    before = victim.read_bytes()
    with pytest.raises(WorkspaceError, match="it is a link, a pipe or a folder, not a regular file: remove it"):
        dataset.prepare(made, reporter)
    assert victim.read_bytes() == before


def test_a_cut_download_continues_where_it_broke_off(chain, site, reporter):
    site.cuts = [150_000, 100_000]
    dataset.prepare(chain(site.url()), reporter)
    assert [status for _, _, status in site.requests] == [200, 206, 206]
    starts = [int(wanted.split("=")[1].rstrip("-")) for _, wanted, _ in site.requests[1:]]
    assert 100_000 < starts[0] <= 150_000 < starts[1] <= 250_000
    assert any("cut off" in note and "retrying" in note for note in reporter.notes)


def test_an_interrupted_run_is_continued_by_the_next_one(chain, site, reporter, cut_off):
    made = chain(site.url(), sha256=SHA256)
    cut_off(made)
    assert leftovers(made) == ["archive.part", "archive.part.json"]
    site.requests.clear()
    dataset.prepare(made, reporter)
    assert [status for _, _, status in site.requests] == [206]


def test_changed_content_is_not_joined_to_the_old(chain, site, reporter, cut_off):
    made = chain(site.url())
    cut_off(made)
    site.pages["/mini.tar.gz"] = tar_gz(mini_files(batches=3))
    assert dataset.prepare(made, reporter)["details"]["train_images"] == 36
    assert site.requests[-1][1].startswith("bytes=")
    assert site.requests[-1][2] == 200


@pytest.mark.parametrize(("lacking", "asked"), [("ranges", [False, True]), ("etag", [False, False])])
def test_a_server_that_cannot_resume_starts_over_cleanly(chain, site, reporter, lacking, asked):
    setattr(site, lacking, False)
    site.cuts = [150_000]
    dataset.prepare(chain(site.url(), sha256=SHA256), reporter)
    assert [status for _, _, status in site.requests] == [200, 200]
    assert [bool(wanted) for _, wanted, _ in site.requests] == asked


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_wrongly_resumed_download_is_restarted_once(chain, site, reporter, sha256):
    made = chain(site.url(), sha256=sha256)
    target = source.download_path(made)
    target.parent.mkdir(parents=True)
    target.with_name(target.name + ".part").write_bytes(bytes(100_000))
    address = hashlib.sha256(site.url().encode()).hexdigest()
    record = {"address": address, "validator": f'"{SHA256[:8]}"', "length": len(CONTENT)}
    write_json(target.with_name(target.name + ".part.json"), record)
    dataset.prepare(made, reporter)
    assert [status for _, _, status in site.requests] == [206, 200]
    assert leftovers(made) == []


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(chain, site, reporter):
    site.ranges, site.cuts = False, [70_000] * 50
    with pytest.raises(DataError, match=r"cut off .*\(4 tries\)") as caught:
        dataset.prepare(chain(site.url()), reporter)
    assert caught.value.may_pass, "the same command may succeed later"
    assert len(site.requests) == 5


def test_a_chunk_of_negative_length_is_a_broken_connection(chain, site, reporter):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
                        while True:
                            connection.sendall(bytes(1 << 20))

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mini.tar.gz"
        dataset.prepare(chain(url, mirrors=[site.url()]), reporter)
    assert any("was cut off" in note and "trying the next mirror" in note for note in reporter.notes)


def test_temporary_errors_are_retried_and_a_missing_file_is_not(chain, site, reporter):
    site.answers = [503, 429, 500]
    dataset.prepare(chain(site.url()), reporter)
    assert [status for _, _, status in site.requests] == [503, 429, 500, 200]
    site.requests.clear()
    with pytest.raises(DataError, match="answered 404 Not Found") as caught:
        dataset.prepare(chain(site.url("/gone.tar.gz")), reporter)
    assert len(site.requests) == 1
    assert not caught.value.may_pass


def test_mirrors_are_tried_in_turn(chain, site, reporter):
    site.pages["/html"] = b"<html>please log in</html>"
    site.pages["/other"] = tar_gz(mini_files(batches=1))
    mirrors = [site.url("/html"), site.url("/other"), site.url()]
    made = chain(site.url("/gone"), mirrors=mirrors, sha256=SHA256)
    dataset.prepare(made, reporter)
    assert [path for path, _, _ in site.requests] == ["/gone", "/html", "/other", "/mini.tar.gz"]
    assert leftovers(made) == []


@pytest.mark.parametrize("path", ["/slow-headers", "/slow-body"])
def test_a_dripping_server_is_given_up(chain, archive, site, reporter, monkeypatch, path):
    monkeypatch.setattr(download, "BLOCK_TIMEOUT", 0.3)
    monkeypatch.setattr(download, "TRIES", 2)
    made = chain(site.url(path), mirrors=[str(archive(CONTENT))])
    assert dataset.prepare(made, reporter)["details"]["train_images"] == 120
    assert f"{site.url(path)}: is too slow: " in reporter.notes[1]
    assert "within 0.3 s (2 tries); trying the next mirror" in reporter.notes[2]


def test_a_redirect_is_followed_and_its_endless_body_is_not_read(chain, site, reporter, monkeypatch):
    monkeypatch.setattr(download, "BLOCK_TIMEOUT", 5.0)
    dataset.prepare(chain(site.url("/moved"), sha256=SHA256), reporter)
    assert site.requests == [("/moved", None, 302), ("/mini.tar.gz", None, 200)]
    with pytest.raises(DataError, match="/moved-to-ftp: redirects to an address that is neither http nor https; "):
        dataset.prepare(chain(site.url("/moved-to-ftp")), reporter)


@pytest.mark.parametrize("length", ["9" * 5000, "1" * 20])
def test_an_impossible_length_is_refused(chain, site, reporter, length):
    site.length = length
    with pytest.raises(DataError, match="far more than CIFAR-10 or CIFAR-100; not downloaded"):
        dataset.prepare(chain(site.url()), reporter)


@pytest.mark.parametrize("length", ["-5", "x", "²"])
def test_a_length_that_is_not_a_number_is_ignored(chain, site, reporter, length):
    site.length = length
    assert dataset.prepare(chain(site.url()), reporter)["details"]["train_images"] == 120


def test_when_all_fail_one_line_names_each_address_without_its_password(chain, site, reporter, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    secret = site.url("/gone?token=secret").replace("//", "//me:secret@")
    made = chain(secret, mirrors=["http://127.0.0.1:9/x.tar.gz?token=secret", "ftp://me:secret@host/x"])
    with pytest.raises(DataError) as caught:
        dataset.prepare(made, reporter)
    line = str(caught.value)
    assert f"{site.url('/gone')}: answered 404 Not Found; " in line
    assert "http://127.0.0.1:9/x.tar.gz: the connection was refused" in line
    assert "ftp://host/x: is not an address that can be downloaded" in line
    assert "CIFAR10_SOURCE" in line
    assert "data.mirrors" in line
    assert "secret" not in line + "".join(reporter.notes)


def test_a_missing_ca_bundle_is_named_and_mirrors_are_tried(chain, archive, reporter, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/there/is/none.pem")
    address = "https://127.0.0.1:9/mini.tar.gz"
    dataset.prepare(chain(address, mirrors=[str(archive(CONTENT))]), reporter)
    assert any("/there/is/none.pem; trying the next mirror" in note for note in reporter.notes)
    with pytest.raises(DataError, match=r"/there/is/none\.pem; check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"):
        dataset.prepare(chain(address), reporter)


@pytest.mark.parametrize("address", ["http://[host/x", "http://", "http://host:99999/x", "x://host/y"])
def test_an_invalid_address_is_refused_in_one_line(chain, reporter, address):
    with pytest.raises(DataError, match="is not an address that can be downloaded") as caught:
        dataset.prepare(chain(address), reporter)
    assert "\n" not in str(caught.value)


def test_no_password_is_left_in_the_workspace(chain, site, reporter, cut_off):
    made = chain(site.url("/mini.tar.gz?token=secret").replace("//", "//me:secret@"))
    cut_off(made)
    dataset.prepare(made, reporter)
    for path in made.workspace.root.rglob("*.json"):
        assert "secret" not in path.read_text()


def test_a_partial_download_resumes_with_another_token(chain, site, reporter, cut_off):
    cut_off(chain(site.url("/mini.tar.gz?token=old")))
    dataset.prepare(chain(site.url("/mini.tar.gz?token=new")), reporter)
    assert site.requests[-1][2] == 206
    made = chain(site.url().replace("//", "//me:secret@"))
    assert made.why("dataset") == []
    assert chain(site.url("/mini.tar.gz?id=2")).why("dataset") != []


def test_a_pointer_of_an_earlier_version_is_found_by_its_full_address(chain, site, reporter):
    plain, made = chain(site.url()), chain(site.url("/mini.tar.gz?token=secret"))
    dataset.prepare(plain, reporter)
    pointers = made.workspace
    pointers.source_pointer(plain.config.data).rename(next(pointers.former_pointers(made.config.data)))
    assert made.why("dataset") == []


def test_a_source_that_exhausts_memory_is_named_and_mirrors_are_tried(chain, site, reporter, monkeypatch):
    real = dataset.source.archive.read

    def read(*arguments):
        monkeypatch.setattr(dataset.source.archive, "read", real)
        raise MemoryError

    monkeypatch.setattr(dataset.source.archive, "read", read)
    site.pages["/large"] = CONTENT
    dataset.prepare(chain(site.url("/large"), mirrors=[site.url()]), reporter)
    assert any(f"{site.url('/large')}: needs more memory than is available; trying" in note for note in reporter.notes)


@pytest.mark.parametrize("mistake", ["classes", "memory"])
def test_a_download_is_kept_for_a_corrected_configuration(chain, site, reporter, monkeypatch, mistake):
    def out_of_memory(*arguments):
        raise MemoryError

    wrong = chain(site.url(), classes=3)
    with monkeypatch.context() as patched:
        if mistake == "memory":
            patched.setattr(dataset.source.archive, "read", out_of_memory)
        with pytest.raises(DataError, match=r"raise architecture.classes|needs more memory"):
            dataset.prepare(wrong, reporter)
        assert leftovers(wrong) == ["archive"]
    right = chain(site.url())
    dataset.prepare(right, reporter)
    assert leftovers(right) == []
    assert len(site.requests) == 1


def test_an_archive_that_was_repaired_at_its_address_is_downloaded_again(chain, site, reporter):
    good = site.pages["/mini.tar.gz"]
    site.pages["/mini.tar.gz"] = tar_gz(mini_100_files())  # in another layout, and with labels up to 99
    made = chain(site.url(), classes=10)
    with pytest.raises(DataError, match=r"raise architecture\.classes"):
        dataset.prepare(made, reporter)
    site.pages["/mini.tar.gz"] = good
    dataset.prepare(made, reporter)
    assert leftovers(made) == []


def test_an_archive_under_the_wrong_name_is_kept_under_the_right_one(chain, site, reporter):
    site.pages["/mini.tar.gz"] = tar_gz(mini_100_files())
    site.cuts = [1_000]  # a resumed download that is refused for another reason is restarted
    kept = source.download_path(chain(site.url(), name="cifar100", classes=None))
    with pytest.raises(DataError, match=rf"but data.name is cifar10 \(kept as {kept}\); set data.name to cifar100"):
        dataset.prepare(chain(site.url(), name="cifar10", classes=10), reporter)
    assert kept.read_bytes() == site.pages["/mini.tar.gz"]
    assert not any("again" in note for note in reporter.notes)


def test_a_response_that_is_not_an_archive_is_refused_and_not_kept(chain, site, reporter):
    made = chain(site.url(), sha256="b" * 64)
    with pytest.raises(DataError, match=rf"SHA-256 is {SHA256}, expected b{{64}}"):
        dataset.prepare(made, reporter)
    assert leftovers(made) == []
    site.pages["/mini.tar.gz"] = b"\n<!doctype html><h1>Sign in</h1>"
    with pytest.raises(DataError, match="answered with an HTML page instead of an archive"):
        dataset.prepare(made, reporter)
    assert leftovers(made) == []


def test_a_broken_archive_without_a_checksum_is_not_used_twice(chain, site, reporter):
    site.pages["/mini.tar.gz"] = CONTENT[:100_000]
    made = chain(site.url())
    with pytest.raises(DataError, match="truncated"):
        dataset.prepare(made, reporter)
    site.pages["/mini.tar.gz"] = CONTENT
    dataset.prepare(made, reporter)
    assert made.why("dataset") == []


@pytest.mark.parametrize(("content", "requests"), [(CONTENT, 0), (CONTENT[:-1], 1)], ids=["whole", "cut"])
def test_a_finished_download_of_a_killed_run_is_used_if_intact(chain, site, reporter, content, requests):
    made = chain(site.url(), sha256=SHA256)
    target = source.download_path(made)
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    dataset.prepare(made, reporter)
    assert len(site.requests) == requests
    assert leftovers(made) == []


@pytest.mark.parametrize("length", [None, "x"])
def test_a_file_far_larger_than_cifar10_is_not_downloaded(chain, site, reporter, monkeypatch, length):
    monkeypatch.setattr(download, "DOWNLOAD_LIMIT", 100_000)
    site.length = length
    with pytest.raises(DataError, match="far more than CIFAR-10" if length is None else "is larger than 100 kB"):
        dataset.prepare(chain(site.url()), reporter)


def test_a_disk_too_full_for_the_download_is_one_clear_line(chain, site, reporter, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(WorkspaceError, match="the disk is full"):
        dataset.prepare(chain(site.url()), reporter)


def test_the_space_of_a_partial_download_counts_as_free(chain, site, reporter, monkeypatch, cut_off):
    made = chain(site.url())
    cut_off(made)
    partial = source.download_path(made).with_suffix(".archive.part").stat().st_size
    site.pages["/mini.tar.gz"] = content = tar_gz(mini_files(images=50))
    for missing in (1, 0):
        free = len(content) - partial - missing
        monkeypatch.setattr(download.shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(1, 1, free))
        if missing:
            with pytest.raises(WorkspaceError, match="the disk is full"):
                dataset.prepare(made, reporter)
    assert dataset.prepare(made, reporter)["details"]["train_images"] == 100
