"""Hotwords of the CTC decoder: phrases to be preferred, as an Aho-Corasick automaton over tokens.

Each token of a phrase that is matched earns `weight`; what an unfinished phrase has earned is taken back when it breaks
off. Following a token costs the same however many phrases there are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def hotword_automaton(
    phrases: Iterable[tuple[list[int], float]], num_tokens: int, word_start: int | None
) -> tuple[list[Tensor], int, float]:
    """The automaton's tensors (see `ops.NgramLM`), its start state and the most that one token can gain.

    phrases: token ids and the weight of each token. word_start: the token that comes before a word (and behind the last
    one); phrases are matched from there on only and have to be followed by it, and the decoder starts behind it. None:
    tokens say themselves where words begin.
    """
    prefix = [] if word_start is None else [word_start]
    children: list[dict[int, int]] = [{}]
    earned, bonus, ends = [0.0], [0.0], [False]  # earned: since the last finished phrase
    for tokens, weight in phrases:
        tokens = [*tokens, word_start] if word_start is not None and tokens[-1:] != [word_start] else tokens
        node = 0
        for i, token in enumerate([*prefix, *tokens]):
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
                bonus.append(0.0)
                ends.append(False)
            node = children[node][token]
            bonus[node] = max(bonus[node], 0.0 if i < len(prefix) else weight)
        ends[node] = True
    earned = [0.0] * len(children)
    for node, following in enumerate(children):  # parents have lower numbers than their children
        for child in following.values():
            earned[child] = 0.0 if ends[child] else earned[node] + bonus[child]
    return _flatten(children, bonus, earned, num_tokens, prefix)


def _flatten(
    children: list[dict[int, int]], bonus: list[float], earned: list[float], num_tokens: int, prefix: list[int]
) -> tuple[list[Tensor], int, float]:
    """Number the states breadth first, so that a state's back-off state has a lower number."""
    order, state_of, backoff = [0], {0: 0}, {0: -1}
    for node in order:
        for token, child in sorted(children[node].items()):
            state_of[child] = len(order)
            order.append(child)
            back = backoff[node]
            while back >= 0 and token not in children[back]:
                back = backoff[back]
            backoff[child] = children[back][token] if back >= 0 else 0
    splits, words, scores, nexts = [0], [], [], []
    for node in order:
        following = children[node]
        for token in range(num_tokens) if node == 0 else sorted(following):
            words.append(token)
            scores.append(bonus[following[token]] if token in following else 0.0)
            nexts.append(state_of[following[token]] if token in following else 0)
        splits.append(len(words))
    back_states = [state_of[backoff[node]] if node else -1 for node in order]
    # Going back to a shorter match leaves what that one would have earned.
    back_scores = [earned[backoff[node]] - earned[node] if node else 0.0 for node in order]
    ints = [torch.tensor(x, dtype=torch.int32) for x in (splits, words, nexts, back_states)]
    floats = [torch.tensor(x, dtype=torch.float32) for x in (scores, back_scores)]
    start = state_of[children[0][prefix[0]]] if prefix and prefix[0] in children[0] else 0
    return [ints[0], ints[1], floats[0], ints[2], ints[3], floats[1]], start, max(earned) + max(bonus)
