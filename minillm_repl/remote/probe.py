"""Finds out which server answers at an address, and what it really tells of its model."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.remote import Json, numbers
from minillm_repl.remote.engines import Engine, own
from minillm_repl.remote.http import Connection, ServerError
from minillm_repl.safetext import safe_line

_MAX_MODELS = 1_000


def list_models(connection: Connection) -> list[Json]:
    """Return the models of a server, as it describes them. Raises ServerError."""
    found = numbers.items(numbers.fields(connection.get("/v1/models")).get("data"))
    return [
        each for each in map(numbers.fields, found[:_MAX_MODELS]) if numbers.text(each.get("id"))
    ]


def open_engine(connection: Connection, name: str = "") -> Engine:
    """Return the engine of a server, for the model `name`, or its first one. Raises UserError."""
    model = _choose(connection, list_models(connection), name)
    if model.get("owned_by") == own.NAME:
        return own.OwnEngine(connection, own.facts(connection, model))
    raise ServerError(_("{server} is no server that is known", server=connection.address.name))


def _choose(connection: Connection, models: list[Json], name: str) -> Json:
    """Return the model of a name, or the first. Raises UserError that names those there are."""
    server = connection.address.name
    if not models:
        raise ServerError(_("{server} has no model", server=server))
    named = [each for each in models if each["id"] == name]
    if not name or named:
        return (named or models)[0]
    names = ", ".join(safe_line(each["id"][:80]) for each in models[:10])
    raise UserError(
        _("{server} has no model {name}: it has {names}",
          server=server, name=safe_line(name), names=names)
    )  # fmt: skip
