"""Numbers of a run: written to metrics.jsonl and TensorBoard, shown on the terminal. Those of a step of training are
made in `ibtpo.metrics.step`, and its cost in `ibtpo.metrics.cost`; these two alone of this package import JAX."""

from ibtpo.metrics.progress import Progress
from ibtpo.metrics.writers import FILE_NAME, MetricWriter, exist, read

__all__ = ["FILE_NAME", "MetricWriter", "Progress", "exist", "read"]
