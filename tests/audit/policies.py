"""A policy for tests of the audit: `standard` as it was before the gate, with a bank of runs for each request."""

from audit.policy import Policy

WITH_RUNS = Policy(
    name="standard",
    n_models=64,
    retain_ratio_min=0.97,
    test_ratio_min=0.97,
    exchangeability_alpha=0.05,
    forgetting_ratio_min=0.5,
    cost_share_max=0.2,
    ladder=("remix", "random_mask", "retrain"),
    staleness_max=0.05,
)
