"""The map of the code, kept by a test: imports run one way, modules stay small, zarr has one door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import streamsparse

ROOT = Path(streamsparse.__file__).parent
REPOSITORY = ROOT.parent

# From the bottom up. A package may import those below its own layer, and itself; stages never import one another.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "events"),
    ("kernels",),
    ("network", "store", "executors"),
    ("intake",),
    ("capture", "accumulate", "solve", "write", "evaluate", "report"),
    (
        "recalibration",
        "sensitivity",
        "sequential",
        "evaluation",
        "improvement",
        "adaptive",
        "convergence",
        "merging",
        "agreement",
        "inspection",
        "latencies",
        "verification",
        "reporting",
    ),
    ("run",),
    ("service", "downloading", "client"),
    ("cli",),
    ("__main__",),
)
# Within a layer, who may look at whom.
WITHIN_LAYER = {
    ("errors", "types"),
    ("events", "types"),
    ("evaluation", "sequential"),
    ("sequential", "recalibration"),
    ("improvement", "sensitivity"),
    ("merging", "agreement"),
    ("client", "downloading"),
    ("adaptive", "convergence"),
    ("reporting", "inspection"),
}
LONGEST_MODULE = 300
LONGEST_FUNCTION = 40


def modules() -> list[Path]:
    return sorted(path for folder in (ROOT, REPOSITORY / "pipelines") for path in folder.rglob("*.py"))


def package_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    """First components below `streamsparse` of everything that a module imports, lazily or not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (
                [node.module] if node.module != "streamsparse" else [f"streamsparse.{a.name}" for a in node.names]
            )
        found |= {name.split(".")[1] for name in names if name.startswith("streamsparse.")}
    return found


def level(package: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if package in layer)


@pytest.mark.parametrize("path", [p for p in modules() if p.is_relative_to(ROOT)], ids=lambda p: str(p.name))
def test_imports_run_one_way(path: Path) -> None:
    own = package_of(path)
    if own == "__init__":
        return  # the public names of everything
    for other in imported_packages(path) - {own}:
        below = level(other) < level(own)
        assert below or (own, other) in WITHIN_LAYER, f"{path.relative_to(ROOT)} must not import {other}"


def test_every_package_has_a_layer() -> None:
    named = {name for layer in LAYERS for name in layer}
    present = {package_of(path) for path in modules() if path.is_relative_to(ROOT)} - {"__init__"}
    assert present == named


@pytest.mark.parametrize("library", ["zarr", "numcodecs", "obstore"])
def test_only_the_store_imports(library: str) -> None:
    importing = [
        path
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == library)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == library for alias in node.names))
    ]
    outside = [path for path in importing if not path.is_relative_to(ROOT / "store")]
    assert not outside


def test_streamsparse_never_imports_the_pipelines() -> None:
    for path in modules():
        if path.is_relative_to(ROOT):
            tree = ast.parse(path.read_text())
            names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
            assert not [name for name in names if name.split(".")[0] == "pipelines"], path


def test_kernels_know_no_modules_paths_or_loggers() -> None:
    for path in (ROOT / "kernels").glob("*.py"):
        text = path.read_text()
        for word in ("torch.nn.Module", "import nn", "import pathlib", "from pathlib", "import logging"):
            assert word not in text.replace("torch.nn.functional", ""), f"{path.name}: {word}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST_MODULE
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef):
            has_text = bool(node.body) and ast.get_docstring(node) is not None
            first = node.body[1] if has_text and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1  # without signature and docstring
            assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines"


def test_public_names_are_sorted_documented_and_there() -> None:
    assert list(streamsparse.__all__) == sorted(streamsparse.__all__)
    for name in streamsparse.__all__:
        assert getattr(streamsparse, name).__doc__, name
    assert set(streamsparse.__all__) <= set(dir(streamsparse))


def test_public_functions_win_over_the_packages_of_the_same_name() -> None:
    import streamsparse.capture.taps
    import streamsparse.solve.budget

    assert callable(streamsparse.capture)
    assert callable(streamsparse.solve)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        streamsparse.nothing  # noqa: B018


def test_the_error_tree_is_drawn_as_it_is() -> None:
    from streamsparse import errors

    drawn = [line.strip("│├└─ ").split() for line in (errors.__doc__ or "").splitlines() if "Error" in line]
    names = {words[0] for words in drawn}
    classes = {
        name
        for name, item in vars(errors).items()
        if isinstance(item, type) and issubclass(item, errors.StreamsparseError)
    }
    assert names == classes


def test_errors_cross_processes_whole() -> None:
    import pickle

    from streamsparse.errors import BudgetError

    error = BudgetError("Too small.", expected="≥ 1", got=0, where="--budget", remedy="raise it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.exit_status) == (BudgetError, str(error), 2)
    assert "expected: ≥ 1" in str(error)
