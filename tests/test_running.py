"""How a generation is drawn as it runs: tints, lines, tables whose columns stay."""

import io
import re

import pytest
from rich.cells import cell_len

from minillm_repl.generate import GenerationConfig, Sampling, Step
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.generate import generate
from minillm_repl.generate.interactive import InteractiveDecoder
from minillm_repl.generate.sampling import make_rng
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.render.generation import percent_of_bits, step_table
from minillm_repl.render.running import draw_coloured, draw_lines
from tests.test_lessons import printed, shell_for


def events_of(nalssi, count=12, n_candidates=4, **sampling):
    config = GenerationConfig(
        max_tokens=count, sampling=Sampling(**sampling), n_candidates=n_candidates
    )
    ids = nalssi.tokenizer.encode("날씨가 ")
    return list(generate(make_decoder(nalssi), nalssi.tokenizer, ids, config, make_rng(3)))


def screen_of(width=80, **options):
    out = Transcript(file=io.StringIO(), width=width, markup=False, highlight=False, **options)
    return Screen(out, out)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_line_for_each_token_has_its_numbers_and_the_columns_stay(nalssi, width):
    events, screen = events_of(nalssi, temp=2.0), screen_of(width)
    draw_lines(events, screen)
    heading, *lines = screen.out.file.getvalue().splitlines()
    steps = [event for event in events if isinstance(event, Step)]
    assert len(lines) == len(steps) == 12
    assert all(cell_len(line) <= width for line in (heading, *lines))
    ends = {cell_len(line[: line.index("%") + 1]) for line in lines}
    assert len(ends) == 1
    for line, step in zip(lines, steps, strict=True):
        percentage, rank, bits = re.search(r"(\S+)%\s+(\d+)\s+(\d+\.\d\d)", line).groups()
        assert percentage in (f"{100 * step.model_prob:.1f}", "<0.1")
        assert (int(rank), bits) == (step.rank, f"{step.entropy:.2f}")
        others = re.findall(r"(\S+)%", line)[1:]
        assert len(others) == (1 if width == 40 else 3)


def test_the_text_is_tinted_by_the_models_probability_and_underlined_without_colours(nalssi):
    events = events_of(nalssi, temp=3.0)
    steps = [event for event in events if isinstance(event, Step)]
    assert min(step.model_prob for step in steps) < 0.01 < 0.5 < max(s.model_prob for s in steps)
    codes = {"green": "\x1b[32m", "": "", "red": "\x1b[1;31m", "reverse": "\x1b[4;7m"}
    for options, sure, unsure in (({}, "green", "red"), ({"no_color": True}, "", "reverse")):
        screen = screen_of(force_terminal=True, color_system="standard", **options)
        draw_coloured(events, screen)
        shown = screen.out.file.getvalue()
        assert re.sub(r"\x1b\[[\d;]*m", "", shown) == events[-1].text
        assert [codes[unsure] in shown, codes[sure] in shown] == [True, True]


def test_tables_of_all_steps_have_the_same_columns(nalssi):
    steps = [each for each in events_of(nalssi, temp=3.0) if isinstance(each, Step)]
    for width in (40, 80, 120):
        tables = [step_table(step, "after", width, 44).plain.splitlines() for step in steps]
        assert len({cell_len(row[: row.index("%")]) for table in tables for row in table[2:]}) == 1
        assert all(cell_len(row.rstrip()) <= width for table in tables for row in table)


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_cuts_no_number_of_choose_and_set(nalssi, width):
    shell = shell_for(nalssi, width)
    shell.run_line(':choose 좋다. | 맑다. | 시원하다. 바람이 분다 "날씨가 "')
    shell.run_line(":set")
    text = re.sub(r"\s+", " ", printed(shell))
    for option in shell.last_shown.options:
        assert percent_of_bits(option.bits) in text
        assert f"{option.bits:.2f}" in text
        assert option.text in text
    assert "sampling temperature" in text
    assert all(cell_len(line) <= width for line in printed(shell).splitlines())


@pytest.mark.parametrize(
    ("bits", "shown"),
    [(1.0, "50.0%"), (10.0, "0.098%"), (20.0, "9.5e-05%"), (2000.0, "8.7e-601%")],
)
def test_a_probability_is_a_number_however_small(bits, shown):
    assert percent_of_bits(bits) == shown


def test_taking_every_drawn_token_writes_the_text_of_a_generation_with_mirostat(nalssi):
    sampling = {"temp": 2.0, "mirostat": 1.0, "mirostat_rate": 0.5, "xtc": 0.5, "dry": 1.0}
    written = [each.id for each in events_of(nalssi, 16, **sampling) if isinstance(each, Step)]
    ids = nalssi.tokenizer.encode("날씨가 ")
    by_hand = InteractiveDecoder(
        make_decoder(nalssi), nalssi.tokenizer, ids, Sampling(**sampling), 3
    )
    for _ in written:
        by_hand.append(by_hand.next_step().id)
    assert by_hand.new_ids == written
