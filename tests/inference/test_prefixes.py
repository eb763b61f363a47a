from __future__ import annotations

import numpy as np

from bitttt_jax.inference import steps
from bitttt_jax.inference.prefixes import SavedState, SavedStates, common_prefix
from bitttt_jax.inference.row_state import state_bytes
from tests.inference import samples


def saved(name: str, tokens: list[int]) -> SavedState:
    model = samples.model(name)
    state = steps.start(model.config, model.params, 1, 256)
    position_B = np.full(1, len(tokens), np.int32)
    return SavedState(np.array(tokens), state._replace(position_B=position_B))


def found(states: SavedStates, prompt: list[int]) -> list[int] | None:
    best = states.find(np.array(prompt))
    if best is None:
        return None
    assert int(best.state.position_B[0]) == len(best.token_T)
    return best.token_T.tolist()


def test_common_prefix():
    lengths = [
        common_prefix(np.array(one), np.array(other))
        for one, other in [([], [1]), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 4, 3]), ([2], [1])]
    ]
    assert lengths == [0, 2, 1, 0]


def test_the_longest_beginning_is_found():
    for name in ("attention", "ttt_linear"):
        states = SavedStates(samples.model(name).config, 2**30)
        for tokens in ([1, 2], [1, 2, 3, 4], [7, 8, 9]):
            states.add(saved(name, tokens))
        part = [1, 2, 3] if name == "attention" else [1, 2]
        assert found(states, [1, 2, 3, 5]) == part
        assert found(states, [1, 2, 3, 4, 5]) == [1, 2, 3, 4]
        # The last token of a prompt is always read.
        assert found(states, [1, 2, 3, 4]) == part
        assert found(states, [5, 6]) is None


def test_states_that_others_make_superfluous_go():
    for name, kept in (("attention", 1), ("ttt_linear", 2)):
        states = SavedStates(samples.model(name).config, 2**30)
        one = saved(name, [1, 2])
        states.add(one)
        states.add(saved(name, [1, 2, 3]))
        assert states.num_bytes == kept * state_bytes(one.state)
        states.add(saved(name, [1, 2, 3]))
        assert states.num_bytes == kept * state_bytes(one.state)


def test_those_that_were_not_used_for_longest_go_first():
    one, two, three = (saved("ttt_linear", [n, n]) for n in (1, 2, 3))
    states = SavedStates(samples.model("ttt_linear").config, 2 * state_bytes(one.state))
    states.add(one)
    states.add(two)
    assert found(states, [1, 1, 5]) == [1, 1]
    states.add(three)
    assert found(states, [2, 2, 5]) is None
    assert found(states, [1, 1, 5]) == [1, 1]
    assert found(states, [3, 3, 5]) == [3, 3]


def test_nothing_is_kept_in_no_bytes():
    states = SavedStates(samples.model("attention").config, 0)
    states.add(saved("attention", [1, 2]))
    assert found(states, [1, 2, 3]) is None
