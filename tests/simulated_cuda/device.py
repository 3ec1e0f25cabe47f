"""A CUDA device that computes on the CPU, for what differs between the two before a kernel runs.

A `DeviceTensor` says `cuda:0` and holds a CPU tensor. Because its dispatch keys are CUDA's, torch applies its real CUDA
autocast lists to it (layer_norm, softmax and losses in fp32, which CPU autocast leaves in bf16). An operation on
tensors of both devices raises as on a GPU, and so does a layer_norm whose input and weight differ in dtype. What makes
the host wait for the device is counted by the line of ours that asked for it, and so are kernel launches.

Not simulated: kernels (flash attention), NCCL, memory, streams, speed.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # looks at torch.cuda when first imported, so before anything there is replaced
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.cpp_extension import include_paths, library_paths

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
PACKAGE = os.sep + "hide_llava" + os.sep

waits: collections.Counter[str] = collections.Counter()  # "kind at file:line" → how often the host waited
kernels = [0]  # launches so far

# What reads a value or a size back from the device.
READ_BACK = {aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor, aten.bincount.default,
             aten._unique2.default, aten.unique_dim.default, aten.equal.default}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
NO_KERNEL = ("empty", "detach", "alias", "lift", "_local_scalar", "sym_", "_fused_sdp_choice", "_unsafe_view", "split",
             "chunk", "unbind", "_reshape_alias")  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler's path, None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def library() -> Path:
    """`guard.cpp`, compiled (a few seconds, once for each torch). A process has to be started with it in LD_PRELOAD,
    because torch asks for the hooks while it is imported."""
    source = Path(__file__).with_name("guard.cpp")
    key = hashlib.sha256(f"{torch.__version__} {sys.version}".encode() + source.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"hide-llava-simulated-cuda-{os.getuid()}" / f"{key}.so"
    if not built.is_file():
        built.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = built.with_suffix(f".{os.getpid()}")
        linked = [f"{flag}{path}" for path in library_paths() for flag in ("-L", "-Wl,-rpath,")]
        flags = [*(f"-I{path}" for path in include_paths()), *linked, "-lc10", "-ltorch_cpu"]
        command = [compiler(), "-shared", "-fPIC", "-std=c++20", "-O0", str(source), "-o", str(temporary), *flags]
        subprocess.run(command, check=True)
        os.replace(temporary, built)
    return built


# ---- counting --------------------------------------------------------------------------------------------------------
def wait(kind: str) -> None:
    """Note that the host waited for the device, with the innermost line of the package that led to it."""
    frame, place = sys._getframe(1), "upstream"
    while frame is not None:
        if PACKAGE in frame.f_code.co_filename:
            place = f"{frame.f_code.co_filename.rsplit(PACKAGE, 1)[1]}:{frame.f_lineno}"
            break
        frame = frame.f_back
    waits[f"{kind} at {place}"] += 1


# ---- the tensor ------------------------------------------------------------------------------------------------------
class DeviceTensor(torch.Tensor):
    """A tensor that says it lies on cuda:0; `held` is the CPU tensor with its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=CUDA, requires_grad=False,
        )  # fmt: skip
        wrapper.held = held
        return wrapper

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.held})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(inner["held"])

    def __reduce_ex__(self, protocol: int) -> Any:
        """torch.save writes the values, as it does for a tensor on a GPU."""
        wait("save")
        return self.held.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> DeviceTensor:
        copied = DeviceTensor(self.held.detach().clone()).requires_grad_(self.requires_grad)
        copied.__dict__.update({k: v for k, v in self.__dict__.items() if k != "held"})
        return memo.setdefault(id(self), copied)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(function, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__set__" and getattr(function, "__self__", None) is torch.Tensor.data:
                result = function(*args)
                if isinstance(args[1], DeviceTensor):
                    args[0].held = args[1].held  # `parameter.data = other` changes the values too
                return result
            if function is torch.Tensor.untyped_storage:  # safetensors compares addresses before it copies to the host
                return args[0].held.untyped_storage()
            if function is torch.Tensor.tolist:
                wait("tolist")
                return args[0].held.tolist()
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(function, args, kwargs or {})


def held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


def each(change: Any, value: Any) -> Any:
    """`change` of a value, or of the members of a list or tuple: ATen's arguments and results are no deeper."""
    return type(value)(map(change, value)) if type(value) in (list, tuple) else change(value)


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors among ATen's arguments, lists of them included."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif type(value) in (list, tuple):
            found += [one for one in value if isinstance(one, torch.Tensor)]
    return found


def wrapped(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, torch.Tensor) else value


_is_view_or_none: dict[Any, bool] = {}  # operation → whether it launches nothing


def launches_nothing(function: Any) -> bool:
    if function not in _is_view_or_none:
        name = function.overloadpacket.__name__
        _is_view_or_none[function] = function.is_view or any(word in name for word in NO_KERNEL)
    return _is_view_or_none[function]


_may_alias: dict[Any, bool] = {}


def may_alias(function: Any) -> bool:
    """Whether a result may be, or share memory with, an argument."""
    if function not in _may_alias:
        schema = function._schema
        _may_alias[function] = any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))
    return _may_alias[function]


