"""Scripts that build the embedded sample from packages of Debian, npm and PyPI: one script per source.

`python -m data_prep.build` makes everything, `python -m data_prep.SOURCE` one source again; the same bytes every time,
but for sounds on another kind of processor, where libopus computes a little differently.
"""
