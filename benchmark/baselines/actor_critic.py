"""MEow's actor-critic counterparts (the paper's Fig. A2), SAC among them, and SAC with reward shifting (Fig. A4).

    python benchmark/baselines/actor_critic.py --critic energy --actor gaussian          # ECGA, which is SAC
    python benchmark/baselines/actor_critic.py --critic energy --actor flow              # ECFA
    python benchmark/baselines/actor_critic.py --critic flow --actor gaussian --lrs      # FCGA
    python benchmark/baselines/actor_critic.py --critic flow --actor flow --lrs          # FCFA
    python benchmark/baselines/actor_critic.py --critic energy --actor gaussian --lrs    # SAC + LRS

Two networks where MEow has one: a critic Q_k(s,a), k = 1, 2, and an actor pi(a|s), trained as in soft actor-critic
(SAC, Haarnoja et al. 2018, arXiv 1812.05905):

    V(s')  = min_k Q_target_k(s',a') - alpha * log pi(a'|s'),  a' ~ pi(.|s')         (SAC's soft value, one sample)
    critic:  E[ sum_k 1/2 * (Q_k(s,a) - (r + gamma * (1 - terminated) * V(s')))^2 ]   (Eq. 9 with that V)
    actor:   E[ alpha * log pi(a|s) - min_k Q_k(s,a) ],  a ~ pi(.|s)                  (SAC's policy objective)
    alpha:   E[ -alpha * (log pi(a|s) - A) ],  towards an entropy of -A               (SAC's temperature objective)

The flow critic is MEow's Q (Eq. 8). It knows its own V exactly and could sample its own policy; that this script
estimates the one by the actor and trains the actor for the other is what Fig. A2 compares with MEow. alpha is a factor
of its Q, so it is MEow's constant there. Without --lrs its Q is at most 10.8 * alpha * A, all that the log-determinant
of tanh can give: 8.1 on Hopper-v4, where returns are hundreds. The flow actor is the same flow, a density only.

The flow is meow_continuous_action.py's. Loop, replay buffer, evaluation, logs and resume: off_policy.py.
"""

import copy
import functools
import math
import sys
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
from off_policy import Agent, OffPolicyArgs, main, meow, paper_settings, train


@dataclass
class Args(OffPolicyArgs):
    exp_name: str | None = None  # its name (None: ecga, ecfa, fcga or fcfa, ending in _lrs with --lrs)
    learning_starts: int | None = None  # step to start learning; uniform actions before (None: MEow's for --env-id)
    critic: Literal["energy", "flow"] = "energy"  # two MLPs Q_k(s,a), or MEow's flow
    actor: Literal["gaussian", "flow"] = "gaussian"  # the action before tanh: a Gaussian, or MEow's additive flow
    lrs: bool = False  # reward shifting (Sec. 3.2): adds b_k(s) to Q_k; the flow critic has one Q without, two with it
    critic_learning_rate: float | None = None  # of the critic's Adam (None: energy 3e-4, Table A2; flow 1e-3, A1)
    actor_learning_rate: float = 3e-4  # of Adam for the actor and for log alpha (Table A2)
    max_grad_norm: float | None = None  # of the critic's gradient (None: energy no clipping, Table A2; flow 30, A1)
    tau: float | None = None  # target smoothing coefficient (None: energy 0.005; flow MEow's for --env-id, Table A3)
    # temperature (None: energy learnt, from 1 on, for a target entropy of -A; flow MEow's for --env-id, Table A3)
    alpha: float | None = None
    sigma_min: float | None = None  # lower bound of log sigma(s) of each flow (None: MEow's for --env-id, Table A3)
    sigma_max: float | None = None  # upper bound of log sigma(s) of each flow (None: MEow's for --env-id, Table A3)

    def __post_init__(self):
        super().__post_init__()
        row = paper_settings(self.env_id)
        settings = {"learning_starts": row["learning_starts"]}
        settings["exp_name"] = f"{self.critic[0]}c{self.actor[0]}a" + "_lrs" * self.lrs
        if self.critic == "energy":
            settings |= {"critic_learning_rate": 3e-4, "tau": 0.005}
        else:
            settings |= {"critic_learning_rate": 1e-3, "max_grad_norm": 30.0}
            settings |= {"tau": row["tau"], "alpha": row["alpha"]}
        if "flow" in (self.critic, self.actor):
            settings |= {"sigma_min": row["sigma_min"], "sigma_max": row["sigma_max"]}
        self.fill(settings)

    def rules(self):
        used = "flow" in (self.critic, self.actor) or self.sigma_min is self.sigma_max is None
        return {
            "--critic-learning-rate must be a finite number above 0": 0 < self.critic_learning_rate < math.inf,
            "--actor-learning-rate must be a finite number above 0": 0 < self.actor_learning_rate < math.inf,
            "--sigma-min and --sigma-max must be given with --critic flow or --actor flow only": used,
        }


