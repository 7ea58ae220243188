"""A share of a GPU becomes a bound on memory; without a GPU there is nothing to bound."""

import pytest
import torch

from kdsweep.search_spaces.errors import InputError
from kdsweep.trainers.gpu_share import keep_to_share, memory_fraction
from kdsweep.trainers.settings import Settings, check_host, fast_precision

GIB = 2**30


def test_a_share_pays_for_the_processs_own_context() -> None:
    # A quarter of 16 GB is 4 GB, of which half a GB is CUDA's: 3.5 of 16.
    assert memory_fraction(0.25, total_bytes=16 * GIB) == 0.21875
    assert memory_fraction(0.5, total_bytes=80 * GIB) == pytest.approx(0.49375)


def test_the_shares_of_one_gpu_fit_beside_each_other_with_their_contexts() -> None:
    total = 16 * GIB
    used = sum(memory_fraction(0.25, total_bytes=total) * total + GIB / 2 for _ in range(4))
    assert used == total


def test_a_share_that_its_context_fills_is_refused_with_one_that_would_do() -> None:
    with pytest.raises(InputError, match=r"0\.02 of a GPU of 16\.0 GB(.|\n)*at least 0\.06"):
        memory_fraction(0.02, total_bytes=16 * GIB)


def test_a_cpu_and_a_whole_gpu_have_no_bound() -> None:
    # Without a GPU each would raise if it asked CUDA for anything.
    keep_to_share(Settings(device="cpu", gpu_share=0.25))
    keep_to_share(Settings(device="cuda", gpu_share=1.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU")
def test_a_host_without_the_pinned_device_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"host .*: trials ask for a GPU, and torch finds none"):
        check_host(Settings(device="cuda"))


def test_a_host_that_cannot_honour_the_pinned_precision_is_refused() -> None:
    check_host(Settings(precision="fp32"))
    if fast_precision("cpu") == "bf16":
        check_host(Settings(precision="bf16"))
    else:
        with pytest.raises(InputError, match="pinned to bf16"):
            check_host(Settings(precision="bf16"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_process_cannot_allocate_beyond_its_share() -> None:
    keep_to_share(Settings(device="cuda", gpu_share=0.25))
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(int(total * 0.3), dtype=torch.uint8, device="cuda")
    torch.empty(int(total * 0.1), dtype=torch.uint8, device="cuda")
