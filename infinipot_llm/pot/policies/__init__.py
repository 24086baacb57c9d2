"""Scoring rules by name. A policy is one small file here: a frozen dataclass with `score`; see AGENTS.md to add one."""

from __future__ import annotations

from infinipot_llm.config import PotConfig
from infinipot_llm.errors import BudgetError
from infinipot_llm.pot.policies.infinipot import InfiniPotPolicy
from infinipot_llm.pot.policies.streaming import StreamingPolicy
from infinipot_llm.pot.score import Policy

POLICIES: dict[str, type[Policy]] = {"infinipot": InfiniPotPolicy, "streaming": StreamingPolicy}


def make_policy(config: PotConfig) -> Policy:
    """Return the policy that `config.policy` names, with the configuration's knobs.

    Raises:
        BudgetError: No policy has that name.
    """
    if config.policy not in POLICIES:
        raise BudgetError(f"unknown policy {config.policy!r}: choose one of {', '.join(sorted(POLICIES))}.")
    return POLICIES[config.policy].from_config(config)
