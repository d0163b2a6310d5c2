"""What README and help promise is there."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import transformers
from transformers.generation.logits_process import EpsilonLogitsWarper

from minillm_repl import commands, views
from minillm_repl.checkpoint import families
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.cli import make_parser
from minillm_repl.generate.backends import make_decoder
from minillm_repl.lessons.course import make_lesson_runner
from minillm_repl.lessons.parse import read_lesson
from minillm_repl.lessons.progress import Progress
from minillm_repl.lessons.run import run_unattended
from minillm_repl.model.build import build
from minillm_repl.repl.registry import GROUPS, discover
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import ROOT
from tests.messages import PACKAGE
from tests.test_huggingface import LLAMA, logits_of, random_ids, random_model
from tests.test_lessons import shell_for
from tools import tree

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
    for name in (
        "README.md",
        "README.ko.md",
        "models/README.md",
        *("docs/" + each for each in ("command-line.md", "format.md", "models.md", "training.md")),
    ):
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


def test_the_map_has_a_line_for_each_file():
    """`python tools/tree.py` puts it right."""
    page = tree.PAGE.read_text(encoding="utf-8")
    assert tree.page(page) == page


def test_the_map_names_files_that_are_there():
    text = tree.PAGE.read_text(encoding="utf-8").partition(tree.BEGIN)[0]
    names = set(re.findall(r"`([\w/]+\.py)`", text))
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")]
    assert len(names) > 20
    assert not {
        name for name in names if not any(f"/{file}".endswith(f"/{name}") for file in files)
    }


def example_of(pattern):
    """An example of docs/adding.md, as it stands there."""
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    return re.search(pattern, page, re.DOTALL)[1]


def test_the_sampler_that_the_documents_add_works(tmp_path):
    """Its parts are put where docs/adding.md says; transformers' own processor is the oracle."""
    package = tmp_path / "minillm_repl"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    example = example_of(r"```python\n(.*?)```")
    field, place, function, stage = re.split(r"# generate/.*\n", example)[1:]
    options, sampling = package / "generate" / "options.py", package / "generate" / "sampling.py"
    for file, before, text in (
        (options, "    sampler_order: tuple", field),
        (options, ")\nLLAMA_CPP_ORDER", place),
        (sampling, "def softmax", f"{function}\n"),
        (sampling, "    }  # fmt: skip\n    for name", stage),
    ):
        head, mark, rest = file.read_text(encoding="utf-8").partition(before)
        assert mark
        file.write_text(head + text + mark + rest, encoding="utf-8")
    checkpoint_path = find_checkpoint("nalssi")
    typed = ":temp 1\n:epsilon 0.05\n:sampler --json - 날씨가 좋\n:help epsilon\n:quit\n"
    done = subprocess.run(
        [sys.executable, "-m", "minillm_repl", "--ckpt", str(checkpoint_path), "--lang", "en"],
        input=typed, env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert "example: `:epsilon 0.02`" in done.stdout
    view = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert [each["name"] for each in view["stages"]] == ["model", "epsilon 0.05"]
    checkpoint = load(checkpoint_path)
    ids = torch.tensor([checkpoint.tokenizer.encode("날씨가 좋")])
    logits = build(checkpoint.config, checkpoint.tensors)(ids)[:, -1].detach()
    scores = EpsilonLogitsWarper(0.05)(ids, logits)[0]
    assert view["stages"][1]["kept"] == int(scores.isfinite().sum())
    kept = scores.double().softmax(-1)
    for each in view["candidates"]:
        shown = each["probs"][1]
        assert (shown is None) == (float(kept[each["token"]["id"]]) == 0)
        assert shown is None or abs(shown - float(kept[each["token"]["id"]])) < 1e-4


def test_the_lesson_that_the_documents_add_runs_to_its_end(tmp_path):
    file = tmp_path / "14-bytes.md"
    file.write_text(example_of(r"````markdown\n(# Bytes.*?)````"), encoding="utf-8")
    lesson = read_lesson(file)
    assert (lesson.number, lesson.title) == (14, "Bytes")
    assert 5 <= lesson.minutes <= 10
    shell = shell_for(find_checkpoint("nalssi"))
    run_unattended(make_lesson_runner(shell, lesson, Progress()))
    shown = shell.screen.out.file.getvalue()
    assert "Hangul takes three bytes each." in shown
    assert shown.count("EB 82 A0") == 1
    assert "the same bytes wherever it stands" in " ".join(shown.split())


def test_the_family_that_the_documents_add_is_that_of_transformers(tmp_path, monkeypatch):
    """docs/adding-a-family.md has a whole family; its code is run as it stands there."""
    page = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    module = types.ModuleType("ministral")
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "it", "exec"), vars(module))
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, module.MINISTRAL))
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    fields = LLAMA | {"sliding_window": 5, "layer_types": kinds, "head_dim": 12}
    theirs = random_model(transformers.MinistralConfig, fields)
    theirs.save_pretrained(tmp_path / "theirs")
    checkpoint, ids = load(tmp_path / "theirs"), random_ids(40)
    assert checkpoint.config.sliding_windows == (5, 0, 5)
    ours, expected = build(checkpoint.config, checkpoint.tensors), logits_of(theirs, ids)
    torch.testing.assert_close(logits_of(ours, ids), expected, rtol=0, atol=1e-4)
    by_kernels = torch.from_numpy(make_decoder(checkpoint).prefill(ids[0].tolist()))
    torch.testing.assert_close(by_kernels, expected[0, -1], rtol=0, atol=1e-4)
    save(checkpoint, tmp_path / "ours", folder=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    )
    assert again.config.model_type == "ministral"
    assert torch.equal(logits_of(again, ids), expected)


def test_the_view_that_the_documents_add_works():
    """docs/adding.md has a whole view; it is run as it stands there."""
    source = example_of(r'```python\n("""`:entropy`.*?)```')
    module = types.ModuleType("minillm_repl.views.entropy")
    exec(compile(source, "docs/adding.md", "exec"), vars(module))
    checkpoint = load(find_checkpoint("nalssi"))
    model = build(checkpoint.config, checkpoint.tensors)
    view = module.compute(InspectedText(model, checkpoint.tokenizer, [10, 27]))
    p = model(torch.tensor([[10, 27]]))[0].double().softmax(-1).numpy()
    np.testing.assert_allclose(view.bits, -(p * np.log2(p)).sum(-1), atol=1e-4)
    assert set(view.to_dict()) == {"view", "unseen", "kept", "tokens", "bits", "uniform"}
    assert module.entropy.name == "entropy"
