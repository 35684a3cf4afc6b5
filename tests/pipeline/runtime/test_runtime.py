"""MXNet's import and devices: every failure is one line that says what to do."""

from __future__ import annotations

import collections
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from luigi_runs import CHECKOUT, clean_environment, run

from pipeline import runtime, training
from pipeline.errors import DeviceError
from pipeline.model import weights
from pipeline.process import child
from pipeline.process.cores import usable_cores
from pipeline.runtime import device, importing

#: `mxnet` without its cache: checks again and, here, imports again.
check_and_import = runtime.mxnet.__wrapped__

Version = collections.namedtuple("Version", "major minor micro releaselevel serial")


def refused(call=check_and_import, *arguments):
    with pytest.raises(DeviceError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 1)])
def test_an_unsupported_python_is_named(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", Version(*version, "final", 0))
    found = ".".join(map(str, version))
    assert f"Python {found} is not supported by mxnet 1.9.1: use Python 3.10, 3.11 or 3.12" in refused()


def test_a_numpy_that_is_too_new_is_named(monkeypatch):
    version = importing.metadata.version
    monkeypatch.setattr(importing.metadata, "version", lambda name: "2.1.3" if name == "numpy" else version(name))
    assert refused() == "numpy 2.1.3 is too new for mxnet 1.9.1: pip install 'numpy>=1.23.5,<2'"


def pretend_installed(folder: Path, name: str) -> None:
    place = folder / f"{name.replace('-', '_')}-1.9.1.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.9.1\n")


def test_two_mxnets_are_refused(tmp_path, monkeypatch):
    pretend_installed(tmp_path, "mxnet")
    pretend_installed(tmp_path, "mxnet-cu117")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused()
    assert message.startswith(
        "mxnet and mxnet-cu117 are both installed and overwrite each other: pip uninstall -y mxnet"
    )


def test_no_mxnet_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(importing.importlib.util, "find_spec", lambda name: None)
    assert refused() == "mxnet is not installed: pip install mxnet==1.9.1"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("OSError('libcuda.so.1: cannot open shared object file: No such file or directory')", "no NVIDIA driver"),
        (
            "OSError('libcudnn.so.8: cannot open shared object file: No such file or directory')",
            "libcudnn.so.8 is missing: pip install nvidia-cudnn-cu11",
        ),
        (
            "OSError('libnccl.so.2: cannot open shared object file: No such file or directory')",
            "libnccl.so.2 is missing: pip install nvidia-nccl-cu11",
        ),
        (
            "OSError('libgfortran.so.3: cannot open shared object file: No such file or directory')",
            "the library libgfortran.so.3 is missing: install it with the system's package manager",
        ),
        ("OSError('invalid ELF header')", "invalid ELF header; try pip install --force-reinstall mxnet==1.9.1"),
        ("ImportError(\"No module named 'distutils'\")", "pip install setuptools"),
        ("ImportError(\"cannot import name 'x'\")", "cannot import name 'x'; try pip install mxnet==1.9.1 'numpy<2'"),
    ],
)
def test_an_mxnet_that_cannot_be_imported_says_what_is_missing(tmp_path, error, words):
    (tmp_path / "mxnet.py").write_text(f"raise {error}\n")
    program = """
from pipeline import runtime
from pipeline.errors import DeviceError
try:
    runtime.mxnet()
except DeviceError as error:
    print(error)
"""
    path = os.pathsep.join((str(tmp_path), str(CHECKOUT)))
    result = run([sys.executable, "-c", program], tmp_path, clean_environment(PYTHONPATH=path))
    assert result.rc == 0, result.text
    assert words in result.output
    assert result.output.startswith("mxnet cannot be imported: ")
    assert len(result.output.splitlines()) == 1


