"""The documents: their links lead somewhere, their pictures show what the program shows."""

import math
import re
import tomllib
from xml.etree import ElementTree

import pytest
import yaml

import minillm_repl
from tests.conftest import ROOT
from tools import pictures, record

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


SVG = "{http://www.w3.org/2000/svg}"


def screens(film):
    """Return the screens of a film at which the program waits for a line: rows, without spaces."""
    root = ElementTree.fromstring(film)
    rows = {f"#{each.get('id')}": "".join(each.itertext()) for each in root.find(f"{SVG}defs")}
    speed = re.compile(r"[\d,.]+ ?(?=tokens/s|토큰/초)|(?<=seed )\d+|(?<=시드 )\d+")
    return [
        ["".join(speed.sub("N", rows[use.get("href")]).split()) for use in each.iter(f"{SVG}use")]
        for each in root.iter(f"{SVG}g")
        if each.get("class") == "waits"
    ]


@pytest.mark.parametrize("name", record.VISITS)
def test_the_first_minute_is_as_it_was_recorded(name):
    """Greet, talk, ask why, leave, at 80 x 24. `python -m tools.record` records it again."""
    language, typed = record.VISITS[name]
    now = screens(record.film(record.record(language, typed), name))
    kept = screens((record.FOLDER / f"{name}.svg").read_text(encoding="utf-8"))
    assert len(now) == len(kept) == len(typed) + 1
    assert [[NUMBER.sub("N", row) for row in each] for each in now] == [
        [NUMBER.sub("N", row) for row in each] for each in kept
    ]
    assert now[1] == kept[1]  # what it said, to the letter
    first, answer, *views = ("\n".join(each) for each in now)
    assert typed[0].replace(" ", "") in answer
    assert ("Try:I'mbored" if language == "en" else "예:심심해") in first
    assert any(word in "".join(views) for word in (":why", ":이유"))


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == minillm_repl.__version__


def test_the_workflow_runs_what_ci_runs_on_each_system_and_python():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["all"]["steps"]]
    matrix = jobs["each"]["strategy"]["matrix"]
    assert {each.partition("-")[0] for each in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    named = set(re.findall(r"matrix\.(\w+)", text))
    assert named == set(matrix)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for each in re.findall(r"\.\[(\w+)\]", text):
        assert each in extras["optional-dependencies"]


def test_the_site_has_every_page():
    listed = re.findall(r"^ +- .+: ([\w.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_pictures_are_small_and_all_are_used():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    for path in pictures.FOLDER.glob("*.svg"):
        assert f"pictures/{path.name})" in text
        assert path.stat().st_size < 300_000
