"""The actor-critic counterparts of MEow: densities, the update, the shifts, the settings. Runs: test_baselines.py."""

import copy
import math

import pytest
import torch
from actor_critic import Actor, ActorCritic, Args, EnergyCritic, FlowCritic, meow
from torch.distributions import Normal

OBS_DIM, ACT_DIM = 5, 3
VARIANTS = [{}, {"actor": "flow"}, {"critic": "flow", "lrs": True}, {"critic": "flow", "actor": "flow", "lrs": True}]
VARIANTS += [{"lrs": True}, {"critic": "flow"}, {"alpha": 0.3}]


def random_agent(dtype=torch.float64, **flags):
    """An agent, and its target, with random non-zero weights in every network."""
    torch.manual_seed(0)
    agent = ActorCritic(Args(**flags), OBS_DIM, ACT_DIM).to(dtype)
    with torch.no_grad():
        for net in (agent.critic, agent.actor, agent.target):
            for param in net.parameters():
                param.add_(0.03 * torch.randn_like(param))
    meow.flatten(agent.critic), meow.flatten(agent.target)  # again, after .to(dtype)
    return agent


def random_batch(batch=32, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    obs, next_obs = torch.randn(2, batch, OBS_DIM, generator=generator).to(dtype)
    act = torch.rand(batch, ACT_DIM, generator=generator).to(dtype) * 2 - 1
    reward = torch.randn(batch, 1, generator=generator).to(dtype)
    terminated = (torch.rand(batch, 1, generator=generator) < 0.3).to(dtype)
    return meow.Transitions(obs, next_obs, act, reward, terminated)


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


def test_the_gaussian_actors_log_std_is_bounded():
    actor = Actor(OBS_DIM, ACT_DIM)
    for bias, bound in [(-50.0, -20.0), (50.0, 2.0)]:
        torch.nn.init.constant_(actor.gaussian[-1].bias, bias)
        assert (actor(torch.zeros(1, OBS_DIM), torch.zeros(1, ACT_DIM))[1] == bound).all()


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
def test_deterministic_actions_are_those_of_z_0_and_others_are_sampled(actor):
    actor, obs = random_agent(actor=actor).actor, random_batch(8).obs
    if actor.flow is None:
        expected = torch.tanh(actor.gaussian(obs)[:, :ACT_DIM])
    else:
        expected = actor.flow.act(obs, deterministic=True)
    torch.testing.assert_close(actor.act(obs, deterministic=True), expected)
    torch.manual_seed(1)
    torch.testing.assert_close(actor.act(obs), sample_with_z(actor, obs)[0])
    assert not torch.equal(actor.act(obs), actor.act(obs))


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
@pytest.mark.parametrize("side", [-1, 1])
def test_saturated_actions_have_a_finite_gradient_that_leads_back(actor, side):
    agent, obs = random_agent(torch.float32, critic="flow", actor=actor), random_batch(64, torch.float32).obs
    flow, moved = agent.actor.flow, slice(ACT_DIM)
    last = [agent.actor.gaussian] if flow is None else [layer.translation for layer in flow.couplings]
    if flow is not None:
        moved = flow.couplings[-1].mask == 0
    for net in last:
        net[-1].bias.data[:ACT_DIM] = 30.0 * side
    act, log_prob = agent.actor.sample(obs)
    (grad,) = torch.autograd.grad(log_prob.mean(), last[-1][-1].bias, retain_graph=True)
    assert (act == side).all() and torch.allclose(grad[moved], torch.tensor(2.0 * side))  # log_prob is 2 |u| + constant
    loss = (0.2 * log_prob - agent.critic.get_q(obs, act).min(dim=1).values).mean()
    grads = torch.autograd.grad(loss, agent.actor.parameters())
    assert all(grad.isfinite().all() for grad in grads) and grads[-1].abs().max() > 0


def test_the_energy_critics_shifts_start_as_meows_and_are_added_to_q():
    for b in EnergyCritic(OBS_DIM, ACT_DIM, lrs=True).shifts:
        weights = [layer.weight for layer in b if isinstance(layer, torch.nn.Linear)]
        assert [weight.shape for weight in weights] == [(256, OBS_DIM), (256, 256), (1, 256)]
        assert not any(weight.any() for weight in weights)
    shifted, data = random_agent(lrs=True).critic, random_batch(16)
    plain = EnergyCritic(OBS_DIM, ACT_DIM, lrs=False).double()
    plain.load_state_dict(shifted.state_dict(), strict=False)
    q, q_b = (critic.get_q(data.obs, data.u) for critic in (plain, shifted))
    b = torch.cat([b(data.obs) for b in shifted.shifts], dim=1)
    torch.testing.assert_close(q_b, q + b)
    assert b.abs().min() > 1e-3 and q.shape == (16, 2)


@pytest.mark.parametrize("lrs, heads", [(False, 1), (True, 2)])
def test_the_flow_critic_is_meows(lrs, heads):
    critic, data = random_agent(critic="flow", lrs=lrs).critic, random_batch(16)
    assert isinstance(critic, meow.FlowPolicy) and critic.alpha == 0.25
    assert (critic.sigma_min, critic.sigma_max) == (-5.0, -0.3)
    q = critic.get_q(data.obs, data.u)
    torch.testing.assert_close(q, meow.FlowPolicy.get_q(critic, data.obs, torch.atanh(data.u)))
    assert q.shape == (16, heads)


@pytest.mark.parametrize("max_grad_norm", [None, 0.01])
@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_updates_are_those_of_plain_pytorch(flags, max_grad_norm, monkeypatch):
    """Three updates, with backward, clip_grad_norm_, Adam and the Polyak average in place."""
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
        alpha = plain.log_alpha.exp().item()
        with torch.no_grad():
            next_act, next_log_prob = plain.actor.sample(data.next_obs)
            next_v = plain.target.get_q(data.next_obs, next_act).amin(dim=1) - alpha * next_log_prob
        y = torch.where(data.terminated > 0, data.reward, data.reward + 0.9 * next_v[:, None])
        q_loss = 0.5 * ((plain.critic.get_q(data.obs, data.u) - y) ** 2).sum() / 32
        plain.zero_grad()
        q_loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.critic.parameters(), clip)
        adams[0].step()
        act, log_prob = plain.actor.sample(data.obs)
        actor_loss = (alpha * log_prob - plain.critic.get_q(data.obs, act).amin(dim=1)).mean()
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


