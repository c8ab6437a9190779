"""What `resolve_layers` and `kernel_shape` refuse, and that they say what is wrong and what to do."""

import re

import jax
import jax.numpy as jnp
import pytest

import tb_optax
from tb_optax import Layer, Layers
from tb_optax._layers.layer import kernel_shape, resolve_layers

PARAMS = {
    "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "stack": {"kernel": jnp.ones((3, 4, 6)), "bias": jnp.ones((3, 6)), "shared": jnp.ones(6)},
    "row": jnp.ones((1, 6)),
    "ids": jnp.ones((4, 4), int),
}
DENSE = Layer("dense", "dense/kernel", ("dense/bias",))
STACK = Layer("stack", "stack/kernel", ("stack/bias",), (1,), (2,), (0,))


@pytest.mark.parametrize(
    ("layers", "error", "parts"),
    [
        ([Layer("a", "conv/kernel")], ValueError, ["'a'", "'conv/kernel'", "not in params", "dense/bias, dense/kernel"]),
        ([Layer("a", "dense/kernel", ("dense/b",))], ValueError, ["'a'", "'dense/b'", "not in params"]),
        ([DENSE, Layer("again", "dense/kernel")], ValueError, ["path 'dense/kernel' 2 times", "one layer only"]),
        ([DENSE, Layer("a", "stack/kernel", ("dense/bias",))], ValueError, ["path 'dense/bias' 2 times"]),
        ([DENSE, Layer("dense", "stack/kernel")], ValueError, ["name 'dense' 2 times"]),
        (
            [Layer("a", "dense/kernel", (), (2,))],
            ValueError,
            ["reduction_axes=(2,)", "axis 2", "(4, 6)", "between -2 and 1"],
        ),
        ([Layer("a", "dense/kernel", (), (-3,))], ValueError, ["reduction_axes=(-3,)", "axis -3", "between -2 and 1"]),
        ([Layer("a", "dense/kernel", (), (0,), (-2,))], ValueError, ["axis 0", "named twice", "one kind only"]),
        ([Layer("a", "dense/kernel", (), (0,), (1,), (1,))], ValueError, ["axis 1", "named twice"]),
        ([Layer("a", "row")], ValueError, ["'row'", "(1, 6)", "1 eigenvalues", "at least 2"]),
        ([Layer("a", "ids")], TypeError, ["'ids'", "real floating-point"]),
        (
            [Layer("a", "stack/kernel", ("stack/shared",), (1,), (2,), (0,))],
            ValueError,
            ["'stack/shared'", "axis 0 of size 3"],
        ),
        (["dense/kernel"], TypeError, ["'dense/kernel'", "not a tb_optax.Layer"]),
        ("dense", TypeError, ["layers='dense'", "sequence of tb_optax.Layer"]),
        ({"dense": DENSE}, TypeError, ["layers=", "sequence of tb_optax.Layer"]),
        (3, TypeError, ["layers=3", "sequence of tb_optax.Layer"]),
        (lambda params: None, TypeError, ["layers=None", "sequence of tb_optax.Layer"]),
        (lambda params, x: x, TypeError, ["could not be called with params alone", "'x'", "trace_layers returned"]),
        (lambda params: params.ndim, TypeError, ["could not be called with params alone", "ndim", "trace_layers"]),
    ],
)
def test_layers_that_do_not_fit_are_refused_by_name_value_and_way_out(layers, error, parts):
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts))):
        resolve_layers(layers, PARAMS)


def test_layers_that_fit_are_taken_as_they_are():
    resolved, leaves = resolve_layers((DENSE, STACK), PARAMS)
    assert tuple(resolved) == (DENSE, STACK)
    assert leaves["stack/kernel"].shape == (3, 4, 6)


def test_what_no_layer_names_is_left_out_and_what_follows_one_is_not():
    resolved, _ = resolve_layers([STACK], PARAMS)
    assert resolved.left_out == {"dense/kernel": "not among layers", "row": "not among layers"}


