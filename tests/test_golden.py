"""The numbers of commit d644370, equation by equation: Q, V, log-density, actions, loss and gradient's norm.

data/golden_d644370.npz was written by that commit's classes from the weights and batches that `wave` makes here.
That meow_isaacgym.py has the same classes is for test_isaacgym.py, compiled ones for test_compile.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import meow_continuous_action as meow

OBS, ACT, BATCH = 5, 3, 16
GOLDEN = np.load(Path(__file__).parent / "data" / "golden_d644370.npz")


def wave(shape, k):
    n = int(np.prod(shape))
    numbers = np.sin(0.37 * k + 0.7 * k * np.arange(1, n + 1) ** 1.1)
    return torch.from_numpy(numbers.reshape(shape)).float()


def wavy_policy(coupling, num_shifts, k):
    """Weights that depend on their place alone; the scales of Swish and LayerNorm are around 1."""
    policy = meow.FlowPolicy(OBS, ACT, 0.2, -2.0, 0.5, coupling, num_shifts)
    for i, (name, param) in enumerate(policy.named_parameters()):
        size = param.shape[-1] if param.dim() == 2 else 16
        param.data = wave(param.shape, k + i) / size**0.5
        if param.dim() == 1 and name.endswith(("beta", "1.weight", "4.weight")):
            param.data += 1
    return meow.flatten(policy)


@pytest.mark.parametrize("num_shifts", [0, 1, 2])
@pytest.mark.parametrize("coupling, nets", [("additive", 1), ("affine", 2)])
def test_the_numbers_are_those_of_d644370(coupling, nets, num_shifts):
    torch.set_float32_matmul_precision("highest")  # other tests of this process may have left it as training does
    policy, target = wavy_policy(coupling, num_shifts, 1), wavy_policy(coupling, num_shifts, 2)
    obs, next_obs = 2 * wave((BATCH, OBS), 3), 2 * wave((BATCH, OBS), 4)
    u, z = 1.5 * wave((BATCH, ACT), 5), 1.5 * wave((BATCH, ACT), 6)
    terminated = (wave((BATCH, 1), 8) > 0.5).float()
    data = meow.Transitions(obs, next_obs, u, wave((BATCH, 1), 7), terminated)
    masks = (wave((4, nets, 2, BATCH, 64), 9) > -0.9).float() / 0.9
    found = {
        "q": policy.get_q(obs, u),
        "v": policy.get_v(obs),
        "log_prob": policy.log_prob(obs, u),
        "action": torch.tanh(policy(obs, z)),
        "greedy": policy.act(obs, deterministic=True),
        "pre_tanh": policy.pre_tanh(torch.tanh(u)),
    }
    optimizer = meow.Adam(policy.vector, 1e-3)
    for _ in range(3):
        results = meow.update(policy, target, optimizer, data, 0.99, 0.005, 0.5, masks)
        for name, result in zip(("loss", "q_dropout", "grad_norm"), results, strict=True):
            found.setdefault(name, result)  # of the first
    found["action_after"] = torch.tanh(policy(obs[:1], z[:1]))
    for name, tensor in found.items():
        golden = GOLDEN[f"float32/{coupling}{num_shifts}/{name}"]
        largest = np.maximum(np.abs(golden), np.abs(golden).mean())
        error = np.abs(tensor.detach().double().numpy() - golden) / largest
        assert error.max() < 1e-6, (name, error.max())
