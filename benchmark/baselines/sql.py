"""Soft Q-learning (SQL, Haarnoja et al. 2017, arXiv 1702.08165) with a Stein variational sampler.

    python benchmark/baselines/sql.py --env-id Hopper-v4    # or --resume runs/NAME

MEow's nearest relative: the same policy pi = exp((Q - V) / alpha), but Q is an MLP, so that the soft
value must be sampled and a second network must learn to draw from pi. Equations of that paper:

    V(s) = alpha * log E_{a ~ q}[exp(Q(s,a) / alpha) / q(a)],  q uniform on [-1,1]^A      (Eq. 10)
    loss = E[ 1/2 * (Q(s,a) - (r + gamma * (1 - terminated) * V_target(s')))^2 ]          (Eq. 11)
    a    = tanh(f(s, noise)),  f moved along the Stein variational gradient towards pi    (Eq. 13, 14)

The settings are those of the authors' code (haarnoja/softqlearning), except for its quirks:

- Temperature. Theirs is 1, and the reward is multiplied by a scale. Here alpha = 1 / scale: the
  same policy, with Q and V in units of the return, which a network reaches sooner.
- Stein direction. Theirs moves actions after tanh towards the density of those BEFORE it, so that
  the sampler would end at exp(Q / alpha) * prod(1 - a^2). Here all is before tanh, on u, with the
  density exp(Q / alpha) * prod(1 - tanh(u)^2), and a saturated tanh does not stop the gradient.
- V's actions. Theirs shares one draw in the batch. Here each state has its own: errors average.
- First actions. Theirs come from the untrained sampler. Here they are uniform, as elsewhere.
- Evaluation. Theirs samples. Here, as for all systems of Fig. 3, it is deterministic: the one with
  the highest Q of EVAL_PARTICLES actions of the sampler. --no-eval-deterministic takes one.
"""

import copy
import functools
import math
import sys
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from off_policy import OffPolicyArgs, gradient_step, log_det_tanh, main, meow, train

# Of the authors' launcher, examples/mujoco_all_sql.py, there for v2 and rllab's Humanoid; others 30.
# What it shares among environments are the defaults of Args; a buffer of 1e7 (HalfCheetah) is not.
REWARD_SCALES = {"Walker2d-v4": 10, "Ant-v4": 300, "Humanoid-v4": 100}
HIDDEN = 128  # units of each of the two hidden layers of both networks
EVAL_PARTICLES = 32
MIN_BANDWIDTH = 1e-3  # of the kernel, where particles coincide


@dataclass
class Args(OffPolicyArgs):
    exp_name: str = "sql"  # the name of this experiment
    batch_size: int = 128  # transitions per update
    learning_starts: int = 1_000  # step to start learning; uniform actions before
    learning_rate: float = 3e-4  # the learning rate of Adam, for Q and for the sampler
    alpha: float | None = None  # temperature of pi (None: 1 / the authors' reward scale)
    value_particles: int = 16  # uniform actions per state for its soft value (Eq. 10)
    kernel_particles: int = 16  # actions per state for Eq. 13: one half is moved, the other says where
    target_update_interval: int = 1_000  # updates between two copies of Q to its target
    rules = (
        "1 <= value_particles",
        "1 <= target_update_interval",
        "4 <= kernel_particles",
        "kernel_particles % 2 == 0",
    )

    def __post_init__(self):
        super().__post_init__()
        scale = REWARD_SCALES.get(meow.paper_row(self.env_id), 30)
        self.fill({"alpha": 1 / scale})


# ALGO LOGIC: initialize agent here:
class ParticleMLP(nn.Module):
    """An MLP of a state and K vectors each: obs (B, S), particles (B, K, A) -> (B, K, out_dim).
    Two hidden layers of ReLUs; Xavier initialisation and zero biases, as in the authors' code.
    SPEED: the state's part of the first layer is computed once for its K particles."""

    def __init__(self, obs_dim, act_dim, out_dim):
        super().__init__()
        self.obs_in = nn.Linear(obs_dim, HIDDEN)
        self.particles_in = nn.Linear(act_dim, HIDDEN, bias=False)
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, out_dim)
        for layer in self.children():
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, obs, particles):
        x = self.obs_in(obs)[:, None] + self.particles_in(particles)
        x = self.hidden(F.relu(x))
        return self.out(F.relu(x))


