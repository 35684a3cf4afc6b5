"""The pickles of the python layout are read without running anything in them."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from small_cifar import memory_below, mini_files, python_files, tar_gz

from pipeline import dataset
from pipeline.errors import DataError


class Runs:
    """Runs a shell command when unpickled by `pickle.load`."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def batch(**changes):
    value = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3], **changes}
    return pickle.dumps({key: item for key, item in value.items() if item is not None}, 2)


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_yields_the_same_data_set(chain, archive, reporter, protocol):
    python = dataset.prepare(chain(archive(tar_gz(python_files(mini_files(), protocol)))), reporter)["details"]
    assert python["layout"] == "python"
    binary = dataset.prepare(chain(archive(tar_gz(mini_files()))), reporter)["details"]
    assert python["digest"] == binary["digest"]


def test_a_python_2_pickle_is_read(chain, archive, reporter):
    files = python_files(mini_files())
    rows = np.frombuffer(mini_files()["data_batch_1.bin"], np.uint8).reshape(-1, 3073)
    raw = rows[:, 1:].tobytes()
    # Byte strings are U and T, which Python 3 never writes. K, M and J are integers, N is None, R calls, b sets state.
    files["data_batch_1"] = b"".join(
        [
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x0cM\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + len(raw).to_bytes(4, "little") + raw + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in rows[:, 0]) + b"eu.",
        ]
    )
    assert pickle.loads(files["data_batch_1"], encoding="bytes")[b"data"].shape == (12, 3072)
    binary = dataset.prepare(chain(archive(tar_gz(mini_files()))), reporter)["details"]
    assert dataset.prepare(chain(archive(tar_gz(files))), reporter)["details"]["digest"] == binary["digest"]


def test_labels_may_be_an_array_or_numpy_numbers(chain, archive, reporter):
    files = python_files(mini_files())
    files["test_batch"] = batch(labels=np.arange(4))
    first = dataset.prepare(chain(archive(tar_gz(files))), reporter)["details"]["digest"]
    files["test_batch"] = batch(labels=list(np.arange(4)))
    assert dataset.prepare(chain(archive(tar_gz(files))), reporter)["details"]["digest"] == first


def test_a_pickle_that_would_run_a_command_is_refused(chain, archive, reporter, tmp_path):
    for name in ("data_batch_1", "batches.meta"):
        proof = tmp_path / "proof"
        files = python_files(mini_files()) | {name: pickle.dumps({"data": Runs(f"touch {proof}")}, 2)}
        with pytest.raises(DataError, match=rf"{name} is a pickle that references (posix|os)\.system.*nothing was run"):
            dataset.prepare(chain(archive(tar_gz(files))), reporter)
        assert not proof.exists()


#: numpy's own function, given a number of bytes instead of the bytes.
OF_A_SIZE = (
    b"\x80\x04}(\x8c\x04data\x8c\x12numpy.core.numeric\x8c\x0b_frombuffer\x93(J\x00\x00\x00\x60"
    b"cnumpy\ndtype\n\x8c\x02u1\x85RJ\x00\x00\x08\x00M\x00\x0c\x86\x8c\x01CtRu."
)
#: 24 kB of text, encoded 5,000 times.
ENCODED_AGAIN = (
    b"\x80\x02c_codecs\nencode\nq\x00X\xc0\x5d\x00\x00" + b"x" * 24_000 + b"X\x06\x00\x00\x00latin1\x86q\x01"
    b"](" + b"h\x00h\x01R" * 5_000 + b"e."
)
#: Tuples nested 40 deep, each holding the one below twice: 2**40 leaves.
NESTED = b"K\x00\x85" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(40))


def of_type(dtype):
    """Pickle one numpy scalar of this dtype."""
    return b"\x80\x04}\x8c\x04datacnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + dtype + b"C\x01x\x86Rs."


HOSTILE = {
    "a nested name": (b"\x80\x04\x8c\x05numpy\x8c\x0bf2py.system\x93.", "references numpy.f2py.system"),
    "builtins": (b"cbuiltins\neval\n(S'1'\ntR.", "references builtins.eval"),
    "a huge memory": (b"\x80\x02}r\xff\xff\xff\x7f.", "data is missing"),
    "an array of nothing but its size": (OF_A_SIZE, "data cannot be read .*something other than integers"),
    "a text encoded again and again": (ENCODED_AGAIN, "not a readable pickle .*more bytes than the pickle has"),
    "nothing but empty dicts": (b"\x80\x02" + b"}" * 500_000 + b".", "far more operations than its images need"),
    "a key that takes years to hash": (
        b"\x80\x02}" + NESTED + b"K\x00s.",
        "not a readable pickle .*key that is not a string",
    ),
    "an encoding that takes years to show": (
        b"\x80\x02}X\x04\x00\x00\x00datac_codecs\nencode\nX\x01\x00\x00\x00x" + NESTED + b"\x86Rs.",
        "not a readable pickle .*name that is not a string",
    ),
    "a type that takes years to show": (
        of_type(NESTED + b"\x85R"),
        "not a readable pickle .*name that is not a string",
    ),
    "an order of bytes that takes years to show": (
        of_type(b"\x8c\x02u1\x85RK\x03" + NESTED + b"\x86b"),
        "not a readable pickle .*name that is not a string",
    ),
    "a call of many arguments": (b"\x80\x02cnumpy\ndtype\n(" + b"K\x00" * 9 + b"tR.", "not a readable pickle .*a call"),
    "a huge byte array": (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "not a readable pickle"),
    "a changed function": (b"\x80\x02cnumpy\ndtype\n}b.", "not a readable pickle .*a state for an object"),
    "no pickle": (b"hello", "not a readable pickle"),
    "a cut pickle": (batch()[:-100], "not a readable pickle"),
    "a list": (pickle.dumps([1]), "holds a list"),
    "no labels": (batch(labels=None), "labels is missing"),
    "labels of text": (batch(labels=["a"] * 4), "labels is a list, expected an array or list of integers"),
    "negative labels": (batch(labels=[-1] * 4), "labels from -1"),
    "a label too high": (batch(labels=[0, 1, 2, 9]), "image 3 has label 9, expected 0 to 3"),
    "too few labels": (batch(labels=[0]), "4 images, but labels of shape"),
    "floats": (batch(data=np.zeros((4, 3072), np.float32)), "data cannot be read .*f4"),
    "objects": (batch(data=np.array([{}] * 4)), "data cannot be read"),
    "another shape": (batch(data=np.zeros((4, 1024), np.uint8)), r"data is uint8 \(4, 1024\)"),
    "no images": (
        pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": np.zeros(0, int)}, 4),
        r"data is uint8 \(0, 3072\)",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_is_refused_with_its_own_line(case, chain, archive, reporter):
    content, message = HOSTILE[case]
    files = python_files(mini_files()) | {"data_batch_1": content}
    made = chain(archive(tar_gz(files)))
    with memory_below(30_000_000), pytest.raises(DataError, match=message) as caught:
        dataset.prepare(made, reporter)
    assert "\n" not in str(caught.value)
    assert "data_batch_1" in str(caught.value)


def test_a_long_class_name_repeated_many_times_takes_no_memory(chain, archive, reporter):
    meta = pickle.dumps({"label_names": [b"x" * 30_000] * 15_000}, 4)
    made = chain(archive(tar_gz(python_files(mini_files()) | {"batches.meta": meta})))
    with memory_below(30_000_000), pytest.raises(DataError, match="a class name is repeated, too long"):
        dataset.prepare(made, reporter)
