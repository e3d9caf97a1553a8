"""vLLM's side of transfers that it doesn't have itself: `direct`, within a process, `gloo`, over TCP, and `folder`.

Runs in vLLM's environment and processes; imports neither ft_host nor what of this package does. vLLM's own `nccl` and
`ipc` need a GPU. Written for vLLM 0.32; ../../docs/vllm.md has what was found out about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from ft_vllm.published import read_version


def register() -> None:
    """Make the three known to vLLM. It calls this in each of its processes, by the entry point vllm.general_plugins."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as factory

    for name, engine in (("direct", DirectEngine), ("gloo", GlooEngine), ("folder", FolderEngine)):
        if name not in factory._registry:  # plugins may be loaded more than once, and vLLM refuses a second time
            factory.register_engine(name, engine)


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Give tied heads the embeddings' new weights.

    On a CPU each linear layer multiplies with a packed copy of its weight, made when it is loaded. vLLM 0.32 packs
    layers anew after an update, but not a head whose weight is that of the embeddings: without this it goes on with
    the weights that it started with, and says nothing.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    heads = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
    own = {id(head) for head in heads}
    others = {
        id(weight) for module in model.modules() if id(module) not in own for weight in module.parameters(recurse=False)
    }
    for head in heads:
        if id(head.weight) in others and "cpu_linear" in vars(head):
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def repack_experts(model: torch.nn.Module) -> None:
    """Give experts the layout that the CPU's kernel reads.

    vLLM 0.32 packs them when the model is loaded, and leaves out that step after an update: without this the kernel
    reads new weights in the wrong layout.
    """
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    for module in model.modules():
        if isinstance(module, RoutedExperts) and isinstance(module.quant_method, UnquantizedFusedMoEMethod):
            module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(module)


class Layerwise:
    """The steps of an update in which weights arrive as a checkpoint has them, and are packed layer by layer."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        # vLLM's own waits for an accelerator, and raises where there is none
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.platforms import current_platform

        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            repack_tied_heads(self.model)
            repack_experts(self.model)


# ---------------------------------------------------------------- direct


@dataclass
class DirectInit(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class DirectUpdate(WeightTransferUpdateInfo):
    weights: Iterable[tuple[str, torch.Tensor]]  # by their names in a checkpoint


class DirectEngine(Layerwise, WeightTransferEngine[DirectInit, DirectUpdate]):
    """The trainer's tensors, by reference: for an engine in the trainer's process."""

    init_info_cls = DirectInit
    update_info_cls = DirectUpdate

    def init_transfer_engine(self, init_info: DirectInit) -> None:
        pass

    @torch.no_grad()
    def receive_weights(self, update_info: DirectUpdate) -> None:
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in update_info.weights)

    def shutdown(self) -> None:
        pass


# ---------------------------------------------------------------- gloo


def gloo_group(store: dist.Store, rank: int, size: int, address: str, patience: timedelta) -> dist.ProcessGroupGloo:
    """The group of trainer (rank 0) and workers. Where they meet on this machine alone, they talk on it alone: gloo by
    itself listens where the machine's name points to. The trainer's side does the same, in transfer.py."""
    store = dist.PrefixStore("ft-vllm", store)
    if not address.startswith("127."):
        return dist.ProcessGroupGloo(store, rank, size, patience)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = patience
    return dist.ProcessGroupGloo(store, rank, size, options)


@dataclass(kw_only=True)
class GlooInit(WeightTransferInitInfo):
    """The group: the trainer is rank 0 and keeps the store, vLLM's workers are 1 and up."""

    address: str
    port: int
    world_size: int
    timeout: float


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """`buckets`: [start, end) of the weights that come in one piece, as bytes, one after the other."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    buckets: list[list[int]]


class GlooEngine(Layerwise, WeightTransferEngine[GlooInit, GlooUpdate]):
    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    group: dist.ProcessGroupGloo | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        patience = timedelta(seconds=init_info.timeout)
        store = dist.TCPStore(init_info.address, init_info.port, init_info.world_size, False, patience)
        self.group = gloo_group(store, rank, init_info.world_size, init_info.address, patience)

    @torch.no_grad()
    def receive_weights(self, update_info: GlooUpdate) -> None:
        if self.group is None:
            raise RuntimeError("gloo: update_weights came before init_weight_transfer_engine")
        self.model.load_weights(self._arriving(update_info))

    def _arriving(self, update: GlooUpdate) -> Iterator[tuple[str, torch.Tensor]]:
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        for start, end in update.buckets:
            names, shapes = update.names[start:end], update.shapes[start:end]
            types = [getattr(torch, name) for name in update.dtype_names[start:end]]
            sizes = [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in zip(shapes, types, strict=True)]
            piece = torch.empty(sum(sizes), dtype=torch.uint8)
            self.group.broadcast([piece], options).wait()
            for name, shape, dtype, part in zip(names, shapes, types, piece.split(sizes), strict=True):
                # A copy: it begins where its type may begin, and vLLM may keep it for longer than the piece.
                yield name, part.clone().view(dtype).view(shape).to(self.device)

    def shutdown(self) -> None:
        self.group = None


# ---------------------------------------------------------------- folder


@dataclass
class FolderInit(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class FolderUpdate(WeightTransferUpdateInfo):
    folder: str  # of one version


class FolderEngine(Layerwise, WeightTransferEngine[FolderInit, FolderUpdate]):
    """Reads weights from a folder, see published.py.

    Each worker holds a copy of all weights in main memory, into which changes are written.
    """

    init_info_cls = FolderInit
    update_info_cls = FolderUpdate
    held: dict[str, torch.Tensor] | None = None
    version: int | None = None

    def init_transfer_engine(self, init_info: FolderInit) -> None:
        pass

    @torch.no_grad()
    def receive_weights(self, update_info: FolderUpdate) -> None:
        self.held, self.version = read_version(Path(update_info.folder), self.held or {}, self.version)
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in self.held.items())

    def shutdown(self) -> None:
        self.held = self.version = None
