"""How a model learns what follows a prompt: the same views of it, again and again in training."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minillm_repl.insight.views.changes import Moment, WatchView
from minillm_repl.model.build import LanguageModel
from minillm_repl.tokenizer.base import Token, Tokenizer
from minillm_repl.tokenizer.truncation import find_bos_token_id, truncate
from minillm_repl.views import lens
from minillm_repl.views.attn import compute_focus
from minillm_repl.views.base import Likely
from minillm_repl.views.inspected_text import InspectedText, topk_ids

_KEPT = 200  # moments, at most: beyond, every other one is forgotten
_TOP = 5


class Watch:
    """A prompt that is looked at while a model is trained."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, tuple(ids)
        self._moments: list[tuple[Moment, Tensor]] = []

    @torch.no_grad()
    def look(self, model: LanguageModel, step: int) -> Moment:
        """Return what the model makes of the prompt after so many steps, and remember it."""
        seen = truncate(self._ids, model.config.context_length, find_bos_token_id(self._tokenizer))
        subject = InspectedText(
            model, self._tokenizer, seen.ids, unseen_ids=seen.dropped_ids, prefix_length=seen.kept
        )
        final = subject.logits(last_only=True)[0].double().softmax(-1).cpu()
        top = tuple(
            Likely(Token.from_id(self._tokenizer, each), float(final[each]))
            for each in topk_ids(final, _TOP)
        )
        moment = Moment(
            step,
            top[0].prob,
            top,
            lens.compute(subject),
            compute_focus(subject),
            **subject.window_fields,
        )
        self._moments.append((moment, final))
        if len(self._moments) > _KEPT:
            del self._moments[1::2]
        return moment

    def view(self) -> WatchView | None:
        """Return all of it, each moment with the probability of what is the answer in the end;
        None if it saw none.
        """
        if not self._moments:
            return None
        answer = self._moments[-1][0].top[0].token
        moments = (replace(each, prob=float(final[answer.id])) for each, final in self._moments)
        last = self._moments[-1][0].lens
        return WatchView(last.tokens, answer, tuple(moments), unseen=last.unseen, kept=last.kept)
