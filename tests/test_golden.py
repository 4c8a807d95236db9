"""The numbers of commit d644370, equation by equation: Q, V, log-density, loss, gradient, update and actions.

data/golden_d644370.npz was written by that commit's classes from the weights and batches that `wave` makes here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import meow_continuous_action
import meow_isaacgym

OBS, ACT, BATCH = 5, 3, 16
GOLDEN = np.load(Path(__file__).parent / "data" / "golden_d644370.npz")


def wave(shape, k):
    n = int(np.prod(shape))
    return torch.from_numpy(np.sin(0.37 * k + 0.7 * k * np.arange(1, n + 1) ** 1.1).reshape(shape)).float()


def fill(policy, k):
    """Weights that depend on their place alone; the scales of Swish and LayerNorm are around 1."""
    with torch.no_grad():
        for i, (name, param) in enumerate(policy.named_parameters()):
            is_scale = param.dim() == 1 and name.endswith(("beta", "1.weight", "4.weight"))
            param.copy_(
                float(is_scale) + wave(param.shape, k + i) / (param.shape[-1] if param.dim() == 2 else 16) ** 0.5
            )


def summary(policy, vector):
    """Of each parameter's part of a vector: some entries, and the norm."""
    pieces = []
    for piece in vector.detach().double().split([param.numel() for param in policy.parameters()]):
        pieces += [piece[:: max(1, len(piece) // 8)], piece.norm()[None]]
    return torch.cat(pieces)


SCRIPTS = {"continuous": meow_continuous_action, "isaacgym": meow_isaacgym}
CASES = [
    (name, coupling, shifts, False) for name in SCRIPTS for coupling in ("additive", "affine") for shifts in (0, 1, 2)
]
CASES += [("continuous", "additive", 2, True), ("continuous", "affine", 0, True)]


@pytest.mark.parametrize("script, coupling, num_shifts, compiled", CASES)
def test_the_numbers_are_those_of_d644370(script, coupling, num_shifts, compiled):
    meow = SCRIPTS[script]
    torch.set_float32_matmul_precision("highest")  # other tests of this process may have left it as training does
    policy, target = (meow.FlowPolicy(OBS, ACT, 0.2, -2.0, 0.5, coupling, num_shifts) for _ in range(2))
    fill(policy, 1)
    fill(target, 2)
    target.requires_grad_(False)
    obs, next_obs = 2 * wave((BATCH, OBS), 3), 2 * wave((BATCH, OBS), 4)
    u, z = 1.5 * wave((BATCH, ACT), 5), 1.5 * wave((BATCH, ACT), 6)
    reward, terminated = wave((BATCH, 1), 7), (wave((BATCH, 1), 8) > 0.5).float()
    masks = (wave((4, 1 + (coupling == "affine"), 2, BATCH, 64), 9) > -0.9).float() / 0.9
    dtype = torch.float64 if compiled else torch.float32  # compiled sums are in another order: 5e-6 in float32
    policy, target = meow.flatten(policy.to(dtype)), meow.flatten(target.to(dtype))
    inputs = (obs, next_obs, u, z, reward, terminated, masks)
    obs, next_obs, u, z, reward, terminated, masks = (tensor.to(dtype) for tensor in inputs)
    optimizer = meow.Adam(policy.vector, 1e-3)
    data = meow.Transitions(obs, next_obs, u, reward, terminated)
    found = {}
    with torch.no_grad():
        found |= {"q": policy.get_q(obs, u), "v": policy.get_v(obs), "log_prob": policy.log_prob(obs, u)}
        found |= {"action": torch.tanh(policy(obs, z)), "greedy": policy.act(obs, deterministic=True)}
        found |= {"pre_tanh": policy.pre_tanh(torch.tanh(u))}
    update = meow.CompiledStep(meow.update) if compiled else meow.update
    loss, q, norm = update(policy, target, optimizer, data, 0.99, 0.005, 0.5, masks)
    found |= {"loss": loss[None], "q_dropout": q, "grad_norm": norm[None]}
    found["grad"] = summary(policy, optimizer.exp_avg / 0.1 / min(1.0, 0.5 / (float(norm) + 1e-6)))
    for _ in range(2):
        update(policy, target, optimizer, data, 0.99, 0.005, 0.5, masks)
    found |= {"policy": summary(policy, policy.vector), "target": summary(target, target.vector)}
    with torch.no_grad():
        found["action_after"] = torch.tanh(policy(obs[:1], z[:1]))
    variant = f"{str(dtype)[6:]}/{coupling}{num_shifts}/"
    assert found.keys() == {key.removeprefix(variant) for key in GOLDEN if key.startswith(variant)}
    for name, tensor in found.items():
        golden = GOLDEN[variant + name]
        error = np.abs(tensor.double().numpy() - golden) / np.maximum(np.abs(golden), np.abs(golden).mean())
        assert error.max() < 1e-6, (name, error.max())
