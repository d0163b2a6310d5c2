"""Every view on real terminals: small and large, with and without colours, Korean and English;
and what it saves.
"""

import json
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from wcwidth import wcswidth, wcwidth

pytest.importorskip("termios")  # Windows has no pseudo-terminals of this kind

from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.language import set_language
from tests.conftest import random_checkpoint
from tests.test_lessons import printed, shell_for
from tests.test_terminal import COLOR, models, visit  # noqa: F401 - the fixtures

ENGLISH = "the cat sat on"
VIEWS = {
    ":tokens {text}": "tokens per character",
    ":surprise": "perplexity",
    ":surprise {text}": "bits per byte",
    ":sampler": "sampled from",
    ":temp sweep": "several temperatures",
    ":prob {next}": "total",
    ":branch 3 tokens=6": "3 continuations",
    ":attn": "attention from",
    ":attn 1": "heads",
    ":attn 0.1 {text}": "rows: queries · columns: keys",
    ":qkv 0.1": "keys by weight",
    ":qkv 1.0 2": "position 2",
    ":qkv 1.0 key=0": "sum, q·k",
    ":lens": "logit lens",
    ":lens 3": "position 3",
    ":why": "total",
    ":why {next} vs {other}": "logit difference",
    ":residual": "bar is logarithmic",
    ":residual 2": "position 2",
    ":why by=layer": "outside the layers",
    ":qkv 0.1 top=3": "`top=N` lists more keys",
    ":ablate scan": "head ablation scan",
    ":patch {text} -> {same}": "logit difference restored",
    ":patch {text} -> {same} what=z by=gradient": "largest estimates",
    ":patch {text} -> {same} to=1.0.q": "path patching into",
    ":circuit {text} -> {same} edges=9": "edges",
    ":near {next}": "cosine",
    ":near {next} - {other} + {next}": "cosine",
    ":map": "principal components",
    ":shapes": "can be sampled",
    ":descent": "new value",
    ":source": "source code of the program",
    ":source attention": "tensor shapes for the text so far",
    ":neurons 1": "by activation",
    ":neurons 1.5": "after its activation function",
    ":grad": "input attribution",
    ":compare {other_model}": "bits per byte",
    ":ablate 0.1": "head 0.1 ablated",
    ":steer {text} vs {same} layer=1": "steering",
}
SCREENS = [(80, 24, True, "ko"), (200, 50, False, "en")]
OTHERS = [
    (columns, rows, colour, language)
    for columns, rows in ((80, 24), (200, 50))
    for colour in (True, False)
    for language in ("ko", "en")
    if (columns, rows, colour, language) not in SCREENS
]


def cells(line):
    """One string for each cell; the second of a wide character is empty."""
    return [
        part
        for each in line
        for part in ([each, ""] if wcwidth(each) == 2 else [each] if wcwidth(each) else [])
    ]


def tables(lines):
    """Yield heading and rows of each table: a rule between, an empty or shorter row ends it."""
    for place, line in enumerate(lines):
        if re.fullmatch("─{8,}", line.rstrip()):
            width = wcswidth(line.rstrip())
            rows = []
            for row in lines[place + 1 :]:
                if not row.strip() or re.match(
                    r":|[▶*] [a-z]|.*[a-z] (·|is|of|in) |[a-zA-Z ]+: |KL[ (]|total ", row
                ):
                    break
                rows.append(row)
            yield lines[place - 1], rows, width


def columns_stand(heading, rows, width):
    """Tell whether, where the heading has two spaces or more, a gap runs through all rows."""
    grid = [[*cells(row), *[" "] * width][:width] for row in rows]
    blank = [all(row[x] == " " for row in grid) for x in range(width)]
    top = [*cells(heading), *[" "] * width]
    gaps = [
        found.span()
        for found in re.finditer(
            r"(?<=\S) {2,}(?=\S)", "".join(each or "\0" for each in top[:width])
        )
    ]
    return all(any(blank[start : max(start + 40, end)]) for start, end in gaps)


def dots_make_a_triangle(lines):
    """Tell whether the unseen cells of an attention matrix lie in columns: each row has one
    less, from the left.
    """
    rows = [
        [x for x, each in enumerate(cells(line)) if each == "·"]
        for line in lines
        if re.match(r" *\d+ \S", line)
    ]
    rows = rows[: len(rows[0]) + 1]
    return len(rows) > 2 and all(below == above[1:] for above, below in pairwise(rows))


