"""What tests of several rooms need."""

import pytest

from npd_ascend.ops.environments import Environments


@pytest.fixture(scope="session")
def engines():
    """The interpreters of both engines; skips where one environment stands for both."""
    found = Environments.find()
    if found.mindspore == found.rollout:
        pytest.skip("needs both environments (scripts/setup_env.sh)")
    return found
