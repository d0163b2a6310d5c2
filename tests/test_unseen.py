"""A text that is longer than the context: what is seen of it is told, and positions count over
the whole text.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch

from minillm_repl.errors import UserError
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.generate import prefill
from minillm_repl.tokenizer.subword import SubwordTokenizer
from minillm_repl.tokenizer.truncation import count_dropped, truncate
from tests.small import random_checkpoint
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - the last is a fixture

CONTEXT, LETTERS = 12, "abcdefghijklmnopqrstuvwxyz"


def with_start():
    """A tokenizer of letters that puts `<s>` before every text."""
    vocabulary = {"<s>": 0, **{letter: place for place, letter in enumerate(LETTERS, 1)}}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    library.decoder = tokenizers.decoders.Fuse()
    library.add_special_tokens(["<s>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return SubwordTokenizer(json.loads(library.to_str()), {"bos_token": "<s>"}, len(vocabulary))


@pytest.fixture(params=["letters", "start token"])
def shell(request):
    checkpoint = random_checkpoint(vocab=27, context=CONTEXT, characters=[*LETTERS, " "])
    if request.param == "start token":
        checkpoint = replace(checkpoint, tokenizer=with_start())
    made = shell_for(checkpoint, width=200)
    made.kept = int(request.param == "start token")
    made.session.set("max-tokens", "1")
    return made


def asked(shell, line):
    """The view that a line writes as JSON, and what it says on the screen."""
    shell.run_line(
        line + " --json -" if ":prob" not in line else line.replace(":prob", ":prob --json -")
    )
    view = json.loads(
        [each for each in printed(shell).splitlines() if each.startswith('{"view')][-1]
    )
    before = len(printed(shell))
    shell.screen.out.print(shell.last_view(200))
    return view, printed(shell)[before:]


def what_is_seen(shell, text):
    """The window by hand: as many of the last letters as there is room for, and the start token."""
    room = CONTEXT - shell.kept
    return shell.kept, len(text) - room  # how many are kept, how many after these are not seen


TEXT = "thequickbrownfoxjumps"  # 21 letters
VIEWS = [
    ":attn", ":attn 0", ":attn 0.1", ":qkv 0.1", ":qkv 0.1 key=-2", ":lens", ":why", ":residual",
    ":neurons 0", ":neurons 0.1", ":grad", ":shapes", ":surprise", ":descent", ":ablate scan",
    ":ablate 0.1", ":sampler", ":temp sweep", ":compare story",
]  # fmt: skip


@pytest.mark.parametrize("line", VIEWS)
def test_each_view_says_what_it_does_not_see(shell, line):
    text = f' "{TEXT}"' if not line.endswith("sweep") else f" {TEXT}"
    kept, unseen = what_is_seen(shell, TEXT)
    view, shown = asked(shell, line + text)
    assert (view["kept"], view["unseen"]) == (kept, unseen)
    assert f"does not see the {unseen} tokens at positions {kept} to {kept + unseen - 1}" in shown
    if isinstance(view.get("tokens", [0])[0], dict):
        seen = "".join(token["text"] for token in view["tokens"])
        assert seen == ("<s>" if kept else "") + TEXT[unseen:]
    view, shown = asked(shell, line + text.replace(TEXT, TEXT[: CONTEXT - kept]))
    assert (view["kept"], view["unseen"]) == (0, 0)
    assert "does not see" not in shown


def last_position(shell, text=TEXT):
    return len(text) + shell.kept - 1


def test_positions_are_those_of_the_whole_text(shell):
    last, (kept, unseen) = last_position(shell), what_is_seen(shell, TEXT)
    numbers = [*range(kept), *range(kept + unseen, last + 1)]
    assert len(numbers) == CONTEXT
    label = dict.fromkeys((), "<s>" + TEXT if False else None)
    for place in range(kept + unseen, last + 1):
        label[place] = TEXT[place - kept]
    view, shown = asked(shell, f':lens "{TEXT}"')
    assert view["position"] == last
    assert f"position {last}" in shown
    view, _ = asked(shell, f':lens {last - 2} "{TEXT}"')
    assert (view["position"], view["tokens"][-1]["text"]) == (last - 2, label[last - 2])
    assert asked(shell, f':lens -3 "{TEXT}"')[0] == view
    assert asked(shell, f':residual "{TEXT}"')[0]["position"] == last
    view, shown = asked(shell, f':qkv 0.0 "{TEXT}"')
    assert [met["position"] for met in view["met"]] == numbers
    assert f"position {last}" in shown
    assert any(line.split()[:2] == [str(last - 1), label[last - 1]] for line in shown.splitlines())
    view, _ = asked(shell, f':qkv 0.0 {last - 1} key={last - 3} "{TEXT}"')
    assert (view["position"], view["met"]) == (last - 1, last - 3)
    view, _ = asked(shell, f':attn "{TEXT}"')
    assert {place for head in view["heads"] for place, _weight in head["looked"]} <= set(numbers)
    view, shown = asked(shell, f':attn 0.0 "{TEXT}"')
    above, *rows = [line.split() for line in shown.splitlines()[-CONTEXT - 4 : -3]]
    positions = [str(place) for place in numbers[::5]]
    assert above == (positions if kept else [label[place] for place in numbers])
    assert [row[0] for row in rows] == [str(place) for place in numbers]
    assert rows[-1][:2] == [str(last), label[last]]
    view, shown = asked(shell, f':surprise "{TEXT}"')
    assert view["first"] == numbers[1]
    assert all(each["token"]["text"] == label[each["position"]] for each in view["most"])
    view, shown = asked(shell, f':descent "{TEXT}"')
    assert [target["position"] for target in view["targets"]] == numbers[:-1]
    for line in (f':neurons 0.1 "{TEXT}"', f':grad "{TEXT}"'):
        rows = [line.split()[:2] for line in asked(shell, line)[1].splitlines() if "│" in line]
        assert {(int(place), name) for place, name in rows} <= {(0, "<s>"), *label.items()}


def test_a_position_that_is_not_seen_is_an_error(shell):
    kept, unseen = what_is_seen(shell, TEXT)
    for position in (kept, kept + unseen - 1, -last_position(shell) - 1 + kept):
        place = position if position >= 0 else kept
        outside = (
            f"position {place} is outside the context: the model does not see positions {kept} to "
            f"{kept + unseen - 1}"
        )
        with pytest.raises(UserError, match=outside):
            shell.run_line(f':lens {position} "{TEXT}"')
    with pytest.raises(UserError, match=f"positions run from 0 to {last_position(shell)}"):
        shell.run_line(f':lens {last_position(shell) + 1} "{TEXT}"')
    if kept:
        view, _ = asked(shell, f':lens 0 "{TEXT}"')
        assert (view["position"], view["unseen"], len(view["tokens"])) == (0, 0, 1)


def test_views_look_at_what_writes(shell):
    """The numbers are those of the decoder's text, in an independent pass by numpy's indices."""
    model = shell.require_model()
    ids = shell.encode(model, TEXT)
    logits = prefill(model.decoder, ids).astype(np.float64)
    kept, unseen = what_is_seen(shell, TEXT)
    assert model.decoder.ids == ids[:kept] + ids[kept + unseen :]
    expected = (
        model.language_model(torch.tensor([model.decoder.ids]))[0, -1].detach().double().numpy()
    )
    assert np.abs(logits - expected).max() < 1e-4
    view, _ = asked(shell, f':lens "{TEXT}"')
    best = int(expected.argmax())
    probability = np.exp(expected - expected.max())[best] / np.exp(expected - expected.max()).sum()
    assert (view["answer"]["id"], view["rows"][-1]["prob"]) == (
        best,
        pytest.approx(probability, abs=1e-5),
    )
    view, _ = asked(shell, f":sampler {TEXT}")
    assert view["candidates"][0]["probs"][0] == pytest.approx(probability, abs=1e-5)
    nats = asked(shell, f':surprise "{TEXT}"')[0]["mean"]
    seen = torch.tensor([model.decoder.ids])
    loss = torch.nn.functional.cross_entropy(
        model.language_model(seen)[0, :-1].double(), seen[0, 1:]
    )
    assert nats == pytest.approx(float(loss), abs=1e-5)


def test_prompts_of_which_a_part_is_not_seen_are_not_patched(shell):
    short, all_ = TEXT[: CONTEXT - shell.kept], len(TEXT) + shell.kept
    for line, name in ((f":patch {TEXT} -> {short}", "A"), (f":patch {short} -> {TEXT}", "B")):
        with pytest.raises(
            UserError, match=f"prompt {name} exceeds the context: .* its {all_} tokens"
        ):
            shell.run_line(line)
    shell.run_line(f":patch {short} -> {short[::-1]}")


def test_steering_says_which_texts_are_cut(shell):
    shell.run_line(f':steer "{TEXT}" vs "ab" layer=0')
    kept, unseen = what_is_seen(shell, TEXT)
    assert f"does not see the {unseen} tokens at positions {kept} to" in " ".join(
        printed(shell).split()
    )


def test_the_prompt_marks_what_is_no_longer_seen(shell):
    shell.run_line(TEXT)
    before = len(printed(shell))
    shell.run_line(":prompt")
    shown = printed(shell)[before:]
    kept, unseen = what_is_seen(shell, TEXT + "x")
    ids = shell.encode(shell.require_model(), TEXT)
    gone = shown[shown.index("⟦") + 1 : shown.index("⟧")].split()
    assert [int(each) for each in gone[1::2]] == ids[kept : kept + unseen]
    assert f"does not see the {unseen} tokens at positions {kept} to" in " ".join(shown.split())
    shell.run_line(":clear")
    shell.run_line("abc")
    before = len(printed(shell))
    shell.run_line(":prompt")
    assert "⟦" not in printed(shell)[before:]


def test_a_continuation_and_other_ways_say_what_is_not_seen(shell):
    shell.run_line("abcdef")
    view, _ = asked(shell, ":prob nopqrs")
    kept, unseen = what_is_seen(shell, "abcdef" + "x" + "nopqr")
    assert (view["kept"], view["unseen"]) == ((kept, unseen) if unseen > 0 else (0, 0))
    view, _ = asked(shell, ":prob nopqrstuvwxyz")
    assert view["unseen"] == what_is_seen(shell, "abcdefx" + "nopqrstuvwxy")[1]
    view, _ = asked(shell, f':branch 2 tokens=2 "{TEXT}"')
    assert view["unseen"] == what_is_seen(shell, TEXT)[1]


@pytest.mark.parametrize("context", [2, 12, 64, 65, 100, 4096])
@pytest.mark.parametrize("start", [None, 7])
def test_a_window_is_the_start_token_and_as_many_of_the_last_as_fit(context, start):
    for length in (1, context - 1, context, context + 1, 2 * context, 5 * context + 3):
        ids = [7, *range(100, 99 + length)][:length]
        seen = truncate(ids, context, start)
        assert list(seen.ids) == ids[: seen.kept] + ids[seen.kept + seen.unseen :]
        assert list(seen.dropped_ids) == ids[seen.kept : seen.kept + seen.unseen]
        assert context * 3 // 4 - 1 <= len(seen.ids) <= context or length <= context
        assert seen.kept == (start is not None and length > context)
        assert [ids[seen.position_of(index)] for index in range(len(seen.ids))] == list(seen.ids)
        assert [seen.index_of(seen.position_of(index)) for index in range(len(seen.ids))] == [
            *range(len(seen.ids))
        ]
        assert start is not None or seen.unseen == count_dropped(length, context)


def test_a_decoder_writes_on_from_a_moved_window_as_from_a_fresh_one():
    checkpoint = replace(random_checkpoint(vocab=27, context=CONTEXT), tokenizer=with_start())
    ids = [0, *np.random.default_rng(0).integers(1, 27, 30).tolist()]
    walking, fresh = make_decoder(checkpoint), make_decoder(checkpoint)
    for length in range(1, len(ids) + 1):
        fresh.trim(0)
        assert np.abs(prefill(walking, ids[:length]) - prefill(fresh, ids[:length])).max() < 1e-4
        assert walking.ids[0] == 0
