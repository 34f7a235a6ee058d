"""Speed against named baselines, measured side by side."""
