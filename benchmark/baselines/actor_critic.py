"""MEow's actor-critic counterparts (Fig. A2), SAC among them, and SAC with reward shifting (Fig. A4).

    python benchmark/baselines/actor_critic.py --critic energy --actor gaussian    # ECGA, is SAC
    python benchmark/baselines/actor_critic.py --critic flow --actor flow --lrs    # FCFA

Two networks where MEow has one: a critic Q_k(s,a), k = 1, 2, and an actor pi(a|s), trained as in
soft actor-critic (SAC, Haarnoja et al. 2018, arXiv 1812.05905):

    V(s')  = min_k Q_target_k(s',a') - alpha * log pi(a'|s'),  a' ~ pi(.|s')  (SAC's, of one sample)
    critic:  E[ sum_k 1/2 * (Q_k(s,a) - (r + gamma * (1 - terminated) * V(s')))^2 ]   (Eq. 9, that V)
    actor:   E[ alpha * log pi(a|s) - min_k Q_k(s,a) ],  a ~ pi(.|s)         (SAC's policy objective)
    alpha:   E[ -alpha * (log pi(a|s) - A) ],  towards an entropy of -A (SAC's temperature objective)

The flow critic is MEow's Q (Eq. 8). It knows its own V exactly and could sample its own policy;
that this script estimates the one by the actor and trains the actor for the other is what Fig. A2
compares with MEow. alpha is a factor of its Q, so it is MEow's constant there. Without --lrs its Q
is at most 10.8 * alpha * A, all that the log-determinant of tanh can give: 8.1 on Hopper-v4, where
returns are hundreds. The flow actor is the same flow, a density only.
"""

import copy
import functools
import math
import sys
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
from off_policy import OffPolicyArgs, gradient_step, log_det_tanh, main, meow, paper_settings, train


@dataclass
class Args(OffPolicyArgs):
    exp_name: str | None = None  # its name (None: ecga, ecfa, fcga or fcfa, with --lrs and _lrs)
    learning_starts: int | None = None  # step to start learning (None: MEow's for --env-id)
    critic: Literal["energy", "flow"] = "energy"  # two MLPs Q_k(s,a), or MEow's flow
    actor: Literal["gaussian", "flow"] = "gaussian"  # u is Gaussian, or by MEow's additive flow
    lrs: bool = False  # adds shifts b_k(s) to Q_k (Sec. 3.2); the flow critic has one Q without
    critic_learning_rate: float | None = None  # of its Adam (None: energy 3e-4, A2; flow 1e-3, A1)
    actor_learning_rate: float = 3e-4  # of Adam for the actor and for log alpha (Table A2)
    max_grad_norm: float | None = None  # of the critic's (None: energy no clipping; flow 30, A1)
    tau: float | None = None  # target smoothing (None: energy 0.005; flow MEow's for --env-id)
    alpha: float | None = None  # temperature (None: energy learnt from 1 on; flow MEow's, A3)
    rules = ("0 < critic_learning_rate < inf", "0 < actor_learning_rate < inf")

    def __post_init__(self):
        super().__post_init__()
        settings = paper_settings(self.env_id)
        settings |= {"critic_learning_rate": 1e-3, "max_grad_norm": 30.0}
        if self.critic == "energy":
            settings |= {"critic_learning_rate": 3e-4, "max_grad_norm": None}
            settings |= {"tau": 0.005, "alpha": None}
        settings["exp_name"] = f"{self.critic[0]}c{self.actor[0]}a" + "_lrs" * self.lrs
        self.fill(settings)


# ALGO LOGIC: initialize agent here:
def relu_mlp(in_dim, out_dim):
    """SAC's network: in_dim -> 256 -> 256 -> out_dim with ReLU."""
    layers = meow.Linear(in_dim, 256), nn.ReLU(), meow.Linear(256, 256), nn.ReLU()
    return nn.Sequential(*layers, meow.Linear(256, out_dim))


class EnergyCritic(nn.Module):
    """Q_k(s,a), k = 1, 2, each an MLP; with `lrs` Q_k(s,a) + b_k(s), whose policy is the same."""

    def __init__(self, obs_dim, act_dim, lrs):
        super().__init__()
        self.energies = nn.ModuleList()
        self.shifts = nn.ModuleList()  # b1, b2
        for _ in range(2):
            self.energies.append(relu_mlp(obs_dim + act_dim, 1))
            if lrs:
                self.shifts.append(meow.MLP(obs_dim, 256, 1, nn.init.zeros_))

    def get_q(self, obs, act, dropout=None):
        """(B, S), (B, A) -> (B, 2), in units of the soft return. It has no dropout."""
        x = torch.cat([obs, act], dim=1)
        q = torch.cat([energy(x) for energy in self.energies], dim=1)
        if len(self.shifts) > 0:
            q = q + torch.cat([b(obs) for b in self.shifts], dim=1)  # Sec. 3.2
        return q


class FlowCritic(meow.FlowPolicy):
    """Q_k(s,a) by MEow's flow, of actions after tanh, clamped as in the authors' code."""

    def get_q(self, obs, act, dropout=None):
        """(B, S), (B, A) -> (B, K), in units of the soft return. See FlowPolicy.get_q."""
        return super().get_q(obs, self.pre_tanh(act), dropout)


