"""`:eval`: each figure beside that of lm-eval, scipy or a computation by hand; hostile files."""

import json
import math
import random
from fractions import Fraction
from io import StringIO

import numpy as np
import pytest
import transformers
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minillm_repl.cli import main
from minillm_repl.errors import UserError
from minillm_repl.evaluation import ItemError
from minillm_repl.evaluation.items import MAX_CHOICES, parse_item, parse_questions
from minillm_repl.evaluation.statistics import calibrate, mcnemar, paired_difference, wilson
from minillm_repl.evaluation.text import windows
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.session import Session, Workspace
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.views.evaluate import Request, evaluate, make_subject
from minillm_repl.views.headless import view_commands
from tests.conftest import MODELS
from tests.outside import outside
from tests.test_real_models import STORY
from tests.test_server import server


@pytest.fixture
def shell():
    nowhere = StringIO()
    screen = Screen(Transcript(file=nowhere), Console(file=nowhere))
    workspace = Workspace(loader=ModelLoader())
    return Shell(session=Session(Settings(), workspace), screen=screen, registry=view_commands())


def lines(*items):
    return "\n".join(json.dumps(each, ensure_ascii=False) for each in items)


# -- the file


BAD = [
    ("no JSON", "not valid JSON"),
    ("{", "not valid JSON"),
    ("[1, 2]", "no JSON object"),
    ('{"prompt": "a", "prompt": "b", "answer": "c"}', "twice"),
    ('{"prompt": "a", "answer": NaN}', "NaN"),
    ("[" * 100_000, "nested too deeply"),
    ('{"prompt": "a", "answer": "\\ud800"}', "not valid JSON"),
    ('{"answer": "b"}', "prompt is missing"),
    ('{"prompt": "a"}', "answer is missing"),
    ('{"prompt": 3, "answer": "b"}', "prompt is no text"),
    ('{"prompt": "a", "answer": null}', "answer is no text"),
    ('{"prompt": "a", "answer": true}', "answer is no text"),
    ('{"prompt": "a", "answer": " "}', "answer is empty"),
    ('{"prompt": "a", "choices": "bc", "answer": 0}', "no list"),
    ('{"prompt": "a", "choices": ["b", 3], "answer": 0}', "no list"),
    ('{"prompt": "a", "choices": [], "answer": 0}', "two choices"),
    ('{"prompt": "a", "choices": ["b"], "answer": 0}', "two choices"),
    ('{"prompt": "a", "choices": ["b", ""], "answer": 0}', "choice 1 is empty"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "answer 2 is not among"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": -1}', "answer -1 is not among"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "answer true is not among"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": 1.0}', "answer 1.0 is not among"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": "d\\u001b[2J"}', "is not among"),
    (lines({"prompt": "a", "choices": ["b"] * (MAX_CHOICES + 1), "answer": 0}), "1,001 choices"),
    (lines({"prompt": "a", "choices": ["b"] * 10**6, "answer": 0}), "longer than"),
]


@pytest.mark.parametrize(("line", "why"), BAD, ids=[why for _line, why in BAD])
def test_a_line_that_is_no_question_says_why(line, why):
    with pytest.raises(ItemError, match=why) as error:
        parse_item(line, 1)
    assert str(error.value).isprintable()


def test_bad_lines_are_counted_with_their_numbers_and_the_others_stay():
    good = {"prompt": "a", "choices": ["b", "c"], "answer": "c"}
    found = parse_questions(lines(good) + "\n\nbad\n" + lines({"prompt": "a", "answer": 4}, good))
    assert (found.kind, [each.line for each in found.items]) == ("choices", [1, 5])
    assert [each.line for each in found.bad] == [3, 4]
    assert found.items[0].gold == 1
    assert parse_questions(lines({"prompt": "a", "answer": 4})).items[0].answer == "4"


