import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.paper.errors import UserError
from examples.paper.network import Network
from examples.paper.vision.domain import paper_layers
from examples.paper.vision.models import MODELS, create_model
from examples.paper.vision.models.layers import Make
from examples.paper.vision.models.resnet import Bottleneck
from examples.paper.vision.models.wide_resnet import WideBlock
from tb_optax._layers.layer import leaves_by_path

IMAGE = (32, 32, 3)


def build(name, width=1.0, **kwargs):
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    return create_model(name, width=width, num_classes=10, image_shape=IMAGE, rngs=rngs, **kwargs)


@functools.cache
def abstract(name, **kwargs):
    return nnx.eval_shape(lambda: build(name, **kwargs))


def drawn(abstract_module):
    """A module with weights from NumPy: those of its own initialization take long to compile."""
    generator = np.random.default_rng(0)
    graphdef, state = nnx.split(abstract_module)
    shift = lambda path: 1 if path.endswith(("scale", "var")) else 0
    draw = lambda path, leaf: jnp.asarray(generator.normal(shift(path), 0.1, leaf.shape), leaf.dtype)
    leaves = [draw(path, leaf) for path, leaf in leaves_by_path(state).items()]
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


def drawn_block(kind, channels, stride):
    return drawn(nnx.eval_shape(lambda: kind(8, channels, stride, Make(jnp.dtype("float32"), nnx.Rngs(0)))))


def abstract_params(name, **kwargs):
    return nnx.state(abstract(name, **kwargs), nnx.Param)


def balanced(name):
    graphdef, params, batch_stats = nnx.split(abstract(name), nnx.Param, ...)
    batch_stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), batch_stats)
    layers = paper_layers(Network(graphdef), params, batch_stats, jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
    return {layer.name: layer for layer in layers}


def number_of_parameters(name):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(name)))


def shapes_of_kernels(name, **kwargs):
    leaves = leaves_by_path(abstract_params(name, **kwargs))
    return {path.removesuffix("/kernel"): leaf.shape for path, leaf in leaves.items() if path.endswith("/kernel")}


# Trainable parameters of the same networks in PyTorch, ten classes.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 11173962),
        ("resnet34", 21282122),
        ("resnet50", 23520842),
        ("resnet101", 42512970),
        ("vgg16", 14728266),
        ("vgg19", 20040522),
    ],
)
def test_full_width_has_the_published_number_of_parameters(name, published):
    assert number_of_parameters(name) == published


def wide_resnet_counts(depth, widening):
    """Parameters of a WideResNet without a bias in its convolutions, ten classes, and what these biases add."""
    first, second, third = (16 * 2**stage * widening for stage in range(3))
    blocks = (depth - 4) // 6
    convs = [(3, 16, 9), (16, first, 9), (16, first, 1), (first, second, 9), (first, second, 1)]
    convs += [(second, third, 9), (second, third, 1)]
    for channels in (first, second, third):
        convs += (2 * blocks - 1) * [(channels, channels, 9)]
    # Each norm of a block is in front of a 3x3 convolution; the stem has none in front, and the last is behind all.
    norms = sum(inputs for inputs, _, window in convs[1:] if window == 9) + third
    weights = sum(inputs * outputs * window for inputs, outputs, window in convs)
    return weights + 2 * norms + 10 * third + 10, sum(outputs for _, outputs, _ in convs)


def test_wide_resnets_have_the_published_number_of_parameters_and_the_biases_of_the_papers_code():
    published = {(40, 4): 8.9e6, (16, 8): 11.0e6, (28, 10): 36.5e6}  # Zagoruyko and Komodakis, Table 4
    for shape, millions in published.items():
        assert wide_resnet_counts(*shape)[0] == pytest.approx(millions, abs=0.06e6)
    assert number_of_parameters("wrn16-8") == sum(wide_resnet_counts(16, 8))
    assert number_of_parameters("wrn28-6") == sum(wide_resnet_counts(28, 6))


