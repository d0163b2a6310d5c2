"""Sessions: what was said outlasts the program, a kill included, and goes on to the last bit."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from minillm_repl import commands, views
from minillm_repl.errors import UserError
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.repl.loop import run_guarded
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.registry import discover
from minillm_repl.repl.session import Session
from minillm_repl.repl.session_file import read_session
from minillm_repl.repl.session_folder import SessionFolder
from minillm_repl.repl.session_restore import open_session
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from tests.conftest import MODELS, ROOT

REGISTRY = discover(commands, views)


@pytest.fixture(scope="module")
def checkpoints():
    loader = ModelLoader(threads=1)
    return {
        name: loader.load(MODELS / f"{name}.safetensors").checkpoint
        for name in ("nalssi", "hangul")
    }


@pytest.fixture
def folder(tmp_path):
    return SessionFolder(tmp_path / "state" / "sessions")


class Visit:
    """A shell whose session is kept, with a decoder that has read nothing."""

    def __init__(self, folder, checkpoint, name="a"):
        out = Transcript(file=io.StringIO(), width=200, markup=False, highlight=False, emoji=False)
        self.shell = Shell(session=Session(Settings()), screen=Screen(out, out), registry=REGISTRY)
        self.shell.session.workspace.loader = ModelLoader(threads=1)
        self.shell.session.adopt(ModelLoader(threads=1).prepare(checkpoint), unsaved=False)
        self.shell.recorder.folder, self.shell.recorder.wanted_name = folder, name
        if (folder.folder / f"{name}.jsonl").exists():
            run_guarded(self.shell, partial(open_session, self.shell, folder.path(name)))

    def say(self, lines):
        """Do what lines say; return what is shown."""
        start = len(self.shown)
        for line in lines.splitlines():
            run_guarded(self.shell, partial(self.shell.execute, line))
        return self.shown[start:]

    @property
    def shown(self):
        return self.shell.screen.out.file.getvalue()

    def quit(self):
        if self.shell.recorder.journal:
            self.shell.recorder.journal.close()

    def state(self):
        """All that a session is, but for its name and the times."""
        conversation, saved = self.shell.session.conversation, self.shell.recorder.saved
        model = self.shell.session.workspace.model
        turns = [{**vars(node), "at": ""} for node in saved.tree.nodes]
        return (
            vars(conversation) | {"speed": 0, "branches": conversation.branches.texts},
            self.shell.session.settings,
            [each.description for each in model.interventions],
            (saved.head, turns),
        )


@pytest.fixture
def visit(folder, checkpoints):
    opened = []

    def visit_(model="nalssi", name="a"):
        opened.append(Visit(folder, checkpoints[model], name))
        return opened[-1]

    yield visit_
    for each in opened:
        each.quit()


# What is said before and after the program is left; the tries after it must not know of it.
TALKS = {
    "chat": (":seed 5\n안녕\n나는 민수야\n", "내 이름이 뭐야?\n:regen\n"),
    "tries": (":seed 11\n:temp 1.5\n오늘 뭐 했어?\n:regen\n", ":regen\n더 말해 줘\n"),
    "text": (":chat off\n:seed 3\n:temp 1.2\n옛날에\n:continue\n", ":regen\n:undo\n:regen\n"),
    "branches": (":seed 4\n:temp 1\n안녕\n:branch 3 tokens=9\n", ":branch take 2\n:continue\n"),
    "changes": (
        ":seed 8\n:temp 1\n안녕\n:ablate 1.1 mean\n:steer 눈이 vs 비가 strength=3\n날씨 어때?\n",
        ":regen\n:ablate off\n:regen\n",
    ),
    "edit": (":seed 2\n안녕\n잘 가\n:edit 1 고마워\n", ":session go 2\n:regen\n:edit 2 배고파\n"),
    "system": (":seed 6\n:temp 1\n:system 짧게 답해\n안녕\n", "뭐 해?\n:regen\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", TALKS)
def test_what_is_said_after_a_session_is_opened_again_is_what_would_have_been_said(name, visit):
    before, after = TALKS[name]
    whole = visit("hangul", "whole")
    whole.say(before)
    parted = visit("hangul", "parted")
    parted.say(before)
    parted.quit()
    again = visit("hangul", "parted")
    assert again.state() == whole.state()
    whole.say(after)
    again.say(after)
    assert again.state() == whole.state()
    again.quit()
    assert visit("hangul", "parted").state()[3] == whole.state()[3]


def test_the_next_try_after_a_session_is_opened_again_has_the_same_numbers(visit):
    """Not only the same text: the logits of the last token, to the last bit."""
    whole, parted = visit("hangul", "whole"), visit("hangul", "parted")
    for each in (whole, parted):
        each.say(":seed 1\n:temp 1\n안녕\n오늘은 뭐 했어?\n")
    parted.quit()
    logits = []
    for each in (whole, visit("hangul", "parted")):
        each.say(":regen\n")
        decoder = each.shell.session.workspace.model.decoder
        ids = decoder.ids[:]
        decoder.trim(len(ids) - 1)
        logits.append(decoder.decode(ids[-1]).tobytes())
    assert logits[0] == logits[1]


@pytest.fixture
def start(tmp_path):
    """Starts the program; the home is the test's own."""

    def start_(*flags):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "XDG_STATE_HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "minillm_repl", *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd=tmp_path
        )

    return start_


