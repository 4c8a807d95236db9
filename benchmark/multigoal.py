"""The paper's 2-D multi-goal task (Fig. 2), a gymnasium environment for --env-id benchmark.multigoal:MultiGoal-v0.

A point in the plane moves by its action and is to reach one of four goals, all equally far from its start: a policy
with the highest entropy goes to all of them.
"""

import gymnasium as gym
import numpy as np

GOALS = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])


class MultiGoalEnv(gym.Env):
    """obs (2,): the position, |x|, |y| <= 7; act (2,) in [-1, 1]: the displacement. Starts at N(0, 0.1^2).

    reward = -30 * |act|^2 - min_goal |position - goal|^2, with the position after the move, and +10 within distance 1
    of a goal, which ends the episode.
    """

    observation_space = gym.spaces.Box(-7.0, 7.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.normal(0.0, 0.1, 2)
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position = np.clip(self.position + action, -7.0, 7.0)
        distance = np.linalg.norm(self.position - GOALS, axis=1).min()
        reached = bool(distance < 1.0)
        reward = -30.0 * float(np.square(action).sum()) - distance**2 + 10.0 * reached
        return self.position.astype(np.float32), reward, reached, False, {}


gym.register("MultiGoal-v0", entry_point=MultiGoalEnv, max_episode_steps=1_000)
