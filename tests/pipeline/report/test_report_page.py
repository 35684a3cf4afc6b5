"""The pages in a real browser: self-contained, without console errors, readable on a phone, and accessible."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from luigi_runs import CLASSES, SmallChain

from pipeline import comparison
from pipeline.comparison import page as comparison_page
from pipeline.comparison import ranking
from pipeline.dataset import sample
from pipeline.report import facts, page
from pipeline.workspace import Workspace

HOSTILE = "<script>window.hacked = 1</script>\"'><img src=http://127.0.0.1:9/x onerror='window.hacked = 2'>{{7*7}}"

#: Elements that extend beyond the right edge of the window, whose own innerWidth would grow with them.
BEYOND = """
[...document.querySelectorAll('body, body *')].filter(e => e.getClientRects().length)
  .filter(e => e.getBoundingClientRect().right > %d + 1 && !e.closest('.skip, thead'))
  .map(e => e.outerHTML.slice(0, 90))
"""

#: Labels of the confusion matrix that do not fit their cell, and words that leave their drawing.
CUT_OFF = """
[...document.querySelectorAll('.confusion tbody th, .confusion thead th span')]
  .filter(e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1).map(e => e.textContent)
  .concat([...document.querySelectorAll('.headline svg text')].filter(e => {
    const [text, drawing] = [e.getBoundingClientRect(), e.closest('svg').getBoundingClientRect()];
    return text.left < drawing.left - 0.5 || text.right > drawing.right + 0.5;
  }).map(e => e.textContent))
"""

#: Words that are broken across lines.
BROKEN = """
(() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.parentElement.getClientRects().length || node.parentElement.closest('code')) continue;
    for (const word of node.data.matchAll(/[\\p{L}]+/gu)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const tops = [...range.getClientRects()].map(r => Math.round(r.top));
      if (new Set(tops).size > 1) found.push(word[0]);
    }
  }
  return found;
})()
"""

#: Every text with less contrast than WCAG 2.1 AA requires: 4.5, or 3 if it is large.
LOW_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour, under) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return `rgb(${[...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)})`;
  };
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
    return layers.reduce((under, layer) => rgb(layer, under), 'rgb(255,255,255)');
  };
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  let checked = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.data.trim() || !element.getClientRects().length) continue;
    checked++;
    const paper = behind(element), ink = rgb(element.closest('svg') ? style.fill : style.color, paper);
    const [a, b] = [luminance(paper), luminance(ink)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${node.data.trim()}: ${ink} on ${paper} is ${ratio.toFixed(2)}`);
  }
  return JSON.stringify({checked, found});
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    if chromium.executable() is None:
        pytest.skip("no Chromium on this machine")
    with chromium.page() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(finished: SmallChain) -> dict[str, Any]:
    """The facts of a twice-resumed run, with everything that a page can show."""
    chain = finished.chain()
    value = facts.gather(chain, facts.read(chain))
    first = value["training"]["segments"][0]
    value["training"]["segments"] = [
        first,
        {**first, "step": 2, "how": "resumed from step-2.npz"},
        {**first, "step": 4},
    ]
    value["training"] |= {"resumed": 2, "exact": False, "inexact": ["threads 2 -> 1 when resumed at step 2"]}
    paired = {"images": 55, "difference": -0.01, "gained": 5, "lost": 8, "p": 0.58, "interval": [-0.02, 0.01]}
    both = "the 55 test images that are in both test sets"
    value["comparison"] = {
        "baseline": {
            "accuracy": 0.7405, "difference": 0.02, "position": "within", "official_images": False
        },
        "previous": {
            "run": "tiny-12345678@2026-W47", "accuracy": 0.76, **paired, "on": "shared", "images_compared": both,
            "all": {"accuracy": 0.71, **paired, "images": 60, "difference": 0.02},
        },
        "decision": {"outcome": "refused", "reason": "worse", "tolerance": 0.005, "decided": "2026-11-25T08:00:00Z"},
    }  # fmt: skip
    value["provenance"]["config_changes"] = ["training.learning_rate: trained with 0.05, config now says 0.01"]
    return value


@pytest.fixture(scope="module")
def ranked(finished: SmallChain) -> dict[str, Any]:
    """The facts of a comparison of five configurations with two seeds, made from one run."""
    compared = comparison.plan([str(finished.config)], [], Workspace(finished.workspace))
    value = ranking.gather(compared)
    (group,) = value["ranking"]
    (run,) = group["runs"]
    value["ranking"] = []
    for rank in range(1, 6):
        other = copy.deepcopy(group)
        accuracy = 0.8 - 0.04 * rank
        other["runs"] = [
            {**run, "accuracy": accuracy},
            {**run, "accuracy": accuracy + 0.01, "report": "../r/index.html"},
        ]
        other |= {"rank": rank, "accuracy": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05], "least": accuracy}
        other |= {"multiply_adds": 10**rank, "parameters": 1000 * rank, "seconds": 0.5 * rank, "most": accuracy + 0.01}
        value["ranking"].append(other)
    return {**value, "seeds": 2, "baseline": 0.7405, "config_changes": ["a: b"], "conditions": value["conditions"] * 2}


@pytest.fixture(scope="module", params=["report", "comparison"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each kind."""
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    if request.param == "report":
        value = request.getfixturevalue("report")
        path.write_text(page.html(value, request.getfixturevalue("pictures")))
    else:
        path.write_text(comparison_page.html(request.getfixturevalue("ranked")))
    return path


