"""Rules of the house that nobody sees broken: who imports whom, what every YAML file opens with."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from luigi_runs import CHECKOUT, run

from pipeline.config import from_dict, load, to_dict
from pipeline.config.difference import flatten
from tasks.settings import vgg

HEAVY = {"mxnet", "numpy", "matplotlib", "onnx", "onnxruntime", "PIL", "jinja2", "rich"}

#: The rooms of `pipeline` from the ground up: each may import those in the lines above it, and those in its own.
STACK = """
    errors text files names address arrays streams tables start
    config
    storage
    workspace
    process
    runtime
    dataset
    model
    training
    evaluation
    export
    retraining
    pages
    report
    comparison
    predict doctor status verify stage_sync
    metrics
"""
LEVELS = {room: level for level, line in enumerate(STACK.strip().splitlines()) for room in line.split()}


def modules(package: str) -> list[Path]:
    return sorted((CHECKOUT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level names of everything that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def imports_of(package: str) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports, wherever it does."""
    names = {".".join(path.relative_to(CHECKOUT).with_suffix("").parts): path for path in modules(package)}
    paths = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = (f"{node.module}.{name.name}" for name in node.names)
                wanted |= {part if part in paths else node.module for part in parts}
        found[module] = wanted & paths.keys() - {module}
    return found


@pytest.mark.parametrize("package", ["pipeline", "tasks"])
def test_no_modules_import_each_other_in_a_circle(package):
    TopologicalSorter(imports_of(package)).prepare()  # raises CycleError, which names the circle


def test_every_room_of_the_pipeline_imports_only_those_below_it():
    def level(module: str) -> int:
        return LEVELS[module.split(".")[1]] if "." in module else -1

    upward = [
        f"{module} imports {other}"
        for module, wanted in imports_of("pipeline").items()
        for other in wanted
        if level(other) > level(module)
    ]
    assert not upward


def test_importing_the_tasks_imports_nothing_heavy(tmp_path):
    result = run([sys.executable, "-c", "import sys, tasks; print(*sys.modules)"], tmp_path)
    assert result.rc == 0, result.text
    loaded = {name.partition(".")[0] for name in result.output.split()}
    assert "luigi" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", modules("pipeline"), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_the_pipeline_knows_nothing_of_luigi(path):
    assert not imported(path) & {"luigi", "tasks"}


@pytest.mark.parametrize("path", modules("tasks"), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_the_tasks_use_no_numerical_library(path):
    assert not imported(path) & (HEAVY - {"rich"})


@pytest.mark.parametrize("path", modules("pipeline") + modules("tasks"), ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_every_module_says_what_it_is_for(path):
    if path.name != "__main__.py":
        assert ast.get_docstring(ast.parse(path.read_text()))


CONFIGURATIONS = sorted((CHECKOUT / "config").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_every_ready_made_configuration_is_valid_and_opens_with_its_purpose_and_what_was_measured(path):
    config = load(path)
    assert config.architecture.name
    first, second, third = path.read_text().splitlines()[:3]
    assert first.startswith("# Purpose: ")
    assert second.startswith("# Measured: ")
    assert not third.startswith("#")


def test_the_readme_of_the_configuration_has_every_key_and_every_option_of_luigi_cfg():
    text = (CHECKOUT / "config" / "README.md").read_text()
    least = {"architecture": {"name": "tiny", "conv_arch": [[1, 4]]}, "training": {"epochs": 1}}
    keys = [key.rpartition(".")[2] for key, _ in flatten(to_dict(from_dict(least)))]
    missing = [name for name in (*keys, *dict(vgg.get_params())) if not re.search(rf"[`.]{name}`", text)]
    assert not [name for name in missing if "[" not in name]


def test_no_two_test_modules_share_a_name():
    names = [path.stem for path in (CHECKOUT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


READMES = [CHECKOUT / "README.md", *sorted(CHECKOUT.glob("[a-z]*/README.md"))]


def anchors(path: Path) -> set[str]:
    """What a link may name behind `#`, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_link_of_a_readme_leads_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        assert not anchor or anchor in anchors(file / "README.md" if file.is_dir() else file), link


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_module_that_a_readme_names_is_there(path):
    for name in re.findall(r"`([\w/]+\.py)`", path.read_text()):
        places = [path.parent, CHECKOUT, CHECKOUT / "pipeline"]
        assert any((place / name).exists() for place in places), name


def test_every_module_of_the_tasks_is_in_their_readme():
    text = (CHECKOUT / "tasks" / "README.md").read_text()
    assert [path.name for path in modules("tasks") if f"`{path.name}`" not in text] == ["__init__.py"]
