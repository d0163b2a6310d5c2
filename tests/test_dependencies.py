"""pyproject.toml names every package that is imported, and no other."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENTRIES = PROJECT["dependencies"] + EXTRAS["serve"] + EXTRAS["remote"] + EXTRAS["format"]


def normalised(name):
    return re.sub("[-_.]+", "-", name).lower()


def imported():
    """The distributions that the package imports, at any depth of its functions."""
    modules = set()
    for path in (ROOT / "minillm_repl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules}
    of_modules = packages_distributions()
    return {
        normalised(of_modules[top][0])
        for top in tops - set(sys.stdlib_module_names) - {"minillm_repl"}
    }


def test_every_import_is_declared_and_every_dependency_imported():
    declared = {normalised(re.match(r"[\w.-]+", entry)[0]) for entry in ENTRIES}
    assert imported() == declared


def test_every_dependency_has_a_lower_and_an_upper_bound():
    for entry in ENTRIES:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+,<[\d.]+", entry), entry
