"""From raw logs to impressions, on Beam."""
