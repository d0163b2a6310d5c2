"""Write the talks as JSON lines that `:train` reads: `python -m tools.talk talk.jsonl`."""

import argparse
import json
import sys
from pathlib import Path

from minillm_repl.training.talk import TALK_FOLDERS, Talk, as_record, read_conversations, read_talks


def main() -> None:
    """Write the conversations, and print how many talks there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="without it, only the counts are printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4, help="how often each talk is begun")
    parser.add_argument("--language", choices=TALK_FOLDERS, default="ko")
    asked = parser.parse_args()
    print(counts(read_talks(TALK_FOLDERS[asked.language])), file=sys.stderr)
    if asked.out:
        conversations = read_conversations(asked.language, asked.seed, asked.rounds)
        lines = (json.dumps(as_record(turns), ensure_ascii=False) + "\n" for turns in conversations)
        asked.out.write_text("".join(lines), encoding="utf-8")
        print(f"{len(conversations):,} conversations in {asked.out}", file=sys.stderr)


def counts(talks: list[Talk]) -> str:
    """Return how much is written: talks, and the wordings of both sides."""
    single = [talk for talk in talks if len(talk.turns) == 2]
    longer = [talk for talk in talks if len(talk.turns) > 2]
    lines = {  # those that branches share are counted once
        (talk.place.partition(":")[0], talk.turns[: i + 2])
        for talk in talks
        for i in range(0, len(talk.turns), 2)
    }
    said = sum(len(turns[-2]) for _file, turns in lines)
    answers = sum(len(turns[-1]) for _file, turns in lines)
    exchanges = sum(len(turns[-2]) * len(turns[-1]) for _file, turns in lines)
    return (
        f"{len(single):,} single exchanges and {len(longer):,} longer talks are written, in which "
        f"{said:,} wordings of a user get {answers:,} answers: {exchanges:,} different pairs"
    )


if __name__ == "__main__":
    main()
