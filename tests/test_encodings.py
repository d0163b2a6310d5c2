"""How text files are written in bytes: what is recognised is read and told, the rest is refused
with its place.
"""

import codecs

import pytest

from minillm_repl.checkpoint.load_save import read_vocabulary
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.errors import UserError
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.storage.encoding import DetectedEncoding, read_text, read_text_chunks
from minillm_repl.training.corpus import open_corpus
from tests.conftest import random_checkpoint
from tests.test_training_runs import SIZES, run

KOREAN = "날씨가 좋다. 하늘이 맑고 바람이 시원하다.\n오늘은 산책을 하자! API를 쓴다 10번.\n" * 20
RARE = (
    "똠방각하와 펲시콜라를 찦차에, 뷁!\n이것은 한글로 쓴 글이다.\n" * 9
)  # CP949 has syllables that EUC-KR lacks
ENGLISH = "It was a fine day, and nobody stayed at home.\n" * 50


def written(tmp_path, content, name="t.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


READ = {
    "UTF-8": (KOREAN.encode(), KOREAN, ""),
    "a byte order mark": (codecs.BOM_UTF8 + KOREAN.encode(), KOREAN, ""),
    "CP949": (KOREAN.encode("cp949"), KOREAN, "CP949"),
    "EUC-KR": (KOREAN.encode("euc-kr"), KOREAN, "CP949"),
    "beyond EUC-KR": (RARE.encode("cp949"), RARE, "CP949"),
    "one word": ("5만원".encode("cp949"), "5만원", "CP949"),
    "after much ASCII": ((ENGLISH * 200 + KOREAN).encode("cp949"), ENGLISH * 200 + KOREAN, "CP949"),
    "UTF-16": (KOREAN.encode("utf-16"), KOREAN, "UTF-16"),
    "UTF-16, the larger half first": (
        codecs.BOM_UTF16_BE + KOREAN.encode("utf-16-be"),
        KOREAN,
        "UTF-16",
    ),
    "UTF-16 without a mark": (KOREAN.encode("utf-16-le"), KOREAN, "UTF-16"),
    "UTF-16-BE without a mark": (KOREAN.encode("utf-16-be"), KOREAN, "UTF-16"),
    "English UTF-16 without a mark": (ENGLISH.encode("utf-16-be"), ENGLISH, "UTF-16"),
    "UTF-32": (KOREAN.encode("utf-32"), KOREAN, "UTF-32"),
    "UTF-32 without a mark": (KOREAN.encode("utf-32-be"), KOREAN, "UTF-32"),
    "line ends of Windows": (KOREAN.replace("\n", "\r\n").encode("utf-16"), KOREAN, "UTF-16"),
    "a letter of two halves": ("가🙂나\n".encode("utf-16") * 1, "가🙂나\n", "UTF-16"),
    "empty": (b"", "", ""),
}


@pytest.mark.parametrize("size", [1, 7, 1 << 18])
@pytest.mark.parametrize("kind", READ)
def test_what_is_recognised_is_read_whole_and_told(tmp_path, kind, size):
    content, text, told = READ[kind]
    if size == 1 and len(content) > 20_000:
        pytest.skip("so many pieces show nothing that fewer do not")
    how = DetectedEncoding()
    assert "".join(read_text_chunks(written(tmp_path, content), how, size)) == text
    assert how.display_name == told
    assert how.has_foreign_newlines == ("Windows" in kind)


REFUSED = {
    "Latin-1": ("café à la carte".encode("latin-1"), "0xe9 at 3 of 15"),
    "Latin-1 in capitals": ("INFORMAÇÕES E SELEÇÃO".encode("latin-1"), "0xc7 at 7 of 21"),
    "curly quotes of Windows": ("don\u2019t \u201cdo\u201d".encode("cp1252"), "0x92 at 3 of 10"),
    "Shift-JIS": ("こんにちは、世界。これはテストです。".encode("shift-jis"), "0x82 at 0 of 36"),
    "EUC-JP": ("こんにちは、世界。これはテストです。".encode("euc-jp"), "0xa4 at 0 of 36"),
    "GBK": ("你好,世界。我们今天去上海。".encode("gbk"), "0xc4 at 0 of"),
    "Big5": ("你好,世界".encode("big5"), "0xa7 at 0 of 9"),
    "KOI8-R": ("привет мир как дела".encode("koi8-r"), "0xd0 at 0 of 19"),
    "Windows-1251": ("привет мир ЭТО ТЕСТ".encode("cp1251"), "0xef at 0 of 19"),
    "Thai": ("สวัสดีชาวโลก".encode("cp874"), "0xca at 0 of 12"),
    "UTF-8, then CP949": (
        KOREAN.encode() + KOREAN.encode("cp949"),
        f"0xb3 at {len(KOREAN.encode()):,} of",
    ),
    "CP949, then UTF-8": (KOREAN.encode("cp949") + KOREAN.encode(), "0xb3 at 0 of"),
    "cut in a letter": (KOREAN.encode()[:-2] + b"\xea\xb0", "0xea at"),
    "a NUL": (b"abc\0def", "0x00 at 3 of 7"),
    "numbers": (bytes(range(256)) * 9, "of 2,304"),
    "UTF-16 of odd length": (ENGLISH.encode("utf-16")[:-1], "is not UTF-16-LE text"),
    "a surrogate alone": ("가나".encode("utf-16") + b"\x00\xd8a\x00", "is not UTF-16-LE text"),
    "CP949 long after its beginning": (
        KOREAN.encode("cp949") * 200 + b"\xff",
        "is not CP949 text: byte 0xff at",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_recognised_is_refused_with_its_place_and_what_helps(tmp_path, kind):
    content, message = REFUSED[kind]
    with pytest.raises(UserError) as refused:
        read_text(written(tmp_path, content))
    said = str(refused.value)
    assert message in said
    assert "iconv -f" in said
    assert said.isprintable()


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(UserError, match="ZIP archive"):
        read_text(written(tmp_path, b"PK\x03\x04" + bytes(90)))


@pytest.mark.parametrize("kind", ["CP949", "UTF-16", "UTF-16 without a mark", "UTF-32"])
@pytest.mark.parametrize(
    ("name", "around"), [("t.txt", "{}"), ("t.jsonl", '{{"text": "{}"}}\n'), ("t.csv", "text\n{}")]
)
def test_a_corpus_has_the_same_documents_and_digest_however_it_is_written(
    tmp_path, kind, name, around
):
    text = around.format("하늘이 맑다 그리고 바람이 시원하다")
    plain = open_corpus(written(tmp_path, text.encode(), name))
    encoding = {"CP949": "cp949", "UTF-32": "utf-32", "UTF-16": "utf-16"}.get(kind, "utf-16-le")
    other = open_corpus(written(tmp_path, text.encode(encoding), name))
    assert list(other.documents()) == list(plain.documents())
    assert (other.sha256, other.count, plain.notes) == (plain.sha256, plain.count, ())
    assert other.notes == (f"read as {READ[kind][2]}",)


def test_in_a_folder_the_files_that_are_written_otherwise_are_named(tmp_path):
    for number in range(3):
        written(tmp_path, KOREAN.encode("cp949"), f"{number}.txt")
    written(tmp_path, KOREAN.encode("utf-16"), "x.md")
    written(tmp_path, KOREAN.encode(), "y.md")
    assert open_corpus(tmp_path).notes == (
        "0.txt and 2 more: read as CP949",
        "x.md: read as UTF-16",
    )


def test_training_tells_how_a_text_was_read(tmp_path):
    written(tmp_path, (KOREAN * 20).encode("cp949"), "old.txt")
    written(tmp_path, (KOREAN * 20).encode("utf-16"), "held.txt")
    words = ["--train", "old.txt", "--val", "held.txt", "--json", "--steps", 2, *SIZES]
    _, said = run(tmp_path, "--ckpt", "m.safetensors", *words)
    assert "old.txt: read as CP949" in said
    assert "held.txt: read as UTF-16" in said


@pytest.mark.slow
def test_training_refuses_what_it_cannot_read_in_one_line(tmp_path):
    written(tmp_path, "Él está aquí".encode("latin-1") * 99, "latin.txt")
    _, said = run(tmp_path, "--ckpt", "n.safetensors", "--train", "latin.txt", code=1)
    assert said.startswith("error: latin.txt is not UTF-8 text: byte 0xc9 at 0 of")
    assert len(said.splitlines()) == 1


def test_the_vocabulary_of_a_checkpoint_that_has_none_may_be_in_any_of_these(tmp_path):
    opened = []
    for name, encoding in (("a.txt", "utf-8"), ("b.txt", "cp949"), ("c.txt", "utf-16")):
        text = written(tmp_path, KOREAN.encode(encoding), name)
        how = DetectedEncoding()
        opened.append(read_vocabulary(text, how).characters)
        assert how.notes(text) == (
            () if name == "a.txt" else (f"{text}: read as {encoding.upper()}",)
        )
    assert opened == [tuple(sorted(set(KOREAN)))] * 3


def test_a_vocabulary_that_was_read_in_another_encoding_is_told_when_the_model_opens(tmp_path):
    save(random_checkpoint(), tmp_path / "m.safetensors")
    text = written(tmp_path, KOREAN.encode("cp949"))
    model = ModelLoader(vocabulary=text).load(tmp_path / "m.safetensors")
    assert model.checkpoint.notes == (f"{text}: read as CP949",)
    assert ModelLoader().load(tmp_path / "m.safetensors").checkpoint.notes == ()
