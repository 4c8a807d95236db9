"""The actor-critic counterparts of MEow: densities, the update, the shifts, the settings. Runs: test_baselines.py."""

import copy
import math

import pytest
import torch
from actor_critic import ActorCritic, Args, EnergyCritic, FlowActor, FlowCritic, GaussianActor, meow
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

OBS_DIM, ACT_DIM = 5, 3
VARIANTS = {
    "ecga": {"critic": "energy", "actor": "gaussian"},
    "ecfa": {"critic": "energy", "actor": "flow"},
    "fcga": {"critic": "flow", "actor": "gaussian", "lrs": True},
    "fcfa": {"critic": "flow", "actor": "flow", "lrs": True},
    "sac_lrs": {"critic": "energy", "actor": "gaussian", "lrs": True},
}


def random_agent(dtype=torch.float64, **flags):
    """An agent, and its target, with random non-zero weights in every network."""
    torch.manual_seed(0)
    agent = ActorCritic(Args(**flags), OBS_DIM, ACT_DIM).to(dtype)
    with torch.no_grad():
        for net in (agent.critic, agent.actor, agent.target):
            for param in net.parameters():
                param.add_(0.03 * torch.randn_like(param))
    return agent


def random_batch(batch=32, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    obs, next_obs = torch.randn(2, batch, OBS_DIM, generator=generator).to(dtype)
    act = torch.rand(batch, ACT_DIM, generator=generator).to(dtype) * 2 - 1
    reward = torch.randn(batch, 1, generator=generator).to(dtype)
    terminated = (torch.rand(batch, 1, generator=generator) < 0.3).to(dtype)
    return meow.Transitions(obs, next_obs, act, reward, terminated)


# Actors


def sample_with_z(actor, obs):
    """act, log_prob, and the noise z that they were made from."""
    torch.manual_seed(1)
    act, log_prob = actor.sample(obs)
    torch.manual_seed(1)
    return act, log_prob, torch.randn(len(obs), ACT_DIM, dtype=obs.dtype)


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
def test_log_density_of_a_sample_is_that_of_autograds_jacobian(actor):
    actor, obs = random_agent(actor=actor).actor, random_batch(16).obs
    act, log_prob, z = sample_with_z(actor, obs)
    for i in range(len(obs)):
        jacobian = torch.func.jacrev(lambda z, i=i: torch.tanh(actor(obs[i : i + 1], z[None])[0])[0])(z[i])
        torch.testing.assert_close(act[i], torch.tanh(actor(obs[i : i + 1], z[i : i + 1])[0])[0])
        expected = Normal(0.0, 1.0).log_prob(z[i]).sum() - jacobian.det().abs().log()
        torch.testing.assert_close(log_prob[i], expected, atol=1e-9, rtol=1e-9)


def test_log_density_of_the_flow_actor_is_the_flows_own_where_tanh_is_not_saturated():
    actor, obs = random_agent(actor="flow").actor, random_batch(2000).obs
    act, log_prob, _ = sample_with_z(actor, obs)
    kept = act.abs().max(dim=1).values < 0.999
    assert kept.sum() > 1000
    torch.testing.assert_close(log_prob[kept], actor.flow.log_prob(obs, torch.atanh(act))[kept], atol=1e-8, rtol=1e-8)


def test_log_density_of_the_gaussian_actor_is_that_of_torchs_distribution():
    actor, obs = random_agent(actor="gaussian").actor, random_batch(200).obs
    act, log_prob, _ = sample_with_z(actor, obs)
    mean, log_std = actor.net(obs).chunk(2, dim=1)
    oracle = Independent(TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()), 1)
    torch.testing.assert_close(log_prob, oracle.log_prob(act), atol=1e-8, rtol=1e-8)


