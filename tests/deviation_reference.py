"""What is told of states that have moved, one state at a time in float64 numpy, at temperature 1."""

import numpy as np
import reference_model


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def spaces(params, shape, x_D):
    """The state in every space, by name, probabilities last."""
    final = params.get("final_norm", {})
    w_DV = params["unembed"] / shape.parametrization.width_ratio(shape.d_model)
    normed = reference_model.norm(x_D, final.get("scale"), final.get("bias"), shape.norm_eps)
    z = normed @ w_DV
    return {
        "embedding": x_D, "normed": normed, "unnormed logit": x_D @ w_DV, "logit": z,
        "centred logit": z - z.mean(), "probability": softmax(z),
    }  # fmt: skip


def cosine(v, w):
    return v @ w / np.linalg.norm(v) / np.linalg.norm(w)


def across(v, w):
    """(length of the change of v across it, along it), both over the length of v."""
    along = (w - v) @ v / (v @ v)
    return np.linalg.norm(w - v - along * v) / np.linalg.norm(v), abs(along)


def variance(change, weights):
    return weights @ (change - weights @ change) ** 2


def quantities(models, shape, states):
    """{quantity: {part: value}} of (undegraded, changed, noisy) states [D], the second read by the second of two
    models, the others by the first."""
    before, after, noisy = (
        spaces(model, shape, np.asarray(x, np.float64))
        for model, x in zip((models[0], models[1], models[0]), states, strict=True)
    )
    found = {f"deviation_{name}": {} for name in ("cosine", "angle", "orthogonal", "parallel", "distance")}
    found |= {name: {} for name in ("estimate_distance", "deviation_kl", "deviation_agreement")}
    for suffix, changed in (("", after), (" under noise", noisy)):
        for name, v in before.items():
            cos = min(cosine(v, changed[name]), 1)
            found["deviation_cosine"][name + suffix] = cos
            found["deviation_angle"][name + suffix] = np.degrees(np.arccos(cos))
            if name != "probability":
                orthogonal, parallel = across(v, changed[name])
                found["deviation_orthogonal"][name + suffix] = orthogonal
                found["deviation_parallel"][name + suffix] = parallel
            if not suffix:
                found["deviation_distance"][name] = 1 - cos
                found["estimate_distance"][name] = orthogonal**2 / 2
        p, q = before["probability"], changed["probability"]
        found["deviation_kl"]["probability" + suffix] = p @ np.log(p / q)
        found["deviation_agreement"]["probability" + suffix] = float(p.argmax() == q.argmax())
    change, p = after["logit"] - before["logit"], before["probability"]
    found["estimate_distance"]["probability"] = variance(change, p**2 / (p @ p)) / 2
    found["estimate_kl"] = {"probability": variance(change, p) / 2}
    order = np.argsort(-p)
    top = {f"top {k}": variance(change[order[:k]], p[order[:k]] / p[order[:k]].sum()) / 2 for k in (5, 10)}
    found["rough_estimate_kl"] = {"uniform": change.var() / 2} | top
    z, changed_z = before["logit"], after["logit"]
    found["prediction_margin"] = {
        "undegraded": np.diff(np.sort(z)[-2:])[0],
        "degraded": np.diff(np.sort(changed_z)[-2:])[0],
        "kept": changed_z[order[0]] - np.delete(changed_z, order[0]).max(),
    }
    return found
