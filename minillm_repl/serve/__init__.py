"""The model over HTTP, in the shapes of OpenAI's API: `minillm-repl --serve` (an extra, `[serve]`).

`requests.py` reads what a client asks for, `engine.py` computes it in one thread, `answers.py`
writes events as JSON, `service.py` has what each route does, `server.py` the limits.
docs/server.md describes it.
"""


class RequestError(Exception):
    """A request that is refused: an HTTP status, and why."""

    def __init__(self, status: int, message: str, field_name: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field_name = status, message, field_name