@pytest.fixture(scope="module")
def pictures(finished: SmallChain) -> np.ndarray:
    return facts.read(finished.chain()).data.test_images


@pytest.fixture
def written(pictures: np.ndarray, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A function that writes the page of given facts."""

    def write(value: dict[str, Any]) -> Path:
        file = tmp_path / "index.html"
        file.write_text(page.html(value, pictures))
        return file

    return write


def test_the_page_of_a_real_run_is_complete(finished: SmallChain, browser: chromium.Page) -> None:
    browser.open(finished.folder("report") / "index.html", 1280)
    sections = browser.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    expected = ["result", "curves", "classes", "images", "calibration", "architecture", "speed", "export", "provenance"]
    assert sections == expected
    assert browser.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    text = browser.evaluate("document.body.innerText")
    accuracy = json.loads((finished.folder("evaluate") / "metrics.json").read_text())["accuracy"]
    assert f"{accuracy * 100:.2f}" in text
    assert all(name in text for name in CLASSES)


@pytest.mark.parametrize("width", [1280, 375])
def test_it_requests_nothing_logs_nothing_and_does_not_scroll_horizontally(
    file: Path, browser: chromium.Page, width: int
) -> None:
    browser.open(file, width)
    outside = [url for url in browser.requested() if not url.startswith("data:")]
    assert outside == [file.absolute().as_uri()]
    assert browser.complaints() == []
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(BEYOND % width) == []
    assert file.stat().st_size < 1_500_000


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 375])
def test_all_text_has_the_contrast_that_wcag_aa_requires(
    file: Path, browser: chromium.Page, width: int, dark: bool
) -> None:
    browser.open(file, width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    result = json.loads(browser.evaluate(LOW_CONTRAST))
    assert result["checked"] > 100
    assert result["found"] == []


def test_it_follows_the_readers_colour_scheme(file: Path, browser: chromium.Page) -> None:
    colours = []
    for dark in (False, True):
        browser.open(file, 800, dark=dark)
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(16, 19, 23)"]


def test_it_is_accessible_to_screen_readers(file: Path, browser: chromium.Page) -> None:
    browser.open(file, 1280)
    count = 'document.querySelectorAll("%s").length'
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("document.title")
    assert browser.evaluate(count % "h1") == 1
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert browser.evaluate(count % "img:not([alt]), img[alt='']") == 0
    assert browser.evaluate(count % "[role=img]:not([aria-label]), [role=img][aria-label='']") == 0
    # The label of its frame describes a drawing, unless it only decorates a table.
    assert browser.evaluate(count % "svg:not([aria-hidden])") == 0
    assert browser.evaluate(count % "th:not([scope])") == 0
    assert browser.evaluate("[...document.querySelectorAll('table')].every(t => t.querySelector('thead th'))")
    assert browser.evaluate("[...document.querySelectorAll('tbody tr')].every(r => r.querySelector('th, td[colspan]'))")
    assert browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)") == browser.evaluate(
        "[...new Set([...document.querySelectorAll('[id]')].map(e => e.id))]"
    )


def test_the_keyboard_reaches_every_section(file: Path, browser: chromium.Page) -> None:
    browser.open(file, 1280)
    for kind in ("rawKeyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    links = browser.evaluate("[...document.querySelectorAll('a')].every(a => a.href && a.tabIndex === 0)")
    assert links


def test_resumes_comparisons_and_config_changes_are_shown(
    report: dict[str, Any], browser: chromium.Page, written: Callable[..., Path]
) -> None:
    file = written(report)
    browser.open(file, 1280)
    text = browser.evaluate("document.body.innerText")
    for text_shown in ("resumed from step-2.npz", "Refused", "tiny-12345678@2026-W47", "74.05", "threads 2 -> 1"):
        assert text_shown in text
    assert "training.learning_rate: trained with 0.05, config now says 0.01" in text
    assert "(76.00\N{NARROW NO-BREAK SPACE}%) on the 55 test images that are in both test sets: −1.00 points" in text
    assert "On all 60 test images (71.00\N{NARROW NO-BREAK SPACE}% before): +2.00 points" in text
    # A dotted line for each resume in each of the four curves.
    assert browser.evaluate("document.querySelectorAll('[style*=\"var(--mark)\"]').length") == 2 * 4


def test_markup_in_names_is_escaped(
    report: dict[str, Any], browser: chromium.Page, written: Callable[..., Path]
) -> None:
    hostile = json.loads(json.dumps(report).replace("airplane", json.dumps(HOSTILE)[1:-1]))
    hostile |= {"run": HOSTILE, "generation": HOSTILE}
    hostile["dataset"] |= {"name": HOSTILE, "label": HOSTILE}
    hostile["architecture"] |= {"name": HOSTILE}
    hostile["training"] |= {"host": HOSTILE, "cpu": HOSTILE, "inexact": [HOSTILE], "device": HOSTILE}
    hostile["comparison"]["previous"]["run"] = HOSTILE
    hostile["comparison"]["decision"]["reason"] = HOSTILE
    hostile["provenance"]["config_changes"] = [HOSTILE]
    for row in hostile["provenance"]["config"]:
        row["value"] = HOSTILE
    file = written(hostile)
    browser.open(file, 375)
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.complaints() == []
    assert [url for url in browser.requested() if not url.startswith("data:")] == [file.absolute().as_uri()]
    assert "{{7*7}}" in browser.evaluate("document.body.innerText")
    assert browser.evaluate(BEYOND % 375) == []


def test_markup_is_escaped_in_the_markdown_summary(report: dict[str, Any]) -> None:
    hostile = {**report, "run": "x | y\n\n# `<script>alert(1)</script>` [a](http://b) **c**"}
    text = page.markdown(hostile)
    assert "<script>" not in text
    assert "\n# `" not in text
    assert r"\[a\](http://b)" in text
    assert r"x \| y" in text


def test_no_word_is_broken_and_no_name_is_truncated(
    report: dict[str, Any], browser: chromium.Page, written: Callable[..., Path]
) -> None:
    own = json.loads(json.dumps(report).replace("airplane", "checkerboard").replace("automobile", "horizontal stripes"))
    file = written(own)
    for width in (1280, 800, 400, 375):
        browser.open(file, width)
        assert browser.evaluate(BROKEN) == [], width
        assert browser.evaluate(BEYOND % width) == []
        assert (
            browser.evaluate(
                "[...document.querySelectorAll('.name')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
            )
            == 0
        )


def test_all_links_of_the_page_work(finished: SmallChain) -> None:
    file = finished.folder("report") / "index.html"
    links = {link for link in re.findall(r'href="([^"]+)"', file.read_text()) if not link.startswith("#")}
    named = {"../export/model.onnx", "../train/history.csv", "../train/train.log", "report.json"}
    assert named <= links
    assert [link for link in links if not (file.parent / link).is_file()] == []


def test_a_single_configuration_is_not_plotted_against_cost(ranked: dict[str, Any]) -> None:
    assert 'href="#cost"' in comparison_page.html(ranked)
    assert "cost" not in re.findall(
        r'(?:href="#|id=")(\w+)"', comparison_page.html({**ranked, "ranking": ranked["ranking"][:1]})
    )


def test_recalls_between_95_and_100_percent_can_be_told_apart(report: dict[str, Any]) -> None:
    rows = [{"recall": value, "recall_interval": [value - 0.02, min(1, value + 0.01)]} for value in (0.95, 0.97, 1.0)]
    drawn = page._recall(rows)
    assert drawn["ends"] == (0.9, 1.0)
    dots = [float(re.search(r'<circle cx="([\d.]+)"', row)[1]) for row in drawn["rows"]]  # type: ignore[index]
    assert dots[1] - dots[0] > 30  # of 200
    assert dots[2] - dots[1] > 50


def test_no_name_and_no_number_is_cut_off(
    report: dict[str, Any], browser: chromium.Page, written: Callable[..., Path]
) -> None:
    own = copy.deepcopy(report)
    own["evaluation"]["classes"] = list(sample.CLASSES)
    for accuracy, interval in ((0.992, [0.9843, 0.9959]), (0.01, [0.001, 0.02])):
        own["evaluation"].update(accuracy=accuracy, interval=interval)
        file = written(own)
        for width in (1280, 375):
            browser.open(file, width)
            assert browser.evaluate(CUT_OFF) == []


def with_many_classes(report: dict[str, Any]) -> dict[str, Any]:
    """Turn a report into one with 100 classes. The last ones have the lowest recall; one has no test images."""
    many = copy.deepcopy(report)
    row = many["evaluation"]["per_class"][0]
    names = [f"class {number}" for number in range(100)]
    many["evaluation"]["classes"] = names
    many["evaluation"]["confusion"] = [[40 if i == j else 1 for j in range(100)] for i in range(100)]
    many["evaluation"]["per_class"] = [
        {**row, "class": name, "recall": 1 - number / 100, "support": 20} for number, name in enumerate(names)
    ]
    many["evaluation"]["per_class"][99] |= {"recall": None, "support": 0}
    return many


def test_with_many_classes_the_summary_has_the_worst_ones_and_the_most_frequent_mistakes(
    report: dict[str, Any],
) -> None:
    text = page.markdown(with_many_classes(report))
    assert "| class 98 | 2.0\u202f% |" in text.replace("\u00a0", "\u202f").replace(" %", "\u202f%")
    assert text.count("| class ") == 12
    assert "All 100 classes are in report.json. The most frequent mistakes:" in text
    assert "| True class |" not in page.markdown(report)


def test_with_many_classes_the_worst_come_first_and_the_rest_is_collapsed(
    report: dict[str, Any], browser: chromium.Page, written: Callable[..., Path]
) -> None:
    many = with_many_classes(report)
    file = written(many)
    browser.open(file, 375)
    assert browser.evaluate("document.querySelectorAll('table.confusion').length") == 0
    headings = browser.evaluate(
        "[...document.querySelectorAll('#classes h3, #classes summary')].map(e => e.textContent)"
    )
    assert headings == ["Most frequent mistakes", "Classes with the lowest recall", "All 100 classes"]
    tables = browser.evaluate("[...document.querySelectorAll('#classes table')].map(e => e.textContent)")
    assert tables[1].index("class 98") < tables[1].index("class 97")
    assert "class 99" not in tables[1], "a class without test images is not the worst"
    assert (tables[1].count("class"), tables[2].count("class")) == (12, 100)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert file.stat().st_size < 1_500_000
