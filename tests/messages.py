"""The interface's texts, from the source into the Korean catalog: `python -m tests.messages`.

Translations that are there stay, texts that are gone go, and what is not translated yet is printed.
"""

import io
import sys
from datetime import UTC, datetime

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from minillm_repl import commands, views
from minillm_repl.configuration import Launch
from minillm_repl.repl.registry import GROUPS, discover
from minillm_repl.repl.settings import Settings
from minillm_repl.settings import specs
from minillm_repl.training.plan import TrainPlan
from tests.conftest import ROOT

PACKAGE = ROOT / "minillm_repl"
PO = PACKAGE / "locale" / "ko" / "LC_MESSAGES" / "minillm.po"
KEYWORDS = {"_": (1,), "_n": (1, 2), "N_": (1,)}
# the others change with each run
HEADERS = ("Language:", "Plural-Forms:", "MIME-Version:", "Content-")


def extracted():
    """All texts: those marked in the source, and those that commands and settings are made of."""
    catalog = Catalog()
    for _file, _line, message, _comments, context in extract_from_dir(
        PACKAGE, [("**.py", "python")], {}, KEYWORDS
    ):
        catalog.add(message, context=context)
    for text in {*GROUPS, *_of_commands(), *_of_settings()} - {""}:
        catalog.add(text)
    return catalog


def _of_commands():
    for command in discover(commands, views):
        yield from (command.summary, command.details)


def _of_settings():
    for settings in (Launch, Settings, TrainPlan):
        for spec in specs(settings).values():
            yield from (spec.help, spec.unit)


def read():
    """The catalog as it is in the file."""
    with PO.open("rb") as file:
        return read_po(file, locale="ko")


def written(catalog):
    """The .po file, whose lines do not move when the source's do."""
    buffer = io.BytesIO()
    write_po(buffer, catalog, width=None, no_location=True, sort_output=True, ignore_obsolete=True)
    header, blank, texts = buffer.getvalue().decode().partition("\n\n")
    kept = [
        line
        for line in header.splitlines()
        if not line.startswith('"') or line[1:].startswith(HEADERS)
    ]
    return ("\n".join(kept) + blank + texts).encode()


def compiled(catalog):
    """The .mo file, which the program reads."""
    # the same texts, the same file
    catalog.creation_date = catalog.revision_date = datetime.fromtimestamp(0, UTC)
    buffer = io.BytesIO()
    write_mo(buffer, catalog)
    return buffer.getvalue()


def main():
    catalog = read()
    catalog.update(extracted(), no_fuzzy_matching=True, update_header_comment=False)
    for message in catalog:
        message.flags.discard("python-format")  # `100 % of` is none
    PO.write_bytes(written(catalog))
    PO.with_suffix(".mo").write_bytes(compiled(catalog))
    missing = [message.id for message in catalog if message.id and not message.string]
    print(
        *map(repr, missing), f"{len(catalog)} texts, {len(missing)} without a translation", sep="\n"
    )
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
