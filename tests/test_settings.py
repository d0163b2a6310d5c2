import pytest

from minillm_repl.configuration import Launch, configure, read_configuration
from minillm_repl.errors import UserError
from minillm_repl.repl.settings import Settings
from minillm_repl.settings import change, format_value, specs, value_of


def test_a_value_is_parsed_by_its_own_setting():
    settings = change(Settings(), "temp", "0.5")
    settings = change(settings, "top-k", "40")
    settings = change(settings, "stop", r'"다. " \n')
    assert (settings.temp, settings.top_k, settings.stop) == (0.5, 40, ("다. ", "\n"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temp", "-1"),
        ("temp", "nan"),
        ("temp", "inf"),
        ("temp", "warm"),
        ("top-p", "1.1"),
        ("top-k", "-1"),
        ("top-k", "2.5"),
        ("max-tokens", "0"),
        ("seed", "-1"),
        ("stop", '"'),
        ("verbose", "maybe"),
        ("min-p", ""),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_the_remedy(name, text):
    with pytest.raises(UserError, match=rf"^--{name} needs .* not ") as raised:
        change(Settings(), name, text, display_name=f"--{name}")
    assert "\n" not in str(raised.value)


def test_an_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="no setting 'heat'; available: temp, top-k"):
        change(Settings(), "heat", "1")


@pytest.mark.parametrize("name", specs(Settings))
def test_what_is_shown_can_be_typed_again(name):
    value = value_of(Settings(), name)
    assert (
        value_of(change(Settings(), name, format_value(specs(Settings)[name], value)), name)
        == value
    )


def test_words_stand_for_values():
    settings = change(Settings(verbose=3), "verbose", "on")
    assert settings.verbose == 10
    assert change(settings, "verbose", "OFF").verbose == 0
    assert change(Settings(seed=3), "seed", "random").seed is None


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        'temp = 0.1\ntop_k = 1\nmin-p = 0.1\nstop = ["a b", "c"]\nverbose = true\n',
        encoding="utf-8",
    )
    file = read_configuration(path)
    settings = configure(
        Settings(), {"temp": "0.3"}, {"MINILLM_TEMP": "0.2", "MINILLM_TOP_K": "2"}, file
    )
    assert (settings.temp, settings.top_k, settings.min_p) == (0.3, 2, 0.1)
    assert (settings.stop, settings.verbose) == (("a b", "c"), 10)
    assert configure(Launch(), {}, {"MINILLM_CKPT": "x"}, file).ckpt == "x"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path, ends):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + ends.join(["temp = 0", 'system = "하나"', ""]).encode())
    assert read_configuration(path) == {"temp": "0", "system": "하나"}


def test_a_wrong_configuration_is_named(tmp_path):
    path = tmp_path / "config.toml"
    for text, message in (
        ("heat = 1", "sets 'heat'"),
        ("temp = ", "cannot read"),
        ("temp = '\x1b'", "cannot read"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message) as raised:
            read_configuration(path)
        assert "\x1b" not in str(raised.value)
    assert read_configuration(tmp_path / "none.toml") == {}
    with pytest.raises(UserError, match="MINILLM_TEMP needs"):
        configure(Settings(), {}, {"MINILLM_TEMP": "hot"}, {})
