"""The study note's program, as `:source note` walks through it."""

import ast
import inspect
import re

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from safetensors.torch import save_file

from minillm_repl.checkpoint.load_save import load
from minillm_repl.language import LANGUAGES, _, set_language
from minillm_repl.lessons.parse import lesson_files
from minillm_repl.model import note as program
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.views import note, source
from minillm_repl.views.inspected_text import InspectedText
from tests.outside import outside
from tests.test_lessons import printed, shell_for

PARTS = list(note.list_parts().parts)


@pytest.fixture(autouse=True)
def english():
    yield
    set_language("en")


def shell_of(name, text):
    shell = shell_for(load(find_checkpoint(name)))
    ids = shell.require_model().checkpoint.tokenizer.encode(text)
    shell.session.conversation.start_turn(ids, shell.session.settings)
    return shell


def test_its_weights_give_the_logits_of_the_notes_own_program(reference, tmp_path):
    """In the program by its state dict, and back from a model that this program has opened."""
    torch.manual_seed(3)
    theirs = reference.MiniLLM().eval()
    sizes = (reference.vocab_size, reference.block_size, reference.n_embed, reference.n_head)
    ours = program.MiniLLM(*sizes, reference.n_layer)
    weights = {k: v.contiguous() for k, v in theirs.state_dict().items() if "tril" not in k}
    ours.load_state_dict(weights)
    save_file(weights, tmp_path / "note.safetensors")
    shell = shell_for(load(tmp_path / "note.safetensors"))
    model = shell.require_model()
    ids = torch.randint(reference.vocab_size, (1, 20))
    opened, has_weights = note.note_program(
        InspectedText(model.language_model, model.checkpoint.tokenizer, tuple(ids[0].tolist()))
    )
    assert has_weights
    with torch.no_grad():
        expected = theirs(ids)[0]
        torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(opened(ids), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.language_model(ids), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("model", "text"), [("nalssi", "날씨가 좋"), ("hangul", "날씨가 좋")])
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_part_runs_on_the_open_model_and_fits_80_columns(model, text, language):
    set_language(language)
    shell = shell_of(model, text)
    for part in PARTS:
        shell.execute(f":source note {part}")
        view = shell.last_shown
        assert view.results, part
        assert view.has_weights is (model == "nalssi")
        assert not [line for line in view.code.splitlines() if cell_len(line) > 80], part
        assert not re.search(r"\(b\b", view.code), part  # shapes are live
    assert "\n".join(PARTS[:1]) in printed(shell)


def test_the_whole_program_says_what_the_open_model_says():
    shell = shell_of("nalssi", "날씨가 좋")
    shell.execute(":source note MiniLLM")
    assert re.search(r"yes, to 0\.0000\d+", printed(shell))
    shell.execute(":surprise")
    mean = shell.last_shown.mean
    shell.execute(":source note loss")
    assert float(dict(shell.last_shown.results)["loss"]) == pytest.approx(mean, abs=2e-4)


def test_its_comments_are_listed_and_each_has_korean():
    code = inspect.getsource(program).partition("COMMENTS = (")[0]
    assert set(re.findall(r"^ +# (.*)$", code, re.MULTILINE)) == set(program.COMMENTS)
    set_language("ko")
    assert not [each for each in program.COMMENTS if not re.search("[가-힣]", _(each))]


def test_korean_source_has_no_english_prose():
    set_language("ko")
    shell = shell_of("hangul", "날씨가 좋")
    shell.execute(":source")
    parts = [each.part for each in shell.last_shown.parts]
    # A sentence: three words of letters in a row that are no code.
    prose = re.compile(r"(?:[A-Za-z]{2,} ){4}")
    for part in [*parts, *(f"note {each}" for each in PARTS)]:
        shell.execute(f":source {part}")
        out = Console(width=200, record=True, quiet=True)
        out.print(shell.last_shown.draw(200))
        text = out.export_text()
        found = [line for line in text.splitlines() if "#" in line or '"""' in line]
        assert not [line for line in found if prose.search(line.partition("#")[2])], part
        assert '"""' not in text, part
    assert not prose.search(printed(shell).partition("attention")[0])


def test_code_without_prose_is_the_same_code():
    code = inspect.getsource(program)

    class Bare(ast.NodeTransformer):
        def visit(self, node):
            self.generic_visit(node)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = node.body[1:] if ast.get_docstring(node) else node.body
            return node

    bare = source.without_prose(code)
    assert ast.dump(ast.parse(bare)) == ast.dump(Bare().visit(ast.parse(code)))
    assert "# (b, t, w)" in bare


# -- where each of the note's sentences lives: its beginning, the lesson that has it, a phrase there