@pytest.mark.parametrize(("width", "least", "most"), [(0.5, 32, 256), (1.5, 96, 768)])
def test_width_multiplies_the_channels_of_every_layer(width, least, most):
    names = ("vgg16", "resnet18", "resnet50", "wrn16-8")
    kernels = {name: shapes_of_kernels(name, width=width) for name in names}
    channels = {name: {shape[-1] for shape in kernels[name].values()} - {10} for name in names}
    inner = {least * 2**doublings for doublings in range(4)}
    assert channels["vgg16"] == channels["resnet18"] == inner and max(inner) == most
    assert channels["resnet50"] == inner | {4 * size for size in inner}
    assert channels["wrn16-8"] == {least // 4, *(least * 2**doublings for doublings in (1, 2, 3))}
    assert kernels["resnet50"]["linear"] == (4 * most, 10)


def test_names_are_those_of_the_papers_code():
    resnet, bottlenecks, wide, vgg = (
        leaves_by_path(abstract_params(name)) for name in ("resnet18", "resnet101", "wrn28-6", "vgg16")
    )
    assert {"conv1/kernel", "layer1/0/conv1/kernel", "layer4/1/bn2/scale", "layer2/0/shortcut/0/kernel"} <= set(resnet)
    assert "linear/kernel" in resnet and "layer1/0/conv1/bias" not in resnet
    assert {"layer1/0/shortcut/1/scale", "layer3/22/conv3/kernel", "layer4/2/bn3/bias"} <= set(bottlenecks)
    assert "layer1/1/shortcut/0/kernel" not in bottlenecks and "layer3/22/conv3/bias" not in bottlenecks
    assert {"conv1/bias", "layer1/0/shortcut/0/bias", "layer3/3/conv2/bias", "layer3/3/bn2/scale", "bn1/scale"} <= set(wide)
    assert "layer3/4/conv1/kernel" not in wide and "layer1/0/shortcut/1/scale" not in wide
    kernels = [int(path.split("/")[1]) for path in vgg if path.startswith("features") and path.endswith("kernel")]
    assert sorted(kernels) == [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]  # as torchvision and kuangliu number them
    assert "features/0/bias" in vgg


def assert_uniform_within_one_over_root_fan_in(leaves):
    for path, leaf in leaves.items():
        if path.endswith("kernel"):
            bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            assert 0.95 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
            assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.1)
            if (bias := leaves.get(path.replace("kernel", "bias"))) is not None:
                assert 0.4 * bound < np.abs(bias).max() <= bound * (1 + 1e-6)


def test_weights_of_layers_start_uniform_within_one_over_root_fan_in():
    make = Make(jnp.dtype("float32"), nnx.Rngs(0))
    for layer in (make.conv(16, 32, 3, use_bias=True), make.conv(16, 32, 1), make.linear(64, 100)):
        assert_uniform_within_one_over_root_fan_in(leaves_by_path(nnx.state(layer, nnx.Param)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "resnet18", "wrn16-8"])
def test_weights_of_networks_start_likewise(name):
    leaves = leaves_by_path(nnx.state(nnx.jit(lambda: build(name, width=0.25))(), nnx.Param))
    assert_uniform_within_one_over_root_fan_in(leaves)


def test_layers_are_balanced_as_in_the_papers_code():
    found = balanced("resnet18")
    assert "conv1" not in found and "linear" not in found
    assert len(found) == 19  # 16 convolutions in blocks and 3 projections
    assert set(found["layer1/0/conv2"].follows) == {"layer1/0/bn2/scale", "layer1/0/bn2/bias"}
    assert found["layer3/0/shortcut/0"].follows == ()


