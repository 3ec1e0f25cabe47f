"""The adapters on one backbone: upstream peft adapters by name, the rank gate, projector copies, folding.

Only the decoder's linears are adapted, found by explicit path, so the vision tower never is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hide_llava.adapters import peft_folder
from hide_llava.adapters.folding import ENOUGH, Factors, Folds, low_rank
from hide_llava.adapters.fused import FusedLayers
from hide_llava.adapters.peft_folder import replace_values
from hide_llava.adapters.route import Route, gated
from hide_llava.adapters.spec import LoraSpec
from hide_llava.backbones.base import Backbone
from hide_llava.errors import UserError


class Core:
    """One backbone with its adapters. The base model's weights are frozen; nothing here trains by itself."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.llava = backbone.model.requires_grad_(False)  # upstream's model, whatever its family
        self.peft: PeftModel | None = None
        self.route = Route()
        self._active: list[str] | None = None
        self._lora_layers: dict[str, LoraLayer] | None = None  # module name → layer, all of them; None: look again
        self._hooks: dict[str, list[RemovableHandle]] = {}
        self._inputs: dict[nn.Module, Tensor] = {}
        self.projectors: dict[str, dict[str, Tensor]] = {}
        self.folds = Folds()
        self._folded: dict[str, LoraLayer] = {}  # module name → peft layer whose base weight holds the fold
        self._standing: list[str] = []  # what could not be folded: adapters that are active whatever the route says
        self._fused: FusedLayers | None = None  # while it answers: what stands for peft's layers
        self.answering = False  # between `fuse` and `unfold`
        self.kept: dict[str, float] = {}  # module name → share of its update that the folded weight would hold
        self.apart = False  # whether `fold` leaves every weight alone: its sum is then an adapter, exact and in fp32
        self.sums: list[tuple[list[str], list[float], str]] = []  # of each `fold`: adapters, weights, mode

    # ---- what there is -------------------------------------------------------------------------------------------
    @property
    def projector(self) -> nn.Module:
        return self.backbone.projector

    @property
    def num_layers(self) -> int:
        """Decoder layers, counted from the model."""
        return len(self.backbone.layers)

    def layer_indices(self, layers: list[int]) -> list[int]:
        """Resolve a config list such as [-1] against the model's depth.

        Raises:
            UserError: an index outside the model.
        """
        depth = self.num_layers
        if any(not -depth <= i < depth for i in layers):
            raise UserError(f"expanded layers {layers}: the model has {depth} decoder layers.")
        return sorted({i % depth for i in layers})

    def layers(self, name: str) -> Iterator[tuple[str, int, LoraLayer]]:
        """(module name, decoder layer index, peft layer) of every linear that holds adapter `name`."""
        for path, module in self._all_layers().items():
            if name in module.lora_A:
                yield path, int(re.search(r"layers\.(\d+)\.", path).group(1)), module

    def _all_layers(self) -> dict[str, LoraLayer]:
        """Kept between calls: a walk over all modules takes longer with every adapter. It is dropped only where `_wrap` has
        put folded layers back, so none is missing."""
        if self._lora_layers is None:
            self._lora_layers = {path: m for path, m in self.llava.named_modules() if isinstance(m, LoraLayer)}
        return self._lora_layers

    def names(self) -> list[str]:
        return list(self.peft.peft_config) if self.peft is not None else []

    def known(self, names: list[str], where: str) -> None:
        """Raises UserError for the first name that is no adapter's."""
        for name in names:
            if name not in self.names():
                raise UserError(
                    f"{where}: there is no adapter '{name}'; there are: {', '.join(self.names()) or 'none'}."
                )

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        return [p for _, _, m in self.layers(name) for p in (m.lora_A[name].weight, m.lora_B[name].weight)]

    def size(self, name: str) -> int:
        """Numbers in adapter `name`."""
        return sum(p.numel() for p in self.parameters_of(name))

    # ---- adding, saving, loading ---------------------------------------------------------------------------------
    def add(self, name: str, spec: LoraSpec, modules: list[str] | None = None) -> None:
        """Add a frozen fp32 adapter on all decoder linears of `spec.targets`, or on the named modules only."""
        target = modules if modules is not None else self.backbone.linears(spec.targets)
        self._insert(
            name,
            LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=target,
                       task_type="CAUSAL_LM"),
        )  # fmt: skip
        if spec.init_std is not None:
            for _, _, module in self.layers(name):
                nn.init.normal_(module.lora_A[name].weight, std=spec.init_std)

    def _insert(self, name: str, config: LoraConfig) -> None:
        self._wrap()
        flags = self._flags()
        if self.peft is None:
            self.peft = get_peft_model(self.llava, config, adapter_name=name)
        else:
            self.peft.add_adapter(name, config)
        self._active = self._lora_layers = None
        for parameter in self.parameters_of(name):
            parameter.data = parameter.data.float()
        self._restore(flags)

    def delete(self, name: str) -> None:
        self._wrap()
        flags = self._flags()
        self.peft.delete_adapter(name)
        self._restore(flags)
        for handle in self._hooks.pop(name, []):
            handle.remove()
        self._active = self._lora_layers = None

    def save(self, name: str, folder: Path) -> None:
        """Write adapter `name` as a plain peft folder."""
        self._wrap()
        peft_folder.write(self.peft, name, folder)
        self._back()

    def load(self, name: str, folder: Path) -> None:
        """Add or overwrite adapter `name` from a plain peft folder.

        Raises:
            UserError: missing file, or keys that do not fit this model.
        """
        config, state = peft_folder.read(folder)
        if name not in self.names():
            self._insert(name, config)
        peft_folder.fill(self.peft, name, self.layers(name), state, folder)

    def projector_state(self) -> dict[str, Tensor]:
        """A copy of the projector's weights, on their device."""
        return {k: v.detach().clone() for k, v in self.projector.state_dict().items()}

    def projector_bytes(self) -> int:
        """Of the projector's weights in fp32."""
        return 4 * sum(p.numel() for p in self.projector.parameters())

    def load_projector(self, state: dict[str, Tensor]) -> None:
        """Put weights into the projector, in the dtype that they are stored in: a trained projector is fp32 beside a bf16
        model, and rounding it here would make a restarted run another run."""
        for key, parameter in self.projector.named_parameters():
            replace_values(parameter, state[key])

    def weights(self) -> dict[str, Tensor]:
        """The model's weights by upstream's names, as they are now, folded or not; without adapters."""
        self._wrap()
        found = {k.replace(".base_layer.", "."): v for k, v in self.llava.state_dict().items() if ".lora_" not in k}
        self._back()
        return found

    @property
    def standing(self) -> list[str]:
        """Adapters that hold what `fold` did not put into the weights."""
        return list(self._standing)

    # ---- routing -------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def routed(self, route: Route) -> Iterator[None]:
        """Use `route` for the forwards inside the block, then the one before it again."""
        before = self.route
        self.follow(route)
        try:
            yield
        finally:
            self.follow(before)

    def follow(self, route: Route) -> None:
        """Make `route` the current one. Kept until the next call, so that activation recomputation sees the same."""
        self.route = route
        active = [*self._standing, *route.active]
        if active != self._active:
            self.known(active, "route")
            if self.peft is not None:
                self._switch(active)
        for name in route.gates:
            if name not in self._hooks:
                self.known([name], "gates of the route")
                self._hook(name)

    def _switch(self, active: list[str]) -> None:
        """What peft's `set_adapter` does, but for requires_grad, which it rewrites.

        It runs twice in every training step, so it may not walk over all modules and parameters as `set_adapter` does.
        """
        for layer in self._all_layers().values():
            layer._active_adapter = list(active)
        self.peft.base_model.active_adapter = list(active)
        self._active = list(active)
        if self.answering:
            self._fused = self._fused or FusedLayers(self, self._all_layers())
            for path, module in self._fused(active).items():
                self.llava.set_submodule(path, module)
            return
        for path, layer in self._folded.items():  # without an active adapter peft's wrapper only costs time
            idle = not any(name in layer.lora_A for name in active)
            self.llava.set_submodule(path, layer.get_base_layer() if idle else layer)

    def _wrap(self) -> None:
        """Put peft's wrappers back where something else stands for them; the next `follow` decides anew."""
        for path, layer in (self._folded if self._fused is None else self._fused.layers).items():
            self.llava.set_submodule(path, layer)
        self._active = self._fused = None

    def _back(self) -> None:
        """What stood before `_wrap`."""
        if self.answering:
            self.fuse()
        else:
            self.follow(self.route)

    def _hook(self, name: str) -> None:
        """Put the gate of adapter `name` between its A and B, reading the route at call time."""
        handles = self._hooks[name] = []
        for path, _, layer in self.layers(name):

            def remember(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
                if callable(self.route.gates.get(name)):
                    self._inputs[layer] = args[0]

            def forget(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                self._inputs.pop(layer, None)

            def gate(_: nn.Module, args: tuple[Tensor], path: str = path, layer: LoraLayer = layer) -> tuple | None:
                g = self.route.gates.get(name)
                if callable(g):
                    g = g(path, layer, self._inputs[layer])
                return None if g is None else (gated(g, args[0]),)

            handles.append(layer.register_forward_pre_hook(remember))
            handles.append(layer.register_forward_hook(forget, always_call=True))
            handles.append(layer.lora_B[name].register_forward_pre_hook(gate))

    def _flags(self) -> dict[nn.Parameter, bool]:
        return {p: p.requires_grad for p in self.llava.parameters()}

    def _restore(self, flags: dict[nn.Parameter, bool]) -> None:
        for parameter in self.llava.parameters():
            parameter.requires_grad_(flags.get(parameter, False))

    # ---- inference -----------------------------------------------------------------------------------------------
    def fold(self, names: list[str], weights: list[float], mode: str, skip_layers: list[int]) -> None:
        """Merge adapters into the base weights of every layer but `skip_layers` (see folding.py); undo by `unfold`.

        Where a weight is quantised, or too coarse for the update, it is not touched: there the sum is one more adapter,
        low-rank and always active. `kept` says what was measured.
        """
        self.known(names, "fold")
        self._wrap()
        self.sums.append((names, weights, mode))
        unfolded = []
        for path, index, module in self.layers(names[0]):
            if index in skip_layers:
                continue
            if module.get_base_layer().weight.is_floating_point() and not self.apart:
                self.kept[path] = self.folds.fold(module, names, weights, mode)
                if self.kept[path] >= ENOUGH:
                    self._folded[path] = module
                    continue
            unfolded.append(path)
        if unfolded:
            self._standing.append(f"routed-fold-{len(self._standing)}")
            self._hold(self._standing[-1], names, unfolded,
                       lambda factors, scales: low_rank(factors, weights, scales, mode))  # fmt: skip

    def concatenate(self, name: str, experts: list[str], layers: list[int]) -> int:
        """One adapter `name` on `layers` holding all experts: A = [A_0; A_1; …], B = [s_0 B_0 | s_1 B_1 | …].

        Returns its rank; the caller gates rank block i with the weight of expert i. Without layers there is nothing to
        hold: no adapter is added and the rank is 0.
        """
        ones, wanted = [1.0] * len(experts), set(layers)
        paths = [path for path, index, _ in self.layers(experts[0]) if index in wanted]
        return self._hold(name, experts, paths, lambda factors, scales: low_rank(factors, ones, scales, "delta_sum"))

    def _hold(self, name: str, experts: list[str], paths: list[str], make: Callable[..., Factors]) -> int:
        """Add adapter `name` of scale 1 on the linears `paths`, its A and B made from the experts' factors; returns its rank."""
        self.known(experts, name)
        wanted = set(paths)
        held = [(path, m) for path, _, m in self.layers(experts[0]) if path in wanted]
        factors = {
            path: make([(m.lora_A[e].weight, m.lora_B[e].weight) for e in experts], [m.scaling[e] for e in experts])
            for path, m in held
        }
        if not held:
            return 0
        rank = len(factors[held[0][0]][0])
        self.add(name, LoraSpec(rank=rank, alpha=float(rank), dropout=0.0), list(factors))
        for path, _, m in self.layers(name):
            weight = m.get_base_layer().weight
            dtype = (
                weight.dtype if weight.is_floating_point() else self.llava.dtype
            )  # one compute dtype; the authors' adapters stay fp32
            dtype = torch.float32 if self.apart else dtype
            m.lora_A[name].weight.data, m.lora_B[name].weight.data = (f.detach().to(dtype) for f in factors[path])
        return rank

    def combine(self, name: str, experts: list[str], weights: list[float], how: str, density: float | None) -> None:
        """One adapter `name` merged from experts by peft's `add_weighted_adapter` (its `combination_type`: `how`)."""
        self._wrap()
        flags = self._flags()
        self.peft.base_model.add_weighted_adapter(experts, weights, name, how, density=density)
        self._restore(flags)
        self._active = self._lora_layers = None

    def fuse(self) -> None:
        """From now until `unfold` nothing trains: active adapters are computed without peft's wrapper (fused.py), and
        linears without one stand for themselves. After `fold` and `concatenate`."""
        self._wrap()
        self.answering = True
        self.follow(self.route)

    def refold(self, names: list[str], weights: list[float], mode: str, skip_layers: list[int]) -> None:
        """`fold` in place of all that was folded before (no names: nothing is); answering goes on."""
        answering = self.answering
        self._unfold(keep=True)
        if names:
            self.fold(names, weights, mode, skip_layers)
        if answering:
            self.fuse()

    def unfold(self) -> None:
        """Back to the untouched base weights, bit for bit, and no concatenated adapters."""
        self._unfold(keep=False)

    def _unfold(self, keep: bool) -> None:
        """`keep`: the copies of the original weights are needed again."""
        self._wrap()
        self.answering = False
        self._folded.clear()
        self._standing.clear()
        self.sums.clear()
        self.kept.clear()
        self.folds.unfold(keep)
        self.follow(Route())
        for name in [n for n in self.names() if n.startswith("routed")]:
            self.delete(name)
