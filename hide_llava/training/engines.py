"""Where a stage trains: `ddp` (also one process), or DeepSpeed ZeRO through transformers and accelerate.

All engines compute the same thing: adapters stay fp32, the forward runs under autocast in the model's dtype, and the
CLIP text tower stays fp32. So DeepSpeed's own bf16 mode, which casts the whole module, is switched off in
`configs/deepspeed/*.json`. Only the training loop runs under ZeRO; its result is handed to a fresh model (sequence.py),
so statistics, folding and evaluation never meet partitioned weights.

FSDP2 is not offered: it needs one dtype per sharded group, and here fp32 adapters sit inside bf16 layers.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from hide_llava.config import configs_folder
from hide_llava.distributed import all_reduce
from hide_llava.errors import UserError
from hide_llava.methods.base import Method
from hide_llava.schema import ModelConfig, TrainConfig
from hide_llava.storage import read_json


def deepspeed_config(engine: str) -> dict[str, Any] | None:
    """The engine's DeepSpeed settings, None for `ddp`; "auto" values are filled by transformers."""
    return None if engine == "ddp" else read_json(configs_folder() / "deepspeed" / f"{engine}.json")


def check_engine(engine: str, model: ModelConfig, method: type[Method]) -> None:
    """What an engine cannot do, said before anything is loaded.

    Raises:
        UserError: one GPU of several by its number, DeepSpeed missing, fp16 or a quantised base under ZeRO, or a method that
            reads gradients or whole parameters.
    """
    if method.trains and model.device.startswith("cuda:"):
        number = model.device.partition(":")[2]
        raise UserError(f"model.device={model.device}: the Trainer takes the first GPU it sees; set "
                        f"CUDA_VISIBLE_DEVICES={number} and model.device=cuda.")  # fmt: skip
    if engine == "ddp":
        return
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise UserError(f"train.engine={engine}: DeepSpeed cannot be imported ({error}); "
                        "pip install -e '.[train]', or use train.engine=ddp.") from None  # fmt: skip
    if model.dtype == "float16":
        raise UserError(
            f"train.engine={engine}: fp16 needs ddp's loss scaling; use model.dtype=bfloat16 or train.engine=ddp."
        )
    if model.quantization != "none":
        raise UserError(f"train.engine={engine}: a quantised base trains with ddp; use train.engine=ddp.")
    if method.on_gradients is not Method.on_gradients:
        raise UserError(f"train.engine={engine} leaves no whole gradients, which method '{method.name}' needs; "
                        "use train.engine=ddp.")  # fmt: skip
    if engine.startswith("zero3") and method.reads_parameters:
        raise UserError(f"train.engine={engine} cuts parameters into pieces, and method '{method.name}' reads them whole; "
                        "use train.engine=zero2 or ddp.")  # fmt: skip


def free_port() -> str:
    """One that nobody listens on now, on this machine: another run may stand beside this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_processes(train: TrainConfig, device: str) -> None:
    """Join the other processes of a torchrun launch; DeepSpeed wants a process group even for one process.

    device: `model.device`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if world == 1 and gpus > 1:
        print(f"{gpus} GPUs are visible and this is one process, which uses one of them; scripts/train_all.sh (or torchrun "
              f"--nproc-per-node {gpus} -m hide_llava.cli) uses all.", flush=True)  # fmt: skip
    if world == 1 and train.engine == "ddp":
        return
    if world == 1:
        for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": free_port()}.items():  # fmt: skip
            os.environ.setdefault(key, value)
    cpu = device == "cpu" or not torch.cuda.is_available()
    if not torch.distributed.is_initialized():
        if not cpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        timeout = timedelta(minutes=train.timeout_minutes)
        torch.distributed.init_process_group("gloo" if cpu else "nccl", timeout=timeout)
    if train.engine != "ddp":
        if cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        if cpu:  # else it compiles an all-reduce of its own for more than a minute, where gloo has one
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo" if cpu else "nccl", auto_mpi_discovery=False)
        _safe_checkpoints()


def _safe_checkpoints() -> None:
    """DeepSpeed reads its checkpoints with a plain torch.load: let it read tensors and its own few classes, no more."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])


def on_one_gpu(args: TrainingArguments) -> TrainingArguments:
    """A process trains on one GPU. With several in sight and no process group transformers would wrap the model in
    nn.DataParallel, which multiplies the batch by their number and cannot run adapters that are switched per batch."""
    if args.n_gpu > 1:  # a property that looks for devices
        args._n_gpu = 1
    return args


def anywhere(flag: bool) -> bool:
    """Whether `flag` is set in any process: a signal reaches them at different steps, and they must stop together."""
    if not torch.distributed.is_initialized():
        return flag
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor(int(flag), device=device)
    all_reduce(found)
    return bool(found)


def over_processes(values: dict[str, float]) -> dict[str, float]:
    """The mean over the processes of what each of them calls by the same name; 0 where one has nothing of that name."""
    if not torch.distributed.is_initialized():
        return values
    of_all: list[dict[str, float]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_all, values)
    names = dict.fromkeys(name for one in of_all for name in one)
    return {name: sum(one.get(name, 0.0) for one in of_all) / len(of_all) for name in names}


@contextlib.contextmanager
def whole(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block ZeRO-3's partitioned parameters have their full value; on every rank. Else nothing happens."""
    if any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
    else:
        yield


def release(trainer: Any) -> None:
    """Take DeepSpeed off a trainer that is done: its hooks, its buffers, and transformers' note that ZeRO-3 is on."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    trainer.model_wrapped.destroy()
    trainer.model_wrapped = trainer.deepspeed = trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    unset_hf_deepspeed_config()
