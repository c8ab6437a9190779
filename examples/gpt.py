"""A language model on one page, to read and copy: a decoder on any text, AdamW and TempBalance.

`python -m examples.gpt` takes three minutes on two CPU cores. It trains on text that comes with Python, 370 kB of pydoc's
help topics. `--text FILE` takes any other file: tokens are bytes. `--method adamw` trains without TempBalance.

The decoder has RMSNorm in front of each branch, rotary positions, a gated MLP and no biases. Its blocks are scanned: each
kernel is a stack, and TempBalance gives each slice a learning rate of its own. All devices of this machine share each
batch. `--resume` continues from the last checkpoint in `--out`. On a CPU, the result has the same bits as that of a run
without an interruption.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt8
from rich.progress import Progress

import tb_optax

Apply = Callable[[PyTree, Int[Array, "batch length"]], Float[Array, "batch length vocabulary"]]
Text = UInt8[Array, " bytes"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Trains a decoder on a text, and plots what TempBalance does to its layers."""

    method: Literal["adamw", "tb", "llr", "shape"] = "tb"  # AdamW alone, or with TempBalance, LLR, or scales by shape alone
    text: Path | None = None  # Any file: 90% to train on, the rest to validate on. By default, pydoc's help topics
    blocks: int = 4  # Blocks, each with an attention and a gated MLP
    width: int = 128  # Width of the residual stream; the MLP's is 8/3 of it
    heads: int = 4  # Heads of each attention, which share the width
    window: int = 128  # Bytes that the decoder sees at once
    tied: bool = False  # Whether the embedding is also the output weight
    updates: int = 1000  # Steps of the optimizer
    batch_size: int = 16  # Windows in each update
    learning_rate: float = 2e-3  # Learning rate after the warm-up; a cosine takes it to a tenth
    warmup: int = 100  # Updates in which the learning rate rises from zero
    weight_decay: float = 0.1  # Weight decay of every matrix; the scales of norms do not decay
    refresh_interval: int = 50  # Updates between two refreshes of the layers' scales
    evaluation_interval: int = 50  # Updates between two evaluations, each of which saves a checkpoint
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # Dtype of the blocks' computation; parameters and logits are float32
    seed: int = 0  # Seed of the initialization, the batches and the sample
    out: Path = Path("runs/gpt")  # Folder to write to
    resume: bool = False  # Whether to continue the run in --out, if there is one


def rotate(x: Float[Array, "batch length heads size"]) -> Float[Array, "batch length heads size"]:
    """Rotary positions: turns pairs of features by angles that grow with the position."""
    frequencies = 10_000.0 ** (-jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = jnp.arange(x.shape[1])[:, None, None] * frequencies
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


class Block(nnx.Module):
    """A causal attention and a gated MLP. Each reads a normalized copy of the residual stream, and adds to the stream."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, hidden, dtype = settings.width, 8 * (settings.width // 3), jnp.dtype(settings.dtype)

        def linear(inputs: int, outputs: int, deviation: float = 0.02) -> nnx.Linear:
            init = nnx.initializers.normal(deviation)
            return nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, kernel_init=init, rngs=rngs)

        into_stream = 0.02 / (2 * settings.blocks) ** 0.5  # The stream is the sum of 2 * blocks branches.
        self.heads = settings.heads
        self.norm1, self.norm2 = (nnx.RMSNorm(width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.query, self.key, self.value = (linear(width, width) for _ in range(3))
        self.gate, self.up = (linear(width, hidden) for _ in range(2))
        self.output, self.down = linear(width, width, into_stream), linear(hidden, width, into_stream)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        y = self.norm1(x)
        heads = (*y.shape[:2], self.heads, -1)
        query, key, value = (project(y).reshape(heads) for project in (self.query, self.key, self.value))
        y = jax.nn.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        x = x + self.output(y.reshape(x.shape))
        y = self.norm2(x)
        return x + self.down(nnx.silu(self.gate(y)) * self.up(y))


class GPT(nnx.Module):
    """An embedding, scanned blocks, a norm, and the logits of the next byte at every position."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width, vocabulary, init = settings.width, 256, nnx.initializers.normal(0.02)
        self.dtype = jnp.dtype(settings.dtype)
        self.embedding = nnx.Embed(vocabulary, width, embedding_init=init, rngs=rngs)
        create = nnx.split_rngs(splits=settings.blocks)(nnx.vmap(lambda rngs: Block(settings, rngs)))
        self.blocks = create(rngs)  # One module, whose parameters are stacks.
        self.norm = nnx.RMSNorm(width, dtype=self.dtype, rngs=rngs)
        self.head = None if settings.tied else nnx.Linear(width, vocabulary, use_bias=False, kernel_init=init, rngs=rngs)

    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        # Cast after the lookup, so that the gradient of a row sums over tokens in float32.
        x = self.embedding(tokens).astype(self.dtype)
        scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        x = self.norm(scan(x, self.blocks))
        weight = self.embedding.embedding[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(x, weight.astype(self.dtype), preferred_element_type=jnp.float32)


def help_topics() -> bytes:
    """The help topics of pydoc, each paragraph once: topics quote each other, but validation needs unseen text."""
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs)).encode()