def test_the_gaussian_actors_log_std_is_bounded():
    actor = GaussianActor(OBS_DIM, ACT_DIM)
    for bias, bound in [(-50.0, -20.0), (50.0, 2.0)]:
        torch.nn.init.constant_(actor.net[-1].bias, bias)
        assert (actor(torch.zeros(1, OBS_DIM), torch.zeros(1, ACT_DIM))[1] == bound).all()


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
def test_deterministic_actions_are_those_of_z_0_and_others_are_sampled(actor):
    actor, obs = random_agent(actor=actor).actor, random_batch(8).obs
    if isinstance(actor, GaussianActor):
        expected = torch.tanh(actor.net(obs)[:, :ACT_DIM])
    else:
        expected = actor.flow.act(obs, deterministic=True)
    torch.testing.assert_close(actor.act(obs, deterministic=True), expected)
    torch.manual_seed(1)
    torch.testing.assert_close(actor.act(obs), sample_with_z(actor, obs)[0])
    assert not torch.equal(actor.act(obs), actor.act(obs))


@pytest.mark.parametrize("critic", ["energy", "flow"])
@pytest.mark.parametrize("actor", ["gaussian", "flow"])
@pytest.mark.parametrize("side", [-1, 1])
def test_saturated_actions_have_a_finite_gradient_that_leads_back(critic, actor, side):
    agent, obs = random_agent(torch.float32, critic=critic, actor=actor), random_batch(64, torch.float32).obs
    last = [agent.actor.net] if actor == "gaussian" else [layer.translation for layer in agent.actor.flow.couplings]
    with torch.no_grad():
        for net in last:
            net[-1].bias[:ACT_DIM] = 30.0 * side
    act, log_prob = agent.actor.sample(obs)
    assert (act == side).all()
    bias = last[-1][-1].bias
    (grad,) = torch.autograd.grad(log_prob.mean(), bias, retain_graph=True)
    moved = slice(ACT_DIM) if actor == "gaussian" else 1 - agent.actor.flow.couplings[-1].mask > 0
    torch.testing.assert_close(grad[moved], torch.full_like(grad[moved], 2.0 * side))  # log_prob is 2 |u| + constant
    loss = (0.2 * log_prob - agent.critic.get_q(obs, act).min(dim=1).values).mean()
    grads = torch.autograd.grad(loss, agent.actor.parameters())
    assert all(grad.isfinite().all() for grad in grads) and grads[-1].abs().max() > 0


# Critics


