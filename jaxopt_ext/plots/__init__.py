"""Pictures of what our functions return, by matplotlib, which is loaded when one is drawn.

- `convergence`: errors of solves or runs against steps, on a log axis.
- `coefficients_path`: coefficients against the penalty that they were fitted with.
- `network`: a graph of `distributed`, its nodes coloured by value.
- `samples`: grids of images, clouds of points, trajectories of particles.
- `heatmap`: a table of numbers, of robustness or confusion, with colours.

Each draws on `ax`, or on a new figure if there is none, and returns the axes: titles, limits and
files are theirs to set. None shows a figure or touches matplotlib's settings. matplotlib comes with
`pip install 'jaxopt-ext[plots]'`.
"""

from .coefficients_path import coefficients_path
from .convergence import convergence
from .heatmap import heatmap
from .network import network
from .samples import samples

__all__ = ["coefficients_path", "convergence", "heatmap", "network", "samples"]
