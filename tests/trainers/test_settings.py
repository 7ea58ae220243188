"""Settings: what `auto` becomes, and what a trial says itself."""

import torch

from kdsweep.trainers.settings import Settings, fast_precision


def test_bf16_is_fast_where_the_cpu_multiplies_it_as_torch_sees_it() -> None:
    multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert fast_precision("cpu") == ("bf16" if multiplies else "fp32")


def test_a_trial_that_names_its_precision_gets_it() -> None:
    settings = Settings(precision="bf16")
    assert settings.resolve("auto") == "bf16"
    assert settings.resolve("fp32") == "fp32"
