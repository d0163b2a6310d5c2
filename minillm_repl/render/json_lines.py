"""Prints a generation, or a training run, as JSON lines; nothing else goes to that stream."""

import json
from collections.abc import Iterable
from dataclasses import fields
from math import isfinite
from typing import IO, Any

from minillm_repl import training
from minillm_repl.generate import AnswerEvent, Finished, Prefill, as_json

_TRAINING_EVENT_NAMES = {
    training.Started: "started",
    training.TrainStep: "train_step",
    training.Evaluating: "evaluating",
    training.Evaluated: "evaluated",
    training.Saved: "saved",
    training.NotSaved: "not_saved",
    training.TrainingFinished: "finished",
}


def print_json(events: Iterable[AnswerEvent], stream: IO[str]) -> Finished:
    """Print one line per step and one for the end, each at once; return the last event.

    The schema is in docs/format.md. It has no progress of the prompt.
    """
    for event in events:
        if isinstance(event, Prefill):
            continue
        _print(as_json(event), stream)
        if isinstance(event, Finished):
            return event
    raise AssertionError("a generation ends with Finished")


def print_help_json(event: dict[str, Any], stream: IO[str]) -> None:
    """Print the help that the program gives in a model's place, and an end without a token."""
    _print(event, stream)
    finished = Finished(
        reason="care",
        text=event["text"],
        prompt_tokens=0,
        tokens=0,
        prompt_seconds=0.0,
        seconds=0.0,
    )
    _print(as_json(finished), stream)


def print_training_json(
    events: Iterable[training.TrainEvent], stream: IO[str]
) -> training.TrainingFinished:
    """Print one line per event, each at once; return the last. The schema is in docs/format.md."""
    for event in events:
        values = {field.name: json_value(getattr(event, field.name)) for field in fields(event)}
        _print({"event": _TRAINING_EVENT_NAMES[type(event)], **values}, stream)
        if isinstance(event, training.TrainingFinished):
            return event
    raise AssertionError("training ends with Finished")


def print_event(event: dict[str, Any], stream: IO[str]) -> None:
    """Print an event that is plain data already."""
    _print(json_value(event), stream)


def _print(data: dict[str, Any], stream: IO[str]) -> None:
    # ASCII passes through a stream of any encoding, lone surrogates included.
    print(json.dumps(data, ensure_ascii=True), file=stream, flush=True)


def json_value(value: Any) -> Any:
    """Return a value as JSON has it: each number in it that is not finite is null."""
    if isinstance(value, dict):
        return {name: json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    # JSON has no NaN; json.dumps would write a word that other parsers refuse.
    return None if isinstance(value, float) and not isfinite(value) else value
