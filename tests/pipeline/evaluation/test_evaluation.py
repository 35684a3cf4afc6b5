"""Evaluation: metrics against values worked out by hand, and reproducible results."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pipeline import dataset, evaluation, model, runtime
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_file
from pipeline.model import weights
from pipeline.process import child


def logits_for(predictions, classes, margin=5.0):
    logits = np.zeros((len(predictions), classes), np.float32)
    logits[np.arange(len(predictions)), predictions] = margin
    return logits


def test_metrics_match_a_small_case_worked_out_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 1, 1, 0, 0])
    found = evaluation.metrics.compute(logits_for(predictions, 3), labels, ["cat", "dog", "owl"])
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    cat, dog, owl = found["per_class"]
    assert (cat["precision"], cat["recall"], cat["support"], cat["predicted"]) == (2 / 4, 2 / 3, 3, 4)
    assert cat["f1"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert (dog["precision"], dog["recall"]) == (1 / 2, 1 / 2)
    assert (owl["precision"], owl["recall"], owl["f1"]) == (None, 0.0, 0.0), "a class that was never predicted"
    right, wrong = -np.log(np.exp(5) / (np.exp(5) + 2)), -np.log(1 / (np.exp(5) + 2))
    assert found["loss"] == pytest.approx((3 * right + 3 * wrong) / 6)


def test_a_class_without_test_images_does_not_divide_by_zero():
    found = evaluation.metrics.compute(logits_for(np.array([0, 0]), 2), np.array([0, 0]), ["cat", "dog"])
    assert found["per_class"][1] == {
        "class": "dog",
        "precision": None,
        "recall": None,
        "f1": 0.0,
        "support": 0,
        "predicted": 0,
    }


def test_predictions_beyond_the_classes_count_as_mistakes(prepared, tmp_path):
    found = evaluation.metrics.compute(logits_for(np.array([0, 3]), 6), np.array([0, 1]), ["cat", "dog"])
    assert (found["accuracy"], found["classes"]) == (0.5, ["cat", "dog", "unnamed class 2", "unnamed class 3"])
    assert found["confusion"] == [[1, 0, 0, 0], [0, 0, 0, 1], [0] * 4, [0] * 4]
    assert found["per_class"][3] == {
        "class": "unnamed class 3",
        "precision": 0.0,
        "recall": None,
        "f1": 0.0,
        "support": 0,
        "predicted": 1,
    }
    # The whole chain: a network of 12 outputs that always predicts the last one.
    prepared.configure(architecture__classes=12, training__learning_rate=1e-9)
    net = model.build(prepared.chain().config.architecture)
    net.initialize(runtime.mxnet().init.Xavier())
    model.parameters(net)["2.bias"].data()[11] = 1000
    weights.save(net, tmp_path / "start.params")
    prepared.configure(training__init_from=str(tmp_path / "start.params"))
    result = prepared.report()
    assert result.rc == 0, result.text
    assert read_json(prepared.folder("evaluate") / "metrics.json")["confusion"][3][11] == 6
    assert "unnamed class 11" in (prepared.folder("report") / "index.html").read_text()


def test_probabilities_sum_to_one_even_for_extreme_logits():
    found = evaluation.softmax(np.array([[1000, 0, -1000], [0, 0, 0]], np.float32))
    assert found.sum(1) == pytest.approx([1, 1])
    assert found[0] == pytest.approx([1, 0, 0])


def test_published_metrics_and_predictions_match_the_test_images(finished):
    metrics = read_json(finished.folder("evaluate") / "metrics.json")
    predictions = np.load(finished.folder("evaluate") / "predictions.npz")
    labels = np.asarray(dataset.load(finished.folder("dataset")).test_labels)
    assert np.array_equal(predictions["labels"], labels)
    assert predictions["probabilities"].shape == (60, 10)
    assert np.array_equal(predictions["probabilities"].argmax(1), predictions["predictions"])
    assert metrics["accuracy"] == pytest.approx((predictions["predictions"] == labels).mean())
    assert sum(map(sum, metrics["confusion"])) == metrics["images"] == 60


@pytest.mark.parametrize("device", ["cpu", "cpu:0,1"])
def test_evaluating_again_yields_the_same_bytes(done, device):
    files = [done.folder("evaluate") / name for name in ("metrics.json", "predictions.npz")]
    before = [sha256_file(file) for file in files]
    done.configure(device=device)
    evaluation.evaluate(done.chain(), child.Reporter(log=io.StringIO()))
    assert [sha256_file(file) for file in files] == before


def test_several_views_are_averaged_and_the_single_view_accuracy_is_recorded(done):
    alone = read_json(done.folder("evaluate") / "metrics.json")
    assert (alone["views"], alone["single_view_accuracy"]) == (1, alone["accuracy"])
    done.configure(evaluation__tta=2)
    chain = done.chain()
    log = io.StringIO()
    evaluation.evaluate(chain, child.Reporter(log=log))
    metrics = read_json(done.folder("evaluate") / "metrics.json")
    assert (metrics["views"], metrics["single_view_accuracy"]) == (2, alone["accuracy"])
    run, train = evaluation.trained_run(chain)
    network = evaluation.TrainedNetwork.load(run, train, runtime.devices("cpu").contexts[0])
    images = np.asarray(dataset.load(done.folder("dataset")).test_images)
    logits = [network.logits(each)[0] for each in (images, images[..., ::-1])]
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    predictions = np.load(done.folder("evaluate") / "predictions.npz")
    expected = evaluation.softmax((logits[0] + logits[1]) / 2)
    assert np.abs(predictions["probabilities"] - expected).max() < 1e-5
    assert metrics["accuracy"] == (expected.argmax(1) == predictions["labels"]).mean()
    assert f"averaged with that of the mirror image; one view {alone['accuracy']:.2%}" in log.getvalue()


def test_an_interrupted_evaluation_does_not_leave_the_previous_one_complete(done, monkeypatch):
    chain = done.chain()
    assert chain.complete("evaluate")
    done.configure(evaluation__tta=2)
    monkeypatch.setattr(evaluation, "write_json", lambda *arguments: None)  # as if the metrics had the same size
    monkeypatch.setattr(evaluation.manifest, "write", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluation.evaluate(done.chain(), child.Reporter(log=io.StringIO()))
    assert chain.why("evaluate") == ["unfinished"]


def test_evaluating_without_a_trained_model_says_what_to_run_first(prepared):
    with pytest.raises(PipelineError, match="run the TrainVGG task first"):
        evaluation.evaluate(prepared.chain(), child.Reporter(log=io.StringIO()))
