"""The command `import`: what lmms-eval wrote elsewhere becomes a row beside those that were run here.

Scores are computed anew from the logged samples. A question is taken for one of ours where it has the number of one
and the right answers agree; then it is about the same picture, and `compare` pairs both.
"""
