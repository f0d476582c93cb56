"""The pass manager: passes, pipelines as text, instruments."""
