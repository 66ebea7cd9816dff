"""Mail runs: many conversations with a real Salmon application, while its store goes and comes back.

`python -m tests.mail` is the long version of `tests/test_mail_run.py` and `tests/test_postfix.py`.
"""
