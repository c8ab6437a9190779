"""What a user sees where JAX, jaxlib or Optax no longer have an inside that the library leans on."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import dense_params, tempbalance

import tb_optax
from tb_optax import _compat
from tb_optax._layers.jaxpr import JaxprReader

W = {"a": jnp.ones((64, 64)), "b": jnp.ones((3, 64, 64)), "c": jnp.ones((64, 64))}
X = jnp.ones((2, 64))


def scanned(params, x):
    return jax.lax.scan(lambda x, w: (x @ w, x.sum()), x @ params["a"], params["b"])[0] @ params["c"]


def unrolled_while(params, x):
    body = lambda loop: (loop[0] + 1, loop[1] @ params["a"])
    return jax.lax.while_loop(lambda loop: loop[0] < 3, body, (0, x))[1]


def branched(params, x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ params["a"], lambda x: x, x) @ params["c"]


def turned(params, x):
    return x @ params["a"].T @ jnp.broadcast_to(params["c"], (2, 64, 64))


def looked_up(params, x):
    return params["a"][jnp.arange(5)] @ params["c"]


def convolved(params, x):
    return jax.lax.conv(x[:, :, None], params["b"].transpose(1, 2, 0), (1,), "SAME")


def unstacked(params, x):
    first, *_ = jax.lax.split(params["b"], (1, 1, 1))
    return x @ first.reshape(64, 64)


def joined(params, x):
    return x @ jnp.concatenate([params["a"], params["c"][:, :7]], 1)


def cut_apart(params, x):
    return [x @ part for part in jnp.split(jnp.concatenate([params["a"], params["c"]]), 2)]


def calling(kind):
    def apply(params, x):
        inner = kind(lambda x, w: x @ w)
        return inner(inner(x, params["a"]), params["c"])

    return apply


def with_vjp(function):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda x, w: (function(x, w), None), lambda _, g: (g, g))
    return wrapped


def with_jvp(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvps(lambda t, out, x, w: t, None)
    return wrapped


CALLS = {"jit": jax.jit, "remat": jax.checkpoint, "custom_jvp": with_jvp, "custom_vjp": with_vjp}


@pytest.fixture
def changed(monkeypatch):
    """Makes the parameters of a primitive's equations what a function says, as if JAX had changed them."""
    own = JaxprReader._equation

    def change(primitives, how):
        seen = []

        def equation(self, equation, values):
            if equation.primitive.name in primitives:
                seen.append(equation.primitive.name)
                equation = types.SimpleNamespace(
                    primitive=equation.primitive,
                    params=how(dict(equation.params)),
                    invars=equation.invars,
                    outvars=equation.outvars,
                )
            return own(self, equation, values)

        monkeypatch.setattr(JaxprReader, "_equation", equation)
        return seen

    return change


@pytest.mark.parametrize(
    ("primitive", "parameter", "apply"),
    [
        ("scan", "jaxpr", scanned),
        ("while", "body_jaxpr", unrolled_while),
        ("cond", "branches", branched),
        ("dot_general", "dimension_numbers", scanned),
        ("conv_general_dilated", "dimension_numbers", convolved),
        ("conv_general_dilated", "feature_group_count", convolved),
        ("transpose", "permutation", turned),
        ("broadcast_in_dim", "broadcast_dimensions", turned),
        ("concatenate", "dimension", joined),
        ("split", "sizes", cut_apart),
        ("gather", "slice_sizes", looked_up),
        ("gather", "dimension_numbers", looked_up),
    ],
)
def test_a_parameter_that_is_gone_is_an_error_with_the_version_and_the_way_out(changed, primitive, parameter, apply):
    seen = changed({primitive}, lambda params: {name: value for name, value in params.items() if name != parameter})
    with pytest.raises(NotImplementedError, match="find_layers") as raised:
        tb_optax.trace_layers(apply, W, X)
    assert seen and repr(primitive) in str(raised.value) and jax.__version__ in str(raised.value)


def test_a_reshape_without_its_order_keeps_it(changed):
    expected = tb_optax.trace_layers(unstacked, W, X, first_and_last=True)
    assert changed({"reshape"}, lambda params: {}) == []
    assert tb_optax.trace_layers(unstacked, W, X, first_and_last=True) == expected != ()


@pytest.mark.parametrize("kind", CALLS.values(), ids=CALLS.keys())
def test_a_called_jaxpr_is_known_whatever_its_name(changed, kind):
    expected = tb_optax.trace_layers(calling(kind), W, X, first_and_last=True)
    seen = changed(_compat._CALLS, lambda params: {f"new_{name}": value for name, value in params.items()})
    assert tb_optax.trace_layers(calling(kind), W, X, first_and_last=True) == expected
    assert seen and [layer.name for layer in expected] == ["a", "c"]


@pytest.mark.parametrize("kind", CALLS.values(), ids=CALLS.keys())
def test_a_called_jaxpr_that_is_gone_is_an_error(changed, kind):
    changed(_compat._CALLS, lambda params: {})
    with pytest.raises(NotImplementedError, match=re.escape(jax.__version__)):
        tb_optax.trace_layers(calling(kind), W, X)


@pytest.mark.parametrize(("consts", "carry", "slices"), [(0, 0, 1), (2, 1, 0), (1, 2, 3), (0, 3, 1)])
def test_loops_are_taken_apart_by_shapes(consts, carry, slices):
    def loop(outside, start, xs):
        body = lambda loop, xs: (tuple(one + sum(map(jnp.sum, outside)) for one in loop), (xs, jnp.ones(())))
        return jax.lax.scan(body, start, xs, length=5)

    arrays = (jnp.ones(4),) * consts, (jnp.ones(()),) * carry, (jnp.ones((5, 4)),) * slices
    (equation,) = (each for each in jax.make_jaxpr(loop)(*arrays).eqns if each.primitive.name == "scan")
    body, found_consts, found_carry = _compat.scan_parts(equation)
    assert (found_consts, found_carry, len(body.invars)) == (consts * (carry > 0), carry, len(equation.invars))
    assert len(equation.invars) - found_consts - found_carry == slices


def test_lapack_without_its_targets_is_the_portable_function(monkeypatch):
    from jaxlib import lapack

    assert _compat.lapack_target("syevd_ffi", np.dtype(np.float32)) is not None
    monkeypatch.delattr(lapack, "prepare_lapack_call")
    assert _compat.lapack_target("syevd_ffi", np.dtype(np.float32)) is None


def test_optax_without_its_placeholder_says_that_there_are_no_layers(monkeypatch):
    state = tempbalance(1).init(dense_params())
    count = lambda: optax.tree.map_params(tempbalance(1), lambda leaf: leaf, state)
    assert jax.tree.structure(count()) == jax.tree.structure(state)
    monkeypatch.setattr("tb_optax._balance.transformation.is_placeholder", lambda params: False)
    with pytest.raises(ValueError, match="params"):
        count()
