"""
Computes how much memory a device needs in training. Weights, gradients and optimizer states are counted from the
parallelism plans that the model declares. Activations are recorded in a dry run of the model's real code on tensors
without data.
"""

import copy
import re
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from mm1_hf.accounting.parameters import expert_parameters
from mm1_hf.model.configuration_mm1 import MM1Config, MM1TextConfig
from mm1_hf.model.modeling_mm1 import MM1ForConditionalGeneration
from mm1_hf.model.versions import ENABLES_CHECKPOINTING
from mm1_hf.model.vision_sizes import vision_sizes
from mm1_hf.training.parts import freeze


# For each style in transformers' parallelism plans, the dimension along which it splits a weight. "rowwise" does not
# split biases.
_SPLIT_DIMENSIONS = {
    "colwise": -2,
    "colwise_gather_output": -2,
    "packed_colwise": -2,
    "embedding_rowwise": -2,
    "rowwise": -1,
    "grouped_gemm": 0,
}
_aten = torch.ops.aten


@dataclass(frozen=True)
class Layout:
    """
    How a model is distributed over devices.

    Args:
        data: number of ranks, or of tensor-parallel groups, that read different rows.
        sharded: whether FSDP2 shards the weights over the `data` ranks, in bfloat16 mixed precision; otherwise DDP
            keeps all weights on every rank, in float32 and with autocast.
        tp: number of ranks of a tensor-parallel group.
        ep: number of ranks that the experts are distributed over. They are ranks of the groups above, not additional
            ones.
    """

    data: int = 1
    sharded: bool = False
    tp: int = 1
    ep: int = 1

    @property
    def gpus(self) -> int:
        """Total number of devices."""
        return self.data * self.tp

    def __str__(self) -> str:
        names = [f"TP={self.tp}"] if self.tp > 1 else []
        names += [f"EP={self.ep}"] if self.ep > 1 else []
        names += [f"{'FSDP2' if self.sharded else 'DDP'}={self.data}"] if self.data > 1 else []
        return " x ".join(names) or "one GPU"


@dataclass(frozen=True)
class Row:
    """
    The rows that a device computes in one pass, all of the same size.

    Args:
        positions: number of positions of one row, image tokens included.
        tiles: number of tiles of one row, with sides of `config.vision_config.image_size` pixels. An unsplit image is
            one tile.
        targets: number of targets of one row.
        rows: number of rows.
    """

    positions: int
    tiles: int
    targets: int
    rows: int = 1


@dataclass(frozen=True)
class DeviceMemory:
    """
    Memory in bytes of the device that needs the most.

    Args:
        weights, gradients, optimizer: memory that stays allocated from step to step.
        buckets: DDP's copy of the gradients, which stays allocated too.
        gathered: memory of FSDP2 beside the shards: unsharded weights and gradients of the layers that it is
            computing.
        activations: peak of the forward and backward passes, in addition to the memory above.
        update: peak of the optimizer's step, when no activations exist.
    """

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int
    activations: int
    update: int

    @property
    def states(self) -> int:
        """Memory that stays allocated from step to step."""
        return self.weights + self.gradients + self.optimizer + self.buckets

    @property
    def peak(self) -> int:
        """Largest amount of memory that is allocated at the same time."""
        return self.states + max(self.gathered + self.activations, self.update)


def device_memory(
    config: MM1Config,
    row: Row,
    layout: Layout,
    *,
    optimizer: str = "adamw_torch",
    gradient_checkpointing: bool = False,
    frozen: Collection[str] = (),
) -> DeviceMemory:
    """
    The memory of one device in mixed-precision training: weights, gradients and optimizer states are in float32, the
    computation is in bfloat16.

    Args:
        config: configuration of the model.
        row: the rows that a device computes in one pass.
        layout: how the model is distributed over the devices.
        optimizer: the `optim` of the recipe, `"adamw_torch"` or `"adafactor"`.
        gradient_checkpointing: whether the activations of each layer are computed again in the backward pass.
        frozen: names of the parts that are not trained and have no gradients and optimizer states: `"encoder"`,
            `"connector"`, `"decoder"`.

    Raises:
        ValueError: the layout does not divide the model's heads or experts, or a name in `frozen` is not the name of a
            part.
    """
    activations = activation_peak(config, row, layout, gradient_checkpointing=gradient_checkpointing, frozen=frozen)
    return replace(state_memory(config, layout, optimizer, frozen), activations=activations)


