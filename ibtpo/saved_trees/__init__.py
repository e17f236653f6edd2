"""Trees of a run on disk, for people to look at: made of the sampler's trees (`record`), written and read (`files`).

Reading them imports neither JAX nor a tokenizer.
"""

from ibtpo.saved_trees.files import FOLDER, TreeFile, TreeFolder, list_files, read_file, write_file

__all__ = ["FOLDER", "TreeFile", "TreeFolder", "list_files", "read_file", "write_file"]
