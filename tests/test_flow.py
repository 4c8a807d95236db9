"""The equations of the flow and of the update (Eq. 8, Eq. 9, Sec. 3.2-3.3): against autograd, integrals and PyTorch."""

import copy
import math

import pytest
import torch
from torch.distributions import Normal

from meow_continuous_action import Adam, FlowPolicy, Swish, Transitions, dropout_masks, flatten, update

OBS_DIM, ALPHA = 5, 0.3
COUPLINGS = ["additive", "affine"]


def random_policy(act_dim, coupling="additive", num_shifts=2, dtype=torch.float64, **kwargs):
    """A policy with random non-zero weights in every network."""
    torch.manual_seed(act_dim)
    policy = FlowPolicy(OBS_DIM, act_dim, ALPHA, coupling=coupling, num_shifts=num_shifts, **kwargs).to(dtype)
    with torch.no_grad():
        for param in policy.parameters():
            param.add_(0.1 * torch.randn_like(param))
        for name, param in policy.named_parameters():
            if name.startswith("couplings") and name.endswith("6.weight"):
                param.mul_(0.3)  # keeps tanh away from where float64 actions would not give u back
    return policy


def random_obs(batch, dtype=torch.float64):
    return torch.randn(batch, OBS_DIM, generator=torch.Generator().manual_seed(0), dtype=dtype)


def grid(policy, obs, limit, points):
    """A tensor grid over u = atanh(a), and the weights da of the midpoint rule."""
    edges = torch.linspace(-limit, limit, points + 1, dtype=obs.dtype)
    axis = 0.5 * (edges[1:] + edges[:-1])
    u = torch.cartesian_prod(*[axis] * policy.act_dim).reshape(-1, policy.act_dim)
    weights = (1 - torch.tanh(u).square()).prod(dim=1) * (edges[1] - edges[0]) ** policy.act_dim
    return obs.expand(len(u), -1), u, weights


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("act_dim", [1, 2, 3, 6, 17])
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_inverse_determinants_and_density_are_those_of_the_change_of_variables(coupling, act_dim, dtype, tol):
    policy, obs = random_policy(act_dim, coupling, dtype=dtype), random_obs(6, dtype)
    z = torch.randn(6, act_dim, dtype=dtype)
    u, log_sigma = policy(obs, z), policy.log_sigma(obs)
    scaled_z, log_det = policy.inverse_nonlinear(obs, u)
    torch.testing.assert_close(scaled_z, log_sigma.exp() * z, atol=tol, rtol=tol)
    exact = copy.deepcopy(policy).double()
    for i, (s, z_i, u_i) in enumerate(zip(obs.double(), z.double(), u.double(), strict=True)):
        sampling = torch.func.jacrev(lambda x, s=s: torch.tanh(exact(s[None], x[None])[0]))(z_i)
        log_prob = Normal(0.0, 1.0).log_prob(z_i).sum() - sampling.det().abs().log()
        torch.testing.assert_close(policy.log_prob(obs, u)[i].double(), log_prob, atol=tol, rtol=tol)
        nonlinear = torch.func.jacrev(lambda a, s=s: exact.inverse_nonlinear(s[None], torch.atanh(a)[None])[0][0])
        expected = nonlinear(torch.tanh(u_i)).det().abs().log()
        torch.testing.assert_close(log_det[i].double(), expected, atol=10 * tol, rtol=10 * tol)
    if coupling == "additive":  # preserves volume: what is left is tanh's
        torch.testing.assert_close(log_det, -(1 - torch.tanh(u).square()).log().sum(dim=1), atol=10 * tol, rtol=tol)


