"""What the tests of degradation methods share: small models, the methods with settings, jitted once each.

A new method is a line in CASES per set of settings worth testing; its promises say which tests hold it.
"""

import dataclasses
import functools
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wane.scaling import model
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import EVERYTHING, Scope, Where, severity_of
from wane.scaling.edit import SITES, Edit, Lens, fold, merge
from wane.scaling.shape import Shape

SHAPES = {
    "mha-swiglu": Shape(d_model=16, n_layers=3, n_heads=4, head_dim=4, d_ff=24, vocab=32, context=8),
    "gqa-gelu": Shape(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=32, vocab=32, context=8,
        activation="gelu", norm="layernorm",
    ),
    "moe": Shape(
        d_model=16, n_layers=2, n_heads=4, head_dim=4, d_ff=8, n_experts=4, top_k=2, vocab=32, context=8,
    ),
}  # fmt: skip


class Case(NamedTuple):
    """A method with settings, and the shape of SHAPES on which these settings are tested; hashable."""

    method: str
    settings: tuple[tuple[str, object], ...] = ()
    home: str = "mha-swiglu"

    @staticmethod
    def of(method: str, **settings) -> "Case":
        return Case(method, tuple(sorted(settings.items())))

    @staticmethod
    def on(home: str, method: str, **settings) -> "Case":
        return Case.of(method, **settings)._replace(home=home)

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{k}={str(v).rsplit('/')[-1]}" for k, v in self.settings)])

    @property
    def shapes(self) -> tuple[str, ...]:
        """Its home; default settings are tested inside experts too, what routes only there."""
        alone = self.settings or self.home != "mha-swiglu"
        return (self.home,) if alone else (self.home, "moe")

    def build(self, shape: Shape, scope: Scope = EVERYTHING):
        return build(self.method, shape, scope, dict(self.settings))


MASK = str(Path(__file__).parent / "golden" / "mask.npz")  # half of all weights of mha-swiglu

CASES = (
    Case.of("random_weights"),
    Case.of("random_weights", group="row", replace="rescale"),
    Case.of("random_weights", group="global", replace="mean"),
    Case.of("magnitude_weights"),
    Case.of("magnitude_weights", group="row"),
    Case.of("magnitude_weights", group="n:4"),
    Case.of("magnitude_weights", tile=(4, 2), convention="keep_one"),
    Case.of("magnitude_weights", group="global", normalise=True),
    Case.of("wanda"),
    Case.of("wanda", group="n:8"),
    Case.of("wanda", use_variant=True),
    Case.of("sparsegpt"),
    Case.of("sparsegpt", group="n:4", quantize_bits=4),
    Case.of("taylor_weights"),
    Case.of("taylor_weights", average="sequence", group="n:4"),
    Case.of("fisher_weights"),
    Case.of("zero_sensitivity"),
    Case.of("zero_sensitivity", unit="row", group="global"),
    Case.of("given_mask", file=MASK),
    Case.of("random_neurons"),
    Case.of("random_neurons", group="global", replace="rescale"),
    Case.of("random_neurons", replace="mean"),
    Case.of("glu_importance"),
    Case.of("glu_importance", score="activation", group="global"),
    Case.of("glu_importance", score="hybrid"),
    Case.of("random_heads"),
    Case.of("random_heads", group="layer", replace="rescale"),
    Case.of("random_heads", replace="mean"),
    Case.on("gqa-gelu", "random_heads", unit="kv_group"),
    Case.on("gqa-gelu", "random_heads"),
    Case.on("gqa-gelu", "glu_importance"),
    Case.on("gqa-gelu", "slicegpt"),
    Case.on("gqa-gelu", "kv_cache"),
    Case.of("scored_heads"),
    Case.on("gqa-gelu", "scored_heads", score="entropy", unit="kv_group", group="layer"),
    Case.of("slicegpt"),
    Case.of("slicegpt", round_to=8, slice_head=True, subtract_embedding_mean=True),
    Case.of("random_dimensions"),
    Case.of("pca_dimensions"),
    Case.of("remove_layers"),
    Case.of("remove_layers", part="attention", order="first"),
    Case.of("remove_layers", part="mlp", order="last"),
    Case.of("remove_layers", part="joint", order="spread"),
    Case.of("drop_layers_by_similarity"),
    Case.of("drop_layers_by_similarity", part="joint", iterative=True),
    Case.of("drop_layers_by_similarity", criterion="block_influence"),
    Case.of("drop_layers_by_ablation"),
    Case.of("drop_layers_by_ablation", part="attention", criterion="final_state", greedy=True),
    Case.of("drop_consecutive_layers"),
    Case.of("drop_consecutive_layers", distance="cosine", starts="after_first"),
    Case.of("early_exit"),
    Case.of("early_exit", lens="tuned", steps=2),
    Case.of("rtn"),
    Case.of("rtn", symmetric=False, group_size=8),
    Case.of("rtn", symmetric=False, per_tensor=True, convention="qwix"),
    Case.of("rtn", mse=True),
    Case.of("normal_float"),
    Case.of("minifloat"),
    Case.of("minifloat", exponent_bits=2, scaling="mx", group_size=8),
    Case.of("gptq"),
    Case.of("gptq", group_size=8, act_order=True, symmetric=True),
    Case.of("awq"),
    Case.of("mixed_precision"),
    Case.of("mixed_precision", by="sensitivity"),
    Case.of("activations"),
    Case.of("activations", granularity="tensor"),
    Case.of("kv_cache"),
    Case.of("kv_cache", granularity="channel_keys"),
    Case.on("moe", "remove_experts"),
    Case.on("moe", "remove_experts", order="usage", group="global"),
    Case.on("moe", "fewer_experts"),
    Case.of("gaussian_noise"),
    Case.of("gaussian_noise", match="rtn", group_size=8),
    Case.of("gaussian_noise", match="wanda", kind="sign_preserving"),
    Case.of("shuffle_weights"),
    Case.of("substitute_tokens"),
    Case.of("delete_tokens"),
    Case.of("embedding_noise"),
    Case.of("embedding_attack"),
)


