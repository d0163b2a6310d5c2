"""Measure the source tree: `python tools/figures.py` prints each figure beside its aim.

The figures are counted with the standard library only, over the Python files of `minillm_repl` and
`tests`. The last one runs the program itself with a shipped model, and needs it installed. Exit
status 1: a figure misses its aim.
"""

import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minillm_repl"

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Prints the package's functions in the order of their first calls, until one of them is called that
# ends the trace. sys.monitoring needs Python 3.12, so this is a profiler.
_TRACED = """
import json, sys
called, package = {{}}, {package!r}
def note(frame, event, _argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(package) and code.co_name != "<module>":
        name = code.co_qualname.partition(".<")[0]
        called[code.co_filename.removeprefix(package + "/"), name] = True
        if name == {last!r}:
            sys.setprofile(None)
{run}
print(json.dumps(list(called)), file=sys.__stderr__)
"""
# From a line that was read at the prompt to the printed token: the model is open, the prompt is the
# second one.
_PROMPT = """
import io
from minillm_repl import app, cli
def lines():
    yield ":max-tokens 1"
    yield "날"
    sys.setprofile(note)
    yield "날씨"
    sys.setprofile(None)
app.decoded_lines = lambda _stream: lines()
sys.stdout = io.StringIO()
assert cli.main(["--ckpt", "nalssi", "--history", "off"]) == 0
sys.setprofile(None)
"""
# From a line that was read at the prompt to the first step of training: the model is open.
_TRAINING = """
import io, pathlib
from minillm_repl import app, cli
pathlib.Path("story.txt").write_text("날씨가 맑으면 소풍을 가요.\\n" * 200, encoding="utf-8")
def lines():
    yield ":max-tokens 1"
    yield "날"
    sys.setprofile(note)
    yield ":train story.txt steps=1"
    sys.setprofile(None)
app.decoded_lines = lambda _stream: lines()
sys.stdout = io.StringIO()
assert cli.main(["--ckpt", "nalssi", "--history", "off"]) == 0
"""
_TRAINING_ROOMS = ("commands/", "training/")


def modules(folder: Path) -> dict[Path, ast.Module]:
    """Return the parsed Python files below a folder, by path."""
    return {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))
    }


def lines_of(paths: Iterable[Path]) -> list[int]:
    """Return the number of lines of each file."""
    return [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]


def function_lengths(trees: dict[Path, ast.Module]) -> list[tuple[int, str]]:
    """Return (lines, `file:line name`) of each function, its signature and docstring included."""
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                found.append(((node.end_lineno or node.lineno) - node.lineno + 1, where))
    return sorted(found)