def test_a_kill_at_any_moment_loses_one_turn_at_most(start, tmp_path):
    flags = ("--ckpt", "nalssi", "--temp", "0", "--max-tokens", "9", "--session", "k")
    path = tmp_path / "minillm-repl" / "sessions" / "k.jsonl"
    for moment in (0.0, 0.2):
        path.unlink(missing_ok=True)
        process = start(*flags)
        for _turn in range(3):
            process.stdin.write("날씨가\n".encode())
            process.stdin.flush()
            process.stdout.readline()  # the answer has been written to the end
        process.stdin.write(":max-tokens 100000\n날씨가\n".encode())
        process.stdin.flush()
        time.sleep(moment)  # in the midst of a turn, or of writing it
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert len(read_session(path).tree.nodes) in (2, 3)
    done = start("--continue")
    out, errors = done.communicate(b":session --json -\n")
    assert done.returncode == 0, errors.decode()
    assert len(json.loads(out.splitlines()[-1])["turns"]) in (2, 3)
    assert "날씨가" in out.decode(), "what was said is shown"


def test_a_file_that_ends_anywhere_opens_with_the_lines_that_are_whole(visit, folder):
    first = visit()
    first.say(":seed 1\n날씨가\n바람이\n:temp 0.5\n:undo\n")
    first.quit()
    path = folder.path("a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    data = path.read_bytes()
    for end in range(data.index(b"\n") + 1, len(data), 7):
        path.write_bytes(data[:end])
        whole = data[:end].rpartition(b"\n")[0]
        assert len(read_session(path).tree.nodes) == whole.count(b'"event": "turn"')
    path.write_bytes(data + b'{"event": "turn", "n": 3')
    visit().say("하늘이\n")
    assert path.read_bytes().startswith(data)
    assert len(read_session(path).tree.nodes) == 3


HOSTILE = {
    "no JSON": b"{\n",
    "a number": b"7\n",
    "no event": b"{}\n",
    "another event": b'{"event": "\\u001b]0;x\\u0007"}\n',
    "escapes": '{"event": "turn", "n": "\x9b31m"}\n'.encode(),
    "deep": b"[" * 100_000 + b"\n",
    "not UTF-8": b'{"event": "\xff"}\n',
    "a parent to come": (b'"parent": 0', b'"parent": 2'),
    "a token below 0": (b'"kept": 0, "prompt": [', b'"kept": 0, "prompt": [-1, '),
    "a huge token": (b'"kept": 0, "prompt": [', b'"kept": 0, "prompt": [9223372036854775808, '),
    "a number as text": (b'"answer": "', b'"answer": 7, "x": "'),
    "a kind": (b'"kind": "text"', b'"kind": "\\u202e"'),
    "many runs": (b'"messages": []', b'"messages": [{"run": [0, 9]}, {"run": [0, 9]}]'),
    "a message": (b'"messages": []', b'"messages": ["run"]'),
    "a turn twice": (b'"n": 1', b'"n": 3'),
}


def test_a_hostile_line_is_one_clear_message(visit, folder):
    first = visit()
    first.say("날씨가\n")
    first.quit()
    path = folder.path("a")
    data = path.read_bytes()
    for name, hostile in HOSTILE.items():
        if isinstance(hostile, bytes):
            path.write_bytes(data + hostile)
        else:
            assert hostile[0] in data, name
            path.write_bytes(data.replace(*hostile))
        with pytest.raises(UserError) as raised:
            read_session(path)
        message = str(raised.value)
        assert re.match(r"a\.jsonl, line \d+ is not ", message), name
        assert message.isprintable(), name
        assert len(message) < 300, name
        assert path.stem in visit().shown, "it is told, and the visit goes on"


def test_tokens_that_the_model_does_not_have_never_reach_it(visit, folder):
    first = visit()
    first.say("날씨가\n")
    first.quit()
    path = folder.path("a")
    path.write_bytes(re.sub(rb'"new": \[\d+', b'"new": [99999', path.read_bytes()))
    again = visit()
    assert "the tokens of this model are others" in again.shown
    assert "날씨가" in again.shown
    assert "turn 1 has the tokens of another model" in again.say(":session go 1\n")
    assert "error" not in again.say("날씨가\n")


def test_a_session_file_runs_nothing_but_interventions_and_writes_no_file(
    visit, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first = visit()
    first.say("날씨가\n:ablate 1.1\n")
    first.quit()
    path, target = folder.path("a"), tmp_path / "written.svg"
    data = path.read_bytes()
    first.say(":direction d from register-ko\n")
    writes = f":direction d save {target}", f":features save {target}"
    for line in (f":export {target}", ":train x", f":ablate 1.1 --json {target}", ":quit", *writes):
        path.write_bytes(data.replace(b'":ablate 1.1"', json.dumps(line).encode()))
        again = visit()
        assert not target.exists()
        active = again.shell.session.workspace.model.interventions
        assert len(active) == (1 if line.startswith(":ablate") else 0)
        again.quit()


def test_every_kind_of_change_outlasts_the_program_also_after_save(visit, folder, tmp_path):
    """A circuit and a direction are made by lines that change nothing: they are kept with it."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "".join(f"날씨가 {a}\t날씨가 {b}\n" for a, b in zip("좋맑하공", "늘을이다", strict=True))
    )
    first = visit()
    first.say(
        f":seed 3\n:max-tokens 4\n날씨가\n:ablate 1.1\n"
        f":knockout 0.1 @-1->@0\n:direction d from {pairs}\n"
        ":steer d=0.5\n:ablate direction d 2\n"
        ":circuit 날씨가 맑다 -> 날씨가 좋다 edges=30\n:circuit run\n"
    )
    assert len(first.state()[2]) == 5
    first.say(f":save {tmp_path / 'm.safetensors'}\n:lens\n")
    first.say("하늘이\n")
    first.quit()
    again = Visit(folder, ModelLoader(threads=1).load(tmp_path / "m.safetensors").checkpoint)
    assert again.state() == first.state()
    ids = torch.tensor([again.shell.session.conversation.ids])
    logits = []
    for each in (first, again):
        model = each.shell.session.workspace.model
        with torch.no_grad():
            logits.append(model.language_model(ids, hook=model.hook))
    assert torch.equal(*logits), "to the last bit"
    assert "5 changes" in again.say(":changes\n")
    again.quit()


def test_one_window_writes_a_session_and_another_is_told(visit):
    visit().say("날씨가\n")
    other = visit()
    assert "is open in another window" in other.shown
    assert "error" not in other.say("바람이\n"), "it goes on with a session of its own"


@pytest.mark.parametrize("change", ["gone", "changed", "another"])
def test_another_model_than_that_of_the_session_is_told(change, checkpoints, folder, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((MODELS / "nalssi.safetensors").read_bytes())
    first = Visit(folder, ModelLoader().load(path).checkpoint)
    first.say(":seed 1\n날씨가\n")
    first.quit()
    checkpoint = checkpoints["hangul"]
    if change == "gone":
        path.unlink()
    elif change == "changed":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        checkpoint = ModelLoader().load(path).checkpoint
    else:
        path.write_bytes((MODELS / "story.safetensors").read_bytes())
    again = Visit(folder, checkpoint)
    again.quit()
    said = {"gone": "is not there: ", "changed": "m has changed since", "another": "another one: "}
    told = again.shown.replace("\n", "")
    assert said[change] in told
    assert "날씨가" in told
    assert ("tokens of this model are others" in told) is (change != "changed")
    if change == "changed":
        assert again.state()[0]["ids"] == first.state()[0]["ids"], "the vocabulary is the same"


def test_what_the_program_answers_in_a_models_place_is_in_no_session(visit, folder):
    secret = "죽고 싶어"
    visit("hangul").say(
        f":seed 1\n안녕\n{secret}\n:system {secret}\n잘 있어?\n:tokens {secret}\n:session name b\n"
        f":session name {secret}\n"
    )
    data = folder.path("b").read_text("utf-8")
    assert "안녕" in data
    assert secret not in data
    visit("hangul", "c").say(f":care off\n{secret}\n")  # then the model answers, and it is kept
    assert secret in folder.path("c").read_text("utf-8")


def test_another_session_begins_where_one_is_full(visit, folder, monkeypatch):
    monkeypatch.setattr("minillm_repl.repl.session_record.MAX_NODES", 3)
    one = visit()
    one.say(":max-tokens 2\n:seed 1\n날씨가\n바람이\n:clear\n하늘이\n바람이 좋\n")
    sizes = [len(read_session(each).tree.nodes) for each in folder.paths()]
    assert sorted(sizes) == [2, 3], "the new one has all that can be undone"
    one.say(":undo\n")
    assert one.shell.recorder.head == 1
    assert "바람이 좋" in one.say(":session\n")


def test_sessions_are_listed_renamed_deleted_and_never_outside_their_folder(visit, folder):
    one = visit(name="하나")
    one.say("날씨가\n")
    one.quit()
    for name in ("../x", "/tmp/x", ".x", "", "a/b", "x\x1b[2J", "x" * 200):
        with pytest.raises(UserError, match="is no name for a session"):
            folder.path(name)
    said = visit(name="둘").say(
        "바람이\n:session list\n:session open 하나\n:session\n:session name 셋\n"
        ":session delete 둘\n:session list\n"
    )
    assert "▶ 둘" in said
    assert "session 하나" in said
    assert [each.stem for each in folder.paths()] == ["셋"]


def test_another_prompt_or_answer_is_a_branch_and_the_turn_before_stays(visit):
    said = visit("hangul").say(
        ":seed 1\n:temp 0\n안녕\n나는 민수야\n:edit 2 나는 영희야\n:edit answer 2 아하!\n"
        ":edit 9 x\n:session compare 2 3\n:session --json -\n"
    )
    tree = json.loads(said.splitlines()[-1])
    assert [(each["number"], each["parent"], each["prompt"]) for each in tree["turns"]] == [
        (1, 0, "안녕"),
        (2, 1, "나는 민수야"),
        (3, 1, "나는 영희야"),
        (4, 1, "나는 민수야"),
    ]
    assert tree["turns"][3]["answer"] == "아하!"
    assert tree["turn"] == 4
    assert "no turn 9" in said
    assert "both follow turn 1" in said


# -- :export of a conversation


@pytest.fixture
def hostile_page(folder, checkpoints, tmp_path):
    """What `:export` writes of a conversation whose texts would do harm: HTML, JSON, Markdown."""
    visit = Visit(folder, checkpoints["nalssi"], "a")
    visit.say(":seed 1\n:max-tokens 30\n날씨가\n")
    node = visit.shell.recorder.saved.tree.nodes[0]
    evil = (
        "</script><script>document.title='pwned'</script><img src=x onerror=alert(1)>```\u202e&amp;"
    )
    hostile = vars(node) | {"prompt": evil}
    visit.shell.recorder.saved.tree.nodes[0] = type(node)(**hostile)
    tokenizer = visit.shell.session.workspace.model.checkpoint.tokenizer
    real = type(tokenizer).token_bytes
    forged = {node.new_ids[0]: b"</script><b>", node.new_ids[1]: b"<!--", node.new_ids[2]: b"&lt;"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(tokenizer), "token_bytes", lambda self, id_: forged.get(id_) or real(self, id_)
        )
        answer = b"".join(map(tokenizer.token_bytes, node.new_ids)).decode()
        visit.shell.recorder.saved.tree.nodes[0] = type(node)(**(hostile | {"answer": answer}))
        visit.shell.recorder._path = []
        visit.shell.recorder._session.conversation.clear()
        visit.shell.recorder.after_line = lambda _line: None
        said = visit.say("".join(f":export {tmp_path}/c.{end}\n" for end in ("json", "md")))
        said += visit.say(f":export {tmp_path}/c.html conversation\n")
    assert said.replace("\n", "").count("conversation saved to") == 3, said
    visit.quit()
    return tmp_path / "c.html"


def _data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


def test_the_page_of_a_conversation_is_whole_escaped_and_asks_for_nothing(hostile_page):
    page = hostile_page.read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    template = (ROOT / "minillm_repl" / "render" / "page.html").read_text("utf-8")
    assert not re.search(r"(src|href|url|import|fetch)\s*[=(]|https?:|innerHTML", template)
    assert "default-src 'none'" in page
    conversation = json.loads(hostile_page.with_suffix(".json").read_text())
    steps = conversation["turns"][0]["tokens"]
    shown = _data(page)["turns"][0]
    assert len(shown) == len(steps) == 30
    for token, step in zip(shown, steps, strict=True):
        assert token[1:6] == [step[k] for k in ("id", "model_prob", "prob", "rank", "entropy")]
        assert [each[1:4] for each in token[6]] == [
            [each["id"], each["model_prob"], each["prob"]] for each in step["top"]
        ]
    per_token = len(page.encode()) / 30  # of ten candidates, and its share of the rest
    assert per_token * 200 < 1 << 20
    markdown = hostile_page.with_suffix(".md").read_text("utf-8")
    assert "\n````text\n</script>" in markdown
    assert "\u202e" not in markdown


def test_the_numbers_of_the_page_are_those_of_json(visit, tmp_path, start):
    visit("hangul").say(f":seed 5\n안녕\n:export {tmp_path}/c.json\n")
    done = start("--seed", "5", "-p", "안녕", "--json").communicate()[0].decode()
    steps = [json.loads(line) for line in done.splitlines()]
    tokens = json.loads((tmp_path / "c.json").read_text())["turns"][0]["tokens"]
    assert len(tokens) == len(steps) - 2  # the end token, and the end
    for token, step in zip(tokens, steps, strict=False):
        assert {"event": "step", **token} == step


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_can_be_read_in_light_and_in_dark():
    template = (ROOT / "minillm_repl" / "render" / "page.html").read_text("utf-8")
    for root in re.findall(r":root \{(.*?)\}", template, re.DOTALL):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", root))
        pairs = [("text", f"l{n}") for n in range(5)] + [("quiet", "page"), ("text", "page")]
        for one, other in pairs:
            light, dark = sorted((luminance(colors[one]), luminance(colors[other])))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (one, other)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/usr/bin/chromium"), reason="needs Chromium")
def test_a_browser_without_a_network_shows_the_candidates_of_a_token(hostile_page):
    command = ["/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, "--host-resolver-rules=MAP * ~NOTFOUND", f"{hostile_page.as_uri()}#t0.3"],
        capture_output=True, check=True, timeout=300,
    )  # fmt: skip
    dom = done.stdout.decode()
    panel = dom[dom.index('<aside id="panel"') : dom.index("</aside>")]
    numbers = _data(dom)["turns"][0][3]
    assert panel.count("<tr") >= 11
    assert f"id {numbers[1]} " in panel
    assert "<title>minillm-repl" in dom
    assert 'class="t' in dom
