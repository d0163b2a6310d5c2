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
_OUT_OF_MEMORY = N_("it used too much memory")  # what the process says then
_TIMEOUT_SECONDS = (
    10  # for everything, the start of the process included; the work takes milliseconds
)


def run_sandboxed(job: str, what: str, **request: Any) -> Any:
    """Have a job done: `template` renders a chat template, `tokenizer` tries a description.

    Raises UserError naming `what` if that is refused, fails, or takes too much time or memory.
    """
    # -P: nothing is imported from the folder that the user happens to be in. A group of its own:
    # Ctrl-C is not for it.
    command = [sys.executable, "-P", str(PROCESS), job]
    try:
        completed = subprocess.run(  # noqa: S603 - our own file
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            process_group=0,
        )
        answer = json.loads(completed.stdout)
    except subprocess.TimeoutExpired:
        raise UserError(
            _("{what} took more than {seconds} seconds", what=what, seconds=_TIMEOUT_SECONDS)
        ) from None
    except ValueError:  # it was ended, and has not answered
        raise UserError(
            _(
                "{what}: the library that reads it crashed, or used too much memory or time",
                what=what,
            )
        ) from None
    if "error" in answer:
        error = (
            _(_OUT_OF_MEMORY) if answer["error"] == _OUT_OF_MEMORY else safe_line(answer["error"])
        )
        raise UserError(_("{what} cannot be used: {error:.200}", what=what, error=error))
    return answer["answer"]
