"""The columns of the curve table: name, type, unit, meaning.  The one place where they are written down.

One row is one metric of one point (member, degradation, severity, draw, selector) on one task.
`wane list columns` prints this list, and the same text stands in the metadata of every Parquet file.
"""

import dataclasses
import json

import pyarrow as pa

SCHEMA_VERSION = 5  # raise when a column is added, removed, renamed or changes its meaning
VERSION_KEY, COLUMNS_KEY = b"wane.schema_version", b"wane.columns"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column; `allowed`, if not empty, lists every value that may stand in it."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False
    allowed: tuple[str, ...] = ()


def _text(name: str, meaning: str, unit: str = "", **options) -> Column:
    return Column(name=name, type=pa.string(), unit=unit, meaning=meaning, **options)


def _whole(name: str, unit: str, meaning: str, **options) -> Column:
    return Column(name=name, type=pa.int64(), unit=unit, meaning=meaning, **options)


def _real(name: str, unit: str, meaning: str, **options) -> Column:
    return Column(name=name, type=pa.float64(), unit=unit, meaning=meaning, **options)


_WHO = (
    _text("study", "name of the study"),
    _text("cell_id", "hash of everything that the row depends on: the unit of work that wrote it"),
    _text("member_id", "hash that names the trained model: shape and seeds and training settings"),
    _text(
        "compared_with",
        "member_id of another seed's model that the value compares with; null: none",
        nullable=True,
    ),
    _text(
        "shape", "short name of the architecture, d<d_model>-L<n_layers>-f<d_ff>, with experts -e<n_experts>"
    ),
    _text("arm", "variant of the family that the member belongs to; empty for the primary one"),
    _whole("d_model", "dimensions", "width of the residual stream"),
    _whole("n_layers", "layers", "number of blocks"),
    _whole("n_heads", "heads", "query heads per block"),
    _whole("n_kv_heads", "heads", "key-value heads per block"),
    _whole("head_dim", "dimensions", "width of one head"),
    _whole("d_ff", "dimensions", "hidden width of the feed-forward layer, of each expert"),
    _whole("n_experts", "experts", "experts per block; null: a dense feed-forward layer", nullable=True),
    _whole("top_k", "experts", "experts that a token runs through as trained; null: dense", nullable=True),
    _whole("vocab", "tokens", "rows of the embedding, padding included"),
    _whole("context", "tokens", "sequence length in training and evaluation"),
    _whole("non_embedding_params", "parameters", "block matrices (of all experts), routers and norm gains"),
    _whole("active_params", "parameters", "those of non_embedding_params that one token runs through"),
    _whole("total_params", "parameters", "all parameters, embedding and unembedding included"),
    _whole("init_seed", "", "seed of the initial parameters"),
    _whole("data_seed", "", "seed of the order of the training data, common to all shapes"),
    _whole("train_step", "steps", "training step of the checkpoint that was measured"),
    _whole("train_tokens", "tokens", "tokens seen up to that step"),
)

_DEGRADATION = (
    _text(
        "pruned",
        "when the degradation was applied relative to training; never: the trained model itself",
        allowed=("never", "after", "during", "before"),
    ),
    _whole("pruned_at_step", "steps", "training step at which the mask was fixed", nullable=True),
    _text("method", "name of the degradation"),
    _text("scope", "what the degradation may touch; all: every block matrix that it knows"),
    _text("settings", "settings of the method that differ from its defaults, as canonical JSON"),
    _whole("draw", "", "index of the random realisation, nested in the member; 0 for deterministic methods"),
    _whole("draw_seed", "", "seed of that realisation; null for deterministic methods", nullable=True),
    _whole("layer", "", "the only layer that was degraded; null: all in scope", nullable=True),
    _whole("head", "", "the only head that was degraded; null: all in scope", nullable=True),
    _text("matrix", "the only matrix that was degraded; null: all in scope", nullable=True),
    _real("severity", "", "how much was asked to be taken; 0 is the identity and harm grows with it"),
    _real("severity_2", "", "severity of a second method, or updates of recovery; null: none", nullable=True),
    _real("setting", "see setting_unit", "the severity as the user wrote it"),
    _text("setting_unit", "unit of setting", allowed=("fraction", "bits", "sigma", "ratio")),
    _real("setting_2", "see setting_2_unit", "the second severity as the user wrote it", nullable=True),
    _text(
        "setting_2_unit",
        "unit of setting_2",
        allowed=("fraction", "bits", "sigma", "ratio", "steps"),
        nullable=True,
    ),
    _real(
        "removed_fraction",
        "fraction",
        "share of all block-matrix weights that are really gone",
        nullable=True,
    ),
    _real("relative_weight_error", "", "squared norm of w - w' over squared norm of w", nullable=True),
    _real("bits_per_weight", "bits", "effective bits per weight, scales and indices included", nullable=True),
    _real("compression_ratio", "", "bits before over bits after, scales and indices included", nullable=True),
)

