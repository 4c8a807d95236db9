"""Soft Q-learning (SQL) with an amortised Stein variational sampler (Haarnoja et al. 2017, arXiv 1702.08165).

    python benchmark/baselines/sql.py --env-id Hopper-v4 --exp-name sql
    python benchmark/baselines/sql.py --resume runs/NAME

MEow's nearest relative, and a baseline of its Fig. 3: the same energy-based policy pi = exp((Q - V) / alpha), but Q is
an MLP, so that the soft value must be sampled and a second network must learn to draw from pi. Equations as in that
paper:

    V(s) = alpha * log E_{a ~ q}[exp(Q(s,a) / alpha) / q(a)],  q uniform on [-1,1]^A                        (Eq. 10)
    loss = E[ 1/2 * (Q(s,a) - (r + gamma * (1 - terminated) * V_target(s')))^2 ]                            (Eq. 11)
    a    = tanh(f(s, noise)),  f moved along the Stein variational gradient towards pi                      (Eq. 13, 14)

The settings are those of the authors' code (haarnoja/softqlearning). Where it has quirks, this file departs from it:

- Temperature. Theirs is 1, and the reward is multiplied by a scale. Here the reward is as it is and alpha = 1 / scale:
  the same policy, with Q and V in units of the return. (A network gets to 300 sooner than to 30 * 300.)
- Stein direction. Theirs moves tanh'd actions towards the density of actions BEFORE tanh, so that the sampler would end
  at exp(Q / alpha) * prod(1 - a^2). Here all is before tanh, on u with a = tanh(u): kernel, distances, gradient and
  density, exp(Q / alpha) * prod(1 - tanh(u)^2). Then a has the density exp(Q / alpha), and a saturated tanh does not
  stop the gradient.
- V's actions. Theirs shares one draw of actions in the batch. Here each state has its own: independent errors average.
- First actions. Theirs come from the untrained sampler. Here they are uniform, as in the other scripts.
- Evaluation. Theirs samples. Here, as for all systems of Fig. 3, it is deterministic: the one with the highest Q of
  EVAL_PARTICLES actions of the sampler. --no-eval-deterministic takes one.

Logs, checkpoints and resume are off_policy.py's.
"""

import copy
import functools
import math
import sys
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from off_policy import Agent, OffPolicyArgs, main, meow, train

# alpha = 1 / the reward scale of the authors' launcher, examples/mujoco_all_sql.py, there for v2 and rllab's Humanoid;
# their later code (rail-berkeley/softlearning) has the same scales for gym's five. Other environments: 1/30, that of
# Swimmer, the launcher's default. What the launcher shares among environments are the defaults of Args; its buffer of
# 1e7 for HalfCheetah is left out.
DEFAULT_ALPHA = 1 / 30
PAPER_ALPHA = {
    "Hopper-v4": 1 / 30,
    "HalfCheetah-v4": 1 / 30,
    "Walker2d-v4": 1 / 10,
    "Ant-v4": 1 / 300,
    "Humanoid-v4": 1 / 100,
}
HIDDEN = 128  # units of each of the two hidden layers of both networks
EVAL_PARTICLES = 32
MIN_BANDWIDTH = 1e-3  # of the kernel, where particles coincide


@dataclass
class Args(OffPolicyArgs):
    exp_name: str = "sql"  # the name of this experiment
    batch_size: int = 128  # transitions per update
    learning_starts: int = 1_000  # step to start learning; uniform actions before
    learning_rate: float = 3e-4  # the learning rate of Adam, for the Q-network and for the sampler
    alpha: float | None = None  # temperature of pi = exp((Q - V) / alpha) (None: 1 / the authors' reward scale)
    value_particles: int = 16  # uniform actions per state for its soft value (Eq. 10)
    kernel_particles: int = 16  # actions per state for Eq. 13: half of them are moved, half stay and say where to
    target_update_interval: int = 1_000  # updates between two copies of the Q-network to its target

    def __post_init__(self):
        super().__post_init__()
        self.fill({"alpha": PAPER_ALPHA.get(meow.paper_row(self.env_id), DEFAULT_ALPHA)})

    def rules(self):
        even = self.kernel_particles >= 4 and self.kernel_particles % 2 == 0
        return {
            "--value-particles must be at least 1": self.value_particles >= 1,
            "--kernel-particles must be an even number of at least 4": even,
            "--target-update-interval must be at least 1": self.target_update_interval >= 1,
        }


class ParticleMLP(nn.Module):
    """An MLP of a state and K vectors each: obs (B, S), particles (B, K, A) -> (B, K, out_dim).

    Two hidden layers of ReLUs; Xavier initialisation and zero biases, as in the authors' code.
    SPEED: the state's part of the first layer is computed once for its K particles.
    """

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
        x = F.relu(self.obs_in(obs)[:, None] + self.particles_in(particles))
        return self.out(F.relu(self.hidden(x)))


