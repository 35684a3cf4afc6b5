"""The whole chain with its workspace in S3: what is stored, which requests are made, what other hosts see."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from luigi_runs import clean_environment, run
from PIL import Image
from s3_server import SECRET, Proxy
from store_hosts import Bucket, Host, local_weights

STAGES = ["dataset", "train", "evaluate", "export", "report"]


@pytest.fixture(scope="module")
def made(proxy: Proxy, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bucket, Host]:
    """A chain that one host has finished. Tests that change it repair it."""
    bucket = Bucket(proxy.target, "made")
    host = Host(tmp_path_factory.mktemp("hosts") / "first", bucket.url, proxy, archive)
    result = host.good("Report")
    assert sorted(result.ran, key=STAGES.index) == STAGES
    assert f"{bucket.url}/runs/" in result.log
    return bucket, host


@pytest.fixture
def other(made: tuple[Bucket, Host], tmp_path: Path) -> Host:
    """A host that has never seen the workspace."""
    bucket, first = made
    first.proxy.quiet()
    return Host(tmp_path / "other", bucket.url, first.proxy, first.archive)


def test_every_file_in_the_manifests_is_in_the_store(made: tuple[Bucket, Host]) -> None:
    bucket, _ = made
    manifests = bucket.objects("/manifest.json")
    assert len(manifests) == 5
    for key in manifests:
        for name, recorded in json.loads(bucket.read(key))["files"].items():
            content = bucket.read(key.replace("manifest.json", name))
            assert (len(content), hashlib.sha256(content).hexdigest()) == (recorded["size"], recorded["sha256"])
    assert bucket.objects("trainer.npz")
    assert not [key for key in bucket.objects() if key.startswith("work/")]  # no lock and no checkpoint is left
    assert [event["event"] for event in bucket.events()].count("finished") == 5


def test_a_finished_chain_is_recognised_with_one_listing_and_nothing_else(made: tuple[Bucket, Host]) -> None:
    _, host = made
    host.proxy.quiet()
    result = host.good("Report")
    assert result.ran == []
    assert "up to date" in result.log
    assert [method for method, _ in host.proxy.seen] == ["GET"]
    assert len(host.proxy.listings) == 1


def test_another_host_needs_one_listing_and_a_handful_of_small_files(other: Host) -> None:
    assert other.good("Report").ran == []
    assert len(other.proxy.listings) == 1
    assert len(other.proxy.downloads) == len(other.proxy.seen) - 1 <= 8
    assert all(path.endswith(".json") for path in other.proxy.downloads)
    other.proxy.quiet()
    assert other.good("Report").ran == []
    assert len(other.proxy.seen) == 1


def test_another_pipeline_opens_results_in_the_store(made: tuple[Bucket, Host], other: Host) -> None:
    bucket, _ = made
    program = """
import json, sys, tasks
report = tasks.Report(config=sys.argv[1], workspace=sys.argv[2])
result, manifest = report.result(), report.output()
assert manifest.exists()
with manifest.open() as file, result.files["export/model.onnx"].open() as model:
    print(json.dumps([manifest.path, json.load(file)["stage"], result.run, result.accuracy, len(model.read())]))
