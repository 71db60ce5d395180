"""What the GPU backends of the recurrent layers agree on: kinds of cell, and where things lie. Pure functions.

On a GPU a layer is: the input's products of all steps as one matrix product per direction, by the vendor's library; the
steps, in kernels of ours; backward the steps again, which leave the gradients of all sums; and one matrix product each
for the gradients of weights and inputs. Three ways lead through the steps:

    held        one launch for the whole sequence; the recurrent weights and a tile of rows' states stay on chip
    streamed    one launch for the whole sequence; the weights come from the L2 cache at every step
    stepwise    a launch or two for every step, which use the whole GPU: for weights too large for one multiprocessor

Rows are taken by falling length, so that a tile costs its longest row. A row takes part in step t if t < its length;
the reverse direction walks from the longest row's end, and a row that has not begun keeps its initial state.
"""

from __future__ import annotations

from kernels.recurrence.problem import GruProblem, Layer, LstmProblem, RnnProblem

#: Kinds of cell.
KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru_after", "gru_before")


def kind_of(p: Layer) -> str:
    """The kind of cell, one of `KINDS`."""
    if isinstance(p, RnnProblem):
        return f"rnn_{p.nonlinearity}"
    if isinstance(p, GruProblem):
        return "gru_after" if p.reset_after else "gru_before"
    assert isinstance(p, LstmProblem)
    return "lstm"


def has_second_product(p: Layer) -> bool:
    """Whether a step has a matrix product that needs the result of another one."""
    return kind_of(p) == "gru_before" or p.projects


def recurrent_bytes(p: Layer) -> int:
    """Bytes of one direction's weights that every step reads."""
    elements = p.gates * p.units * p.hidden + (p.hidden * p.units if p.projects else 0)
    return elements * p.x.itemsize


def sequence_shape(p: Layer, width: int) -> tuple[int, int, int]:
    """Shape of an array of `width` numbers a step and row, in the order of x: batch first or steps first."""
    return (p.batch, p.steps, width) if p.batch_first else (p.steps, p.batch, width)


def sequence_strides(p: Layer, width: int) -> tuple[int, int]:
    """(from a step to the next, from a row to the next) in elements of such an array, contiguous."""
    return (width, p.steps * width) if p.batch_first else (p.batch * width, width)


def gradient_blocks(p: Layer) -> tuple[int, int, int]:
    """How the gradients of a step's sums lie side by side, in blocks of `units` numbers.

    rnn: h. lstm: i, f, g, o. gru with the reset before: r, z, n. gru with the reset after: n, r, z, q, where q is the
    recurrent sum that r multiplies, so that n, r, z belong to the input's product and r, z, q to the recurrent one.

    Returns:
        (blocks, first block of the recurrent product, blocks of a product). The input's product has the first ones.
    """
    if kind_of(p) == "gru_after":
        return 4, 1, 3
    return p.gates, 0, p.gates
