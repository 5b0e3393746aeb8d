"""How the encoders' tokens meet the decoder's text."""