def test_settings_are_sacs_for_the_energy_critic_and_meows_for_the_flow_critic():
    energy, flow = Args(env_id="Ant-v4"), Args(env_id="Ant-v4", critic="flow", lrs=True)
    assert (energy.critic_learning_rate, energy.max_grad_norm, energy.tau, energy.alpha) == (3e-4, None, 0.005, None)
    assert (flow.critic_learning_rate, flow.max_grad_norm, flow.tau, flow.alpha) == (1e-3, 30.0, 0.0001, 0.05)
    for args, name in (energy, "ecga"), (flow, "fcga_lrs"):
        assert (args.total_timesteps, args.learning_starts, args.actor_learning_rate) == (4_000_000, 5_000, 3e-4)
        assert args.exp_name == name
    given = Args(env_id="Pendulum-v1", critic="flow", tau=0.5, max_grad_norm=2.0, exp_name="x")
    assert (given.tau, given.alpha, given.max_grad_norm, given.exp_name) == (0.5, 0.25, 2.0, "x")


def test_an_agent_gets_its_settings():
    flags = {"env_id": "HalfCheetah-v5", "critic": "flow", "actor": "flow", "alpha": 0.4, "lrs": True}
    args = Args(**flags, critic_learning_rate=0.01, actor_learning_rate=0.02)
    agent = ActorCritic(args, OBS_DIM, ACT_DIM)
    for flow in (agent.critic, agent.target, agent.actor.flow):
        assert (flow.sigma_min, flow.sigma_max, flow.couplings[0].log_scale) == (-5.0, 2.0, None)
    assert agent.critic.alpha == 0.4 and not any(param.requires_grad for param in agent.target.parameters())
    assert [optimizer.param_groups[0]["lr"] for optimizer in agent.optimizers] == [0.01, 0.02, 0.02]
