"""MEow's actor-critic counterparts (the paper's Fig. A2), SAC among them, and SAC with reward shifting (Fig. A4).

    python benchmark/actor_critic_continuous_action.py --critic energy --actor gaussian          # ECGA, which is SAC
    python benchmark/actor_critic_continuous_action.py --critic energy --actor flow              # ECFA
    python benchmark/actor_critic_continuous_action.py --critic flow --actor gaussian --lrs      # FCGA
    python benchmark/actor_critic_continuous_action.py --critic flow --actor flow --lrs          # FCFA
    python benchmark/actor_critic_continuous_action.py --critic energy --actor gaussian --lrs    # SAC + LRS

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

Loop, replay buffer, evaluation, logs and resume: off_policy.py. The flow's classes are repeated word for word from
meow_continuous_action.py (a test compares them).
"""

# ruff: noqa: B905 (the repeated classes run on Python 3.8 too, which has no zip(strict=))

import copy
import functools
import math
import sys
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
from off_policy import Agent, OffPolicyArgs, main, meow, train


@dataclass
class Args(OffPolicyArgs):
    exp_name: str | None = None
    """the name of this experiment (None: ecga, ecfa, fcga or fcfa, ending in _lrs with --lrs)"""
    total_timesteps: int | None = None
    """total timesteps of the experiments (None: the paper's of MEow for --env-id)"""
    learning_starts: int | None = None
    """timestep to start learning; uniform actions before (None: the paper's of MEow for --env-id)"""
    critic: Literal["energy", "flow"] = "energy"
    """two MLPs Q_k(s,a), or MEow's flow"""
    actor: Literal["gaussian", "flow"] = "gaussian"
    """the distribution of the action before tanh: a Gaussian, or MEow's flow with additive couplings"""
    lrs: bool = False
    """learnable reward shifting (Sec. 3.2): adds b_k(s) to Q_k; the flow critic has one Q without, two with it"""
    critic_learning_rate: float | None = None
    """the learning rate of the critic's Adam (None: energy 3e-4, Table A2; flow 1e-3, Table A1)"""
    actor_learning_rate: float = 3e-4
    """the learning rate of Adam for the actor and for log alpha (Table A2)"""
    max_grad_norm: float | None = None
    """the maximum norm of the critic's gradient (None: energy no clipping, Table A2; flow 30, Table A1)"""
    tau: float | None = None
    """target smoothing coefficient (None: energy 0.005; flow MEow's for --env-id, Table A3)"""
    alpha: float | None = None
    """temperature (None: energy learnt, from 1 on, for a target entropy of -A; flow MEow's for --env-id, Table A3)"""
    sigma_min: float | None = None
    """lower bound of log sigma(s) of each flow (None: MEow's for --env-id, Table A3)"""
    sigma_max: float | None = None
    """upper bound of log sigma(s) of each flow (None: MEow's for --env-id, Table A3)"""

    def __post_init__(self):
        super().__post_init__()
        row = meow.SHARED_SETTINGS | meow.PAPER_SETTINGS.get(meow.paper_row(self.env_id), {})
        settings = {name: row[name] for name in ("total_timesteps", "learning_starts")}
        settings["exp_name"] = f"{self.critic[0]}c{self.actor[0]}a" + "_lrs" * self.lrs
        if self.critic == "energy":
            settings |= {"critic_learning_rate": 3e-4, "tau": 0.005}
        else:
            settings |= {"critic_learning_rate": 1e-3, "max_grad_norm": 30.0, "tau": row["tau"], "alpha": row["alpha"]}
        if "flow" in (self.critic, self.actor):
            settings |= {name: row[name] for name in ("sigma_min", "sigma_max")}
        for name, value in settings.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def check(self):
        """Raises UsageError for values of the flags above that no run can have."""
        if "flow" not in (self.critic, self.actor):
            if (self.sigma_min, self.sigma_max) != (None, None):
                raise meow.UsageError("--sigma-min and --sigma-max are allowed with --critic flow or --actor flow only")
        elif not -math.inf < self.sigma_min < self.sigma_max < math.inf:
            numbers = f"got {self.sigma_min} and {self.sigma_max}"
            raise meow.UsageError(f"--sigma-min must be below --sigma-max, both finite, {numbers}")
        for names, allowed, is_allowed in [
            (("critic",), "energy or flow", lambda x: x in ("energy", "flow")),
            (("actor",), "gaussian or flow", lambda x: x in ("gaussian", "flow")),
            (("critic_learning_rate", "actor_learning_rate"), "a finite number above 0", lambda x: 0 < x < math.inf),
            (("max_grad_norm", "alpha"), "a finite number above 0", lambda x: x is None or 0 < x < math.inf),
            (("tau",), "above 0 and at most 1", lambda x: 0 < x <= 1),
        ]:
            for name in names:
                if not is_allowed(getattr(self, name)):
                    raise meow.UsageError(f"--{name.replace('_', '-')} must be {allowed}, got {getattr(self, name)}")