def state_memory(
    config: MM1Config, layout: Layout, optimizer: str = "adamw_torch", frozen: Collection[str] = ()
) -> DeviceMemory:
    """
    [`device_memory`] without activations.

    Args:
        config, layout, optimizer, frozen: see [`device_memory`].
    """
    with torch.device("meta"), no_init_weights():
        model = MM1ForConditionalGeneration(config)
    freeze(model, frozen)
    shapes = rank_shapes(model, layout)
    fsdp = layout.data if layout.sharded else 1
    # Experts that are distributed over `ep` ranks are sharded over the ranks that hold the same experts.
    expert_fsdp = fsdp * layout.tp // layout.ep if layout.ep > 1 else fsdp
    experts = expert_parameters(model.model.language_model)
    weights = gradients = states = largest = 0
    for name, weight in model.named_parameters():
        # FSDP2 splits the first dimension and pads the last shards, so the first rank holds the largest shard.
        first, *rest = shapes[name]
        shape = (-(-first // (expert_fsdp if weight in experts else fsdp)), *rest)
        weights += 4 * prod(shape)
        if weight.requires_grad:
            gradients += 4 * prod(shape)
            states += 4 * _states(shape, optimizer)
            largest = max(largest, prod(shape))
    return DeviceMemory(
        weights=weights,
        gradients=gradients,
        optimizer=states,
        buckets=gradients if layout.data > 1 and not layout.sharded else 0,
        gathered=_gathered(model, shapes) if fsdp > 1 else 0,
        activations=0,
        # AdamW's foreach kernels allocate the square roots of all second moments at once, AdaFactor two tensors as
        # large as the weight that it updates.
        update=gradients if optimizer == "adamw_torch" else 2 * 4 * largest,
    )


def _states(shape: tuple[int, ...], optimizer: str) -> int:
    """How many numbers the optimizer stores for a weight of this shape."""
    if optimizer == "adamw_torch":
        return 2 * prod(shape)
    return prod(shape) if len(shape) < 2 else prod(shape[:-1]) + prod(shape[:-2] + shape[-1:])


def rank_shapes(model: MM1ForConditionalGeneration, layout: Layout) -> dict[str, tuple[int, ...]]:
    """
    The shape of each weight on one rank under tensor and expert parallelism, before FSDP2 shards the weight. It
    follows from the plans that the model declares.

    Args:
        model: a model on any device, including the meta device.
        layout: how the model is distributed over the devices.

    Raises:
        ValueError: the layout does not divide the model's heads or experts.
    """
    check_layout(model.config, layout)
    shapes = {}
    for name, weight in model.named_parameters():
        shape = list(weight.shape)
        for plan, ranks in ((model.ep_plan, layout.ep), (model.tp_plan, layout.tp)):
            dimension = _SPLIT_DIMENSIONS.get(_style(name, plan))
            if ranks > 1 and dimension is not None:
                if dimension == -2 and len(shape) == 1:
                    dimension = 0
                if dimension != -1 or len(shape) > 1:
                    shape[dimension] = -(-shape[dimension] // ranks)
                # Expert parallelism comes first: weights that it distributes are not also split by tensor parallelism.
                break
        shapes[name] = tuple(shape)
    return shapes


def check_layout(config: MM1Config, layout: Layout) -> None:
    """
    Checks that a layout divides the model's heads and experts.

    Args:
        config: configuration of the model.
        layout: how the model is to be distributed over the devices.

    Raises:
        ValueError: the layout does not divide the heads or experts; expert parallelism for a decoder without experts;
            or expert-parallel ranks that are not whole tensor-parallel groups or do not divide the devices.
    """
    text: Any = config.text_config
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, name)
        if heads % layout.tp:
            raise ValueError(
                f"{layout.tp} tensor-parallel ranks do not divide the decoder's {name}={heads}. "
                f"Choose a divisor of {heads} as tp."
            )
    if layout.ep == 1:
        return
    experts = getattr(text, "num_experts", 0)
    if not experts:
        raise ValueError("Expert parallelism needs experts, but this decoder is dense. Leave out ep.")
    if experts % layout.ep:
        raise ValueError(
            f"{layout.ep} expert-parallel ranks do not divide the decoder's {experts} experts. "
            f"Choose a divisor of {experts} as ep."
        )
    if layout.ep % layout.tp or layout.gpus % layout.ep:
        raise ValueError(
            f"{layout.ep} expert-parallel ranks cannot be formed from {layout.gpus} GPUs in tensor-parallel groups of "
            f"{layout.tp}. Choose as ep a multiple of {layout.tp} that divides {layout.gpus}."
        )


def _style(name: str, plan: dict[str, str]) -> str:
    """
    The style that a plan gives to a weight, or "" if it names neither the weight nor its module. In the plan's names
    `*` stands for the number of a layer.
    """
    pattern = re.sub(r"\.\d+\.", ".*.", name)
    return plan.get(pattern) or plan.get(pattern.rpartition(".")[0], "")


def _gathered(model: MM1ForConditionalGeneration, shapes: dict[str, tuple[int, ...]]) -> int:
    """
    The bytes that FSDP2 holds beside the shards at the start of the backward pass, in bfloat16: the weights that the
    plan keeps unsharded, the weights of the current layer and of the next one, and the gradients of the current layer.
    For the reduction there is also a float32 copy of these gradients.
    """
    freed: defaultdict[str, int] = defaultdict(int)
    kept = 0
    for name, shape in shapes.items():
        module = name.rpartition(".")[0]
        while module and model.fsdp_plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", module)) != "free_full_weight":
            module = module.rpartition(".")[0]
        if module:
            freed[module] += prod(shape)
        else:
            # The plan keeps these weights unsharded, or they belong to the root module's group.
            kept += prod(shape)
    largest, second = sorted([0, 0, *freed.values()])[:-3:-1]
    return 2 * (kept + largest + second) + (2 + 4) * largest


class _Recorder(TorchDispatchMode):
    """
    Counts the bytes of all storages that are alive. For operations whose results depend on data, it returns the result
    that full rows would give.

    Args:
        known: tensors that exist already and do not count.
        targets: number of targets of the pass.
    """

    def __init__(self, known: Collection[torch.Tensor], targets: int):
        super().__init__()
        self.alive = 0
        self.peaks = Counter[str]()
        self._phase = "encoder"
        self._targets = targets
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return func(*args)
        result = self._answer(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def follow(self, model: MM1ForConditionalGeneration) -> None:
        """
        Divides a pass into phases, at the input and the output of the decoder. The peak of each phase is linear in the
        numbers of layers.
        """

        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._phase = "decoder"
            if kwargs["inputs_embeds"].requires_grad:
                kwargs["inputs_embeds"].register_hook(partial(self._backward, "encoder, backward"))

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            self._phase = "head"
            if output.last_hidden_state.requires_grad:
                output.last_hidden_state.register_hook(partial(self._backward, "decoder, backward"))

        decoder = model.model.language_model
        decoder.register_forward_pre_hook(enter, with_kwargs=True)
        decoder.register_forward_hook(leave)

    def _backward(self, phase: str, gradient: torch.Tensor) -> None:
        self._phase = phase

    def _answer(self, func: Callable, args: tuple) -> Any:
        if func is _aten.nonzero.default:
            return args[0].new_empty(self._targets, args[0].dim(), dtype=torch.long)
        if func in (_aten._local_scalar_dense.default, _aten.allclose.default):
            # Only checks of the inputs and checks inside foreign decoders need these values. With True they pass, and rows
            # have no branches.
            return True
        if func is _aten._grouped_mm.default:
            # torch's implementation for tensors without data accepts only bfloat16, although its kernels accept
            # float32 too.
            left, right, offsets = args[:3]
            if right.dim() == 3:
                return left.new_empty(left.shape[0], right.shape[-1])
            return left.new_empty(len(offsets), left.shape[0], right.shape[-1])
        return None

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.alive += storage.nbytes()
            self.peaks[self._phase] = max(self.peaks[self._phase], self.alive)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.alive -= size


def activation_peak(
    config: MM1Config,
    row: Row,
    layout: Layout | None = None,
    *,
    autocast: bool = True,
    gradient_checkpointing: bool = False,
    frozen: Collection[str] = (),
) -> int:
    """
    The largest number of bytes that a forward and a backward pass hold at the same time, without weights and
    accumulated gradients. It includes the batch, saved tensors, bfloat16 copies of float32 weights, logits and
    temporary tensors.

    The model's own code runs on tensors without data, which have the shapes of one rank. Where layers are equal, only
    a few of them are run; the peak of each phase is extrapolated linearly to the full number of layers.

    Args:
        config, row, layout, gradient_checkpointing, frozen: see [`device_memory`]; unset, the layout is one device.
        autocast: whether to compute in bfloat16; otherwise the computation is in float32.

    Raises:
        ValueError: the layout does not divide the model's heads or experts, or a name in `frozen` is not the name of a
            part.
    """
    layout = Layout() if layout is None else layout
    vision: Any = config.vision_config
    text: Any = config.text_config
    # Foreign decoders may have several kinds of layers in any order, so all their layers are run.
    period = text.num_hidden_layers
    if isinstance(text, MM1TextConfig):
        period = text.moe_layer_period if text.num_experts else 1
    encoder = min(vision.num_hidden_layers, 2)
    decoder = min(text.num_hidden_layers, text.num_hidden_layers % period + 2 * period)

    def peaks(encoder: int, decoder: int) -> Counter[str]:
        shallow: Any = copy.deepcopy(config)
        shallow.vision_config.num_hidden_layers = encoder
        shallow.text_config.num_hidden_layers = decoder
        return _dry_run(shallow, row, layout, autocast, gradient_checkpointing, frozen)

    base = peaks(encoder, decoder)
    total = dict(base)
    missing = (
        (vision.num_hidden_layers - encoder, encoder + 1, decoder),
        ((text.num_hidden_layers - decoder) // period, encoder, decoder + period),
    )
    for times, *depths in missing:
        if times:
            deeper = peaks(*depths)
            total = {phase: peak + times * (deeper[phase] - base[phase]) for phase, peak in total.items()}
    return max(total.values())


def _dry_run(
    config: Any,
    row: Row,
    layout: Layout,
    autocast: bool,
    gradient_checkpointing: bool,
    frozen: Collection[str],
) -> Counter[str]:
    """The largest number of bytes in each phase of a pass."""
    # FSDP2 gathers weights in bfloat16.
    dtype = torch.bfloat16 if layout.sharded and autocast else torch.float32
    with FakeTensorMode(), no_init_weights():
        model = MM1ForConditionalGeneration._from_config(config, dtype=dtype).train()
        freeze(model, frozen)
        _cut(model, layout)
        if gradient_checkpointing:
            getattr(model, ENABLES_CHECKPOINTING)({"use_reentrant": False})
        for weight in model.parameters():
            # Gradients of an earlier pass exist already, and this pass adds to them.
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
        known = [*model.parameters(), *model.buffers()]
        known += [weight.grad for weight in model.parameters() if weight.grad is not None]
        recorder = _Recorder(known, row.rows * row.targets)
        recorder.follow(model)
        side = vision_sizes(config.vision_config)[0]
        with recorder:
            batch = {
                name: torch.empty(row.rows, row.positions, dtype=torch.long)
                for name in ("input_ids", "labels", "segment_ids")
            }
            batch["pixel_values"] = torch.empty(row.rows * row.tiles, 3, side, side)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch).loss
            loss.backward()
    return recorder.peaks


def _cut(model: MM1ForConditionalGeneration, layout: Layout) -> None:
    """Reduces each weight to the shape that one rank holds under tensor and expert parallelism."""
    for name, shape in rank_shapes(model, layout).items():
        weight = model.get_parameter(name)
        # With "colwise_gather_output" each rank gathers the whole output, so the layer is left whole here.
        if shape == weight.shape or _style(name, model.tp_plan) == "colwise_gather_output":
            continue
        module: Any = model.get_submodule(name.rpartition(".")[0])
        cut = nn.Parameter(weight.new_empty(shape), requires_grad=weight.requires_grad)
        setattr(module, name.rpartition(".")[2], cut)
        if _style(name, model.ep_plan) == "grouped_gemm":
            module.num_experts = shape[0]
