"""Search algorithms, one small file each. A factory `(env, episodes, seed)` returns an object with `run` and `policy`."""