@pytest.mark.parametrize(("columns", "rows", "colour", "language"), SCREENS)
def test_every_view_fits_its_terminal_and_its_columns_stand(
    visit, tmp_path, columns, rows, colour, language
):
    every_view(visit, tmp_path, columns, rows, colour, language)


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "rows", "colour", "language"), OTHERS)
def test_every_view_in_every_other_combination(visit, tmp_path, columns, rows, colour, language):
    every_view(visit, tmp_path, columns, rows, colour, language)


def every_view(visit, tmp_path, columns, rows, colour, language):
    letters = [*"abcdefghijklmnopqrstuvwxyz .\n"]
    save(
        random_checkpoint(characters=letters, width=12, context=32), tmp_path / "random.safetensors"
    )
    save(
        random_checkpoint(characters=letters, width=12, context=32, seed=1),
        tmp_path / "other.safetensors",
    )
    words = (
        {
            "text": "날씨가 맑",
            "same": "날씨가 좋",
            "next": "하",
            "other": "늘",
            "other_model": "nalssi",
        }
        if language == "ko"
        else {
            "text": ENGLISH,
            "same": "the dog ran on",
            "next": "t",
            "other": "s",
            "other_model": "other.safetensors",
        }
    )
    name = "nalssi" if language == "ko" else "new.safetensors"
    variables = {} if colour else {"NO_COLOR": "1"}
    terminal = visit(
        "--seed", "4", "-n", "8", ckpt=name, columns=columns, rows=rows, variables=variables
    )
    terminal.wait_for_prompt()
    if language == "en":
        terminal.do(":load random.safetensors")
    terminal.do(words["text"])
    for number, (line, expected) in enumerate(VIEWS.items()):
        shown = terminal.do(line.format(**words)).split("\n")[1:]
        assert expected in " ".join(shown), f"{line}\n{terminal}"
        assert "error" not in shown[0], shown
        file = tmp_path / f"{number}.txt"
        terminal.do(f":export {file.name} session")
        session = [
            each.rstrip() for each in file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        ]
        kept = [each.rstrip() for each in shown]
        assert session[-len(kept) - 1 : -1] == kept, f"{line} looks otherwise on the terminal"
        assert max(map(wcswidth, kept)) <= columns
        for heading, body, width in tables(kept):
            assert columns_stand(heading, body, width), "\n".join([line, heading, *body])
        if re.match(r":attn \d\.\d", line):
            assert dots_make_a_triangle(kept), "\n".join(kept)
        axes = [
            cells(each).index("│")
            for each in kept
            if "│" in each and re.search(r"[+-]\d+\.\d+", each)
        ]
        assert len(set(axes)) <= 1, "\n".join(kept)
    assert bool(COLOR.search(terminal.raw)) == colour


def test_the_numbers_of_a_view_are_saved_as_json(visit, tmp_path):
    terminal = visit("--temp", "0", "-n", "8", ckpt="nalssi")
    terminal.wait_for_prompt()
    terminal.do("날씨가")
    for line, name in {
        ":tokens --json {file} 날씨": "tokens",
        ":surprise --json {file}": "surprise",
        ":sampler --json {file}": "sampler",
        ":temp sweep --json {file}": "sweep",
        ":prob --json {file} 하": "prob",
        ":choose 좋다 | 맑다 --json {file}": "choose",
        ":branch 2 --json {file}": "branches",
        ":attn --json {file}": "focus",
        ":qkv 0.0 --json {file}": "qkv",
        ":near 하 --json {file}": "near",
        ":map --json {file}": "map",
        ":neurons 0 --json {file}": "neurons",
        ":grad --json {file}": "grad",
        ":compare nalssi --json {file}": "compare",
        ":ablate scan --json {file}": "scan",
        ":shapes --json {file}": "shapes",
        ":descent --json {file}": "descent",
        ":source block --json {file}": "source",
        ":qkv 0.0 key=0 --json {file}": "dot",
    }.items():
        file = tmp_path / f"{name}.json"
        assert f"{name}.json" in terminal.do(line.format(file=file.name)), line
        assert json.loads(file.read_text(encoding="utf-8"))["view"] == name