class Actor(nn.Module):
    """A policy a = tanh(u), u = f(z|s), z ~ N(0, I). Gaussian as in SAC: u ~ N(mean(s), std(s)^2),
    log std(s) in [-20, 2]; or, given a flow, by its sampling direction."""

    def __init__(self, obs_dim, act_dim, flow=None):
        super().__init__()
        self.act_dim, self.flow = act_dim, flow
        self.gaussian = relu_mlp(obs_dim, 2 * act_dim) if flow is None else None

    def forward(self, obs, z):
        """(B, S), (B, A) -> u (B, A) and log scale(s) (B, A), whose sum is f's log-determinant."""
        if self.flow is not None:  # additive couplings preserve volume
            return self.flow(obs, z), self.flow.log_sigma(obs)
        mean, log_std = self.gaussian(obs).chunk(2, dim=1)
        log_std = log_std.clamp(-20, 2)
        return mean + log_std.exp() * z, log_std

    def act(self, obs, deterministic=False):
        """(B, S) -> (B, A) in [-1,1]. deterministic: that of z = 0, the mode of u's density."""
        z = obs.new_zeros(len(obs), self.act_dim)
        if not deterministic:
            z.normal_()
        u, _ = self(obs, z)
        return torch.tanh(u)

    def sample(self, obs):
        """An action and its log-density, differentiable in both: (B, S) -> (B, A), (B,). It starts
        from z, for atanh(a) would lose digits and gradient where tanh saturates."""
        z = obs.new_zeros(len(obs), self.act_dim).normal_()
        u, log_scale = self(obs, z)
        log_p_z = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        log_prob = (log_p_z - log_scale).sum(dim=1) - log_det_tanh(u)
        return torch.tanh(u), log_prob


class ActorCritic(nn.Module):
    """Critic, its target, actor, log alpha, and an Adam for each of them that learns."""

    def __init__(self, args, obs_dim, act_dim):
        super().__init__()
        self.args, self.act_dim = args, act_dim
        row = paper_settings(args.env_id)
        sigmas = row["sigma_min"], row["sigma_max"]
        flow = None
        if args.critic == "flow":
            critic = FlowCritic(obs_dim, act_dim, args.alpha, *sigmas, num_shifts=2 * args.lrs)
        else:
            critic = EnergyCritic(obs_dim, act_dim, args.lrs)
        if args.actor == "flow":  # of which Q and so alpha are not used
            flow = meow.FlowPolicy(obs_dim, act_dim, 1.0, *sigmas, num_shifts=0)
        self.actor = Actor(obs_dim, act_dim, flow)
        self.act = self.actor.act
        self.critic = meow.flatten(critic)
        self.target = meow.flatten(copy.deepcopy(critic)).requires_grad_(False)
        log_alpha = torch.tensor(math.log(args.alpha or 1.0))
        self.log_alpha = nn.Parameter(log_alpha, requires_grad=args.alpha is None)
        # SPEED: fused, an Adam step of the flow takes 0.5 ms, not 2.5
        adam = functools.partial(torch.optim.Adam, fused=True)
        self.optimizers = [
            adam(critic.parameters(), args.critic_learning_rate),
            adam(self.actor.parameters(), args.actor_learning_rate),
            adam([self.log_alpha], args.actor_learning_rate),
        ]

    def update(self, data):
        """A step of critic, actor, alpha and target. Returns {name of a loss: tensor ()}."""
        args = self.args
        alpha = self.log_alpha.exp().detach()
        critic_adam, actor_adam, alpha_adam = self.optimizers
        with torch.no_grad():
            next_act, next_log_prob = self.actor.sample(data.next_obs)
            # clipped double Q, which is SCDQ with the flow
            next_q = self.target.get_q(data.next_obs, next_act).min(dim=1).values
            # SAC's soft value, also of the flow, whose V is exact
            next_v = (next_q - alpha * next_log_prob)[:, None]
            # only termination cuts the bootstrap
            target_q = data.reward + args.gamma * (1 - data.terminated) * next_v
        dropout = None
        if args.critic == "flow":
            dropout = meow.dropout_masks(self.critic, len(data.obs))
        q = self.critic.get_q(data.obs, data.u, dropout)
        qf_loss = 0.5 * (q - target_q).square().sum(dim=1).mean()  # Eq. 9 with SAC's soft value
        grad_norm = gradient_step(critic_adam, qf_loss, args.max_grad_norm or math.inf)

        act, log_prob = self.actor.sample(data.obs)
        actor_q = self.critic.get_q(data.obs, act).min(dim=1).values
        actor_loss = (alpha * log_prob - actor_q).mean()  # policy objective
        gradient_step(actor_adam, actor_loss)

        if args.alpha is None:
            entropy_gap = (log_prob.detach() - self.act_dim).mean()  # from the entropy to -A
            gradient_step(alpha_adam, -self.log_alpha.exp() * entropy_gap)  # temperature's

        self.target.vector.lerp_(self.critic.vector, args.tau)
        losses = {
            "qf_loss": qf_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "entropy": -log_prob.detach().mean(),
            "alpha": alpha,
            "grad_norm": grad_norm,
        }
        for k, q_k in enumerate(q.detach().mean(dim=0)):
            losses[f"qf{k + 1}_values"] = q_k
        return losses


if __name__ == "__main__":
    sys.exit(main(Args, functools.partial(train, ActorCritic)))