def on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def compute(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One ATen operation: its checks, on the CPU tensors, its result on the device that it would have."""
    leaves = tensors_in([*args, *kwargs.values()])
    there = [t for t in leaves if isinstance(t, DeviceTensor)]
    device = kwargs.get("device")
    if function is aten.copy_.default:
        if isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
            wait("copy to the device" if isinstance(args[0], DeviceTensor) else "copy to the host")
        kernels[0] += bool(there)
        function(held(args[0]), held(args[1]), *args[2:], **kwargs)
        return args[0]
    if function is aten._to_copy.default:
        result_there = on_cuda(device) if device is not None else bool(there)
        if result_there != bool(there):
            wait("copy to the device" if result_there else "copy to the host")
    elif there:
        result_there = True
        _check_devices(function, args, leaves)
        _check_dtypes(function, args)
        if function is aten._local_scalar_dense.default:
            wait("read of a value")
        elif function in READ_BACK:
            wait(f"size of {function.overloadpacket.__name__}")
        elif function is aten._fused_sdp_choice.default:
            return 0  # the plain formula: the fused ones have a kernel for each device
    else:
        result_there = on_cuda(device)
    if there or result_there:
        kernels[0] += not launches_nothing(function)
    kwargs = {k: CPU if k == "device" and on_cuda(v) else v for k, v in kwargs.items() if k != "pin_memory"}
    result = function(*(each(held, value) for value in args), **{k: each(held, v) for k, v in kwargs.items()})
    if not result_there:
        return result
    result = each(wrapped, result)
    if there and may_alias(function) and function is not aten._to_copy.default:
        result = return_and_correct_aliasing(function, args, kwargs, result)
    return result


def _check_devices(function: Any, args: tuple, leaves: list[torch.Tensor]) -> None:
    """Raises RuntimeError where a GPU would for tensors of both devices."""
    here = [t for t in leaves if not isinstance(t, DeviceTensor)]
    if function in INDEXING:  # the indices may lie on the CPU, they are copied; what is indexed may not
        if not isinstance(args[0], DeviceTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        indices = [i for i in args[1] if i is not None]
        if any(not isinstance(i, DeviceTensor) for i in indices):
            wait("copy to the device")
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            wait("size of a mask")
        here = [t for t in tensors_in(args[2:3]) if not isinstance(t, DeviceTensor)]
    if not here:
        return
    scalars = torch.Tag.pointwise in function.tags or function in INDEXING or "fill" in str(function)
    here = [t for t in here if t.dim() or not scalars]  # a CPU number may take part in pointwise arithmetic
    if here:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({function}, "
            f"CPU tensors of shape {[tuple(t.shape) for t in here]})"
        )


def _check_dtypes(function: Any, args: tuple) -> None:
    """CUDA's layer_norm kernel takes one dtype; the CPU's takes some mixtures."""
    if function is aten.native_layer_norm.default:
        other = [t.dtype for t in args[2:4] if t is not None and t.dtype != args[0].dtype]
        if other:
            raise RuntimeError(f"expected scalar type {args[0].dtype} but found {other[0]} (layer_norm)")


# ---- modes: operations that no DeviceTensor takes part in, and names of devices ----------------------------------------
class _Dispatch(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and asking costs as much as a small operation."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(function, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """`cuda` means cuda:0; data, pinned memory and lists as indices, which torch handles before any dispatch."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.pin_memory:
            return args[0]
        if function is torch.Tensor.is_pinned:
            return False
        if function is torch.Tensor.cuda:
            function, args, kwargs = torch.Tensor.to, (args[0], CUDA), {}
        if "device" in kwargs:
            kwargs["device"] = self._index(kwargs["device"])
        if function is torch.Tensor.to:
            args = tuple(map(self._index, args))
        if function in (torch.tensor, torch.as_tensor) and on_cuda(kwargs.get("device")):
            args = tuple([x.item() if isinstance(x, DeviceTensor) else x for x in a] if isinstance(a, list) else a for a in args)
            return function(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(kwargs["device"])
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            one = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in one)
            args = (args[0], index if isinstance(args[1], tuple) else index[0], *args[2:])
        return function(*args, **kwargs)

    @staticmethod
    def _index(device: Any) -> Any:
        if isinstance(device, int) and not isinstance(device, bool):
            return device
        named = isinstance(device, (str, torch.device)) and str(device) == "cuda"
        return CUDA if named else device


def _patches() -> dict[tuple[Any, str], Any]:
    """What torch.cuda answers. Random numbers of the device come from the CPU's generator, whose state is kept as usual."""
    import torch.cuda.amp.common
    from torch import cuda

    state = torch.zeros(16, dtype=torch.uint8)
    properties = SimpleNamespace(name="simulated", major=8, minor=0, total_memory=80 << 30, multi_processor_count=108)
    nothing = lambda *_, **__: None  # noqa: E731
    answers = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": nothing, "init": nothing,
        "device_count": lambda: 1, "current_device": lambda: 0, "set_device": nothing, "synchronize": nothing,
        "get_device_name": lambda *_: "simulated", "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (8, 0), "is_bf16_supported": lambda *_, **__: True,
        "empty_cache": nothing, "mem_get_info": lambda *_: (60 << 30, 80 << 30), "ipc_collect": nothing,
        "get_rng_state": lambda *_: state, "set_rng_state": nothing, "manual_seed": nothing, "manual_seed_all": nothing,
        "memory_allocated": lambda *_: 0, "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0, "reset_peak_memory_stats": nothing,
    }  # fmt: skip
    random = {"get_rng_state": lambda *_: state, "set_rng_state": nothing, "get_rng_state_all": lambda: [state],
              "set_rng_state_all": nothing, "manual_seed": nothing, "manual_seed_all": nothing}  # fmt: skip
    found: dict[tuple[Any, str], Any] = {(cuda, name): answer for name, answer in answers.items()}
    found |= {(cuda.random, name): answer for name, answer in random.items()}
    found[torch.cuda.amp.common, "amp_definitely_not_available"] = lambda: False
    return found


@contextlib.contextmanager
def simulated_cuda() -> Iterator[None]:
    """Inside the block `cuda` is a device; for a process that was started with `library()` preloaded."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    before = {}
    for (owner, name), answer in _patches().items():
        before[owner, name] = getattr(owner, name)
        setattr(owner, name, answer)
    try:
        with _Functions(), _Dispatch(), torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        for (owner, name), answer in before.items():
            setattr(owner, name, answer)
