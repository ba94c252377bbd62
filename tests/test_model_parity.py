"""The model against other programs: vectors of a toy decoder, Llama and Mixtral of the transformers library."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import forward, random_params, random_tokens

from wane.scaling import model
from wane.scaling.shape import Parametrization, Shape

TOY = Path(__file__).parent / "golden" / "toy_model.npz"
STANDARD = Parametrization(name="standard")
PROJECTIONS = {n: f"{n}_proj" for n in "qkvo"} | {n: f"{n}_proj" for n in ("gate", "up", "down")}


def toy_model():
    """(shape, params, arrays) of the toy decoder: Llama without positional encoding."""
    arrays = np.load(TOY)
    (vocab, d_model), n_heads = arrays["embed"].shape, int(arrays["n_heads"])
    n_layers = sum(name.endswith(".q_proj") for name in arrays.files)
    shape = Shape(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, head_dim=d_model // n_heads, rope_theta=None,
        d_ff=len(arrays["layers.0.gate_proj"]), vocab=vocab, context=arrays["eval_tokens"].shape[1],
        norm_eps=float(arrays["rms_eps"]), parametrization=STANDARD,
    )  # fmt: skip

    def stack(name):
        return jnp.stack([arrays[f"layers.{layer}.{name}"].T for layer in range(n_layers)])

    blocks = {name: stack(theirs) for name, theirs in PROJECTIONS.items()}
    blocks |= {"attn_norm_scale": stack("input_norm"), "mlp_norm_scale": stack("post_attn_norm")}
    params = {
        "embed": jnp.asarray(arrays["embed"]),
        "blocks": blocks,
        "final_norm": {"scale": jnp.asarray(arrays["final_norm"])},
        "unembed": jnp.asarray(arrays["lm_head"].T),
    }
    return shape, params, arrays


def test_the_toy_decoder_gives_its_recorded_logits():
    shape, params, arrays = toy_model()
    template = jax.eval_shape(lambda key: model.init_params(key, shape), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, template)
    tokens = jnp.asarray(arrays["eval_tokens"])
    logits, _ = forward(params, tokens, shape)
    np.testing.assert_allclose(logits, arrays["logits_dense"], atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize(("norm_eps", "rope_theta"), [(1e-5, 10_000.0), (1e-2, 300.0)])
def test_llama_of_transformers_gives_the_same_logits(tied, n_kv_heads, norm_eps, rope_theta):
    torch = pytest.importorskip("torch")
    shape = Shape(
        d_model=32, n_layers=3, n_heads=4, head_dim=8, n_kv_heads=n_kv_heads, d_ff=44, vocab=50, context=24,
        tied_embeddings=tied, norm_eps=norm_eps, rope_theta=rope_theta, parametrization=STANDARD,
    )  # fmt: skip
    params, tokens = random_params(shape), random_tokens(shape)
    with torch.no_grad():
        expected = theirs(shape, params)(torch.tensor(np.asarray(tokens, np.int64))).logits.numpy()
    logits, _ = forward(params, tokens, shape)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(("n_experts", "top_k"), [(4, 2), (5, 1), (3, 3)])
def test_mixtral_of_transformers_gives_the_same_logits(n_experts, top_k):
    torch = pytest.importorskip("torch")
    shape = Shape(
        d_model=32, n_layers=3, n_heads=4, head_dim=8, n_kv_heads=2, d_ff=44, vocab=50, context=24,
        n_experts=n_experts, top_k=top_k, parametrization=STANDARD,
    )  # fmt: skip
    params, tokens = random_params(shape), random_tokens(shape)
    with torch.no_grad():
        expected = theirs(shape, params)(torch.tensor(np.asarray(tokens, np.int64))).logits.numpy()
    logits, _ = forward(params, tokens, shape)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def theirs(shape, params):
    """LlamaForCausalLM or MixtralForCausalLM holding `params`; every one of its tensors must be filled."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", "5")
    options = {
        "vocab_size": shape.vocab, "hidden_size": shape.d_model, "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta, "tie_word_embeddings": shape.tied_embeddings,
        "max_position_embeddings": shape.context,
    }  # fmt: skip
    if shape.n_experts is None:
        config = transformers.LlamaConfig(**options, attention_bias=False, mlp_bias=False)
        model = transformers.LlamaForCausalLM(config)
    else:
        experts = {"num_local_experts": shape.n_experts, "num_experts_per_tok": shape.top_k}
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**options, **experts))
    missing, unexpected = model.load_state_dict(state(shape, params, torch), strict=False)
    assert not unexpected
    assert not [name for name in missing if not (shape.tied_embeddings and name == "lm_head.weight")]
    return model.eval()


def state(shape, params, torch):
    def tensor(array):
        return torch.tensor(np.asarray(array))

    state = {
        "model.embed_tokens.weight": tensor(params["embed"]),
        "model.norm.weight": tensor(params["final_norm"]["scale"]),
    }
    if not shape.tied_embeddings:
        state["lm_head.weight"] = tensor(params["unembed"].T)
    for layer in range(shape.n_layers):
        blocks = {name: np.asarray(leaf[layer]).swapaxes(-1, -2) for name, leaf in params["blocks"].items()
                  if leaf.ndim > 2}  # fmt: skip
        prefix = f"model.layers.{layer}"
        state[f"{prefix}.input_layernorm.weight"] = tensor(params["blocks"]["attn_norm_scale"][layer])
        state[f"{prefix}.post_attention_layernorm.weight"] = tensor(params["blocks"]["mlp_norm_scale"][layer])
        state |= {f"{prefix}.self_attn.{n}_proj.weight": tensor(blocks[n]) for n in "qkvo"}
        if shape.n_experts is None:
            state |= {f"{prefix}.mlp.{n}_proj.weight": tensor(blocks[n]) for n in ("gate", "up", "down")}
        else:
            state |= {
                f"{prefix}.mlp.gate.weight": tensor(blocks["router"]),
                f"{prefix}.mlp.experts.gate_up_proj": tensor(
                    np.concatenate([blocks["gate"], blocks["up"]], 1)
                ),
                f"{prefix}.mlp.experts.down_proj": tensor(blocks["down"]),
            }
    return state
