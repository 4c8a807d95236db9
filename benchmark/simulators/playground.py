"""MuJoCo Playground's tasks (JAX, MJX physics), many at a time, for meow_isaacgym.py.

    pip install playground==0.1.0 mujoco-mjx==3.4.0 "warp-lang<1.12"    # mujoco 3.4.0; a GPU needs "jax[cuda12]" too
    python meow_isaacgym.py --make benchmark.simulators.playground:make --task CartpoleBalance
    ... --task CheetahRun --make-kwargs '{"episode_length": 500}'     # overrides of the task's configuration

Nearest to the paper's: PandaOpenCabinet (FrankaCabinet), LeapCubeReorient (AllegroHand), Go1JoystickFlatTerrain
(Anymal), all three with models that Playground fetches with git at first use; HumanoidRun (Humanoid) comes with it.

Each episode has a start of its own (Playground's training wrapper repeats each environment's first): a step in which
any environment resets computes new starts for all, other steps compute none. A world whose numbers stop being finite
terminates, with its last finite observation and no reward. Only the physics "jax" is supported, the default.
"""

import os
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from mujoco_playground import registry


class World(NamedTuple):
    """All that decides the future of N environments, a tree of arrays."""

    key: jax.Array  # of the random stream of resets
    state: Any  # Playground's own
    steps: jax.Array  # of the episode so far (N,)
    done: jax.Array  # resets in the next step (N,)


def observation(state):
    """(N, S): what a policy sees of a Playground state, which may have privileged observations beside it."""
    return (state.obs["state"] if isinstance(state.obs, dict) else state.obs).astype(jnp.float32)


def where(mask, new, old):
    """Arrays (N, ...): new where the mask (N,) is true."""
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)


class PlaygroundVecTask:
    """A Playground task with the interface of isaacgymenvs' VecTask, but reset() begins an episode. What reset and
    step return shares memory with JAX's arrays and is not to be written to."""

    reset_is_real = True

    def __init__(self, env, config, num_envs, seed):
        self.env, self.num_envs = env, num_envs
        self.action_repeat, self.episode_length = config.get("action_repeat", 1), config.episode_length
        self.begin, self.advance = jax.jit(self.begin), jax.jit(self.advance)
        # SPEED: 64 CartpoleBalance: 0.5 ms per step; 15 ms, and two compilations, if not put on the actions' device
        self.world, obs = self.begin(jax.device_put(jax.random.PRNGKey(seed), jax.devices()[0]))
        if obs.ndim != 2:
            raise ValueError(f"observations must be vectors, not of shape {obs.shape[1:]}")
        self.observation_space = SimpleNamespace(shape=obs.shape[1:])
        self.action_space = SimpleNamespace(shape=(env.action_size,))

    def begin(self, key):
        """New episodes everywhere: key -> World, obs (N, S)."""
        keys = jax.random.split(key, self.num_envs + 1)
        state, zeros = jax.vmap(self.env.reset)(keys[1:]), jnp.zeros(self.num_envs, jnp.int32)
        state = jax.tree.map(lambda x: x.astype(x.dtype), state)  # no weak types, or JAX compiles `advance` again
        return World(keys[0], state, zeros, zeros != 0), observation(state)

    def advance(self, world, actions):
        """World, actions (N, A) in [-1,1] -> World, obs (N, S), reward, done, time_outs (N,)."""

        def step(state, _):
            state = jax.vmap(self.env.step)(state, actions)
            return state, state.reward

        def reset(state):
            fresh, _ = self.begin(world.key)
            return fresh.key, jax.tree.map(partial(where, world.done), fresh.state, state)

        state, rewards = jax.lax.scan(step, world.state, length=self.action_repeat)
        key, state = jax.lax.cond(world.done.any(), reset, lambda state: (world.key, state), state)
        obs, reward = observation(state), jnp.where(world.done, 0.0, rewards.sum(axis=0))
        finite = jnp.isfinite(obs).all(axis=1) & jnp.isfinite(reward)
        obs, reward = where(finite, obs, observation(world.state)), jnp.where(finite, reward, 0.0)
        steps = jnp.where(world.done, 0, world.steps + self.action_repeat)
        terminated, at_limit = (state.done > 0) | ~finite, steps >= self.episode_length
        done = terminated | at_limit
        return World(key, state, steps, done), obs, reward, done, at_limit & ~terminated

    def reset(self):
        self.world, obs = self.begin(self.world.key)
        return {"obs": torch.from_dlpack(obs)}

    def step(self, actions):
        # clamp makes the copy that JAX may read later: it computes in the background
        actions = jax.dlpack.from_dlpack(actions.clamp(-1.0, 1.0).contiguous())
        self.world, *results = self.advance(self.world, actions)
        obs, reward, done, time_outs = map(torch.from_dlpack, results)
        return {"obs": obs}, reward, done, {"time_outs": time_outs}

    def get_state(self):
        """All that decides the future, as tensors: with it a run resumes bit for bit."""
        return [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(self.world)]

    def set_state(self, state):
        """Puts a state of `get_state` in place."""
        leaves = [jax.device_put(np.array(leaf.numpy()), jax.devices()[0]) for leaf in state]
        self.world = jax.tree.unflatten(jax.tree.structure(self.world), leaves)


def make(seed, task, num_envs, sim_device, rl_device, graphics_device_id=-1, headless=True, **overrides):
    """As isaacgymenvs.make, of whose arguments the device of the simulator is rl_device's here.

    Raises ValueError for an unknown task, and if JAX does not run where PyTorch does.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes 3/4 of the GPU's memory at once
    jax.config.update("jax_default_matmul_precision", "highest")  # or a GPU computes the physics in TF32
    backend = jax.default_backend()
    if (backend == "gpu") != str(rl_device).startswith("cuda"):
        advice = 'JAX_PLATFORMS=cpu makes it the CPU, pip install "jax[cuda12]" the GPU'
        raise ValueError(f"JAX runs on the {backend}, PyTorch on {rl_device}: {advice}")
    config = registry.get_default_config(task)
    env = registry.load(task, config, overrides)  # which go into config too
    return PlaygroundVecTask(env, config, num_envs, seed)
