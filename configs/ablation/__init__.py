"""What is varied in an ablation of FDFtNet, one function `get_config` a file."""
