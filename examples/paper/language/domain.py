"""Language modelling (the paper's Appendix G): `LANGUAGE` is all that runs, sweeps and reports know of it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

import tb_optax
from examples.paper.balance import LayersOrFn, adamw_with_alphadecay, chain, with_tempbalance
from examples.paper.domain import Domain, Measure, Training
from examples.paper.errors import UserError
from examples.paper.language.data import Corpus, load_corpus, rows, windows
from examples.paper.language.models import LanguageModel, create_model
from examples.paper.language.models.tensorized import TensorizedTransformer, paper_layers
from examples.paper.language.settings import Settings
from examples.paper.parallel import batches, replicate, split
from examples.paper.report import style

PyTree = Any

_EVALUATION_ROWS = 10
"""Into so many, the paper's, validation and test texts are cut."""


class TrainState(NamedTuple):
    """All that updates change, the seed of what they draw, and the parameters that were best on the validation text."""

    params: PyTree
    opt_state: optax.OptState
    step: Int[Array, ""]
    """Updates made."""
    best: PyTree
    best_loss: Float[Array, ""]
    seed: UInt32[Array, ""]


class TrainMetrics(NamedTuple):
    """A token's; in training, dropout is on."""

    loss: Float[Array, ""]


class Metrics(NamedTuple):
    """A token's loss, and the exponential of its mean."""

    loss: Float[Array, ""]
    perplexity: Float[Array, ""]


def load(settings: Settings) -> Corpus:
    """Raises UserError where there is no such text."""
    return load_corpus(settings.dataset, settings.data_dir, settings.text, settings.tokens, settings.train_fraction)


def check_length(settings: Settings, corpus: Corpus) -> None:
    """Raises UserError where a text has too few tokens for one window of each row."""
    for part, count in (("train", settings.batch_size), ("valid", _EVALUATION_ROWS), ("test", _EVALUATION_ROWS)):
        tokens = len(getattr(corpus, part))
        if tokens < count * (settings.window + 1):
            raise UserError(
                f"--window {settings.window}: the {part} text of {corpus.name} has {tokens} tokens, and {count} rows of "
                f"one window each need {count * (settings.window + 1)}; give a longer text, or a smaller --window or "
                "--batch-size."
            )


def build(settings: Settings, corpus: Corpus, mesh: Mesh) -> Training:
    """The intervals of a network on a text.

    Raises:
      UserError: the model cannot have such a size, or the text is too short.
    """
    check_length(settings, corpus)
    model = create_model(
        settings.model,
        vocabulary=len(corpus.vocabulary),
        window=settings.window,
        width=settings.width,
        layers=settings.layers,
        dropout=settings.dropout,
        dtype=jnp.dtype(settings.dtype),
        remat=settings.remat,
    )
    create = jax.jit(lambda key: model.init(key, jnp.zeros((1, settings.window), jnp.int32), train=False)["params"])
    layers = partial(find_layers, model, jax.eval_shape(create, jax.random.key(0)), settings.window)
    balanced_layers = layers(first_and_last=settings.ends)
    weights = layers(min_eigenvalues=2, first_and_last=True)
    steps = settings.evaluation_interval
    schedule = learning_rate_schedule(settings)
    tx = create_optimizer(settings, schedule, balanced_layers)

    def init(seed: int) -> TrainState:
        params = create(jax.random.key(seed))
        best = jax.tree.map(jnp.copy, params)  # buffers of their own: both are donated
        zero, infinity = jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, jnp.float32)
        return TrainState(params, tx.init(params), zero, best, infinity, jnp.asarray(np.uint32(seed)))

    return Training(
        init=init,
        inputs=lambda state, _: state.step + jnp.arange(steps),
        loss=partial(loss, model),
        evaluate=partial(evaluate, model, settings.batch_size),
        tx=tx,
        data=_place(corpus.train, settings.batch_size, settings.window, mesh),
        held_out_data=_place(corpus.valid, _EVALUATION_ROWS, settings.window, mesh),
        balanced=balanced_layers,
        weights=weights,
        schedule=schedule,
        steps=steps,
        test_data=_place(corpus.test, _EVALUATION_ROWS, settings.window, mesh),
    )


