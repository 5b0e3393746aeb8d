"""Training: one LightningModule for every stage, and what Lightning lacks."""
