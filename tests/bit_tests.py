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
FUNCTIONS = {"torch.equal", "np.array_equal"}
"""What compares number by number."""
METHODS = {"assert_array_equal", "read_bytes", "tobytes", "sha256"}
"""The same, or what gives bytes to compare, as those of saved weights."""
COMPARISON = "a comparison of bits"


@cache
def functions_that_compare_bits(path: Path) -> frozenset[str]:
    """Name the definitions of a file that compare bits, by themselves or through others that do.

    Args:
        path: A Python file; what it imports from `tests` is followed.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    uses = {function.name: names_used(function) for function in functions}
    uses |= {name: names_used(node) for node in tree.body for name in names_assigned(node)}
    found = imported(tree) | {name for name, used in uses.items() if COMPARISON in used}
    while new := {name for name, used in uses.items() if used & found} - found:
        found |= new
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


def names_assigned(node: ast.AST) -> list[str]:
    """Name what an assignment defines, as a table of checks."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def names_used(definition: ast.AST) -> set[str]:
    """Name what a definition uses, and COMPARISON if it makes one; parameters may be fixtures."""
    used: set[str] = set()
    for part in ast.walk(definition):
        if isinstance(part, ast.Name):
            used.add(part.id)
        elif isinstance(part, ast.arg):
            used.add(part.arg)
        elif isinstance(part, ast.Attribute):
            called = f"{part.value.id}.{part.attr}" if isinstance(part.value, ast.Name) else part.attr
            used |= {COMPARISON} if called in FUNCTIONS or part.attr in METHODS else set()
        elif isinstance(part, ast.Call) and no_tolerance(part):
            used.add(COMPARISON)
    return used


def no_tolerance(call: ast.Call) -> bool:
    """Tell whether a call is `assert_close(..., rtol=0, atol=0)`."""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    return given.get("rtol") in ("0", "0.0") and given.get("atol") in ("0", "0.0")
