"""Soft Q-learning: the soft value, the Stein direction, the sampler, the loop and a task with a known optimum."""

import csv
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
from off_policy import check_args, meow, train
from sql_continuous_action import SQL, Args, log_det_tanh, soft_value, stein_direction
from test_cli import assert_refused, run

SCRIPT = Path(__file__).parent.parent / "benchmark" / "sql_continuous_action.py"
STEPS, REACH = 10, 0.25


class PointEnv(gym.Env):
    """A point in [-1,1]^2 that moves by REACH * action; a step costs its distance to the origin, |x| + |y|.

    The optimum goes straight to the origin on both axes: an episode returns -sum_t,i max(0, |x_i| - t * REACH).
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 2)
        return self.x.copy(), {}

    def step(self, action):
        self.x = self.x + REACH * action
        return self.x.copy(), -np.abs(self.x).sum(), False, False, {}


gym.register("SQLPoint-v0", entry_point=PointEnv, max_episode_steps=STEPS)


class QFunction(nn.Module):
    """A known Q in place of the network: f(act (B, K, A)) -> (B, K), the same in every state."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, obs, act):
        return self.function(act)[..., None]


def make_agent(act_dim=1, q=None, **kwargs):
    agent = SQL(Args(**kwargs), obs_dim=2, act_dim=act_dim)
    if q is not None:
        agent.q = agent.target_q = QFunction(q)
    return agent


def transitions(batch, act_dim=1, terminated=0.0):
    obs, next_obs, act = torch.randn(batch, 2), torch.randn(batch, 2), torch.rand(batch, act_dim) * 2 - 1
    return meow.Transitions(obs, next_obs, act, torch.randn(batch, 1), torch.full((batch, 1), terminated))


def uneven(act):
    """A Q with two modes of different heights in the last of its dimensions."""
    x = act[..., -1]
    return 1.0 - 3 * (x.abs() - 0.5).square() + 0.3 * x - act[..., :-1].square().sum(dim=-1)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("act_dim", [1, 2])
def test_the_soft_value_goes_to_the_integral_as_particles_grow(act_dim, alpha):
    torch.manual_seed(0)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 500 - 1
    points = torch.stack(torch.meshgrid(*[grid] * act_dim, indexing="ij"), dim=-1).flatten(0, -2)
    integral = (uneven(points) / alpha).exp().mean() * 2**act_dim
    exact = float(alpha * integral.log())
    errors, biases = [], []
    for particles in (4, 64, 1024):
        values = soft_value(uneven(torch.rand(2_000, particles, act_dim) * 2 - 1), alpha, act_dim)
        assert values.shape == (2_000, 1)
        errors.append(float((values - exact).square().mean().sqrt()))
        biases.append(float(values.mean()) - exact)
    for few, many in zip(errors, errors[1:], strict=False):
        assert many < few / 2.5  # 1 / sqrt(16) and some for the bias of few
    assert biases[0] < 0 and abs(biases[2]) < 0.01 * alpha


def test_the_soft_value_is_finite_where_exp_is_not():
    q = torch.tensor([[9e4, 8e4], [-9e4, -8e4]])
    torch.testing.assert_close(soft_value(q, 1 / 300, 1).flatten(), torch.tensor([9e4, -8e4]), atol=0.1, rtol=0)


def test_stein_direction_is_its_formula():
    """Against plain loops with autograd for the kernel's gradient."""
    torch.manual_seed(0)
    batch, n, m, dim = 3, 4, 5, 2
    fixed, moved, score = torch.randn(batch, n, dim), torch.randn(batch, m, dim), torch.randn(batch, n, dim)
    direction = stein_direction(fixed, moved, score)
    for b in range(batch):
        squares = sorted(float((x - y).square().sum()) for x in fixed[b] for y in moved[b])
        h = squares[(n * m - 1) // 2] / math.log(n)
        for j in range(m):
            total = torch.zeros(dim)
            for i in range(n):
                x = fixed[b, i].clone().requires_grad_()
                kernel = torch.exp(-(x - moved[b, j]).square().sum() / h)
                (kernel_grad,) = torch.autograd.grad(kernel, x)
                total += kernel.detach() * score[b, i] + kernel_grad
            torch.testing.assert_close(direction[b, j], total / n)


def test_stein_direction_of_equal_particles_is_their_score():
    fixed, score = torch.ones(1, 4, 2), torch.tensor([1.0, -2.0]).expand(1, 4, 2)
    torch.testing.assert_close(stein_direction(fixed, fixed, score), score)


def test_log_det_tanh_is_autograds_and_finite_where_tanh_saturates():
    u = torch.tensor([[0.3, -1.2], [2.0, 0.0]], dtype=torch.float64)
    for row in u:
        jacobian = torch.autograd.functional.jacobian(torch.tanh, row)
        torch.testing.assert_close(log_det_tanh(row), torch.linalg.slogdet(jacobian).logabsdet)
    u = torch.tensor([50.0, -50.0], requires_grad=True)
    (grad,) = torch.autograd.grad(log_det_tanh(u), u)
    torch.testing.assert_close(grad, torch.tensor([-2.0, 2.0]))  # drives it back


def test_sampler_loss_has_the_gradient_of_equation_14():
    """sum over moved particles of (Stein direction) * d u / d parameters, with the score of u's density by hand."""
    agent, obs = make_agent(act_dim=2, q=uneven, alpha=0.5), torch.randn(6, 2)
    torch.manual_seed(3)
    loss, _ = agent.sampler_loss(obs)
    parameters = list(agent.sampler.parameters())
    grads = torch.autograd.grad(loss, parameters)
    torch.manual_seed(3)
    fixed, moved = agent.sample(obs, 8).detach(), agent.sample(obs, 8)
    act = torch.tanh(fixed)
    q_grad = torch.stack([-2 * act[..., 0], 0.3 - 6 * (act[..., 1] - 0.5 * act[..., 1].sign())], dim=-1)
    score = q_grad / 0.5 * (1 - act.square()) - 2 * act  # d/du of Q(tanh u) / alpha + log prod(1 - tanh(u)^2)
    direction = stein_direction(fixed, moved.detach(), score)
    wanted = torch.autograd.grad(moved, parameters, grad_outputs=-direction / len(obs))
    for grad, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["two modes", "flat"])
