"""Every objective by its formula in float64, with gradients by torch's autograd. The tests of the
loss functions compare with these values.

usage: losses_by_formula.py OUT.json

The formulas follow the papers and TRL 1.16, in a form that does not overflow. README.md lists the
differences between papers and TRL. The file holds
    pairs    sets of log-probs of n pairs: chosen, rejected, ref_chosen, ref_rejected (sums over the
             response), chosen_lengths, rejected_lengths. In `start` the policy equals the
             reference; in `extreme` the log-ratios are about ±1e4
    rows     sets for KTO: logps, ref_logps, labels, kl_logps, ref_kl_logps
    cases    objective (pair, reference_free, tpo or kto), set, settings (keys of a recipe), the loss of
             each pair or row, and the derivatives of the mean loss: d_chosen and d_rejected
             (pairs), or d_logps (rows)
"""
import json
import math
import sys

import torch
from torch.nn.functional import logsigmoid

torch.set_default_dtype(torch.float64)
torch.manual_seed(7)
CLAMP = 80.0


def sigmoid_loss(x, epsilon):
    """The DPO loss of the margin x with label smoothing epsilon."""
    return -(1 - epsilon) * logsigmoid(x) - epsilon * logsigmoid(-x)


def score(r, kind, alpha):
    """f'(exp(r)) of the f-divergence, up to a constant."""
    if kind == "forward_kl":
        return 1 - torch.exp(-r)
    if kind == "js_divergence":
        return math.log(2) + logsigmoid(r)
    if kind == "alpha_divergence":
        return (torch.exp(((alpha - 1) * r).clamp(max=CLAMP)) - 1) / (alpha - 1)
    return r


def dpo(kind, data, settings):
    """One loss per pair. `sft` has the same value for all pairs (the mean over the tokens of the
    batch); `kto_pair` has two values per pair."""
    beta, epsilon = settings.get("beta", 0.1), settings.get("label_smoothing", 0.0)
    chosen, rejected, ref_chosen, ref_rejected = (data[k] for k in ("chosen", "rejected", "ref_chosen", "ref_rejected"))
    if settings.get("reference_free"):
        ref_chosen, ref_rejected = torch.zeros_like(ref_chosen), torch.zeros_like(ref_rejected)
    length_w, length_l = data["chosen_lengths"], data["rejected_lengths"]
    w, l = chosen - ref_chosen, rejected - ref_rejected
    divergence = settings.get("f_divergence_type", "reverse_kl"), settings.get("f_alpha_divergence_coef", 0.5)
    s_w, s_l = score(w, *divergence), score(l, *divergence)
    x = beta * (s_w - s_l)
    per_token = s_w / length_w - s_l / length_l
    if kind == "sigmoid":
        return sigmoid_loss(x, epsilon)
    if kind == "hinge":
        return torch.relu(1 - x)
    if kind == "ipo":
        return (per_token - 1 / (2 * beta)) ** 2
    if kind == "exo_pair":
        q_w, q_l = torch.sigmoid(x), torch.sigmoid(-x)
        return q_w * (logsigmoid(x) - math.log1p(-epsilon)) + q_l * (logsigmoid(-x) - math.log(epsilon))
    if kind == "nca_pair":
        return -logsigmoid(beta * w) - 0.5 * logsigmoid(-beta * w) - 0.5 * logsigmoid(-beta * l)
    if kind == "robust":
        return (-(1 - epsilon) * logsigmoid(x) + epsilon * logsigmoid(-x)) / (1 - 2 * epsilon)
    if kind == "bco_pair":
        return -logsigmoid(beta * w) - logsigmoid(-beta * l)
    if kind == "sppo_hard":
        return (w - 0.5 / beta) ** 2 + (l + 0.5 / beta) ** 2
    if kind == "aot":
        margin = torch.sort(chosen - rejected).values - torch.sort(ref_chosen - ref_rejected).values
        return sigmoid_loss(beta * margin, epsilon)
    if kind == "aot_unpaired":
        return sigmoid_loss(beta * (torch.sort(w).values - torch.sort(l).values), epsilon)
    if kind == "apo_zero":
        return torch.sigmoid(-beta * w) + torch.sigmoid(beta * l)
    if kind == "apo_down":
        return torch.sigmoid(beta * w) + torch.sigmoid(-beta * (w - l))
    if kind == "discopop":
        tau = settings.get("discopop_tau", 0.05)
        # exp(-x) * sigmoid(x / tau) as one exponential, which does not overflow for tau < 1.
        return -logsigmoid(x) * torch.sigmoid(-x / tau) + torch.exp(-x + logsigmoid(x / tau))
    if kind == "sft":
        return (-chosen.sum() / length_w.sum()).expand(len(chosen))
    if kind == "sigmoid_norm":
        return -logsigmoid(beta * per_token)
    if kind == "kto_pair":
        kl_w, kl_l = w.mean().clamp(min=0).detach(), l.mean().clamp(min=0).detach()
        return torch.cat([torch.sigmoid(-beta * (w - kl_l)), torch.sigmoid(-beta * (kl_w - l))])
    raise ValueError(kind)