@pytest.mark.parametrize("saturated", [20.0, -20.0])
def test_q_v_and_density_hold_where_tanh_saturates(saturated):
    policy, obs, z = random_policy(3, dtype=torch.float32), random_obs(32, torch.float32), torch.randn(32, 3)
    with torch.no_grad():
        for layer in policy.couplings:
            layer.translation[-1].bias.fill_(saturated)
        u = policy(obs, z)
        assert (torch.tanh(u).abs() == 1).all()
        exact = copy.deepcopy(policy).double()
        size = exact(obs.double(), z.double()).abs()
        log_det_tanh = (math.log(4) - 2 * size - 2 * torch.log1p(torch.exp(-2 * size))).sum(dim=1)
        log_prob = Normal(0.0, 1.0).log_prob(z).sum(dim=1) - policy.log_sigma(obs).sum(dim=1) - log_det_tanh
        torch.testing.assert_close(policy.log_prob(obs, u).double(), log_prob, atol=1e-3, rtol=1e-5)
        v = policy.get_q(obs, u) - ALPHA * log_prob[:, None].float()
        torch.testing.assert_close(v, policy.get_v(obs), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("act_dim, points", [(1, 2_000), (2, 160)])
@pytest.mark.parametrize("num_shifts", [0, 1, 2])
def test_density_integrates_to_one_and_v_is_the_log_integral(coupling, act_dim, points, num_shifts):
    policy = random_policy(act_dim, coupling, num_shifts, sigma_min=-2.0)
    with torch.no_grad():
        for obs in random_obs(3).split(1):
            obs_grid, u, weights = grid(policy, obs, 6.0, points)
            assert abs((policy.log_prob(obs_grid, u).exp() * weights).sum() - 1) < 1e-6
            q = policy.get_q(obs_grid, u)
            soft_value = ALPHA * torch.logsumexp(q / ALPHA + weights.log()[:, None], dim=0)
            torch.testing.assert_close(policy.get_v(obs)[0], soft_value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("num_shifts", [0, 1, 2])
def test_policy_is_exp_of_the_advantage_and_shifts_leave_it_unchanged(coupling, num_shifts):
    policy, obs = random_policy(4, coupling, num_shifts), random_obs(16)
    u = 2 * torch.randn(16, 4, dtype=torch.float64)
    q, v, log_prob = policy.get_q(obs, u), policy.get_v(obs), policy.log_prob(obs, u)
    assert q.shape == v.shape == (16, max(1, num_shifts)) and log_prob.shape == (16,)
    torch.testing.assert_close((q - v) / ALPHA, log_prob[:, None].expand_as(q), atol=1e-9, rtol=1e-9)
    unshifted = copy.deepcopy(policy)
    unshifted.shifts = torch.nn.ModuleList()
    b = torch.cat([net(obs) for net in policy.shifts], dim=1) if num_shifts else torch.zeros_like(q)
    assert num_shifts == 0 or b.std(dim=0).min() > 1e-3  # a shift that is one constant would test little
    torch.testing.assert_close(q, unshifted.get_q(obs, u) + ALPHA * b)
    torch.testing.assert_close(v, unshifted.get_v(obs) + ALPHA * b)
    torch.testing.assert_close(log_prob, unshifted.log_prob(obs, u))
    assert torch.equal(policy(obs, u), unshifted(obs, u))


@pytest.mark.parametrize("act_dim, points", [(1, 2_000), (2, 160)])
def test_deterministic_action_is_the_mode_before_tanh_and_samples_have_the_density(act_dim, points):
    policy, obs = random_policy(act_dim), random_obs(1)
    with torch.no_grad():
        u = policy.draw(obs, deterministic=True)
        obs_grid, u_grid, weights = grid(policy, obs, 6.0, points)
        log_density = policy.log_prob(obs_grid, u_grid) + torch.log(1 - torch.tanh(u_grid).square()).sum(dim=1)
        at_u = policy.log_prob(obs, u) + torch.log(1 - torch.tanh(u).square()).sum(dim=1)
        assert at_u >= log_density.max() and (u_grid[log_density.argmax()] - u[0]).abs().max() < 2 * 12.0 / points
        assert torch.equal(policy.act(obs, deterministic=True), torch.tanh(u))
        mass = policy.log_prob(obs_grid, u_grid).exp() * weights
        samples = policy.act(obs.expand(20_000, -1))
        torch.testing.assert_close(samples.mean(dim=0), mass @ torch.tanh(u_grid), atol=0.01, rtol=0)
        torch.testing.assert_close(samples.square().mean(dim=0), mass @ torch.tanh(u_grid).square(), atol=0.01, rtol=0)


def test_v_evaluates_no_coupling_and_q_each_coupling_once():
    policy, obs, calls = random_policy(3), random_obs(4), []
    for layer in policy.couplings:
        layer.translation.register_forward_hook(lambda *_: calls.append(1))
    policy.get_v(obs)
    assert calls == []
    policy.get_q(obs, torch.zeros(4, 3).double())
    assert len(calls) == 4


@pytest.mark.parametrize("coupling, nets", [("additive", 1), ("affine", 2)])
def test_dropout_masks_drop_a_tenth_and_keep_the_mean(coupling, nets):
    policy = random_policy(3, coupling, dtype=torch.float32)
    masks = dropout_masks(policy, 256)
    assert masks.shape == (4, nets, 2, 256, 64) and torch.equal(masks.unique(), torch.tensor([0.0, masks.max()]))
    drops = (masks == 0).double()
    sd = math.sqrt(0.1 * 0.9 / masks.numel())
    assert abs(drops.mean() - 0.1) < 5 * sd and abs(masks.double().mean() - 1) < 5 * sd / 0.9
    again = (dropout_masks(policy, 256) == 0).double()
    for other in (again, drops.roll(1, -1), drops.roll(1, -2), drops.roll(1, 0)):  # units, rows and draws: independent
        assert abs((drops * other).mean() - 0.01) < 5 * math.sqrt(0.01 * 0.99 / masks.numel())


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_dropout_is_after_each_swish_of_the_coupling_networks(coupling):
    policy, obs = random_policy(3, coupling), random_obs(16)
    u, masks = torch.rand(16, 3, dtype=torch.float64) - 0.5, dropout_masks(policy, 16).double()
    torch.testing.assert_close(policy.get_q(obs, u), policy.get_q(obs, u, torch.ones_like(masks)))
    dropped = copy.deepcopy(policy)
    for i, layer in enumerate(dropped.couplings):
        for k, net in enumerate(filter(None, (layer.translation, layer.log_scale))):
            for j, swish in enumerate(module for module in net if isinstance(module, Swish)):
                swish.register_forward_hook(lambda *x, mask=masks[i, k, j]: x[2] * mask)
    q = policy.get_q(obs, u, masks)
    torch.testing.assert_close(q, dropped.get_q(obs, u))
    assert (q - policy.get_q(obs, u)).abs().min() > 0


def test_architecture_is_the_papers():
    policy = FlowPolicy(11, 3, 0.25, coupling="affine")
    assert [layer.mask.tolist() for layer in policy.couplings] == 2 * [[1, 0, 1], [0, 1, 0]]
    for net in [net for layer in policy.couplings for net in (layer.translation, layer.log_scale)]:
        assert [type(module).__name__ for module in net] == 2 * ["Linear", "LayerNorm", "Swish"] + ["Linear"]
        weights = [module.weight for module in net if isinstance(module, torch.nn.Linear)]
        assert [weight.shape for weight in weights] == [(64, 14), (64, 64), (3, 64)]
        for weight in weights:
            weight = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)
    for net, hidden, out in [(policy.sigma_net, 64, 3), *[(shift, 256, 1) for shift in policy.shifts]]:
        assert [type(module).__name__ for module in net] == 2 * ["Linear", "Swish"] + ["Linear"]
        weights = [module.weight for module in net if isinstance(module, torch.nn.Linear)]
        assert [weight.shape for weight in weights] == [(hidden, 11), (hidden, hidden), (out, hidden)]
        assert all((weight == 0).all() for weight in weights)
        assert all((module.beta == 1).all() for module in net if isinstance(module, Swish))
        assert net[-1].bias.abs().max() > 0  # biases keep the framework's default
    swish, x = Swish(3), torch.tensor([[-1.0, 0.5, 2.0]])
    with torch.no_grad():
        swish.beta.copy_(torch.tensor([2.0, 1.0, 0.5]))  # beta scales only the sigmoid
    expected = [x_i / (1 + math.exp(-beta * x_i)) for x_i, beta in [(-1.0, 2.0), (0.5, 1.0), (2.0, 0.5)]]
    torch.testing.assert_close(swish(x), torch.tensor([expected]))
    with pytest.raises((ValueError, KeyError), match="spline"):
        FlowPolicy(3, 1, 0.1, coupling="spline")


def test_actions_from_elsewhere_are_clamped_at_1e_5_from_the_bounds():
    act = torch.tensor([-1.0, -0.5, 0.0, 1 - 1.1e-5, 1 - 1e-5, 1.0], dtype=torch.float64)
    expected = [-1 + 1e-5, -0.5, 0.0, 1 - 1.1e-5, 1 - 1e-5, 1 - 1e-5]
    torch.testing.assert_close(torch.tanh(FlowPolicy.pre_tanh(act)).tolist(), expected, atol=1e-12, rtol=0)


def test_v_at_initialisation_is_the_one_computed_by_hand():
    policy = FlowPolicy(11, 3, 0.25, sigma_min=-5.0, sigma_max=-0.3)
    log_sigma = [-5.0 + 4.7 / 2 * (math.tanh(bias) + 1) for bias in policy.sigma_net[-1].bias.tolist()]
    v = 0.25 * (1.5 * math.log(2 * math.pi) + sum(log_sigma))
    expected = torch.tensor([[v + 0.25 * shift[-1].bias.item() for shift in policy.shifts]]).expand(7, 2)
    torch.testing.assert_close(policy.get_v(torch.randn(7, 11)), expected, atol=1e-5, rtol=0)


def random_batch(policy, batch=32):
    generator = torch.Generator().manual_seed(3)
    obs, next_obs = torch.randn(2, batch, OBS_DIM, generator=generator).double()
    u = torch.atanh(torch.rand(batch, policy.act_dim, generator=generator).double() * 2 - 1)
    reward = torch.randn(batch, 1, generator=generator).double()
    terminated = (torch.rand(batch, 1, generator=generator) < 0.3).double()
    return Transitions(obs, next_obs, u, reward, terminated)


def two_policies(coupling="additive", num_shifts=2):
    """A policy and a target that differs from it."""
    policy, target = (flatten(random_policy(3, coupling, num_shifts)) for _ in range(2))
    target.vector.add_(0.05 * torch.randn_like(target.vector))
    return policy, target.requires_grad_(False)


@pytest.mark.parametrize("num_shifts", [0, 1, 2])
def test_loss_is_equation_9(num_shifts):
    policy, target = two_policies(num_shifts=num_shifts)
    data, expected = random_batch(policy), 0.0
    for i in range(32):
        row = Transitions(*[field[i : i + 1] for field in data])
        bootstrap = 0.0 if row.terminated.item() else 0.9 * min(target.get_v(row.next_obs)[0].tolist())
        for q in policy.get_q(row.obs, row.u)[0].tolist():
            expected += 0.5 * (q - (row.reward.item() + bootstrap)) ** 2 / 32
    loss, _, _ = update(policy, target, Adam(policy.vector, 1e-3), data, 0.9, 0.005, 30.0, None)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("coupling, num_shifts", [("additive", 2), ("affine", 2), ("additive", 0), ("affine", 1)])
@pytest.mark.parametrize("max_grad_norm", [0.01, 1e9])
def test_updates_are_backward_clip_grad_norm_adam_and_polyak(coupling, num_shifts, max_grad_norm):
    """Ten updates are PyTorch's own loop over the parameters, with a schedule; dropout is in the policy's Q alone."""
    policy, target = two_policies(coupling, num_shifts)
    plain, plain_target = copy.deepcopy(policy), copy.deepcopy(target)
    optimizer, plain_optimizer = Adam(policy.vector, 1e-2), torch.optim.Adam(plain.parameters(), lr=1e-2)
    data = random_batch(policy)
    for i in range(10):
        optimizer.param_groups[0]["lr"] = plain_optimizer.param_groups[0]["lr"] = 1e-2 / (1 + i % 3)
        dropout = dropout_masks(policy, 32).double()
        loss, q, grad_norm = update(policy, target, optimizer, data, 0.9, 0.005, max_grad_norm, dropout)
        plain_q = plain.get_q(data.obs, data.u, dropout)
        v = plain_target.get_v(data.next_obs).amin(dim=1, keepdim=True)
        plain_loss = 0.5 * (plain_q - data.reward - 0.9 * (1 - data.terminated) * v).square().sum(dim=1).mean()
        plain_optimizer.zero_grad()
        plain_loss.backward()
        plain_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
        assert 0.01 < plain_norm < 1e9  # the one bound clips, the other does not
        plain_optimizer.step()
        with torch.no_grad():
            for param, target_param in zip(plain.parameters(), plain_target.parameters(), strict=True):
                target_param.copy_(0.995 * target_param + 0.005 * param)
        for value, expected in [(loss, plain_loss), (q, plain_q), (grad_norm, plain_norm)]:
            torch.testing.assert_close(value, expected.detach(), atol=1e-9, rtol=1e-7)
    for net, expected in [(policy, plain), (target, plain_target)]:
        for a, b in zip(net.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