def describe_settings(args):
    """One line a setting that depends on --critic, --actor or --env-id: what the run resolved it to."""
    row = meow.paper_row(args.env_id)
    source = f"the paper's settings for {row}" if row else f"{args.env_id} is not in the paper, so shared defaults"
    lines = [f"{args.critic} critic{' with reward shifting' * args.lrs}, {args.actor} actor; {source}; flags win"]
    meaning_of_none = {"max_grad_norm": "no clipping", "alpha": "learnt, for a target entropy of -A"}
    names = ("total_timesteps", "learning_starts", "critic_learning_rate", "actor_learning_rate", "max_grad_norm")
    for name in (*names, "tau", "alpha", "sigma_min", "sigma_max"):
        value = getattr(args, name)
        lines.append(f"  {name} = {meaning_of_none.get(name, 'not used') if value is None else f'{value:,}'}")
    return "\n".join(lines)


# ALGO LOGIC: initialize agent here:
class Swish(nn.Module):
    """x * sigmoid(beta * x) with a learnable beta per unit, 1 at the start. (B, dim) -> (B, dim)."""

    def __init__(self, dim):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class Linear(nn.Linear):
    """nn.Linear with a bias, compiled faster if narrow or with fewer inputs than outputs. (B, in) -> (B, out)."""

    NARROW = 8

    def forward(self, x):
        if self.out_features <= self.NARROW:
            # SPEED: -8% of a compiled step: too narrow for a matrix routine, and a sum fuses with what is around it
            return (x[:, None, :] * self.weight).sum(dim=-1) + self.bias
        if self.in_features < self.out_features:
            # SPEED: through a transposed copy the weight's gradient is x^T g, not g^T x, 2-4x slower for a narrow x
            return x @ self.weight.T.contiguous() + self.bias
        return super().forward(x)


class MLP(nn.Sequential):
    """in_dim -> hidden -> hidden -> out_dim, each hidden layer: Linear, [LayerNorm], Swish, [dropout].

    init_weight initialises the weight of every Linear; the biases keep the framework's default.
    """

    def __init__(self, in_dim, hidden, out_dim, init_weight, layer_norm=False):
        layers = []
        for fan_in in (in_dim, hidden):
            layers.append(Linear(fan_in, hidden))
            if layer_norm:
                layers.append(nn.LayerNorm(hidden))
            layers.append(Swish(hidden))
        super().__init__(*layers, Linear(hidden, out_dim))
        for layer in self:
            if isinstance(layer, nn.Linear):
                init_weight(layer.weight)

    def forward(self, x, dropout=None):
        """(B, in_dim) -> (B, out_dim). dropout: a mask a hidden layer, (2, B, hidden), or None for no dropout."""
        masks = iter(()) if dropout is None else iter(dropout)
        for layer in self:
            x = layer(x)
            if dropout is not None and isinstance(layer, Swish):
                x = x * next(masks)
        return x


