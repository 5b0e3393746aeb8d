"""One encoder a modality: Patches in, Tokens out. An own one needs no more than ours.

`modality` is what it reads, `width` that of its tokens, `merge` how many consecutive patches make one token: of N
padded patches ⌈N / merge⌉ tokens, valid where one of theirs is. The file in `conf/model/<modality>/` says all that
depends on it: the encoder, the head, the fusion's width, and in `data.pipeline.patchify` how its parts are cut.
"""
