"""The paper's baselines SAC, TD3, DDPG and PPO: stable-baselines3 with rl-zoo3's settings, as the paper ran them.

    python benchmark/baselines/sb3.py --algo sac --env-id Hopper-v4 --exp-name sac        # also td3, ddpg, ppo
    python benchmark/baselines/sb3.py --resume runs/NAME                                  # CPU: bit for bit, except ppo

The algorithms are stable-baselines3's (SB3's). Environment, evaluation, logs, checkpoints and resume are those of
meow_continuous_action.py, so that all systems of a figure are measured alike. That makes three differences:

- All agents act in [-1,1]^A. So they do with rl-zoo3, except PPO on Humanoid, whose own bounds are +-0.4: its initial
  standard deviation, exp(-2), is 0.4 times rl-zoo3's in the environment's units.
- The replay memory is meow.ReplayBuffer: float32, what the networks read anyhow, drawn from as SB3's is.
- An evaluation at step N comes before the update of step N (meow_continuous_action.py: after it). PPO's uses the
  observation normaliser as it stands at that step.

A rollout is one step, PPO's 512 (SB3's default: 2,048). Checkpoints are written between two rollouts, PPO's in the
middle of an episode: a resumed run of PPO begins a new one there.
"""

import copy
import functools
import inspect
import json
import sys
from dataclasses import dataclass, fields
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

