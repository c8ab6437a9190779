"""Image classification in one file, to read and copy: ResNet or VGG, SGD with cosine annealing, and TempBalance.

    python -m examples.image_classification --width 0.25   # digits of scikit-learn, for a CPU
    python -m examples.image_classification --dataset cifar10 --epochs 200
    python -m examples.image_classification --folder photos --image-size 64

It trains on all devices of this machine, saves a checkpoint after every epoch, and plots each layer's alpha and scale.
`--resume` continues after an interruption. On a Linux CPU, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 saves a quarter of a step.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import sklearn.datasets
import tyro
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt8
from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions
from orbax.checkpoint.args import Composite, JsonRestore, JsonSave, StandardRestore, StandardSave
from PIL import Image, ImageOps
from rich.progress import track

import tb_optax


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains a network on images, validates it after every epoch, and tests it at the end."""

    dataset: str = "digits"  # scikit-learn's digits, or an image-classification set of TensorFlow Datasets, such as cifar10
    folder: Path | None = None  # instead of --dataset: a folder with a subfolder of images for each class
    image_size: int = 32  # width and height in pixels, to which images are cropped and resized
    model: Literal["resnet18", "resnet34", "vgg16", "vgg19"] = "resnet18"  # network, in its variant for small images
    width: float = 1.0  # factor on the number of channels of every layer
    method: Literal["cal", "tb", "shape"] = "tb"  # SGD and cosine annealing (cal); with TempBalance (tb) or scales by shape
    epochs: int = 20  # passes over the training images
    batch_size: int = 128  # images in each step, on all devices together
    learning_rate: float = 0.1  # learning rate of the first epoch; a cosine takes it to zero
    flip: bool = True  # mirror every other training image, unless the data's name has digits, mnist or svhn in it
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # dtype of computation; auto: bfloat16, but float32 on a CPU
    seed: int = 0  # seed of the initialization, the order of the images and their augmentation
    out: Path = Path("runs/image_classification")  # folder for the log, the checkpoints and the plot
    resume: bool = False  # continue from the last checkpoint in --out, if there is one


class ConvNorm(nnx.Module):
    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, **options: Any):
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default, as in the paper's code
        conv = partial(nnx.Conv, use_bias=False, kernel_init=init, **options)
        self.conv = conv(inputs, outputs, (size, size), stride, padding=size // 2)
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, **options)

    def __call__(self, x: Float[Array, "n h w inputs"]) -> Float[Array, "n h_out w_out outputs"]:
        return self.norm(self.conv(x))


class Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, **options: Any):
        self.first = ConvNorm(inputs, outputs, stride=stride, **options)
        self.second = ConvNorm(outputs, outputs, **options)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, **options) if stride > 1 else None

    def __call__(self, x: Float[Array, "n h w inputs"]) -> Float[Array, "n h_out w_out outputs"]:
        return nnx.relu(self.second(nnx.relu(self.first(x))) + (x if self.shortcut is None else self.shortcut(x)))


def resnet(blocks: Sequence[int], width: float, classes: int, **options: Any) -> nnx.Sequential:
    """A 3 x 3 convolution and four stages of blocks, then a mean over the image and a linear layer."""
    sizes = [round(width * size) for size in (64, 128, 256, 512)]
    layers = [ConvNorm(3, sizes[0], **options), nnx.relu]
    for stage, (inputs, outputs) in enumerate(pairwise([sizes[0], *sizes])):
        layers.append(Block(inputs, outputs, stride=2 if stage else 1, **options))
        layers += [Block(outputs, outputs, stride=1, **options) for _ in range(blocks[stage] - 1)]
    return nnx.Sequential(*layers, partial(jnp.mean, axis=(1, 2)), nnx.Linear(sizes[-1], classes, **options))


