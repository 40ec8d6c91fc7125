"""Optuna's own contract tests, on the sampler that draws every point of a study.

`BasicSamplerTestCase` fits: a parameter that the plan does not search is sampled by itself. The others do not fit.
`RelativeSamplerTestCase` passes a search space for each call, where `SeededSampler` draws the plan's space, and
`MultiObjectiveSamplerTestCase` needs several objectives, where a study has one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase

from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.sampler import SeededSampler


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    home = tmp_path_factory.mktemp("home")
    return build_plan([f"home={home}", "sampler=tpe", "optimizer.lr=tag(log,interval(1e-4,1e-1))"])


class TestSeededSampler(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self, plan: Plan) -> Callable[[], BaseSampler]:
        return lambda: SeededSampler(plan)
