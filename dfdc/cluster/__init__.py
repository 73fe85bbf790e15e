"""Score and cut corpora on a Ray cluster; the only part of the package that needs the extra `cluster`.

Reading order: `scoring` (the job), `manifest` (its clips), `engine` (Ray), `layouts` (whole clips, or two stages),
`crew` (actors that share out work), `stages` (what an actor does with a clip), `guard` (the process that reads it),
`sink` (its row). `cutting` is the other job; `places` and `lease` serve both.
"""