def vgg(convolutions: Sequence[int], width: float, classes: int, **options: Any) -> nnx.Sequential:
    """Five stages of convolutions, each followed by a pooling, then a mean over the image and a linear layer."""
    layers, inputs = [], 3
    for size, count in zip((64, 128, 256, 512, 512), convolutions, strict=True):
        for _ in range(count):
            layers += [ConvNorm(inputs, outputs := round(width * size), **options), nnx.relu]
            inputs = outputs
        layers.append(partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME"))
    return nnx.Sequential(*layers, partial(jnp.mean, axis=(1, 2)), nnx.Linear(inputs, classes, **options))


NETWORKS: dict[str, Any] = {"resnet18": partial(resnet, (2, 2, 2, 2)), "resnet34": partial(resnet, (3, 4, 6, 3))}
NETWORKS |= {"vgg16": partial(vgg, (2, 2, 3, 3, 3)), "vgg19": partial(vgg, (2, 2, 4, 4, 4))}


class Images(NamedTuple):
    pixels: UInt8[Any, "n h w 3"]  # NumPy arrays, later arrays on the devices
    labels: Int[Any, " n"]


def split(images: Images, fraction: float) -> tuple[Images, Images]:
    """Divides images at random, but always the same, into the rest and a held-out fraction."""
    order = np.random.default_rng(0).permutation(len(images.labels))
    held_out, rest = np.split(order, [round(fraction * len(order))])
    return Images(images.pixels[rest], images.labels[rest]), Images(images.pixels[held_out], images.labels[held_out])


def read(source: str, examples: Sequence[Mapping[str, Any]], classes: int, size: int) -> Images:
    """Reads examples in threads, and crops and resizes their images (files or arrays) to one size."""

    def fitted(row: int) -> tuple[np.ndarray, int]:
        example = examples[row]
        file_or_array = example["image"]
        image = Image.open(file_or_array) if isinstance(file_or_array, Path) else Image.fromarray(np.squeeze(file_or_array))
        if image.mode.startswith(("I", "F")):
            raise SystemExit(f"{source} has an image of mode {image.mode}; only 8 bits a channel are supported.")
        return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size))), example["label"]

    with ThreadPoolExecutor() as pool:
        pixels, labels = zip(*pool.map(fitted, range(len(examples))), strict=True)
    if min(labels) < 0 or max(labels) >= classes:
        raise SystemExit(f"{source} has labels from {min(labels)} to {max(labels)}; they have to be 0 to {classes - 1}.")
    return Images(np.stack(pixels), np.array(labels, np.int32))


def load_tfds(name: str, size: int) -> tuple[Images, Images, int]:
    """The train and test images and the number of classes of a set of TensorFlow Datasets; downloads it if needed."""
    import tensorflow_datasets as tfds

    try:
        sources: Any = tfds.data_source(name, builder_kwargs={"file_format": "array_record"})
        train_set, test_set = sources["train"], sources["test" if "test" in sources else "validation"]
        classes = train_set.dataset_info.features["label"].num_classes
    except Exception as error:
        problem = str(error).strip().partition("\n")[0]
        raise SystemExit(f"--dataset {name} is neither digits nor a set of labelled images in TFDS: {problem}") from error
    return read(name, train_set, classes, size), read(name, test_set, classes, size), classes


def load(settings: Settings, devices: int) -> tuple[tuple[Images, Images, Images], int]:
    """Images to train, validate and test on, and the number of classes."""
    if settings.folder is not None:
        suffixes = Image.registered_extensions()
        files = sorted(file for file in settings.folder.glob("*/*") if file.suffix.lower() in suffixes)
        names = sorted({file.parent.name for file in files})
        if len(names) < 2:
            raise SystemExit(f"--folder {settings.folder} has images in {len(names)} subfolders; every class needs one.")
        examples = [{"image": file, "label": names.index(file.parent.name)} for file in files]
        train_set, test_set = split(read(str(settings.folder), examples, classes := len(names), settings.image_size), 0.2)
    elif settings.dataset == "digits":
        rows = zip(*sklearn.datasets.load_digits(return_X_y=True), strict=True)
        examples = [{"image": np.uint8(row.reshape(8, 8) * 15), "label": label} for row, label in rows]  # pixels are 0 to 16
        train_set, test_set = split(read("digits", examples, classes := 10, settings.image_size), 0.2)
    else:
        train_set, test_set, classes = load_tfds(settings.dataset, settings.image_size)
    train_set, validation_set = split(train_set, 0.1)
    if not 0 < settings.batch_size <= (n := len(train_set.labels)) or settings.batch_size % devices:
        raise SystemExit(f"--batch-size {settings.batch_size}: give a multiple of {devices}, at most {n} training images.")
    return (train_set, validation_set, test_set), classes


