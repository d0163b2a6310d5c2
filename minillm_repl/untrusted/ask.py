"""Asking the other process (process.py)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line

_PROCESS = Path(__file__).with_name("process.py")
_SECONDS = 10  # for everything, the start of the process included; the work takes milliseconds


def ask(job: str, what: str, **request: Any) -> Any:
    """Have a job done: `template` renders a chat template, `tokenizer` tries a tokenizer's description.

    Raises UserError naming `what` if that is refused, fails, or takes too much time or memory.
    """
    # -P: nothing is imported from the folder that the user happens to be in.
    command = [sys.executable, "-P", str(_PROCESS), job]
    try:
        done = subprocess.run(  # noqa: S603 - our own file
            command, input=json.dumps(request).encode(), capture_output=True, timeout=_SECONDS, check=False
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise UserError(f"{what} took more than {_SECONDS} seconds") from None
    except ValueError:  # it was ended, and has not answered
        raise UserError(f"{what} broke the library that reads it, or used too much memory or time") from None
    if "error" in answer:
        raise UserError(f"{what} is refused: {safe_line(answer['error']):.200}")
    return answer["answer"]
