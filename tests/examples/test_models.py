import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.vision.models import create_model
from examples.vision.training import Network, paper_layers
from tb_optax._layers import leaves_by_path

IMAGE = (32, 32, 3)


def build(name, width=1.0, **kwargs):
    rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
    return create_model(name, width=width, num_classes=10, image_shape=IMAGE, rngs=rngs, **kwargs)


def abstract(name, **kwargs):
    return nnx.eval_shape(lambda: build(name, **kwargs))


def abstract_params(name):
    return nnx.state(abstract(name), nnx.Param)


# Trainable parameters of the same networks in PyTorch, ten classes.
@pytest.mark.parametrize(
    ("name", "published"), [("resnet18", 11173962), ("resnet34", 21282122), ("vgg16", 14728266), ("vgg19", 20040522)]
)
def test_full_width_has_the_published_number_of_parameters(name, published):
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(name))) == published


def test_names_are_those_of_the_papers_code():
    resnet, vgg = (leaves_by_path(abstract_params(name)) for name in ("resnet18", "vgg16"))
    assert {"conv1/kernel", "layer1/0/conv1/kernel", "layer4/1/bn2/scale", "layer2/0/shortcut/0/kernel"} <= set(resnet)
    assert "linear/kernel" in resnet and "layer1/0/conv1/bias" not in resnet
    kernels = [int(path.split("/")[1]) for path in vgg if path.startswith("features") and path.endswith("kernel")]
    assert sorted(kernels) == [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]  # as torchvision and kuangliu number them
    assert "features/0/bias" in vgg


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_weights_start_uniform_within_one_over_root_fan_in(name):
    leaves = leaves_by_path(nnx.state(nnx.jit(lambda: build(name, width=0.25))(), nnx.Param))
    for path, leaf in leaves.items():
        if path.endswith("kernel"):
            bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            assert 0.95 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
            assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.1)
            if (bias := leaves.get(path.replace("kernel", "bias"))) is not None:
                assert 0.4 * bound < np.abs(bias).max() <= bound * (1 + 1e-6)


def test_layers_are_balanced_as_in_the_papers_code():
    graphdef, params, batch_stats = nnx.split(abstract("resnet18"), nnx.Param, ...)
    batch_stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), batch_stats)
    found = {
        layer.name: layer
        for layer in paper_layers(Network(graphdef), params, batch_stats, jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
    }
    assert "conv1" not in found and "linear" not in found
    assert len(found) == 19  # 16 convolutions in blocks and 3 projections
    assert set(found["layer1/0/conv2"].follows) == {"layer1/0/bn2/scale", "layer1/0/bn2/bias"}
    assert found["layer3/0/shortcut/0"].follows == ()


def test_bfloat16_is_what_the_network_computes_in_not_what_it_keeps():
    model = abstract("resnet18", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    assert nnx.eval_shape(lambda model: model(jnp.zeros((2, *IMAGE))), model).dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "size"), [("vgg16", 28), ("resnet18", 4)])
def test_images_too_small_are_refused_by_name_and_size(name, size):
    with pytest.raises(ValueError, match=rf"{name}.*{size}x{size}"):
        create_model(name, num_classes=10, image_shape=(size, size, 1), rngs=nnx.Rngs(0))
