"""However problems are cut, each gets its own solution, and no more of them are in memory than allowed."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tb_optax._spectra.stacks import alike, solve_in_chunks


def test_alike_keeps_the_order_of_kinds_and_of_items():
    assert alike(["a1", "b1", "a2", "c1", "b2"], lambda item: item[0]) == [["a1", "a2"], ["b1", "b2"], ["c1"]]


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
