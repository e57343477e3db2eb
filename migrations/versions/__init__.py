"""One file per revision, named NNNN_pre_... or NNNN_post_....

`pre`: it adds what a release needs, and the release before it works with the result: run it before the deployment.
`post`: it takes away what only older releases used: run it when none of their processes is left.

A revision is history. It never imports today's tables, and once released it is never edited.
"""
