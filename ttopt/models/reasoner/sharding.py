"""The video model's frozen blocks, shared out among processes (FSDP2).

Every process keeps its part of each block's weights and gathers a whole block only while it computes with it, forward
and backward. What is outside the blocks (embeddings, head: 2 % of Wan2.2-A14B) is whole in every process. So is the
LoRA, which is attached afterwards and unknown to FSDP: it is small, all processes give it the same gradient, and
whatever resets, saves and loads it need not know of any of this.

As all processes compute the same sample, this saves memory for weights, not for activations, and no time.
"""

from __future__ import annotations

from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from ttopt.models.reasoner import forward
from ttopt.models.reasoner.forward import Activation


def all_processes(device: str) -> DeviceMesh:
    """Those that share a model on their ``device``s. Without names for its dimension: peft takes a named one for tensor
    parallelism and would make the LoRA as small as a part."""
    return init_device_mesh(torch.device(device).type, (dist.get_world_size(),))


def shard(transformer: Any, mesh: DeviceMesh) -> None:
    """Leaves this process its part of the blocks of a frozen transformer, on the mesh's device, block after block.

    From then on the blocks run by ``advance`` alone.
    """
    outside = {value for name, value in transformer.named_parameters() if not name.startswith("blocks.")}
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
        block.run = MethodType(forward.run_block, block)
        register_fsdp_forward_method(block, "run")
    # The root holds no weights of its own; it lets the blocks share streams and gather ahead.
    fully_shard(transformer, mesh=mesh, ignored_params=outside)
    transformer.advance = MethodType(forward.advance, transformer)
    register_fsdp_forward_method(transformer, "advance")


def advance(
    transformer: Any, x: Activation, stop: int, activation_checkpointing: Collection[int] = (), run: None = None
) -> Activation:
    """``forward.advance`` of a sharded transformer."""
    result: Activation = transformer.advance(x, stop, activation_checkpointing, _run_block)
    return result


def _run_block(block: Any, *arguments: Any) -> Any:
    return block.run(*arguments)
