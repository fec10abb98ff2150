"""Golden numbers of LVM-Med: both objectives, local parts and the recipe."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from crossband.medical.lvm_med.affinities import cosine_affinity, softplus_affinity, vertex_affinity
from crossband.medical.lvm_med.graphs import edge_features
from crossband.medical.lvm_med.local import location_grid, nearest_neighbours
from crossband.medical.lvm_med.matching import matching_loss
from crossband.medical.lvm_med.message_passing import GCN, GraphConvs
from crossband.medical.lvm_med.projector import Projector
from crossband.shared.checkpoints import load_state
from crossband.shared.matching import solve
from crossband.shared.training.optimizers import mae_rate

_SOURCE = "the fixture"
Config = dict[str, Any]
Tensors = dict[str, Tensor]


def draft_loss(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return nodes, affinities, costs, the matching and all gradients of the draft's objective."""
    gnn = _graph_convs(weights).eval()
    z = [inputs[f"z_{side}"].clone().requires_grad_() for side in "st"]
    edges = [inputs[f"edge_index_{side}"].t()[None] for side in "st"]
    nodes = [gnn(x[None], pairs) for x, pairs in zip(z, edges, strict=True)]
    attributes = [edge_features(x, pairs) for x, pairs in zip(nodes, edges, strict=True)]
    vertex, edge = softplus_affinity(*nodes), softplus_affinity(*attributes)
    unary = -vertex + config["margin"] * torch.eye(config["n"])
    quadratic = -config["edge_scale"] * edge
    unary.retain_grad()
    quadratic.retain_grad()
    found = matching_loss(
        unary,
        quadratic,
        *edges,
        lam=config["lambda_val"],
        allow_unmatched=True,
        solver="exact",
    )
    loss = found.loss.mean()
    loss.backward()
    best, second = _two_best(unary.detach(), *edges, quadratic.detach(), found.x)
    outputs = {
        "vertex_affinity": vertex[0],
        "edge_affinity": edge[0],
        "unary_costs": unary[0],
        "quadratic_costs": quadratic[0],
        "matching": found.x[0],
        "edge_matching": found.y[0],
        "energy": best,
        "gap_to_second_best": second - best,
        "hamming_loss": loss[None],
        "grad.unary_costs": unary.grad[0],
        "grad.quadratic_costs": quadratic.grad[0],
    }
    for side, x, h, attribute in zip("st", z, nodes, attributes, strict=True):
        outputs |= {f"node_{side}": h[0], f"edge_attr_{side}": attribute[0]}
        outputs[f"grad.z_{side}"] = x.grad
    outputs |= {f"grad.{name}": parameter.grad for name, parameter in gnn.named_parameters()}
    return _detached(outputs)


def paper_loss(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return nodes, affinities, both matchings, loss and gradients of the paper's objective."""
    names = sorted((n for n in weights if n.startswith("gcn")), key=lambda n: int(n[3:]))
    gnn = GCN(len(weights[names[0]]), weights[names[0]].shape[1], len(names))
    load_state(gnn, {f"weights.{i}": weights[name] for i, name in enumerate(names)}, _SOURCE)
    edges = [inputs[f"edges_{side}"][None] for side in "st"]
    z = [inputs[f"z_{side}"][None].clone().requires_grad_() for side in "st"]
    nodes = [gnn(x, pairs) for x, pairs in zip(z, edges, strict=True)]
    vertex = vertex_affinity(
        cosine_affinity(*nodes), inputs["local_affinity"][None], config["alpha"]
    )
    edge = cosine_affinity(*(edge_features(x, e) for x, e in zip(nodes, edges, strict=True)))
    vertex.retain_grad()
    edge.retain_grad()
    found = matching_loss(
        -(vertex + inputs["gumbel_v"]),
        -(edge + inputs["gumbel_e"]),
        *edges,
        lam=config["lambda_val"],
        solver="exact",
    )
    loss = found.loss.mean()
    loss.backward()
    outputs = {
        "h_s": nodes[0][0],
        "h_t": nodes[1][0],
        "c_v": vertex[0],
        "c_e": edge[0],
        "matching": found.x[0],
        "edge_matching": found.y[0],
        "perturbed_matching": found.perturbed[0][0],
        "loss": loss[None],
        "grad.c_v": vertex.grad[0],
        "grad.c_e": edge.grad[0],
        "grad.z_s": z[0].grad[0],
        "grad.z_t": z[1].grad[0],
    }
    outputs |= {f"grad.{name}": gnn.weights[i].grad for i, name in enumerate(names)}
    return _detached(outputs)


def local_parts(config: Config, weights: Tensors, inputs: Tensors) -> Tensors:
    """Return location grids, paired places, the projector's output and the learning rates."""
    outputs: Tensors = {}
    for case in config["location_grid"]["cases"]:
        if "output" in case:
            outputs[case["output"]] = location_grid(case["box"], case["n"], case["flip"])
    for case in config["nearest_neighbours"]["cases"]:
        compared = re.search(r"between (\w+) and (\w+)", case["distance"]).groups()
        distance = torch.cdist(*(inputs[name] for name in compared))
        pairs = nearest_neighbours(
            inputs["maps_1"], inputs["maps_2"], distance, case["num_matches"]
        )
        outputs |= dict(zip(case["outputs"], pairs, strict=True))
    given = config["projector"]
    projector = Projector(given["in_features"], given["spec"])
    prefix = given["weights_prefix"] + "."
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    load_state(projector, own, _SOURCE)
    projector.train(given["mode"] == "train")
    outputs[given["output"]] = projector(inputs[given["input"]])
    return _detached(outputs | _rates(config["schedule"]))


def _rates(given: Config) -> Tensors:
    peak = given["base_lr"] * given["batch_size"] / 256
    rates = [
        mae_rate(
            step,
            lr=peak,
            min_lr=peak * given["end_lr_ratio"],
            warmup_epochs=given["warmup_steps"],
            epochs=given["total_steps"],
        )
        for step in given["steps"]
    ]
    return {given["output"]: torch.tensor(rates, dtype=torch.float64)}


def _graph_convs(weights: Tensors) -> GraphConvs:
    layers = len({key.split(".")[1] for key in weights if key.startswith("convs.")})
    width, dim = weights["convs.0.lin_root.weight"].shape
    gnn = GraphConvs(dim, width, layers)
    load_state(gnn, weights, _SOURCE)
    return gnn


def _two_best(
    unary: Tensor, left: Tensor, right: Tensor, quadratic: Tensor, best: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the least cost and that of the best other matching, float64 (1,) each.

    Any other matching differs in one indicator at least: each in turn is held to its other value.
    """
    unary, quadratic, best = unary.double(), quadratic.double(), best.double()
    weight = 1 + unary.abs().sum() + quadratic.abs().sum()
    count = unary.numel()
    each = torch.eye(count, dtype=torch.float64).view(count, *unary.shape[1:])
    changed = unary + weight * each * (
        2 * best - 1
    )  # what is matched is forbidden, all else wanted
    others = [part.expand(count, -1, -1) for part in (left, right, quadratic)]
    found = solve(changed, *others, solver="exact", allow_unmatched=True)
    x, y = found.x.double(), found.y.double()
    energies = (x * unary).sum((1, 2)) + (y * quadratic).sum((1, 2))
    kept = solve(unary, left, right, quadratic, solver="exact", allow_unmatched=True)
    energy = (kept.x.double() * unary).sum((1, 2)) + (kept.y.double() * quadratic).sum((1, 2))
    return energy, energies.min()[None]


def _detached(outputs: Tensors) -> Tensors:
    return {name: value.detach() for name, value in outputs.items()}
