"""However matrices are divided, each gets its own solution, and no more of them are in memory than allowed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import tb_optax
from tb_optax._layers.layer import resolve_layers
from tb_optax._spectra.execute import solve_in_chunks
from tb_optax._spectra.plan import Section, group_by, plan_chunks, plan_spectra


def test_groups_and_items_keep_their_order():
    assert group_by(["a1", "b1", "a2", "c1", "b2"], lambda item: item[0]) == [["a1", "a2"], ["b1", "b2"], ["c1"]]


def make_of(problems, devices):
    """Stacks as devices make them: each one's share of every section, and then what fills it up."""

    def make(chunk):
        parts = []
        for device in range(devices):
            own = []
            for section in chunk.sections:
                ours = problems[section.group][section.start : section.stop]
                share = ours[device * section.share : (device + 1) * section.share]
                own.append(np.pad(share, ((0, section.share - len(share)), (0, 0)), constant_values=-1))
            own = np.concatenate(own)
            parts.append(np.pad(own, ((0, chunk.length - len(own)), (0, 0)), constant_values=-1))
        return jnp.asarray(np.concatenate(parts))

    return make


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    most=st.integers(1, 12),
    devices=st.integers(1, 4),
)
def test_chunks_give_what_one_stack_gives(counts, most, devices):
    problems = [100.0 * i + np.arange(count, dtype=np.float32)[:, None] for i, count in enumerate(counts)]
    chunks, stacks = plan_chunks(counts, most, devices), []

    def solve(stack):
        stacks.append(len(stack))
        return stack[:, 0] + 1

    solved = solve_in_chunks(chunks, make_of(problems, devices), solve)
    np.testing.assert_array_equal(solved, np.concatenate(problems)[:, 0] + 1)
    assert len(stacks) == 1, "the solver is compiled once"
    assert stacks[0] == devices * chunks[0].length <= devices * most
    assert len(chunks) == math.ceil(sum(math.ceil(count / devices) for count in counts) / most)


def test_a_device_has_a_share_of_each_section():
    first, second = plan_chunks([5, 8], most=2, devices=4)
    assert first.sections == (Section(0, 0, 5, share=2),)  # 2, 2, 1 and none
    assert second.sections == (Section(1, 0, 8, share=2),)
    np.testing.assert_array_equal(first.positions(), range(5))
    (both,) = plan_chunks([5, 8], most=4, devices=4)
    np.testing.assert_array_equal(both.positions(), [0, 1, 4, 5, 8, 2, 3, 6, 7, 10, 11, 14, 15])


def test_chunks_under_vmap_stay_chunks():
    """A switch whose index is batched would make every chunk at once."""
    kernels = jnp.arange(12.0).reshape(2, 6, 1)

    def solved(kernel):
        make = lambda chunk: kernel[chunk.sections[0].start : chunk.sections[0].stop]
        return solve_in_chunks(plan_chunks([6], most=2, devices=1), make, lambda stack: 2 * stack[:, 0])

    np.testing.assert_array_equal(jax.vmap(solved)(kernels), 2 * kernels[..., 0])
    assert "cond" in str(jax.make_jaxpr(jax.vmap(solved))(kernels))


KERNELS = [(64, 64), (64, 128), (128, 64), (3, 3, 64, 64), (5, 64, 128), (3, 200, 90)]


@given(
    shapes=st.lists(st.sampled_from(KERNELS), min_size=1, max_size=6),
    max_bytes=st.sampled_from([1, 10**5, 10**6, 2**30]),
    devices=st.sampled_from([1, 3, 8]),
    windows=st.booleans(),
)
def test_a_plan_solves_every_matrix_once_within_its_memory(shapes, max_bytes, devices, windows):
    """Arrays of three axes are stacks here."""
    leaves = {f"w{i}": jax.ShapeDtypeStruct(shape, jnp.float32) for i, shape in enumerate(shapes)}
    layers = [tb_optax.Layer(name, name, layer_axes=(0,) * (len(leaf.shape) == 3)) for name, leaf in leaves.items()]
    layers, _ = resolve_layers(layers, leaves)
    options = tb_optax.Exact(max_bytes), tb_optax.Windows(20, grid=3) if windows else None
    plan = plan_spectra(layers, leaves, *options, gram=True, devices=devices)
    assert sorted(layer.name for batch in plan.batches for layer in batch.layers) == sorted(leaves)
    for batch in plan.batches:
        assert {layer.problem for layer in batch.layers} == {batch.layers[0].problem}
        assert [layer for pool in batch.pools for layer in pool] == list(batch.layers)
        assert sorted(layer.name for group in batch.groups for layer in group) == sorted(
            layer.name for layer in batch.layers
        )
        solved = [0] * len(batch.groups)
        for chunk in batch.chunks:
            assert sum(section.share for section in chunk.sections) <= chunk.length
            largest = max(layer.bytes_each(devices) for layer in batch.layers)
            assert chunk.length == 1 or chunk.length * largest <= max_bytes
            for section in chunk.sections:
                assert section.start == solved[section.group]
                solved[section.group] = section.stop
        assert solved == [sum(layer.count for layer in group) for group in batch.groups]
    assert len(str(plan).splitlines()) == len(plan.batches)