def test_a_picture_has_each_character_in_its_cells_and_asks_for_nothing_from_elsewhere(
    visit, tmp_path
):
    terminal = visit("--temp", "0", "-n", "8", ckpt="nalssi", columns=120)
    terminal.wait_for_prompt()
    terminal.do("날씨가")
    shown = terminal.do(":attn 0.1").split("\n")[1:]
    terminal.do(":export head.svg")
    terminal.do(":export head.html")
    picture = (tmp_path / "head.svg").read_text(encoding="utf-8")
    page = (tmp_path / "head.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(http|//)", picture + page)
    pieces = [each for each in ElementTree.fromstring(picture).iter() if each.tag.endswith("}text")]
    pieces = [each for each in pieces if each.get("textLength") and each.text != "\n"]
    cell = min(float(each.get("textLength")) / len(each.text) for each in pieces)
    lines = {}
    for piece in pieces:
        assert float(piece.get("textLength")) == pytest.approx(
            cell * wcswidth(piece.text), rel=1e-3
        )
        line = lines.setdefault(float(piece.get("y")), {})
        line[round(float(piece.get("x")) / cell)] = piece.text.replace("\xa0", " ")
    for (_, line), expected in zip(
        sorted(lines.items()), [each for each in shown if each.strip()], strict=True
    ):
        for start, text in line.items():
            assert (
                "".join(cells(expected)[start : start + wcswidth(text)]).rstrip() == text.rstrip()
            )
    text = "".join(
        ElementTree.fromstring(
            re.sub(r"<(meta|!DOCTYPE)[^>]*>", "", page).replace(" class=wide", "")
        ).itertext()
    )
    for line in shown:
        assert line.rstrip() in text


def test_a_whole_session_is_saved_as_it_was(visit, tmp_path):
    terminal = visit("--temp", "0", "-n", "8", ckpt="nalssi")
    terminal.wait_for_prompt()
    terminal.do("날씨가")
    terminal.do(":lens")
    before = [line for line in terminal.lines if line and not line.startswith(">>> type")]
    terminal.do(":export all.txt session")
    kept = (tmp_path / "all.txt").read_text(encoding="utf-8").split("\n")
    assert kept[0] == "[minillm-repl · nalssi]"
    # less the toolbar
    assert [line.rstrip() for line in kept[1:] if line.strip()][: len(before) - 1] == before[:-1]
    assert "needs a file name that ends in .svg, .html, .txt" in terminal.do(":export all.png")


def test_a_long_view_is_scrolled_to_its_end_and_left_again(visit):
    terminal = visit("--temp", "0", "-n", "60", ckpt="nalssi", columns=60, rows=20)
    terminal.wait_for_prompt()
    terminal.do("날씨가 좋다")
    assert "of 32 tokens; :scroll shows all" in " ".join(terminal.do(":attn 0.1").split("\n"))
    before = terminal.prompts
    terminal.send(":scroll")
    terminal.wait_for("q leaves")
    first = next(y for y in range(20) if re.match(r"\d+ \S ", terminal.screen.row(y)))
    names = terminal.screen.row(first - 1)
    # the text has outgrown the context
    assert "exceeds the context" in terminal.screen.row(0)
    # the first token names the first column and the first row
    assert names.strip()[0] in terminal.screen.row(first)
    terminal.type("\x1b[6~" * 4)
    terminal.wait_for(
        lambda terminal: any(terminal.screen.row(y).startswith("rows: queries") for y in range(20))
    )
    assert terminal.screen.row(first - 1) == names  # which tokens the columns are stays
    terminal.type("\x1b[F")
    terminal.wait_for(lambda terminal: terminal.screen.row(first - 1) != names)
    terminal.wait_for(
        lambda terminal: any(re.match(r"64 \S", terminal.screen.row(y)) for y in range(20))
    )  # as well
    terminal.type("q")
    terminal.wait_for_prompt(before)
    assert "no view to scroll" not in terminal.text


