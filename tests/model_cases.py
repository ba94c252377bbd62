"""The architectures and edits over which the tests of the model run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from wane.scaling import model
from wane.scaling.edit import Edit
from wane.scaling.shape import Parametrization, Shape

# Dimensions that differ from each other (n_heads * head_dim is not d_model), so that no transposition is
# hidden; parametrisation ratios other than 1.
PARAMETRIZATION = Parametrization(base_d_model=32, base_n_layers=4)
BASE = {
    "d_model": 16,
    "n_layers": 3,
    "n_heads": 4,
    "head_dim": 6,
    "d_ff": 20,
    "vocab": 23,
    "context": 9,
    "parametrization": PARAMETRIZATION,
}
STANDARD = Parametrization(name="standard")

OPTIONS = {
    "llama": {},
    "gelu": {"activation": "gelu"},
    "layernorm": {"norm": "layernorm"},
    "no norm": {"norm": "none"},
    "norm after": {"norm_position": "after"},
    "no residual": {"residual": False},
    "no residual, norm after": {"residual": False, "norm_position": "after"},
    "grouped queries": {"n_kv_heads": 2},
    "qk norm": {"qk_norm": True},
    "tied": {"tied_embeddings": True},
    "no positions": {"rope_theta": None},
    "standard, other constants": {"parametrization": STANDARD, "rope_theta": 100.0, "norm_eps": 0.1},
    "experts": {"n_experts": 5, "top_k": 2},
    "one expert of three, gelu": {"n_experts": 3, "activation": "gelu", "norm_position": "after"},
    "all at once": {
        "activation": "gelu", "norm": "layernorm", "norm_position": "after", "n_kv_heads": 2, "qk_norm": True,
        "tied_embeddings": True,
    },
}  # fmt: skip


@functools.partial(jax.jit, static_argnames="shape")
def forward(params, tokens, shape: Shape, edit: Edit | None = None):
    """(logits, Output); one function for all tests, so that each program is compiled once."""
    output = model.apply(params, tokens, shape, edit)
    return model.unembed(model.merge(params, edit), output.x_BSD, shape), output


def shape_of(option: str, **changes) -> Shape:
    return Shape(**{**BASE, **OPTIONS[option], **changes})


def random_params(shape: Shape, seed: int = 0):
    """A tree like that of init_params, of which no leaf is constant: norm scales are not 1, biases not 0."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape)
        if path[-1].key.endswith("scale"):
            return 1 + 0.1 * noise
        if path[-1].key.endswith("bias"):
            return 0.1 * noise
        return noise * (0.3 if leaf.ndim == 2 else leaf.shape[-2] ** -0.5)

    tree = jax.eval_shape(lambda key: model.init_params(key, shape), jax.random.key(0))
    drawn = jax.tree_util.tree_map_with_path(draw, tree)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), drawn)


def random_tokens(shape: Shape, batch: int = 2, extra: int = 0, seed: int = 1):
    tokens = np.random.default_rng(seed).integers(shape.vocab, size=(batch, shape.context + extra))
    return jnp.asarray(tokens, jnp.int32)


def random_edit(shape: Shape, seed: int = 2) -> dict[str, dict]:
    """A value for each field of Edit that acts without rounding."""
    rng = np.random.default_rng(seed)
    L, H = shape.n_layers, shape.n_heads
    q_LIO = rng.standard_normal((L, *shape.matrices["q"])).astype(np.float32) / 4
    scale_D = np.abs(rng.standard_normal(shape.d_model)).astype(np.float32)
    edit = {
        "head_LH": rng.choice([0, 0.5, 1], (L, H)),
        "neuron_LF": rng.choice([0, 0.5, 1], (*shape.lead("up"), shape.d_ff)),
        "attn_L": np.array([1, 0, 0.5]),
        "mlp_L": np.array([0.5, 1, 0]),
        "bias": {n: rng.standard_normal((*shape.lead(n), shape.matrices[n][1])) for n in shape.matrices},
        "params": {"blocks": {"q": q_LIO}, "final_norm": {"scale": scale_D}},
    }
    if shape.n_experts is not None:  # in the last layer all but one are gone, fewer than a token asks for
        expert_LE = rng.random((L, shape.n_experts)) < 0.6
        expert_LE[-1] = np.arange(shape.n_experts) == 1
        edit |= {"expert_LE": expert_LE, "active_L": np.arange(L) % shape.n_experts + 1}
    return jax.tree.map(lambda a: np.asarray(a, np.float32), edit)


def neutral_edit(params, edit: dict, top_k: int = 1) -> dict:
    """An edit of the same structure that changes nothing."""
    same = {"blocks": {"q": params["blocks"]["q"]}, "final_norm": {"scale": params["final_norm"]["scale"]}}
    neutral = {name: np.ones_like(value) for name, value in edit.items() if name not in ("bias", "params")}
    if "active_L" in edit:
        neutral["active_L"] = np.full_like(edit["active_L"], top_k)
    return neutral | {"bias": jax.tree.map(np.zeros_like, edit["bias"]), "params": same}