def soft_value(q, alpha, act_dim):
    """V(s) estimated from Q of M actions drawn uniformly in [-1,1]^A: q (B, M) -> (B, 1). It goes to
    alpha * log integral exp(Q(s,a) / alpha) da as M grows, from below on average."""
    log_sum = torch.logsumexp(q / alpha, dim=1, keepdim=True)
    log_mean = log_sum - math.log(q.shape[1])
    return alpha * (log_mean + act_dim * math.log(2))  # Eq. 10, with the density 1 / 2^A


def stein_direction(fixed, moved, score):
    """Where SVGD moves particles, averaged over the fixed ones: (B, N, A), (B, M, A), (B, N, A) ->
    (B, M, A). score: the gradient of the wanted log-density at the fixed ones. The kernel is
    exp(-distance^2 / h), h = median distance^2 / log N in each state (Liu & Wang 2016)."""
    diff = fixed[:, :, None] - moved[:, None]  # (B, N, M, A)
    dist_sq = diff.square().sum(dim=-1, keepdim=True)
    median = dist_sq.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    h = (median / math.log(fixed.shape[1])).clamp(min=MIN_BANDWIDTH)
    kernel = torch.exp(-dist_sq / h)
    kernel_grad = -2 / h * diff * kernel  # with respect to the fixed ones: drives particles apart
    directions = kernel * score[:, :, None] + kernel_grad
    return directions.mean(dim=1)  # Eq. 13 / alpha


class SQL(nn.Module):
    """The Q-network, its target and the sampler f, with an Adam for Q and one for f."""

    def __init__(self, args, obs_dim, act_dim):
        super().__init__()
        self.args = args
        self.act_dim = act_dim
        self.q = ParticleMLP(obs_dim, act_dim, 1)
        self.sampler = ParticleMLP(obs_dim, act_dim, act_dim)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.optimizers = [
            torch.optim.Adam(self.q.parameters(), args.learning_rate),
            torch.optim.Adam(self.sampler.parameters(), args.learning_rate),
        ]

    def sample(self, obs, k):
        """k samples per state BEFORE tanh, each from noise N(0, I_A): (B, S) -> (B, k, A)."""
        noise = torch.randn(len(obs), k, self.act_dim, device=obs.device)
        return self.sampler(obs, noise)

    def act(self, obs, deterministic=False):
        """(B, S) -> (B, A). deterministic: of EVAL_PARTICLES samples the one with the highest Q."""
        if not deterministic:
            return torch.tanh(self.sample(obs, 1))[:, 0]
        act = torch.tanh(self.sample(obs, EVAL_PARTICLES))
        best = self.q(obs, act).argmax(dim=1, keepdim=True)
        return act.take_along_dim(best, dim=1)[:, 0]

    def q_loss(self, data):
        """Transitions -> the loss of Q () and the mean Q of the batch ()."""
        args = self.args
        with torch.no_grad():
            shape = len(data.obs), args.value_particles, self.act_dim
            act = torch.empty(shape, device=data.obs.device).uniform_(-1, 1)
            next_q = self.target_q(data.next_obs, act).squeeze(dim=2)
            next_v = soft_value(next_q, args.alpha, self.act_dim)
            # only termination cuts the bootstrap
            target_q = data.reward + args.gamma * (1 - data.terminated) * next_v
        q = self.q(data.obs, data.u[:, None]).squeeze(dim=2)
        loss = 0.5 * (q - target_q).square().mean()  # Eq. 11
        return loss, q.detach().mean()

    def sampler_loss(self, obs):
        """(B, S) -> a loss () with Eq. 14's gradient."""
        half = self.args.kernel_particles // 2
        fixed = self.sample(obs, half).detach().requires_grad_()
        act = torch.tanh(fixed)
        q = self.q(obs, act).squeeze(dim=2)
        log_p = q / self.args.alpha + log_det_tanh(fixed)  # of u, up to V
        (score,) = torch.autograd.grad(log_p.sum(), fixed)
        moved = self.sample(obs, half)
        direction = stein_direction(fixed.detach(), moved.detach(), score)
        return -(direction * moved).sum(dim=(1, 2)).mean()  # Eq. 14

    def update(self, data):
        """A step of Q on Eq. 11, one of the sampler on Eq. 14 and, at its time, a copy of Q to the
        target. Returns {name of a loss: tensor ()}."""
        qf_loss, q = self.q_loss(data)
        gradient_step(self.optimizers[0], qf_loss)
        gradient_step(self.optimizers[1], self.sampler_loss(data.obs))
        self.updates += 1
        if self.updates % self.args.target_update_interval == 0:
            self.target_q.load_state_dict(self.q.state_dict())
        return {"qf_loss": qf_loss.detach(), "qf1_values": q}


if __name__ == "__main__":
    sys.exit(main(Args, functools.partial(train, SQL)))
