"""IB-TPO: information-bottleneck driven tree-based policy optimisation of language models, in JAX.

Importing the package loads nothing else; see docs/method.md for the equations and ibtpo/train.py for the
algorithm.
"""

__version__ = "0.1.0"