# ALGO LOGIC: initialize agent here:
def relu_mlp(in_dim, out_dim):
    """SAC's network: in_dim -> 256 -> 256 -> out_dim with ReLU."""
    layers = meow.Linear(in_dim, 256), meow.Linear(256, 256), meow.Linear(256, out_dim)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class EnergyCritic(nn.Module):
    """Q_k(s,a), k = 1, 2, each an MLP; with `lrs` Q_k(s,a) + b_k(s), whose policy exp(Q / alpha) / Z is the same."""

    def __init__(self, obs_dim, act_dim, lrs):
        super().__init__()
        self.energies = nn.ModuleList([relu_mlp(obs_dim + act_dim, 1) for _ in range(2)])
        self.shifts = nn.ModuleList()  # b1, b2
        for _ in range(2 if lrs else 0):
            self.shifts.append(meow.MLP(obs_dim, 256, 1, nn.init.zeros_))

    def get_q(self, obs, act):
        """(B, S), (B, A) -> (B, 2), in units of the soft return."""
        x = torch.cat([obs, act], dim=1)
        q = torch.cat([energy(x) for energy in self.energies], dim=1)
        if len(self.shifts) > 0:
            q = q + torch.cat([b(obs) for b in self.shifts], dim=1)  # Sec. 3.2
        return q


class FlowCritic(meow.FlowPolicy):
    """Q_k(s,a) by MEow's flow, of actions after tanh: clamped 1e-5 from the bounds, as in the authors' code."""

    def get_q(self, obs, act, dropout=None):
        """(B, S), (B, A) -> (B, max(1, num_shifts)), in units of the soft return. See FlowPolicy.get_q."""
        return super().get_q(obs, self.pre_tanh(act), dropout)


class Actor(nn.Module):
    """A policy a = tanh(u), u = f(z|s), z ~ N(0, I), whose f has the log-determinant `sum log scale(s)`."""

    def forward(self, obs, z):
        """(B, S), (B, A) -> u (B, A) and log scale(s) (B, A)."""
        raise NotImplementedError

    def act(self, obs, deterministic=False):
        """(B, S) -> (B, A) in [-1,1]. deterministic: the action of z = 0, tanh of the mode of u's density."""
        z = obs.new_zeros(len(obs), self.act_dim)
        return torch.tanh(self(obs, z if deterministic else torch.randn_like(z))[0])

    def sample(self, obs):
        """An action and the log-density of that very action, differentiable in both: (B, S) -> (B, A), (B,).

        The density is that of z over all Jacobians on the way to a; atanh(a) would lose digits and gradient where
        tanh saturates.
        """
        z = torch.randn(len(obs), self.act_dim, dtype=obs.dtype, device=obs.device)
        u, log_scale = self(obs, z)
        log_p_z = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        log_det_tanh = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2), without overflow
        return torch.tanh(u), (log_p_z - log_scale - log_det_tanh).sum(dim=1)


class GaussianActor(Actor):
    """u ~ N(mean(s), std(s)^2) with log std(s) in [-20, 2], as in SAC."""

    def __init__(self, obs_dim, act_dim):
        super().__init__()
        self.act_dim, self.net = act_dim, relu_mlp(obs_dim, 2 * act_dim)

    def forward(self, obs, z):
        mean, log_std = self.net(obs).chunk(2, dim=1)
        log_std = log_std.clamp(-20, 2)
        return mean + log_std.exp() * z, log_std


class FlowActor(Actor):
    """u by MEow's flow in its sampling direction, without dropout. Additive couplings preserve volume."""

    def __init__(self, obs_dim, act_dim, sigma_min, sigma_max):
        super().__init__()
        # alpha is a factor of the flow's Q, which is not used here
        self.act_dim = act_dim
        self.flow = meow.FlowPolicy(obs_dim, act_dim, 1.0, sigma_min, sigma_max, num_shifts=0)

    def forward(self, obs, z):
        return self.flow(obs, z), self.flow.log_sigma(obs)