def test_the_reasons_of_whoever_found_the_layers_are_kept():
    resolved, _ = resolve_layers(lambda params: Layers([STACK], {"dense/kernel": "too dull"}), PARAMS)
    assert resolved.left_out == {"dense/kernel": "too dull", "row": "not among layers"}


def test_the_library_s_own_error_in_a_function_of_layers_is_told_as_it_is():
    with pytest.raises(TypeError, match=r"^in_blocks: block_of\('dense'\) returned 3"):
        resolve_layers(tb_optax.in_blocks([DENSE], lambda name: 3), PARAMS)
    with pytest.raises(TypeError, match=r"^Layer 'a': follows='b' must be a tuple"):
        resolve_layers(lambda params: [Layer("a", "dense/kernel", "b")], PARAMS)


def test_a_function_is_called_with_the_parameters():
    seen = []
    resolve_layers(lambda params: seen.append(params) or [DENSE], PARAMS)
    assert seen == [PARAMS]


@pytest.mark.parametrize(
    ("layer", "shape", "stack", "matrices", "rows", "columns"),
    [
        (Layer("dense", "k"), (4, 6), (), 1, 4, 6),
        (Layer("conv", "k"), (3, 2, 4, 6), (), 6, 4, 6),
        (Layer("oihw", "k", (), (1,), (0,)), (6, 4, 3, 2), (), 6, 4, 6),
        (Layer("query", "k", (), (0,), (1, 2)), (8, 2, 3), (), 1, 8, 6),
        (Layer("stack", "k", (), (-3,), (-2, -1), (0, 1)), (5, 7, 8, 2, 3), (5, 7), 1, 8, 6),
        (Layer("over axis 1", "k", (), (0,), (2,), (1,)), (4, 3, 6), (3,), 1, 4, 6),
    ],
)
def test_axes_resolve_to_matrices(layer, shape, stack, matrices, rows, columns):
    resolved = kernel_shape(layer, shape)
    assert (resolved.stack, resolved.matrices, resolved.rows, resolved.columns) == (stack, matrices, rows, columns)
    assert resolved.eigenvalues == matrices * min(rows, columns)


@pytest.mark.parametrize("find", [tb_optax.find_layers, lambda params, **k: tb_optax.trace_layers(lambda p: p, params, **k)])
@pytest.mark.parametrize(
    ("params", "options", "parts"),
    [
        ({"a": jnp.ones((4, 4))}, {"exclude": "fc"}, ["exclude='fc'", "matches no layer", "the layers are: a"]),
        ({}, {"exclude": "fc"}, ["exclude='fc'", "matches no layer", "the layers are: none"]),
        ({"a": jnp.ones((4, 4))}, {"min_eigenvalues": 1}, ["min_eigenvalues=1", "at least 2"]),
        ({"a": {"b": 1.0}, "a/b": 2.0}, {}, ["two leaves", "'a/b'", "rename"]),
    ],
)
def test_both_ways_to_find_layers_refuse_alike(find, params, options, parts):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        find(jax.tree.map(jnp.asarray, params), **options)


def test_layers_are_a_tuple_and_hash_like_one():
    assert Layers([DENSE, STACK]) == (DENSE, STACK)
    assert hash(Layers([DENSE], {"a": "b"})) == hash((DENSE,))
    assert (*Layers([DENSE]), STACK) == (DENSE, STACK)


def test_axes_and_followers_are_tuples_whatever_sequence_is_given():
    layer = tb_optax.Layer("a", "a/w", follows=["a/b"], reduction_axes=[0], output_axes=[1])
    assert layer == tb_optax.Layer("a", "a/w", follows=("a/b",), reduction_axes=(0,), output_axes=(1,))
    assert hash(layer) is not None


@pytest.mark.parametrize("field", [{"follows": "a/b"}, {"output_axes": 1}])
def test_what_is_no_sequence_is_named(field):
    ((name, value),) = field.items()
    with pytest.raises(TypeError, match=rf"'a': {name}={value!r} must be a tuple"):
        tb_optax.Layer("a", "a/w", **field)
