"""The transformer written a second time, slowly, in numpy: one sequence, one head, one position at a time.

It shares no code with wane.scaling.model.  Letters in tensor names as there.
"""

import numpy as np


def forward(params, tokens_BS, shape, *, dtype=np.float64, edit=None, round_site=None):
    """Logits [B, S, V] computed in `dtype`.

    edit: field name -> value, as in Edit.  round_site(site, layer, x_SI) -> x_SI stands for the rounding of
    activations; None = no rounding.  Sequences are stacked again before a site is rounded, because a scale
    may belong to a whole tensor.
    """
    edit = cast(edit or {}, dtype)
    params = override(cast(params, dtype), edit.get("params", {}))
    x_BSD = params["embed"][tokens_BS]
    for layer in range(shape.n_layers):
        weights = {name: leaf[layer] for name, leaf in params["blocks"].items()}
        x_BSD = block(weights, x_BSD, shape, slice_edit(edit, layer), site_rounder(round_site, layer))
    final = params.get("final_norm", {})
    x_BSD = norm(x_BSD, final.get("scale"), final.get("bias"), shape.norm_eps)
    w_DV = params["embed"].T if shape.tied_embeddings else params["unembed"]
    return x_BSD @ w_DV / dtype(shape.parametrization.width_ratio(shape.d_model))


def block(weights, x_BSD, shape, edit, enter):
    """One block; `weights` and `edit` are one layer's."""
    for kind, gate in (("attn", edit.get("attn_L")), ("mlp", edit.get("mlp_L"))):
        if gate is not None and gate == 0:
            continue
        norm_args = (weights.get(f"{kind}_norm_scale"), weights.get(f"{kind}_norm_bias"), shape.norm_eps)
        sublayer = {"attn": attention, "mlp": mlp}[kind]
        before = shape.norm_position == "before"
        y_BSD = sublayer(weights, norm(x_BSD, *norm_args) if before else x_BSD, shape, edit, enter)
        if gate is not None:
            y_BSD = y_BSD * gate
        if shape.residual:
            y_BSD = x_BSD + y_BSD * y_BSD.dtype.type(shape.residual_scale)
        x_BSD = y_BSD if before else norm(y_BSD, *norm_args)
    return x_BSD


