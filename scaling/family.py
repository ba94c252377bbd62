"""Families: shapes that agree in one matched quantity and differ in width and depth, or in size."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from wane.scaling.budget import AspectRatio, Depth, Search, matched
from wane.scaling.shape import Parametrization, Shape, check_experts

Match = Literal["non_embedding", "blocks", "active", "total", "flops"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What a study asks for; `groups` and `shapes` turn it into architectures.

    Three kinds: `budget` with `depths`; `budget` with `aspect_ratios`; `ladder_c` with square `depths`, where
    d_model = ladder_c / sqrt(L) and the block matrices of every shape have the same count.  Several budgets make
    a size series or a grid.

    With n_experts every matched quantity but two counts all experts; `active` and `flops` count what one token
    runs through.  d_ff and d_ff_ratio are those of one expert, so that at one d_ff_ratio more experts make a
    family narrower; a ladder's block matrices still match exactly, its routers (n_experts * d_model per layer)
    do not, as its norms do not.  Raises ValueError naming the field when fields contradict each other; `groups` and
    `shapes` also when a budget cannot be met.
    """

    budget: int | tuple[int, ...] | None = None  # parameters, or FLOPs per token; one group of shapes each
    match: Match = "non_embedding"  # blocks: matrices of the blocks only; flops: forward, at full context
    depths: tuple[int, ...] = ()
    aspect_ratios: tuple[float, ...] = ()  # d_model / n_layers
    ladder_c: int | None = None
    max_mismatch: float = 0.005  # largest |size / budget - 1|; below about 1M parameters 0.01 may be needed
    head_dim: int = 32
    kv_group: int = 1  # query heads per key-value head
    n_experts: int | None = None  # None: dense MLP
    top_k: int = 1  # experts that a token runs through
    d_ff_ratio: float = 2.0  # target of d_ff / d_model, of each expert: 2 for SwiGLU, 4 for GELU
    d_ff_multiple: int = 1  # d_ff is a multiple: N:M masks and quantisation groups must tile it
    vocab_per_d_model: float | None = None  # pad the vocabulary to this times d_model; None: no padding
    activation: Literal["swiglu", "gelu"] = "swiglu"
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    norm_position: Literal["before", "after"] = "before"
    qk_norm: bool = False
    tied_embeddings: bool = False
    residual: bool = True
    rope_theta: float | None = 10_000.0
    norm_eps: float = 1e-5
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    parametrization: Parametrization = Parametrization()

    def __post_init__(self):
        if self.match not in get_args(Match):
            raise ValueError(f"family.match = {self.match!r}: must be one of {', '.join(get_args(Match))}")
        check_experts("family", self.n_experts, self.top_k)
        for field in ("head_dim", "kv_group", "d_ff_ratio", "d_ff_multiple", "max_mismatch"):
            if getattr(self, field) <= 0:
                raise ValueError(f"family.{field} = {getattr(self, field)}: must be positive")
        for field in ("depths", "aspect_ratios"):
            values = getattr(self, field)
            if any(v <= 0 for v in values) or len(set(values)) < len(values):
                raise ValueError(f"family.{field} = {values}: must be positive and different from each other")
        if bool(self.depths) == bool(self.aspect_ratios):
            raise ValueError("family.depths and family.aspect_ratios: give exactly one of the two")
        if (self.budget is None) == (self.ladder_c is None):
            raise ValueError("family.budget and family.ladder_c: give exactly one of the two")
        if self.ladder_c is not None and (self.aspect_ratios or self.match != "blocks"):
            raise ValueError(f"family.ladder_c = {self.ladder_c}: needs depths and match = 'blocks'")
        if self.budget is not None and (not self._budgets or min(self._budgets) < 1):
            raise ValueError(f"family.budget = {self.budget}: must be one or more positive integers")
        if self.vocab_per_d_model is not None and self.vocab_per_d_model * self.head_dim % 1:
            ratio = f"family.vocab_per_d_model = {self.vocab_per_d_model}"
            raise ValueError(f"{ratio}: must be a multiple of 1 / head_dim = 1 / {self.head_dim}")

    @property
    def _budgets(self) -> tuple[int, ...]:
        return (self.budget,) if isinstance(self.budget, int) else self.budget

    def groups(self, *, vocab: int, context: int) -> tuple[tuple[int, tuple[Shape, ...]], ...]:
        """(budget, matched shapes) for every budget; within a group shapes stand in the order of the config.

        vocab: tokens in use, before padding; context: tokens per sequence.
        """
        if self.ladder_c is not None:
            rungs = tuple(_rung(self, depth, vocab, context) for depth in self.depths)
            groups = ((self.budget_of(rungs[0]), rungs),)
        else:
            search = _search(self, vocab, context)
            targets = [*map(Depth, self.depths), *map(AspectRatio, self.aspect_ratios)]
            groups = tuple((budget, matched(search, targets, budget)) for budget in self._budgets)
        _check(self, [shape for _, shapes in groups for shape in shapes], vocab)
        return groups

    def shapes(self, *, vocab: int, context: int) -> tuple[Shape, ...]:
        """All shapes of all groups."""
        return tuple(s for _, shapes in self.groups(vocab=vocab, context=context) for s in shapes)

    def budget_of(self, shape: Shape) -> int:
        """The budget of the group that a shape of this family belongs to."""
        if self.ladder_c is not None:
            unit = _shape(self, self.ladder_c, 1, round(self.d_ff_ratio * self.ladder_c), 1, 1)
            return size(unit, self.match)
        return min(self._budgets, key=lambda budget: abs(math.log(size(shape, self.match) / budget)))


