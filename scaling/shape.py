"""One architecture as a value: dimensions, architectural options, exact counts of parameters and FLOPs.

Letters in tensor names, here and everywhere: B batch, S sequence, T = S + 1 tokens of a window, D d_model,
H heads, G key-value heads, K head_dim, F d_ff, E experts, L layers, V vocabulary, I/O in and out of any matrix,
R replicas (seeds), N evaluation or calibration sequences.
"""

import dataclasses
import math
from typing import Literal

MLP = ("gate", "up", "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parametrization:
    """How initialisation, residual scale, learning rate and weight decay follow from a shape.

    `complete-p` (Dey et al. 2025, arXiv 2505.01618, Table 1): with m_N = d_model / base_d_model and
    m_L = n_layers / base_n_layers, residual branches are multiplied by m_L^-residual_exponent and logits by
    1 / m_N, so that one learning rate is optimal at every width and depth.  `standard` multiplies nothing
    and initialises the projections that write to the residual stream by 1 / sqrt(2 L) less (GPT-2).
    """

    name: Literal["complete-p", "standard"] = "complete-p"
    base_d_model: int = 64
    base_n_layers: int = 4
    residual_exponent: float = 1.0
    embed_std: float = 0.02  # of embedding and unembedding entries
    init_gain: float = 1.0  # multiplies the standard deviation gain / sqrt(fan_in) of every block matrix

    def width_ratio(self, d_model: int) -> float:
        """m_N; 1 under the standard parametrisation."""
        return d_model / self.base_d_model if self.name == "complete-p" else 1.0

    def depth_ratio(self, n_layers: int) -> float:
        """m_L; 1 under the standard parametrisation."""
        return n_layers / self.base_n_layers if self.name == "complete-p" else 1.0


def check_experts(owner: str, n_experts: int | None, top_k: int) -> None:
    """Raises ValueError naming the field of `owner` when a mixture of experts cannot be built."""
    if n_experts is None and top_k != 1:
        raise ValueError(
            f"{owner}.top_k = {top_k}: read with n_experts only; give n_experts or leave it at 1"
        )
    if n_experts is not None and n_experts < 1:
        raise ValueError(f"{owner}.n_experts = {n_experts}: must be at least 1, or None for a dense MLP")
    if n_experts is not None and not 1 <= top_k <= n_experts:
        raise ValueError(f"{owner}.top_k = {top_k}: must be from 1 to n_experts = {n_experts}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Dimensions and architecture of a decoder-only transformer.  Hashable: a static argument of jitted code.

    Raises ValueError naming the field when dimensions contradict each other.
    """

    d_model: int
    n_layers: int
    n_heads: int
    head_dim: int
    d_ff: int
    vocab: int
    context: int
    n_kv_heads: int | None = None  # None: one per query head; fewer: grouped-query attention
    n_experts: int | None = None  # None: dense MLP; else a mixture of experts, each with d_ff hidden units
    top_k: int = 1  # experts that a token runs through; read with n_experts only
    activation: Literal["swiglu", "gelu"] = "swiglu"
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    norm_position: Literal["before", "after"] = "before"
    qk_norm: bool = False
    tied_embeddings: bool = False
    residual: bool = True
    rope_theta: float | None = (
        10_000.0  # None: no positional encoding, order comes from the causal mask alone
    )
    norm_eps: float = 1e-5
    dtype: Literal["float32", "bfloat16"] = (
        "float32"  # of activations and matrix products; parameters stay f32
    )
    remat: bool = False  # recompute a block's activations in the backward pass
    parametrization: Parametrization = Parametrization()

    def __post_init__(self):
        for field in ("d_model", "n_layers", "n_heads", "head_dim", "d_ff", "vocab", "context"):
            if getattr(self, field) < 1:
                raise ValueError(f"shape.{field} = {getattr(self, field)}: must be at least 1")
        if self.head_dim % 2 and self.rope_theta is not None:
            raise ValueError(f"shape.head_dim = {self.head_dim}: must be even (RoPE rotates pairs)")
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(f"shape.n_kv_heads = {self.n_kv_heads}: must divide n_heads = {self.n_heads}")
        check_experts("shape", self.n_experts, self.top_k)

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def name(self) -> str:
        """Short label, unique within a family: d_model, n_layers, d_ff (budgets of one series may share two),
        experts if any."""
        experts = "" if self.n_experts is None else f"-e{self.n_experts}"
        return f"d{self.d_model}-L{self.n_layers}-f{self.d_ff}{experts}"

    @property
    def aspect_ratio(self) -> float:
        return self.d_model / self.n_layers

    @property
    def residual_scale(self) -> float:
        p = self.parametrization
        return p.depth_ratio(self.n_layers) ** -p.residual_exponent

    @property
    def logit_scale(self) -> float:
        return 1.0 / self.parametrization.width_ratio(self.d_model)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every matrix of one block, in the order in which a forward pass meets them; those of the
        MLP exist once per expert.  The router is no matrix: no method degrades it."""
        d, q, kv = self.d_model, self.n_heads * self.head_dim, self.kv_heads * self.head_dim
        mlp = {"up": (d, self.d_ff), "down": (self.d_ff, d)}
        if self.activation == "swiglu":
            mlp = {"gate": (d, self.d_ff)} | mlp
        return {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)} | mlp

    def lead(self, matrix: str) -> tuple[int, ...]:
        """Leading axes of a stacked block matrix: (L,), and (L, E) for the matrices of experts."""
        experts = self.n_experts is not None and matrix in MLP
        return (self.n_layers, self.n_experts) if experts else (self.n_layers,)

    def full(self, matrix: str) -> tuple[int, ...]:
        """Size of a stacked block matrix, [L, I, O] or [L, E, I, O]."""
        return (*self.lead(matrix), *self.matrices[matrix])

    def init_std(self, matrix: str) -> float:
        """Standard deviation of the initial entries of a block matrix: gain / sqrt(fan_in)."""
        std = self.parametrization.init_gain / math.sqrt(self.matrices[matrix][0])
        if self.parametrization.name == "standard" and matrix in ("o", "down"):
            std /= math.sqrt(2 * self.n_layers)
        return std

    def param_counts(self) -> dict[str, int]:
        """Exact counts: `blocks` (matrices, of all experts), `norms`, `router`, `embed`, `unembed`;
        `non_embedding`, `total`, and `active`: the non-embedding parameters that one token runs through."""
        per_norm = {"rmsnorm": 1, "layernorm": 2, "none": 0}[self.norm] * self.d_model
        norms = (2 * self.n_layers + 1) * per_norm + self.n_layers * self.qk_norm * 2 * self.head_dim
        blocks = sum(math.prod(self.full(name)) for name in self.matrices)
        router = self.n_layers * self.d_model * (self.n_experts or 0)
        idle = 0  # matrices of the experts that a token does not visit
        if self.n_experts is not None:
            mlp = sum(math.prod(self.full(name)) for name in self.matrices if name in MLP)
            idle = mlp // self.n_experts * (self.n_experts - self.top_k)
        non_embedding = blocks + norms + router
        embed = self.vocab * self.d_model
        unembed = 0 if self.tied_embeddings else embed
        return {
            "blocks": blocks,
            "norms": norms,
            "router": router,
            "embed": embed,
            "unembed": unembed,
            "non_embedding": non_embedding,
            "active": non_embedding - idle,
            "total": non_embedding + embed + unembed,
        }

    def flops_per_token(self, *, backward: bool = False, all_experts: bool = False) -> int:
        """Matrix-product FLOPs (2 per multiply-add) per token of a full context: block matrices, router,
        attention scores and values over all S keys (the masked half is computed too), unembedding; of experts
        those that a token visits.  With `backward`, forward plus backward: three times the forward (two products
        per product, for weights and inputs).

        all_experts: what the model really computes, because it runs every expert on every token and adds them
        up with routing weights (2 E D per token and layer), 0 for those that a token does not visit.
        """
        counts = self.param_counts()
        blocks = 2 * (counts["active"] - counts["norms"])
        if all_experts and self.n_experts is not None:
            mixing = self.n_layers * self.n_experts * self.d_model
            blocks = 2 * (counts["blocks"] + counts["router"] + mixing)
        attention = self.n_layers * 4 * self.context * self.n_heads * self.head_dim
        unembed = 2 * self.vocab * self.d_model
        return (3 if backward else 1) * (blocks + attention + unembed)