def reference_free_losses(kind, data, settings):
    """One loss per pair, without the NLL term, which depends on more than these vectors."""
    beta, epsilon = settings.get("beta", 0.1), settings.get("label_smoothing", 0.0)
    chosen, rejected = data["chosen"], data["rejected"]
    if kind in ("orpo", "simpo", "ipo", "tpo-l"):
        chosen, rejected = chosen / data["chosen_lengths"], rejected / data["rejected_lengths"]
    if kind == "orpo":
        def log_odds(x):
            return x - torch.log(-torch.expm1(x))
        return -beta * logsigmoid(log_odds(chosen) - log_odds(rejected))
    x = beta * (chosen - rejected)
    if kind == "simpo":
        return sigmoid_loss(x - settings.get("simpo_gamma", 0.5), epsilon)
    if kind == "tpo-l":
        return sigmoid_loss(x - settings.get("tpo_l_gamma", 0.5), epsilon)
    if kind == "sigmoid":
        return sigmoid_loss(x, epsilon)
    if kind == "hinge":
        return torch.relu(1 - x)
    if kind == "ipo":
        return (chosen - rejected - 1 / (2 * beta)) ** 2
    raise ValueError(kind)


def kto_losses(kind, data, settings):
    beta = settings.get("beta", 0.1)
    r = data["logps"] - data["ref_logps"]
    kl = (data["kl_logps"] - data["ref_kl_logps"]).mean().clamp(min=0) if kind == "kto" else 0.0
    desirable = data["labels"].bool()
    return torch.where(desirable, settings.get("desirable_weight", 1.0) * torch.sigmoid(-beta * (r - kl)),
                       settings.get("undesirable_weight", 1.0) * torch.sigmoid(-beta * (kl - r)))


def pairs(log_ratios_w, log_ratios_l):
    """Pairs with these log-ratios. The larger of the policy's and the reference's log-prob is minus
    a few hundred nats."""
    w, l = torch.tensor(log_ratios_w), torch.tensor(log_ratios_l)
    lengths = [torch.randint(20, 200, w.shape).double() for _ in range(2)]
    best = [-(1 + torch.rand(w.shape)) * length for length in lengths]
    return dict(chosen=best[0] + w.clamp(max=0), rejected=best[1] + l.clamp(max=0), ref_chosen=best[0] - w.clamp(min=0),
                ref_rejected=best[1] - l.clamp(min=0), chosen_lengths=lengths[0], rejected_lengths=lengths[1])


def rows(log_ratios, kl_log_ratios, labels):
    base = pairs(log_ratios, kl_log_ratios)
    return dict(logps=base["chosen"], ref_logps=base["ref_chosen"], labels=torch.tensor(labels, dtype=torch.float64),
                kl_logps=base["rejected"], ref_kl_logps=base["ref_rejected"])


