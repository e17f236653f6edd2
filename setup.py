"""What pyproject.toml cannot say: a wheel has copies of `configs/` and of the tiny models inside the package.

They stay at the root of the repository, and no package called `configs` is put beside other people's packages. An
editable installation copies nothing: the package finds them beside it (ibtpo/packaged.py).
"""

import pathlib
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
COPIED = ("configs/*.py", "assets/qwen3-*/*")


class BuildWithFiles(build_py):
    """build_py, and the files that are kept outside the package."""

    def run(self):
        if not self.editable_mode:  # build/ may hold modules of an earlier build that are no more
            shutil.rmtree(pathlib.Path(self.build_lib) / "ibtpo", ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for source, target in self._pairs():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _pairs(self):
        inside = pathlib.Path(self.build_lib) / "ibtpo"
        return [(file, inside / file.relative_to(ROOT)) for pattern in COPIED for file in sorted(ROOT.glob(pattern))]

    def get_outputs(self, include_bytecode=1):
        own = [] if self.editable_mode else [str(target) for _, target in self._pairs()]
        return [*super().get_outputs(include_bytecode), *own]


setup(packages=find_packages(include=["ibtpo", "ibtpo.*"]), cmdclass={"build_py": BuildWithFiles})
