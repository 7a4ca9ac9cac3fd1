"""Which tests compare bits: those whose code asks whether numbers are equal, not whether they are close.

What they compare must have been computed in the same way on both sides, or it is equal on some CPUs only:
with the same `requires_grad`, memory layout, batch and number of threads. `scripts/test_cpus` runs these
tests under the kernels of other CPUs.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPARISONS = {"torch.equal", "np.array_equal", "np.testing.assert_array_equal"}
"""Calls that compare number by number."""
BYTES = {"read_bytes", "tobytes", "sha256"}
"""Methods that give bytes to compare, as those of saved weights."""


@cache
def functions_that_compare_bits(path: Path) -> frozenset[str]:
    """Name the definitions of a file that compare bits, by themselves or through others that do.

    Args:
        path: A Python file; what it imports from `tests` is followed.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = imported(tree)
    definitions = [(names_given(node), node) for node in ast.walk(tree) if names_given(node)]
    grown = True
    while grown:
        new = {name for names, node in definitions for name in names if compares(node, found)} - found
        found |= new
        grown = bool(new)
    return frozenset(found)


def imported(tree: ast.Module) -> set[str]:
    """Name what a file imports from other files of the tests that compares bits."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            file = ROOT / f"{str(node.module).replace('.', '/')}.py"
            theirs = functions_that_compare_bits(file) if file.is_file() else frozenset()
            found |= {alias.asname or alias.name for alias in node.names if alias.name in theirs}
    return found


def names_given(node: ast.AST) -> list[str]:
    """Name what a function or an assignment defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []


def compares(node: ast.AST, known: set[str]) -> bool:
    """Tell whether a definition compares bits itself, or uses one that is known to."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and (ast.unparse(part.func) in COMPARISONS or no_tolerance(part)):
            return True
        if isinstance(part, ast.Attribute) and part.attr in BYTES:
            return True
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load) and part.id in known:
            return True
        if isinstance(part, ast.arg) and part.arg in known:  # a fixture
            return True
    return False


def no_tolerance(call: ast.Call) -> bool:
    """Tell whether a call is `assert_close(..., rtol=0, atol=0)`."""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    return given.get("rtol") in ("0", "0.0") and given.get("atol") in ("0", "0.0")