@pytest.mark.parametrize(("name", "count"), [("resnet50", 52), ("wrn16-8", 14)])
def test_every_convolution_of_50_eigenvalues_is_balanced_but_for_the_first(name, count):
    convs = {layer: shape for layer, shape in shapes_of_kernels(name).items() if len(shape) == 4}
    eigenvalues = {layer: shape[0] * shape[1] * min(shape[2:]) for layer, shape in convs.items()}
    found = balanced(name)
    assert set(found) == {layer for layer in convs if eigenvalues[layer] >= 50} - {"conv1"}
    assert len(found) == count
    if name == "resnet50":
        assert set(found["layer4/2/conv3"].follows) == {"layer4/2/bn3/scale", "layer4/2/bn3/bias"}
    else:
        assert eigenvalues["layer1/0/shortcut/0"] == 16  # the one that is too small
        assert "layer3/1/conv2/bias" in found["layer3/1/conv2"].follows


@pytest.mark.slow
def test_a_bottleneck_strides_in_its_second_convolution_and_adds_its_projected_input():
    block = drawn_block(Bottleneck, 3, 2)
    block.bn3.bias[...] = jnp.zeros(12)
    block.bn3.scale[...] = jnp.zeros(12)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    projection, norm = block.shortcut
    np.testing.assert_allclose(block(x), nnx.relu(norm(x[:, ::2, ::2] @ projection.kernel[0, 0])), atol=1e-5)
    assert block.conv1(x).shape == (2, 4, 4, 3) and block.conv2(block.conv1(x)).shape == (2, 2, 2, 3)


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (8, 2), (5, 1)])
def test_a_wide_block_adds_its_input_from_before_the_norm(channels, stride):
    block = drawn_block(WideBlock, channels, stride)
    assert block.conv1(jnp.zeros((1, 4, 4, 8))).shape == (1, 4, 4, channels)  # the second one has the stride
    block.conv2.kernel[...], block.conv2.bias[...] = jnp.zeros((3, 3, channels, channels)), jnp.zeros(channels)
    x = 3 + jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    expected = x
    for projection in block.shortcut:
        expected = x[:, ::stride, ::stride] @ projection.kernel[0, 0] + projection.bias
    np.testing.assert_allclose(block(x), expected, atol=1e-5)
    assert len(block.shortcut) == (channels != 8 or stride != 1)


def test_the_last_norm_of_a_wide_resnet_has_the_momentum_of_the_papers_code():
    model = abstract("wrn16-8")
    momentums = {path: module.momentum for path, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)}
    assert momentums.pop(("bn1",)) == 0.1
    assert set(momentums.values()) == {0.9} and len(momentums) == 12


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet101")) for name in MODELS])
def test_images_may_be_of_64_pixels(name):
    graphdef, state = nnx.split(abstract(name))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(lambda state, images: nnx.merge(graphdef, state)(images), state, images).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet101", "wrn16-8", "wrn28-6"])
def test_a_narrow_network_tells_images_apart(name):
    images = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype(np.float32)
    logits = nnx.jit(lambda model, images: model(images))(drawn(abstract(name, width=1 / 16)), images)
    assert logits.shape == (2, 10) and np.isfinite(logits).all() and np.abs(logits[0] - logits[1]).max() > 1e-3


def test_bfloat16_is_what_the_network_computes_in_not_what_it_keeps():
    model = abstract("resnet18", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    assert nnx.eval_shape(lambda model: model(jnp.zeros((2, *IMAGE))), model).dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "size"), [("vgg16", 28), ("resnet18", 4), ("wrn16-8", 3)])
def test_images_too_small_are_refused_by_name_and_size(name, size):
    with pytest.raises(UserError, match=rf"{name}.*{size}x{size}"):
        create_model(name, num_classes=10, image_shape=(size, size, 1), rngs=nnx.Rngs(0))


def test_what_is_no_model_or_has_no_channels_is_refused_by_name():
    with pytest.raises(UserError, match=r"'resnet20'.*resnet18, .*wrn28-6"):
        build("resnet20")
    with pytest.raises(UserError, match=r"width=0.03 leaves wrn16-8 without channels; give at least 0.0625"):
        build("wrn16-8", width=0.03)
