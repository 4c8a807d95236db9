"""The equations of the flow (Eq. 8, Eq. 9, Sec. 3.2-3.3): against autograd, quadrature and an independent library."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, IndependentTransform, TanhTransform
from zuko.transforms import CouplingTransform

from meow_continuous_action import Adam, FlowPolicy, SoftQLoss, Swish, Transitions, learn_and_act, update

OBS_DIM, ALPHA = 5, 0.3
COUPLINGS = ["additive", "affine"]


def random_policy(act_dim, coupling="additive", num_shifts=2, dtype=torch.float64, **kwargs):
    """A policy with random non-zero weights in every network."""
    torch.manual_seed(act_dim)
    policy = FlowPolicy(OBS_DIM, act_dim, ALPHA, coupling=coupling, num_shifts=num_shifts, **kwargs).to(dtype)
    with torch.no_grad():
        for param in policy.parameters():
            param.add_(0.1 * torch.randn_like(param))
        for layer in policy.couplings:  # keeps tanh away from where float64 actions would not give u back
            for net in (layer.translation, layer.log_scale):
                if net is not None:
                    net[-1].weight.mul_(0.3)
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
def test_inverse_undoes_forward(coupling, act_dim, dtype, tol):
    policy, obs = random_policy(act_dim, coupling, dtype=dtype), random_obs(64, dtype)
    z = torch.randn(64, act_dim, dtype=dtype)
    scaled_z, _ = policy.inverse(obs, policy(obs, z))
    sigma = policy.log_sigma(obs).exp()
    torch.testing.assert_close(scaled_z, sigma * z, atol=tol, rtol=tol)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("act_dim", [1, 2, 3, 6])
def test_log_determinants_equal_those_of_autograds_jacobian(coupling, act_dim):
    policy, obs = random_policy(act_dim, coupling), random_obs(8)
    act = policy.act(obs).detach()
    _, log_det = policy.inverse(obs, torch.atanh(act))
    for i in range(len(obs)):

        def nonlinear(a, i=i):
            return policy.inverse(obs[i : i + 1], torch.atanh(a)[None])[0][0]

        jacobian = torch.func.jacrev(nonlinear)(act[i])
        torch.testing.assert_close(log_det[i], jacobian.det().abs().log(), atol=1e-9, rtol=1e-9)
        for layer in policy.couplings:

            def coupled(u, i=i, layer=layer):
                return layer.inverse(u[None], obs[i : i + 1])[0][0]

            layer_log_det = layer.inverse(act[i : i + 1], obs[i : i + 1])[1][0]
            expected = torch.func.jacrev(coupled)(act[i]).det().abs().log()
            torch.testing.assert_close(layer_log_det, expected, atol=1e-9, rtol=1e-9)
            if coupling == "additive":
                assert layer_log_det == 0

        def linear(u, i=i):
            return u / policy.log_sigma(obs[i : i + 1])[0].exp()

        expected = torch.func.jacrev(linear)(act[i]).det().abs().log()
        torch.testing.assert_close(-policy.log_sigma(obs)[i].sum(), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_sampled_log_prob_is_the_change_of_variables_and_log_prob(coupling, deterministic, dtype, tol):
    policy, obs = random_policy(3, coupling, dtype=dtype), random_obs(32, dtype)
    torch.manual_seed(7)
    act, log_prob = policy.sample(obs, deterministic=deterministic)
    torch.manual_seed(7)
    assert torch.equal(act, policy.act(obs, deterministic=deterministic))
    torch.manual_seed(7)
    u = policy.draw(obs, deterministic=deterministic)
    torch.testing.assert_close(act, torch.tanh(u))
    torch.testing.assert_close(log_prob, policy.log_prob(obs, u))
    # the same number from the forward pass alone: log p_z(z) - log|det d act / d z|
    torch.manual_seed(7)
    z = torch.zeros(32, 3, dtype=dtype) if deterministic else torch.randn(32, 3, dtype=dtype)
    torch.testing.assert_close(policy(obs, z), u)
    exact = copy.deepcopy(policy).double()
    for i in range(len(obs)):
        jacobian = torch.func.jacrev(lambda x, i=i: torch.tanh(exact(obs[i : i + 1].double(), x[None])[0]))(
            z[i].double()
        )
        expected = Normal(0.0, 1.0).log_prob(z[i].double()).sum() - jacobian.det().abs().log()
        torch.testing.assert_close(log_prob[i].double(), expected, atol=tol, rtol=tol)


def density_of_action(policy, obs, z):
    """log pi(a|s) (B,) in float64 of the action made of z, by the forward pass of additive couplings alone."""
    policy, obs, z = copy.deepcopy(policy).double(), obs.double(), z.double()
    u = policy(obs, z).abs()
    log_det_tanh = (math.log(4) - 2 * u - 2 * torch.log1p(torch.exp(-2 * u))).sum(dim=1)
    return Normal(0.0, 1.0).log_prob(z).sum(dim=1) - policy.log_sigma(obs).sum(dim=1) - log_det_tanh


@pytest.mark.parametrize("saturated", [1.0, -1.0])
def test_sampled_log_prob_agrees_where_tanh_saturates(saturated):
    policy, obs = random_policy(3, dtype=torch.float32), random_obs(32, torch.float32)
    with torch.no_grad():
        for layer in policy.couplings:
            layer.translation[-1].bias.fill_(20.0 * saturated)
    torch.manual_seed(0)
    act, log_prob = policy.sample(obs)
    assert (act == saturated).all()
    torch.manual_seed(0)
    expected = density_of_action(policy, obs, torch.randn(32, 3))
    torch.testing.assert_close(log_prob.double(), expected, atol=1e-3, rtol=1e-5)


def test_the_soft_value_is_that_of_the_policys_own_actions_where_tanh_saturates():
    """V = Q - alpha log pi at every action drawn: read back from float32 actions, Q would lie far below it."""
    policy, obs = random_policy(3, dtype=torch.float32), random_obs(32, torch.float32)
    with torch.no_grad():
        for layer in policy.couplings:
            layer.translation[-1].bias.fill_(20.0)
        z = torch.randn(32, 3)
        u = policy(obs, z)
        q, v = policy.get_q(obs, u), policy.get_v(obs)
        log_prob = density_of_action(policy, obs, z)
        torch.testing.assert_close(q - ALPHA * log_prob[:, None].float(), v, atol=1e-3, rtol=1e-5)
        assert (policy.get_q(obs, policy.pre_tanh(torch.tanh(u))) < policy.get_q(obs, u) - 10).all()


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("act_dim, points", [(1, 2_000), (2, 160)])
@pytest.mark.parametrize("num_shifts", [0, 1, 2])
def test_density_integrates_to_one_and_v_is_the_log_integral(coupling, act_dim, points, num_shifts):
    policy = random_policy(act_dim, coupling, num_shifts, sigma_min=-2.0)
    with torch.no_grad():
        for obs in random_obs(3).split(1):
            obs_grid, u, weights = grid(policy, obs, 6.0, points)
            mass = (policy.log_prob(obs_grid, u).exp() * weights).sum()
            assert abs(mass - 1) < 1e-6
            q = policy.get_q(obs_grid, u)  # (N, K)
            soft_value = ALPHA * torch.logsumexp(
                q / ALPHA + weights.log()[:, None], dim=0
            )  # alpha log int exp(Q/alpha)
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
    torch.testing.assert_close(
        v.min(dim=1).values, (unshifted.get_v(obs) + ALPHA * b.min(dim=1, keepdim=True).values)[:, 0]
    )
    torch.testing.assert_close(log_prob, unshifted.log_prob(obs, u))
    torch.manual_seed(1)
    act, log_prob = policy.sample(obs)
    torch.manual_seed(1)
    unshifted_act, unshifted_log_prob = unshifted.sample(obs)
    assert torch.equal(act, unshifted_act) and torch.equal(log_prob, unshifted_log_prob)


@pytest.mark.parametrize("act_dim, points", [(1, 2_000), (2, 160)])
def test_deterministic_action_is_the_mode_before_tanh(act_dim, points):
    policy, obs = random_policy(act_dim), random_obs(1)
    with torch.no_grad():
        u = policy.draw(obs, deterministic=True)
        obs_grid, u_grid, _ = grid(policy, obs, 6.0, points)

        def log_density_before_tanh(obs, u):
            return policy.log_prob(obs, u) + torch.log(1 - torch.tanh(u).square()).sum(dim=1)

        on_grid = log_density_before_tanh(obs_grid, u_grid)
        assert log_density_before_tanh(obs, u)[0] >= on_grid.max()
        assert (u_grid[on_grid.argmax()] - u[0]).abs().max() < 2 * 12.0 / points
        assert torch.equal(policy.sample(obs, deterministic=True)[0], torch.tanh(u))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_density_equals_that_of_an_independent_library(coupling):
    """torch.distributions and zuko's coupling build the same flow from the same hypernetworks' outputs."""
    policy, obs = random_policy(5, coupling), random_obs(1)

    def coupling_transform(layer):
        kept = layer.mask.bool()

        def meta(u_kept):
            u = torch.zeros(len(u_kept), policy.act_dim, dtype=u_kept.dtype)
            u[:, kept] = u_kept
            x = torch.cat([u, obs.expand(len(u), -1)], dim=1)
            scale = (
                layer.log_scale(x)[:, ~kept].exp() if layer.log_scale is not None else torch.ones(len(u), 1).double()
            )
            return IndependentTransform(AffineTransform(layer.translation(x)[:, ~kept], scale), 1)

        return CouplingTransform(meta, kept)

    base = Independent(Normal(torch.zeros(1, 5).double(), policy.log_sigma(obs).exp()), 1)
    transforms = [coupling_transform(layer) for layer in policy.couplings]
    oracle = TransformedDistribution(base, [*transforms, IndependentTransform(TanhTransform(), 1)])
    act = policy.sample(obs.expand(200, -1))[0].detach()
    act = act[act.abs().max(dim=1).values < 0.999]
    assert len(act) > 100
    torch.testing.assert_close(
        policy.log_prob(obs.expand(len(act), -1), torch.atanh(act)), oracle.log_prob(act), atol=1e-9, rtol=1e-9
    )


def test_v_evaluates_no_coupling_and_q_each_coupling_once():
    policy, obs = random_policy(3), random_obs(4)
    calls = []
    for layer in policy.couplings:
        layer.translation.register_forward_hook(lambda *_: calls.append(1))
    policy.get_v(obs)
    assert calls == []
    policy.get_q(obs, torch.zeros(4, 3).double())
    assert len(calls) == 4


@pytest.mark.parametrize("coupling, nets", [("additive", 1), ("affine", 2)])
def test_dropout_masks_drop_a_tenth_and_keep_the_mean(coupling, nets):
    policy = random_policy(3, coupling, dtype=torch.float32)
    masks = policy.dropout_masks(256)
    assert masks.shape == (4, nets, 2, 256, 64)
    kept = 1 / (1 - 6554 / 2**16)
    assert torch.equal(masks.unique(), torch.tensor([0.0, kept]))
    drops = (masks == 0).double()
    sd = math.sqrt(0.1 * 0.9 / masks.numel())
    assert abs(drops.mean() - 0.1) < 5 * sd and abs(masks.double().mean() - 1) < 5 * sd / 0.9
    again = (policy.dropout_masks(256) == 0).double()
    for other in (again, drops.roll(1, -1), drops.roll(1, -2), drops.roll(1, 0)):  # units, rows and draws: independent
        assert abs((drops * other).mean() - 0.01) < 5 * math.sqrt(0.01 * 0.99 / masks.numel())
    torch.manual_seed(5)
    first = policy.dropout_masks(256)
    torch.manual_seed(5)
    assert torch.equal(first, policy.dropout_masks(256))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_dropout_is_after_each_swish_of_the_coupling_networks(coupling):
    policy, obs = random_policy(3, coupling), random_obs(16)
    u = torch.rand(16, 3, dtype=torch.float64) - 0.5
    assert torch.equal(policy.get_q(obs, u), policy.get_q(obs, u))
    masks = policy.dropout_masks(16)
    torch.testing.assert_close(policy.get_q(obs, u), policy.get_q(obs, u, torch.ones_like(masks)))
    dropped = copy.deepcopy(policy)
    for i, layer in enumerate(dropped.couplings):
        for k, net in enumerate((layer.translation, layer.log_scale)):
            if net is not None:
                swishes = [module for module in net if isinstance(module, Swish)]
                for j, swish in enumerate(swishes):
                    swish.register_forward_hook(lambda *x, mask=masks[i, k, j]: x[2] * mask)
    q = policy.get_q(obs, u, masks)
    torch.testing.assert_close(q, dropped.get_q(obs, u))
    assert (q - policy.get_q(obs, u)).abs().min() > 0


def test_architecture_is_the_papers():
    policy = FlowPolicy(11, 3, 0.25, coupling="affine")
    assert [layer.mask.tolist() for layer in policy.couplings] == 2 * [[1, 0, 1], [0, 1, 0]]
    for layer in policy.couplings:
        for net in (layer.translation, layer.log_scale):
            names = [type(module).__name__ for module in net]
            assert names == 2 * ["Linear", "LayerNorm", "Swish"] + ["Linear"]
            assert [m.weight.shape for m in net if isinstance(m, torch.nn.Linear)] == [(64, 14), (64, 64), (3, 64)]
            for module in net:
                if isinstance(module, torch.nn.Linear):
                    weight = module.weight if module.weight.shape[0] <= module.weight.shape[1] else module.weight.T
                    torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)
    for net, hidden, out in [(policy.sigma_net, 64, 3), *[(shift, 256, 1) for shift in policy.shifts]]:
        assert [type(module).__name__ for module in net] == 2 * ["Linear", "Swish"] + ["Linear"]
        shapes = [module.weight.shape for module in net if isinstance(module, torch.nn.Linear)]
        assert shapes == [(hidden, 11), (hidden, hidden), (out, hidden)]
        assert all((module.weight == 0).all() for module in net if isinstance(module, torch.nn.Linear))
        assert all((module.beta == 1).all() for module in net if type(module).__name__ == "Swish")
        assert net[-1].bias.abs().max() > 0  # biases keep the framework's default


def test_swish_scales_only_the_sigmoid():
    swish, x = Swish(3), torch.tensor([[-1.0, 0.5, 2.0]])
    with torch.no_grad():
        swish.beta.copy_(torch.tensor([2.0, 1.0, 0.5]))
    expected = [x_i / (1 + math.exp(-beta * x_i)) for x_i, beta in [(-1.0, 2.0), (0.5, 1.0), (2.0, 0.5)]]
    torch.testing.assert_close(swish(x), torch.tensor([expected]))


def test_actions_from_elsewhere_are_clamped_at_1e_5_from_the_bounds():
    act = torch.tensor([-1.0, -0.5, 0.0, 1 - 1.1e-5, 1 - 1e-5, 1.0], dtype=torch.float64)
    expected = [-1 + 1e-5, -0.5, 0.0, 1 - 1.1e-5, 1 - 1e-5, 1 - 1e-5]
    torch.testing.assert_close(torch.tanh(FlowPolicy.pre_tanh(act)).tolist(), expected, atol=1e-12, rtol=0)


def test_v_at_initialisation_is_the_one_computed_by_hand():
    torch.manual_seed(0)
    policy = FlowPolicy(11, 3, 0.25, sigma_min=-5.0, sigma_max=-0.3)
    log_sigma = [-5.0 + 4.7 / 2 * (math.tanh(bias) + 1) for bias in policy.sigma_net[-1].bias.tolist()]
    v = 0.25 * (1.5 * math.log(2 * math.pi) + sum(log_sigma))
    expected = torch.tensor([[v + 0.25 * shift[-1].bias.item() for shift in policy.shifts]]).expand(7, 2)
    torch.testing.assert_close(policy.get_v(torch.randn(7, 11)), expected, atol=1e-5, rtol=0)


def random_batch(policy, batch=32):
    generator = torch.Generator().manual_seed(3)
    obs, next_obs = torch.randn(2, batch, OBS_DIM, generator=generator).double()
    act = torch.atanh(torch.rand(batch, policy.act_dim, generator=generator).double() * 2 - 1)
    reward = torch.randn(batch, 1, generator=generator).double()
    terminated = (torch.rand(batch, 1, generator=generator) < 0.3).double()
    return Transitions(obs, next_obs, act, reward, terminated)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_one_pass_loss_has_the_gradients_of_the_two_pass_form(coupling):
    """The authors run the flow on a doubled batch, b1 added to the first half and b2 to the second (dropout off)."""
    policy, target = random_policy(3, coupling), random_policy(3, coupling)
    with torch.no_grad():
        for param in target.parameters():
            param.add_(0.05 * torch.randn_like(param))
    data = random_batch(policy)
    loss, q = SoftQLoss(policy, target)(data, 0.9)
    one_pass = torch.autograd.grad(loss, policy.parameters())

    b1, b2 = target.shifts
    bare = copy.deepcopy(target)
    bare.shifts = torch.nn.ModuleList()
    v = bare.get_v(data.next_obs) + ALPHA * torch.minimum(b1(data.next_obs), b2(data.next_obs))
    y = (data.reward + 0.9 * (1 - data.terminated) * v).detach()
    obs, act = torch.cat([data.obs, data.obs]), torch.cat([data.act, data.act])
    scaled_z, log_det = policy.inverse(obs, act)
    flow_q = log_det - 0.5 * (scaled_z / policy.log_sigma(obs).exp()).square().sum(dim=1)
    shift = torch.cat([policy.shifts[0](data.obs), policy.shifts[1](data.obs)])
    two_pass_q = ALPHA * (flow_q[:, None] + shift)
    two_pass_loss = F.mse_loss(two_pass_q, torch.cat([y, y]))
    two_pass = torch.autograd.grad(two_pass_loss, policy.parameters())

    torch.testing.assert_close(loss, two_pass_loss)
    torch.testing.assert_close(q, torch.cat(two_pass_q.split(32), dim=1))
    assert max(grad.abs().max() for grad in one_pass) > 1e-3
    for a, b in zip(one_pass, two_pass, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("num_shifts", [0, 1, 2])
def test_loss_is_equation_9(num_shifts):
    policy, target = random_policy(3, num_shifts=num_shifts), random_policy(3, num_shifts=num_shifts)
    data, loss = random_batch(policy), 0.0
    for i in range(32):
        row = Transitions(*[field[i : i + 1] for field in data])
        bootstrap = 0.0 if row.terminated.item() else 0.9 * min(target.get_v(row.next_obs)[0].tolist())
        for q in policy.get_q(row.obs, row.act)[0].tolist():
            loss += 0.5 * (q - (row.reward.item() + bootstrap)) ** 2 / 32
    assert SoftQLoss(policy, target)(data, 0.9)[0].item() == pytest.approx(loss, rel=1e-9)


def two_policies(coupling="additive", dtype=torch.float64):
    """A policy and a target that differs from it."""
    policy, target = (random_policy(3, coupling, dtype=dtype) for _ in range(2))
    target.vector.add_(0.05 * torch.randn_like(target.vector))
    return policy, target.requires_grad_(False)


def test_update_drops_out_in_the_policys_q_only(monkeypatch):
    policy, target = two_policies()
    seen = []
    for name in ("get_q", "get_v"):
        original = getattr(FlowPolicy, name)

        def spied(self, *args, name=name, original=original):
            seen.append((self is policy, name, args[2:]))
            return original(self, *args)

        monkeypatch.setattr(FlowPolicy, name, spied)
    dropout = policy.dropout_masks(32)
    update(SoftQLoss(policy, target), Adam(policy.vector, 1e-3), random_batch(policy), 0.9, 0.005, 30.0, dropout)
    assert [call[:2] for call in seen] == [(False, "get_v"), (True, "get_q")] and seen[0][2] == ()
    assert seen[1][2][0] is dropout


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("max_grad_norm", [0.01, 1e9])
def test_updates_equal_those_of_backward_clip_grad_norm_adam_and_polyak(coupling, max_grad_norm):
    """Ten updates of one vector are PyTorch's own loop over the parameters, with the same dropout."""
    policy, target = two_policies(coupling)
    plain, plain_target = copy.deepcopy(policy), copy.deepcopy(target)
    optimizer, plain_optimizer = Adam(policy.vector, 1e-2), torch.optim.Adam(plain.parameters(), lr=1e-2)
    data = random_batch(policy)
    for _ in range(10):
        dropout = policy.dropout_masks(32)
        before = policy.vector.clone()
        loss, q, grad_norm = update(SoftQLoss(policy, target), optimizer, data, 0.9, 0.005, max_grad_norm, dropout)
        plain_loss, plain_q = SoftQLoss(plain, plain_target)(data, 0.9, dropout)
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
        assert not torch.equal(policy.vector, before)
    for net, expected in [(policy, plain), (target, plain_target)]:
        for a, b in zip(net.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_learn_and_act_acts_with_the_updated_policy():
    policy, target = two_policies()
    obs, z = random_obs(1), torch.randn(1, 3, dtype=torch.float64)
    old_action = policy(obs, z)
    rates = 0.9, 0.005, 30.0, policy.dropout_masks(32)
    twin, twin_target = copy.deepcopy(policy), copy.deepcopy(target)
    q, numbers = learn_and_act(
        SoftQLoss(policy, target), Adam(policy.vector, 1e-2), random_batch(policy), *rates, obs, z
    )
    loss, twin_q, grad_norm = update(SoftQLoss(twin, twin_target), Adam(twin.vector, 1e-2), random_batch(twin), *rates)
    assert torch.equal(policy.vector, twin.vector) and torch.equal(q, twin_q)
    assert numbers[3:].tolist() == [loss.item(), grad_norm.item()]
    torch.testing.assert_close(numbers[:3], policy(obs, z)[0].detach())
    assert (numbers[:3] - old_action[0]).abs().max() > 1e-4


def test_update_refuses_an_optimizer_that_the_policy_has_left():
    policy, target = two_policies()
    optimizer = Adam(policy.vector, 1e-3)
    rates = 0.9, 0.005, 30.0, None
    update(SoftQLoss(policy.double(), target), optimizer, random_batch(policy), *rates)  # it was double: nothing moved
    policy.float().double()
    with pytest.raises(ValueError, match="make the optimizer"):
        update(SoftQLoss(policy, target), optimizer, random_batch(policy), *rates)


def test_the_vector_holds_the_parameters_wherever_they_go(tmp_path):
    policy = random_policy(3, num_shifts=1)
    state = copy.deepcopy(policy.state_dict())
    torch.save(policy, tmp_path / "policy.pt")
    loaded = torch.load(tmp_path / "policy.pt", weights_only=False)
    for net in (policy, copy.deepcopy(policy), random_policy(3, num_shifts=1).float().double(), loaded):
        net.load_state_dict(state)
        values = torch.cat([param.flatten() for param in net.parameters()])
        assert torch.equal(net.vector, values) and net.vector.dtype == torch.float64
        net.vector.zero_()
        assert all((param == 0).all() for param in net.parameters())


@pytest.mark.parametrize("kwargs", [{"coupling": "spline"}, {"num_shifts": 3}])
def test_flow_policy_refuses_unknown_choices(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        FlowPolicy(3, 1, 0.1, **kwargs)
