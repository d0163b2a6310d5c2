"""Bits per character of a recipe's models, by source, beside n-grams; and what the models write.

python -m benchmarks.recipe MODEL.safetensors [MODEL ...] --corpus FOLDER [--samples N]

The folder is the one that the recipe has made beside its model, `NAME.corpus`. Every model sees the
end of another document before each document, and is measured on all of its characters and on its
end.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.ngrams import KneserNey, unigram_bits
from minillm_repl.chat import Message, apply_chat_template
from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.load_save import load
from minillm_repl.generate import Decoder, Finished, GenerationConfig, Sampling
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.generate import generate
from minillm_repl.generate.sampling import make_rng
from minillm_repl.training.recipe import read_recipe

PROMPTS = {
    "hangul": [
        "오늘 날씨가 정말 ",
        "아침에 일어나 보니 ",
        "친구와 함께 ",
        "옛날 옛적에 ",
        "비가 오는 날에는 ",
    ],
    "pebble": ["Once upon a time", "One day,", "The little girl"],
    "story": ["Once upon a time", "One day,", "The king", "ROMEO:\n", "The little girl"],
}
QUESTIONS = ["안녕?", "오늘 뭐 먹을까?", "심심해", "너무 피곤해", "감기에 걸렸어"]
QUESTIONS += ["주말에 뭐 하지?", "친구랑 싸웠어", "내일 시험이야", "고마워", "잘 자"]
_STRIDE = 2  # a long document is read in windows that begin half a context apart
_AT_ONCE = 32  # windows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipe", description="Measure models of a recipe."
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument(
        "--corpus",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="made by the recipe: NAME.corpus",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="look for unwanted words in so many texts",
    )
    parser.add_argument("--recipe", default="hangul", metavar="NAME")
    options = parser.parse_args()
    checkpoints = [load(path) for path in options.models]
    train = list(dict.fromkeys(record["text"] for record in _texts(options.corpus / "train.jsonl")))
    held = defaultdict[str, list[str]](list)
    for record in _texts(options.corpus / "held-out.jsonl"):
        held[record["source"]].append(record["text"])
    _print_bits(checkpoints, [path.stem for path in options.models], train, held)
    for path, checkpoint in zip(options.models, checkpoints, strict=True):
        print(f"\n{path.stem}\n")
        _print_texts(checkpoint, train, PROMPTS[options.recipe])
        if options.samples:
            _print_unwanted(checkpoint, options.samples, options.recipe)


def _texts(path: Path) -> Iterator[dict[str, str]]:
    # Conversations are left out: of them only the answers are learnt.
    with path.open(encoding="utf-8") as lines:
        yield from (record for record in map(json.loads, lines) if "text" in record)


def _print_bits(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    train: Sequence[str],
    held: dict[str, list[str]],
) -> None:
    tokenizer = checkpoints[0].tokenizer
    everything = "".join((*train, *(text for documents in held.values() for text in documents)))
    known = str.maketrans(dict.fromkeys(tokenizer.find_unknown(everything), "\ufffd"))
    seen, kinds = (
        [text.translate(known) for text in train],
        len(set(everything.translate(known))) + 1,
    )
    ngrams = KneserNey(seen, 5, kinds)
    print(f"| bits per character | characters | unigram | 5-gram | {' | '.join(names)} |")
    print("|---|--:|--:|--:|" + "--:|" * len(names))
    for source, documents in held.items():
        characters = sum(map(len, documents))
        texts = [text.translate(known) for text in documents]
        totals = [sum(unigram_bits(seen, texts, kinds)), sum(map(ngrams.bits, texts))]
        totals += [sum(_bits(checkpoint, documents)) for checkpoint in checkpoints]
        shown = " | ".join(f"{total / characters:.3f}" for total in totals)
        print(f"| {source} | {characters:,} | {shown} |", flush=True)


def _bits(checkpoint: Checkpoint, documents: Sequence[str]) -> Iterator[float]:
    """Yield the surprisal of documents' windows, in bits: in all, of each token and end once."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from minillm_repl.model.build import build

    model, context, end = (
        build(checkpoint.config, checkpoint.tensors),
        checkpoint.config.context_length,
        checkpoint.eos_token_ids[0],
    )
    # ids, and how many of the last are targets
    stride, windows = context // _STRIDE, list[tuple[list[int], int]]()
    for document in documents:
        ids = [end, *checkpoint.tokenizer.encode(document), end]
        done = 1
        while done < len(ids):
            new = min(len(ids) - done, stride if done > 1 else context)
            windows.append((ids[max(0, done + new - context - 1) : done + new], new))
            done += new
    windows.sort(key=lambda window: len(window[0]))
    for first in range(0, len(windows), _AT_ONCE):
        group = windows[first : first + _AT_ONCE]
        longest = max(len(ids) for ids, _ in group)
        batch = torch.tensor([[*ids, *[end] * (longest - len(ids))] for ids, _ in group])  # (b, t)
        targets = batch[:, 1:].clone()
        for row, (ids, new) in enumerate(group):
            targets[row, : len(ids) - 1 - new] = targets[row, len(ids) - 1 :] = -100
        with torch.no_grad():
            logits = model(batch[:, :-1]).float().flatten(0, 1)
        yield F.cross_entropy(
            logits, targets.flatten(), reduction="sum", ignore_index=-100
        ).item() / math.log(2)