def check(settings: Settings, size: int, devices: int) -> None:
    """Ends the program with one line if it cannot run as the settings say."""
    for name, value in vars(settings).items():
        need = "at least 0" if name in ("seed", "warmup", "weight_decay") else "more than 0"
        if type(value) in (int, float) and not (value > 0 or (value == 0 and need == "at least 0")):
            raise SystemExit(f"error: --{name.replace('_', '-')} {value} must be {need}.")
    if settings.width % (2 * settings.heads):
        raise SystemExit(f"error: --width {settings.width} must be a multiple of twice --heads {settings.heads}.")
    if settings.warmup >= settings.updates:
        raise SystemExit(f"error: --warmup {settings.warmup} must be less than --updates {settings.updates}.")
    if settings.method != "adamw" and settings.width < 50:
        raise SystemExit(f"error: --width {settings.width} must be at least 50 for --method {settings.method}.")
    if settings.batch_size % devices:
        raise SystemExit(f"error: --batch-size {settings.batch_size} must be a multiple of the {devices} devices.")
    if size <= 10 * settings.window:
        raise SystemExit(f"error: --text has {size} bytes, which must be more than ten times --window {settings.window}.")


def open_folder(settings: Settings, text: bytes) -> None:
    """Writes the settings to --out. Ends the program with one line if --out holds another run."""
    chosen = dataclasses.asdict(settings) | {"text": settings.text and str(settings.text), "text_crc32": zlib.crc32(text)}
    del chosen["out"], chosen["resume"]
    file = settings.out / "settings.json"
    if not file.exists():
        settings.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(chosen, indent=2))
    elif not settings.resume:
        raise SystemExit(f"error: --out {settings.out} holds a run; go on with it by --resume, or give another folder.")
    elif (saved := json.loads(file.read_text())) != chosen:
        name = next(name for name in chosen if saved.get(name) != chosen[name])
        raise SystemExit(f"error: --resume: {name} is {saved.get(name)} in {file}, and {chosen[name]} now.")


def create_optimizer(settings: Settings, layers: tb_optax.Layers) -> tuple[optax.GradientTransformation, Callable | None]:
    """The optimizer of `settings.method`, and the function by which the training loop refreshes its scales, if any."""
    rate = settings.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, settings.warmup, settings.updates, end_value=rate / 10)
    decays = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in str(path), params)
    adamw = optax.adamw(schedule, b2=0.95, weight_decay=settings.weight_decay, mask=decays)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    llr = tb_optax.llr(settings.updates, layers=layers, update_interval=settings.refresh_interval)
    if settings.method in ("adamw", "llr"):  # LLR refreshes inside the step, in the first fifth of the updates.
        return (optimizer if settings.method == "adamw" else optax.chain(optimizer, llr)), None
    metric = {"tb": tb_optax.metrics.pl_alpha_hill, "shape": tb_optax.metrics.noise_of_shape}[settings.method]
    tb = tb_optax.tempbalance(None, layers=layers, metric=metric)
    return optax.chain(optimizer, tb), tb.refresh  # TempBalance comes last, so that it scales the step.