def exact_ladder(c: int, depths: tuple[int, ...] = (4, 9, 16, 36), **options: Any) -> Family:
    """d_model = c / sqrt(L): block matrices match exactly; norm gains do not, and are counted apart."""
    return Family(ladder_c=c, depths=depths, match="blocks", **options)


def size_series(aspect_ratio: float, smallest: int, factor: float, count: int, **options: Any) -> Family:
    """Budgets smallest * factor^0 .. factor^(count - 1) at one aspect ratio."""
    budgets = tuple(round(smallest * factor**i) for i in range(count))
    return Family(budget=budgets, aspect_ratios=(aspect_ratio,), **options)


def size(shape: Shape, match: Match) -> int:
    """The matched quantity of a shape: parameters, or forward FLOPs per token."""
    return shape.flops_per_token() if match == "flops" else shape.param_counts()[match]


def mismatch(shapes: Sequence[Shape], family: Family) -> tuple[float, ...]:
    """size / budget - 1 of every shape, in the family's matched quantity."""
    return tuple(size(shape, family.match) / family.budget_of(shape) - 1 for shape in shapes)


def describe(shapes: Sequence[Shape], family: Family) -> list[dict[str, Any]]:
    """One row per shape: dimensions, exact counts, matrix-product FLOPs per token, mismatch.

    norm_share and router_share are parts of non_embedding: what a ladder leaves unmatched.  n_experts and top_k
    are None for a dense MLP; `active` counts the parameters that one token runs through.
    """
    deviations = mismatch(shapes, family)
    return [_row(s, family.budget_of(s), m) for s, m in zip(shapes, deviations, strict=True)]


def _row(shape: Shape, budget: int, deviation: float) -> dict[str, Any]:
    counts = shape.param_counts()
    dims = ("name", "d_model", "n_layers", "n_heads", "kv_heads", "head_dim", "d_ff", "vocab", "aspect_ratio",
            "n_experts")  # fmt: skip
    return {
        "budget": budget,
        **{field: getattr(shape, field) for field in dims},
        "top_k": None if shape.n_experts is None else shape.top_k,
        **counts,
        "norm_share": counts["norms"] / counts["non_embedding"],
        "router_share": counts["router"] / counts["non_embedding"],
        "flops_forward": shape.flops_per_token(),
        "flops_forward_backward": shape.flops_per_token(backward=True),
        "mismatch": deviation,
    }


def _search(family: Family, vocab: int, context: int) -> Search:
    return Search(
        build=lambda d_model, n_layers, d_ff: _shape(family, d_model, n_layers, d_ff, vocab, context),
        size=lambda shape: size(shape, family.match),
        d_model_step=family.head_dim * family.kv_group,
        d_ff_step=family.d_ff_multiple,
        d_ff_ratio=family.d_ff_ratio,
        max_mismatch=family.max_mismatch,
    )


def _shape(family: Family, d_model: int, n_layers: int, d_ff: int, vocab: int, context: int) -> Shape:
    if family.vocab_per_d_model is not None:
        vocab = round(family.vocab_per_d_model * d_model)
    n_heads = d_model // family.head_dim
    return Shape(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=None if family.kv_group == 1 else n_heads // family.kv_group,
        d_ff=d_ff,
        vocab=vocab,
        context=context,
        **{field: getattr(family, field) for field in _PASSED_ON},
    )


_PASSED_ON = {f.name for f in dataclasses.fields(Shape)} & {f.name for f in dataclasses.fields(Family)}


def _rung(family: Family, depth: int, vocab: int, context: int) -> Shape:
    root, unit = math.isqrt(depth), family.head_dim * family.kv_group
    if root * root != depth:
        raise ValueError(f"family.depths: {depth} is not a square; a ladder needs 1, 4, 9, 16, 25, 36, ...")
    d_model, remainder = divmod(family.ladder_c, root)
    if remainder or d_model % unit or not d_model:
        raise ValueError(
            f"family.ladder_c = {family.ladder_c}: d_model = {family.ladder_c / root:g} at depth {depth} is not a"
            f" multiple of {unit} (head_dim * kv_group); use a multiple of {unit * root} or a smaller head_dim"
        )
    d_ff = family.d_ff_ratio * d_model
    if d_ff % family.d_ff_multiple:
        raise ValueError(
            f"family.d_ff_ratio = {family.d_ff_ratio:g}: d_ff = {d_ff:g} at d_model {d_model} is not a multiple of"
            f" family.d_ff_multiple = {family.d_ff_multiple}, so the ladder is not exact; change one of them"
        )
    return _shape(family, d_model, depth, int(d_ff), vocab, context)


def _check(family: Family, shapes: list[Shape], vocab: int) -> None:
    twice = sorted({shape.name for shape in shapes if shapes.count(shape) > 1})
    if twice:
        raise ValueError(f"family: {twice[0]} comes out twice; put budgets or aspect ratios further apart")
    narrow = min(shapes, key=lambda shape: shape.vocab)
    if narrow.vocab < vocab:
        raise ValueError(
            f"family.vocab_per_d_model = {family.vocab_per_d_model}: the vocabulary of {narrow.name} becomes"
            f" {narrow.vocab}, but {vocab} tokens are in use; use {math.ceil(vocab / narrow.d_model)} or more"
        )