# hyperparams/*.yml of rl-zoo3 2.9.2, as differences from stable-baselines3 2.9.2. "default" is for environments that it
# does not list. `noise_std` is that of normal action noise, `normalize` means VecNormalize of observations and rewards.
# SAC's rows are the paper's Table A2. No row has a schedule.
NOISE = {"noise_std": 0.1}
WIDE = {"log_std_init": -2, "ortho_init": False, "activation_fn": nn.ReLU, "net_arch": [256, 256]}
PPO_COLUMNS = ("learning_rate", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef")
PPO_COLUMNS += ("max_grad_norm", "policy_kwargs")
PPO_ROWS = {
    "Hopper-v4": (9.80828e-05, 32, 5, 0.999, 0.99, 0.2, 0.00229519, 0.835671, 0.7, WIDE),
    "HalfCheetah-v4": (2.0633e-05, 64, 20, 0.98, 0.92, 0.1, 0.000401762, 0.58096, 0.8, WIDE),
    "Walker2d-v4": (5.05041e-05, 32, 20, 0.99, 0.95, 0.1, 0.000585045, 0.871923, 1.0, {}),
    "Humanoid-v4": (3.56987e-05, 256, 5, 0.95, 0.9, 0.3, 0.00238306, 0.431892, 2.0, WIDE),
}
ZOO = {
    "sac": {"default": {}} | dict.fromkeys(meow.PAPER_SETTINGS, {"learning_starts": 10_000}),
    "td3": {"default": NOISE} | dict.fromkeys(meow.PAPER_SETTINGS, NOISE | {"learning_starts": 10_000}),
    "ddpg": {"default": NOISE} | dict.fromkeys(meow.PAPER_SETTINGS, NOISE | {"learning_starts": 10_000}),
    "ppo": {"default": {}, "Ant-v4": {"normalize": True}},
}
PPO_ROWS = {name: dict(zip(PPO_COLUMNS, row, strict=True)) for name, row in PPO_ROWS.items()}
ZOO["ppo"] |= {name: {"normalize": True, "n_steps": 512} | row for name, row in PPO_ROWS.items()}


def zoo_row(args):
    """rl-zoo3's settings of `args.algo` for `args.env_id`, also for its other versions, as in ZOO."""
    return ZOO[args.algo][meow.paper_row(args.env_id) or "default"]


@dataclass
class Args(OffPolicyArgs):
    algo: Literal["sac", "td3", "ddpg", "ppo"] = "sac"  # the algorithm of stable-baselines3
    exp_name: str | None = None  # the name of this experiment (None: --algo)
    # transitions in the replay buffer; ppo: the steps of a rollout (None: rl-zoo3's for --env-id, as those below)
    buffer_size: int | None = None
    batch_size: int | None = None  # transitions per update
    learning_starts: int | None = None  # step to start learning; uniform actions before (ppo: 0)
    learning_rate: float | None = None  # the learning rate of all optimizers
    gamma: float | None = None  # the discount factor gamma

    def __post_init__(self):
        super().__post_init__()
        parameters = inspect.signature(ALGORITHMS[self.algo]).parameters
        settings = {name: parameter.default for name, parameter in parameters.items()} | zoo_row(self)
        settings["exp_name"] = self.algo
        if self.algo == "ppo":
            settings |= {"buffer_size": settings["n_steps"], "learning_starts": 0}
        self.fill({field.name: settings.get(field.name) for field in fields(self)})

    def rules(self):
        if self.algo == "ppo":
            divides = self.batch_size > 1 and self.buffer_size % self.batch_size == 0
            return {
                "--learning-starts must be 0 with --algo ppo": self.learning_starts == 0,
                "--batch-size must be above 1 and divide --buffer-size with --algo ppo": divides,
            }
        draws = self.eval_deterministic or self.algo == "sac"
        return {"--eval-deterministic must stay with td3 and ddpg, which draw no actions": draws}


class Stored(gym.Wrapper):
    """Puts each transition of the environment into a meow.ReplayBuffer, and keeps what SB3, which resets an environment
    within the step that ends an episode, leaves no time to look at: `charts` of the last step's episode, and
    `before_reset`, the random streams from which the episode began.

    A time limit does not end the task: only `terminated` cuts the bootstrap, as with SB3's own buffer.
    """

    def __init__(self, env, rb):
        super().__init__(env)
        self.rb = rb

    def reset(self, **kwargs):
        self.before_reset = meow.random_streams(), self.env.get_state()
        self.obs, _ = self.env.reset(**kwargs)
        return self.obs, {}

    def step(self, action):
        action = np.float32(action)  # what the buffer keeps is what was done
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        self.rb.add(self.obs, next_obs, action, reward, terminated)
        self.obs, self.charts = next_obs, self.env.charts
        return next_obs, reward, terminated, truncated, {}  # SB3 copies all that it gets


class Replay:
    """What SB3 asks of a replay buffer, from a meow.ReplayBuffer `rb` that `Stored` fills."""

    def __init__(self, *settings, rb, **more_settings):
        self.rb = rb

    def add(self, *transition):
        """`Stored` has it already."""

    def sample(self, batch_size, env=None):
        """Draws ReplayBufferSamples, each (batch_size, ...)."""
        data = self.rb.sample(batch_size)
        return ReplayBufferSamples(data.obs, data.u, data.next_obs, data.terminated, data.reward)


def make_model(args, env, rb, device):
    """The SB3 model of `args`: ZOO's settings, over them the flags. env: gym.Env that fills rb, a meow.ReplayBuffer."""
    env, settings = DummyVecEnv([lambda: env]), copy.deepcopy(zoo_row(args))
    noise_std = settings.pop("noise_std", None)
    if settings.pop("normalize", False):
        env = VecNormalize(env, gamma=args.gamma)
    settings |= {name: getattr(args, name) for name in ("batch_size", "learning_rate", "gamma")}
    if args.algo == "ppo":
        settings |= {"n_steps": args.buffer_size}
    else:
        settings |= {"buffer_size": args.buffer_size, "learning_starts": args.learning_starts}
        settings |= {"replay_buffer_class": Replay, "replay_buffer_kwargs": {"rb": rb}}
    if noise_std is not None:
        shape = env.action_space.shape
        settings |= {"action_noise": NormalActionNoise(np.zeros(shape), np.full(shape, noise_std))}
    model = ALGORITHMS[args.algo]("MlpPolicy", env, device=device, **settings)
    model.set_logger(Logger(None, []))  # keeps the newest losses
    model.action_space.seed(args.seed)
    return model


def hyperparameters(model):
    """{name: what it resolved to} of all that an SB3 model was made with, as JSON takes it."""
    values = {"version": stable_baselines3.__version__, "normalize": model.get_vec_normalize_env() is not None}
    for name in inspect.signature(type(model)).parameters.keys() - {"policy", "env", "replay_buffer_kwargs"}:
        value = getattr(model, name, None)
        values[name] = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
    return values


def newest_losses(model):
    """{name: number} of what SB3 logged of its last update, without what is constant or counts."""
    losses = {}
    for key, value in model.logger.name_to_value.items():
        name = key.removeprefix("train/")
        if name not in ("learning_rate", "clip_range", "n_updates"):
            losses[f"losses/{name}"] = value
    return losses


class Policy:
    """An SB3 model's policy as meow.evaluate plays it and a run saves it. A normaliser is read and not moved."""

    def __init__(self, model):
        self.model, self.parameters = model, model.policy.parameters

    def state_dict(self):
        """What `act` needs."""
        return {"policy": self.model.policy.state_dict(), "normaliser": normaliser_state(self.model)}

    def act(self, obs, deterministic=False):
        """(B, S) -> (B, A) in [-1,1]."""
        obs, normaliser = obs.cpu().numpy(), self.model.get_vec_normalize_env()
        if normaliser is not None:
            obs = normaliser.normalize_obs(obs)
        return torch.from_numpy(self.model.predict(obs, deterministic=deterministic)[0])


def normaliser_numbers(model):
    """The dicts that hold the running numbers of a model's normaliser, if it has one."""
    normaliser = model.get_vec_normalize_env()
    return [] if normaliser is None else [vars(normaliser.obs_rms), vars(normaliser.ret_rms)]


def normaliser_state(model):
    """A copy of `normaliser_numbers` as tensors."""
    state = []
    for numbers in normaliser_numbers(model):
        state.append({name: torch.from_numpy(np.array(x)) for name, x in numbers.items()})
    return state


def get_model_state(model):
    """What an SB3 model has learnt between two rollouts beside its policy's tensors, as tensors and plain data."""
    optimizers = model.get_parameters()
    del optimizers["policy"]
    return {
        "optimizers": optimizers,
        "stream": model.action_space.np_random.bit_generator.state,
        "variables": {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]},
        "counts": {name: getattr(model, name) for name in ("num_timesteps", "_n_updates")},
        "normaliser": normaliser_state(model),
    }


