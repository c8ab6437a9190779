"""
What balancing does to a small Transformer
==========================================

The same GPT is trained twice, from the same parameters on the same text in the same order: with Adam, and with Adam
and TempBalance. How do the alphas of its layers and its loss change?
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import tb_optax
from examples.paper.language.data import load_corpus, rows, windows
from examples.paper.language.models.gpt import GPT

# %%
# Python's own help topics, a character at a time; a decoder of three layers, which are scanned over: one array holds
# a kernel of all of them, and each has its own spectrum.

corpus = load_corpus("pydoc", None, None, "characters", 1.0)
train, valid = (jnp.asarray(windows(rows(text, 16), 64)) for text in (corpus.train, corpus.valid))
model = GPT(len(corpus.vocabulary), layers=3, width=96, heads=4, key_value_heads=4)
params = model.init(jax.random.key(0), train[0, :1, :-1], train=False)


def forward(params, tokens):
    return model.apply(params, tokens, train=False)


def loss_fn(params, window):
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, window[:, :-1]), window[:, 1:]).mean()


layers = tb_optax.trace_layers(forward, params, train[0, :1, :-1])
print(layers)

# %%
# A refresh every 20 updates. The alphas of both runs are measured in between, in the same way.

interval, updates = 20, 400
optimizers = {
    "Adam": optax.adam(1e-3),
    "Adam and TempBalance": optax.chain(optax.adam(1e-3), tb_optax.tempbalance(interval, layers=layers)),
}


def run(tx):
    @jax.jit
    def some_updates(params, opt_state, batches):
        def update(carry, window):
            params, opt_state = carry
            grads = jax.grad(loss_fn)(params, window)
            steps, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, steps), opt_state), None

        carry, _ = jax.lax.scan(update, (params, opt_state), batches)
        eigenvalues = tb_optax.spectra(carry[0], layers=layers)
        alphas = jnp.concatenate([tb_optax.metrics.pl_alpha_hill(each).reshape(-1) for each in eigenvalues.values()])
        return carry, alphas, loss_fn(carry[0], valid[0])

    carry, history = (params, optax.with_extra_args_support(tx).init(params)), []
    for start in range(0, updates, interval):
        carry, alphas, loss = some_updates(*carry, train[start : start + interval])
        history.append((start + interval, np.asarray(alphas), float(loss)))
    return carry[1], history


runs = {name: run(tx) for name, tx in optimizers.items()}

# %%
# One line for each layer. TempBalance gives larger steps to layers with a large alpha and smaller steps to layers with
# a small one, and the lines come together. The loss hardly changes.

figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, sharey=True, layout="constrained")
for axes, (name, (_, history)) in zip(panels, runs.items(), strict=True):
    axes.plot([at for at, *_ in history], [alphas for _, alphas, _ in history], lw=0.8, color="#0072B2")
    axes.set(title=name, xlabel="update")
    last, loss = history[-1][1:]
    print(
        f"{name}: alphas from {last.min():.2f} to {last.max():.2f}, deviation {last.std():.3f}; validation loss {loss:.3f}"
    )
panels[0].set_ylabel("alpha")
plt.show()

# %%
# The scales of the second run at its end: the factor on the steps of each layer.

balance = optax.tree_utils.tree_get(runs["Adam and TempBalance"][0], "TempBalanceState")
for name, scale in balance.scale.items():
    print(f"{name:28s}", np.round(np.asarray(scale), 2))

# %%
# How soon do scales grow stale? The mean distance of a layer's scale, between 0.5 and 1.5, from its own some updates
# later: in the first quarter of the training, and after it.

alphas = jnp.asarray([alphas for _, alphas, _ in runs["Adam and TempBalance"][1]])
scales = np.asarray(jax.vmap(lambda each: tb_optax.assignments.linear(each, 0.5, 1.5))(alphas))
for later in (1, 2, 4, 8):
    moved = np.abs(scales[later:] - scales[:-later]).mean(axis=1)
    print(f"{later * interval:4d} updates later: {moved[:5].mean():.3f} at first, {moved[5:].mean():.3f} then")

# %%
# One seed and a minute of training cannot show which is better; see the runs in :doc:`/evidence`.