TABLE = tuple((case, shape) for case in CASES for shape in case.shapes)


@functools.lru_cache
def trained(shape: Shape, seed: int = 0) -> dict:
    """Random parameters without a zero among them."""
    return jax.jit(model.init_params, static_argnums=1)(jax.random.key(seed), shape)


@functools.lru_cache
def tokens(shape: Shape) -> jax.Array:
    return jax.random.randint(jax.random.key(9), (6, shape.context + 1), 0, shape.vocab)


# Compiled without optimisation, which halves the time of tests that mostly compile.
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}
# As users compile, where last bits count: conftest.py has other options for all.
AS_USUAL = {"compiler_options": {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}}


class Bench:
    """One case on one shape, with its programs jitted: `fit`, `run` (edit, folded matrices, cost), `hold`."""

    def __init__(self, case: Case, shape: Shape):
        self.shape, self.params = shape, trained(shape)
        self.method = case.build(shape)
        self.everywhere = Where.everywhere(shape)
        self.fit = jax.jit(lambda *arguments: self.method.fit(*arguments), **QUICK)  # a cache of its own
        self.fitted = self.fit(self.params, tokens(shape), jax.random.key(1))
        self.run = jax.jit(self._run, **QUICK)
        self.hold = jax.jit(lambda *arguments: self.method.hold(*arguments), **QUICK)
        self._known = {}

    def _run(self, params, fitted, severity, where, key):
        edit = self.method.apply(params, fitted, severity, where, key)
        cost = self.method.cost(params, edit, severity)
        return edit, fold(params, edit, self.shape), cost

    def at(self, severity: float, where: Where | None = None, fitted=None, seed: int = 7):
        """(edit, folded, cost) in numpy at one severity."""
        severity = float(severity)
        plain = where is None and fitted is None
        if plain and (severity, seed) in self._known:
            return self._known[severity, seed]
        fitted, where = self.fitted if fitted is None else fitted, where or self.everywhere
        out = self.run(self.params, fitted, np.float32(severity), where, jax.random.key(seed))
        out = jax.tree.map(np.asarray, jax.tree.map(without_key_type, out))
        if plain:
            self._known[severity, seed] = out
        return out

    def severity(self, fraction: float, bits: float, sigma: float, ratio: float = 4.0) -> float:
        """The severity among the four that the method's unit means."""
        unit = self.method.unit
        return severity_of({"fraction": fraction, "bits": bits, "sigma": sigma, "ratio": ratio}[unit], unit)


