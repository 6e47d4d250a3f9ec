from torch import nn, ones

from lightning_grow.app.plots import COLOURS, plot_curves, plot_transfer
from lightning_grow.grow import transfer


def test_the_picture_shows_where_every_entry_came_from():
    small, large = (nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)) for width in (4, 6))
    done = transfer(small, large, example_inputs=(ones(5, 3),))
    figure = plot_transfer(done.plan, done.state_dict)
    first, second = (axes.images[0].get_array() for axes in figure.axes)
    assert (first[:4] == 0).all()
    assert (first[4:] == 1).all()
    assert (second[:, :4] == 0).all()
    assert (second[:, 4:] == 2).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(COLOURS)


def test_the_curves_meet_at_the_growth():
    figure = plot_curves({"small": ([0, 5], [1.0, 2.0]), "large": ([5, 9], [2.0, 3.0])}, grown_at=5)
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0, 5], [5, 9], [5, 5]]
