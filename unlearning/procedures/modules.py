"""Parts of a network by the role they play in its graph: first convolution, classifier, norms, shortcuts, blocks.

Methods refer to parts by role, whatever a network calls them. The roles are read from the graph that `torch.fx` traces,
so they work for every classifier whose forward pass torch.fx can trace, torchvision's among them:

* the *first convolution* is the first one that data passes, the *classifier* the last convolution or linear layer;
* a *norm* is a batch, layer, group or instance normalisation;
* a *shortcut* is a convolution on the poorer of two branches that an addition joins;
* a *block* is what lies between two neighbouring points through which all data flows, if it holds a convolution, a
  linear layer or an attention; what has none of these (a norm, an activation) belongs to the block before it. The head
  (the classifier and what follows the last block) is no block.
"""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from unlearning.errors import MethodError

_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Layout:
    """Names (as in `model.named_modules()`) of the parts of one network, each in the order in which data passes them.

    Attributes:
        layers: convolutions, linear layers and attentions.
        convolutions: the convolutions among them.
        classifier: the last convolution or linear layer.
        norms: normalisations.
        shortcuts: convolutions on the poorer branch of an addition.
        blocks: names of all leaf modules with parameters, block by block, without the head.
        head: names of the leaf modules with parameters that follow the last block, the classifier among them.
    """

    layers: tuple[str, ...]
    convolutions: tuple[str, ...]
    classifier: str
    norms: tuple[str, ...]
    shortcuts: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]

    @property
    def first_convolution(self) -> str:
        """The convolution that sees the image.

        Raises:
            MethodError: the network has no convolution.
        """
        if not self.convolutions:
            raise MethodError("Expected a network with a convolution, but this one has none; choose another method.")
        return self.convolutions[0]


def layout(model: nn.Module) -> Layout:
    """Reads the roles of a network's parts from its graph; the network is neither run nor changed.

    Raises:
        MethodError: torch.fx cannot follow the forward pass, or no convolution or linear layer is in it.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever the forward pass raises on a proxy
        raise MethodError(
            f"Expected a network whose forward pass torch.fx can trace, but {type(model).__name__} stopped it: {error}"
        ) from error
    modules = dict(model.named_modules())
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    met = list(dict.fromkeys(called))
    layers = tuple(name for name in met if isinstance(modules[name], _WEIGHTED))
    heads = [name for name in layers if isinstance(modules[name], (nn.Conv2d, nn.Linear))]
    if not heads:
        raise MethodError(f"Expected a convolution or a linear layer in {type(model).__name__}, but it calls none.")
    classifier = heads[-1]
    blocks, head = _blocks(graph, modules, classifier)
    return Layout(
        layers=layers,
        convolutions=tuple(name for name in layers if isinstance(modules[name], nn.Conv2d)),
        classifier=classifier,
        norms=tuple(name for name in met if isinstance(modules[name], _NORMS)),
        shortcuts=_shortcuts(graph, modules),
        blocks=blocks,
        head=head,
    )


def norm_parameters(model: nn.Module) -> frozenset[str]:
    """Returns the names of all parameters that belong to normalisations."""
    return frozenset(
        f"{name}.{parameter}" if name else parameter
        for name, module in model.named_modules()
        if isinstance(module, _NORMS)
        for parameter, _ in module.named_parameters(recurse=False)
    )


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weight (not bias) of every convolution, linear layer and attention's input by its parameter name."""
    weights: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            weights[f"{name}.weight" if name else "weight"] = module.weight
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            weights[f"{name}.in_proj_weight"] = module.in_proj_weight
    return weights


def convolution_weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns the kernel of every two-dimensional convolution by its parameter name; shape `(out, in / groups, h, w)`.

    Raises:
        MethodError: the network has no convolution.
    """
    weights = {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    if not weights:
        raise MethodError(
            f"Expected a network with convolutions, but {type(model).__name__} has none; choose another method."
        )
    return weights


def reset(module: nn.Module) -> None:
    """Draws a layer's parameters anew by torch's own initialisation, from torch's global generator.

    Raises:
        MethodError: the layer has no `reset_parameters`.
    """
    draw = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if draw is None:
        raise MethodError(
            f"Expected a layer that can be drawn anew, but {type(module).__name__} has no reset_parameters."
        )
    draw()


def reset_all(model: nn.Module) -> None:
    """Draws every parameter of a network anew; those outside any layer (a class token, say) as N(0, 0.02²)."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if hasattr(module, "reset_parameters") or hasattr(module, "_reset_parameters"):
            reset(module)
        elif own:
            for parameter in own:
                nn.init.normal_(parameter, std=0.02)  # what vision transformers draw such parameters from


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Returns a node and everything its value is computed from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def _shortcuts(graph: fx.Graph, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for node in graph.nodes:
        adds = node.target in _ADDITIONS or (node.op == "call_method" and node.target in ("add", "add_"))
        if not adds or len(node.all_input_nodes) != 2:
            continue
        one, other = (_ancestors(branch) for branch in node.all_input_nodes)
        branches = [_convolutions_of(one - other, modules), _convolutions_of(other - one, modules)]
        found.update(dict.fromkeys(sorted(branches, key=len)[0]))
    return tuple(found)


def _convolutions_of(nodes: set[fx.Node], modules: dict[str, nn.Module]) -> list[str]:
    return [str(n.target) for n in nodes if n.op == "call_module" and isinstance(modules[str(n.target)], nn.Conv2d)]


def _blocks(
    graph: fx.Graph, modules: dict[str, nn.Module], classifier: str
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Cuts the graph at every point where a single value carries all that follows."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    position = {node: i for i, node in enumerate(nodes)}
    last_use = [max((position.get(user, len(nodes)) for user in node.users), default=i) for i, node in enumerate(nodes)]
    blocks: list[list[str]] = []
    segment: list[str] = []
    reach = 0  # the latest use of any value made before the current node
    for i, node in enumerate(nodes):
        if node.op == "call_module" and next(modules[str(node.target)].parameters(), None) is not None:
            segment.append(str(node.target))
        if reach <= i:  # nothing older is needed later: all data flows through this node
            if any(isinstance(modules[name], _WEIGHTED) for name in segment) or not blocks:
                blocks.append(segment)
            else:
                blocks[-1].extend(segment)
            segment = []
        reach = max(reach, last_use[i])
    if segment:
        blocks.append(segment)
    full = [block for block in blocks if block]
    at = next(i for i, block in enumerate(full) if classifier in block)
    return tuple(tuple(block) for block in full[:at]), tuple(name for block in full[at:] for name in block)
