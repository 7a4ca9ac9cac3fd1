"""Rules that no linter checks: small files, an opening sentence, meaningful names, imports at the top."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("prw", "recipes", "examples", "benchmarks")
MODULES = sorted(path for root in ROOTS for path in (ROOT / root).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "misc", "helpers", "helper"}
# A package imported inside a function is one that an installation may lack.
OPTIONAL = {
    "triton",
    "matplotlib",
    "tensorboard",
    "datasets",
    "webdataset",
    "pycocotools",
    "controlnet_aux",
    "skimage",
    "torchao",
    "bitsandbytes",
    "deepspeed",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def imported_packages(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {"." if node.level else (node.module or "").split(".")[0]}


def local_imports(tree: ast.Module) -> set[str]:
    nodes = (node for function in functions(tree) for node in ast.walk(function))
    return {
        name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_packages(node)
    }


def test_there_are_modules_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ROOTS)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module opens with a sentence that says what it is"
    assert len(text.splitlines()) <= MAX_FILE_LINES
    long = {
        f"{f.name}:{f.lineno}": body_lines(f) for f in functions(tree) if body_lines(f) > MAX_FUNCTION_LINES
    }
    assert not long, f"functions of more than {MAX_FUNCTION_LINES} lines"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_has_a_meaningful_name(path: Path) -> None:
    assert not NAMES_THAT_SAY_NOTHING & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_optional_packages_are_imported_inside_functions(path: Path) -> None:
    assert local_imports(ast.parse(path.read_text(encoding="utf-8"))) <= OPTIONAL


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_a_test_file_is_small_too(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("root", ["prw", "recipes"])
def test_every_folder_is_a_package(root: str) -> None:
    # A diffusers folder may carry the module of its own VAE; it is data, not a package.
    code = [path for path in MODULES if "assets" not in path.parts]
    folders = {path.parent for path in code if path.relative_to(ROOT).parts[0] == root}
    bare = [name(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()]
    assert bare == [], "import-linter passes over folders without an __init__.py"


def test_the_rules_can_fail() -> None:
    tree = ast.parse("def long():\n    '''Doc.'''\n    import json\n" + "    x = 1\n" * MAX_FUNCTION_LINES)
    (function,) = functions(tree)
    assert body_lines(function) == MAX_FUNCTION_LINES + 1
    assert local_imports(tree) == {"json"}
