"""What Ray's workers import."""

from pathlib import Path

import pytest
import ray

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_code_module_of_a_worker_is_pythons_own():
    @ray.remote(num_cpus=0)
    def places() -> tuple[str, str, str]:
        import code
        import pdb
        import sysconfig

        import tandem

        return code.__file__, sysconfig.get_paths()["stdlib"], tandem.__file__ + pdb.__name__

    code_file, stdlib, _ = ray.get(places.remote())
    assert Path(code_file).parent == Path(stdlib)