# -- the figures


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1319])
def test_the_interval_is_where_the_score_test_does_not_reject(count):
    """Wilson's interval has the shares p with (right/n − p)² = z² · p(1 − p)/n at its ends."""
    z2 = 1.959963984540054**2
    for right in {0, 1, count // 3, count}:
        found = wilson(right, count)
        share = right / count
        assert found.low <= share <= found.high
        for end in (found.low, found.high):
            if 0 < end < 1:
                assert (share - end) ** 2 == pytest.approx(z2 * end * (1 - end) / count, rel=1e-9)


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for right, count in [(0, 9), (3, 9), (9, 9), (611, 1000)]:
        low, high = stats.binomtest(right, count).proportion_ci(method="wilson")
        found = wilson(right, count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_the_calibration_error_is_that_of_a_computation_by_hand():
    confidences = [0.31, 0.35, 0.62, 0.68, 0.95, 1.0, 0.7]
    rights = [False, True, True, True, True, False, False]
    # bins: (0.3, 0.4] 2 with 1 right; (0.6, 0.7] 3 with 2 right; (0.9, 1.0] 2 with 1 right
    by_hand = (
        2 / 7 * abs(1 / 2 - (0.31 + 0.35) / 2)
        + 3 / 7 * abs(2 / 3 - (0.62 + 0.68 + 0.7) / 3)
        + 2 / 7 * abs(1 / 2 - (0.95 + 1.0) / 2)
    )
    found = calibrate(confidences, rights)
    assert found.ece == pytest.approx(by_hand, abs=1e-12)
    assert [(each.low, each.count) for each in found.bins] == [(0.3, 2), (0.6, 3), (0.9, 2)]


def test_two_models_are_compared_by_the_exact_binomial_test():
    rng = random.Random(0)
    for _time in range(50):
        first, second = ([rng.random() < 0.6 for _ in range(20)] for _ in range(2))
        found = mcnemar(first, second)
        n, least = found.only_first + found.only_second, min(found.only_first, found.only_second)
        # Every outcome of n fair coins at least as uneven as this one.
        outcomes = [math.comb(n, k) for k in range(n + 1) if min(k, n - k) <= least]
        assert found.p == pytest.approx(float(Fraction(sum(outcomes), 2**n)), abs=1e-12)


def test_the_interval_of_a_difference_has_the_true_one_19_times_of_20():
    rng, hits = np.random.default_rng(0), 0
    for _time in range(2_000):
        sizes = rng.integers(5, 60, 80)
        first = sizes * 1.3 + rng.normal(0, 1, 80) * sizes**0.5
        second = sizes * 1.2 + rng.normal(0, 1, 80) * sizes**0.5
        found = paired_difference(first.tolist(), second.tolist(), sizes.tolist())
        hits += found.low <= 0.1 <= found.high
    assert 0.93 < hits / 2_000 < 0.97


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize(("window", "stride"), [(5, 5), (5, 2), (5, 1), (50, 50)])
def test_each_token_is_predicted_once_and_sees_a_window_at_most(window, stride, start):
    for length in range(2, 40):
        seen = []
        for first, since, end in windows(length, window, stride, start):
            assert first < since < end <= length
            assert end - first - 1 <= window
            assert not first or (since - first >= window - stride + 1 and end - since <= stride)
            seen += range(since, end)
        assert seen == list(range(start, length))


# -- beside lm-eval

CHOICES = [
    {
        "prompt": "Once upon a time, there was a",
        "choices": ["little girl", "car", "of"],
        "answer": 0,
    },
    {"prompt": "Lily was very", "choices": ["happy", "sad 🙂", "한글"], "answer": 1},
    {"prompt": "The dog and the cat", "choices": ["played in the park", "x"], "answer": 0},
    {"prompt": "She saw a", "choices": ["bird.", "bird. She was happy."], "answer": 1},
]
TEXTS = [
    {"prompt": "They went to the", "choices": ["park", "big house on the hill"], "answer": "park"},
    {"prompt": "고양이는", "choices": ["작다", "아주 크고 무섭다"], "answer": "작다"},
    {"prompt": "He liked to play", "choices": ["with his ball", "ball"], "answer": "ball"},
]


SPACED = [
    {"prompt": "Tom said: ", "choices": ["yes", "no, I do not want to go home now"], "answer": 1},
    {"prompt": "One day\n", "choices": ["the sun", "a big bird flew over the tree"], "answer": 0},
    {"prompt": "Lily was very", "choices": [" happy", "!"], "answer": 0},
    {"prompt": "", "choices": ["Once upon a time", "What"], "answer": 0},
]


@pytest.fixture(scope="module", params=["stories", "gpt2"])
def folder(request, tmp_path_factory):
    """A folder of `transformers`: of a model with a start token, and of one without."""
    if request.param == "stories":
        return outside("checkpoints/stories260K-hf")
    found = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([STORY, *(each["prompt"] for each in CHOICES)], trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(found)
    transformers.set_seed(1)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=64, n_embd=48, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(found)
    return found


def ours(folder, path, shell, **options):
    fields = {"limit": 0, "space": True, "max_tokens": 16, "window": 0, "stride": 0} | options
    subject = make_subject(shell, ModelLoader().load(folder), "off")
    return evaluate(shell, Request(path=path, **fields), (subject,))


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: {text}
doc_to_target: {target}
{more}
metric_list:
{metrics}
"""


def by_lm_eval(
    folder, task_folder, name, kind, data, metrics, more="", text='"{{prompt}}"', target="answer"
):
    """The results and the samples of a task, by lm-eval's own run of the folder."""
    lm_eval = pytest.importorskip("lm_eval", reason="pip install -e '.[peers]' brings lm-eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    listed = "\n".join(f"  - metric: {metric}" for metric in metrics)
    written = TASK.format(
        name=name, data=data, kind=kind, text=text, target=target, more=more, metrics=listed
    )
    (task_folder / f"{name}.yaml").write_text(written)
    model = HFLM(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=1,
        # With its default it would predict the start token too, after a start token.
        add_bos_token=False if kind == "loglikelihood_rolling" else None,
    )  # fmt: skip
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    samples = sorted(found["samples"][name], key=lambda each: each["doc_id"])
    return found["results"][name], samples


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("items", [CHOICES, TEXTS, SPACED], ids=["indices", "texts", "spaced"])
def test_choices_have_the_figures_of_lm_eval(folder, items, tmp_path, shell):
    data = tmp_path / "data.jsonl"
    data.write_text(lines(*items))
    target = '"{{choices.index(answer)}}"' if items is TEXTS else "answer"
    delimiter = "" if items is SPACED else " "
    results, samples = by_lm_eval(
        folder, tmp_path, "own_choices", "multiple_choice", data, ["acc", "acc_norm", "acc_bytes"],
        'doc_to_choice: choices\n' + f'target_delimiter: "{delimiter}"', target=target,
    )  # fmt: skip
    view = ours(folder, data, shell, space=items is not SPACED)
    [figures] = view.questions
    assert figures.accuracy.share == pytest.approx(results["acc,none"], abs=1e-4)
    assert figures.per_character.share == pytest.approx(results["acc_norm,none"], abs=1e-4)
    assert figures.per_byte.share == pytest.approx(results["acc_bytes,none"], abs=1e-4)
    for item, sample in zip(view.items, samples, strict=True):
        [found] = item["results"]
        told = [(float(ll), greedy in (True, "True")) for [(ll, greedy)] in sample["resps"]]
        assert found["logprobs"] == pytest.approx([ll for ll, _greedy in told], abs=1e-4)
        assert list(found["greedy"]) == [greedy for _ll, greedy in told]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_text_has_the_log_likelihood_of_lm_eval(folder, tmp_path, shell):
    text = STORY * 60 + "\n한글 🙂 그리고\n" + STORY[:50] * 20
    (tmp_path / "text.txt").write_text(text)
    data = tmp_path / "data.jsonl"
    data.write_text(lines({"page": text}))
    results, [sample] = by_lm_eval(
        folder, tmp_path, "own_text", "loglikelihood_rolling", data, ["bits_per_byte"],
        text='""', target='"{{page}}"',
    )  # fmt: skip
    view = ours(folder, tmp_path / "text.txt", shell)
    [figures] = view.texts
    assert figures.result.windows > 2
    [[found]] = sample["resps"]
    assert -figures.result.nats == pytest.approx(float(np.ravel(found)[0]), rel=1e-6)
    assert figures.bits_per_byte == pytest.approx(results["bits_per_byte,none"], abs=1e-4)
    assert figures.result.size == len(text.encode())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_written_answers_are_right_where_lm_eval_finds_them_right(folder, tmp_path, shell):
    prompts = ["Once upon a time", "Lily was very", "The dog", "One day, a boy named"]
    data = tmp_path / "data.jsonl"
    data.write_text(lines(*({"prompt": each, "answer": "x"} for each in prompts)))
    written = [
        item["results"][0]["given"] for item in ours(folder, data, shell, max_tokens=8).items
    ]
    answers = [*written[:2], written[2] + "!", "x"]
    pairs = zip(prompts, answers, strict=True)
    data.write_text(lines(*({"prompt": each, "answer": answer} for each, answer in pairs)))
    view = ours(folder, data, shell, max_tokens=8)
    # `until` and the filter do what `:eval` does: up to a line break, without spaces around it.
    results, _samples = by_lm_eval(
        folder, tmp_path, "own_answers", "generate_until", data, ["exact_match"],
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}\n'
        "filter_list: [{name: own, filter: [{function: regex, regex_pattern: "
        '"^\\\\s*(.*?)\\\\s*$"}]}]',
    )  # fmt: skip
    assert view.questions[0].accuracy.share == results["exact_match,own"] == 0.5


# -- the command

QUESTIONS = [
    {"prompt": "날씨가 좋", "choices": ["다.", "을", "하늘"], "answer": 0},
    {"prompt": "하늘이", "choices": [" 맑고", " 좋다"], "answer": " 맑고"},
    {"prompt": "공원에 가고", "choices": [" 싶다.", " 좋다."], "answer": 1},
]


@pytest.fixture
def nalssi_shell(shell):
    shell.session.adopt(ModelLoader().load(MODELS / "nalssi.safetensors"), unsaved=False)
    return shell


def told(shell, line):
    """What a command shows, and the view of it."""
    out = shell.screen.out.file
    before = len(out.getvalue())
    shell.run_line(line)
    return out.getvalue()[before:], shell.last_shown


def test_a_share_is_that_of_choose_for_the_same_text(nalssi_shell, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(lines(QUESTIONS[1]))
    _text, view = told(nalssi_shell, f":eval {file}")
    _text, chosen = told(nalssi_shell, ':choose " 맑고" | " 좋다" "하늘이"')
    [found] = view.items[0]["results"]
    assert found["logprobs"] == pytest.approx(
        [-option.bits * math.log(2) for option in chosen.options], abs=1e-5
    )
    assert view.questions[0].calibration.bins[-1].confidence == pytest.approx(
        max(option.share for option in chosen.options), abs=1e-5
    )


def test_the_prompt_of_several_choices_is_read_once(nalssi_shell, tmp_path):
    decoder, read = nalssi_shell.require_model().decoder, []
    forward, every = decoder.prefill, decoder.prefill_all
    decoder.prefill = lambda ids: read.append(len(ids)) or forward(ids)
    decoder.prefill_all = lambda ids: read.append(len(ids)) or every(ids)
    file = tmp_path / "q.jsonl"
    choices = ["날", "하", "맑", "산"]
    file.write_text(lines({"prompt": "날씨가 좋다. 하늘이 맑고", "choices": choices, "answer": 0}))
    told(nalssi_shell, f":eval {file}")
    # The last token of the prompt, and the space: their logits are needed for each choice.
    assert sum(read) == len("날씨가 좋다. 하늘이 맑고") - 1 + 2 * len(choices)


def test_hostile_lines_are_named_and_the_rest_is_measured(nalssi_shell, tmp_path):
    file = tmp_path / "q.jsonl"
    bad = [line for line, _why in BAD]
    more = [
        lines({"prompt": "날" * 40, "choices": ["다", "을"], "answer": 0}),
        lines({"prompt": "흐", "choices": ["다", "을"], "answer": 0}),
        lines({"prompt": "날", "choices": ["다", "🙂"], "answer": 0}),
        lines({"prompt": "", "choices": ["다", "을"], "answer": 0}),
        lines({"prompt": "날", "answer": "다"}),
    ]
    file.write_text("\n".join([lines(QUESTIONS[0]), *bad, *more, lines(*QUESTIONS[1:])]))
    text, view = told(nalssi_shell, f":eval {file} space=off")
    assert (view.done, view.bad_count) == (3, len(bad) + len(more))
    why = {each.line: each.why for each in view.bad}
    assert sorted(why) == list(range(2, len(bad) + len(more) + 2))
    for line, said in zip(
        range(len(bad) + 2, len(bad) + len(more) + 2),
        ["more than the context of 32", "lacks 흐", "lacks 🙂", "no start token", "no choices"],
        strict=True,
    ):
        assert said in why[line]
    assert f"{view.bad_count} lines could not be measured" in text
    assert "\x1b" not in text


def test_what_cannot_be_measured_at_all_is_said_in_one_line(nalssi_shell, tmp_path):
    for name, content, said in [
        ("empty.jsonl", b"", "is empty"),
        ("bad.jsonl", b"[]\n{}\n", "line 1: it is no JSON object"),
        ("zip.jsonl", b"PK\x03\x04\x00\x00", "ZIP"),
        ("short.txt", "날".encode(), "no token to predict"),
        ("foreign.txt", b"xyz", "no token to predict"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=said) as error:
            nalssi_shell.run_line(f":eval {tmp_path / name}")
        assert "\n" not in str(error.value)
    for line, said in [
        (f":eval {tmp_path}", "a folder"),
        (":eval", "FILE .* is missing"),
        (":eval a.txt vs ", "missing beside vs"),
        (":eval a.txt limit=0", "limit"),
        (":eval a.txt chat=maybe", "chat"),
    ]:
        with pytest.raises(UserError, match=said):
            nalssi_shell.run_line(line)


def test_ctrl_c_keeps_what_is_done(nalssi_shell, tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(lines(*QUESTIONS * 5))
    asked = iter(range(100))
    nalssi_shell.interrupted = lambda: next(asked) > 20
    text, view = told(nalssi_shell, f":eval {file}")
    assert 0 < view.done < 15 == view.total
    assert f"stopped: the figures are over {view.done} of 15 questions" in text
    nalssi_shell.interrupted = lambda: True
    with pytest.raises(UserError, match="stopped"):
        nalssi_shell.run_line(f":eval {file}")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_two_models_are_in_one_table(nalssi_shell, tmp_path, width):
    nalssi_shell.screen.out.width = width
    file, text_file = tmp_path / "q.jsonl", tmp_path / "text.txt"
    file.write_text(lines(*QUESTIONS))
    text_file.write_bytes((MODELS / "nalssi.txt").read_bytes())
    text, view = told(nalssi_shell, f":eval {file} vs hangul chat=off")
    assert view.names == ("nalssi", "hangul")
    rights = [[each["is_right"] for each in item["results"]] for item in view.items]
    assert view.mcnemar.only_first == sum(ours and not theirs for ours, theirs in rights)
    assert "McNemar" in text
    assert max(map(len, text.splitlines())) <= width
    text, view = told(nalssi_shell, f":eval {text_file} vs hangul")
    ours, theirs = (each.result for each in view.texts)
    common = {(each.line, each.size) for each in ours.lines} & {
        (each.line, each.size) for each in theirs.lines
    }
    bits = [
        sum(each.bits for each in found.lines if (each.line, each.size) in common)
        for found in (ours, theirs)
    ]
    size = sum(size for _line, size in common)
    assert view.difference.value == pytest.approx((bits[0] - bits[1]) / size, abs=1e-9)
    assert view.difference.low < view.difference.value < view.difference.high < 0


def test_bits_per_byte_of_a_text_in_one_window_are_those_of_surprise(nalssi_shell, tmp_path):
    said = "오늘 날씨가 좋다. 하늘이 맑다."
    (tmp_path / "text.txt").write_text(said)
    _text, view = told(nalssi_shell, f":eval {tmp_path / 'text.txt'}")
    _text, surprise = told(nalssi_shell, f':surprise "{said}"')
    [figures] = view.texts
    assert figures.bits_per_byte == pytest.approx(surprise.bits_per_byte, abs=1e-5)
    assert figures.perplexity == pytest.approx(surprise.perplexity, abs=1e-4)


def test_from_a_shell_each_question_is_an_event(tmp_path, capsys):
    file = tmp_path / "my questions.jsonl"
    file.write_text("bad\n" + lines(*QUESTIONS))
    assert main(["--ckpt", "nalssi", "--eval", str(file), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["event"] for each in events] == ["bad_line", "item", "item", "item", "finished"]
    assert events[-1]["questions"][0]["accuracy"]["count"] == 3
    assert main(["--ckpt", "nalssi", "--eval", f'"{file}" limit=1 json {tmp_path}/out.json']) == 0
    assert json.loads((tmp_path / "out.json").read_text())["done"] == 1
    assert main(["--ckpt", "nalssi", "--eval", f"{tmp_path}/none.jsonl"]) == 1
    assert main(["--ckpt", "nalssi", "--eval", str(file), "-p", "날"]) == 2


def test_a_model_on_a_server_has_the_figures_of_the_model_here(tmp_path, shell):
    file, text_file = tmp_path / "q.jsonl", tmp_path / "text.txt"
    file.write_text(lines(*QUESTIONS))
    text_file.write_bytes((MODELS / "nalssi.txt").read_bytes())
    views = []
    with server(tmp_path, "--ckpt", "hangul") as (_process, url):
        for name in ("hangul", url):
            shell.session.adopt(ModelLoader().load(find_checkpoint(name)), unsaved=False)
            views.append([told(shell, f":eval {each}")[1] for each in (file, text_file)])
    here, there = views
    for ours, theirs in zip(here[0].items, there[0].items, strict=True):
        found = theirs["results"][0]["logprobs"]
        assert found == pytest.approx(ours["results"][0]["logprobs"], abs=1e-4)
    assert there[1].texts[0].perplexity == pytest.approx(here[1].texts[0].perplexity, rel=1e-4)
