"""The tables of a convolution, without any kernel: which source pixels each output pixel meets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kernels.conv2d import geometry

SETTINGS = [
    # image, kernel, stride, dilation, padding (top, left)
    ((7, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((9, 8), (3, 2), (2, 3), (1, 1), (0, 1)),
    ((10, 11), (2, 3), (3, 2), (2, 3), (2, 1)),
    ((5, 5), (1, 1), (2, 2), (1, 1), (0, 0)),
    ((4, 3), (2, 2), (5, 4), (1, 1), (3, 2)),
]


def _output(image, kernel, stride, dilation, padding):
    return tuple((image[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1))


def _meetings(grids):
    """All (output row, column, tap, source row, column) of the grids."""
    found = set()
    for grid in grids:
        for i, j in itertools.product(range(grid.size[0]), range(grid.size[1])):
            out = (grid.place[0] + i * grid.spacing[0], grid.place[1] + j * grid.spacing[1])
            for tap, (a, b) in zip(grid.taps, grid.shifts):
                found.add((*out, tap, i * grid.step[0] + a, j * grid.step[1] + b))
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_forward_grid_is_the_definition(setting):
    image, kernel, stride, dilation, padding = setting
    output = _output(*setting)
    expected = {
        (i, j, (r, s), i * stride[0] + r * dilation[0] - padding[0], j * stride[1] + s * dilation[1] - padding[1])
        for i, j, r, s in itertools.product(range(output[0]), range(output[1]), range(kernel[0]), range(kernel[1]))
    }
    assert _meetings(geometry.forward_grid(output, kernel, stride, dilation, *padding)) == expected


@pytest.mark.parametrize("setting", SETTINGS)
def test_transposed_grids_are_the_transpose(setting):
    """Seen from the image, the same pairs: those inside both, and nothing else inside both."""
    image, kernel, stride, dilation, padding = setting
    output = _output(*setting)

    def inside(place, size):
        return all(0 <= p < n for p, n in zip(place, size))

    forward = _meetings(geometry.forward_grid(output, kernel, stride, dilation, *padding))
    backward = _meetings(geometry.transposed_grids(image, kernel, stride, dilation, *padding))
    met = {(tap, (i, j), (h, w)) for i, j, tap, h, w in forward if inside((h, w), image)}
    seen = {(tap, (i, j), (h, w)) for h, w, tap, i, j in backward if inside((i, j), output)}
    assert met == seen
    # Every image pixel that meets a tap is in just one grid, and no grid is without taps.
    grids = geometry.transposed_grids(image, kernel, stride, dilation, *padding)
    places = [
        (g.place[0] + i * g.spacing[0], g.place[1] + j * g.spacing[1])
        for g in grids
        for i, j in itertools.product(range(g.size[0]), range(g.size[1]))
    ]
    assert len(set(places)) == len(places) and {(h, w) for h, w, *_ in backward} == set(places)
    plan = geometry.transposed_gather(1, output, 1, image, kernel, stride, dilation, padding, 1, False)
    assert plan.leaves_gaps == (len(places) < image[0] * image[1])
    assert plan.only_grid == (grids[0] if len(grids) == 1 and not plan.leaves_gaps else None)


def test_a_stride_past_the_taps():
    """As many grids as taps, however far the stride; a pass needs one, where no pixel meets a tap."""
    grids = geometry.transposed_grids((2 * 10**9, 10**9), (3, 2), (10**9, 10**8), (1, 1), 0, 0)
    assert [g.place for g in grids] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert {g.size for g in grids} == {(2, 10)} and {len(g.taps) for g in grids} == {1}
    (nothing,) = geometry.transposed_grids((3, 3), (1, 1), (100, 100), (1, 1), 50, 50)
    assert nothing.taps == () and nothing.size == (1, 1)
    plan = geometry.transposed_gather(1, (1, 1), 1, (3, 3), (1, 1), (100, 100), (1, 1), (50, 50), 1, False)
    rows = geometry.side(plan, 0, False)
    assert plan.leaves_gaps and rows.taps == ((),) and rows.counts == (3,) and rows.meetings == 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_offsets_stay_inside_the_padded_source(setting, channels_last):
    image, kernel, stride, dilation, padding = setting
    output = _output(*setting)
    for make, source, target in (
        (geometry.forward_gather, image, output),
        (geometry.transposed_gather, output, image),
    ):
        plan = make(6, source, 4, target, kernel, stride, dilation, padding, 2, channels_last)
        top, bottom, left, right = plan.margin
        assert plan.padded.image == 6 * (source[0] + top + bottom) * (source[1] + left + right)
        group = 3 * plan.padded.channel
        for grid, taps in zip(plan.grids, plan.tap_offsets):
            assert taps.shape == (3 * len(grid.taps),)
            if not taps.size:
                continue
            last = (grid.size[0] - 1) * grid.step[0] * plan.padded.row
            last += (grid.size[1] - 1) * grid.step[1] * plan.padded.column
            assert taps.min() >= 0
            assert taps.max() + last + group < plan.padded.image


def test_layouts():
    assert geometry.layout(3, 5, 7, False) == geometry.Layout(channel=35, row=7, column=1, image=105)
    assert geometry.layout(3, 5, 7, True) == geometry.Layout(channel=1, row=21, column=3, image=105)


def test_tables_are_shared():
    arguments = (4, (8, 8), 5, (6, 6), (3, 3), (1, 1), (1, 1), (0, 0), 1, False)
    assert geometry.forward_gather(*arguments) is geometry.forward_gather(*arguments)
    assert np.array_equal(geometry.forward_gather(*arguments).tap_index[0], np.arange(9))


def _met(rows, columns):
    """All (output row, column, tap, source row, column) of two sides."""
    found = set()
    for i, j in itertools.product(range(len(rows.kinds)), range(len(columns.kinds))):
        for (r, a), (s, b) in itertools.product(
            zip(rows.taps[rows.kinds[i]], rows.shifts[rows.kinds[i]]),
            zip(columns.taps[columns.kinds[j]], columns.shifts[columns.kinds[j]]),
        ):
            found.add((i, j, (r, s), rows.places[i] + a, columns.places[j] + b))
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("leaves_out", list(itertools.product([False, True], repeat=2)))
def test_sides_meet_what_the_grids_meet(setting, transposed, leaves_out):
    """And, where the edges are classes of their own, nothing in the margins."""
    image, kernel, stride, dilation, padding = setting
    sizes = (image, _output(*setting))
    source, target = sizes[::-1] if transposed else sizes
    make = geometry.transposed_gather if transposed else geometry.forward_gather
    plan = make(1, source, 1, target, kernel, stride, dilation, padding, 1, False)
    rows, columns = (geometry.side(plan, d, leaves_out[d]) for d in (0, 1))
    expected = _meetings(plan.grids)
    for d in (0, 1):
        if leaves_out[d]:
            expected = {met for met in expected if 0 <= met[3 + d] < source[d]}
    assert _met(rows, columns) == expected
    for d, side in enumerate((rows, columns)):
        if leaves_out[d]:
            assert 0 <= side.reach[0] and side.reach[1] < source[d]
        assert side.meetings == sum(len(side.taps[k]) for k in side.kinds)


def test_edges_are_classes_of_their_own_where_that_pays():
    """3x3 with a padding of 1: not on a large image, whose few edge pixels would be poor tiles; many small ones share
    tiles."""

    def classes(images, size):
        plan = geometry.forward_gather(8, (size, size), 8, (size, size), (3, 3), (1, 1), (1, 1), (1, 1), 1, False)
        return tuple(len(side.taps) for side in geometry.sides(plan, images, 576, 12, 4))

    assert classes(1, 56) == (1, 1)
    assert classes(64, 4) == (3, 3)