class State(NamedTuple):  # Everything that an update changes; a checkpoint holds it.
    params: PyTree
    opt_state: optax.OptState
    update: Int[Array, ""]


def create_programs(settings: Settings, apply: Apply, tx: optax.GradientTransformation, key: Array, split: NamedSharding):
    """The two compiled programs: an update on random windows, and the loss on a whole text."""
    window, batch = settings.window, settings.batch_size

    def token_losses(params: PyTree, text: Text, starts: Int[Array, " batch"]) -> Float[Array, "batch window"]:
        starts = jax.lax.with_sharding_constraint(starts, split)  # Each device has its share of the windows.
        tokens = text[starts[:, None] + jnp.arange(window + 1)].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, tokens[:, :-1]), tokens[:, 1:])

    def train_step(state: State, text: Text) -> tuple[State, Float[Array, ""]]:
        starts = jax.random.randint(jax.random.fold_in(key, state.update), (batch,), 0, len(text) - window)
        loss, grads = jax.value_and_grad(lambda params: token_losses(params, text, starts).mean())(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state, state.update + 1), loss

    def validate(params: PyTree, text: Text) -> Float[Array, ""]:
        count = (len(text) - 1) // window

        def total(places: Int[Array, " batch"]) -> Float[Array, ""]:
            losses = token_losses(params, text, jnp.minimum(places, count - 1) * window)
            return jnp.sum(losses, where=places[:, None] < count)  # The last batch is filled up.

        return jax.lax.map(total, jnp.arange(-(-count // batch) * batch).reshape(-1, batch)).sum() / (count * window)

    return jax.jit(train_step, donate_argnums=0), jax.jit(validate)


def sample(apply: Apply, params: PyTree, prompt: Text, length: int, key: Array) -> Int[Array, " length"]:
    """A text that begins with the prompt. Attention is causal, so the zeros after the drawn bytes have no effect."""

    def draw(place: Int[Array, ""], tokens: Int[Array, " length"]) -> Int[Array, " length"]:
        logits = apply(params, tokens[None])[0, place - 1]
        return tokens.at[place].set(jax.random.categorical(jax.random.fold_in(key, place), logits / 0.8))

    return jax.lax.fori_loop(len(prompt), length, draw, jnp.zeros(length, jnp.int32).at[: len(prompt)].set(prompt))


def describe(settings: Settings, layers: tb_optax.Layers, state: State, losses: list[Array], valid: Array) -> dict[str, Any]:
    """A line of the log. Alphas and scales are those of the last refresh, with one number for each block."""
    line = dict(update=int(state.update), train_loss=float(np.mean(jax.device_get(losses))), validation_loss=float(valid))
    if settings.method == "adamw":
        return line
    name = "TempBalanceTransitionState" if settings.method == "llr" else "TempBalanceState"
    balance = optax.tree_utils.tree_get(state.opt_state, name)
    numbers = lambda of_layers: {layer.name: np.asarray(of_layers[layer.name]).tolist() for layer in layers.measured}
    refreshed = (line["update"] - 1) // settings.refresh_interval * settings.refresh_interval
    return line | {"refreshed": refreshed, "alpha": numbers(balance.metric), "scale": numbers(balance.scale)}


def plot(log: list[dict[str, Any]], out: Path) -> None:
    """Plots the losses, and each layer's alpha and scale: a column for each kernel, a line for each block."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in ("train", "validation"):
        axes.plot([line["update"] for line in log], [line[f"{name}_loss"] for line in log], label=name)
    axes.set(xlabel="update", ylabel="loss, nats a byte")
    axes.legend(frameon=False)
    figure.savefig(out / "loss.png", dpi=150)
    if "alpha" not in log[-1]:
        return
    names, refreshed = list(log[-1]["alpha"]), [line["refreshed"] for line in log]
    figure, panels = plt.subplots(2, len(names), figsize=(13, 5), sharex=True, sharey="row", layout="constrained")
    shown = [(quantity, name) for quantity in ("alpha", "scale") for name in names]
    for (quantity, name), axes in zip(shown, panels.flat, strict=True):
        axes.set_title(f"{quantity}, {name.split('/')[-1]}")
        values = np.array([line[quantity][name] for line in log])
        for block, color in enumerate(plt.get_cmap("viridis")(np.linspace(0, 0.9, values.shape[1]))):
            axes.plot(refreshed, values[:, block], color=color, label=f"block {block}")
    figure.supxlabel("update")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(out / "layers.png", dpi=150)


def main(settings: Settings) -> None:
    """Trains, and writes log, checkpoints and plots to `settings.out`."""
    devices, content = jax.local_devices(), help_topics() if settings.text is None else settings.text.read_bytes()
    check(settings, len(content), len(devices))
    open_folder(settings, content)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    train, valid = jax.device_put(np.split(np.frombuffer(content, np.uint8), [len(content) * 9 // 10]), everywhere)

    init_key, batch_key, sample_key = jax.random.split(jax.random.key(settings.seed), 3)
    graph, params = nnx.split(GPT(settings, nnx.Rngs(init_key)), nnx.Param)
    apply = lambda params, tokens: nnx.merge(graph, params, copy=True)(tokens)
    ends, tokens = "unmeasured" if settings.method == "llr" else False, jax.ShapeDtypeStruct((1, settings.window), jnp.int32)
    layers = tb_optax.trace_layers(apply, params, tokens, first_and_last=ends)
    print(layers)
    tx, refresh = create_optimizer(settings, layers)
    state = jax.device_put(State(params, tx.init(params), jnp.zeros((), jnp.int32)), everywhere)
    train_step, validate = create_programs(settings, apply, tx, batch_key, split)

    start, log, losses = 0, [], []
    folder, options = (settings.out / "checkpoints").resolve(), ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder, options=options) as checkpoints, Progress() as bar:
        if checkpoints.latest_step() is not None:
            like = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
            saved = checkpoints.restore(None, args=ocp.args.Composite(state=like, log=ocp.args.JsonRestore()))
            start, state, log = int(saved.state.update), saved.state, saved.log["lines"]
        for update in bar.track(range(start, settings.updates), settings.updates, start, description="updates"):
            if refresh is not None and update % settings.refresh_interval == 0:
                state = state._replace(opt_state=refresh(state.opt_state, state.params))
            state, loss = train_step(state, train)  # Returns at once, while the device computes.
            losses.append(loss)
            if (update + 1) % settings.evaluation_interval == 0 or update + 1 == settings.updates:
                log.append(describe(settings, layers, state, losses, validate(state.params, valid)))
                losses = []
                (settings.out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
                saving = {"state": ocp.args.StandardSave(state), "log": ocp.args.JsonSave({"lines": log})}
                checkpoints.save(update + 1, args=ocp.args.Composite(**saving))
                bar.print("update {update:5d}  loss {train_loss:.3f}  validation {validation_loss:.3f}".format_map(log[-1]))
    plot(log, settings.out)
    drawn = sample(apply, state.params, valid[: settings.window // 4], settings.window, sample_key)
    print(f"\nA sample, whose first quarter is validation text:\n{bytes(drawn.tolist()).decode(errors='replace')}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings))
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; --resume goes on") from None