def comments_per_100(paths: Iterable[Path]) -> float:
    """Return comments per 100 lines of code; blanks, comments and docstrings are no code."""
    comments = code = 0
    for path in paths:
        documented = {
            line
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        with path.open("rb") as file:
            kinds = [(token.type, token.start[0]) for token in tokenize.tokenize(file.readline)]
        comments += sum(kind == tokenize.COMMENT for kind, _ in kinds)
        layout = (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.ENCODING,
            tokenize.INDENT,
            tokenize.DEDENT,
        )
        code += len({line for kind, line in kinds if kind not in layout} - documented)
    return 100 * comments / code


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the package's modules that a module imports anywhere in it, what is for the type
    checker only left out.
    """
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_cycles(trees: dict[Path, ast.Module]) -> list[str]:
    """Return the modules that import themselves through others; imports in functions count."""
    names = {_module(path): path for path in trees}
    imports = {name: set(imported(trees[path])) & set(names) for name, path in names.items()}
    return sorted(name for name in names if name in _reached(imports, name))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _reached(imports: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports[name]
    return seen


def functions_that_run(run: str, last: str = "") -> list[tuple[str, str]]:
    """Return the file and the name of each of the package's functions that runs while a piece of
    Python does, in a process of its own and in the order of their first calls.

    What runs after the first call of the function named `last` is left out. A function inside
    another one belongs to the outer one.
    """
    code = _TRACED.format(package=str(PACKAGE), run=run, last=last)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
            env={"PYTHONPATH": str(ROOT)} | os.environ | {"HOME": folder},
            cwd=folder,
        )
    functions = [(file, name) for file, name in json.loads(done.stderr.splitlines()[-1])]
    if not functions:
        raise RuntimeError("no file of the package ran: what the traced program replaces has moved")
    return functions


def files_that_run(run: str) -> list[str]:
    """Return the package's files in which a function runs while a piece of Python does."""
    return sorted({file for file, _name in functions_that_run(run)})


def rooms_and_returns(functions: list[tuple[str, str]]) -> tuple[int, int]:
    """Return how many files somebody opens who reads functions in this order, and how often a
    function lies in a file that they have left before and have to open again.

    Each function is read once, where it is called first.
    """
    files = [file for file, _name in functions]
    opened = [file for index, file in enumerate(files) if index == 0 or file != files[index - 1]]
    return len(set(opened)), len(opened) - len(set(opened))


def training_path() -> list[tuple[str, str]]:
    """Return the functions of `commands` and `training` from the typed `:train CORPUS` to the first
    step, in the order of their first calls.

    The shell, storage, tokenizer, model and drawing serve other commands too: a reader of `:train`
    takes a call of theirs by its name, and does not open their files.
    """
    functions = functions_that_run(_TRAINING, last="Trainer.step")
    return [each for each in functions if each[0].startswith(_TRAINING_ROOMS)]


def figures() -> Iterator[tuple[str, str, str, bool]]:
    """Yield each figure: what it counts, its value, the aim, and whether it meets it."""
    trees = modules(PACKAGE)
    sizes, functions = lines_of(trees), function_lengths(trees)
    lengths = [length for length, _ in functions]
    longest_file = max(zip(sizes, trees, strict=True))
    median, tenth = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
    comments = comments_per_100(trees)
    wide = sum(
        len(line) > 100 for path in trees for line in path.read_text(encoding="utf-8").splitlines()
    )
    formatted = sum(
        "# fmt: skip" in line
        for path in trees
        for line in path.read_text(encoding="utf-8").splitlines()
    )
    cycles = in_cycles(trees)
    tests = sum(lines_of(modules(ROOT / "tests"))) / sum(sizes)
    token = files_that_run(_PROMPT)
    rooms, returns = rooms_and_returns(training_path())
    yield "files", f"{len(trees)}", "150 or fewer", len(trees) <= 150
    longest = f"{longest_file[0]} ({longest_file[1].relative_to(ROOT)})"
    yield "longest file, lines", longest, "300 or fewer", longest_file[0] <= 300
    yield "median function, lines", f"{median:g}", "7 to 12", 7 <= median <= 12
    yield "90th percentile", f"{tenth:g}", "30 or fewer", tenth <= 30
    yield (
        "longest function",
        f"{lengths[-1]} ({functions[-1][1]})",
        "60 or fewer",
        lengths[-1] <= 60,
    )
    yield "modules in import cycles", f"{len(cycles)} {' '.join(cycles)}".strip(), "0", not cycles
    yield "comments per 100 lines of code", f"{comments:.1f}", "8 to 15", 8 <= comments <= 15
    yield "lines over 100 characters", f"{wide}", "0", not wide
    yield (
        "lines marked fmt: skip",
        f"{formatted}",
        "1 in 100 or fewer",
        formatted <= sum(sizes) / 100,
    )
    yield "test lines per source line", f"{tests:.2f}", "0.7 or more", tests >= 0.7
    yield "files that run from a line to its token", f"{len(token)}", "9 or fewer", len(token) <= 9
    yield "files from :train CORPUS to a step", f"{rooms}", "15 or fewer", rooms <= 15
    yield "returns to files on that way", f"{returns}", "8 or fewer", returns <= 8


def main() -> int:
    """Print all figures; return 1 if one misses its aim."""
    missed = False
    for what, value, aim, met in figures():
        print(f"{' ' if met else '!'} {what:<42}{value:<66}  {aim}")
        missed |= not met
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
