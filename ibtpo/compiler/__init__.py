"""A run's programs, compiled for chips that are not there: whether they fit and what they cost.

`check.Check` has the programs of a configuration and their compilations, `conclusions` draws the conclusions,
`show` prints them; `python -m ibtpo.compile_check` is the command. The cost of a compiled program is counted in its
text (`hlo` parses, `costs.analyse` walks).
"""
