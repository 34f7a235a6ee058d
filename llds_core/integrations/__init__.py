"""LLDS inside other people's trainers. Each file knows one framework; the loss is
`llds_core.losses.llds_penalty` in all of them.
"""
