"""What a reader takes for one character, in the line that is typed: how it is shown, and the
keys that move by it.
"""

from bisect import bisect_left
from collections.abc import Callable

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.utils import explode_text_fragments

from minillm_repl.safetext import graphemes, safe, strip_joiners


class SafeClusterProcessor(Processor):
    """Shows as `�` what could steer a terminal and prompt_toolkit lets through, as in file names.

    Clusters are shown in their parts, whose cells prompt_toolkit counts: a terminal may draw a
    family as one, or three.
    """

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Replace each cluster, and tell where each character of the line has gone."""
        fragments = explode_text_fragments(transformation_input.fragments)
        shown: StyleAndTextTuples = []
        offsets, offset = [], 0  # of each character: in the line that is shown
        for cluster in graphemes("".join(text for _style, text, *_handler in fragments)):
            offsets += [offset] * len(cluster)
            text = "".join(map(_visible, strip_joiners(cluster)))
            shown.append((fragments[len(offsets) - len(cluster)][0], text))
            offset += len(text)
        offsets.append(offset)
        return Transformation(
            shown,
            lambda place: (
                offsets[place] if place < len(offsets) else offset + place - len(offsets) + 1
            ),
            lambda place: bisect_left(offsets, place),
        )


def _visible(character: str) -> str:
    return character if character < "\u00a0" or safe(character) == character else "\ufffd"


def cluster_key_bindings() -> KeyBindings:
    """Return the keys that move over, or take away, what a reader takes for one character."""
    keys = KeyBindings()

    def length_before(event: KeyPressEvent) -> int:
        text = event.current_buffer.document.current_line_before_cursor
        return len([*graphemes(text)][-1]) if text else 1

    def length_after(event: KeyPressEvent) -> int:
        text = event.current_buffer.document.current_line_after_cursor
        return len(next(graphemes(text))) if text else 1

    for name in ("left", "c-b"):
        keys.add(name)(
            lambda event: event.current_buffer.cursor_left(event.arg * length_before(event))
        )
    for name in ("right", "c-f"):
        keys.add(name)(
            lambda event: event.current_buffer.cursor_right(event.arg * length_after(event))
        )
    keys.add("backspace")(
        lambda event: _delete_clusters(
            event, length_before(event), event.current_buffer.delete_before_cursor
        )
    )
    keys.add("delete")(
        lambda event: _delete_clusters(event, length_after(event), event.current_buffer.delete)
    )
    return keys


def _delete_clusters(event: KeyPressEvent, count: int, delete: Callable[[int], str]) -> None:
    if not delete(event.arg * count):
        event.app.output.bell()
