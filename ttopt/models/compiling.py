"""What compiled networks have in common, the reasoner's and the teacher's."""

from __future__ import annotations

import torch


def allow_variants() -> None:
    """Lets code that is shared by layers be compiled for more kinds of them than PyTorch's eight."""
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # PyTorch 2.6
    setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), 32))
