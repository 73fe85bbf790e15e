"""Score and cut corpora on a Ray cluster; the only part of the package that needs the extra `cluster`.

Reading order: `scoring` (the job), `manifest` (its clips), `engine` (Ray), `stages` (what a node does with a clip),
`guard` (the process that reads it), `sink` (its row). `cutting` is the other job; `places` and `lease` serve both.
"""
