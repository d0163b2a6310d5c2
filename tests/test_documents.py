"""The documents: their links lead somewhere, their pictures show what the program shows."""

import math
import re
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT
from tools import pictures

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, pattern in ((ROOT, "*.md"), (ROOT / "docs", "*.md"), (ROOT / "models", "*.md"))
    for path in folder.glob(pattern)
)
NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*")


def anchors(text):
    """Return what GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    path = ROOT / page
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)?)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{page}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{page}: {target}"


def shown(svg):
    """Return the words of a picture from left to right, row by row, and the numbers beside them."""
    texts = [
        (float(each.get("y")), float(each.get("x")), "".join(each.itertext()))
        for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]
    text = " ".join(text for _y, _x, text in sorted(texts)).replace("\xa0", " ")
    # the ends of bars hang on the last digits of numbers
    words = " ".join(re.sub("[█▏▎▍▌▋▊▉]", "", NUMBER.sub("N", text)).split())
    return words, [float(each.replace(",", "")) for each in NUMBER.findall(text)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pictures.make(folder)
    return folder


@pytest.mark.parametrize("name", [name for *_, each in pictures.SESSIONS for name in each])
def test_a_picture_shows_what_the_program_shows(made, name):
    """`python -m tools.pictures` makes them again."""
    now, numbers = shown((made / f"{name}.svg").read_text(encoding="utf-8"))
    kept, kept_numbers = shown((pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8"))
    assert now == kept
    assert len(numbers) > 20
    # another processor rounds the last digit in another way
    assert all(
        math.isclose(a, b, rel_tol=0.01, abs_tol=0.11)
        for a, b in zip(numbers, kept_numbers, strict=True)
    )


def test_pictures_are_small_and_all_are_used():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    for path in pictures.FOLDER.glob("*.svg"):
        assert f"pictures/{path.name})" in text
        assert path.stat().st_size < 300_000
