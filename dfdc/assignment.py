"""Assignment of boxes to tracks: the pairs with the largest sum of overlaps."""

from __future__ import annotations

import numpy as np


def assign(gains: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows with columns so that the sum of their gains is largest.

    The Hungarian method by shortest augmenting paths (Jonker and Volgenant, 1987): exact, in cubic time.

    Args:
        gains: (N, M) float, finite.

    Returns:
        min(N, M) pairs of a row and a column; each row and each column is in at most one pair.
    """
    if gains.shape[0] > gains.shape[1]:
        return [(row, column) for column, row in assign(gains.T)]
    costs, (n_rows, n_columns) = -np.asarray(gains, np.float64), gains.shape
    row_prices, column_prices = np.zeros(n_rows), np.zeros(n_columns)
    owners = np.full(n_columns, -1)
    for first in range(n_rows):
        # The cheapest path from this row to each column, and the previous column on that path.
        lengths, origins = np.full(n_columns, np.inf), np.full(n_columns, -1)
        reached, row, column, length = np.zeros(n_columns, bool), first, -1, 0.0
        while row >= 0:
            through = length + costs[row] - row_prices[row] - column_prices
            shorter = ~reached & (through < lengths)
            lengths[shorter], origins[shorter] = through[shorter], column
            column = int(np.argmin(np.where(reached, np.inf, lengths)))
            reached[column], length, row = True, lengths[column], owners[column]
        row_prices[first] += length
        passed = np.flatnonzero(reached & (owners >= 0))
        row_prices[owners[passed]] += length - lengths[passed]
        column_prices[reached] -= length - lengths[reached]
        while column >= 0:  # each row on the path takes the next column
            origin = origins[column]
            owners[column] = owners[origin] if origin >= 0 else first
            column = origin
    return [(int(owner), column) for column, owner in enumerate(owners) if owner >= 0]
