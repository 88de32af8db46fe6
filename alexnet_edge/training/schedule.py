"""The learning rate: a function, without state, of the recipe, the place in the run and the validation errors so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alexnet_edge.training.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: float, errors: Sequence[float] = ()) -> float:
    """The learning rate when `epoch` epochs, from 0 to `recipe.epochs` with their fraction, are done.

    `errors` are the validation errors after each whole epoch, for `plateau`.
    """
    share = epoch / recipe.epochs
    if share < recipe.warmup:
        return recipe.lr * max(share / recipe.warmup, 0.01)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (share - recipe.warmup) / (1 - recipe.warmup)))
    if recipe.schedule == "plateau":
        divided = plateaus(errors, patience=recipe.patience, most=recipe.reductions)
    else:
        divided = sum(epoch >= (mark if mark > 1 else mark * recipe.epochs) for mark in recipe.milestones)
    return recipe.lr / float(10**divided)


def plateaus(errors: Sequence[float], *, patience: int, most: int) -> int:
    """How often the validation error stopped falling: `patience` epochs in a row without a new lowest error.

    The paper (section 5) divides the rate by ten "when the validation error rate stopped improving with the current
    learning rate", three times. After each division the count of epochs starts again; the lowest error stays.
    """
    lowest, waited, count = math.inf, 0, 0
    for error in errors:
        if error < lowest:
            lowest, waited = error, 0
        else:
            waited += 1
        if waited >= patience and count < most:
            count, waited = count + 1, 0
    return count
