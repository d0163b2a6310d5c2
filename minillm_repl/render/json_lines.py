"""Prints a generation as JSON lines; nothing else goes to that stream."""

import json
from collections.abc import Iterable
from typing import IO

from minillm_repl.engine.events import Finished, Step, as_json


def print_json(events: Iterable[Step | Finished], stream: IO[str]) -> Finished:
    """Print one line per event, each at once; return the last. The schema is in docs/format.md."""
    for event in events:
        print(json.dumps(as_json(event), ensure_ascii=True), file=stream, flush=True)
        if isinstance(event, Finished):
            return event
    raise AssertionError("a generation ends with Finished")
