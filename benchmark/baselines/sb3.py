"""The paper's baselines SAC, TD3, DDPG and PPO: stable-baselines3 (SB3) with rl-zoo3's settings.

    python benchmark/baselines/sb3.py --algo sac --env-id Hopper-v4    # also td3, ddpg, ppo
    python benchmark/baselines/sb3.py --resume runs/NAME               # CPU: bit for bit, except ppo

Environment, evaluation, logs, checkpoints and resume are those of meow_continuous_action.py, so
that all systems of a figure are measured alike. That makes three differences to rl-zoo3:

- All agents act in [-1,1]^A. So they do with rl-zoo3, except PPO on Humanoid, whose own bounds are
  +-0.4: its initial standard deviation, exp(-2), is 0.4 times rl-zoo3's in the environment's units.
- The replay memory is meow.ReplayBuffer: float32, as the networks read, drawn from as SB3's is.
- An evaluation at step N comes before the update of step N (meow_continuous_action.py: after it).

Checkpoints are written between two rollouts: of one step, or PPO's 512 (SB3's default: 2,048), so in
the middle of an episode. A resumed run of PPO begins a new one there.
"""

import inspect
import sys
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
import torch.nn as nn
from off_policy import OffPolicyArgs, main, meow, open_run
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

ALGORITHMS = {"sac": SAC, "td3": TD3, "ddpg": DDPG, "ppo": PPO}