def test_the_sampler_has_the_modes_and_the_spread_of_exp_q(name):
    """In each of 64 states, where act[0] has two modes at +-0.6, with a valley of a sixth, and act[1] has one at 0.

    Measured over seeds 0 to 4, against the integrals: mean |act[0]| 0.52 to 0.55 (0.56), its deviation 0.26 (0.24),
    that of act[1] 0.34 to 0.36 (0.35), and in each state 43 to 59% of the actions on one side. Seed 5 stayed on one
    side: a sampler that begins there (92% of its first actions) is hardly drawn to the other. Flat Q: a is uniform,
    which it would not be with the authors' form of the direction (its mean |act| would be 0.375, not 0.5).
    """
    torch.manual_seed(0)
    alpha = 0.3

    def q(act):
        if name == "flat":
            return 0 * act.sum(dim=-1)
        return -1.5 * (act[..., 0].abs() - 0.6).square() - act[..., 1].square()

    agent = make_agent(act_dim=2, q=q, alpha=alpha, learning_rate=1e-3)
    for _ in range(400):
        agent.step(agent.optimizers[1], agent.sampler_loss(torch.randn(64, 2))[0])
    with torch.no_grad():
        act = torch.tanh(agent.sample(torch.randn(64, 2), 500))
    right = (act[..., 0] > 0).float().mean(dim=1)
    assert right.min() > 0.3 and right.max() < 0.7

    grid = (torch.arange(400) + 0.5) / 200 - 1
    points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1).flatten(0, 1)
    density = torch.softmax(q(points) / alpha, dim=0)
    for i in (0, 1):
        exact = (density * points[:, i].abs()).sum()
        exact_std = (density * (points[:, i].abs() - exact).square()).sum().sqrt()
        assert act[..., i].abs().mean() == pytest.approx(float(exact), abs=0.06)
        assert act[..., i].abs().std() == pytest.approx(float(exact_std), abs=0.04)


@pytest.mark.parametrize("terminated", [0.0, 1.0])
def test_only_termination_cuts_the_bootstrap(terminated):
    """With Q = 5 everywhere every draw gives V = 5 + alpha * log 2^A."""
    agent = make_agent(act_dim=3, q=lambda act: 0 * act.sum(dim=-1) + 5, alpha=0.2, gamma=0.9)
    data = transitions(8, act_dim=3, terminated=terminated)
    loss, q = agent.q_loss(data)
    target = data.reward + 0.9 * (1 - terminated) * (5 + 0.2 * 3 * math.log(2))
    torch.testing.assert_close(loss, 0.5 * (5 - target).square().mean())
    assert q == 5