class CouplingLayer(nn.Module):
    """A non-linear layer of the flow (i in S_n) and hypernetwork (a), which makes its parameters from the state.

    Coordinates where mask is 1 pass unchanged, and with the state they determine the map of the others:
    u + t (additive, NICE) or u * exp(log_scale) + t (affine, RealNVP). Its Jacobian is triangular.
    """

    def __init__(self, obs_dim, act_dim, mask, affine):
        super().__init__()
        self.register_buffer("mask", mask)  # (A,)

        def hypernetwork():
            return MLP(obs_dim + act_dim, 64, act_dim, nn.init.orthogonal_, layer_norm=True)

        self.translation = hypernetwork()
        self.log_scale = hypernetwork() if affine else None

    def forward(self, u, obs):
        """Sampling direction: (B, A), (B, S) -> (B, A)."""
        x = torch.cat([self.mask * u, obs], dim=1)
        if self.log_scale is not None:
            u = u * ((1 - self.mask) * self.log_scale(x)).exp()
        return u + (1 - self.mask) * self.translation(x)

    def inverse(self, u, obs, dropout=(None, None)):
        """Density direction g^i: (B, A), (B, S) -> (B, A) and log|det J_i| (B,). dropout: masks a hypernetwork."""
        x = torch.cat([self.mask * u, obs], dim=1)
        u = u - (1 - self.mask) * self.translation(x, dropout[0])
        if self.log_scale is None:
            return u, u.new_zeros(len(u))  # additive: preserves volume
        log_scale = (1 - self.mask) * self.log_scale(x, dropout[1])
        return u * (-log_scale).exp(), -log_scale.sum(dim=1)


