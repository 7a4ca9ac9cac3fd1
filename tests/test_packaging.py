"""What is shipped: the wheel holds the library and nothing else, and one version stands everywhere."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_wheel_holds_the_library_only(tmp_path: Path) -> None:
    command = ["-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, *command, "--wheel-dir", str(tmp_path)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("prw-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"prw", f"prw-{PROJECT['version']}.dist-info"}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "prw").rglob("*.py")}
    assert sources | {"prw/py.typed"} <= set(names)


LIGHT = """
import sys
import prw
print(prw.__file__)
hosts = "diffusers", "transformers.trainer", "transformers.trainer_callback", "prw.integrations.transformers"
extras = "matplotlib", "datasets", "tensorboard", "prw.kernels.triton"
print([name for name in (*hosts, *extras) if name in sys.modules])
"""


def test_importing_prw_imports_no_extra_and_no_host() -> None:
    ran = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    where, imported = ran.stdout.splitlines()[-2:]
    assert Path(where) == ROOT / "prw" / "__init__.py"
    assert imported == "[]"


def test_the_core_needs_no_more_than_torch_peft_and_pydantic() -> None:
    assert {re.split(r"[<>=]", spec)[0] for spec in PROJECT["dependencies"]} == {"torch", "peft", "pydantic"}


def test_changelog_and_citation_name_the_same_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_direct_dependency_is_pinned_for_a_clone() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0] for line in lines if "==" in line}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=]", spec)[0] for group in groups for spec in group} - {"prw"}
    assert {plain(name) for name in names} <= {plain(pin) for pin in pins}


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