try: manifest.open("w")
except Exception as error: print(error)
"""
    done = run([sys.executable, "-c", program, str(other.config), bucket.url], other.cwd, other.environment())
    assert done.rc == 0, done.text
    facts, refusal = done.output.splitlines()
    path, stage, place, accuracy, size = json.loads(facts)
    assert path == f"{bucket.url}/{place}/report/manifest.json"
    assert stage == "report"
    assert accuracy == bucket.manifest("evaluate")["details"]["accuracy"]
    assert size == len(bucket.read(f"{place}/export/model.onnx"))
    assert "found mode 'w', expected 'r'" in refusal
    # Only what was opened is downloaded.
    assert [path for path in other.proxy.downloads if not path.endswith(".json")] == [
        f"/{bucket.name}/team/{place}/export/model.onnx"
    ]


def test_raised_epochs_resume_exactly_from_another_hosts_weights(
    made: tuple[Bucket, Host], other: Host, tmp_path: Path
) -> None:
    bucket, first = made
    other.configure(epochs=2)
    result = other.good("TrainVGG")
    assert result.ran == ["train"]
    assert "resumed from 1 epoch of" in result.log
    assert bucket.weights() == local_weights(tmp_path / "undisturbed", other)
    assert bucket.manifest("train")["details"]["exact"]
    # The first host notices that its copies are outdated; its configuration wants fewer epochs.
    assert sorted(first.good("Report").ran) == ["evaluate", "export", "report"]
    assert "model.params" in json.dumps(bucket.manifest("evaluate")["inputs"])
    assert first.good("Verify").rc == 0


def test_a_truncated_artifact_is_never_mistaken_for_the_whole(made: tuple[Bucket, Host], other: Host) -> None:
    bucket, first = made
    key = bucket.key("/train/model.params")
    whole, manifest = bucket.read(key), bucket.read(bucket.key("/train/manifest.json"))
    bucket.delete(bucket.key("/train/manifest.json"))
    assert "train     will run  no result yet" in other.good("Status").output
    bucket.write(key.replace("model.params", "manifest.json"), manifest)
    bucket.write(key, whole[: len(whole) // 2])
    assert "train     will run  train/model.params has" in other.good("Status").output
    # The host that made it still has it and need not repeat it.
    result = first.good("TrainVGG")
    assert result.ran == []
    assert "publishing the result of an earlier run on this host" in result.log
    assert bucket.read(key) == whole
    assert "train     done" in other.good("Status").output


def test_verify_reads_every_byte_in_the_store(made: tuple[Bucket, Host], other: Host) -> None:
    bucket, _ = made
    assert "no damage" in other.good("Verify").output
    key = bucket.key("/export/model.onnx")
    whole = bucket.read(key)
    bucket.write(key, whole[:-1] + bytes([whole[-1] ^ 1]))
    result = other.luigi("Verify")
    assert result.rc == 4
    assert "export/model.onnx is damaged" in result.output
    assert "Traceback" not in result.text
    bucket.write(key, whole)
    assert not list(other.copies.rglob("*.npy"))  # nothing was kept


def test_a_stage_that_one_host_sets_aside_is_gone_for_the_other(made: tuple[Bucket, Host], other: Host) -> None:
    bucket, first = made
    assert "export    done" in first.good("Status").output
    preview = other.good("SetAside", "--stage", "export")
    assert f"would move {bucket.url}/runs/" in preview.output
    assert bucket.objects("/export/model.onnx")[0].startswith("runs/")
    other.good("SetAside", "--stage", "export", "--confirm")
    assert all(key.startswith("trash/") for key in bucket.objects("/model.onnx"))
    assert "export    will run" in first.good("Status").output
    assert first.good("Report").ran[0] == "export"
    assert "export    done" in other.good("Status").output


def test_an_export_needs_nothing_of_the_evaluation(made: tuple[Bucket, Host], other: Host) -> None:
    bucket, first = made
    first.good("Report")
    key = bucket.key("/evaluate/predictions.npz")
    predictions = bucket.read(key)
    bucket.delete(key)
    other.good("SetAside", "--stage", "export", "--confirm")
    assert other.good("Export").ran == ["export"]
    bucket.write(key, predictions)
    first.good("Report")


def test_vgg_predict_takes_a_model_from_the_store(made: tuple[Bucket, Host], other: Host, tmp_path: Path) -> None:
    bucket, _ = made
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    below_runs = bucket.copied_to("runs/models")  # not everything below a folder `runs` is a run
    run_of = bucket.key("/export/model.onnx").partition("/export")[0]
    for model in (bucket.url, f"{bucket.url}/{run_of}", below_runs, f"{below_runs}/{run_of}/export/model.onnx"):
        command = [sys.executable, "-m", "pipeline.predict", "--json", "--model", model, str(tmp_path / "red.png")]
        result = run(command, other.cwd, other.environment())
        assert result.rc == 0, result.text
        assert len(json.loads(result.output)["predictions"]) == 1
        where = below_runs if model.startswith(below_runs) else bucket.url
        assert f"vgg-predict: model {where}/{run_of}/export/model.onnx" in result.text
        cache = other.folder / "cache"  # luigi.cfg says so
        assert list(cache.glob("s3-*/runs"))
        shutil.rmtree(cache)
    assert not list(other.folder.rglob("*.npy"))


def test_the_secret_is_nowhere(made: tuple[Bucket, Host], other: Host) -> None:
    bucket, first = made
    files = [file for folder in (first.folder, other.folder) for file in folder.rglob("*") if file.is_file()]
    output = other.good("Report", "--log-level", "DEBUG").text.encode()
    texts = [output, *(file.read_bytes() for file in files), *map(bucket.read, bucket.objects())]
    assert not [text for text in texts if SECRET.encode() in text]


@pytest.mark.parametrize(
    ("address", "code", "expected"),
    [
        ("s3://tester:pass-word@bucket/x", 2, "--workspace s3://bucket/x: an address with a password"),
        ("memory://x", 2, "memory:// ends with its process"),
        ("https://localhost/x", 2, "--workspace https://localhost/x: a workspace needs more than a web server offers"),
        ("s3://", 2, "names no bucket or folder"),
        ("nowhere://bucket/x", 2, "--workspace nowhere://bucket/x: unknown scheme nowhere://"),
        ("s3://no-such-bucket/x", 30, "there is no such bucket or folder"),
    ],
)
def test_an_invalid_address_is_reported_in_one_line(other: Host, address: str, code: int, expected: str) -> None:
    other.url = address
    result = run(other.command("Report"), other.cwd, other.environment())
    assert expected in result.text
    assert "Traceback" not in result.text
    assert "pass-word" not in result.text
    assert result.rc in ({code, 35} if code == 30 else {code})


def test_a_workspace_in_a_folder_imports_no_fsspec(tmp_path: Path) -> None:
    code = (
        "import sys, tasks\n"
        f"tasks.Report(config='config/quickstart.yaml', workspace={str(tmp_path)!r}).complete()\n"
        "print({'fsspec', 's3fs', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_every_host_notices_changes_in_a_folder_of_images(
    host: Callable[..., Host], bucket: Bucket, tmp_path: Path
) -> None:
    def arrive(*names: str) -> None:
        for name in names:
            path = tmp_path / "parts" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.RandomState(zlib.crc32(name.encode())).randint(0, 256, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)

    def datasets() -> set[str]:
        return {key.split("/")[1] for key in bucket.objects("/train_images.npy")}

    one, two = host("one"), host("two")
    for peer in (one, two):
        peer.values["data"] = {"name": "parts", "source": str(tmp_path / "parts")}
        peer.configure()
    arrive(*(f"{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in range(3)))
    assert one.good("DownloadCifar").ran == ["dataset"]
    first = datasets()
    assert two.good("DownloadCifar").ran == []
    arrive("train/a/new.png")
    assert "parts has changed: 1 more image in class a" in one.good("Status").output
    assert "parts has changed" in two.good("Status").output, "it has not read the folder itself"
    assert two.good("DownloadCifar").ran == ["dataset"]
    assert len(datasets() - first) == 1
    assert one.good("DownloadCifar").ran == []
    assert not bucket.objects(".csv"), "each host keeps its own listing of its folder"
