"""The address of a server, and the key that goes to it and to nobody else."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server is, without a path, and the key for it."""

    url: str
    key: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """The address without its scheme: `127.0.0.1:8080`."""
        return urlsplit(self.url).netloc

    @property
    def sendable_key(self) -> str:
        """The key, where nobody on the way can read it; else empty."""
        parts = urlsplit(self.url)
        is_private = parts.scheme == "https" or parts.hostname in _LOOPBACK
        return self.key if is_private else ""


def parse_url(text: str, key: str = "") -> Address:
    """Return the address of a URL; a path `/v1` at its end is the same. Raises UserError."""
    try:
        parts = urlsplit(text)
        is_valid = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.scheme not in ("http", "https") or not text.isprintable():
        raise UserError(_("{url} is no address of a server", url=safe_line(text[:200])))
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            _("an address has no key, query or fragment: a key goes into MINILLM_API_KEY")
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(_("the key for the server has characters that a key cannot have"))
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(url=f"{parts.scheme}://{parts.netloc}{path}", key=key)
