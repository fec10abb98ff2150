"""Pre-training without labels (UNIP, MAE, G2SD, self-distillation, MultiMAE), and PELA."""
