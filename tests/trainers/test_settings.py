"""Settings: what `auto` becomes, and what a trial says itself."""

from pathlib import Path

import pytest

from kdsweep.trainers.settings import Settings, fast_precision

FLAGS = Path("/proc/cpuinfo")


@pytest.mark.skipif(not FLAGS.exists(), reason="Linux tells the flags of its CPU")
def test_bf16_is_fast_where_the_cpu_multiplies_it() -> None:
    flags = set(
        next(
            (line for line in FLAGS.read_text().splitlines() if line.startswith("flags")), ""
        ).split()
    )
    expected = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32"
    assert fast_precision("cpu") == expected


def test_a_trial_that_names_its_precision_gets_it() -> None:
    settings = Settings(precision="bf16")
    assert settings.resolve("auto") == "bf16"
    assert settings.resolve("fp32") == "fp32"
