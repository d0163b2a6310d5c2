"""What README and help promise is there."""

import re
import shlex

import pytest

from minillm_repl import commands, views
from minillm_repl.cli import make_parser
from minillm_repl.repl.registry import GROUPS, discover
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = make_parser().format_help()
FLAGS = {flag for action in make_parser()._actions for flag in action.option_strings}


def test_the_readme_lists_every_command_as_help_does():
    listed = {}
    for heading, table in re.findall(
        r"^\| ([A-Z][^|]+) \| \|\n\|---\|---\|\n((?:\|.+\n)+)", README, re.MULTILINE
    ):
        listed[heading] = re.findall(r"^\| `(:[^`]+)` \| (.+) \|$", table, re.MULTILINE)
    registry = discover(commands, views)
    assert listed == {
        group: [(each.usage.replace("|", "\\|"), each.summary) for each in registry.group(group)]
        for group in GROUPS
    }


def test_every_flag_in_the_documents_exists():
    for name in ("README.md", "models/README.md", "docs/format.md", "docs/training.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for line in re.findall(r"minillm-repl [^`\n]*", text):
            words = shlex.split(line.partition("#")[0].replace("…", ""))
            used = {word for word in words if re.fullmatch(r"-[a-z]|--[a-z-]+", word)}
            assert used <= FLAGS, f"{name}: {line}"


def test_the_flags_that_users_bring_from_elsewhere_are_there():
    sampling = (
        "--temp --temperature --top-k --top-p --min-p --repeat-penalty --seed --max-tokens -n "
        "--stop"
    )
    training = (
        "--train --steps --batch --lr --context --width --layers --heads --resume --val --lora"
    )
    start = (
        "--ckpt --vocab --device --threads --color --no-history --version -p --prompt --echo "
        "--verbose --json"
    )
    expected = f"{sampling} {training} {start}".split()
    assert set(expected) <= FLAGS


@pytest.mark.parametrize("alias", ["temperature", "q", "exit", "bye", "h", "?"])
def test_the_spellings_that_users_bring_from_elsewhere_work(alias):
    assert discover(commands, views).has(alias)


def test_every_command_explains_itself():
    for each in discover(commands, views):
        assert each.summary.endswith(".")
        assert len(each.summary) <= 60
        assert each.usage.startswith(f":{each.name}")
