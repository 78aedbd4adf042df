"""Whether Triton's kernels run here: on a GPU, or in its interpreter, which up to 3.6 cannot loop with numpy 2.4."""

import numpy as np
import pytest
import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


def _missing() -> str | None:
    """What keeps a kernel from running, if anything does."""
    if triton is None or tl is None:
        return "Triton is not installed"
    if torch.cuda.is_available():
        return None

    @triton.jit
    def loop(COUNT, n):
        count = 0
        for _ in range(0, n):
            count += 1
        tl.store(COUNT, count)

    count = torch.zeros(1, dtype=torch.int32)
    try:
        loop[(1,)](count, 3)
    except Exception:
        return f"the interpreter of Triton {triton.__version__} does not run with numpy {np.__version__}"
    return None


needs_triton = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))
