"""The study: where trees branch, what each method learns, and what changes that, on tasks where a difference can show.

    python -m benchmarks.study --suite=branching,training [--tasks=...] [--methods=...] [--seeds=5] [--jobs=2]
        [--folder=runs/study] [--quick] [--json]

Every run is a command anyone can repeat (`python -m ibtpo.train ...`, written into its folder), and has a folder of its
own: what is done is read, what was interrupted goes on. docs/study.md says what was found.
"""
