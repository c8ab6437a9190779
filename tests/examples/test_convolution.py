import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.paper.vision.convolution import conv_general_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("window", "padding"), [(3, ((1, 1), (1, 1))), (1, ((0, 0), (0, 0))), (3, "SAME"), (3, "VALID")])
def test_value_and_gradients_are_those_of_jax(strides, window, padding):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (2, 9, 6, 3))
    kernel = jax.random.normal(keys[1], (window, window, 3, 5))

    def outcome(convolve):
        value, pullback = jax.vjp(lambda *operands: convolve(*operands, strides, padding), images, kernel)
        return value, pullback(jnp.cos(value))

    theirs = lambda *args: jax.lax.conv_general_dilated(*args, dimension_numbers=LAYOUT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), outcome(conv_general_dilated), outcome(theirs))


def test_gradients_in_a_loop_are_in_the_layout_of_the_cpu_compilers_fast_routine():
    images, kernel = jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 3))

    def loop(kernel):
        loss = lambda kernel: conv_general_dilated(images, kernel, (1, 1), "SAME").sum()
        return jax.lax.scan(lambda kernel, _: (kernel - jax.grad(loss)(kernel), None), kernel, length=3)[0]

    lowered = jax.jit(loop).lower(kernel).compile().as_text()
    layouts = {line.split("dim_labels=")[1].split(",")[0] for line in lowered.splitlines() if "dim_labels=" in line}
    assert layouts == {"b01f_01io->b01f"}


@pytest.mark.parametrize(
    "changes", [dict(kernel_dilation=2), dict(input_dilation=(1, 2)), dict(feature_group_count=2)], ids=str
)
def test_what_it_is_not_written_for_is_an_error(changes):
    conv = nnx.Conv(4, 4, (3, 3), conv_general_dilated=conv_general_dilated, rngs=nnx.Rngs(0), **changes)
    with pytest.raises(NotImplementedError, match=r"=.*2.* this convolution is written for 1"):
        conv(jnp.ones((2, 8, 8, 4)))