def set_model_state(model, state):
    """Puts a state of `get_model_state` into another model of the same settings."""
    model.set_parameters(state["optimizers"], exact_match=False)
    model.action_space.np_random.bit_generator.state = state["stream"]
    for name, value in state["variables"].items():
        getattr(model, name).data.copy_(value)
    vars(model).update(state["counts"])
    for numbers, saved in zip(normaliser_numbers(model), state["normaliser"], strict=True):
        numbers.update({name: tensor.numpy() for name, tensor in saved.items()})


class Loop(BaseCallback):
    """What a run does within SB3's `learn`, between two rollouts and after each step of the environment."""

    def __init__(self, run, env, evaluate):
        super().__init__()
        self.run, self.env, self.evaluate, self.ended = run, env, evaluate, False
        bar = meow.tqdm(initial=run.first_step, total=run.args.total_timesteps, mininterval=1, miniters=1)
        self.progress = run.enter_context(bar)

    def _on_rollout_start(self):
        run, step, is_ppo = self.run, self.model.num_timesteps, self.run.args.algo == "ppo"
        if is_ppo or step % 100 == 0:
            run.log(step, newest_losses(self.model))
        if step > run.first_step and run.checkpoint_is_due(step, self.ended or is_ppo):
            learned = list(self.model.policy.state_dict().values())
            run.checkpoint(step, learned, model=get_model_state(self.model), before_reset=self.env.before_reset)

    def _on_step(self):
        run, step = self.run, self.model.num_timesteps
        self.progress.update()
        self.ended = bool(self.locals["dones"][0])
        if self.ended:
            run.log(step, self.env.charts)
        if step % 100 == 0:
            run.log(step, {"charts/SPS": int(step / run.seconds())})
        if step % run.args.eval_frequency == 0 or step == run.args.total_timesteps:
            self.evaluate(step)
        return step < run.args.total_timesteps


def train(args):
    """Trains a baseline as `args` says and writes runs/NAME as meow_continuous_action.py does.
    Returns the SB3 model and the meow.Run. Raises as meow.train."""
    capacity = 1 if args.algo == "ppo" else args.buffer_size  # ppo learns from its rollout
    with open_run(args, capacity) as (run, env, eval_envs, device):
        stored = Stored(env, run.rb)
        model = make_model(args, stored, run.rb, device)
        run.config["stable_baselines3"] = hyperparameters(model)
        (run.dir / "config.json").write_text(json.dumps(run.config, indent=2))
        evaluate = functools.partial(meow.evaluate_and_save, run, Policy(model), env, eval_envs)
        model.env.seed(args.seed)  # of the stream of all episodes, at the next reset
        obs = model.env.reset()
        if args.resume is None:
            evaluate(0)
        else:
            set_model_state(model, run.state["model"])
            streams, env_state = run.state["before_reset"]
            meow.set_random_streams(streams)
            env.set_state(env_state)
            obs = model.env.reset()
            run.restore(list(model.policy.state_dict().values()))
            if args.algo == "ppo":
                meow.say("ppo is not resumed bit for bit: a new episode begins")
        model._last_obs, model._last_episode_starts = obs, np.array([True])
        steps = args.total_timesteps - run.first_step
        try:
            model.learn(steps, Loop(run, stored, evaluate), log_interval=None, reset_num_timesteps=False)
        except ValueError as error:
            if "of distribution Normal" not in str(error):  # torch's, where its mean or deviation is none
                raise
            raise FloatingPointError(f"the policy is no Gaussian at step {model.num_timesteps:,}") from error
    return model, run


if __name__ == "__main__":
    sys.exit(main(Args, train))
