"""`--csv`: the rows of a view's table, against the same numbers in its JSON."""

import csv
import io
import json
import math
from dataclasses import dataclass

import pytest
from rich.text import Text

import minillm_repl as mr
from minillm_repl.errors import UsageError, UserError
from minillm_repl.render.csv_table import csv_text, plain_cell
from minillm_repl.repl.quoting import Output, parse_output
from minillm_repl.views.base import View

TEXT = "날씨가 좋"


@dataclass(frozen=True)
class Empty(View):
    """A view of one number."""

    number: float = 1.0

    def draw(self, width):
        return Text(str(self.number))


@pytest.fixture(scope="module")
def model():
    return mr.load("nalssi")


def rows_of(view):
    return list(csv.DictReader(io.StringIO(view.to_csv())))


def leaf(value, path):
    for name in path.split("."):
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value


@pytest.mark.parametrize(
    ("line", "field"),
    [("lens", "rows"), ("why", "parts"), ("ablate scan", "effects"), ("residual", "rows"),
     ("surprise", "scores"), ("qkv 0.1", "met"), ("attn", "heads"), ("neurons 0", "neurons"),
     ("heads", "heads"), ("map", "points"), ("lens grid", "rows"), ("tokens 날씨", "pieces")],
)  # fmt: skip
def test_a_row_is_an_element_of_the_json_and_a_name_is_a_path_in_it(model, line, field):
    name, _space, rest = line.partition(" ")
    view = model.view(name, "" if name in ("tokens", "map") else TEXT, *rest.split())
    elements, rows = view.to_dict()[field], rows_of(view)
    assert len(rows) == len(elements) > 0
    for row, element in zip(rows, elements, strict=True):
        assert len(row) > 1
        for path, cell in row.items():
            try:
                there = leaf(element, path)
            except (IndexError, KeyError):  # a list that is longer in another row
                there = None
            if path.endswith("bytes"):
                assert json.loads(cell) == there
            elif isinstance(there, float):
                assert math.isclose(float(cell), there, rel_tol=1e-12)
            else:
                assert cell == ("" if there is None else plain_cell(str(there)))


def test_tokens_stand_beside_their_numbers_and_queries_beside_their_keys(model):
    view = model.view("grad", TEXT)
    rows = rows_of(view)
    assert [row["tokens.text"] for row in rows] == list(TEXT)
    assert [float(row["norms"]) for row in rows] == list(view.norms)
    rows = rows_of(model.view("attn", TEXT, "1.2"))
    assert [row["tokens.text"] for row in rows] == list(TEXT)
    for row in rows:
        assert sum(float(row[f"weights.{key}"]) for key in range(len(TEXT))) == pytest.approx(1)
    rows = rows_of(model.view("patch", "", "날씨가 맑다 -> 날씨가 좋다"))
    assert rows[0]["places"] == "embedding"
    assert "effects.4" in rows[0]


def test_several_lists_of_objects_have_a_column_that_names_them(model):
    view = model.view("ablate", TEXT, "0.1")
    rows = rows_of(view)
    assert {row["list"] for row in rows} == {"before", "after"}
    now = [float(row["prob"]) for row in rows if row["list"] == "after"]
    assert now == [each.prob for each in view.after]


def test_what_is_in_a_text_is_read_back_as_it_is():
    fields = {"rows": [{"token": {"id": 1, "text": 'a,"b"\n=1', "bytes": [97]}, "p": 0.5},
                       {"token": {"id": 2, "text": "날", "bytes": []}, "p": None}]}  # fmt: skip
    first, second = csv.DictReader(io.StringIO(csv_text(fields)))
    assert list(first) == ["token.id", "token.text", "token.bytes", "p"]
    assert [first["token.text"], second["token.text"]] == ['a,"b"\n=1', "날"]
    assert [first["p"], second["p"], second["token.bytes"]] == ["0.5", "", "[]"]


def test_no_text_is_a_formula_in_a_spreadsheet():
    fields = {"rows": [{"token": each, "p": -0.5} for each in ("=1+1", " -x", "@a", "\t", "a=b")]}
    rows = list(csv.DictReader(io.StringIO(csv_text(fields))))
    assert [each["token"] for each in rows] == ["'=1+1", "' -x", "'@a", "'\t", "a=b"]
    assert {each["p"] for each in rows} == {"-0.5"}


def test_every_token_has_its_rank_and_what_was_expected(model):
    view = model.view("surprise", TEXT)
    assert [each.token.text for each in view.scores] == list(TEXT)[1:]
    for at, each in enumerate(view.scores):
        lens = model.view("lens", TEXT[: at + 1])
        assert [likely.token for likely in each.expected] == [
            likely.token for likely in lens.rows[-1].top
        ]
        better = sum(likely.prob > 2**-each.bits + 1e-9 for likely in each.expected)
        assert each.rank > better or each.rank == better + 1


def test_what_is_no_table_says_so_and_a_file_is_not_replaced(model, tmp_path):
    with pytest.raises(UserError, match="no table"):
        Empty().to_csv()
    file = tmp_path / "lens.csv"
    model.view("lens", TEXT, f"--csv {file}")
    assert file.read_text(encoding="utf-8") == model.view("lens", TEXT).to_csv()
    with pytest.raises(UserError, match="--overwrite"):
        model.view("lens", TEXT, f"--csv {file}")
    model.view("lens", TEXT, f"--csv {file} --overwrite")
    assert parse_output("1 --csv a.csv x") == ("1 x", Output("a.csv", is_csv=True))
    for wrong in ("--csv", "--overwrite"):
        with pytest.raises(UsageError, match="--csv"):
            parse_output(wrong)
