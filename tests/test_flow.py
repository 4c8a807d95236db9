"""The equations of the flow and of the update (Eq. 8, Eq. 9, Sec. 3.2-3.3): against autograd, integrals and PyTorch."""

import copy
import math

import pytest
import torch
from torch.distributions import Normal
from torch.testing import assert_close

from meow_continuous_action import Adam, FlowPolicy, Swish, Transitions, dropout_masks, flatten, update

OBS_DIM, ALPHA = 5, 0.3
COUPLINGS = ["additive", "affine"]


def random_policy(act_dim, coupling="additive", num_shifts=2):
    """A policy with random non-zero weights in every network, in float64."""
    torch.manual_seed(act_dim)
    policy = FlowPolicy(OBS_DIM, act_dim, ALPHA, sigma_min=-2.0, coupling=coupling, num_shifts=num_shifts).double()
    with torch.no_grad():
        for name, param in policy.named_parameters():
            param.add_(0.1 * torch.randn_like(param))
            if name.startswith("couplings") and name.endswith("6.weight"):
                param.mul_(0.3)  # keeps tanh away from where float64 actions would not give u back
    return policy


def random_obs(batch):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, OBS_DIM, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("act_dim", [1, 2, 3, 17])
def test_the_inverse_gives_z_back_and_the_density_is_that_of_the_change_of_variables(coupling, act_dim):
    policy, obs = random_policy(act_dim, coupling), random_obs(6)
    z = torch.randn(6, act_dim, dtype=torch.float64)
    u = policy(obs, z)
    scaled_z, _ = policy.inverse_nonlinear(obs, u)
    assert_close(scaled_z, policy.log_sigma(obs).exp() * z)
    for i in range(6):
        jacobian = torch.func.jacrev(lambda x, s=obs[i : i + 1]: torch.tanh(policy(s, x[None])[0]))(z[i])
        expected = Normal(0.0, 1.0).log_prob(z[i]).sum() - jacobian.det().abs().log()
        assert_close(policy.log_prob(obs, u)[i], expected)


@pytest.mark.parametrize("saturated", [20.0, -20.0])
def test_q_v_and_density_hold_in_float32_where_tanh_saturates(saturated):
    exact, obs, z = random_policy(3), random_obs(32).float(), torch.randn(32, 3)
    with torch.no_grad():
        for layer in exact.couplings:
            layer.translation[-1].bias.fill_(saturated)
        policy = copy.deepcopy(exact).float()
        u = policy(obs, z)
        assert (torch.tanh(u).abs() == 1).all()
        size = exact(obs.double(), z.double()).abs()
        log_det_tanh = (math.log(4) - 2 * size - 2 * torch.log1p(torch.exp(-2 * size))).sum(dim=1)
        log_prob = Normal(0.0, 1.0).log_prob(z).sum(dim=1) - policy.log_sigma(obs).sum(dim=1) - log_det_tanh
        assert_close(policy.log_prob(obs, u).double(), log_prob, atol=1e-3, rtol=1e-5)
        v = policy.get_q(obs, u) - ALPHA * log_prob[:, None].float()
        assert_close(v, policy.get_v(obs), atol=1e-3, rtol=1e-5)


def grid(act_dim, points):
    """Points u = atanh(a), and the weights da of the midpoint rule."""
    edges = torch.linspace(-6, 6, points + 1, dtype=torch.float64)
    axis = 0.5 * (edges[1:] + edges[:-1])
    u = torch.cartesian_prod(*[axis] * act_dim).reshape(-1, act_dim)
    return u, (1 - torch.tanh(u).square()).prod(dim=1) * (edges[1] - edges[0]) ** act_dim


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("act_dim, points, num_shifts", [(1, 2_000, 0), (1, 2_000, 1), (2, 100, 2)])
@torch.no_grad()
def test_v_is_the_log_integral_and_the_policy_exp_of_the_advantage(coupling, act_dim, points, num_shifts):
    policy, (u, weights) = random_policy(act_dim, coupling, num_shifts), grid(act_dim, points)
    for obs in random_obs(3).split(1):
        same_obs = obs.expand(len(u), -1)
        q, v = policy.get_q(same_obs, u), policy.get_v(obs)
        assert q.shape == (len(u), max(1, num_shifts))
        soft_value = ALPHA * torch.logsumexp(q / ALPHA + weights.log()[:, None], dim=0)
        assert_close(v[0], soft_value, atol=1e-6, rtol=0)
        log_prob = policy.log_prob(same_obs, u)
        assert_close((q - v) / ALPHA, log_prob[:, None].expand_as(q))
        shift = q - ALPHA * policy.log_unnormalized(same_obs, u)[:, None]
        for k, net in enumerate(policy.shifts):
            assert_close(shift[:, k], ALPHA * net(same_obs)[:, 0])
    policy.couplings = None  # which V does not evaluate
    assert torch.equal(policy.get_v(obs), v)


