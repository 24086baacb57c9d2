"""Scoring rules by name. A policy is one small file here: a frozen dataclass with `score`; see AGENTS.md to add one."""

from __future__ import annotations

from dataclasses import replace

from infinipot_llm.config import PotConfig
from infinipot_llm.pot.policies.expected_attention import ExpectedAttentionPolicy
from infinipot_llm.pot.policies.full import FullPolicy
from infinipot_llm.pot.policies.h2o import H2OPolicy
from infinipot_llm.pot.policies.infinipot import InfiniPotPolicy
from infinipot_llm.pot.policies.keydiff import KeyDiffPolicy
from infinipot_llm.pot.policies.random import RandomPolicy
from infinipot_llm.pot.policies.sirllm import SirLLMPolicy
from infinipot_llm.pot.policies.snapkv import SnapKVPolicy
from infinipot_llm.pot.policies.streaming import StreamingPolicy
from infinipot_llm.pot.policies.tova import TovaPolicy
from infinipot_llm.pot.policies.truncate import TruncatePolicy
from infinipot_llm.pot.score import Policy

POLICIES: dict[str, type[Policy]] = {
    "infinipot": InfiniPotPolicy,
    "full": FullPolicy,
    "truncate": TruncatePolicy,
    "random": RandomPolicy,
    "streaming": StreamingPolicy,
    "snapkv": SnapKVPolicy,
    "tova": TovaPolicy,
    "sirllm": SirLLMPolicy,
    "h2o": H2OPolicy,
    "keydiff": KeyDiffPolicy,
    "expected-attention": ExpectedAttentionPolicy,
}
"""The same names as config.POLICIES, which the command line reads without loading torch."""


def make_policy(config: PotConfig, *, known: bool = False) -> Policy:
    """Return the policy that `config.policy` names, with the configuration's knobs for a question known or not."""
    return POLICIES[config.policy].from_config(replace(config, agreement=config.agreed(known)))
