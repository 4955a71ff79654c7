"""Tests that figures are readable."""

from itertools import combinations

import pytest

from regnet.figures import finish, label_points, new_figure, save_figure


@pytest.mark.parametrize("format", ["svg", "png", "pdf"])
def test_the_same_figure_gives_the_same_file(tmp_path, format):
    for name in ("a", "b"):
        figure = new_figure(3, 2)
        axes = figure.add_subplot()
        axes.fill_between([0, 1], [0, 1], [1, 2], alpha=0.1)
        axes.plot([0, 1], [0, 1], "o", label="points")
        finish(axes)
        save_figure(figure, tmp_path / f"{name}.{format}")
    first, second = ((tmp_path / f"{name}.{format}").read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_cover_neither_points_nor_each_other(scale):
    figure = new_figure(6, 5)
    axes = figure.add_subplot()
    axes.set(xscale=scale, xlabel="ms")
    points = [(x, y, f"name {n}", "k") for n, (x, y) in enumerate(
        [(1, 1), (1.01, 1.01), (1.02, 1), (5, 5), (5, 5.02), (9.9, 9.9), (10, 10), (1, 10)]
    )]  # fmt: skip
    axes.plot([x for x, *_ in points], [y for _, y, *_ in points], "o")
    finish(axes)
    label_points(axes, points)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.texts]
    assert len(boxes) == len(points)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axes.get_window_extent()
    for box in boxes:
        assert frame.x0 - 2 <= box.x0 <= box.x1 <= frame.x1 + 2
    for x, y in axes.transData.transform([(x, y) for x, y, *_ in points]):
        assert not any(box.contains(x, y) for box in boxes)