PAIRS = {
    "start": pairs([0.0] * 4, [0.0] * 4),
    "near": pairs((torch.randn(7) * 2).tolist(), (torch.randn(7) * 2).tolist()),
    "far": pairs((torch.randn(6) * 40).tolist(), (torch.randn(6) * 40).tolist()),
    "extreme": pairs([1e4, -1e4, 9.9e3, -9.8e3, 0.7], [-1e4, 1e4, 9.7e3, -9.6e3, 9.5e3]),
}
ROWS = {
    "start": rows([0.0] * 4, [0.0] * 4, [1, 0, 0, 1]),
    "near": rows((torch.randn(7) * 3).tolist(), (torch.randn(7) * 3 + 1).tolist(), [1, 1, 0, 1, 0, 0, 1]),
    "negative_kl": rows((torch.randn(4) * 3).tolist(), (torch.randn(4) * 3 - 9).tolist(), [0, 1, 0, 1]),
    "one_label": rows((torch.randn(3) * 3).tolist(), (torch.randn(3) * 3 + 1).tolist(), [0, 0, 0]),
    "extreme": rows([1e4, -1e4, 9.9e3, -9.8e3, 0.7], [3.0, -2.0, 5.0, 1.0, 1e4], [1, 1, 0, 0, 1]),
}
SETTINGS = [
    ("pair", dict(loss_type="sigmoid"), "all"),
    ("pair", dict(loss_type="sigmoid", label_smoothing=0.1, beta=0.3), "all"),
    ("pair", dict(loss_type="sigmoid", reference_free=True), "all"),
    ("pair", dict(loss_type="hinge"), "all"),
    ("pair", dict(loss_type="ipo"), "all"),
    ("pair", dict(loss_type="exo_pair", label_smoothing=1e-3), "all"),
    ("pair", dict(loss_type="nca_pair"), "all"),
    ("pair", dict(loss_type="robust", label_smoothing=0.1), "all"),
    ("pair", dict(loss_type="bco_pair"), "all"),
    ("pair", dict(loss_type="sppo_hard"), "all"),
    ("pair", dict(loss_type="aot"), "all"),
    ("pair", dict(loss_type="aot", label_smoothing=0.1), "all"),
    ("pair", dict(loss_type="aot_unpaired"), "all"),
    ("pair", dict(loss_type="aot_unpaired", label_smoothing=0.1), "all"),
    ("pair", dict(loss_type="apo_zero"), "all"),
    ("pair", dict(loss_type="apo_down"), "all"),
    ("pair", dict(loss_type="discopop"), "all"),
    ("pair", dict(loss_type="discopop", discopop_tau=0.5), "all"),
    ("pair", dict(loss_type="sft"), "all"),
    ("pair", dict(loss_type="sigmoid_norm", beta=2.0), "all"),
    ("pair", dict(loss_type="kto_pair"), "all"),
    ("pair", dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]), "all"),
    ("pair", dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]), "all"),
    # For r = -1e4, 1 - exp(-r) overflows even in float64. The square of exp(80) overflows in
    # float32.
    *(("pair", dict(loss_type=kind, f_divergence_type="forward_kl", **more), "finite")
      for kind, more in [("sigmoid", {}), ("ipo", {}), ("sigmoid_norm", {})]),
    *(("pair", dict(loss_type=kind, f_divergence_type="js_divergence", **more), "all")
      for kind, more in [("sigmoid", {}), ("hinge", {}), ("ipo", {}), ("exo_pair", dict(label_smoothing=1e-3)),
                         ("robust", dict(label_smoothing=0.1)), ("discopop", {}), ("sigmoid_norm", {})]),
    *(("pair", dict(loss_type="sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha), "all")
      for alpha in (0.3, 0.5, 1.5)),
    ("pair", dict(loss_type="ipo", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5), "finite"),
    ("reference_free", dict(loss_type="orpo"), "all"),
    ("reference_free", dict(loss_type="orpo", beta=1.0), "all"),
    ("reference_free", dict(loss_type="sigmoid"), "all"),
    ("reference_free", dict(loss_type="sigmoid", label_smoothing=0.1), "all"),
    ("reference_free", dict(loss_type="hinge"), "all"),
    ("reference_free", dict(loss_type="ipo"), "all"),
    ("reference_free", dict(loss_type="simpo", beta=2.0, simpo_gamma=1.0), "all"),
    ("reference_free", dict(loss_type="simpo", beta=2.0, label_smoothing=0.1), "all"),
    ("tpo", dict(loss_type="sigmoid", beta=0.2, label_smoothing=0.1), "all"),
    ("tpo", dict(loss_type="hinge", beta=0.2), "all"),
    ("tpo", dict(loss_type="ipo", beta=0.2), "all"),
    ("tpo", dict(loss_type="tpo-l", beta=2.0), "all"),
    ("tpo", dict(loss_type="tpo-l", beta=2.0, tpo_l_gamma=1.0, label_smoothing=0.1), "all"),
    ("kto", dict(loss_type="kto"), "all"),
    ("kto", dict(loss_type="kto", beta=0.5, desirable_weight=1.33, undesirable_weight=0.8), "all"),
    ("kto", dict(loss_type="apo_zero_unpaired"), "all"),
]


def evaluate(objective, name, settings):
    losses = {"pair": dpo, "reference_free": reference_free_losses, "tpo": reference_free_losses,
              "kto": kto_losses}[objective]
    data = dict((ROWS if objective == "kto" else PAIRS)[name])
    wanted = ("logps",) if objective == "kto" else ("chosen", "rejected")
    for key in wanted:
        data[key] = data[key].clone().requires_grad_()
    kinds = settings["loss_type"]
    kinds, weights = ([kinds], [1.0]) if isinstance(kinds, str) else (kinds, settings["loss_weights"])
    each = sum(weight * losses(kind, data, settings) for kind, weight in zip(kinds, weights))
    mean = each.mean()
    gradients = torch.autograd.grad(mean, [data[key] for key in wanted], allow_unused=True)
    case = dict(objective=objective, set=name, settings=settings, losses=each.tolist(), mean=mean.item())
    for key, gradient in zip(wanted, gradients):
        case[f"d_{key}"] = (torch.zeros_like(data[key]) if gradient is None else gradient).tolist()
    assert all(math.isfinite(x) for key in case if key not in ("objective", "set", "settings")
               for x in (case[key] if isinstance(case[key], list) else [case[key]])), case
    return case


def main():
    cases = [evaluate(objective, name, settings) for objective, settings, which in SETTINGS
             for name in (ROWS if objective == "kto" else PAIRS)
             if which == "all" or name in ("start", "near")]
    numbers = {title: {name: {key: value.tolist() for key, value in data.items()} for name, data in sets.items()}
               for title, sets in (("pairs", PAIRS), ("rows", ROWS))}
    with open(sys.argv[1], "w") as file:
        json.dump(dict(made_with=dict(torch=torch.__version__), **numbers, cases=cases), file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
