"""Report facts: statistics against published values, and facts against the files they come from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from luigi_runs import CLASSES, SmallChain

from pipeline import __version__, config
from pipeline.errors import WorkspaceError
from pipeline.evaluation import statistics
from pipeline.files import write_json
from pipeline.pages import formats
from pipeline.process.child import Reporter
from pipeline.report import facts, page, render
from pipeline.workspace import manifest
from pipeline.workspace.freshness import Chain

# --- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_newcombe_1998_table_1(hits: int, count: int, low: float, high: float) -> None:
    assert statistics.wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_intervals_stay_within_0_and_1() -> None:
    assert statistics.wilson_interval(10_000, 10_000)[1] == 1.0
    assert statistics.wilson_interval(0, 10_000)[0] == 0.0
    assert statistics.wilson_interval(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_mean_is_students() -> None:
    ((low, high),) = statistics.mean_intervals([[1, 2, 3, 4, 5]])
    assert (low, high) == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-3)  # t(4) = 2.776


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (10, 2.228), (11, 2.201), (30, 2.042), (120, 1.980)])
def test_its_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    values = [0.0] * freedom + [1.0]
    ((low, high),) = statistics.mean_intervals([values])
    deviation = math.sqrt(np.var(values, ddof=1) / len(values))
    assert (high - low) / 2 / deviation == pytest.approx(quantile, abs=1e-3)


def test_groups_share_a_pooled_variance() -> None:
    first, second = statistics.mean_intervals([[1, 3], [10, 12]])
    assert first == pytest.approx((2 - 4.303, 2 + 4.303), abs=1e-3)  # t(2) = 4.303, pooled deviation sqrt(2)
    assert second == pytest.approx((11 - 4.303, 11 + 4.303), abs=1e-3)


def test_calibration_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    bins = statistics.calibration(probabilities, probabilities.argmax(1) == [0, 1, 1, 1], bins=5)
    # 0.6..0.8 holds the confidence 0.7; 0.6 itself belongs to the bin below, which is closed above.
    assert [item.count for item in bins] == [0, 0, 1, 1, 2]
    assert [item.accuracy for item in bins] == [None, None, 1.0, 1.0, 0.5]
    expected = (abs(0.6 - 1) + abs(0.7 - 1) + 2 * abs(0.9 - 0.5)) / 4
    assert statistics.expected_calibration_error(bins) == pytest.approx(expected)


@pytest.mark.parametrize(("gained", "lost"), [(1, 9), (9, 1), (6, 16), (0, 0), (5, 5), (300, 250)])
def test_mcnemar_is_exact(gained: int, lost: int) -> None:
    now = np.array([True] * gained + [False] * lost + [True] * 7)
    before = np.array([False] * gained + [True] * lost + [True] * 7)
    found = statistics.compare_paired(now, before)
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    assert (found["gained"], found["lost"]) == (gained, lost)
    assert found["p"] == pytest.approx(min(1.0, 2 * tail))


# --- facts of a finished run --------------------------------------------------------------------------------------


def gather(chain: Chain) -> dict[str, Any]:
    return facts.gather(chain, facts.read(chain))


def test_report_json_has_the_promised_keys(finished: SmallChain) -> None:
    report = json.loads((finished.folder("report") / "report.json").read_text())
    promised = {
        "dataset": {"name", "digest", "train_images", "test_images", "sample"},
        "architecture": {"name", "fingerprint", "parameters", "conv_arch"},
        "training": {"epochs", "seconds", "images_per_second", "resumed", "device", "precision"},
        "evaluation": {"accuracy", "loss", "per_class", "confusion"},
    }
    for part, keys in promised.items():
        assert keys <= set(report[part]), part
    assert report["dataset"]["sample"] is False
    assert (report["dataset"]["train_images"], report["dataset"]["test_images"]) == (240, 60)
    assert report["training"]["resumed"] == 0
    assert report["architecture"]["fingerprint"] == finished.chain().config.fingerprint


def test_the_versions_name_this_package(finished: SmallChain) -> None:
    report = json.loads((finished.folder("report") / "report.json").read_text())
    assert report["provenance"]["versions"]["luigi-vgg"] == __version__
    assert f"luigi-vgg {__version__}" in (finished.folder("report") / "index.html").read_text()


def test_the_metrics_are_those_of_the_evaluation(finished: SmallChain) -> None:
    report = gather(finished.chain())["evaluation"]
    metrics = json.loads((finished.folder("evaluate") / "metrics.json").read_text())
    assert (report["accuracy"], report["loss"]) == (metrics["accuracy"], metrics["loss"])
    assert report["correct"] == sum(row[index] for index, row in enumerate(report["confusion"]))
    assert report["accuracy"] == report["correct"] / report["images"]
    assert report["interval"][0] < report["accuracy"] < report["interval"][1]
    assert sum(item["count"] for item in report["calibration"]) == report["images"]
    for row, counts in zip(report["per_class"], report["confusion"], strict=True):
        assert row["support"] == sum(counts)
    frequent = [item["count"] for item in report["confusions"]]
    assert frequent == sorted(frequent, reverse=True)


def test_the_page_says_why_training_metrics_are_stricter_than_validation(finished: SmallChain) -> None:
    chain = finished.chain()
    sources = facts.read(chain)
    plain = page.html(facts.gather(chain, sources), sources.data.test_images)
    assert "are averages over the epoch; validation is measured at its end." in plain
    settings = sources.train["details"]["config"]["training"]
    settings.update(label_smoothing=0.1, augmentation={"flip": "random"})
    harder = page.html(facts.gather(chain, sources), sources.data.test_images)
    sentence = (
        "epoch, with augmentation and with label smoothing 0.1; validation is measured at its end, without either."
    )
    assert sentence in harder


@pytest.mark.parametrize("validated", [(None, 1.5, 0.5), (1.5, 0.5, None), (None, None, None)])
def test_a_training_validated_in_only_some_epochs_has_a_page(
    finished: SmallChain, validated: tuple[float | None, ...]
) -> None:
    sources = facts.read(finished.chain())
    row = sources.history[0]
    sources.history[:] = [
        {**row, "epoch": epoch, "validation_loss": value, "validation_accuracy": value and value / 3}
        for epoch, value in enumerate(validated, start=1)
    ]
    text = page.html(facts.gather(finished.chain(), sources), sources.data.test_images)
    assert ("validation from 1.500 to 0.500" in text) is any(validated)


def test_curves_do_not_depend_on_matplotlib_settings(finished: SmallChain) -> None:
    history = facts.read(finished.chain()).history
    plain = page._curve("loss", history, [0.5])
    with matplotlib.rc_context({"text.usetex": True, "axes.linewidth": 5, "font.family": "cursive"}):
        assert page._curve("loss", history, [0.5]) == plain


def test_a_resume_is_marked_in_its_epoch_whatever_the_batch_size() -> None:
    segments = [{"epoch": 0, "step": 0}, {"epoch": 2, "step": 10}, {"epoch": 3, "step": 30}]
    assert page._resumes({"epochs": 4, "steps": 40, "segments": segments}) == [2, 3]


def test_the_report_says_that_the_exported_model_sees_one_view(finished: SmallChain) -> None:
    sources = facts.read(finished.chain())
    sources.metrics.update(views=6, single_view_accuracy=0.5)
    found = facts.gather(finished.chain(), sources)
    text = "sees one view (accuracy 50.00\N{NARROW NO-BREAK SPACE}%)"
    assert f"<code>model.onnx</code> {text}" in page.html(found, sources.data.test_images)
    assert f"model.onnx {text}, vgg-predict averages over 6 |" in page.markdown(found)


def test_layers_add_up_to_the_whole_network(finished: SmallChain) -> None:
    architecture = gather(finished.chain())["architecture"]
    assert sum(layer["parameters"] for layer in architecture["layers"]) == architecture["parameters"]
    # 3 -> 4 channels at 32x32, 4 -> 8 at 16x16, 3x3 each; then 8 * 8 * 8 values into 10 classes.
    assert architecture["multiply_adds"] == 3 * 4 * 9 * 32 * 32 + 4 * 8 * 9 * 16 * 16 + 512 * 10
    assert architecture["layers"][-1]["output"] == (10,)


def test_examples_are_confident_mistakes_that_show_the_true_class() -> None:
    generator = np.random.RandomState(0)
    probabilities = generator.dirichlet(np.full(10, 0.3), 300).astype(np.float32)
    labels = generator.randint(0, 10, 300)
    mistakes = facts.most_confident_mistakes(probabilities, probabilities.argmax(1), labels, CLASSES)
    sure = [max(example["probabilities"].values()) for example in mistakes]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] == pytest.approx(probabilities.max(1)[probabilities.argmax(1) != labels].max(), abs=1e-6)
    for example in mistakes:
        assert example["label"] != example["predicted"]
        assert example["label"] in example["probabilities"]


def test_equal_probabilities_do_not_change_what_is_correct(finished: SmallChain) -> None:
    sources = facts.read(finished.chain())
    flat = np.full_like(sources.probabilities, 0.1)  # as float32 gives for logits that hardly differ
    found = facts.gather(finished.chain(), dataclasses.replace(sources, probabilities=flat))
    assert found["evaluation"]["correct"] == round(sources.metrics["accuracy"] * len(sources.labels))
    for example in found["examples"]["mistakes"]:
        assert example["label"] != example["predicted"]


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (999_568, "1 M"), (999_400, "999 k"), (999.6e6, "1 G"), (612_800, "613 k")]
)
def test_large_numbers_have_three_digits(value: float, text: str) -> None:
    assert formats.short(value).replace("\N{NARROW NO-BREAK SPACE}", " ") == text


def test_configured_numbers_are_shown_in_full() -> None:
    assert [formats.plain(value) for value in (0.0123456789, 1234567.0, 1e-3)] == ["0.0123456789", "1234567", "0.001"]


def test_the_report_does_not_show_a_sources_password(finished: SmallChain) -> None:
    value = config.to_dict(finished.chain().config)
    value["data"]["source"] = "https://user:secret@example.org/cifar.tar.gz?token=hidden"
    value["data"]["mirrors"] = ["https://other:secret@example.org/cifar.tar.gz"]
    rows = facts._chosen(config.from_dict(value), 10)
    shown = {row["key"]: row["value"] for row in rows}
    assert shown["data.source"] == "https://example.org/cifar.tar.gz"
    assert "secret" not in json.dumps(rows)
    assert "hidden" not in json.dumps(rows)


def test_only_required_and_non_default_keys_are_shown(finished: SmallChain) -> None:
    rows = {row["key"]: row["value"] for row in gather(finished.chain())["provenance"]["config"]}
    assert rows["training.batch_size"] == 40
    assert "training.momentum" not in rows
    assert "training.epochs" in rows


def test_the_published_baseline_is_shown_for_cifar10_only(finished: SmallChain) -> None:
    sources = facts.read(finished.chain())
    assert facts._baseline(sources) is None
    details = {**sources.data.manifest["details"], "name": "cifar10"}
    data = dataclasses.replace(sources.data, manifest={**sources.data.manifest, "details": details})
    baseline = facts._baseline(dataclasses.replace(sources, data=data))
    assert baseline is not None
    assert baseline["accuracy"] == 0.7405
    assert baseline["difference"] == sources.metrics["accuracy"] - 0.7405
    assert baseline["official_images"] is False


# --- generations --------------------------------------------------------------------------------------------------


def test_a_decision_of_an_earlier_version_is_still_shown(done: SmallChain) -> None:
    compared = {"run": "runs/mini-00000000/tiny-00000000@2026-W47", "generation": "2026-W47", "same_images": True}
    compared |= {"accuracy_when_promoted": 0.5, **statistics.compare_paired(np.array([True]), np.array([False]))}
    folder, weights = (
        done.folder("promote"),
        {"model.params": done.manifest("train")["files"]["model.params"]["sha256"]},
    )
    decided = {"outcome": "promoted", "reason": "better", "tolerance": 0.0, "decided": "2026-11-25T08:00:00Z"}
    write_json(folder / "decision.json", {**decided, "compared": compared})
    manifest.write(folder, "promote", ["decision.json"], weights, {})
    found = gather(done.chain())
    assert found["comparison"]["previous"]["images_compared"] == "the same 1 test image"
    assert "from 0.00\N{NARROW NO-BREAK SPACE}% on the same 1 test image; 1 newly correct" in page.markdown(found)


# --- inputs and versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "name"), [("evaluate", "predictions.npz"), ("train", "history.csv")])
def test_a_file_that_differs_from_its_manifest_is_refused(done: SmallChain, stage: str, name: str) -> None:
    path = done.folder(stage) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WorkspaceError, match=f"{name}: damaged"):
        facts.read(done.chain())


def test_a_new_stage_version_renders_the_report_again_and_nothing_else(
    done: SmallChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = done.chain()
    assert chain.complete("report")
    monkeypatch.setitem(manifest.STAGE_VERSIONS, "report", 1000)
    (reason,) = chain.why("report")
    assert "version" in reason
    assert all(chain.complete(stage) for stage in ("train", "evaluate", "export"))
    render(chain, Reporter(log=open("/dev/null", "w")))  # noqa: SIM115
    assert chain.complete("report")


def test_the_summary_for_mail_has_the_results_in_tables(finished: SmallChain) -> None:
    text = Path(finished.folder("report") / "report.md").read_text()
    accuracy = json.loads((finished.folder("evaluate") / "metrics.json").read_text())["accuracy"]
    assert text.startswith("# tiny on mini: ")
    assert f"**{accuracy * 100:.2f}" in text
    assert all(f"| {name} |" in text for name in CLASSES)
