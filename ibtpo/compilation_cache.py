"""JAX's persistent compilation cache: a program that was compiled once is read by every later run."""

import os
from typing import Any

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def enable_compilation_cache(config: Any) -> None:
    """Keeps compiled programs in the folder or URL `config.compilation_cache`; "" leaves JAX as it is.

    A folder in the environment variable JAX_COMPILATION_CACHE_DIR, or "" there, which is none, comes before it. To be
    called before anything is compiled: JAX looks for the folder once.
    """
    if not config.compilation_cache or VARIABLE in os.environ:
        return
    import jax  # a command calls this, and readers of a configuration need no JAX

    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(config.compilation_cache))
