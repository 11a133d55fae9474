"""How models are judged: protocol, significance, reports, baselines."""