class State(NamedTuple):
    step: Int[Array, ""]
    params: optax.Params
    stats: nnx.State
    opt_state: optax.OptState


def crop_and_flip(key: Key[Array, ""], images: UInt8[Array, "n h w c"], flip: bool) -> UInt8[Array, "n h w c"]:
    """Shifts each image by up to 4 pixels each way, padded with zeros, and mirrors about half of them if `flip`."""
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 9)
    images = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:]))(padded, corners)
    mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1)) & flip
    return jnp.where(mirrored, images[:, :, ::-1], images)


def prepare(settings: Settings, key: Key[Array, ""], train_set: Images, classes: int, mesh: Mesh) -> tuple[Any, ...]:
    """The first state, the layers, TempBalance, the compiled training step, and the compiled accuracy on a set of images."""
    batch_size, steps = settings.batch_size, len(train_set.labels) // settings.batch_size
    digits = any(word in str(settings.folder or settings.dataset) for word in ("digits", "mnist", "svhn"))
    sample = train_set.pixels[:10_000] / 255
    mean, std = np.float32(sample.mean(axis=(0, 1, 2))), np.float32(sample.std(axis=(0, 1, 2)))
    on_all, by_batch = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
    auto = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    dtype = jnp.dtype(auto if settings.dtype == "auto" else settings.dtype)
    model = nnx.jit(lambda key: NETWORKS[settings.model](settings.width, classes, dtype=dtype, rngs=nnx.Rngs(key)))(key)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    cosine = optax.cosine_decay_schedule(settings.learning_rate, settings.epochs)
    schedule = lambda step: cosine(jnp.asarray(step) // steps)  # as in the paper, one learning rate for each epoch
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
    layers = tb_optax.trace_layers(model, jnp.float32(train_set.pixels[:1]))
    metric = tb_optax.metrics.noise_of_shape if settings.method == "shape" else tb_optax.metrics.pl_alpha_hill
    tb = tb_optax.tempbalance(None, layers=layers, metric=metric)
    if settings.method != "cal":
        tx = optax.chain(tx, tb)  # last, so that it scales the step

    def apply(params: optax.Params, stats: nnx.State, pixels: Array, train: bool) -> tuple[Array, nnx.State]:
        model = nnx.merge(graphdef, params, stats, copy=True)
        model.set_attributes(use_running_average=not train)
        logits = model((pixels / jnp.float32(255) - mean) / std)
        return logits.astype(jnp.float32), nnx.state(model, nnx.BatchStat)

    @partial(jax.jit, donate_argnums=0, out_shardings=on_all)
    def train_step(state: State, images: Images, order: Int[Array, "steps batch"], key: Array) -> tuple[State, Array]:
        rows = jax.lax.with_sharding_constraint(order[state.step % steps], by_batch)
        pixels = crop_and_flip(jax.random.fold_in(key, state.step), images.pixels[rows], settings.flip and not digits)

        def loss_fn(params: optax.Params) -> tuple[Float[Array, ""], nnx.State]:
            logits, stats = apply(params, state.stats, pixels, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, images.labels[rows]).mean(), stats

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(state.step + 1, optax.apply_updates(state.params, updates), stats, opt_state), loss

    @jax.jit
    def accuracy(state: State, images: Images) -> Float[Array, ""]:
        def count_right(start: Int[Array, ""]) -> Int[Array, ""]:
            rows = jax.lax.with_sharding_constraint(start + jnp.arange(batch_size), by_batch)
            logits, _ = apply(state.params, state.stats, images.pixels[rows], train=False)
            return jnp.sum((logits.argmax(axis=-1) == images.labels[rows]) & (rows < len(images.labels)))

        return jax.lax.map(count_right, jnp.arange(0, len(images.labels), batch_size)).sum() / len(images.labels)

    return State(jnp.zeros((), jnp.int32), params, stats, tx.init(params)), layers, tb, train_step, accuracy


def plot(epochs: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots alpha and learning-rate scale of each layer, from dark for the first layer to light for the last."""
    figure, layers = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained"), list(epochs[0]["alpha"])
    for name, axes in zip(("alpha", "scale"), figure.subplots(1, 2), strict=True):
        axes.set_prop_cycle(color=matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(layers))))
        axes.plot(range(1, len(epochs) + 1), [list(line[name].values()) for line in epochs], label=layers)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="x-small", frameon=False)
    figure.savefig(path, dpi=150)


def train(settings: Settings, mesh: Mesh) -> float:
    """Trains on the mesh's devices, which all hold the network and all images; returns the accuracy on the test images."""
    checkpoints = CheckpointManager(settings.out.absolute() / "checkpoints", options=CheckpointManagerOptions(max_to_keep=2))
    own = {name: str(value) for name, value in vars(settings).items() if name not in ("out", "resume")}
    done, log = checkpoints.latest_step() or 0, {"settings": own, "epochs": []}
    if done:
        log = checkpoints.restore(done, args=Composite(log=JsonRestore()))["log"]
        other = [f"{name} is {value}" for name, value in log["settings"].items() if own[name] != value]
        if other or not settings.resume:
            found = f"another run ({', '.join(other)});" if other else "a run; add --resume to go on with it, or"
            raise SystemExit(f"--out {settings.out} holds {found} give another folder.")
    sets, classes = load(settings, mesh.size)
    steps = len(sets[0].labels) // settings.batch_size
    init_key, data_key = jax.random.split(jax.random.key(settings.seed))
    state, layers, tb, train_step, accuracy = prepare(settings, init_key, sets[0], classes, mesh)
    on_all = NamedSharding(mesh, PartitionSpec())
    state, data_key, (train_set, validation_set, test_set) = jax.device_put((state, data_key, sets), on_all)
    state = checkpoints.restore(done, args=Composite(state=StandardRestore(state)))["state"] if done else state
    for epoch in track(range(done + 1, settings.epochs + 1), "epochs", transient=True, disable=not sys.stdout.isatty()):
        order_key, augment_key = jax.random.split(jax.random.fold_in(data_key, epoch))
        order = jax.random.permutation(order_key, len(train_set.labels))[: steps * settings.batch_size].reshape(steps, -1)
        line: dict[str, Any] = {"epoch": epoch}
        if settings.method != "cal":  # Computes each layer's scale from its weights, once an epoch.
            state = state._replace(opt_state=tb.refresh(state.opt_state, state.params))
            balance = jax.device_get(optax.tree_utils.tree_get(state.opt_state, "TempBalanceState"))
            of_layers = lambda numbers: {layer.name: float(numbers[layer.name]) for layer in layers}
            line |= {"alpha": of_layers(balance.metric), "scale": of_layers(balance.scale)}
        losses, start = [], 0.0
        for _ in range(steps):  # The host waits for the devices only at the end of the epoch.
            state, loss = train_step(state, train_set, order, augment_key)
            losses.append(loss)
            start = start or time.perf_counter()  # after the first step is compiled
        loss = line["loss"] = float(np.mean(jax.device_get(losses)))
        speed = line["images_per_second"] = order.size / (time.perf_counter() - start)
        validated = line["accuracy"] = float(accuracy(state, validation_set))
        print(f"epoch {epoch:3d}  loss {loss:.3f}  validation {validated:.1%}  {speed:,.0f} images/s", flush=True)
        log["epochs"].append(line)
        (settings.out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log["epochs"]))
        checkpoints.save(epoch, args=Composite(state=StandardSave(state), log=JsonSave(log)))
    checkpoints.close()
    if settings.method != "cal":
        plot(log["epochs"], settings.out / "layers.png")
    tested = float(accuracy(state, test_set))
    print(f"test {tested:.1%}; log and plots in {settings.out}")
    return tested


if __name__ == "__main__":
    train(tyro.cli(Settings), Mesh(np.array(jax.local_devices()), ("batch",)))