class ActorCritic(Agent):
    """Critic, its target, actor, log alpha, and an Adam for each of them that learns."""

    def __init__(self, args, obs_dim, act_dim):
        super().__init__()
        self.args, self.act_dim = args, act_dim
        if args.critic == "flow":
            shifts = 2 if args.lrs else 0
            flow = args.alpha, args.sigma_min, args.sigma_max
            self.critic = FlowCritic(obs_dim, act_dim, *flow, num_shifts=shifts)
        else:
            self.critic = EnergyCritic(obs_dim, act_dim, args.lrs)
        if args.actor == "flow":
            self.actor = FlowActor(obs_dim, act_dim, args.sigma_min, args.sigma_max)
        else:
            self.actor = GaussianActor(obs_dim, act_dim)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        log_alpha = torch.tensor(math.log(args.alpha or 1.0))
        self.log_alpha = nn.Parameter(log_alpha, requires_grad=args.alpha is None)
        # SPEED: fused, an Adam step of the flow takes 0.5 ms, not 2.5
        critic_adam = torch.optim.Adam(self.critic.parameters(), args.critic_learning_rate, fused=True)
        actor_adam = torch.optim.Adam(self.actor.parameters(), args.actor_learning_rate, fused=True)
        self.optimizers = [critic_adam, actor_adam]
        if args.alpha is None:
            self.optimizers.append(torch.optim.Adam([self.log_alpha], args.actor_learning_rate, fused=True))

    def act(self, obs, deterministic=False):
        return self.actor.act(obs, deterministic)

    def update(self, data):
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_act, next_log_prob = self.actor.sample(data.next_obs)
            next_q = self.target.get_q(data.next_obs, next_act).min(dim=1).values  # clipped double Q, SCDQ
            # SAC's soft value, also of the flow, whose V is exact
            next_v = (next_q - alpha * next_log_prob)[:, None]
            target_q = data.reward + self.args.gamma * (1 - data.terminated) * next_v  # only termination cuts it
        if self.args.critic == "flow":
            q = self.critic.get_q(data.obs, data.u, meow.dropout_masks(self.critic, len(data.obs)))
        else:
            q = self.critic.get_q(data.obs, data.u)
        qf_loss = 0.5 * (q - target_q).square().sum(dim=1).mean()  # Eq. 9 with SAC's soft value
        grad_norm = step(self.optimizers[0], qf_loss, self.args.max_grad_norm or math.inf)

        act, log_prob = self.actor.sample(data.obs)
        actor_q = self.critic.get_q(data.obs, act).min(dim=1).values
        actor_loss = (alpha * log_prob - actor_q).mean()  # policy objective
        actor_grad_norm = step(self.optimizers[1], actor_loss)

        if self.args.alpha is None:
            entropy_gap = (log_prob.detach() - self.act_dim).mean()  # from the policy's entropy to -A
            step(self.optimizers[2], -self.log_alpha.exp() * entropy_gap)  # temperature objective

        with torch.no_grad():
            for param, target in zip(self.critic.parameters(), self.target.parameters(), strict=True):
                target.lerp_(param, self.args.tau)
        losses = {"qf_loss": qf_loss.detach(), "grad_norm": grad_norm}
        losses |= {"actor_loss": actor_loss.detach(), "actor_grad_norm": actor_grad_norm}
        losses |= {"entropy": -log_prob.detach().mean(), "alpha": alpha}
        for k, q_k in enumerate(q.detach().mean(dim=0)):
            losses[f"qf{k + 1}_values"] = q_k
        return losses


def step(optimizer, loss, max_grad_norm=math.inf):
    """A step of an optimizer on the gradients of its own parameters alone. Returns their norm () before clipping."""
    (group,) = optimizer.param_groups
    optimizer.zero_grad()
    loss.backward(inputs=group["params"])  # not autograd.grad: fused Adam needs gradients laid out as the parameters
    grad_norm = torch.nn.utils.clip_grad_norm_(group["params"], max_grad_norm)
    optimizer.step()
    return grad_norm


if __name__ == "__main__":
    sys.exit(main(Args, functools.partial(train, make_agent=ActorCritic)))