class FlowPolicy(nn.Module):
    """The conditional flow that is Q, V and the policy at once (Eq. 8; architecture: Fig. A6).

    Forward (sampling): z ~ N(0, I) -> linear layer sigma(s) * z -> 2 blocks x 2 couplings -> u, and a = tanh(u).
    obs is (B, S), u (B, A), a in [-1,1] (B, A); Q, V and the shifts are in units of the soft return, log_prob in nats.
    Q and log_prob are over a, but take u: where tanh saturates, a float32 a does not give u back.
    Raises ValueError if coupling is neither "additive" nor "affine" or num_shifts is not 0, 1 or 2.
    """

    def __init__(self, obs_dim, act_dim, alpha, sigma_min=-5.0, sigma_max=-0.3, coupling="additive", num_shifts=2):
        super().__init__()
        if coupling not in ("additive", "affine"):
            raise ValueError(f"coupling must be 'additive' or 'affine', got {coupling!r}")
        if num_shifts not in (0, 1, 2):
            raise ValueError(f"num_shifts must be 0, 1 or 2, got {num_shifts!r}")
        self.act_dim, self.alpha, self.sigma_min, self.sigma_max = act_dim, alpha, sigma_min, sigma_max
        mask = (torch.arange(act_dim) + 1) % 2.0  # 1, 0, 1, 0, ...
        masks = [mask, 1 - mask, mask, 1 - mask]  # 2 blocks x 2 couplings
        self.couplings = nn.ModuleList([CouplingLayer(obs_dim, act_dim, m, coupling == "affine") for m in masks])
        self.sigma_net = MLP(obs_dim, 64, act_dim, nn.init.zeros_)  # hypernetwork (b)
        self.shifts = nn.ModuleList([MLP(obs_dim, 256, 1, nn.init.zeros_) for _ in range(num_shifts)])  # b1, b2
        self.flatten()

    def flatten(self):
        """Makes all parameters views of one new vector (P,), `self.vector`. Returns self."""
        self.vector = torch.cat([param.detach().flatten() for param in self.parameters()])
        for param, view in zip(self.parameters(), self.views(self.vector).values()):
            param.data = view
        return self

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)  # to(device) and the like separate the parameters
        return self if next(self.parameters()).data_ptr() == self.vector.data_ptr() else self.flatten()

    def __setstate__(self, state):
        super().__setstate__(state)
        self.flatten()  # so do copies

    def views(self, vector, prefix=""):
        """{prefix + name: parameter} with the values of a vector (P,), as `functional_call` takes them."""
        named = dict(self.named_parameters())
        pieces = vector.split([param.numel() for param in named.values()])
        return {prefix + name: piece.view(named[name].shape) for name, piece in zip(named, pieces)}

    def log_sigma(self, obs):
        """Log of the linear layer's diagonal, in [sigma_min, sigma_max]: (B, S) -> (B, A)."""
        return self.sigma_min + 0.5 * (self.sigma_max - self.sigma_min) * (torch.tanh(self.sigma_net(obs)) + 1)

    def shift(self, obs):
        """alpha * b_k(s) of learnable reward shifting (Sec. 3.2), zero without: (B, S) -> (B, max(1, num_shifts))."""
        if len(self.shifts) == 0:
            return obs.new_zeros(len(obs), 1)
        return self.alpha * torch.cat([b(obs) for b in self.shifts], dim=1)

    def dropout_masks(self, batch):
        """Draws the masks of dropout 0.1 for `batch` rows: (couplings, hypernetworks, hidden layers 2, batch, 64)."""
        shape = (len(self.couplings), 2 if self.couplings[0].log_scale is not None else 1, 2, batch, 64)
        device = self.couplings[0].mask.device
        # SPEED: one draw of 16 random bits a unit for all masks: 0.14 ms a step, compiled nn.Dropout 1.3 ms
        bits = torch.empty(math.prod(shape) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
        dropped = round(0.1 * 2**16)
        masks = torch.empty(shape, device=device)
        torch.ge(bits.view(torch.int16).view(shape), dropped - 2**15, out=masks)
        return masks.div_(1 - dropped / 2**16)

    @staticmethod
    def pre_tanh(act):
        """u with tanh(u) = act, for actions that come from elsewhere; the paper's code keeps them 1e-5 from +-1."""
        return torch.atanh(act.clamp(-1 + 1e-5, 1 - 1e-5))

    def inverse(self, obs, u, dropout=None):
        """Non-linear layers, u (B, A) -> sigma(s) * z (B, A), log prod_{i in S_n} |det J_i(a,s)| (B,), tanh's too."""
        # d atanh(a)/da = 1/(1-a^2), and -log(1 - tanh(u)^2) = 2 log cosh(u), written so as not to overflow
        log_det = 2 * (u + nn.functional.softplus(-2 * u) - math.log(2)).sum(dim=1)
        for i, layer in reversed(list(enumerate(self.couplings))):
            u, layer_log_det = layer.inverse(u, obs) if dropout is None else layer.inverse(u, obs, dropout[i])
            log_det = log_det + layer_log_det
        return u, log_det

    def get_q(self, obs, u, dropout=None):
        """Q_b(s,a) = Q(s,a) + b_k(s), a = tanh(u), in one pass: (B, S), (B, A) -> (B, max(1, num_shifts)).

        dropout: masks of `dropout_masks(B)`, or None for no dropout.
        """
        scaled_z, log_det = self.inverse(obs, u, dropout)
        log_p_z = -0.5 * (scaled_z / self.log_sigma(obs).exp()).square().sum(dim=1)  # without p_z's constant
        q = self.alpha * (log_p_z + log_det)  # Eq. 8
        return q[:, None] + self.shift(obs)  # Sec. 3.2

    def get_v(self, obs):
        """V_b(s) = V(s) + b_k(s), not clipped: (B, S) -> (B, max(1, num_shifts)). Evaluates no coupling layer."""
        log_det = -self.log_sigma(obs).sum(dim=1)  # of z = u / sigma(s)
        v = self.alpha * (0.5 * self.act_dim * math.log(2 * math.pi) - log_det)  # Eq. 8, with p_z's constant
        return v[:, None] + self.shift(obs)  # Sec. 3.2

    def log_prob(self, obs, u):
        """log pi(a|s) = (Q(s,a) - V(s)) / alpha, a = tanh(u), in which the shifts cancel: (B, S), (B, A) -> (B,)."""
        scaled_z, log_det = self.inverse(obs, u)
        log_sigma = self.log_sigma(obs)
        log_p_z = -0.5 * (scaled_z / log_sigma.exp()).square().sum(dim=1) - 0.5 * self.act_dim * math.log(2 * math.pi)
        return log_p_z + log_det - log_sigma.sum(dim=1)

    def forward(self, obs, z):
        """Sampling direction: (B, S), z (B, A) -> u (B, A), the action before tanh."""
        u = self.log_sigma(obs).exp() * z
        for layer in self.couplings:
            u = layer(u, obs)
        return u

    def draw(self, obs, deterministic=False):
        """u of an action a = tanh(u) ~ pi(.|s), by one forward pass: (B, S) -> (B, A).

        deterministic: the forward pass of z = 0 (Sec. 3.3). With additive couplings that is the mode of the density of
        u, so tanh(u) is not quite argmax_a Q(s,a), in which tanh's log-determinant counts too.
        """
        z = obs.new_zeros(len(obs), self.act_dim)
        return self(obs, z if deterministic else torch.randn_like(z))

    def act(self, obs, deterministic=False):
        """An action as the environment takes it: (B, S) -> act (B, A). See `draw`."""
        return torch.tanh(self.draw(obs, deterministic))

    def sample(self, obs, deterministic=False):
        """An action and the log-density of that very action: (B, S) -> act (B, A), log_prob (B,)."""
        u = self.draw(obs, deterministic)
        return torch.tanh(u), self.log_prob(obs, u)


def relu_mlp(in_dim, out_dim):
    """SAC's network: in_dim -> 256 -> 256 -> out_dim with ReLU."""
    return nn.Sequential(Linear(in_dim, 256), nn.ReLU(), Linear(256, 256), nn.ReLU(), Linear(256, out_dim))


class EnergyCritic(nn.Module):
    """Q_k(s,a), k = 1, 2, each an MLP; with `lrs` Q_k(s,a) + b_k(s), whose policy exp(Q / alpha) / Z is the same."""

    def __init__(self, obs_dim, act_dim, lrs):
        super().__init__()
        self.energies = nn.ModuleList([relu_mlp(obs_dim + act_dim, 1) for _ in range(2)])
        self.shifts = nn.ModuleList([MLP(obs_dim, 256, 1, nn.init.zeros_) for _ in range(2)] if lrs else [])

    def get_q(self, obs, act):
        """(B, S), (B, A) -> (B, 2), in units of the soft return."""
        x = torch.cat([obs, act], dim=1)
        q = torch.cat([energy(x) for energy in self.energies], dim=1)
        return q + torch.cat([b(obs) for b in self.shifts], dim=1) if len(self.shifts) else q  # Sec. 3.2


class FlowCritic(FlowPolicy):
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
        self.act_dim, self.flow = act_dim, FlowPolicy(obs_dim, act_dim, 1.0, sigma_min, sigma_max, num_shifts=0)

    def forward(self, obs, z):
        log_sigma = self.flow.log_sigma(obs)
        u = log_sigma.exp() * z
        for layer in self.flow.couplings:
            u = layer(u, obs)
        return u, log_sigma


class ActorCritic(Agent):
    """Critic, its target, actor, log alpha, and an Adam for each of them that learns."""

    def __init__(self, args, obs_dim, act_dim):
        super().__init__()
        self.args, self.act_dim = args, act_dim
        if args.critic == "flow":
            flow = {"sigma_min": args.sigma_min, "sigma_max": args.sigma_max, "num_shifts": 2 if args.lrs else 0}
            self.critic = FlowCritic(obs_dim, act_dim, args.alpha, **flow)
        else:
            self.critic = EnergyCritic(obs_dim, act_dim, args.lrs)
        if args.actor == "flow":
            self.actor = FlowActor(obs_dim, act_dim, args.sigma_min, args.sigma_max)
        else:
            self.actor = GaussianActor(obs_dim, act_dim)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(args.alpha or 1.0)), requires_grad=args.alpha is None)
        rates = [(self.critic.parameters(), args.critic_learning_rate)]
        rates += [(self.actor.parameters(), args.actor_learning_rate)]
        rates += [([self.log_alpha], args.actor_learning_rate)] if args.alpha is None else []
        # SPEED: fused, an Adam step of the flow takes 0.5 ms, not 2.5
        self.optimizers = tuple(torch.optim.Adam(params, lr, fused=True) for params, lr in rates)

    def act(self, obs, deterministic=False):
        return self.actor.act(obs, deterministic)

    def update(self, data):
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_act, next_log_prob = self.actor.sample(data.next_obs)
            next_q = self.target.get_q(data.next_obs, next_act).min(dim=1).values  # clipped double Q or SCDQ, Sec. 3.2
            next_v = (next_q - alpha * next_log_prob)[:, None]  # SAC's soft value, also of the flow, whose V is exact
            target_q = data.reward + self.args.gamma * (1 - data.terminated) * next_v  # only termination cuts it
        dropout = [self.critic.dropout_masks(len(data.obs))] if self.args.critic == "flow" else []
        q = self.critic.get_q(data.obs, data.act, *dropout)
        qf_loss = 0.5 * (q - target_q).square().sum(dim=1).mean()  # Eq. 9 with SAC's soft value
        grad_norm = step(self.optimizers[0], qf_loss, self.args.max_grad_norm or math.inf)

        act, log_prob = self.actor.sample(data.obs)
        actor_loss = (alpha * log_prob - self.critic.get_q(data.obs, act).min(dim=1).values).mean()  # policy objective
        actor_grad_norm = step(self.optimizers[1], actor_loss)

        if self.args.alpha is None:
            entropy_gap = (log_prob.detach() - self.act_dim).mean()  # target entropy -A minus the policy's entropy
            step(self.optimizers[2], -self.log_alpha.exp() * entropy_gap)  # temperature objective

        with torch.no_grad():
            for param, target in zip(self.critic.parameters(), self.target.parameters(), strict=True):
                target.lerp_(param, self.args.tau)
        losses = {f"qf{k}_values": values.mean() for k, values in enumerate(q.detach().unbind(dim=1), start=1)}
        losses |= {"qf_loss": qf_loss.detach(), "grad_norm": grad_norm}
        losses |= {"actor_loss": actor_loss.detach(), "actor_grad_norm": actor_grad_norm}
        return losses | {"entropy": -log_prob.detach().mean(), "alpha": alpha}


def step(optimizer, loss, max_grad_norm=math.inf):
    """A step of an optimizer on the gradients of its own parameters alone. Returns their norm () before clipping."""
    (group,) = optimizer.param_groups
    optimizer.zero_grad()
    loss.backward(inputs=group["params"])  # not autograd.grad: fused Adam needs gradients laid out as the parameters
    grad_norm = torch.nn.utils.clip_grad_norm_(group["params"], max_grad_norm)
    optimizer.step()
    return grad_norm


def make_agent(args, obs_dim, act_dim):
    """The agent of a run, which says first what its settings are."""
    print(describe_settings(args), flush=True)
    return ActorCritic(args, obs_dim, act_dim)


if __name__ == "__main__":
    sys.exit(main(Args, functools.partial(train, make_agent=make_agent)))
