"""The model over HTTP, in the shapes of OpenAI's API: `minillm-repl --serve` (an extra, `[serve]`).

`requests.py` reads what a client asks for, `engine.py` computes it in one thread, `answers.py`
writes events as JSON, `service.py` has what each route does, `server.py` the limits.
docs/server.md describes it.
"""
