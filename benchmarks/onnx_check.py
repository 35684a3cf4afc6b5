"""Does the exported model predict the same without MXNet? `python benchmarks/onnx_check.py artifacts/runs/DATA/RUN`

Runs `model.onnx` on all test images in a fresh virtual environment with only onnxruntime and numpy, over the number of
views in its metadata. Exits with 1 if a prediction or the accuracy differs from the evaluation's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from pipeline.evaluation import tta
from pipeline.workspace import Workspace

#: Runs in that environment; `tta` is the module that makes views with numpy alone.
PROGRAM = """
import importlib.util, json, runpy, sys
import numpy, onnxruntime
model, images, threads, tta = sys.argv[1:]
tta = runpy.run_path(tta)
assert not importlib.util.find_spec("mxnet")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
views, padding = int(about.get("views", 1)), about.get("padding", "zero")
images = numpy.load(images, mmap_mode="r")
predictions = []
for start in range(0, len(images), 250):
    batch = images[start : start + 250].astype(numpy.float32) / 255
    logits = [session.run(["logits"], {"images": view})[0] for view in tta["views"](batch, views, padding)]
    predictions += tta["average"](logits).argmax(1).tolist()
print(json.dumps({"predictions": predictions, "onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Repeat a run's accuracy with onnxruntime alone.")
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    root = options.run.absolute()
    run = Workspace(root.parents[2]).run(root.parent.name, root.name)
    recorded = json.loads((run.stage("evaluate") / "metrics.json").read_text())["accuracy"]
    with np.load(run.stage("evaluate") / "predictions.npz") as file:
        labels, expected = file["labels"], file["predictions"]
    images = run.workspace.dataset(run.dataset_id) / "test_images.npy"
    with tempfile.TemporaryDirectory() as name:
        python = _environment(Path(name))
        model = str(run.stage("export") / "model.onnx")
        command = [python, "-I", "-c", PROGRAM, model, str(images), str(options.threads), tta.__file__]
        answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    predictions = np.array(answer["predictions"])
    same, accuracy = int((predictions == expected).sum()), float((predictions == labels).mean())
    print(f"{run.run_id}: onnxruntime {answer['onnxruntime']}, numpy {answer['numpy']}, no mxnet")
    print(f"{same:,} of {len(labels):,} predictions identical; accuracy {accuracy:.4f}, recorded {recorded:.4f}")
    return 0 if same == len(labels) and accuracy == recorded else 1


def _environment(folder: Path) -> str:
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "onnxruntime", "numpy"]
    subprocess.run(install, check=True)
    return python


if __name__ == "__main__":
    sys.exit(main())
