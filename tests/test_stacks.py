"""However problems are put together and cut, each gets its own solution, and no more of them are in memory than allowed."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tb_optax._stacks import solve_alike, solve_in_chunks


def test_each_item_gets_its_own_solutions_whatever_stands_between():
    items = {"a": np.ones((2, 3)), "b": np.ones((1, 4)), "c": 5 * np.ones((3, 3)), "d": 7 * np.ones((2, 4))}
    calls = []

    def sums(own):
        calls.append(len(own))
        return jnp.concatenate(own).sum(axis=1)

    solved = solve_alike(items, kind=lambda item: item.shape[1], count=len, solve=sums)
    assert list(solved) == list(items) and calls == [2, 2]
    assert {name: own.tolist() for name, own in solved.items()} == {"a": [3, 3], "b": [4], "c": [15] * 3, "d": [28] * 2}


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4), at_once=st.integers(1, 25))
def test_chunks_give_what_one_stack_gives(counts, at_once):
    problems = [10.0 * i + np.arange(count, dtype=np.float32)[:, None] for i, count in enumerate(counts)]
    stacks = []

    def solve(stack):
        stacks.append(len(stack))
        return stack[:, 0] + 1

    solved = solve_in_chunks(counts, lambda maker, start, stop: jnp.asarray(problems[maker][start:stop]), solve, at_once)
    np.testing.assert_array_equal(solved, np.concatenate(problems)[:, 0] + 1)
    assert len(stacks) == 1, "the solver is compiled once"
    assert stacks[0] <= at_once


def test_chunks_under_vmap_stay_chunks():
    """A switch whose index is batched would make every chunk at once."""
    kernels = jnp.arange(12.0).reshape(2, 6, 1)

    def solved(kernel):
        return solve_in_chunks([6], lambda _, start, stop: kernel[start:stop], lambda stack: 2 * stack[:, 0], at_once=2)

    np.testing.assert_array_equal(jax.vmap(solved)(kernels), 2 * kernels[..., 0])
    assert "cond" in str(jax.make_jaxpr(jax.vmap(solved))(kernels))
