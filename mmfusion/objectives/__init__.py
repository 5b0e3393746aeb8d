"""Model outputs in, losses out: the equations in `functional`, one small module an objective around them."""