def learning_rate_schedule(settings: Settings) -> optax.Schedule:
    """A linear rise over the warm-up, if there is one, and a cosine from there to zero at the last update."""
    steps = round(settings.warm_up * settings.updates)
    if steps == 0:
        return optax.cosine_decay_schedule(settings.learning_rate, settings.updates)
    return optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, steps, settings.updates)


def find_layers(model: LanguageModel, params: PyTree, window: int, **kwargs: Any) -> tb_optax.Layers:
    """The layers as the authors' code balances them; of a GPT, as `trace_layers` finds them."""
    forward = lambda params, tokens: model.apply({"params": params}, tokens, train=False)
    found = tb_optax.trace_layers(forward, params, jax.ShapeDtypeStruct((1, window), jnp.int32), **kwargs)
    return paper_layers(found) if isinstance(model, TensorizedTransformer) else found


def create_optimizer(
    settings: Settings, schedule: optax.Schedule, layers: LayersOrFn
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `settings.method`, on clipped gradients, with TempBalance after it where the method has it.

    TempBalance scales the step that the cosine gives at every update. The released program has each layer's rate stand
    from one refresh to the next, the cosine with it.
    """
    steps, decay = settings.evaluation_interval, settings.weight_decay
    bases = {
        "adam": optax.adam,
        "adamw": partial(optax.adamw, weight_decay=decay),
        "adamw+alphadecay": lambda schedule: adamw_with_alphadecay(schedule, decay, settings, steps, layers),
    }
    optimizer = chain(optax.clip_by_global_norm(settings.clip), bases[settings.base](schedule))
    return with_tempbalance(optimizer, settings, steps, layers)


def _place(tokens: Int[np.ndarray, " n"], count: int, window: int, mesh: Mesh) -> Int[Array, "windows rows window_and_one"]:
    """A text's windows, on every device of the mesh."""
    return replicate(windows(rows(tokens, count), window), mesh)


def loss(
    model: LanguageModel,
    params: PyTree,
    state: TrainState,
    number: Int[Array, ""],
    batches: Int[Array, "windows rows window_and_one"],
) -> tuple[Float[Array, ""], tuple[TrainMetrics, dict[str, Any]]]:
    """The loss of an update: on one window of every row, by its number; after the last window the first one comes again.

    Each update draws from the run's seed and its own number, so a resumed run draws the same.
    """
    batch = split(batches[number % len(batches)])
    key = jax.random.fold_in(jax.random.key(state.seed), number)
    logits: Any = model.apply({"params": params}, batch[:, :-1], train=True, rngs={"dropout": key})
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()
    return loss, (TrainMetrics(loss), {})


def evaluate(
    model: LanguageModel, batch_size: int, state: TrainState, text: Int[Array, "windows rows window_and_one"]
) -> Metrics:
    """On a text's windows, in batches; the last one is filled up with windows that do not count."""
    examples = text.reshape(-1, text.shape[-1])
    count = len(examples)

    def total(indices: Int[Array, " batch"]) -> Float[Array, ""]:
        batch = split(examples[jnp.minimum(indices, count - 1)])
        logits: Any = model.apply({"params": state.params}, batch[:, :-1], train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean(axis=-1)
        return jnp.sum(jnp.where(indices < count, losses, 0.0))

    mean = jax.lax.map(total, batches(count, batch_size)).sum() / count
    return Metrics(mean, jnp.exp(mean))


LANGUAGE = Domain(
    "language",
    Settings,
    load,
    build,
    measure=Measure("test_perplexity", "test perplexity", percent=False, higher_is_better=False),
    metrics=("train_loss", "valid_loss", "valid_perplexity"),
    data=("dataset", "text", "tokens", "train_fraction"),
    style=style.LANGUAGE,
    interval="evaluation",
    unit="tokens",
)
