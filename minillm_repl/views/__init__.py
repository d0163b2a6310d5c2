"""The views: each file holds one way to look at a model, from the numbers to the command.

A view's file has four parts, in this order:

- a frozen dataclass, `class LensView(View, Truncation)`: plain numbers and labels, no tensors;
- `compute(inspected, ...) -> LensView`, which reads an `InspectedText` (a model and a text) and
  raises `UserError` for a layer or a position that does not exist;
- the drawing, `LensView.draw(width)`;
- the command, whose docstring is its help and whose `example` a test runs.

Without a terminal, the same parts work alone:

    from minillm_repl.views import lens
    from minillm_repl.views.inspected_text import InspectedText

    inspected = InspectedText(language_model, tokenizer, ids)
    view = lens.compute(inspected, position=-1, top=5)  # LensView
    view.rows[-1].top[0].prob                           # the numbers
    rich.print(view)                                    # the picture
    view.to_dict()                                      # what `--json` writes
    view                                                # in a notebook, the picture too

Nothing here imports torch before something is computed. What views share is in base.py (`View`,
what the commands read and where their output goes) and inspected_text.py (`InspectedText`, places
in the residual stream, top-k, rank, KL). `render` has the shared drawing: bars, tables, strips of
tokens.
"""