# hyperparams/*.yml of rl-zoo3 2.9.2, as differences from stable-baselines3 2.9.2; no schedules.
# `normalize`: VecNormalize of observations and rewards; `noise_std`: of normal action noise.
WIDE = {"log_std_init": -2, "ortho_init": False, "activation_fn": nn.ReLU, "net_arch": [256, 256]}
PPO_COLUMNS = ("learning_rate", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range")
PPO_COLUMNS += ("ent_coef", "vf_coef", "max_grad_norm", "policy_kwargs")
PPO_ROWS = {
    "Hopper-v4": (9.80828e-05, 32, 5, 0.999, 0.99, 0.2, 0.00229519, 0.835671, 0.7, WIDE),
    "HalfCheetah-v4": (2.0633e-05, 64, 20, 0.98, 0.92, 0.1, 0.000401762, 0.58096, 0.8, WIDE),
    "Walker2d-v4": (5.05041e-05, 32, 20, 0.99, 0.95, 0.1, 0.000585045, 0.871923, 1.0, {}),
    "Humanoid-v4": (3.56987e-05, 256, 5, 0.95, 0.9, 0.3, 0.00238306, 0.431892, 2.0, WIDE),
}


def zoo_row(args):
    """rl-zoo3's settings of --algo for --env-id, in any version; SAC's are the paper's Table A2."""
    env_id, row = meow.paper_row(args.env_id), {}
    if args.algo != "ppo":
        if env_id is not None:
            row["learning_starts"] = 10_000
        if args.algo != "sac":
            row["noise_std"] = 0.1
    elif env_id is not None:
        row["normalize"] = True
        if env_id in PPO_ROWS:  # the others have SB3's defaults
            row.update(zip(PPO_COLUMNS, PPO_ROWS[env_id], strict=True), n_steps=512)
    return row


@dataclass
class Args(OffPolicyArgs):
    # None: rl-zoo3's for --env-id
    algo: Literal["sac", "td3", "ddpg", "ppo"] = "sac"  # the algorithm of stable-baselines3
    exp_name: str | None = None  # the name of this experiment (None: --algo)
    buffer_size: int | None = None  # transitions in the replay buffer; ppo: steps of a rollout
    batch_size: int | None = None  # transitions per update
    learning_starts: int | None = None  # step to start learning; uniform actions before (ppo: 0)
    learning_rate: float | None = None  # the learning rate of all optimizers
    gamma: float | None = None  # the discount factor gamma
    rules = ("algo != 'ppo' or learning_starts == 0 and batch_size > 1",)
    rules += ("algo != 'ppo' or buffer_size % batch_size == 0",)
    rules += ("eval_deterministic or algo in ('sac', 'ppo')",)  # the others draw no actions

    def __post_init__(self):
        super().__post_init__()
        settings = {"exp_name": self.algo}
        for name, parameter in inspect.signature(ALGORITHMS[self.algo]).parameters.items():
            settings[name] = parameter.default
        settings |= zoo_row(self)
        if self.algo == "ppo":
            settings |= {"buffer_size": settings["n_steps"], "learning_starts": 0}
        self.fill({name: settings[name] for name in vars(self).keys() & settings.keys()})


class Stored(gym.Wrapper):
    """Puts each transition into a meow.ReplayBuffer, and is the one that SB3 samples from. SB3
    resets within the step that ends an episode; hence this keeps the last `info`, and `streams`,
    the random streams from which the episode began."""

    def __init__(self, env, rb):
        super().__init__(env)
        self.rb = rb

    def reset(self, **kwargs):
        self.streams = meow.random_streams()
        self.action_space.seed(np.random.randint(2**31))  # SB3's stream of uniform actions
        self.obs, _ = self.env.reset(seed=np.random.randint(2**31))
        return self.obs, {}

    def step(self, action):
        action = np.float32(action)  # what the buffer keeps is what was done
        next_obs, reward, terminated, truncated, self.info = self.env.step(action)
        self.rb.add(self.obs, next_obs, action, reward, terminated)  # a time limit does not end it
        self.obs = next_obs
        return next_obs, reward, terminated, truncated, {}  # SB3 copies all that it gets

    def add(self, *transition):
        """SB3 adds transitions here, but `step` has them already."""

    def sample(self, batch_size, env=None):
        """Draws ReplayBufferSamples, each (batch_size, ...)."""
        data = self.rb.sample(batch_size)
        return ReplayBufferSamples(data.obs, data.u, data.next_obs, data.terminated, data.reward)


def make_model(args, stored, device):
    """The SB3 model with zoo_row's settings, over them the flags."""
    settings, env = zoo_row(args), DummyVecEnv([lambda: stored])
    settings.update(batch_size=args.batch_size, learning_rate=args.learning_rate, gamma=args.gamma)
    if settings.pop("normalize", False):
        env = VecNormalize(env, gamma=args.gamma)
    if args.algo == "ppo":
        settings["n_steps"] = args.buffer_size
    else:
        settings.update(buffer_size=args.buffer_size, learning_starts=args.learning_starts)
    if "noise_std" in settings:
        noise_std = np.full(env.action_space.shape, settings.pop("noise_std"))
        settings["action_noise"] = NormalActionNoise(np.zeros_like(noise_std), noise_std)
    settings.update(device=device, _init_setup_model=False)
    model = ALGORITHMS[args.algo]("MlpPolicy", env, **settings)
    model.replay_buffer = stored  # before the set-up, which makes one of SB3's where there is none
    model._setup_model()
    model.set_logger(Logger(None, []))  # keeps the newest losses
    return model


def moments(model):
    """The running numbers of PPO's normaliser, as the dicts that hold them; none without one."""
    normaliser = model.get_vec_normalize_env()
    return [] if normaliser is None else [vars(normaliser.obs_rms), vars(normaliser.ret_rms)]


class Policy:
    """An SB3 model as meow.evaluate plays it and a run saves it. It moves no normaliser."""

    def __init__(self, model):
        self.model, policy = model, model.policy
        self.parameters, self.state_dict = policy.parameters, policy.state_dict

    def act(self, obs, deterministic=False):
        """(B, S) -> (B, A) in [-1,1]."""
        obs, normaliser = obs.cpu().numpy(), self.model.get_vec_normalize_env()
        if normaliser is not None:
            obs = normaliser.normalize_obs(obs)
        act, _ = self.model.predict(obs, deterministic=deterministic)
        return torch.from_numpy(act)


class Loop(BaseCallback):
    """What a run does within SB3's `learn`, between two rollouts and after each step."""

    def __init__(self, run, env, eval_envs, learned):
        super().__init__()
        self.run, self.env, self.eval_envs, self.learned = run, env, eval_envs, learned

    def _on_rollout_start(self):
        run, model, step = self.run, self.model, self.model.num_timesteps
        is_ppo = run.args.algo == "ppo"
        if is_ppo or step % 100 == 0:
            for name, loss in model.logger.name_to_value.items():
                run.log(step, {name.replace("train", "losses"): loss})
        if step > run.first_step and run.checkpoint_is_due(step, is_ppo or self.ended):
            rest = {"streams": self.env.streams, "updates": model._n_updates, "normaliser": []}
            for numbers in moments(model):
                rest["normaliser"].append({name: torch.tensor(x) for name, x in numbers.items()})
            run.checkpoint(step, self.learned, parameters=model.get_parameters(), **rest)

    def _on_step(self):
        run, step = self.run, self.model.num_timesteps
        self.ended = bool(self.locals["dones"][0])
        if self.ended:
            meow.log_episode(run, step, self.env.info)
        if step % 100 == 0:
            run.log(step, {"charts/SPS": int(step / run.seconds())})
        if step % run.args.eval_frequency == 0 or step == run.args.total_timesteps:
            meow.evaluate_and_save(run, Policy(self.model), self.eval_envs, step)
        return step < run.args.total_timesteps


def train(args):
    """Trains a baseline and writes runs/NAME. Returns the SB3 model and the meow.Run. Raises as
    meow.train."""
    capacity = 1 if args.algo == "ppo" else args.buffer_size  # ppo learns from its rollout
    row = f"{zoo_row(args)} over the defaults of stable_baselines3 {stable_baselines3.__version__}"
    with open_run(args, capacity, rl_zoo3=row) as (run, env, eval_envs, device):
        env = Stored(env, run.rb)
        model = make_model(args, env, device)
        learned = list(model.policy.state_dict().values())
        if args.algo == "sac":
            learned.append(model.log_ent_coef.detach())
        if args.resume is None:
            meow.evaluate_and_save(run, Policy(model), eval_envs, 0)
        else:
            model.set_parameters(run.state["parameters"])
            model.num_timesteps, model._n_updates = run.first_step, run.state["updates"]
            for numbers, saved in zip(moments(model), run.state["normaliser"], strict=True):
                numbers.update({name: tensor.numpy() for name, tensor in saved.items()})
            meow.set_random_streams(run.state["streams"])
            model._last_obs, model._last_episode_starts = model.env.reset(), np.array([True])
            run.restore(learned)  # with the streams, which a reset moves
            if args.algo == "ppo":
                meow.say("ppo is not resumed bit for bit: a new episode begins")
        loop, steps = Loop(run, env, eval_envs, learned), args.total_timesteps - run.first_step
        try:
            model.learn(steps, loop, log_interval=None, reset_num_timesteps=False)
        except ValueError as error:
            if "of distribution Normal" not in str(error):  # torch's, for what is not finite
                raise
            raise FloatingPointError(f"no Gaussian at step {model.num_timesteps:,}") from error
    return model, run


if __name__ == "__main__":
    sys.exit(main(Args, train))