@torch.no_grad()
def test_the_deterministic_action_is_the_mode_before_tanh_and_others_are_samples():
    policy, obs, (u, weights) = random_policy(2), random_obs(1), grid(2, 160)

    def log_density(u):
        return policy.log_prob(obs.expand(len(u), -1), u) + torch.log(1 - torch.tanh(u).square()).sum(dim=1)

    mode, log_densities = policy.draw(obs, deterministic=True), log_density(u)
    assert log_density(mode) >= log_densities.max() and (u[log_densities.argmax()] - mode).abs().max() < 0.15
    assert torch.equal(policy.act(obs, deterministic=True), torch.tanh(mode))
    mass = policy.log_prob(obs.expand(len(u), -1), u).exp() * weights
    samples = policy.act(obs.expand(20_000, -1))
    assert_close(samples.mean(dim=0), mass @ torch.tanh(u), atol=0.01, rtol=0)
    assert_close(samples.square().mean(dim=0), mass @ torch.tanh(u).square(), atol=0.01, rtol=0)


@pytest.mark.parametrize("coupling, nets", [("additive", 1), ("affine", 2)])
def test_dropout_masks_drop_a_tenth_and_keep_the_mean(coupling, nets):
    policy = random_policy(3, coupling)
    masks = dropout_masks(policy, 256)
    assert masks.shape == (4, nets, 2, 256, 64) and torch.equal(masks.unique(), torch.tensor([0.0, masks.max()]))
    drops = (masks == 0).double()
    sd = math.sqrt(0.1 * 0.9 / masks.numel())
    assert abs(drops.mean() - 0.1) < 5 * sd and abs(masks.double().mean() - 1) < 5 * sd / 0.9
    again = (dropout_masks(policy, 256) == 0).double()
    for other in (again, drops.roll(1, -1), drops.roll(1, -2), drops.roll(1, 0)):  # draws, units, rows: independent
        assert abs((drops * other).mean() - 0.01) < 5 * math.sqrt(0.01 * 0.99 / masks.numel())


@pytest.mark.parametrize("coupling, nets", [("additive", 1), ("affine", 2)])
def test_dropout_is_after_each_swish_of_the_coupling_networks_and_q_is_one_pass(coupling, nets):
    policy, obs = random_policy(3, coupling), random_obs(16)
    u, masks = torch.rand(16, 3, dtype=torch.float64) - 0.5, dropout_masks(policy, 16).double()
    assert_close(policy.get_q(obs, u), policy.get_q(obs, u, torch.ones_like(masks)))
    dropped, calls = copy.deepcopy(policy), []

    def drop(module, inputs, output):
        calls.append(module)
        return output * module.mask

    for layer, layer_masks in zip(dropped.couplings, masks, strict=True):
        for net, (first, second) in zip((layer.translation, layer.log_scale), layer_masks, strict=False):
            net[2].mask, net[5].mask = first, second
            net[2].register_forward_hook(drop)
            net[5].register_forward_hook(drop)
    assert_close(policy.get_q(obs, u, masks), dropped.get_q(obs, u))
    assert len(calls) == len(set(calls)) == 4 * nets * 2
    assert (policy.get_q(obs, u, masks) - policy.get_q(obs, u)).abs().min() > 0


def assert_layers(net, hidden, shapes):
    """The kinds of the layers and the shapes of the weights (out, in), which it returns."""
    assert [type(module).__name__ for module in net] == 2 * [*hidden, "Swish"] + ["Linear"]
    weights = [module.weight for module in net if isinstance(module, torch.nn.Linear)]
    assert [weight.shape for weight in weights] == shapes
    return weights


