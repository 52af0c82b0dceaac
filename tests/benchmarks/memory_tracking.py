"""Memory of a computation, as exact counts of bytes."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):
    """Follows the storages of all tensors that operations make while it is active, on any device.

    Tensors that were there before (weights, inputs) do not count; views share a storage, which counts once. What a
    kernel allocates and frees within itself is not seen. On CPU that is little: torch's profiler, which sees it too,
    gives the same peak for Spa3R to the byte, as the fused attention takes half a megabyte a thread at a moment when
    less than the peak is in use. What a math library gets from the system by itself is seen by neither.

    Attributes:
        peak (`int`): Most bytes that were alive at once.
        largest (`int`): Elements of the largest tensor, views and broadcast ones included.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self.largest = 0
        self._alive = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._known.update(tensor.untyped_storage() for tensor in _tensors((args, kwargs)))
        outputs = func(*args, **kwargs)
        for tensor in _tensors(outputs):
            self._count(tensor)
        return outputs

    def _count(self, tensor: Tensor):
        self.largest = max(self.largest, tensor.numel())
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self._alive += storage.nbytes()
            self.peak = max(self.peak, self._alive)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, num_bytes: int):
        self._alive -= num_bytes


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that a function needs at its peak, above what is allocated when it is called.

    On CUDA the caching allocator's own count, elsewhere a `MemoryTracker`'s.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with MemoryTracker() as tracker:
        function()
    return tracker.peak
