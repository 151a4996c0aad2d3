"""Several processes: how many there are, what the first does for all, sums over all of them.

One process unless torchrun or srun started more.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

FOREVER = timedelta(days=365)  # a download or the features of a corpus may take days, and the others wait


@dataclass(frozen=True)
class Processes:
    """rank of `ranks` processes on `nodes` machines, `local_rank` of them on this one. launcher: who started them."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    nodes: int = 1
    launcher: str = ""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def a_node(self) -> int:
        return self.ranks // self.nodes


def processes() -> Processes:
    """What torchrun, or else srun, says in the environment. Raises ValueError where nodes have unlike numbers of them.

    As in Lightning a SLURM job named bash or interactive is one process.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        rank, ranks, local = (int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        found = Processes(rank, ranks, local, max(1, ranks // int(env["LOCAL_WORLD_SIZE"])), "torchrun")
    elif "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        rank, ranks, local = (int(env[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
        found = Processes(rank, ranks, local, int(env.get("SLURM_NNODES", 1)), "srun")
    else:
        return Processes()
    if found.ranks % found.nodes:
        raise ValueError(f"{found.ranks} processes on {found.nodes} nodes: every node must run as many as the others")
    return found if found.ranks > 1 else Processes()


@cache
def joined() -> Any:
    """Meet all other processes, once; returns the group that they wait in for whatever takes long.

    Tensors in memory go through gloo, those on GPUs through NCCL. Ranks other than the first log warnings only.
    """
    import atexit

    import torch
    from torch import distributed

    here = processes()
    if not here.first:
        logging.getLogger("mmseqvae").setLevel(logging.WARNING)
    if not distributed.is_initialized():
        environment = cluster(here)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        if torch.cuda.is_available():
            torch.cuda.set_device(here.local_rank)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, rank=here.rank, world_size=here.ranks)
        atexit.register(_leave)
    return distributed.new_group(backend="gloo", timeout=FOREVER)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def cluster(here: Processes) -> Any:
    """Lightning's view of who started the processes. Jobs are not put back into SLURM's queue by Lightning."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    return TorchElasticEnvironment() if here.launcher == "torchrun" else SLURMEnvironment(auto_requeue=False)


def wait() -> None:
    """Until every process is here."""
    if processes().ranks > 1:
        from torch import distributed

        distributed.barrier(joined())


def by_first(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """work(*args, **kwargs) of the first process alone; the others wait, however long it takes, and get its result.

    The result is pickled on its way. Where `work` raises, the other processes end, and one message is left.
    """
    here = processes()
    if here.ranks == 1:
        return work(*args, **kwargs)
    from torch import distributed

    group = joined()  # before the work, since nobody waits forever to meet
    told: list[Any] = [False, None]  # whether it was done, and the result
    try:
        if here.first:
            told = [True, work(*args, **kwargs)]
    finally:
        distributed.broadcast_object_list(told, src=0, group=group)
    done, result = told
    if not done:
        raise SystemExit
    return result


def total(values: Tensor) -> Tensor:
    """The sum over all processes, of tensors of one shape."""
    if processes().ranks == 1:
        return values
    from torch import distributed

    values = values.detach().clone()
    distributed.all_reduce(values)
    return values


def gathered(values: Tensor) -> list[Tensor]:
    """What every process holds, in the order of ranks: tensors of one shape."""
    import torch

    here = processes()
    if here.ranks == 1:
        return [values]
    found = [torch.empty_like(values) for _ in range(here.ranks)]
    torch.distributed.all_gather(found, values)
    return found