def test_q_is_regressed_on_the_soft_value_of_the_next_state_by_the_target():
    """Target Q(s,a) = s[0] + a[0], so that V(s) = s[0] + alpha * log(2 * alpha * sinh(1 / alpha) * 2)."""

    class Linear(nn.Module):
        def forward(self, obs, act):
            return obs[:, None, :1] + act[..., :1]

    torch.manual_seed(0)
    agent, data, alpha = make_agent(act_dim=2, alpha=0.5, gamma=0.9, value_particles=50_000), transitions(8, 2), 0.5
    agent.target_q = Linear()
    loss, q_mean = agent.q_loss(data)
    value = data.next_obs[:, :1] + alpha * (math.log(2 * alpha * math.sinh(1 / alpha)) + math.log(2))
    q = agent.q(data.obs, data.act[:, None])[:, 0]
    torch.testing.assert_close(loss, 0.5 * (data.reward + 0.9 * value - q).square().mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(q_mean, q.mean())


def test_a_time_limit_is_no_termination_for_the_update(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batches = []

    class Recorded(SQL):
        def update(self, data):
            batches.append(data)
            return super().update(data)

    train(Args(env_id="Counting-v0", total_timesteps=140, learning_starts=120, eval_episodes=1), Recorded)
    data = [torch.cat(field) for field in zip(*batches, strict=True)]
    episode, t = data[1][:, 0], data[1][:, 1]  # of next_obs
    assert torch.equal(data[4][:, 0].bool(), (episode % 2 == 0) & (t == 7))
    assert ((t == 10) & (data[4][:, 0] == 0)).any() and data[4].any()


def test_the_target_is_a_copy_at_its_interval():
    torch.manual_seed(0)
    agent = make_agent(target_update_interval=3)
    for update in range(1, 8):
        agent.update(transitions(8))
        same = all(torch.equal(p, t) for p, t in zip(agent.q.parameters(), agent.target_q.parameters(), strict=True))
        assert same == (update % 3 == 0)


def test_deterministic_action_is_the_best_of_the_samples():
    torch.manual_seed(0)
    agent, obs = make_agent(act_dim=2, q=lambda act: -(act - 0.3).square().sum(dim=-1)), torch.randn(20, 2)
    with torch.no_grad():
        torch.manual_seed(1)
        best = agent.act(obs, deterministic=True)
        torch.manual_seed(1)
        samples = torch.tanh(agent.sample(obs, 32))
        assert agent.act(obs).shape == (20, 2)
    nearest = (samples - 0.3).norm(dim=2).argmin(dim=1)
    assert torch.equal(best, samples[torch.arange(20), nearest])


def test_settings_of_an_environment():
    assert Args().alpha == 1 / 30 and Args().total_timesteps == 1_500_000
    ant = Args(env_id="Ant-v5")
    assert ant.alpha == 1 / 300 and ant.total_timesteps == 4_000_000
    assert Args(env_id="Pendulum-v1").alpha == 1 / 30
    assert Args(env_id="Humanoid-v4", alpha=0.5, total_timesteps=7).alpha == 0.5


def evaluations(run_dir):
    with open(Path(run_dir) / "evaluations.csv") as file:
        return [[field for name, field in row.items() if name != "seconds"] for row in csv.DictReader(file)]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"env_id": "Pendulum-v1", "learning_starts": 40, "eval_frequency": 40, "eval_episodes": 2}
    settings["target_update_interval"] = 30  # the copies come after the updates of steps 70 and 100
    half, whole = (train(Args(**settings, total_timesteps=n), SQL)[1] for n in (80, 120))
    assert len(evaluations(half)) == 3
    result = run("--resume", half, "--total-timesteps", "120", cwd=tmp_path, script=SCRIPT)
    assert result.returncode == 0, result.stderr
    assert "reward scale 30" in result.stdout
    assert len(evaluations(whole)) == 4
    assert evaluations(half) == evaluations(whole)


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("alpha", 0.0, "above 0"),
        ("learning_rate", math.nan, "above 0"),
        ("value_particles", 0, "at least 1"),
        ("kernel_particles", 2, "even integer of at least 4"),
        ("kernel_particles", 7, "even integer of at least 4"),
        ("target_update_interval", 0, "at least 1"),
        ("gamma", 1.1, "between 0 and 1"),
    ],
)
def test_bad_values_are_refused(name, value, allowed):
    with pytest.raises(meow.UsageError, match=f"--{name.replace('_', '-')} must be .*{allowed}, got {value}"):
        check_args(Args(**{name: value}))


def test_a_bad_flag_ends_in_one_sentence_before_any_work(tmp_path):
    result = run("--kernel-particles", "7", cwd=tmp_path, script=SCRIPT)
    assert_refused(result, "--kernel-particles", tmp_path, "must be an even integer of at least 4, got 7")
    assert result.stderr.count("\n") == 1


def test_a_point_is_brought_to_the_origin(tmp_path, monkeypatch):
    """How much of the way from the untrained return to the optimum of PointEnv is made in 1,000 updates.

    Measured for seeds 1 to 4, returns of 10 episodes, optimum -0.86: untrained samples -9.7 to -10.8, trained ones -1.5
    to -1.7 (92 to 93% of the way), deterministic actions -1.1 to -1.2 (96 to 98%).
    """
    monkeypatch.chdir(tmp_path)
    args = Args(env_id="SQLPoint-v0", total_timesteps=1_300, learning_starts=300, eval_deterministic=False)
    args.alpha, args.gamma, args.batch_size, args.learning_rate = 0.02, 0.9, 64, 1e-3
    args.target_update_interval = 50
    agent, _, evaluated = train(args, SQL)
    untrained, trained = evaluated[0][1].mean(), evaluated[-1][1].mean()
    envs = [gym.make("SQLPoint-v0") for _ in range(args.eval_episodes)]
    best = meow.evaluate(agent, envs, deterministic=True).mean()
    starts = np.abs([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    optimum = -np.mean([np.maximum(0, starts - t * REACH).sum(axis=1) for t in range(1, STEPS + 1)], axis=1).sum()
    assert untrained < -9 and -0.9 < optimum < -0.8
    assert (trained - untrained) / (optimum - untrained) > 0.85
    assert (best - untrained) / (optimum - untrained) > 0.93
