"""Numbers of a run: written to metrics.jsonl and TensorBoard, shown on the terminal. Those of a step of training are
made in `ibtpo.metrics.step`, which alone of this package imports JAX."""

from ibtpo.metrics.progress import Progress
from ibtpo.metrics.writers import FILE_NAME, MetricWriter, exist, read

__all__ = ["FILE_NAME", "MetricWriter", "Progress", "exist", "read"]
