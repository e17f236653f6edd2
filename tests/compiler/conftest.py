import jax
import pytest

from ibtpo import parallel
from ibtpo.compiler import check as check_lib
from ibtpo.compiler.chips import CHIPS, Chip
from tests.compiler.small import MODEL, small


@pytest.fixture
def check(monkeypatch):
    """Builds a Check of a small config on the CPU, told to be a chip."""

    def build(limit=1e9, **changes):
        chip = Chip("test", flops=1e12, hbm_bytes=1e9, hbm_bandwidth=1e11, ici_bandwidth=1e10)
        monkeypatch.setitem(CHIPS, jax.devices()[0].device_kind, chip)
        monkeypatch.setattr(check_lib, "load_model_config", lambda config: MODEL)
        config = small(**changes)
        return check_lib.Check(config, parallel.make_mesh(config.mesh, jax.devices()[:1]), limit)

    return build