def attention(weights, x_BSD, shape, edit, enter):
    x_BSD = enter("attn_in", x_BSD)
    B, S, _ = x_BSD.shape
    K, group = shape.head_dim, shape.n_heads // shape.kv_heads
    q, k, v = (product(weights, name, x_BSD, edit) for name in "qkv")
    heads = np.zeros((B, S, shape.n_heads, K), x_BSD.dtype)
    for b in range(B):
        for h in range(shape.n_heads):
            kv = slice((h // group) * K, (h // group + 1) * K)
            q_SK, k_SK = q[b, :, h * K : (h + 1) * K], k[b, :, kv]
            if shape.qk_norm:
                q_SK = norm(q_SK, weights["q_norm_scale"], None, shape.norm_eps)
                k_SK = norm(k_SK, weights["k_norm_scale"], None, shape.norm_eps)
            if shape.rope_theta is not None:
                q_SK, k_SK = rope(q_SK, shape.rope_theta), rope(k_SK, shape.rope_theta)
            for t in range(S):
                score = k_SK[: t + 1] @ q_SK[t] / q_SK.dtype.type(np.sqrt(K))
                weight = np.exp(score - score.max())
                heads[b, t, h] = weight / weight.sum() @ v[b, : t + 1, kv]
            if "head_LH" in edit:
                heads[b, :, h] *= edit["head_LH"][h]
    return product(weights, "o", enter("o_in", heads.reshape(B, S, -1)), edit)


def mlp(weights, x_BSD, shape, edit, enter):
    """Of a mixture of experts: each token runs through its experts, one after another."""
    if shape.n_experts is None:
        return feed_forward(weights, edit, x_BSD, shape, enter)
    experts = [
        feed_forward(*(of_expert(tree, e) for tree in (weights, edit)), x_BSD, shape, enter)
        for e in range(shape.n_experts)
    ]
    y_BSD = np.zeros_like(x_BSD)
    for b, s in np.ndindex(x_BSD.shape[:2]):
        for e, share in choose(x_BSD[b, s] @ weights["router"], shape, edit):
            y_BSD[b, s] += share * experts[e][b, s]
    return y_BSD


def choose(logits_E, shape, edit):
    """(expert, share) of the experts that one token runs through."""
    open_ = [e for e in range(shape.n_experts) if edit.get("expert_LE", logits_E * 0 + 1)[e] != 0]
    best = sorted(open_, key=lambda e: (-logits_E[e], e))[: int(edit.get("active_L", shape.top_k))]
    size = [np.exp(logits_E[e] - logits_E[best[0]]) for e in best]
    return [(e, s / sum(size)) for e, s in zip(best, size, strict=True)]


def of_expert(tree, e):
    """The weights, multipliers and biases of one expert."""
    mine = {name: leaf[e] for name, leaf in tree.items() if name in ("gate", "up", "down", "neuron_LF")}
    return {**tree, **mine} | ({"bias": of_expert(tree["bias"], e)} if "bias" in tree else {})


def feed_forward(weights, edit, x_BSD, shape, enter):
    x_BSD = enter("mlp_in", x_BSD)
    up = product(weights, "up", x_BSD, edit)
    if shape.activation == "swiglu":
        gate = product(weights, "gate", x_BSD, edit)
        h_BSF = gate * (1 + np.tanh(gate / 2)) / 2 * up  # SiLU; exp(-gate) would overflow
    else:  # the tanh form of GELU
        cubic = up.dtype.type(np.sqrt(2 / np.pi)) * (up + up.dtype.type(0.044715) * up**3)
        h_BSF = up / 2 * (1 + np.tanh(cubic))
    return product(weights, "down", enter("down_in", h_BSF * edit.get("neuron_LF", 1)), edit)


def product(weights, name, x, edit):
    y = x @ weights[name]
    return y + edit["bias"][name] if name in edit.get("bias", {}) else y


def norm(x, scale, bias, eps):
    """RMSNorm, LayerNorm where there is a bias, nothing where there is no scale."""
    if scale is None:
        return x
    if bias is None:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + x.dtype.type(eps)) * scale
    variance = x.var(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + x.dtype.type(eps)) * scale + bias


def rope(x_SK, theta):
    """Entries j and j + K/2 are one complex number, turned by position * theta^(-2j/K) radians."""
    S, K = x_SK.shape
    angle = np.arange(S)[:, None] * float(theta) ** (-2 * np.arange(K // 2) / K)
    turned = (x_SK[:, : K // 2] + 1j * x_SK[:, K // 2 :]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1).astype(x_SK.dtype)


def quantize(x, absmax, bits):
    """(x rounded to nearest, half to even; scale; x / scale): codes -2^(b-1) .. 2^(b-1) - 1."""
    scale = absmax / (2.0 ** (bits - 1) - 0.5)
    codes = np.clip(np.round(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes * scale, scale, x / scale


def override(params, changes):
    """params with the leaves of the partial tree `changes` in place of its own."""
    if not isinstance(params, dict):
        return changes
    return {k: override(v, changes[k]) if k in changes else v for k, v in params.items()}


def cast(tree, dtype):
    if isinstance(tree, dict):
        return {name: cast(leaf, dtype) for name, leaf in tree.items()}
    return np.asarray(tree, dtype)


def slice_edit(edit, layer):
    per_layer = {name: value for name, value in edit.items() if name != "params"}
    return {
        name: {k: v[layer] for k, v in value.items()} if isinstance(value, dict) else value[layer]
        for name, value in per_layer.items()
    }


def site_rounder(round_site, layer):
    return (lambda _, x: x) if round_site is None else (lambda site, x: round_site(site, layer, x))
