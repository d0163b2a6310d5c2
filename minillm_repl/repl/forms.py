"""The forms that a command's arguments may take: usage, completion, parsing."""

import re

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.render.export import check_overwritable
from minillm_repl.repl.arguments import (
    Argument,
    Arguments,
    Completion,
    Flag,
    Option,
    TextArgument,
    TextPair,
    Values,
    Words,
)
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.quoting import (
    TO_SCREEN,
    check_not_argument,
    mask_quoted,
    parse_leading_output,
    parse_output,
    split_word,
    translate_usage,
)
from minillm_repl.safetext import safe_line
from minillm_repl.settings import Spec, parse_value
from minillm_repl.storage.paths import user_path

Form = tuple[Argument | str, ...]
"""Arguments in their order; a string is a keyword, and stands first."""


class Forms:
    """Alternatives, of which the first is the usual one."""

    def __init__(self, *forms: Form) -> None:
        self.forms = forms

    @property
    def usage(self) -> str:
        """The usage line, without the name of the command, in the language of the user."""
        lines = (
            " ".join(part if isinstance(part, str) else part.usage for part in form)
            for form in self.forms
        )
        return translate_usage(" | ".join(filter(None, lines)))

    @property
    def completions(self) -> tuple[str, ...]:
        """The words and names of options that the prompt line completes."""
        words = list[str]()
        for part in self.parts:
            words += (part,) if isinstance(part, str) else part.completions
        return tuple(dict.fromkeys(words))

    @property
    def completion(self) -> Completion:
        """What else the prompt line completes, such as files."""
        kinds = (part.completion for part in self.parts if isinstance(part, Words))
        return next((kind for kind in kinds if kind != "nothing"), "nothing")

    @property
    def verbatim(self) -> bool:
        """Whether spaces around a text belong to it."""
        return any(isinstance(part, TextArgument) and part.verbatim for part in self.parts)

    @property
    def takes_text(self) -> bool:
        """Whether a text for the model may be among the arguments."""
        return any(isinstance(part, (TextArgument, TextPair)) for part in self.parts)

    def parse(self, text: str, *, json: bool = False) -> Arguments:
        """Read what follows a command, with `json` also where its numbers go.

        Raises UsageError for what fits no form.
        """
        output = TO_SCREEN
        if json:
            text, output = (parse_leading_output if self.verbatim else parse_output)(text)
        if output.file and output.file != "-":  # now, not after the work
            check_overwritable(user_path(output.file), overwrite=output.overwrite)
        if not self.verbatim:
            text = text.strip()
            self._check_bare_options(text)
        # Values of the other forms are there too, at their defaults: a command asks for any.
        values: Values = {"keyword": ""}
        for part in self.parts:
            values |= {} if isinstance(part, str) else part.defaults
        # The form whose keyword was typed comes first; its error is the one to tell.
        errors = list[UsageError]()
        for form in sorted(self.forms, key=lambda form: not _begins(form, text)):
            try:
                return Arguments(values | _parse_form(form, text), output)
            except UsageError as error:
                errors.append(error)
        raise errors[0]

    @property
    def parts(self) -> tuple[Argument | str, ...]:
        """The arguments and keywords of all forms."""
        return tuple(part for form in self.forms for part in form)

    def _check_bare_options(self, text: str) -> None:
        """Raise UsageError for `strength 4`, which was meant as `strength=4`."""
        names = [part.name for part in self.parts if isinstance(part, Option) and part.is_number]
        bare = re.search(rf"(?:^|\s)({'|'.join(names)})\s+[-+.\d]+(?=\s|$)", mask_quoted(text))
        if names and bare:
            raise UsageError(
                _(
                    "write {name} with =, as in {name}=2; put a text that contains it in quotes",
                    name=bare[1],
                )
            )


def _begins(form: Form, text: str) -> bool:
    """Tell whether `text` begins with the keyword of a form."""
    return bool(form) and split_word(text)[0].lower() == form[0]


def _parse_form(form: Form, text: str) -> Values:
    """Return the values of one form. Raises UsageError if `text` has another form."""
    values: Values = {}
    if form and isinstance(form[0], str):
        if not _begins(form, text):
            raise UsageError(_("{name} is missing", name=form[0]))
        values["keyword"], text = form[0], split_word(text)[1]
    arguments = [part for part in form if not isinstance(part, str)]
    # Options and flags may stand anywhere, so they go first.
    named, text = _take_named(arguments, text)
    values |= named
    ordered = [part for part in arguments if _has_order(part)]
    rest = [index for index, part in enumerate(ordered) if part.takes_rest]
    quoted = [index for index, part in enumerate(ordered) if isinstance(part, TextArgument)]
    # Index of the first argument that is read from the end of the line.
    first_after = rest[0] + 1 if rest else min(quoted, default=len(ordered))
    # Read from both ends, so that the one in the middle takes all that remains.
    for part in reversed(ordered[first_after:]):
        taken, text = part.take_last(text)
        values |= taken
    for part in ordered[:first_after]:
        taken, text = part.take(text)
        values, text = values | taken, text.strip()
    if text:
        check_not_argument(text)
        if quoted:
            word = safe_line(text[:40])
            raise UsageError(_("unexpected {word}; put a text in quotes", word=word))
        raise UsageError(_("unexpected argument {text!r}", text=safe_line(text)))
    return values


def _has_order(part: Argument) -> bool:
    """Tell whether an argument stands before or after others, and not anywhere."""
    return part.bare if isinstance(part, PlaceArgument) else not isinstance(part, Option | Flag)


def _take_named(arguments: list[Argument], text: str) -> tuple[Values, str]:
    """Take `name=value`, `--flag` and `@place` out of a text, where they stand outside quotes."""
    values: Values = {}
    options = {part.name: part for part in arguments if isinstance(part, Option)}
    for place in arguments:
        if isinstance(place, PlaceArgument):
            found_place, text = place.find(text)
            values |= found_place
    for flag in arguments:
        if isinstance(flag, Flag) and (
            found := re.search(rf"(?:^|\s){flag.word}(?=\s|$)", mask_quoted(text))
        ):
            values[flag.name], text = True, text[: found.start()] + text[found.end() :]
    while options and (found := re.search(r"(?:^|\s)([a-z]+)=(\S*)", mask_quoted(text))):
        name, value = found[1], text[slice(*found.span(2))]
        if name not in options:
            raise UsageError(
                _(
                    "unknown option {word}; available: {there}; put a text that contains it in "
                    "quotes",
                    word=safe_line(found[0].strip()),
                    there=", ".join(f"{each}=" for each in options),
                )
            )
        # A Spec only for its parser: the error then reads as that of a setting.
        values[name] = parse_value(
            Spec(parse=options[name].parse, help=""), name, value, UsageError
        )
        text = text[: found.start()] + text[found.end() :]
    for option in options.values():
        if option.name not in values:
            option.missing("")
    # Untouched without options: the spaces around a verbatim text belong to it.
    return values, text.strip() if values else text