WHERE = [
    ("LLM이 하는 일을", 1, "바로 다음에 올 조각 하나를 맞힌다"),
    ('"오늘 날씨가 정말', 1, "‘오늘 날씨가 정말 ____.’"),
    ('토큰화: "오늘"', 2, "**토큰화**: 글을 토큰으로 자르고 번호표를 붙인다."),
    ("임베딩: [5", 2, "**임베딩**: 번호표를 수의 줄, 곧 벡터로 바꾼다."),
    ("Transformer 블록", 2, "**블록**: 벡터들이 서로 정보를 주고받는다."),
    ("출력: 다음", 2, "**출력**: 마지막 벡터로 다음 토큰의 확률을 계산한다."),
    ("샘플링: 확률", 2, "**샘플링**: 확률대로 하나를 뽑아 글 끝에 붙인다."),
    ("토큰화: 글자", 3, "뜻 없는 번호를 붙이는 일"),
    ("임베딩: 숫자", 3, "비슷하게 쓰이는 토큰은 비슷한 벡터가 돼요"),
    ("도서관에서", 4, "도서관에서 책 찾기"),
    ("Q (Query", 4, "**쿼리**(query): 내가 찾는 것."),
    ("K (Key", 4, "**키**(key): 책등에 붙은 이름표."),
    ("V (Value", 4, "**값**(value): 책 속에 든 내용."),
    ("과정: Q와", 4, "잘 맞는 책일수록 그 책의 값을 많이 가져와요"),
    ("Head는", 5, "헤드 하나는 **눈 하나**, 또는 **관점 하나**"),
    ("눈 1", 5, "주어가 무엇인지"),
    ("눈 2", 5, "내용을 보는 눈"),
    ("눈 3", 5, "바로 앞 글자가 무엇인지"),
    ("눈 4", 5, "아까 나온 말이 또 나왔는지"),
    ("레고", 6, "레고 한 조각"),
    ("Self-Attention", 6, "**어텐션**은 모둠 토론이에요"),
    ("Add & Normalize", 6, "**정규화**(norm)는 볼륨 맞추기예요"),
    ("Feed Forward", 6, "**피드포워드**는 혼자 생각하기예요"),
    ("블록을 많이", 10, "**가운데층**: 낱말의 뜻, 문장 안의 관계"),
    ("코드: x", 6, "x = x + attention(norm(x))"),
    ("잔차의 의미", 6, "이 ‘달라질 만큼’을 **잔차**라고"),
    ("일반 방식", 6, "처음부터 끝까지 완전히 새로운 결과"),
    ("잔차 방식", 6, "원본에 보탤 차이"),
    ("일반: 서울", 6, "서울 → 대전 → 대구 → 부산"),
    ("잔차: 서울", 6, "곧게 뻗은 **고속도로**"),
    ("흐름: 입력 → 모델 → 예측 → 정답", 8, "**정답과 견주어** 손실을 구한다"),
    ("다음 글자 맞추기", 7, "이 다섯을 되풀이하는 것이 학습이에요|천 걸음을 걷게 하세요"),
    ("x (입력)", 7, "문제 x:"),
    ("y (정답)", 7, "정답 y:"),
    ("모델이 예측한 것과", 7, "손실이 줄어드는 쪽으로"),
    ("흐름: 입력 → 모델 → 예측 → 출력", 8, "글 끝에 붙이고 되풀이한다"),
    ("한 토큰씩", 1, "길어진 글을 다시"),
    ('"날씨', 2, "세 번만 돌아 볼게요"),
    ("핵심 차이", 8, "1번과 2번은 처음부터 끝까지 똑같은 계산"),
    ("LLM이 하는 일을 한 문장으로?", 1, "언어 모델이 하는 일을 한 문장으로 말하면"),
    ("토큰화와 임베딩의", 3, "토큰화와 임베딩은 어떻게 다를까요?"),
    ("Q, K, V를", 4, "쿼리, 키, 값을 도서관에 빗대어"),
    ("Head를 여러", 5, "헤드를 여러 개 쓰는 까닭은"),
    ("잔차 연결이", 6, "잔차 연결은 왜 필요할까요?"),
    ("학습과 예측의", 8, "학습과 예측은 무엇이 같고 무엇이 다를까요?"),
    ("Transformer Block을", 10, "블록을 여러 개 쌓으면 왜 더 똑똑해질까요?"),
    ("다음 토큰 예측", 1, "다음 토큰의 확률을 매긴다"),
    ("토큰화는", 3, "토큰화는 글을 잘라"),
    ("Q는", 4, "쿼리는 내가 찾는 것, 키는 책등의 이름표, 값은 책의 내용이에요"),
    ("여러 눈으로", 5, "한 번에 여러 관점으로 보려고"),
    ("레이어가 깊어지면", 6, "원본 정보가 사라지지 않게"),
    ("학습은 모델", 8, "정답과 견주어 가중치를 고치고"),
    ("여러 층에서", 10, "앞 층이 알아낸 것을 재료로"),
    ("Andrej", 11, "안드레이 카르파티"),
    ("nanoGPT", 11, "nanoGPT"),
    ("Hugging Face", 11, "허깅페이스 강좌"),
    ("Transformer 원", 11, "Attention Is All You Need"),
]
HEADINGS = re.compile(
    r"\d+(\.\d+)? ?[.A-Z가-힣].*|\.\.\. 반복 \.\.\.|정답|입력부터 출력까지.*"
    r"|LLM을 처음부터.*|파인만.*|LLM\(.*"
)


def test_each_sentence_of_the_note_has_a_place_in_the_lessons():
    for begins, number, phrase in WHERE:
        text = " ".join(lesson_files("ko")[number].read_text(encoding="utf-8").split())
        assert any(each in text for each in phrase.split("|")), (begins, number, phrase)


def test_no_sentence_of_the_note_is_forgotten():
    lines = outside("seed/note.ko.txt").read_text(encoding="utf-8").splitlines()
    code = lines.index("5. 핵심 코드 구조 (PyTorch)")
    after = next(n for n, line in enumerate(lines) if line.startswith("6. 복습"))
    prose = [line.strip() for line in (*lines[:code], *lines[after:]) if line.strip()]
    begins = tuple(begin for begin, _number, _phrase in WHERE)
    forgotten = [
        line for line in prose if not line.startswith(begins) and not HEADINGS.fullmatch(line)
    ]
    assert forgotten == []
    # Its code lives in model/note.py: each class and function has its place there.
    names = re.findall(r"^(?:class|def) (\w+)", "\n".join(lines[code:after]), re.MULTILINE)
    here = {name for name in names if hasattr(program, name)}
    assert set(names) - here == {"forward", "generate_verbose"}  # methods; `:verbose` does the last