def soft_value(q, alpha, act_dim):
    """V(s) estimated from Q of M actions that were drawn uniformly in [-1,1]^A: q (B, M) -> (B, 1), in q's units.

    It goes to alpha * log integral exp(Q(s,a) / alpha) da as M grows, from below on average.
    """
    log_density = -act_dim * math.log(2)  # of the proposal
    log_mean = torch.logsumexp(q / alpha - log_density, dim=1, keepdim=True) - math.log(q.shape[1])
    return alpha * log_mean  # Eq. 10


def log_det_tanh(u):
    """log|det d tanh(u)/du| by the formula that does not round to log 0: (..., A) -> (...)."""
    return (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(dim=-1)


def stein_direction(fixed, moved, score):
    """Where SVGD moves particles, averaged over the fixed ones: (B, N, A), (B, M, A), score (B, N, A) -> (B, M, A).

    score: the gradient of the wanted log-density at the fixed ones. The kernel is exp(-distance^2 / h) with
    h = median distance^2 / log N in each state (Liu & Wang 2016): N particles at the median distance weigh 1 in all.
    """
    diff = fixed[:, :, None] - moved[:, None]  # (B, N, M, A)
    dist_sq = diff.square().sum(dim=-1, keepdim=True)
    median = dist_sq.flatten(1).median(dim=1).values[:, None, None, None]
    h = (median / math.log(fixed.shape[1])).clamp(min=MIN_BANDWIDTH)
    kernel = torch.exp(-dist_sq / h)
    kernel_grad = -2 / h * diff * kernel  # with respect to the fixed ones: drives particles apart
    return (kernel * score[:, :, None] + kernel_grad).mean(dim=1)  # Eq. 13 / alpha


class SQL(Agent):
    """The Q-network, its target and the sampler f, with an Adam for Q and one for f."""

    def __init__(self, args, obs_dim, act_dim):
        super().__init__()
        self.args, self.act_dim = args, act_dim
        self.q = ParticleMLP(obs_dim, act_dim, 1)
        self.sampler = ParticleMLP(obs_dim, act_dim, act_dim)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        q_adam = torch.optim.Adam(self.q.parameters(), args.learning_rate)
        self.optimizers = [q_adam, torch.optim.Adam(self.sampler.parameters(), args.learning_rate)]

    def sample(self, obs, k):
        """k samples per state BEFORE tanh, each from noise N(0, I_A): (B, S) -> (B, k, A)."""
        return self.sampler(obs, torch.randn(len(obs), k, self.act_dim, device=obs.device))

    def act(self, obs, deterministic=False):
        """Actions: (B, S) -> (B, A). deterministic: of EVAL_PARTICLES samples the one with the highest Q."""
        act = torch.tanh(self.sample(obs, EVAL_PARTICLES if deterministic else 1))
        if deterministic:
            act = act.take_along_dim(self.q(obs, act).argmax(dim=1, keepdim=True), dim=1)
        return act[:, 0]

    def q_loss(self, data):
        """Transitions -> the loss of Q () and the mean Q of the batch ()."""
        with torch.no_grad():
            shape = len(data.obs), self.args.value_particles, self.act_dim
            act = torch.empty(shape, device=data.obs.device)
            next_q = self.target_q(data.next_obs, act.uniform_(-1, 1)).squeeze(dim=2)
            next_v = soft_value(next_q, self.args.alpha, self.act_dim)
            target_q = data.reward + self.args.gamma * (1 - data.terminated) * next_v  # only termination cuts
        q = self.q(data.obs, data.u[:, None]).squeeze(dim=2)
        return 0.5 * (q - target_q).square().mean(), q.detach().mean()  # Eq. 11

    def sampler_loss(self, obs):
        """(B, S) -> a loss () whose gradient is Eq. 14's, and the mean length of the Stein direction ()."""
        with torch.no_grad():
            fixed = self.sample(obs, self.args.kernel_particles // 2)
        fixed.requires_grad_()
        q = self.q(obs, torch.tanh(fixed)).squeeze(dim=2)
        log_p = q / self.args.alpha + log_det_tanh(fixed)  # of u, up to V
        (score,) = torch.autograd.grad(log_p.sum(), fixed)
        moved = self.sample(obs, self.args.kernel_particles // 2)
        direction = stein_direction(fixed.detach(), moved.detach(), score)
        return -(direction * moved).sum(dim=(1, 2)).mean(), direction.norm(dim=2).mean()  # Eq. 14

    def update(self, data):
        """A step of Q on Eq. 11, a step of the sampler on Eq. 14 and, at its time, a copy of Q to the target."""
        qf_loss, q = self.q_loss(data)
        self.step(self.optimizers[0], qf_loss)
        sampler_loss, stein_norm = self.sampler_loss(data.obs)
        self.step(self.optimizers[1], sampler_loss)
        self.updates += 1
        if self.updates % self.args.target_update_interval == 0:
            self.target_q.load_state_dict(self.q.state_dict())
        return {"qf_loss": qf_loss.detach(), "qf1_values": q, "stein_norm": stein_norm}

    @staticmethod
    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    sys.exit(main(Args, functools.partial(train, make_agent=SQL)))