def test_architecture_is_the_papers():
    policy = FlowPolicy(11, 3, 0.25, coupling="affine")
    assert [layer.mask.tolist() for layer in policy.couplings] == 2 * [[1, 0, 1], [0, 1, 0]]
    for layer in policy.couplings:
        for net in (layer.translation, layer.log_scale):
            for weight in assert_layers(net, ["Linear", "LayerNorm"], [(64, 14), (64, 64), (3, 64)]):
                weight = weight if weight.shape[0] <= weight.shape[1] else weight.T
                assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)
    for net, hidden, out in [(policy.sigma_net, 64, 3), (policy.shifts[0], 256, 1), (policy.shifts[1], 256, 1)]:
        for weight in assert_layers(net, ["Linear"], [(hidden, 11), (hidden, hidden), (out, hidden)]):
            assert not weight.any()
        assert net[-1].bias.abs().max() > 0  # biases keep the framework's default
    swish, x = Swish(3), torch.tensor([[-1.0, 0.5, 2.0]])
    assert (swish.beta == 1).all()
    swish.beta.data = torch.tensor([2.0, 1.0, 0.5])  # beta scales only the sigmoid
    assert_close(swish(x), x / (1 + torch.exp(-swish.beta * x)))
    with pytest.raises((ValueError, KeyError), match="spline"):
        FlowPolicy(3, 1, 0.1, coupling="spline")


def test_actions_from_elsewhere_are_clamped_at_1e_5_from_the_bounds():
    act = torch.tensor([-1.0, -0.5, 0.0, 1 - 1.1e-5, 1 - 1e-5, 1.0], dtype=torch.float64)
    assert_close(torch.tanh(FlowPolicy.pre_tanh(act)), act.clamp(-1 + 1e-5, 1 - 1e-5), atol=1e-12, rtol=0)


def random_batch():
    obs, next_obs = torch.randn(2, 32, OBS_DIM).double()
    u, reward = torch.randn(32, 3).double(), torch.randn(32, 1).double()
    return Transitions(obs, next_obs, u, reward, terminated=(torch.rand(32, 1) < 0.3).double())


@pytest.mark.parametrize("coupling, num_shifts", [("additive", 2), ("affine", 2), ("additive", 0), ("affine", 1)])
@pytest.mark.parametrize("max_grad_norm", [0.01, 1e9])  # the one bound clips, the other does not
def test_updates_are_equation_9_backward_clip_grad_norm_adam_and_polyak(coupling, num_shifts, max_grad_norm):
    """Ten updates are PyTorch's own loop over the parameters, with a schedule; dropout is in the policy's Q alone."""
    policy, target = (flatten(random_policy(3, coupling, num_shifts)) for _ in range(2))
    target.requires_grad_(False).vector.add_(0.05 * torch.randn_like(target.vector))  # the two differ
    plain, plain_target = copy.deepcopy(policy), copy.deepcopy(target)
    optimizer, plain_optimizer = Adam(policy.vector, 1e-2), torch.optim.Adam(plain.parameters(), lr=1e-2)
    data = random_batch()
    for i in range(10):
        optimizer.param_groups[0]["lr"] = plain_optimizer.param_groups[0]["lr"] = 1e-2 / (1 + i % 3)
        dropout = dropout_masks(policy, 32).double()
        loss, q, grad_norm = update(policy, target, optimizer, data, 0.9, 0.005, max_grad_norm, dropout)
        plain_q = plain.get_q(data.obs, data.u, dropout)
        v = plain_target.get_v(data.next_obs).amin(dim=1, keepdim=True)
        error = plain_q - (data.reward + 0.9 * (1 - data.terminated) * v)
        plain_loss = 0.5 * error.square().sum(dim=1).mean()
        plain_optimizer.zero_grad()
        plain_loss.backward()
        plain_norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
        plain_optimizer.step()
        with torch.no_grad():
            for param, target_param in zip(plain.parameters(), plain_target.parameters(), strict=True):
                target_param.copy_(0.995 * target_param + 0.005 * param)
        assert_close((loss, q, grad_norm), (plain_loss.detach(), plain_q.detach(), plain_norm))
    for net, expected in [(policy, plain), (target, plain_target)]:
        assert_close(list(net.parameters()), list(expected.parameters()), atol=1e-9, rtol=1e-7)