def test_a_cuda_library_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    package, path = importing.CUDA_LIBRARIES[0]
    library = tmp_path / "nvidia" / path
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    (tmp_path / "nvidia" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    message = refused(importing._preload_cuda_libraries)
    assert message.startswith(f"{package}: cannot load {library}")
    assert message.endswith(f"pip install --force-reinstall {package}")


cpu_only = pytest.mark.skipif(
    any(name.startswith("mxnet-cu") for name in importing.installed_mxnets()), reason="this mxnet has GPU code"
)


@cpu_only
def test_a_gpu_is_refused_if_mxnet_has_no_gpu_code():
    message = refused(runtime.devices, "gpu:0,1")
    assert message.startswith("device: found gpu:0,1, but the installed mxnet has no GPU code")


@cpu_only
def test_make_gpu_is_not_suggested_for_a_card_that_it_does_not_support(monkeypatch):
    monkeypatch.setattr(device, "gpu_capability", lambda number: (9, 0))
    message = refused(runtime.devices, "gpu")
    assert message.startswith("device: gpu:0 has compute capability 9.0")
    assert "make gpu" not in message


@cpu_only
def test_auto_is_the_cpu_without_a_gpu():
    assert runtime.devices("auto").name == "cpu"


def test_a_card_that_the_wheels_do_not_support_is_refused_before_it_fails(monkeypatch):
    for capability in [(3, 7), (9, 0), (10, 0)]:
        monkeypatch.setattr(device, "gpu_capability", lambda number, found=capability: found)
        message = refused(device._check_capability, 0)
        assert f"gpu:0 has compute capability {capability[0]}.{capability[1]}" in message
        assert "5.0 to 8.9" in message
        assert "container" in message
    for capability in [(5, 0), (7, 5), (8, 9), (0, 0)]:  # (0, 0): unknown
        monkeypatch.setattr(device, "gpu_capability", lambda number, found=capability: found)
        device._check_capability(0)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            "context.num_gpus",
            "CUDA driver version is insufficient",
            "device: found gpu, but CUDA says: MXNetError: CUDA driver version is insufficient; the NVIDIA driver "
            "is too old for CUDA 11",
        ),
        (
            "nd.ones",
            "no kernel image is available for execution",
            "device: gpu:0 failed a test computation: MXNetError: no kernel image is available for execution; this "
            "mxnet has no code for this card",
        ),
    ],
)
def test_cudas_message_is_extracted_from_mxnets_traceback(monkeypatch, function, error, message):
    def fails(*arguments, **options):
        raise mx.base.MXNetError(
            f'Traceback (most recent call last):\n  File "../src/x.cc", line 81\nMXNetError: {error}'
        )

    mx = runtime.mxnet()
    monkeypatch.setattr(device, "installed_mxnets", lambda: ["mxnet-cu117"])
    monkeypatch.setattr(device, "gpu_capability", lambda number: (8, 0))
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    monkeypatch.setattr(f"mxnet.{function}", fails)
    assert refused(runtime.devices, "gpu") == message


def test_several_cpu_contexts_are_several_devices():
    found = runtime.devices("cpu:0,1")
    assert [context.device_id for context in found.contexts] == [0, 1]
    assert found.name == "cpu:0,1"
    assert not found.is_gpu


def test_the_threads_are_set_before_mxnet_is_loaded(tmp_path):
    program = "from pipeline import runtime; runtime.mxnet(); import os; print(os.environ['OMP_NUM_THREADS'])"
    environment = clean_environment()
    del environment["OMP_NUM_THREADS"]
    result = run([sys.executable, "-c", program], tmp_path, environment)
    assert result.output.strip() == str(usable_cores())


def test_two_devices_train_to_the_same_weights_as_one(prepared):
    prepared.configure(architecture__batch_norm=False, architecture__dense=[16], architecture__dropout=0.0)
    prepared.configure(training__epochs=2, training__batch_size=30, training__learning_rate=0.02)
    found = {}
    for name in ("cpu", "cpu:0,1"):
        prepared.configure(device=name, architecture__name=f"on-{name.count(',') + 1}")
        manifest = training.train(prepared.chain(), child.Reporter(log=io.StringIO()))
        assert manifest["details"]["device"] == name
        found[name] = weights.read(prepared.folder("train") / "model.params")
        found[f"{name} loss"] = manifest["details"]["last_epoch"]["train_loss"]
    for name, value in found["cpu"].items():
        np.testing.assert_allclose(found["cpu:0,1"][name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert found["cpu:0,1 loss"] == pytest.approx(found["cpu loss"], rel=1e-4)


@pytest.mark.pythons
def test_mxnet_imports_without_the_distutils_shim(tmp_path):
    program = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "istutils" not in str(finder)]
from pipeline import runtime
print(float(runtime.mxnet().nd.ones(3).sum().asscalar()))
"""
    environment = clean_environment(SETUPTOOLS_USE_DISTUTILS="stdlib")
    result = run([sys.executable, "-c", program], tmp_path, environment)
    assert result.output == "3.0\n", result.text


@pytest.mark.parametrize("name", ["MXNET_CPU_WORKER_NTHREADS", "MXNET_CPU_PRIORITY_NTHREADS", "MXNET_OMP_MAX_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_number_of_threads_with_which_mxnet_hangs_or_aborts_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert refused() == f"{name}: found {value!r}, expected a number of threads, at least 1: unset it"


def test_a_python_that_drops_docstrings_is_refused(tmp_path):
    program = "from pipeline import errors, runtime\ntry: runtime.mxnet()\nexcept errors.DeviceError as e: print(e)"
    result = run([sys.executable, "-OO", "-c", program], tmp_path, clean_environment())
    assert "start Python without -OO" in result.output, result.text
