"""From torch and back: capture, pipelines and targets, codegen, the driver, the command line."""