_MEASUREMENT = (
    _text("task", "task that the evaluation sequences belong to; all: the mean over tasks"),
    _text("metric", "what was measured"),
    _text("axis", "what `at` counts: layer, level, position, ..; null: a value of the whole", nullable=True),
    _real(
        "at",
        "see axis",
        "where on the axis the value was taken; of layers 0 is the first, n_layers - 1 the last",
        nullable=True,
    ),
    _real("at_2", "see axis", "the second place of a pair", nullable=True),
    _text("part", "named part that the value is of: a matrix, a sublayer, a space; null: all", nullable=True),
    _text("unit", "unit of value"),
    _real("value", "see unit", "the measurement, a mean over count; null when diverged", nullable=True),
    _whole("count", "tokens or items", "how many tokens or items value averages over"),
    Column(
        name="per_sequence",
        type=pa.list_(pa.float32()),
        unit="see unit",
        meaning="the measurement for each evaluation sequence, in the order of the evaluation set",
        nullable=True,
    ),
    _real(
        "uniform",
        "see unit",
        "value of a uniform guess among all that the readout may say: what random weights score",
        nullable=True,
    ),
    _real(
        "floor",
        "see unit",
        "value of who knows how often each token occurs in these sequences of the task and nothing else: the share "
        "of the most frequent answer, the unigram loss; of all tasks the mean",
        nullable=True,
    ),
    _real(
        "chance",
        "see unit",
        "value of guessing without the skill: uniformly, or as the task says of its levels",
        nullable=True,
    ),
    _real("ceiling", "see unit", "value of the best possible predictor", nullable=True),
    _text("status", "diverged: the value was not finite and is null", allowed=("ok", "diverged")),
    _text("reason", "why the row is diverged, in words", nullable=True),
)

_PROVENANCE = (
    _text("checkpoint_digest", "digest of the parameters that were measured"),
    _text("evaluation_digest", "digest of the evaluation sequences"),
    _text("calibration", "source of the calibration sequences; null: none used", nullable=True),
    _text("calibration_digest", "digest of the calibration sequences; null: none used", nullable=True),
    _text("code_version", "version of the code of every stage that the value depends on"),
    _whole("metric_version", "", "version of the definition of the metric"),
    _text("jax_version", "version of jax"),
    _text("device_kind", "kind of device that computed the value"),
    _text("dtype", "type of activations and matrix products"),
    _text("matmul_precision", "precision of matrix products"),
    _real(
        "answer_temperature",
        "",
        "temperature of free-running answers; 0: the most likely token, or none are said",
    ),
    _whole("packing", "members", "members trained together in one program; 1: one by one"),
)

COLUMNS: tuple[Column, ...] = _WHO + _DEGRADATION + _MEASUREMENT + _PROVENANCE


def _schema() -> pa.Schema:
    fields = [
        pa.field(c.name, c.type, c.nullable, metadata={"unit": c.unit, "meaning": c.meaning}) for c in COLUMNS
    ]
    words = [{"name": c.name, "unit": c.unit, "meaning": c.meaning} for c in COLUMNS]
    metadata = {VERSION_KEY: str(SCHEMA_VERSION).encode(), COLUMNS_KEY: json.dumps(words).encode()}
    return pa.schema(fields, metadata=metadata)


SCHEMA: pa.Schema = _schema()
