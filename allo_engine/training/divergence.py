"""What a training does where a loss or a gradient is not a finite number."""

from __future__ import annotations

from allo_engine.report import StageError

MOST = 3
"""So many such steps in a row send a training back to its last checkpoint; once."""

WENT_BACK = f" {MOST} steps in a row gave no finite loss; where that happens again, the stage ends."
"""What is told of it."""


class Strikes:
    """Steps in a row that gave no finite loss.

    One or two are passed over. A third sends the training back, as what went wrong may have been the machine; where
    that happens again, it was not.
    """

    def __init__(self) -> None:
        self.in_a_row, self._went_back = 0, False

    def hit(self) -> bool:
        """Count one; whether to go back to the last checkpoint. Raises StageError "diverged" the second time."""
        self.in_a_row += 1
        if self.in_a_row < MOST:
            return False
        if self._went_back:
            raise diverged()
        self.in_a_row, self._went_back = 0, True
        return True

    def clear(self) -> None:
        """A step was as it should be."""
        self.in_a_row = 0


def diverged() -> StageError:
    return StageError("diverged", "The loss is no longer a finite number: lower learning_rate or max_grad_norm.")