def test_the_shifts_of_the_energy_critic_change_no_gradient_and_no_argmax():
    bare, shifted = (random_agent(lrs=True) for _ in range(2))
    obs = random_batch(16).obs
    for b in bare.critic.shifts:
        for layer in b:
            torch.nn.init.zeros_(layer.weight) if isinstance(layer, torch.nn.Linear) else None
        torch.nn.init.zeros_(b[-1].bias)
    plain = EnergyCritic(OBS_DIM, ACT_DIM, lrs=False).double()
    plain.load_state_dict(bare.critic.state_dict(), strict=False)
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 9, dtype=torch.float64)] * ACT_DIM)
    for s in obs:
        q, q_b = (critic.get_q(s.expand(len(grid), -1), grid) for critic in (plain, shifted.critic))
        b = torch.stack([b(s[None])[0, 0] for b in shifted.critic.shifts])
        torch.testing.assert_close(q_b, q + b)
        assert b.abs().min() > 1e-3 and torch.equal(q.argmax(dim=0), q_b.argmax(dim=0))

    shifted.critic.shifts[1].load_state_dict(shifted.critic.shifts[0].state_dict())  # else min may be another head's
    losses = []
    for agent in (bare, shifted):
        act, log_prob, _ = sample_with_z(agent.actor, obs)
        losses.append((0.2 * log_prob - agent.critic.get_q(obs, act).min(dim=1).values).mean())
    assert abs(losses[0] - losses[1]) > 1e-3
    for a, b in zip(
        *map(torch.autograd.grad, losses, (bare.actor.parameters(), shifted.actor.parameters())), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_the_shifts_start_as_meows():
    for b in EnergyCritic(OBS_DIM, ACT_DIM, lrs=True).shifts:
        shapes = [layer.weight.shape for layer in b if isinstance(layer, torch.nn.Linear)]
        assert shapes == [(256, OBS_DIM), (256, 256), (1, 256)]
        assert all((layer.weight == 0).all() for layer in b if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize("lrs, heads", [(False, 1), (True, 2)])
def test_the_flow_critic_is_meows_and_its_shifts_change_no_gradient(lrs, heads):
    agent, obs = random_agent(critic="flow", lrs=lrs), random_batch(16).obs
    assert isinstance(agent.critic, meow.FlowPolicy) and agent.critic.alpha == 0.25
    assert (agent.critic.sigma_min, agent.critic.sigma_max) == (-5.0, -0.3)
    act = torch.rand(16, ACT_DIM, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(agent.critic.get_q(obs, act), meow.FlowPolicy.get_q(agent.critic, obs, torch.atanh(act)))
    bare = copy.deepcopy(agent.critic)
    bare.shifts = torch.nn.ModuleList()
    grads = []
    for critic in (agent.critic, bare):
        act, log_prob, _ = sample_with_z(agent.actor, obs)
        q = critic.get_q(obs, act)
        assert q.shape == (16, heads if critic is agent.critic else 1)
        grads.append(torch.autograd.grad(-q.min(dim=1).values.mean(), agent.actor.parameters()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


# The update


@pytest.mark.parametrize("max_grad_norm", [None, 0.01])
@pytest.mark.parametrize("flags", [*VARIANTS.values(), {"critic": "flow"}, {"alpha": 0.3}], ids=str)
def test_updates_are_those_of_a_plain_loop_over_the_transitions(flags, max_grad_norm, monkeypatch):
    """Three updates, with the target row by row, backward, clip_grad_norm_, Adam and the Polyak average in place."""
    monkeypatch.setattr(meow, "dropout_masks", lambda policy, batch: torch.ones(4, 1, 2, batch, 64).double())
    agent = random_agent(**flags, gamma=0.9, tau=0.1, critic_learning_rate=0.01, max_grad_norm=max_grad_norm)
    clip = agent.args.max_grad_norm or math.inf
    plain, data = copy.deepcopy(agent), random_batch()
    assert 0 < data.terminated.sum() < 32
    adams = [torch.optim.Adam(net.parameters(), lr) for net, lr in [(plain.critic, 0.01), (plain.actor, 3e-4)]]
    temperature = torch.optim.Adam([plain.log_alpha], 3e-4)
    for i in range(3):
        torch.manual_seed(i)
        losses = agent.update(data)

        torch.manual_seed(i)
        alpha, q_loss = plain.log_alpha.exp().item(), 0.0
        next_act, next_log_prob = plain.actor.sample(data.next_obs)
        for k in range(32):
            y = data.reward[k].item()
            if not data.terminated[k]:
                next_q = plain.target.get_q(data.next_obs[k : k + 1], next_act[k : k + 1]).min().item()
                y += 0.9 * (next_q - alpha * next_log_prob[k].item())
            for q in plain.critic.get_q(data.obs[k : k + 1], data.u[k : k + 1])[0]:
                q_loss += 0.5 * (q - y) ** 2 / 32
        plain.zero_grad()
        q_loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.critic.parameters(), clip)
        adams[0].step()
        act, log_prob = plain.actor.sample(data.obs)
        actor_loss = sum(
            (alpha * log_prob[k] - min(plain.critic.get_q(data.obs[k : k + 1], act[k : k + 1])[0])) / 32
            for k in range(32)
        )
        plain.zero_grad()
        actor_loss.backward()
        adams[1].step()
        if agent.args.alpha is None:
            temperature.zero_grad()
            (plain.log_alpha.exp() * (-log_prob.mean().item() + ACT_DIM)).backward()
            temperature.step()
        with torch.no_grad():
            for param, target in zip(plain.critic.parameters(), plain.target.parameters(), strict=True):
                target.copy_(0.9 * target + 0.1 * param)

        expected = {"qf_loss": q_loss, "actor_loss": actor_loss, "grad_norm": norm, "entropy": -log_prob.mean()}
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-6), name
        assert losses["alpha"].item() == pytest.approx(alpha)
    for (name, a), b in zip(agent.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6, msg=name)


@pytest.mark.parametrize("log_std, rises", [(-4.0, True), (-0.5, False)])
def test_the_temperature_moves_the_entropy_towards_minus_a(log_std, rises):
    agent, data = random_agent(), random_batch()
    with torch.no_grad():
        agent.actor.net[-1].weight.zero_()
        agent.actor.net[-1].bias.copy_(torch.tensor([0.0] * ACT_DIM + [log_std] * ACT_DIM))
    losses = agent.update(data)
    assert (losses["entropy"] < -ACT_DIM) == rises
    assert losses["alpha"] == 1 and (agent.log_alpha > 0) == rises


def test_a_temperature_that_is_given_stays():
    agent = random_agent(alpha=0.3)
    agent.update(random_batch())
    assert agent.log_alpha.exp().item() == pytest.approx(0.3) and len(agent.optimizers) == 2


def test_dropout_is_in_the_q_of_the_critics_loss_only(monkeypatch):
    agent, seen = random_agent(critic="flow", actor="flow", lrs=True), []
    original = FlowCritic.get_q

    def spied(self, *args):
        seen.append((self is agent.critic, args[2:]))
        return original(self, *args)

    monkeypatch.setattr(FlowCritic, "get_q", spied)
    data, masks = random_batch(), []
    for _ in range(2):
        agent.update(data)
        assert [(is_critic, len(dropout)) for is_critic, dropout in seen] == [(False, 0), (True, 1), (True, 0)]
        masks.append(seen[1][1][0])
        seen.clear()
    assert masks[0].shape == (4, 1, 2, 32, 64) and not torch.equal(*masks)


# Settings


def test_settings_are_sacs_for_the_energy_critic_and_meows_for_the_flow_critic():
    energy, flow = Args(env_id="Ant-v4"), Args(env_id="Ant-v4", critic="flow")
    assert (energy.critic_learning_rate, energy.max_grad_norm, energy.tau, energy.alpha) == (3e-4, None, 0.005, None)
    assert (flow.critic_learning_rate, flow.max_grad_norm, flow.tau, flow.alpha) == (1e-3, 30.0, 0.0001, 0.05)
    for args in (energy, flow):
        assert (args.total_timesteps, args.learning_starts, args.actor_learning_rate) == (4_000_000, 5_000, 3e-4)
    assert (energy.sigma_min, energy.sigma_max) == (None, None)
    halfcheetah = Args(env_id="HalfCheetah-v5", actor="flow")
    assert (halfcheetah.sigma_min, halfcheetah.sigma_max, halfcheetah.tau) == (-5.0, 2.0, 0.005)
    assert Args(env_id="Pendulum-v1", critic="flow").alpha == 0.25
    given = Args(critic="flow", tau=0.5, alpha=1.0, max_grad_norm=2.0)
    assert (given.tau, given.alpha, given.max_grad_norm) == (0.5, 1.0, 2.0)
    names = [Args(**flags).exp_name for flags in ({}, {"critic": "flow", "lrs": True}, {"exp_name": "x"})]
    assert names == ["ecga", "fcga_lrs", "x"]


def test_an_agent_gets_its_settings():
    flags = {"critic": "flow", "actor": "flow", "sigma_min": -4.0, "sigma_max": 1.0, "alpha": 0.4, "lrs": True}
    args = Args(**flags, critic_learning_rate=0.01, actor_learning_rate=0.02)
    agent = ActorCritic(args, OBS_DIM, ACT_DIM)
    for flow in (agent.critic, agent.target, agent.actor.flow):
        assert (flow.sigma_min, flow.sigma_max, flow.couplings[0].log_scale) == (-4.0, 1.0, None)
    assert agent.critic.alpha == 0.4 and len(agent.critic.shifts) == 2 and isinstance(agent.actor, FlowActor)
    assert [optimizer.param_groups[0]["lr"] for optimizer in agent.optimizers] == [0.01, 0.02]
    assert not any(param.requires_grad for param in agent.target.parameters())