def without_key_type(leaf: jax.Array) -> jax.Array:
    """Typed keys as their data, which numpy can hold and the model also takes."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@functools.lru_cache(maxsize=8)  # the tests of a case stand together (conftest.py)
def bench(case: Case, shape: str) -> Bench:
    return Bench(case, SHAPES[shape])


def complete(params: dict, edit: Edit, shape: Shape) -> Edit:
    """The same edit with every field filled in that acts by numbers, so that one executable runs the edits of all
    methods."""
    L, D = shape.n_layers, shape.d_model
    states = 2 * L + 1
    neutral = {
        "head_LH": jnp.ones((L, shape.n_heads)),
        "neuron_LF": jnp.ones((*shape.lead("up"), shape.d_ff)),
        "attn_L": jnp.ones(L),
        "mlp_L": jnp.ones(L),
        "residual_XD": jnp.ones((states, D)),
        "residual_map": jnp.broadcast_to(jnp.eye(D), (states, D, D)),
        "lens": Lens(jnp.eye(D), jnp.zeros(D)),
    }
    if shape.n_experts is not None:
        neutral |= {"expert_LE": jnp.ones((L, shape.n_experts)), "active_L": jnp.full(L, shape.top_k)}
    given = {field: value for field in neutral if (value := getattr(edit, field)) is not None}
    bias = {name: jnp.zeros((*shape.lead(name), fan_out)) for name, (_, fan_out) in shape.matrices.items()}
    absmax = edit.activation_absmax
    return Edit(
        params=merge(params, edit),
        bias=bias | (edit.bias or {}),
        activation_bits=full_bits(SITES, L) | (edit.activation_bits or {}),
        activation_absmax=None if not absmax else {site: jnp.ones(L) for site in SITES} | absmax,
        cache_bits=full_bits("kv", L) | (edit.cache_bits or {}),
        cache_range=edit.cache_range,
        corruption=edit.corruption,
        **neutral | given,
    )


def full_bits(names, n_layers: int) -> dict[str, jax.Array]:
    return {name: jnp.full(n_layers, 16, jnp.float32) for name in names}


def numbers(edit: Edit) -> Edit:
    """The part of a complete edit that a gradient can be taken of."""
    return dataclasses.replace(edit, active_L=None, corruption=None)


def forward(params: dict, edit: Edit, tokens_NT: jax.Array, shape: Shape) -> jax.Array:
    """Logits [N, S, V] under an edit."""
    x_BSD = model.apply(params, tokens_NT[:, :-1], shape, edit).x_BSD
    return model.unembed(merge(params, edit), x_BSD, shape)


logits_of = jax.jit(forward, static_argnames="shape", **AS_USUAL)


@functools.partial(jax.jit, static_argnames="shape", **QUICK)
def loss_gradients(params: dict, edit: Edit, tokens_NT: jax.Array, shape: Shape) -> tuple[dict, Edit]:
    """Gradients of the mean loss with respect to params and to the numbers of a complete edit."""

    def loss(params, part):
        full = dataclasses.replace(part, active_L=edit.active_L, corruption=edit.corruption)
        return model.nll_of_logits(forward(params, full, tokens_NT, shape), tokens_NT[:, 1:]).mean()

    return jax.grad(loss, argnums=(0, 1))(params, numbers(edit))


def floor_share(n: int, severity: str) -> int:
    """floor(n s) in exact rational arithmetic."""
    return int(Fraction(severity) * int(n))


def ranking_groups(edit: Edit, settings: dict, shape: Shape) -> list[np.ndarray]:
    """What a method counts together, removed where it is 0: units of a layer or of the model, weights of a matrix,
    of an output, of some inputs, or of the model."""
    group = settings.get("group", "global")  # of layers there is one group
    if edit.params is None:
        units = unit_multipliers(edit, settings, shape)
        return list(units) if group == "layer" else [units]
    blocks = edit.params["blocks"]
    matrices = [w_IO for w in blocks.values() for w_IO in w.reshape(-1, *w.shape[-2:])]
    if group == "global":
        return [np.concatenate([w_IO.ravel() for w_IO in matrices])]
    if group in ("row", "n:4", "n:8"):
        size = {"n:4": 4, "n:8": 8}.get(group)
        return [
            part for w_IO in matrices for column in w_IO.T for part in column.reshape(-1, size or len(column))
        ]
    if group == "block":
        size = settings["blocksize"]
        return [w_IO[first : first + size] for w_IO in matrices for first in range(0, len(w_IO), size)]
    return matrices


def unit_multipliers(edit: Edit, settings: dict, shape: Shape) -> np.ndarray:
    """[L, U] of the units that an edit removes, [1, U] of those that all layers share."""
    if settings.get("part") == "joint":
        return np.concatenate([edit.attn_L, edit.mlp_L])[None]
    if edit.residual_XD is not None:
        return edit.residual_XD[-1:]
    fields = (edit.head_LH, edit.neuron_LF, edit.expert_LE, edit.attn_L, edit.mlp_L)
    units = next(u for u in fields if u is not None)
    units = units.reshape(shape.n_layers, -1)
    if settings.get("unit") == "kv_group":
        units = units.reshape(shape.n_layers, shape.kv_heads, -1).any(axis=2)
    return units