def _print_texts(checkpoint: Checkpoint, train: Sequence[str], prompts: list[str]) -> None:
    decoder, everything = make_decoder(checkpoint, threads=1), "\n".join(train)
    tokenizer = checkpoint.tokenizer
    first = next(
        iter(
            generate(
                decoder,
                tokenizer,
                tokenizer.encode(prompts[0]),
                GenerationConfig(max_tokens=1, n_candidates=10),
                make_rng(0),
            )
        )
    )
    print(
        f"{prompts[0]!r}",
        ", ".join(
            f"{each.text!r} {each.model_prob:.1%}"
            for each in first.top  # type: ignore[union-attr]
        ),
        "\n",
    )
    for temperature, times in ((0.0, 1), (0.5, 1), (0.8, 4), (1.0, 1)):
        for seed, prompt in enumerate(prompts * times):
            text = prompt + write(checkpoint, decoder, tokenizer.encode(prompt), temperature, seed)
            copied = longest_copy(text, everything)
            print(
                f"- {temperature:g} · {text!r} · {len(copied)} characters stand in the text it "
                "learnt from"
            )
    if template := checkpoint.chat_template:
        for question in QUESTIONS:
            ids = apply_chat_template(
                template, tokenizer, [Message("user", question)], parse_special=False
            )
            print(f"- {question} → {write(checkpoint, decoder, ids, 0.0, 0)}")


def write(
    checkpoint: Checkpoint, decoder: Decoder, ids: list[int], temperature: float, seed: int
) -> str:
    """Return what the model writes after `ids`, up to the end of its document."""
    sampling, tokenizer = Sampling(temp=temperature), checkpoint.tokenizer
    *_, finished = generate(
        decoder,
        tokenizer,
        ids,
        GenerationConfig(max_tokens=120, eos_token_ids=checkpoint.eos_token_ids, sampling=sampling),
        make_rng(seed),
    )
    assert isinstance(finished, Finished)
    return finished.text


def longest_copy(text: str, learnt: str) -> str:
    """Return the longest part of a text that stands in what was learnt from, letter by letter."""
    best, start = "", 0
    for stop in range(1, len(text) + 1):
        while start < stop and stop - start > len(best) and text[start:stop] not in learnt:
            start += 1
        if stop - start > len(best):
            best = text[start:stop]
    return best


def _print_unwanted(checkpoint: Checkpoint, samples: int, recipe: str) -> None:
    """Print all of many texts in which there is one of the recipe's unwanted words."""
    prompts = [*PROMPTS[recipe], "질문: "]
    unwanted, decoder = read_recipe(recipe).excluded, make_decoder(checkpoint, threads=1)
    found = 0
    for seed in range(samples):
        prompt = prompts[seed % len(prompts)]
        text = prompt + write(checkpoint, decoder, checkpoint.tokenizer.encode(prompt), 1.0, seed)
        if unwanted.search(text):
            found += 1
            print(f"- {text!r}")
    print(f"\n{found} of {samples:,} texts hold a word of the list")


if __name__ == "__main__":
    main()
