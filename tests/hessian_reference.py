"""SparseGPT and GPTQ for one matrix, column by column in float64 numpy, from the formulas of the papers."""

import numpy as np


def second_moment(x_NTI):
    """2 / N sum of x x^T over N sequences."""
    x = np.asarray(x_NTI, np.float64)
    return 2 / len(x) * np.einsum("nti,ntj->ij", x, x)


def prepared(w_IO, hessian_II, percdamp):
    """(weights with dead inputs 0, Hessian with dead diagonal 1, damping)."""
    w, h = np.array(w_IO, np.float64), np.array(hessian_II, np.float64)
    dead = np.diag(h) == 0
    h[dead, dead], w[dead] = 1, 0
    return w, h, percdamp * np.diag(h).mean()


def factor(hessian_II, damp):
    """Upper triangular U, U^T U = (H + damp)^-1."""
    return np.linalg.cholesky(np.linalg.inv(hessian_II + damp * np.eye(len(hessian_II)))).T


def pass_on(w, u, i, q, end):
    """Replaces input i by q; the error goes to the inputs before `end`, and is returned."""
    error = (w[i] - q) / u[i, i]
    for j in range(i, end):
        w[j] -= u[i, j] * error
    w[i] = q
    return error


def sparsegpt(w_IO, hessian_II, share, *, blocksize, group=0, percdamp=0.01, one_more=False, damp=None):
    w, h, own_damp = prepared(w_IO, hessian_II, percdamp)
    u = factor(h, own_damp if damp is None else damp)
    d = np.diag(u)[:, None]
    for first in range(0, len(w), blocksize):
        end, errors = min(first + blocksize, len(w)), {}
        block = slice(first, end)
        if not group:
            mask = smallest(((w[block] / d[block]) ** 2).ravel(), share, one_more).reshape(w[block].shape)
        else:
            mask = np.zeros_like(w[block], bool)
        for i in range(first, end):
            if group and (i - first) % group == 0:
                score = (w[i : i + group] / d[i : i + group]) ** 2
                for o in range(w.shape[1]):
                    mask[i - first : i - first + group, o] = smallest(score[:, o], share, False)
            errors[i] = pass_on(w, u, i, np.where(mask[i - first], 0, w[i]), end)
        for i, error in errors.items():
            w[end:] -= u[i, end:, None] * error
    return w


def smallest(score, share, one_more):
    """bool: the floor(n share) smallest, and one more."""
    mask = np.zeros(len(score), bool)
    mask[np.argsort(score, kind="stable")[: int(round(len(score) * share, 6)) + one_more]] = True
    return mask


def grid(w_IO, bits, symmetric):
    """(scale_O, zero_O) of all rows together, in float32 because extremes sit on rounding ties."""
    w, top = np.asarray(w_IO, np.float32), np.float32(2**bits - 1)
    low, high = np.minimum(w.min(0), 0), np.maximum(w.max(0), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = np.where(empty, np.float32(-1), low), np.where(empty, np.float32(1), high)
    scale = (high - low) / top
    return scale, np.full_like(scale, (top + 1) / 2) if symmetric else np.rint(-low / scale)


def gptq(
    w_IO, hessian_II, bits, *, blocksize, group_size=0, symmetric=False, percdamp=0.01, act_order=False,
    static_groups=False, damp=None,
):  # fmt: skip
    """(codes, weights)."""
    w, h, own_damp = prepared(w_IO, hessian_II, percdamp)
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(len(w))
    fixed = {0: grid(w_IO, bits, symmetric)}
    if static_groups:
        fixed = {g: grid(w[g * group_size : (g + 1) * group_size], bits, symmetric)
                 for g in range(len(w) // group_size)}  # fmt: skip
    w, u = w[order], factor(h[np.ix_(order, order)], own_damp if damp is None else damp)
    codes = np.empty_like(w)
    for first in range(0, len(w), blocksize):
        end, errors, outer = min(first + blocksize, len(w)), {}, w.copy()
        for i in range(first, end):
            if group_size and not static_groups and i % group_size == 0:
                fixed[0] = grid(outer[i : i + group_size], bits, symmetric)
            scale, zero = fixed[order[i] // group_size if static_groups else 0]
            codes[i] = np.clip(np.rint(np.float32(w[i]) / scale) + zero, 0, 2**bits - 1)
            errors[i] = pass_on(w, u, i, scale * (codes[i] - zero), end)
        for i, error in errors.items():
            w[end:] -= u[i, end:, None] * error
    back = np.argsort(order)
    return codes[back], w[back]
