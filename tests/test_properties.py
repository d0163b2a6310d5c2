"""Whatever is fed to a parser: taken, or refused in one line that cannot steer a terminal."""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_repl.checkpoint import foreign
from minillm_repl.checkpoint.families import FAMILIES
from minillm_repl.checkpoint.folder import Folder
from minillm_repl.checkpoint.native import config_from_json, tokenizer_from_json
from minillm_repl.cli import make_parser
from minillm_repl.configuration import Launch, read_configuration
from minillm_repl.errors import UserError
from minillm_repl.generate import Sampling
from minillm_repl.generate.sampling import process_logits, softmax
from minillm_repl.repl.loop import is_multiline_open, join_multiline
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.workspace import RecentModels
from minillm_repl.safetext import safe, safe_line, show_token
from minillm_repl.settings import change, format_value, specs, value_of
from minillm_repl.storage.files import parse_json
from minillm_repl.training.corpus import open_corpus
from minillm_repl.training.plan import TrainPlan
from tests import fuzz
from tests.conftest import ROOT

settings.register_profile("suite", deadline=None, max_examples=60)
settings.load_profile("suite")

TEXT = st.text(max_size=60) | st.text("0123456789.,-+eE_=:'\" \\\x1b\x9b\u202e가", max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@contextlib.contextmanager
def one_clean_line():
    try:
        yield
    except UserError as error:
        fuzz.clean(error)


@given(st.binary(max_size=200))
def test_any_bytes_as_a_file(data):
    fuzz.header(data)
    fuzz.header(len(data).to_bytes(8, "little") + data)


@given(st.dictionaries(TEXT, JSON, max_size=4), st.binary(max_size=40))
def test_any_json_as_a_header(data, rest):
    text = json.dumps(data).encode()
    fuzz.header(len(text).to_bytes(8, "little") + text + rest)


@given(st.sampled_from(fuzz.gguf_seeds()), st.integers(0, 2_000), st.binary(max_size=20))
def test_any_bytes_in_a_gguf_file(data, place, more):
    fuzz.gguf(data[:place] + more + data[place:])
    fuzz.gguf(data[:place] + more + data[place + len(more) :])


@given(JSON)
def test_strict_json_is_the_json_of_the_standard_library(data):
    text = json.dumps(data)
    try:
        assert parse_json(text, "it") == json.loads(text)
    except UserError as error:
        fuzz.clean(error)
        lone = any(
            "\ud800" <= character < "\ue000" for character in text.encode().decode("unicode_escape")
        )
        assert "NaN" in text or "Infinity" in text or lone


@given(st.text('[]{},:"\\ab01 \n', max_size=40))
def test_what_is_no_json_is_none_for_both(text):
    with one_clean_line():
        assert parse_json(text, "it") == json.loads(text)


@given(
    st.dictionaries(
        st.sampled_from(
            ["arch", "vocab_size", "context_length", "d_model", "n_layers", "n_heads", "rope", "x"]
        ),
        JSON,
    )
)
def test_any_json_as_a_config(data):
    with one_clean_line():
        config_from_json(data | {"arch": "gpt"})
    with one_clean_line():
        config_from_json(
            {"vocab_size": 5, "context_length": 8, "d_model": 8, "n_layers": 1, "n_heads": 2} | data
        )


FIELDS = sorted(
    {name for family in FAMILIES for name in (*family.defaults, *family.field_aliases)}
    | {
        "head_dim",
        "n_inner",
        "layer_types",
        "rope_scaling",
        "rope_parameters",
        "rope_theta",
        "partial_rotary_factor",
    }
    | {"architectures", "is_encoder_decoder", "_class_name", "quantization_config", "quantization"}
)
LAYERS = ["full_attention", "sliding_attention", "attention", "x"]
VALUES = JSON | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", *LAYERS]), JSON)
VALUES |= st.lists(st.sampled_from(LAYERS), max_size=3) | st.just("gelu")


@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_json_as_the_config_of_a_folder(family, data):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    with tempfile.TemporaryDirectory() as folder, one_clean_line():
        fields = sizes | data
        if family.inner_config:
            fields = {family.inner_config: fields}
        (Path(folder) / "config.json").write_text(
            json.dumps({"model_type": family.model_type} | fields)
        )
        assert (
            Folder(Path(folder)).config.n_layers == 3
            or "num_hidden_layers" in data
            or "n_layer" in data
        )
        assert all(note.isprintable() for note in Folder(Path(folder)).notes)
        foreign.describe_architecture(data), foreign.describe_headless(data)


@given(
    st.sampled_from(["character", "ids", "magic"]), st.dictionaries(TEXT, JSON, max_size=3), JSON
)
def test_any_json_as_a_tokenizer(kind, data, value):
    for more in ({"characters": value}, {"size": value}, {"characters": "ab", "specials": value}):
        with one_clean_line():
            tokenizer_from_json({**data, **more, "type": kind})


@given(st.sampled_from([Settings(), Launch(), TrainPlan()]), st.data())
def test_any_text_as_a_setting_and_what_is_shown_can_be_typed_again(owner, data):
    name = data.draw(st.sampled_from(sorted(specs(owner))))
    with one_clean_line():
        changed = change(owner, name, data.draw(TEXT))
        again = change(owner, name, format_value(specs(owner)[name], value_of(changed, name)))
        shown = format_value(specs(owner)[name], value_of(again, name))
        assert safe_line(shown) == shown or isinstance(value_of(changed, name), str)


COMMAND = fuzz.commander()


@given(
    st.sampled_from(
        ["", ":", "/", ":set ", ":temp ", ":train ", ":help ", ":stop ", ":save ", ":attn "]
    ),
    TEXT,
)
def test_any_line_typed(start, text):
    COMMAND((start + text).encode("utf-8", "surrogatepass"))


@given(
    st.lists(
        st.sampled_from(["-p", "--temp", "--ckpt", "--train", "--json", "-n", "--stop", "--new"])
        | TEXT,
        max_size=5,
    )
)
def test_any_flags(words):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            make_parser().parse_args(words)
        except SystemExit as leaving:
            assert leaving.code in (0, 2)


@given(TEXT | st.text("abctemp=\"[]#\n'0.5 ", max_size=40))
def test_any_text_as_the_configuration_file(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with one_clean_line():
            read_configuration(path)


@given(st.binary(max_size=100))
def test_any_bytes_as_a_corpus_and_as_the_list_of_recent_files(data):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.txt", "a.jsonl"):
            (Path(folder) / name).write_bytes(data)
            with one_clean_line():
                list(open_corpus(Path(folder) / name).documents())
        (Path(folder) / "recent").write_bytes(data)
        assert isinstance(RecentModels(Path(folder) / "recent").paths(), list)


@given(st.lists(TEXT))
def test_blocks_lose_no_line(lines):
    whole = [line.replace('"', "") + "\n" for line in lines]
    assert [line.rstrip("\r\n") for line in whole] == list(join_multiline(whole))
    assert not any(is_multiline_open(line) for line in whole)


@given(st.text(), st.text())
def test_neutral_text_is_neutral_split_anywhere_and_stays_so(one, other):
    assert safe(one) + safe(other) == safe(one + other)
    assert safe(safe(one)) == safe(one)
    assert all(unicodedata.category(c) not in {"Cc", "Cs"} for c in safe(one) if c not in "\n\t")
    safe(one).encode()


SAMPLING = st.builds(
    Sampling,
    temp=st.sampled_from([0, 1e-8, 0.5, 1, 1e8]) | st.floats(0, 1e8),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([1e-6, 1.0]) | st.floats(1e-6, 1),
    min_p=st.floats(0, 1),
    repeat_penalty=st.floats(0.1, 10),
)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9), SAMPLING)
def test_the_likeliest_is_never_cut_and_what_is_left_is_a_distribution(logits, sampling):
    scores = process_logits(np.asarray(logits, np.float32), sampling, [])
    probabilities = softmax(scores)[0]
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1)
    likeliest = np.asarray(logits, np.float32) == max(np.asarray(logits, np.float32))  # or several
    assert probabilities[likeliest].max() == pytest.approx(probabilities.max(), rel=1e-6)


@given(st.binary(max_size=20))
def test_any_bytes_as_a_token(data):
    shown = show_token(data)
    assert safe_line(shown) == shown


@pytest.mark.slow
@pytest.mark.parametrize("what", ["header", "gguf", "command"])
def test_fuzzing_finds_nothing_that_escapes(what):
    runs = {"header": 200_000, "gguf": 1_000_000, "command": 20_000}[what]
    command = [sys.executable, "-m", "tests.fuzz", what, "--random", "--runs", str(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "none escaped" in done.stdout
