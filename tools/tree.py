"""List the source tree, a line a file, in docs/architecture.md: `python tools/tree.py`.

The line of a file is the first paragraph of its docstring: it is written once, where the code is.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minillm_repl"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree: python tools/tree.py -->\n", "<!-- end of tree -->"


def first_paragraph(path: Path) -> str:
    """Return the first paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def tree() -> Iterator[str]:
    """Yield the lines of the list in Markdown: a heading for each folder, an item for each file."""
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")})
    for folder in folders:
        init = folder / "__init__.py"
        yield f"\n**{folder.relative_to(ROOT).as_posix()}/** {first_paragraph(init)}\n"
        for path in sorted(folder.glob("*.py")):
            if path != init:
                yield f"- `{path.name}`: {first_paragraph(path)}"


def page(text: str) -> str:
    """Return the page with its list as the tree is now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n".join(tree()) + "\n\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
