"""The best restricted transformation of what is left of a layer, from second moments alone."""

from typing import NamedTuple

import numpy as np

PARTS = ("none", "scalar", "diagonal", "low_rank", "per_unit")
CUTOFF = 1e-6  # of the largest eigenvalue: the moments are sums in f32, and below it is their rounding


class Transformation(NamedTuple):
    """h scale_U w map_DD is what becomes of the layer's output h w; scale_U is 0 for the units removed."""

    scale_U: np.ndarray
    map_DD: np.ndarray


def transformations(
    gram_UU: np.ndarray, w_UD: np.ndarray, keep_U: np.ndarray, rank: int, size: int = 1
) -> dict[str, Transformation]:
    """Name (PARTS) -> what takes y_r = (h keep) w nearest to y = h w in least squares over tokens.

    gram_UU: sum of h^T h, h_TU what the matrix reads (hidden units, outputs of heads); w_UD: the matrix; keep_U: 0
    for what is removed; size: how many of U in a row are one unit (a head).  All but the last map the output.
    none: the identity.  scalar: a I, a = <y_r, y> / <y_r, y_r>.  diagonal: the same of every dimension.  low_rank:
    I + M, M of rank at most `rank`, the best such map of y_r to what is missing, y - y_r: the least-squares map
    restricted to the leading directions of its fitted values (reduced-rank regression, Izenman 1975).  per_unit:
    one number for each remaining unit, which its copies can share among them.
    """
    rest_UD = w_UD * keep_U[:, None]
    left_DD = rest_UD.T @ gram_UU @ rest_UD
    full_DD = rest_UD.T @ gram_UU @ w_UD
    one = np.eye(len(left_DD))
    own_D, cross_D = np.diag(left_DD), np.diag(full_DD)
    scalar = cross_D.sum() / own_D.sum() if own_D.sum() > 0 else 1.0
    diagonal_D = np.divide(cross_D, own_D, out=np.ones_like(own_D), where=own_D > 0)
    map_DD = _inverse(left_DD) @ (full_DD - left_DD)
    _, directions_DD = np.linalg.eigh(map_DD.T @ left_DD @ map_DD)
    leading_DR = directions_DD[:, ::-1][:, :rank]
    maps = (one, scalar * one, np.diag(diagonal_D), one + map_DD @ leading_DR @ leading_DR.T)
    found = [Transformation(keep_U, each_DD) for each_DD in maps]
    return dict(zip(PARTS, [*found, Transformation(scales(gram_UU, w_UD, keep_U, size), one)], strict=True))


def scales(gram_UU: np.ndarray, w_UD: np.ndarray, keep_U: np.ndarray, size: int = 1) -> np.ndarray:
    """scale_U: 0 for the units removed; of the numbers for the others that bring h scale w nearest to h w, those
    nearest to 1; the same for the `size` entries of a unit.

    |h scale w - h w|^2 is e^T A e with e = scale - 1 and A the sums over pairs of units of gram * (w w^T), since
    units add up to the output.
    """
    kept = keep_U[::size] > 0
    n = len(kept)
    inner_NN = (gram_UU * (w_UD @ w_UD.T)).reshape(n, size, n, size).sum(axis=(1, 3))
    missing_R = inner_NN[np.ix_(kept, ~kept)].sum(axis=1)
    scale_N = np.zeros(n)
    scale_N[kept] = 1 + _inverse(inner_NN[np.ix_(kept, kept)]) @ missing_R
    return np.repeat(scale_N, size)


def _inverse(moments_DD: np.ndarray) -> np.ndarray:
    """Pseudo-inverse of second moments, of directions above CUTOFF."""
    return np.linalg.pinv(moments_DD, rcond=CUTOFF, hermitian=True)
