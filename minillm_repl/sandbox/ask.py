"""Asking the other process (process.py)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line

PROCESS = Path(__file__).with_name("process.py")
_TOO_MUCH = N_("it used too much memory")  # what the process says then
_SECONDS = 10  # for everything, the start of the process included; the work takes milliseconds


def ask(job: str, what: str, **request: Any) -> Any:
    """Have a job done: `template` renders a chat template, `tokenizer` tries a tokenizer's
    description.

    Raises UserError naming `what` if that is refused, fails, or takes too much time or memory.
    """
    # -P: nothing is imported from the folder that the user happens to be in. A group of its own:
    # Ctrl-C is not for it.
    command = [sys.executable, "-P", str(PROCESS), job]
    try:
        done = subprocess.run(  # noqa: S603 - our own file
            command,
            input=json.dumps(request).encode(), capture_output=True, timeout=_SECONDS, check=False, process_group=0,
        )  # fmt: skip
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise UserError(
            _("{what} took more than {seconds} seconds", what=what, seconds=_SECONDS)
        ) from None
    except ValueError:  # it was ended, and has not answered
        raise UserError(
            _("{what} broke the library that reads it, or used too much memory or time", what=what)
        ) from None
    if "error" in answer:
        error = _(_TOO_MUCH) if answer["error"] == _TOO_MUCH else safe_line(answer["error"])
        raise UserError(_("{what} is refused: {error:.200}", what=what, error=error))
    return answer["answer"]