def test_step_lets_one_choose_type_go_back_and_finish(visit):
    terminal = visit("--seed", "4", "--temp", "1.7", "-n", "12", ckpt="nalssi")
    terminal.wait_for_prompt()
    drawn = terminal.do("날씨가 좋").split("\n")[0]
    before = terminal.prompts
    terminal.send(":step 날씨가 좋")
    terminal.wait_for("q leave")
    terminal.wait_for("step 1  +'을' → 날씨가 좋을")
    terminal.keys("enter")
    terminal.wait_for("step 2  +")
    terminal.type("\x1b[B")
    terminal.wait_for("sampled:")
    terminal.type("3")
    terminal.wait_for("step 3  +")
    terminal.keys("backspace")
    terminal.wait_for("step 2  +")
    terminal.type("구름x")
    terminal.wait_for("your text: 구름x")
    terminal.keys("backspace", "enter")
    terminal.wait_for("step 4  +")
    assert "날씨가 좋을구름" in terminal.text
    terminal.keys("backspace", "backspace")
    terminal.wait_for("step 2  +")
    terminal.type("f")
    terminal.wait_for_prompt(before)
    # from there on as if it had never been left
    assert terminal.text.count(drawn.removeprefix(">>> ")) >= 2


@pytest.mark.parametrize("leave", ["q", "\x03", "\x1b"])
def test_leaving_step_keeps_the_text_so_far(visit, leave):
    terminal = visit()
    terminal.wait_for_prompt()
    terminal.send(":step 가")
    terminal.wait_for("step 1  +'나'")
    terminal.keys("enter")
    terminal.wait_for("step 2  +'다'")
    before = terminal.prompts
    terminal.type(leave)
    terminal.wait_for_prompt(before)
    assert "가나" in terminal.text
    assert "1 token chosen by hand" in terminal.text
    assert "가나다라마바" in terminal.do(":continue")
    terminal.do(":undo")
    assert "(no text)" in terminal.do(":undo")


def test_a_branch_is_taken_gone_on_from_and_taken_back(visit):
    terminal = visit()
    terminal.wait_for_prompt()
    terminal.do("가")
    shown = terminal.do(":branch 2 tokens=3")
    assert re.search(r"바사아 .*\[1\].*\[2\]", shown), shown
    assert "no continuation 3: they are numbered from 1 to 2" in terminal.do(":branch take 3")
    assert "가나다라마바사아" in terminal.do(":branch take 2")
    assert "가나다라마바사아자차카타" in terminal.do(":continue")
    terminal.do(":undo")
    assert terminal.do(":undo").split("\n")[1] == "가나다라마"
    assert re.search(
        r"─ +하:  100.0%  \[1\]$", terminal.do(':branch 1 tokens=2 "파"'), re.MULTILINE
    )
    assert terminal.do(":branch take 1").split("\n")[1] == "파하:"


def test_a_prompt_is_watched_while_the_model_learns(visit, tmp_path):
    (tmp_path / "corpus.txt").write_text("하늘이 맑다. 바람이 분다.\n" * 4, encoding="utf-8")
    terminal = visit(ckpt="nalssi", columns=100, rows=40)
    terminal.wait_for_prompt()
    assert "`:watch PROMPT`, then `:train`" in terminal.do(":watch")
    terminal.do(":watch 하늘")
    terminal.do(":train corpus.txt new steps=20 every=5 layers=2 width=16 heads=2", timeout=120)
    assert terminal.text.count("watch 하늘 → ") == 5
    shown = terminal.do(":watch").split("\n")
    steps = [
        int(found[1]) for found in (re.match(r" *(\d+) +[<\d]", line) for line in shown) if found
    ]
    assert steps == [0, 5, 10, 15, 20]
    terminal.do(":watch --json watch.json")
    told = json.loads((tmp_path / "watch.json").read_text(encoding="utf-8"))
    assert told["answer"]["text"] == "이"
    # eleven characters, and nothing learnt yet
    assert told["moments"][0]["prob"] == pytest.approx(1 / 11, abs=0.001)
    moment = terminal.do(":watch step=9")
    assert "after step 10" in moment
    assert "logit lens" in moment
    assert "attention from" in moment


@pytest.mark.parametrize("line", [":why", ":why by=layer", ":residual", ":lens", ":lens @b"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_a_terminal_of_40_columns_cuts_no_number(line, language):
    pictures = []
    set_language(language)
    try:
        for width in (40, 200):
            shell = shell_for(
                random_checkpoint(characters=[*"abcdefghij klmnop"], width=48, layers=3, heads=4),
                width=width,
            )
            shell.run_line(":text abcd")
            before = len(printed(shell))
            shell.run_line(line)
            pictures.append(printed(shell)[before:])
    finally:
        set_language("en")
    narrow, wide = (set(re.findall(r"[-+]?\d+\.\d+%?", picture)) for picture in pictures)
    assert narrow <= wide
    assert narrow
    assert max(map(cell_len, pictures[0].splitlines())) <= 40
