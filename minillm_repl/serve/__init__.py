"""The model over HTTP, in the shapes of OpenAI's API: `minillm-repl --serve` (an extra, `[serve]`).

`requests.py` reads what a client asks for, `engine.py` computes it in one thread, `answers.py`
writes events as JSON, `server.py` has the routes and the limits. docs/server.md describes it.
"""
