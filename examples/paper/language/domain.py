"""Language modelling (the paper's Appendix G): `LANGUAGE` is all that runs, sweeps and reports know of it."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

import tb_optax
from examples.paper.balance import LayersOrFn, adamw_with_alphadecay, chain, with_tempbalance
from examples.paper.domain import Domain, Measure, Selection, Training
from examples.paper.errors import UserError
from examples.paper.language.data import Corpus, load_corpus, rows
from examples.paper.language.models import LanguageModel, create_model
from examples.paper.language.models.tensorized import TensorizedTransformer, paper_layers
from examples.paper.language.settings import Settings
from examples.paper.language.updates import TrainState, evaluate, keep_best, loss, windows
from examples.paper.parallel import replicate
from examples.paper.report import style

PyTree = Any

_EVALUATION_ROWS = 10
"""Into so many, the paper's, validation and test texts are cut."""


def load(settings: Settings) -> Corpus:
    """Raises UserError where there is no such text."""
    return load_corpus(settings.dataset, settings.data_dir, settings.text, settings.tokens, settings.train_fraction)


def check_length(settings: Settings, corpus: Corpus) -> None:
    """Raises UserError where a text has too few tokens for one window of each row."""
    for split, count in (("train", settings.batch_size), ("valid", _EVALUATION_ROWS), ("test", _EVALUATION_ROWS)):
        tokens = len(getattr(corpus, split))
        if tokens < count * (settings.window + 1):
            raise UserError(
                f"--window {settings.window}: the {split} text of {corpus.name} has {tokens} tokens, and {count} rows of "
                f"one window each need {count * (settings.window + 1)}; give a longer text, or a smaller --window or "
                "--batch-size."
            )


def prepare(settings: Settings, corpus: Corpus, mesh: Mesh) -> Training:
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
        selection=Selection(
            keep_best,
            lambda state: state._replace(params=state.best),
            _place(corpus.test, _EVALUATION_ROWS, settings.window, mesh),
        ),
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


def describe(line: Mapping[str, Any]) -> str:
    """A line of the log."""
    return f"loss {line['train_loss']:.3f}  valid {line['valid_loss']:.3f}, perplexity {line['valid_perplexity']:.2f}"


LANGUAGE = Domain(
    "language",
    Settings,
    load,
    prepare,
    measure=Measure("test_perplexity", "test perplexity", percent=False, higher_is_better=False),
    metrics=("train_loss", "valid_loss", "valid_perplexity"),
    describe=describe,
    data=("dataset", "text", "tokens", "train_fraction"),
    style=style.LANGUAGE,
    interval="evaluation",
    unit="tokens",
    held_out="valid",
)
