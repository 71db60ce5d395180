"""What rounds off in the gradients of linear_cross_entropy where nearly all of them cancels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.matrix import Arguments


def cancelled_scales(arguments: Arguments, incoming: Any) -> dict[str, float]:
    """Of what size the terms are that make the gradients, at most, where these may cancel; else nothing.

    With one class, or targets that are all smooth, the gradient of the logits is a difference p * sum(u) - u of numbers
    that are equal or nearly so. It errs by a unit of each of the two, and p by as many units as the logits' own sums
    and their log-sum-exp are large, all of it taken here in float64.
    """
    x, matrix = (np.asarray(arguments[n], np.float64) for n in ("input", "linear_weight"))
    smoothing, classes = arguments["label_smoothing"], matrix.shape[0]
    if smoothing < 1 and classes > 1:
        return {}
    rows, matrix = x.reshape(-1, x.shape[-1]), matrix.reshape(classes, -1, x.shape[-1])
    bias = np.asarray(arguments.get("linear_bias", np.zeros(matrix.shape[:2])), np.float64).reshape(classes, -1)
    weight = np.asarray(arguments.get("weight", np.ones(classes)), np.float64)[:, None]
    logits = np.einsum("ne,cie->nci", rows, matrix) + bias
    size = np.einsum("ne,cie->nci", np.abs(rows), np.abs(matrix)) + np.abs(bias)
    size = size + size.max(1, keepdims=True)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    target = np.asarray(arguments["target"])
    if target.dtype.kind == "f":
        hard = target.astype(np.float64).reshape(logits.shape)
        counts, count = np.ones((len(rows), 1, logits.shape[2])), len(rows) * logits.shape[2]
    else:
        labels = target.reshape(len(rows), 1, -1)
        counts = (labels != arguments["ignore_index"]).astype(np.float64)
        hard = (labels == np.arange(classes)[:, None]).astype(np.float64)
        count = (counts * (hard * weight).sum(1, keepdims=True)).sum()
    u = (np.abs(hard) * (1 - smoothing) + smoothing / classes) * weight
    share = np.abs(incoming).max(initial=0) / (count if arguments["reduction"] == "mean" and count > 0 else 1)
    dz = share * counts * (p * u.sum(1, keepdims=True) * (1 + size) + u)
    sizes = {
        "input": np.einsum("nci,cie->ne", dz, np.abs(matrix)),
        "linear_weight": np.einsum("nci,ne->cie", dz, np.abs(rows)),
        "linear_bias": dz.sum(0),
        "target": share * (1 - smoothing) * weight * size,
    }
    return {name: float(each.max(initial=0)) for name, each in sizes.items()}
