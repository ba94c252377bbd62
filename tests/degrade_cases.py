"""What the tests of degradation methods share: two small models, the methods with settings, jitted once each."""

import functools
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wane.scaling import model
from wane.scaling.degrade import build
from wane.scaling.degrade.contract import EVERYTHING, Scope, Where, severity_of
from wane.scaling.edit import SITES, Edit, fold, merge
from wane.scaling.shape import Shape

SHAPES = {
    "mha-swiglu": Shape(d_model=16, n_layers=3, n_heads=4, head_dim=4, d_ff=24, vocab=32, context=8),
    "gqa-gelu": Shape(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=32, vocab=32, context=8,
        activation="gelu", norm="layernorm",
    ),
}  # fmt: skip


class Case(NamedTuple):
    """A method with settings; hashable."""

    method: str
    settings: tuple[tuple[str, object], ...] = ()

    @staticmethod
    def of(method: str, **settings) -> "Case":
        return Case(method, tuple(sorted(settings.items())))

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{k}={v}" for k, v in self.settings)])

    def build(self, shape: Shape, scope: Scope = EVERYTHING):
        return build(self.method, shape, scope, dict(self.settings))


CASES = (
    Case.of("random_weights"),
    Case.of("random_weights", group="row", replace="rescale"),
    Case.of("random_weights", group="global", replace="mean"),
    Case.of("magnitude_weights"),
    Case.of("magnitude_weights", group="row"),
    Case.of("magnitude_weights", group="global", normalise=True),
    Case.of("random_neurons"),
    Case.of("random_neurons", group="global", replace="rescale"),
    Case.of("random_neurons", replace="mean"),
    Case.of("random_heads"),
    Case.of("random_heads", group="layer", replace="rescale"),
    Case.of("random_heads", replace="mean"),
    Case.of("remove_layers"),
    Case.of("remove_layers", part="attention", order="first"),
    Case.of("remove_layers", part="mlp", order="last"),
    Case.of("rtn"),
    Case.of("rtn", symmetric=False, group_size=8),
    Case.of("activations"),
    Case.of("activations", granularity="tensor"),
    Case.of("gaussian_noise"),
    Case.of("gaussian_noise", match="rtn", group_size=8),
)


@functools.lru_cache
def trained(shape: Shape, seed: int = 0) -> dict:
    """Random parameters without a zero among them."""
    return jax.jit(model.init_params, static_argnums=1)(jax.random.key(seed), shape)


@functools.lru_cache
def tokens(shape: Shape) -> jax.Array:
    return jax.random.randint(jax.random.key(9), (6, shape.context + 1), 0, shape.vocab)


class Bench:
    """One case on one shape, with its programs jitted: `fit`, `run` (edit, folded matrices, cost)."""

    def __init__(self, case: Case, shape: Shape):
        self.shape, self.params = shape, trained(shape)
        self.method = case.build(shape)
        self.everywhere = Where.everywhere(shape)
        self.fit = jax.jit(lambda *arguments: self.method.fit(*arguments))  # a cache of its own
        self.fitted = self.fit(self.params, tokens(shape), jax.random.key(1))
        self.run = jax.jit(self._run)

    def _run(self, params, fitted, severity, where, key):
        edit = self.method.apply(params, fitted, severity, where, key)
        cost = self.method.cost(params, edit, severity)
        return edit, fold(params, edit, self.shape), cost

    def at(self, severity: float, where: Where | None = None, fitted=None):
        """(edit, folded, cost) in numpy at one severity."""
        fitted = self.fitted if fitted is None else fitted
        where = where or self.everywhere
        severity = np.float32(severity)
        return jax.tree.map(np.asarray, self.run(self.params, fitted, severity, where, jax.random.key(7)))

    def severity(self, fraction: float, bits: float, sigma: float) -> float:
        """The severity among the three that the method's unit means."""
        unit = self.method.unit
        return severity_of({"fraction": fraction, "bits": bits, "sigma": sigma}[unit], unit)


@functools.lru_cache
def bench(case: Case, shape: str) -> Bench:
    return Bench(case, SHAPES[shape])


def complete(params: dict, edit: Edit, shape: Shape) -> Edit:
    """The same edit with every field filled in, so that one executable runs the edits of all methods."""
    L, H, F = shape.n_layers, shape.n_heads, shape.d_ff
    sizes = {"head_LH": (L, H), "neuron_LF": (L, F), "attn_L": (L,), "mlp_L": (L,)}
    bias = {name: jnp.zeros((L, fan_out)) for name, (_, fan_out) in shape.matrices.items()}
    absmax = edit.activation_absmax
    return Edit(
        params={"blocks": merge(params, edit)["blocks"]},
        bias=bias | (edit.bias or {}),
        activation_bits={site: jnp.full(L, 16, jnp.float32) for site in SITES} | (edit.activation_bits or {}),
        activation_absmax=None if not absmax else {site: jnp.ones(L) for site in SITES} | absmax,
        **{
            field: jnp.ones(n) if getattr(edit, field) is None else getattr(edit, field)
            for field, n in sizes.items()
        },
    )


# Compiled without optimisation where only the mathematics is tested, which halves the time.
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}


@functools.partial(jax.jit, static_argnames="shape", **QUICK)
def loss_and_logits(params: dict, edit: Edit, tokens_NT: jax.Array, shape: Shape):
    """(((loss, logits), gradients with respect to params and edit))."""

    def loss(params, edit):
        x_BSD = model.apply(params, tokens_NT[:, :-1], shape, edit).x_BSD
        logits = model.unembed(merge(params, edit), x_BSD, shape)
        return model.nll_of_logits(logits, tokens_NT[:, 1:]).mean(), logits

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, edit)


def floor_share(n: int, severity: str) -> int:
    """floor(n s) in exact rational arithmetic."""
    return int(Fraction(severity) * int(n))
